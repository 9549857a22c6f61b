//! Who says what a port speaks, and what the proxy makes of it.

use std::net::SocketAddr;

use http::{Request, Response};
use remora_tests::{
    mesh::{Mesh, NAMESPACE, POD_PORT, Pair, SERVICE_PORT},
    origin::{Answer, Origin, Speaks, empty, full, h2},
    wait::{eventually, within},
    wire::{App, Wire},
};
use serde_json::json;

const OPAQUE: &str = "config.remora.io/opaque-ports";
/// A request that HTTP proxies change: ours takes the fields that begin with `remora-` away.
const ASK: &str = "GET / HTTP/1.1\r\nhost: orders\r\nremora-odd: 1\r\n\r\n";
const TELL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Sends [`ASK`] over a connection of its own and says whether it arrived as bytes.
async fn carried_as_bytes(entry: SocketAddr, app: &App) -> bool {
    let mut client = Wire::dial(entry).await;
    client.send(ASK).await;
    let mut server = app.accept().await;
    let head = server.head().await;
    server.send(TELL).await;
    assert_eq!(client.head().await.status(), 200);
    head.0 == ASK
}

async fn until_bytes(entry: SocketAddr, app: &App, bytes: bool) {
    eventually(&format!("bytes: {bytes}"), async || {
        (carried_as_bytes(entry, app).await == bytes).then_some(())
    })
    .await;
}

/// `appProtocol` and what `docs/configuration.md` says of it.
const WORDS: [(&str, &str); 13] = [
    ("http", "http1"),
    ("kubernetes.io/ws", "http1"),
    ("kubernetes.io/h2c", "http2"),
    ("http2", "http2"),
    ("h2c", "http2"),
    ("grpc", "http2"),
    ("https", "tls"),
    ("tls", "tls"),
    ("grpcs", "tls"),
    ("kubernetes.io/wss", "tls"),
    ("tcp", "opaque"),
    ("mysql", "opaque"),
    ("example.com/never-heard-of", "opaque"),
];

#[tokio::test]
async fn every_word_of_app_protocol_decides_without_a_look_at_the_bytes() {
    let mut mesh = Mesh::new();
    let names: Vec<String> = (0..WORDS.len()).map(|n| format!("s{n}")).collect();
    let mut pods = Vec::new();
    for ((word, _), name) in WORDS.iter().zip(&names) {
        mesh.service_speaking(name, word);
        // One proxy will do: what is asked here is what the caller's makes of the word.
        pods.push(mesh.plain_pod(&format!("{name}-1"), name));
    }
    let web = mesh.pod("web", "web");
    mesh.start_plane().await;
    let calls: Vec<&str> = names.iter().map(String::as_str).collect();
    let client = mesh.sidecar(&web, &calls).await;
    for (((word, speaks), name), pod) in WORDS.iter().zip(&names).zip(&pods) {
        let entry = client.entry(name);
        if *speaks == "http2" {
            let reply = |_| async { Response::new(full("over 2")) };
            let _origin = Origin::serve(pod.app(), Speaks::H2, reply).await;
            let request = Request::get("http://orders/").body(empty()).unwrap();
            let response = within("an answer", h2(entry).await.send_request(request)).await;
            assert_eq!(Answer::read(response.unwrap()).await.unwrap().text, "over 2", "{word}");
        } else {
            let app = App::listen(pod.app()).await;
            let mut client = Wire::dial(entry).await;
            client.send(ASK).await;
            let mut server = app.accept().await;
            let as_http = server.head().await.get("remora-odd").is_none();
            server.send(TELL).await;
            assert_eq!(client.head().await.status(), 200, "{word}");
            assert_eq!(as_http, *speaks == "http1", "{word}");
        }
        let (_, text) = client.get("/services").await;
        let all: serde_json::Value = serde_json::from_str(&text).unwrap();
        let service = format!("{NAMESPACE}/{name}:{SERVICE_PORT}");
        let mut rows = all["services"].as_array().unwrap().iter();
        let row = rows.find(|row| row["service"] == service.as_str()).unwrap();
        assert_eq!(row["protocol"], *speaks, "{word}");
    }
    assert_eq!(client.metric("remora_detect_total", &[("direction", "outbound")]).await, 0);
    let looked = "remora_detect_duration_seconds_count";
    assert_eq!(client.metric(looked, &[("direction", "outbound")]).await, 0);
}

#[tokio::test]
async fn a_server_that_speaks_first_waits_for_nobody_where_its_word_is_no_http() {
    let mut mesh = Mesh::new();
    mesh.service_speaking("orders", "mysql");
    let (web, orders) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let _server = mesh.sidecar(&orders, &[]).await;
    let app = App::listen(orders.app()).await;
    let mut caller = Wire::dial(client.entry("orders")).await;
    let mut server = app.accept().await;
    server.send("greeting").await;
    caller.expect("greeting").await;
    assert_eq!(
        client.metric("remora_detect_duration_seconds_count", &[("direction", "outbound")]).await,
        0
    );
}

#[tokio::test]
async fn opaque_ports_of_a_service_may_change_while_it_is_called() {
    let (pair, app) = Pair::with_app(&[]).await;
    assert!(!carried_as_bytes(pair.entry(), &app).await);
    // A connection from before the change, in the middle of a request.
    let mut old = Wire::dial(pair.entry()).await;
    old.send(ASK).await;
    let mut server = app.accept().await;
    server.head().await;

    pair.mesh.service("orders", &[(OPAQUE, &SERVICE_PORT.to_string())]);
    until_bytes(pair.entry(), &app, true).await;
    // It goes on as what it was found to be.
    for _ in 0..2 {
        server.send(TELL).await;
        assert_eq!(old.head().await.status(), 200);
        old.send(ASK).await;
        assert!(server.head().await.get("remora-odd").is_none());
    }

    pair.mesh.service("orders", &[]);
    until_bytes(pair.entry(), &app, false).await;
}

#[tokio::test]
async fn opaque_ports_of_a_namespace_and_of_a_workload_may_change_too() {
    let (mut pair, app) = Pair::with_app(&[]).await;
    let namespace = |annotations| {
        let metadata = json!({"name": NAMESPACE, "annotations": annotations});
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}).to_string()
    };
    assert!(!carried_as_bytes(pair.entry(), &app).await);
    pair.mesh.write_raw("namespace", &namespace(json!({OPAQUE: format!("{SERVICE_PORT}")})));
    until_bytes(pair.entry(), &app, true).await;
    // The Service's own list replaces it.
    pair.mesh.service("orders", &[(OPAQUE, "1")]);
    until_bytes(pair.entry(), &app, false).await;
    pair.mesh.service("orders", &[]);
    pair.mesh.write_raw("namespace", &namespace(json!({})));

    pair.server.pod.annotations = vec![(OPAQUE.to_owned(), format!("7000-{POD_PORT}"))];
    pair.mesh.write_pod(&pair.server.pod);
    until_bytes(pair.entry(), &app, true).await;
    // And without a sidecar on the caller's side, the pod's own proxy holds to it.
    until_bytes(pair.server.pod.address(), &app, true).await;
    pair.server.pod.annotations.clear();
    pair.mesh.write_pod(&pair.server.pod);
    until_bytes(pair.entry(), &app, false).await;
}

#[tokio::test]
async fn the_time_that_looking_took_is_counted_for_each_direction() {
    let (pair, app) = Pair::with_app(&[]).await;
    let took = "remora_detect_duration_seconds";
    let mut prompt = Wire::dial(pair.entry()).await;
    prompt.send("\x01hello").await;
    app.accept().await.expect("\x01hello").await;
    let outbound = ("direction", "outbound");
    // Of loopback; a machine that is busy may take longer, but not as long as patience lasts.
    let below = |le| [outbound, ("le", le)];
    assert_eq!(pair.client.metric(&format!("{took}_bucket"), &below("0.05")).await, 1);

    let _silent = Wire::dial(pair.entry()).await;
    pair.client.until(&format!("{took}_count"), &[outbound], 2).await;
    assert_eq!(pair.client.metric(&format!("{took}_bucket"), &below("0.05")).await, 1);
    // The other side looks too: at what the caller's proxy says first.
    pair.server.until(&format!("{took}_count"), &[("direction", "inbound")], 1).await;
}
