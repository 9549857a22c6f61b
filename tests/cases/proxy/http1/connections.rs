//! Connections that carry several requests, and how they end.

use remora_tests::{mesh::Pair, wire::Wire};

#[tokio::test]
async fn one_client_connection_carries_many_requests() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET /0 HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    for n in 0..3 {
        assert_eq!(server.head().await.line(), format!("GET /{n} HTTP/1.1"));
        server.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nn{n}")).await;
        assert_eq!(client.head().await.status(), 200);
        client.expect(&format!("n{n}")).await;
        client.send(format!("GET /{} HTTP/1.1\r\nHost: orders\r\n\r\n", n + 1)).await;
    }
    assert_eq!(server.head().await.line(), "GET /3 HTTP/1.1");
    assert!(!app.has_caller().await, "the application's connection is reused");
    pair.client
        .until("remora_tcp_connections_total", &[("direction", "outbound"), ("tls", "mtls")], 1)
        .await;
    pair.server.until("remora_inbound_http_requests_total", &[("tls", "mtls")], 4).await;
    let plain = pair.server.metric("remora_inbound_http_requests_total", &[("tls", "none")]).await;
    assert_eq!(plain, 0);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    let request = |n: u32| format!("GET /{n} HTTP/1.1\r\nHost: orders\r\n\r\n");
    client.send(request(1) + &request(2)).await;
    let mut server = app.accept().await;
    for n in 1..=2 {
        assert_eq!(server.head().await.line(), format!("GET /{n} HTTP/1.1"));
        server.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{n}")).await;
    }
    for n in 1..=2 {
        assert_eq!(client.head().await.status(), 200);
        client.expect(&n.to_string()).await;
    }
}

#[tokio::test]
async fn a_client_that_says_close_is_answered_close_and_closed() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").await;
    let mut server = app.accept().await;
    assert_eq!(server.head().await.get("connection"), None);
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let head = client.head().await;
    assert_eq!(head.get("connection"), Some("close"));
    assert_eq!(client.rest().await.unwrap(), b"ok");
}

/// Nobody works for a client that is gone.
#[tokio::test]
async fn an_application_that_still_thinks_learns_that_its_client_broke_off() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    client.reset();
    assert!(server.rest().await.is_err(), "a reset stays a reset");
}

#[tokio::test]
async fn a_client_that_only_ends_its_direction_still_gets_its_answer() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    client.finish().await;
    let mut server = app.accept().await;
    server.head().await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate").await;
    assert_eq!(client.head().await.status(), 200);
    assert_eq!(client.rest().await.unwrap(), b"late");
}

#[tokio::test]
async fn an_application_that_says_what_is_no_answer_is_a_broken_upstream() {
    for answer in [
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ] {
        let (pair, app) = Pair::with_app(&[]).await;
        let mut client = Wire::dial(pair.entry()).await;
        client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
        let mut server = app.accept().await;
        server.head().await;
        server.send(answer).await;
        let head = client.head().await;
        let reason = head.get("remora-proxy-error");
        assert_eq!((head.status(), reason), (502, Some("upstream-reset")), "{answer:?}");
    }
}

/// The head came and the body did not: nothing was given to the client yet, so it can be told.
#[tokio::test]
async fn an_answer_that_breaks_off_before_its_body_is_502() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    server.send("HTTP/1.0 200 OK\r\n\r\nhal").await;
    server.reset();
    let head = client.head().await;
    if head.status() == 200 {
        // A part of it was on its way already: then the client's connection breaks as well.
        let rest = client.rest().await.unwrap_or_default();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{:?}", String::from_utf8_lossy(&rest));
    } else {
        assert_eq!((head.status(), head.get("remora-proxy-error")), (502, Some("upstream-reset")));
    }
}
