//! The dashboard in a browser: a control plane that asks doubles of proxies, and a headless Chromium
//! that looks. Where the machine has no Chromium, that is said and the case passes.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, sync::Arc};

use remora_tests::{
    browser::{Browser, Key},
    mesh::{Mesh, NAMESPACE},
    sidecar::try_get,
    wait::eventually,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// Pods of the shop and the Deployments that they are of, which are also the names of their Services.
const PODS: [(&str, &str); 7] = [
    ("load-0", "load"),
    ("web-0", "web"),
    ("web-1", "web"),
    ("orders-0", "orders"),
    ("orders-1", "orders"),
    ("orders-2", "orders"),
    ("inventory-0", "inventory"),
];

/// A namespace, a Service and text that would run if it were taken for markup.
const HOSTILE: &str = "<img src=x onerror=document.title=String(1)>";

/// The shop as the control plane reads it, and a double of each proxy but inventory's.
async fn shop() -> Mesh {
    let mut mesh = Mesh::new();
    for name in ["web", "orders", "inventory"] {
        mesh.service(name, &[]);
    }
    let mut ips = BTreeMap::new();
    for (pod, owner) in PODS {
        let ip = mesh.pod(pod, owner).ip;
        mesh.write_raw(&format!("pod-{pod}"), &object(pod, owner, ip).to_string());
        ips.insert(pod, ip);
    }
    mesh.write_raw("route", &route().to_string());
    for (pod, owner) in PODS.into_iter().filter(|(pod, _)| *pod != "inventory-0") {
        let listener = TcpListener::bind((ips[pod], 4191)).await.expect("a free port");
        tokio::spawn(proxy(listener, Arc::new(answers(owner, pod, &ips))));
    }
    mesh.start_plane().await;
    mesh
}

fn object(pod: &str, owner: &str, ip: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod, "namespace": NAMESPACE, "labels": {"app": owner},
            "annotations": {"remora.io/proxy-version": "test"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": owner,
                "uid": "", "controller": true}]},
        "spec": {"serviceAccountName": owner, "nodeName": "node-a",
            "containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn route() -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "orders", "namespace": NAMESPACE},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "orders"}], "rules": [
            {"matches": [{"path": {"type": "PathPrefix", "value": "/stock"}}],
             "backendRefs": [{"name": "inventory", "port": 80}]},
            {"backendRefs": [{"name": "orders", "port": 80, "weight": 9},
                             {"name": "missing", "port": 80, "weight": 1}]}]},
    })
}

fn window(requests: u64, failures: u64, p50_us: u64, p99_us: u64) -> Value {
    json!({"10s": {"seconds": 10.0, "requests": requests, "failures": failures,
        "p50_us": p50_us, "p90_us": p50_us, "p99_us": p99_us, "p999_us": p99_us, "max_us": p99_us}})
}

/// What a proxy of the shop says: load calls web, web calls orders, where orders-2 is ejected, and
/// orders calls inventory, where much fails.
fn answers(owner: &str, pod: &str, ips: &BTreeMap<&str, Ipv4Addr>) -> BTreeMap<String, String> {
    let called = match owner {
        "load" => Some(("web", window(1500, 0, 4200, 12_000))),
        "web" => Some(("orders", window(700, 20, 2400, 9000))),
        "orders" => Some(("inventory", window(120, 18, 800, 45_000))),
        _ => None,
    };
    let services = called.map(|(name, windows)| {
        let behind = PODS.iter().filter(|(_, owner)| *owner == name);
        let endpoints = behind.map(|(pod, _)| {
            let open = *pod == "orders-2";
            let breaker = if open {
                json!({"reason": "success-rate", "trips": 3, "since_ms": 900, "next_probe_ms": 2100})
            } else {
                json!({"reason": null, "trips": 0, "since_ms": null, "next_probe_ms": null})
            };
            json!({"address": format!("{}:8080", ips[pod]), "namespace": NAMESPACE, "pod": pod,
                "state": if open { "open" } else { "ready" }, "ewma_ms": 2.4, "in_flight": 1,
                "breaker": breaker, "windows": if open { json!({}) } else { windows.clone() }})
        });
        let routes = json!([{"name": "shop/orders/1", "windows": windows}]);
        json!({"namespace": NAMESPACE, "name": name, "port": 80, "target": "10.96.0.1:80",
            "protocol": "http/1.1", "windows": windows, "routes": routes,
            "endpoints": endpoints.collect::<Vec<_>>()})
    });
    let events = if owner == "web" {
        json!([{"at_ms": 1_795_226_515_000_u64, "ago_ms": 9, "service": "shop/orders:80",
            "endpoint": format!("{}:8080", ips["orders-2"]), "pod": HOSTILE, "kind": "ejected",
            "reason": "success-rate", "penalty_ms": 3000}])
    } else {
        json!([])
    };
    let callers = json!([{"id": "spiffe://cluster.local/ns/shop/sa/web", "requests": 900, "failures": 3},
        {"id": "none", "requests": 4, "failures": 0}]);
    BTreeMap::from([
        ("/endpoints".to_owned(), json!({"services": services.into_iter().collect::<Vec<_>>()})),
        (
            "/inbound".to_owned(),
            json!({"ports": [{"port": 8080, "windows": {}, "callers": callers}]}),
        ),
        ("/events".to_owned(), json!({"events": events})),
        (
            "/certs".to_owned(),
            json!({"identity": format!("spiffe://cluster.local/ns/shop/sa/{owner}"),
                "not_after": 4_000_000_000_u64, "pod": pod}),
        ),
    ])
    .into_iter()
    .map(|(path, answer)| (path, answer.to_string()))
    .collect()
}

/// A server that knows these paths.
async fn proxy(listener: TcpListener, answers: Arc<BTreeMap<String, String>>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        tokio::spawn(serve(socket, Arc::clone(&answers)));
    }
}

async fn serve(socket: TcpStream, answers: Arc<BTreeMap<String, String>>) -> std::io::Result<()> {
    let mut socket = BufReader::new(socket);
    loop {
        let mut line = String::new();
        if socket.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        while line.trim_end() != "" {
            line.clear();
            socket.read_line(&mut line).await?;
        }
        let (status, body) =
            answers.get(&path).map_or(("404 Not Found", ""), |body| ("200 OK", body.as_str()));
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
        socket.write_all(head.as_bytes()).await?;
        socket.write_all(body.as_bytes()).await?;
    }
}

#[tokio::test]
async fn the_overview_is_what_proxies_say_put_together() {
    let mesh = shop().await;
    let all: Value = eventually("a round", async || {
        let (_, text) = try_get(mesh.plane_admin(), "/dashboard/topology.json").await?;
        let all: Value = serde_json::from_str(&text).ok()?;
        all["sampled_ms"].is_u64().then_some(all)
    })
    .await;
    let proxies = &all["proxies"];
    assert_eq!((&proxies["asked"], &proxies["answered"]), (&json!(7), &json!(6)));
    assert_eq!(proxies["failures"][0]["pod"], json!("inventory-0"));
    let edges = all["edges"].as_array().unwrap();
    let called: Vec<_> = edges
        .iter()
        .filter(|edge| edge["kind"] == "calls")
        .map(|edge| (edge["from"].as_str().unwrap(), edge["to"].as_str().unwrap(), &edge["rps"]))
        .collect();
    assert_eq!(
        called,
        [
            ("workload:shop/Deployment/load", "service:shop/web", &json!(150.0)),
            ("workload:shop/Deployment/web", "service:shop/orders", &json!(140.0)),
            ("workload:shop/Deployment/orders", "service:shop/inventory", &json!(36.0)),
        ]
    );
    let (status, text) =
        try_get(mesh.plane_admin(), "/dashboard/services/shop/orders.json").await.unwrap();
    let orders: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &orders["endpoints"][0]["state"]), (200, &json!("open")));
    assert_eq!(orders["routes"][1]["backends"][1]["service"], json!("shop/missing:80"));
    assert_eq!(orders["routes"][1]["rps"], json!(140.0));
}

#[tokio::test]
async fn the_page_in_a_browser() {
    let mesh = shop().await;
    let page = format!("http://{}/", mesh.plane_admin());
    let seen = tokio::task::spawn_blocking(move || {
        let Some(mut browser) = Browser::launch() else {
            eprintln!("skipped: no Chromium is installed (apt install chromium)");
            return;
        };
        overview(&mut browser, &page);
        by_keyboard(&mut browser);
        events_are_text(&mut browser, &page);
        assert!(browser.requests.len() > 8, "{:?}", browser.requests);
        let elsewhere: Vec<_> =
            browser.requests.iter().filter(|url| !url.starts_with(&page)).collect();
        assert!(elsewhere.is_empty(), "{elsewhere:?}");
        assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    });
    seen.await.unwrap();
}

#[tokio::test]
async fn the_page_says_when_the_control_plane_is_gone() {
    let mut mesh = shop().await;
    let page = format!("http://{}/", mesh.plane_admin());
    let start = tokio::task::spawn_blocking(move || {
        let mut browser = Browser::launch()?;
        browser.look(1280, 900, "light");
        browser.open(&page);
        browser.until("document.querySelector('svg.graph')");
        Some(browser)
    });
    let Some(mut browser) = start.await.unwrap() else {
        eprintln!("skipped: no Chromium is installed (apt install chromium)");
        return;
    };
    mesh.kill_plane().await;
    let look = tokio::task::spawn_blocking(move || {
        browser
            .until("document.querySelector('#problems').innerText.includes('cannot be reached')");
        browser.until("document.querySelector('#live').textContent.includes('cannot be reached')");
        // What was known is still there.
        browser.until("document.querySelector('svg.graph')");
    });
    look.await.unwrap();
}

/// Where pictures go, if somebody wants to look: `$REMORA_PICTURES`.
fn picture(browser: &mut Browser, name: &str) {
    if let Some(dir) = std::env::var_os("REMORA_PICTURES") {
        browser.picture(&PathBuf::from(dir).join(format!("{name}.png")));
    }
}

fn overview(browser: &mut Browser, page: &str) {
    browser.look(1280, 900, "light");
    browser.open(page);
    browser.until("document.querySelectorAll('svg.graph a').length === 3");
    for name in ["web", "orders", "inventory", "load"] {
        browser
            .until(&format!("document.querySelector('svg.graph').textContent.includes('{name}')"));
    }
    // The same as tables, and what goes badly by sign and word too.
    let rows = browser.value("[...document.querySelectorAll('tbody tr')].map(r => r.innerText)");
    let rows = rows.to_string();
    assert!(rows.contains("shop/inventory\\t✕ failing") && rows.contains("85.0 %"), "{rows}");
    browser.until("document.querySelector('#problems').innerText.includes('1 of 7 proxies')");
    for (scheme, width) in [("light", 1280), ("dark", 1280), ("light", 400)] {
        browser.look(width, 900, scheme);
        picture(browser, &format!("topology-{scheme}-{width}"));
        contrast(browser);
    }
    browser.look(1280, 900, "light");
    labels(browser);
    // What changes by itself can be held (WCAG 2.2, 2.2.2).
    let press = "document.getElementById('pause').click()";
    browser.value(press);
    browser.until("document.querySelector('#updated').textContent.includes('paused at')");
    assert_eq!(browser.value("document.getElementById('pause').ariaPressed"), json!("true"));
    browser.value(press);
    browser.until("document.querySelector('#updated').textContent.includes('updated')");
}

/// From the top of the page to a Service and to its endpoints with keys alone.
fn by_keyboard(browser: &mut Browser) {
    let focused =
        "document.activeElement.getAttribute('aria-label') || document.activeElement.textContent";
    let mut way = Vec::new();
    let found = (0..40).any(|_| {
        browser.press(Key::Tab);
        let at = browser.value(focused).as_str().unwrap_or_default().to_owned();
        let visible = browser.value(
            "(() => { const e = document.activeElement; const s = getComputedStyle(e); const r = e.querySelector('rect');
               return s.outlineStyle !== 'none' || (r && getComputedStyle(r).strokeWidth === '3px'); })()",
        );
        assert_eq!(visible, json!(true), "the focus on {at} is not to be seen");
        way.push(at.clone());
        at.contains("shop/orders")
    });
    assert!(found, "the way: {way:?}");
    assert_eq!(way[0], "Skip to content");
    browser.press(Key::Enter);
    browser.until("document.querySelector('main h2')?.textContent === 'Service shop/orders'");
    browser.until("document.activeElement === document.querySelector('main h2')");
    browser.until("document.title.startsWith('shop/orders')");
    browser.until("document.querySelectorAll('svg.chart').length === 3");
    browser
        .until("document.querySelector('main').innerText.includes('✕ ejected by 2 of 2 callers')");
    browser.until("document.querySelector('main').innerText.includes('path /stock and below')");
    let legible = "[...document.querySelectorAll('svg.chart')].every(c => c.getBoundingClientRect().width > 0.85 * c.viewBox.baseVal.width)";
    assert_eq!(browser.value(legible), json!(true), "charts are drawn too small to be read");
    // A few samples, so that there is a line.
    browser
        .until("document.querySelectorAll('svg.chart .series')[0].getAttribute('d').includes('L')");
    for (scheme, height) in [("light", 900), ("dark", 1900)] {
        browser.look(1280, height, scheme);
        picture(browser, &format!("service-{scheme}"));
        contrast(browser);
    }
    labels(browser);
}

fn events_are_text(browser: &mut Browser, page: &str) {
    browser.open(&format!("{page}#/events"));
    browser
        .until(&format!("document.querySelector('main').innerText.includes({})", json!(HOSTILE)));
    assert_eq!(browser.value("document.querySelectorAll('main img').length"), json!(0));
    browser.open(&format!("{page}#/identities"));
    browser.until("document.querySelector('main').innerText.includes('spiffe://cluster.local/ns/shop/sa/load')");
    labels(browser);
}

/// Whatever can be used has a name, every table a heading, and the page its landmarks.
fn labels(browser: &mut Browser) {
    let all = browser.accessible();
    let used = ["link", "button", "combobox", "table", "region", "image", "navigation"];
    let nameless: Vec<_> =
        all.iter().filter(|(role, name)| used.contains(&&**role) && name.is_empty()).collect();
    assert!(nameless.is_empty(), "{nameless:?}");
    for role in ["banner", "navigation", "main", "heading", "status", "contentinfo"] {
        assert!(all.iter().any(|(known, _)| known == role), "no {role} in {all:?}");
    }
    let current = browser.value("document.querySelectorAll('nav [aria-current=page]').length");
    assert!(current == json!(1) || current == json!(0), "{current}");
    let twice = browser.value(
        "[...document.querySelectorAll('[id]')].map(e => e.id).filter((id, at, all) => all.indexOf(id) !== at)",
    );
    assert_eq!(twice, json!([]), "an id is there twice");
}

/// WCAG 2.2, 1.4.3: text has a contrast of at least 4.5 to what is behind it; lines that mean something 3.
fn contrast(browser: &mut Browser) {
    let poor = browser.value(
        r"(() => {
          const parse = (c) => { const m = c.match(/[\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
          const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
          const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
          const ground = (e) => {
            for (let at = e; at; at = at.parentElement) {
              const rect = at !== e && at instanceof SVGElement && at.querySelector(':scope > rect');
              const c = parse(rect ? getComputedStyle(rect).fill : getComputedStyle(at).backgroundColor);
              if (c[3] > 0) return c;
            }
            return [255, 255, 255, 1];
          };
          const poor = [];
          for (const e of document.querySelectorAll('body *')) {
            const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
            if (!own || !e.getClientRects().length || e.closest('.skip')) continue;
            const style = getComputedStyle(e);
            const colour = parse(e instanceof SVGElement ? style.fill : style.color);
            const r = ratio(colour, ground(e));
            if (r < 4.5) poor.push([e.outerHTML.slice(0, 120), r]);
          }
          for (const e of document.querySelectorAll('.edge .line, .series, .box rect')) {
            const r = ratio(parse(getComputedStyle(e).stroke), ground(e.parentElement));
            if (e.getClientRects().length && r < 3) poor.push([e.outerHTML.slice(0, 120), r]);
          }
          return poor;
        })()",
    );
    assert_eq!(poor, json!([]));
}
