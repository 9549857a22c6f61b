//! Connections that leave HTTP.

use remora_tests::{mesh::Pair, wire::Wire};

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send(
            "GET /chat HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: x\r\n\r\n",
        )
        .await;
    let mut server = app.accept().await;
    let head = server.head().await;
    assert_eq!(head.get("upgrade"), Some("websocket"));
    assert!(head.get("connection").unwrap().eq_ignore_ascii_case("upgrade"));
    // The server speaks in the same segment as its head.
    server
        .send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: y\r\n\r\nhello",
        )
        .await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("upgrade")), (101, Some("websocket")));
    client.expect("hello").await;
    client.send("\x00ping").await;
    server.expect("\x00ping").await;
    client.finish().await;
    assert!(server.rest().await.unwrap().is_empty());
    server.send("bye").await;
    drop(server);
    assert_eq!(client.rest().await.unwrap(), b"bye");
}

#[tokio::test]
async fn an_upgrade_that_is_refused_stays_http() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send("GET / HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    let mut server = app.accept().await;
    server.head().await;
    server.send("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno").await;
    assert_eq!(client.head().await.status(), 426);
    client.expect("no").await;
    client.send("GET /plain HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut next = tokio::select! {
        head = server.head() => { assert_eq!(head.line(), "GET /plain HTTP/1.1"); server }
        mut other = app.accept() => { other.head().await; other }
    };
    next.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 200);
}

/// HTTP/2 is the proxies' own business (RFC 9113 dropped this way to it).
#[tokio::test]
async fn an_offer_to_go_on_in_http_2_goes_no_further() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send(
            "GET / HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade, HTTP2-Settings\r\n\
             Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
        )
        .await;
    let mut server = app.accept().await;
    let head = server.head().await;
    assert_eq!((head.get("upgrade"), head.get("http2-settings")), (None, None), "{head:?}");
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 200);
}

#[tokio::test]
async fn connect_opens_a_tunnel() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n").await;
    let mut server = app.accept().await;
    assert_eq!(server.head().await.line(), "CONNECT db:5432 HTTP/1.1");
    server.send("HTTP/1.1 200 Connection Established\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    client.send("up").await;
    server.expect("up").await;
    server.send("down").await;
    client.expect("down").await;
}

#[tokio::test]
async fn connect_that_names_no_port_is_a_bad_request() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("CONNECT db HTTP/1.1\r\nHost: db\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(head.status(), 400);
    assert!(!app.has_caller().await);
}

#[tokio::test]
async fn connect_that_is_refused_says_what_the_application_said() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    server.send("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 3\r\n\r\nwho").await;
    assert_eq!(client.head().await.status(), 407);
    client.expect("who").await;
}
