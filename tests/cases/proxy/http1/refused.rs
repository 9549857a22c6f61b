//! Requests that are not forwarded: too large, malformed, or such that two parsers could understand
//! them differently.

use remora_tests::{
    mesh::{Mesh, Pair},
    wire::{App, Wire},
};

#[tokio::test]
async fn a_head_beyond_the_limit_is_answered_431() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send(format!("GET / HTTP/1.1\r\nHost: orders\r\nX: {}", "x".repeat(70_000))).await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("remora-proxy-error")), (431, Some("header-too-large")));
    assert_eq!(head.get("connection"), Some("close"));
    let mut client = Wire::dial(pair.entry()).await;
    let many: String = (0..300).map(|n| format!("x-{n}: 1\r\n")).collect();
    client.send(format!("GET / HTTP/1.1\r\nHost: orders\r\n{many}\r\n")).await;
    assert_eq!(client.head().await.status(), 431);
    let reason = [("direction", "outbound"), ("reason", "header-too-large")];
    pair.client.until("remora_proxy_errors_total", &reason, 2).await;
    assert!(!app.has_caller().await);
}

#[tokio::test]
async fn the_limit_is_the_workloads_own() {
    for (limit, fits, exceeds) in [("8Ki", 7_000, 9_000), ("256Ki", 200_000, 270_000)] {
        let mut mesh = Mesh::new();
        mesh.max_header_size = limit.parse().unwrap();
        let pair = Pair::in_mesh(mesh, &[]).await;
        let app = App::listen(pair.server.pod.app()).await;
        let ask = |length: usize| {
            format!("GET / HTTP/1.1\r\nHost: orders\r\nX: {}\r\n\r\n", "x".repeat(length))
        };
        let mut client = Wire::dial(pair.entry()).await;
        client.send(ask(fits)).await;
        let mut server = app.accept().await;
        assert_eq!(server.head().await.get("x").map(str::len), Some(fits), "{limit}");
        server.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(client.head().await.status(), 204, "{limit}");
        let mut client = Wire::dial(pair.entry()).await;
        client.send(ask(exceeds)).await;
        assert_eq!(client.head().await.status(), 431, "{limit}");
    }
}

#[tokio::test]
async fn a_target_beyond_the_limit_is_answered_414() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send(format!("GET /{} HTTP/1.1\r\nHost: orders\r\n\r\n", "x".repeat(70_000))).await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("remora-proxy-error")), (414, Some("header-too-large")));
    assert!(!app.has_caller().await);
}

/// Heads that RFC 9112 wants refused, or lets a proxy refuse, because the next parser might see
/// another request in them. Each has a second request behind it, which nobody may serve.
const AMBIGUOUS: [(&str, u16); 20] = [
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 501),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\r\n : chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: b\rContent-Length: 9\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nX: no host\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n", 400),
    ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("CONNECT db:1 HTTP/1.1\r\nHost: db:1\r\nContent-Length: 4\r\n\r\nabcd", 400),
];

/// Each of them gets its answer and the end of its connection.
async fn all_are_refused(entry: std::net::SocketAddr, app: &App) {
    for (request, status) in AMBIGUOUS {
        let mut client = Wire::dial(entry).await;
        client.send(format!("{request}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let head = client.head().await;
        assert_eq!(head.status(), status, "{request:?}");
        assert_eq!(head.get("remora-proxy-error"), Some("bad-request"), "{request:?}");
        assert_eq!(head.get("connection"), Some("close"), "{request:?}");
        let length: usize = head.get("content-length").unwrap().parse().unwrap();
        assert_eq!(client.rest().await.unwrap().len(), length, "{request:?}: one answer, no more");
        assert!(!app.has_caller().await, "{request:?}");
    }
}

#[tokio::test]
async fn what_parsers_disagree_on_is_refused_on_the_way_out() {
    let (pair, app) = Pair::with_app(&[]).await;
    all_are_refused(pair.entry(), &app).await;
    let reason = [("direction", "outbound"), ("reason", "bad-request")];
    let counted = pair.client.metric("remora_proxy_errors_total", &reason).await;
    assert_eq!(counted, AMBIGUOUS.len() as u64);
}

#[tokio::test]
async fn what_parsers_disagree_on_is_refused_on_the_way_in() {
    let (pair, app) = Pair::with_app(&[]).await;
    all_are_refused(pair.server.pod.address(), &app).await;
}

/// The head has left already, so the application must see that what it has is not all.
#[tokio::test]
async fn a_body_whose_chunks_go_wrong_is_never_passed_off_as_whole() {
    let (pair, app) = Pair::with_app(&[]).await;
    for wrong in [
        "g\r\n",
        "3\r\nabcd\r\n",
        "3 \r\nabc\r\n",
        "3\nabc\n",
        "3\r\nabc\n",
        "3;a\nb\r\nabc\r\n",
        "fffffffffffffffff\r\n",
        "0\r\nX: 1\n\r\n",
        "0\r\nX : 1\r\n\r\n",
    ] {
        let mut client = Wire::dial(pair.entry()).await;
        client
            .send(format!(
                "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n{wrong}\
                 GET /smuggled HTTP/1.1\r\nHost: orders\r\n\r\n"
            ))
            .await;
        let answer = async {
            let head = client.head().await;
            assert_eq!(head.status(), 400, "{wrong:?}");
            assert_eq!(head.get("remora-proxy-error"), Some("bad-request"), "{wrong:?}");
            client.rest().await.unwrap();
        };
        let play = async {
            // A proxy that saw the error in time does not even connect.
            let mut server = tokio::select! {
                server = app.accept() => server,
                () = tokio::time::sleep(std::time::Duration::from_millis(200)) => return,
            };
            let all = server.rest().await.unwrap_or_default();
            let text = String::from_utf8_lossy(&all);
            assert!(!text.contains("0\r\n") && !text.contains("smuggled"), "{wrong:?}: {text}");
        };
        tokio::join!(answer, play);
    }
}

#[tokio::test]
async fn a_version_of_another_century_is_505() {
    let mut mesh = Mesh::new();
    mesh.service_speaking("orders", "http");
    let (web, orders) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
    mesh.start_plane().await;
    let (client, _server) =
        tokio::join!(mesh.sidecar(&web, &["orders"]), mesh.sidecar(&orders, &[]));
    let mut wire = Wire::dial(client.entry("orders")).await;
    wire.send("GET / HTTP/3.0\r\nHost: orders\r\n\r\n").await;
    assert_eq!(wire.head().await.status(), 505);
}
