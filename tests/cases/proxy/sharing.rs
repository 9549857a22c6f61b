//! How a Service shares its requests out as its annotations say: algorithms, affinity, bulkheads.

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderValue, Request, Response};
use remora_tests::{
    mesh::{Mesh, NAMESPACE, POD_PORT, Pair, Pod, SERVICE_PORT},
    origin::{Answer, Origin, Speaks, full},
    sidecar::Sidecar,
    wait::{eventually, within},
    wire::{Head, Wire},
};
use serde_json::json;
use tokio::{net::TcpSocket, sync::Semaphore};

/// A Service of pods without sidecars, each of which answers with its name, and a caller.
struct Shop {
    mesh: Mesh,
    client: Sidecar,
    pods: Vec<(Pod, Origin)>,
}

impl Shop {
    async fn start(count: usize, annotations: &[(&str, &str)]) -> Self {
        let mut mesh = Mesh::new();
        mesh.service("orders", annotations);
        let web = mesh.pod("web", "web");
        mesh.start_plane().await;
        let mut shop = Self { client: mesh.sidecar(&web, &["orders"]).await, mesh, pods: vec![] };
        for _ in 0..count {
            shop.add().await;
        }
        // A first request, so that the proxy asks for it.
        eventually("an answer", async || (shop.ask(&[]).await.0.status() == 200).then_some(()))
            .await;
        shop.client.until_endpoints("orders", count).await;
        shop
    }

    async fn add(&mut self) {
        let name = format!("orders-{}", self.pods.len() + 1);
        let pod = self.mesh.plain_pod(&name, "orders");
        let answer = pod.name.clone();
        let origin = Origin::serve(pod.app(), Speaks::H1, move |_: Request<_>| {
            let answer = answer.clone();
            async move { Response::new(full(answer)) }
        });
        let origin = origin.await;
        self.pods.push((pod, origin));
    }

    async fn remove(&mut self, name: &str) {
        let at = self.pods.iter().position(|(pod, _)| pod.name == name).unwrap();
        self.mesh.remove_pod(&self.pods[at].0);
        self.pods.remove(at);
        self.client.until_endpoints("orders", self.pods.len()).await;
    }

    /// One request with these fields over a connection of its own: the head, and who answered.
    async fn ask(&self, fields: &[(&str, &str)]) -> (Head, String) {
        self.ask_from([127, 0, 0, 1], fields).await
    }

    async fn ask_from(&self, source: [u8; 4], fields: &[(&str, &str)]) -> (Head, String) {
        let mut client = dial_from(source, self.client.entry("orders")).await;
        let fields: String = fields.iter().map(|(k, v)| format!("{k}: {v}\r\n")).collect();
        client
            .send(format!("GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n{fields}\r\n"))
            .await;
        let head = client.head().await;
        (head, String::from_utf8(client.rest().await.unwrap()).unwrap())
    }

    fn requests(&self) -> Vec<usize> {
        self.pods.iter().map(|(_, origin)| origin.requests()).collect()
    }
}

async fn dial_from(source: [u8; 4], to: SocketAddr) -> Wire {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((source, 0))).unwrap();
    Wire::new(within("a dial", socket.connect(to)).await.unwrap())
}

#[tokio::test]
async fn random_reaches_everyone() {
    let shop = Shop::start(3, &[("balancer.remora.io/algorithm", "random")]).await;
    for _ in 0..90 {
        shop.ask(&[]).await;
    }
    // Seven standard deviations from thirty.
    assert!(shop.requests().iter().all(|n| *n > 1), "{:?}", shop.requests());
}

#[tokio::test]
async fn least_request_avoids_who_is_busy() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[("balancer.remora.io/algorithm", "least-request")]);
    let web = mesh.pod("web", "web");
    let pods = [mesh.plain_pod("one", "orders"), mesh.plain_pod("two", "orders")];
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let gate = Arc::new(Semaphore::new(0));
    let serve = |pod: &Pod| {
        let gate = Arc::clone(&gate);
        Origin::serve(pod.app(), Speaks::H1, move |request: Request<_>| {
            let gate = Arc::clone(&gate);
            async move {
                if request.uri() == "/wait" {
                    let _ = gate.acquire().await;
                }
                Response::new(full(""))
            }
        })
    };
    let origins = [serve(&pods[0]).await, serve(&pods[1]).await];
    let mut waiting = Wire::dial(client.entry("orders")).await;
    waiting.send("GET /wait HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let busy = eventually("one that is busy", async || {
        origins.iter().position(|origin| origin.requests() > 0)
    })
    .await;
    client.until_endpoints("orders", 2).await;
    for _ in 0..10 {
        assert_eq!(remora_tests::origin::get(client.entry("orders")).await.unwrap().status, 200);
    }
    assert_eq!((origins[busy].requests(), origins[1 - busy].requests()), (1, 10));
    gate.add_permits(1);
    assert_eq!(waiting.head().await.status(), 200);
}

/// Who answers for each of so many keys.
async fn owners(shop: &Shop, field: &dyn Fn(usize) -> (&'static str, String)) -> Vec<String> {
    let mut owners = Vec::new();
    for n in 0..24 {
        let (name, value) = field(n);
        owners.push(shop.ask(&[(name, &value)]).await.1);
    }
    owners
}

#[tokio::test]
async fn equal_keys_go_to_the_same_endpoint_and_one_that_leaves_moves_its_own_keys_only() {
    for (on, name) in [("header:X-User", "x-user"), ("cookie:user", "cookie")] {
        let policy =
            [("balancer.remora.io/algorithm", "ring-hash"), ("balancer.remora.io/hash-on", on)];
        let mut shop = Shop::start(3, &policy).await;
        let field = |n: usize| match name {
            "cookie" => (name, format!("a=b; user=u{n}; c=d")),
            _ => (name, format!("u{n}")),
        };
        let before = owners(&shop, &field).await;
        assert_eq!(owners(&shop, &field).await, before, "{on}");
        assert_eq!(before.iter().collect::<HashSet<_>>().len(), 3, "{on}: {before:?}");
        shop.remove("orders-2").await;
        for (was, is) in before.iter().zip(owners(&shop, &field).await) {
            assert!(is != "orders-2" && (was == "orders-2" || *was == is), "{on}: {was}, now {is}");
        }
    }
}

#[tokio::test]
async fn a_request_without_the_key_is_balanced_as_ever() {
    let policy = [
        ("balancer.remora.io/algorithm", "ring-hash"),
        ("balancer.remora.io/hash-on", "header:X-User"),
    ];
    let shop = Shop::start(2, &policy).await;
    for _ in 0..40 {
        shop.ask(&[]).await;
    }
    assert!(shop.requests().iter().all(|n| *n > 0), "{:?}", shop.requests());
}

#[tokio::test]
async fn a_client_address_keeps_its_endpoint_by_hash_and_by_affinity() {
    let hash = [
        ("balancer.remora.io/algorithm", "ring-hash"),
        ("balancer.remora.io/hash-on", "client-address"),
    ];
    let affinity = [("balancer.remora.io/session-affinity", "client-address")];
    for policy in [&hash[..], &affinity[..]] {
        let shop = Shop::start(3, policy).await;
        let mut owners = HashSet::new();
        for n in 1..=24 {
            let (_, owner) = shop.ask_from([127, 9, 9, n], &[]).await;
            for _ in 0..3 {
                assert_eq!(shop.ask_from([127, 9, 9, n], &[]).await.1, owner, "{policy:?}");
            }
            owners.insert(owner);
        }
        assert_eq!(owners.len(), 3, "{policy:?}");
    }
}

/// `sessionAffinity: ClientIP`, as Kubernetes has it.
#[tokio::test]
async fn session_affinity_of_the_service_itself_holds_while_endpoints_come_and_go() {
    let mut shop = Shop::start(2, &[]).await;
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "orders", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "orders"}, "sessionAffinity": "ClientIP",
                 "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
                 "ports": [{"port": SERVICE_PORT, "targetPort": POD_PORT}]},
    });
    shop.mesh.write_raw("service-orders", &service.to_string());
    let of = [127, 9, 8, 7];
    eventually("affinity", async || {
        let first = shop.ask_from(of, &[]).await.1;
        for _ in 0..12 {
            if shop.ask_from(of, &[]).await.1 != first {
                return None;
            }
        }
        Some(())
    })
    .await;
    let first = shop.ask_from(of, &[]).await.1;
    shop.add().await;
    shop.client.until_endpoints("orders", 3).await;
    for _ in 0..10 {
        assert_eq!(shop.ask_from(of, &[]).await.1, first, "a new endpoint takes no client");
    }
    shop.remove(&first).await;
    let second = shop.ask_from(of, &[]).await.1;
    assert_ne!(second, first);
    for _ in 0..10 {
        assert_eq!(shop.ask_from(of, &[]).await.1, second);
    }
}

/// The cookie that an answer sets, as a client sends it back.
fn cookie(head: &Head) -> String {
    let set = head.get("set-cookie").unwrap_or_else(|| panic!("no cookie: {head:?}"));
    set.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_cookie_keeps_a_session_at_its_endpoint_while_that_is_there() {
    let policy = [("balancer.remora.io/session-affinity", "cookie")];
    let mut shop = Shop::start(2, &policy).await;
    let (head, first) = shop.ask(&[]).await;
    let held = cookie(&head);
    assert!(held.starts_with("remora-affinity="), "{held}");
    let theirs = format!("theme=dark; {held}");
    shop.add().await;
    shop.client.until_endpoints("orders", 3).await;
    for _ in 0..12 {
        let (head, owner) = shop.ask(&[("Cookie", &theirs)]).await;
        assert_eq!((owner, head.get("set-cookie")), (first.clone(), None));
    }
    shop.remove(&first).await;
    let (head, second) = shop.ask(&[("Cookie", &theirs)]).await;
    assert_ne!(second, first);
    let held = cookie(&head);
    for _ in 0..6 {
        assert_eq!(shop.ask(&[("Cookie", &held)]).await.1, second);
    }
}

#[tokio::test]
async fn the_cookie_has_the_name_and_the_age_that_the_owner_gives_it() {
    let policy = [
        ("balancer.remora.io/session-affinity", "cookie"),
        ("balancer.remora.io/session-affinity-cookie-name", "sticky"),
        ("balancer.remora.io/session-affinity-timeout", "90s"),
    ];
    let shop = Shop::start(2, &policy).await;
    let (head, first) = shop.ask(&[]).await;
    let set = head.get("set-cookie").unwrap();
    assert!(set.starts_with("sticky=") && set.contains("Max-Age=90"), "{set}");
    let (head, again) = shop.ask(&[("Cookie", &cookie(&head))]).await;
    assert_eq!(again, first);
    assert!(head.get("set-cookie").is_some(), "its age begins anew with each use");
}

const ASK: &str = "GET / HTTP/1.1\r\nHost: orders\r\n\r\n";
const DONE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[tokio::test]
async fn more_requests_than_the_bulkhead_holds_are_refused_at_once_and_the_next_is_served() {
    let (pair, app) = Pair::with_app(&[("balancer.remora.io/max-in-flight", "2")]).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = Wire::dial(pair.entry()).await;
        client.send(ASK).await;
        let mut server = app.accept().await;
        server.head().await;
        held.push((client, server));
    }
    let mut third = Wire::dial(pair.entry()).await;
    third.send(ASK).await;
    let head = third.head().await;
    assert_eq!((head.status(), head.get("remora-proxy-error")), (503, Some("overloaded")));
    assert!(head.get("retry-after").is_some() && !app.has_caller().await);
    let (mut client, mut server) = held.pop().unwrap();
    server.send(DONE).await;
    assert_eq!(client.head().await.status(), 200);
    // On the connection that has become free.
    let mut fourth = Wire::dial(pair.entry()).await;
    fourth.send(ASK).await;
    server.head().await;
    server.send(DONE).await;
    assert_eq!(fourth.head().await.status(), 200);
    let endpoint = &pair.client.endpoints("orders").await[0];
    assert_eq!(endpoint["failures"], 0, "nobody else is to blame: {endpoint}");
}

#[tokio::test]
async fn who_may_wait_is_served_when_a_place_is_free_and_refused_when_it_takes_too_long() {
    let policy = [
        ("balancer.remora.io/max-in-flight", "1"),
        ("balancer.remora.io/max-pending", "1"),
        ("balancer.remora.io/pending-timeout", "500ms"),
    ];
    let (pair, app) = Pair::with_app(&policy).await;
    let mut first = Wire::dial(pair.entry()).await;
    first.send(ASK).await;
    let mut server = app.accept().await;
    server.head().await;
    // It waits in vain.
    let mut second = Wire::dial(pair.entry()).await;
    second.send(ASK).await;
    let head = second.head().await;
    assert_eq!((head.status(), head.get("remora-proxy-error")), (503, Some("overloaded")));
    // Of two that come now one waits, and the other is refused without having waited.
    let (mut third, mut fourth) = (Wire::dial(pair.entry()).await, Wire::dial(pair.entry()).await);
    third.send(ASK).await;
    fourth.send(ASK).await;
    let (mut waiting, refused) = tokio::select! {
        head = third.head() => (fourth, head),
        head = fourth.head() => (third, head),
    };
    assert_eq!(refused.status(), 503);
    server.send(DONE).await;
    assert_eq!(first.head().await.status(), 200);
    server.head().await;
    server.send(DONE).await;
    assert_eq!(waiting.head().await.status(), 200);
}

#[tokio::test]
async fn streams_of_http_2_count_against_the_bulkhead_one_by_one() {
    let pair = Pair::start(&[("balancer.remora.io/max-in-flight", "2")]).await;
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, move |_: Request<_>| {
        let held = Arc::clone(&held);
        async move {
            let _ = held.acquire().await;
            Response::new(full(""))
        }
    })
    .await;
    let sender = remora_tests::origin::h2(pair.entry()).await;
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let mut sender = sender.clone();
            let request = Request::get("http://orders/").body(full("")).unwrap();
            tokio::spawn(async move { Answer::read(sender.send_request(request).await?).await })
        })
        .collect();
    let counted = [("direction", "outbound"), ("reason", "overloaded")];
    pair.client.until("remora_proxy_errors_total", &counted, 1).await;
    gate.add_permits(2);
    let mut statuses = Vec::new();
    for call in calls {
        let answer = within("an answer", call).await.unwrap().unwrap();
        statuses.push((answer.status, answer.headers.get("remora-proxy-error").cloned()));
    }
    statuses.sort_by_key(|(status, _)| *status);
    let refused = Some(HeaderValue::from_static("overloaded"));
    assert_eq!(statuses, [(200, None), (200, None), (503, refused)]);
}

#[tokio::test]
async fn opaque_connections_count_against_the_bulkhead_and_end_in_a_reset_beyond_it() {
    let (pair, app) = Pair::with_app(&[("balancer.remora.io/max-in-flight", "1")]).await;
    let mut first = Wire::dial(pair.entry()).await;
    first.send("\x01hello").await;
    let mut server = app.accept().await;
    server.expect("\x01hello").await;
    let mut second = Wire::dial(pair.entry()).await;
    second.send("\x01hello").await;
    assert!(second.rest().await.is_err());
    drop((first, server));
    eventually("a place", async || {
        let mut third = Wire::dial(pair.entry()).await;
        third.send("\x01hello").await;
        tokio::select! {
            _ = third.rest() => None,
            mut server = app.accept() => { server.expect("\x01hello").await; Some(()) }
        }
    })
    .await;
}

/// One connection, and everybody takes turns on it.
#[tokio::test]
async fn no_more_connections_are_opened_than_the_owner_allows() {
    let policy = [
        ("balancer.remora.io/max-connections", "1"),
        ("balancer.remora.io/max-pending", "10"),
        ("balancer.remora.io/pending-timeout", "10s"),
    ];
    let pair = Pair::start(&policy).await;
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H1, |_| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Response::new(full("hello"))
    })
    .await;
    let calls =
        (0..8).map(|_| async { remora_tests::origin::get(pair.entry()).await.unwrap().status });
    assert_eq!(futures_util::future::join_all(calls).await, [200; 8]);
    let opened = [("direction", "inbound"), ("tls", "mtls")];
    assert_eq!(pair.server.metric("remora_tcp_connections_total", &opened).await, 1);
}
