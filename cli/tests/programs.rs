//! `remora up` with the programs people run: each behind a Service, called from another pod.

#![allow(clippy::unwrap_used, reason = "the functions that tests share are tests too")]

mod harness;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use harness::{
    As, Up, connections, meshed_shop, metric, missing, pod, remora, service, wait_endpoints,
};

const CLIENT: &str = "shop/client";
/// In the requests of the nginx tests, and in the answers.
const ASKED: &str = "marker-of-the-request";
const ANSWERED: &str = "marker-of-the-response";

/// Three nginx behind the Service `web`, each of which answers its own name.
fn nginx(conf_dir: &std::path::Path) -> String {
    let pods = (0..3).map(|n| {
        let conf = conf_dir.join(format!("{n}.conf"));
        let dir = conf_dir.display();
        let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {dir}/{n}-{kind};"))
            .concat();
        let text = format!(
            "daemon off; master_process off; pid {dir}/{n}.pid; events {{}}\n\
             http {{ access_log off; {temp}\n\
             server {{ listen 8000; location / {{ return 200 \"web-{n} {ANSWERED}\\n\"; }} }} }}\n"
        );
        fs::write(&conf, text).unwrap();
        let conf = conf.display();
        let command = format!(r#"[/usr/sbin/nginx, -e, stderr, -c, "{conf}"]"#);
        pod(&format!("web-{n}"), &command, 8000)
    });
    format!("{}{}{}", meshed_shop(), pods.collect::<String>(), service("web", 80))
}

fn start_nginx(name: &str) -> Option<(Up, tempfile::TempDir)> {
    if missing("/usr/sbin/nginx", "nginx-light") || missing("/usr/bin/curl", "curl") {
        return None;
    }
    let conf = tempfile::tempdir().unwrap();
    let up = Up::start(name, As::Me, &nginx(conf.path()), &[])?;
    wait_endpoints(&up, &["shop/web-0", "shop/web-1", "shop/web-2"]);
    Some((up, conf))
}

/// Starts a meshed `app` in a pod of this name, behind a Service on the same port.
fn start_one(app: &str, command: &str, port: u16) -> Option<Up> {
    if missing("/usr/bin/curl", "curl") {
        return None;
    }
    let manifests = format!("{}{}{}", meshed_shop(), pod(app, command, port), service(app, port));
    let up = Up::start(app, As::Me, &manifests, &[])?;
    wait_endpoints(&up, &[&format!("shop/{app}")]);
    Some(up)
}

#[test]
fn nginx_is_balanced_under_each_of_its_names() {
    let Some((up, _conf)) = start_nginx("nginx") else { return };
    let hosts =
        ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "$WEB_SERVICE_HOST"];
    for host in hosts {
        // Side by side: one call at a time may always prefer the two fastest.
        let script = format!("curl -sZ --parallel-max 10 -m5 http://{host}/[1-60]");
        let answers = up.stdout(CLIENT, &["sh", "-c", &script]);
        assert_eq!(answers.lines().count(), 60, "{host}: {answers}");
        let pods: BTreeSet<_> = answers.split_whitespace().filter(|w| *w != ANSWERED).collect();
        assert_eq!(pods, BTreeSet::from(["web-0", "web-1", "web-2"]), "{host}");
    }
    assert!(metric(&up, CLIENT, &connections("outbound", "mtls")) >= 3);
    for n in 0..3 {
        assert!(metric(&up, &format!("shop/web-{n}"), &connections("inbound", "mtls")) > 0);
    }
}

#[test]
fn nothing_between_meshed_pods_can_be_read() {
    if missing("/usr/bin/tcpdump", "tcpdump") {
        return;
    }
    let Some((up, _conf)) = start_nginx("wire") else { return };
    let ask = |from: &str| {
        let url = format!("http://web.shop/{ASKED}?[1-30]");
        let answers = up.stdout(from, &["curl", "-s", "-m5", &url]);
        assert_eq!(answers.matches(ANSWERED).count(), 30, "{answers}");
    };
    let frames = capture(&up, "shop/web-0", || ask(CLIENT));
    assert!(contains(&frames, &[0x17, 3, 3]), "no TLS record in {} bytes", frames.len());
    assert!(!contains(&frames, ASKED.as_bytes()));
    assert!(!contains(&frames, ANSWERED.as_bytes()));

    // What the same capture shows of a caller without a sidecar: it would have seen them.
    let frames = capture(&up, "shop/web-0", || (0..20).for_each(|_| ask("outside/client")));
    assert!(contains(&frames, ASKED.as_bytes()));
    assert!(contains(&frames, ANSWERED.as_bytes()));
}

/// The frames on a pod's network interface while this runs.
fn capture(up: &Up, pod: &str, during: impl FnOnce()) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (namespace, name) = pod.split_once('/').unwrap();
    let mut command = remora(As::Me).unwrap();
    command.args(["exec", "--name", &up.name, "-n", namespace, name, "--", "tcpdump"]);
    command.args(["-i", "eth0", "-s", "0", "-Z", "root", "--immediate-mode", "-U", "-w"]);
    let mut tcpdump = command.arg(file.path()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(tcpdump.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("listening on eth0")), "tcpdump did not start");
    during();
    up.stdout(pod, &["pkill", "-INT", "-x", "tcpdump"]);
    said.for_each(drop);
    assert!(tcpdump.wait().unwrap().success());
    fs::read(file.path()).unwrap()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn an_http_1_0_server_answers() {
    let Some(up) =
        start_one("old", r#"[/usr/bin/python3, -m, http.server, "8000", -d, /etc]"#, 8000)
    else {
        return;
    };
    let script = "for i in $(seq 20); do curl -s -m5 http://old:8000/hostname; done";
    assert_eq!(up.stdout(CLIENT, &["sh", "-c", script]), "old\n".repeat(20));
    assert!(metric(&up, CLIENT, &connections("outbound", "mtls")) > 0);
}

#[test]
fn http_2_with_prior_knowledge_is_multiplexed() {
    if missing("/usr/sbin/nghttpd", "nghttp2-server")
        || missing("/usr/bin/h2load", "nghttp2-client")
    {
        return;
    }
    let command = r#"[/usr/sbin/nghttpd, --no-tls, -d, /etc, "8000"]"#;
    let Some(up) = start_one("h2", command, 8000) else { return };
    assert_eq!(up.stdout(CLIENT, &["nghttp", "http://h2:8000/hostname"]), "h2\n");
    let load = ["h2load", "-n400", "-c2", "-m20", "http://h2:8000/hostname"];
    let report = up.stdout(CLIENT, &load);
    assert!(report.contains("400 succeeded, 0 failed"), "{report}");
    assert!(report.contains("400 2xx"), "{report}");
    assert!(
        metric(&up, CLIENT, "remora_detect_total{direction=\"outbound\",result=\"http/2\"}") > 0
    );
}

#[test]
fn grpc_calls_pass_from_meshed_pod_to_meshed_pod() {
    if missing("/usr/bin/curl", "curl") {
        return;
    }
    let remora = env!("CARGO_BIN_EXE_remora");
    let inventory = format!(r#"[{remora}, shop, inventory, --listen, "0.0.0.0:9090"]"#);
    let orders = format!(r#"[{remora}, shop, orders, --listen, "0.0.0.0:8080"]"#);
    let manifests = [
        meshed_shop(),
        pod("inventory", &inventory, 9090),
        service("inventory", 9090),
        pod("orders", &orders, 8080),
        service("orders", 80),
    ];
    let Some(up) = Up::start("grpc", As::Me, &manifests.concat(), &[]) else { return };
    wait_endpoints(&up, &["shop/inventory", "shop/orders"]);
    let script = "for i in $(seq 20); do curl -sf -m5 -o /dev/null http://orders/ || exit 1; done";
    up.stdout(CLIENT, &["sh", "-c", script]);
    let series = "remora_outbound_http_responses_total\
                  {namespace=\"shop\",service=\"inventory\",port=\"9090\",status_class=\"2xx\"}";
    assert_eq!(metric(&up, "shop/orders", series), 20);
    assert!(metric(&up, "shop/inventory", &connections("inbound", "mtls")) > 0);
}

#[test]
fn redis_is_carried_as_bytes_over_mtls() {
    if missing("/usr/bin/redis-server", "redis-server")
        || missing("/usr/bin/redis-cli", "redis-tools")
    {
        return;
    }
    let command = r#"[redis-server, --port, "6379", --save, "", --protected-mode, "no"]"#;
    let Some(up) = start_one("redis", command, 6379) else { return };
    let redis = |args: &[&str]| {
        let command = ["timeout", "5", "redis-cli", "-h", "redis"];
        up.stdout(CLIENT, &[&command[..], args].concat()).trim().to_owned()
    };
    assert_eq!(redis(&["set", "fish", "remora"]), "OK");
    assert_eq!(redis(&["get", "fish"]), "remora");
    let big = "x".repeat(100_000);
    assert_eq!(redis(&["append", "big", &big]), "100000");
    assert_eq!(redis(&["get", "big"]), big);
    assert!(metric(&up, CLIENT, &connections("outbound", "mtls")) >= 4);
    assert!(metric(&up, "shop/redis", &connections("inbound", "mtls")) >= 4);
}

#[test]
fn a_server_that_speaks_first_is_heard_within_a_second() {
    let remora = env!("CARGO_BIN_EXE_remora");
    let command = format!(r#"[{remora}, shop, ticker, --listen, "0.0.0.0:7000"]"#);
    let Some(up) = start_one("ticker", &command, 7000) else { return };
    let script = "import socket; s = socket.create_connection(('ticker', 7000), 1); s.settimeout(1); \
                  print(s.recv(100).decode()); s.sendall(b'echo me\\n'); print(s.recv(100).decode())";
    let heard = up.stdout(CLIENT, &["/usr/bin/python3", "-c", script]);
    assert!(heard.contains("ticker") && heard.contains("echo me"), "{heard}");
    assert!(metric(&up, CLIENT, &connections("outbound", "mtls")) > 0);
}

/// One pod behind `web` that is called in every other way.
#[test]
fn calls_across_the_edge_of_the_mesh_and_back_to_oneself_arrive() {
    if missing("/usr/bin/curl", "curl") {
        return;
    }
    let serve = r#"[/usr/bin/python3, -m, http.server, "8000", -d, /etc]"#;
    let plain = [pod("plain", serve, 8000), service("plain", 80)].concat();
    let manifests = [
        meshed_shop(),
        pod("web-0", serve, 8000),
        service("web", 80),
        plain.replace("namespace: shop", "namespace: outside"),
    ];
    let Some(up) = Up::start("edges", As::Me, &manifests.concat(), &[]) else { return };
    wait_endpoints(&up, &["shop/web-0", "outside/plain"]);
    let get = |from: &str, host: &str| {
        let url = format!("http://{host}/hostname");
        up.stdout(from, &["curl", "-sf", "-m5", &url])
    };
    // A pod's host name is its own.
    assert_eq!(get("outside/client", "web.shop"), "web-0\n");
    assert!(metric(&up, "shop/web-0", &connections("inbound", "none")) > 0);
    assert_eq!(get(CLIENT, "plain.outside"), "plain\n");
    assert_eq!(metric(&up, CLIENT, &connections("outbound", "mtls")), 0);
    assert_eq!(get("shop/web-0", "web"), "web-0\n");
    assert_eq!(get(CLIENT, "web"), "web-0\n");
    let before = metric(&up, CLIENT, &connections("outbound", "mtls"));
    assert!(before > 0);

    // The pod's own address is another destination: it gets a connection of its own.
    let address = up.stdout("shop/web-0", &["sh", "-c", "echo $POD_IP"]);
    assert_eq!(get(CLIENT, &format!("{}:8000", address.trim())), "web-0\n");
    assert!(metric(&up, CLIENT, &connections("outbound", "mtls")) > before);

    let refused = up.exec(CLIENT, &["curl", "-s", "-m2", "http://web:81/"]);
    let status = refused.status.code();
    assert!(matches!(status, Some(7 | 52 | 56)), "curl's status {status:?}");
}
