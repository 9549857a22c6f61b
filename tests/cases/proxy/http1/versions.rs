//! HTTP/1.0, and the forms of a target.

use remora_tests::{mesh::Pair, wire::Wire};

#[tokio::test]
async fn http_1_0_clients_are_served_with_and_without_host() {
    let (pair, app) = Pair::with_app(&[]).await;
    for request in ["GET /a HTTP/1.0\r\n\r\n", "GET /a HTTP/1.0\r\nHost: orders\r\n\r\n"] {
        let mut client = Wire::dial(pair.entry()).await;
        client.send(request).await;
        let mut server = app.accept().await;
        let head = server.head().await;
        assert!(head.line().starts_with("GET /a HTTP/1."), "{head:?}");
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone").await;
        let answer = String::from_utf8(client.rest().await.unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("transfer-encoding"), "{answer}");
        assert!(answer.ends_with("\r\n\r\ndone"), "{answer}");
    }
}

#[tokio::test]
async fn a_chunked_answer_reaches_an_http_1_0_client_without_chunks() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.0\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    server
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n")
        .await;
    let answer = String::from_utf8(client.rest().await.unwrap()).unwrap();
    assert!(!answer.to_ascii_lowercase().contains("transfer-encoding"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nbody"), "{answer}");
}

#[tokio::test]
async fn an_absolute_target_keeps_its_authority() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET http://orders.shop/x?y=1 HTTP/1.1\r\nHost: orders.shop\r\n\r\n").await;
    let mut server = app.accept().await;
    let head = server.head().await;
    let line = head.line();
    assert!(
        line == "GET /x?y=1 HTTP/1.1" || line == "GET http://orders.shop/x?y=1 HTTP/1.1",
        "{line}"
    );
    assert_eq!(head.all("host"), ["orders.shop"]);
}

#[tokio::test]
async fn an_absolute_target_wins_over_another_host() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET http://orders.shop/x HTTP/1.1\r\nHost: elsewhere\r\n\r\n").await;
    let head = app.accept().await.head().await;
    assert_eq!(
        (head.line(), head.all("host")),
        ("GET http://orders.shop/x HTTP/1.1", vec!["orders.shop"])
    );
}

/// As `ab -k` does.
#[tokio::test]
async fn an_http_1_0_client_may_keep_its_connection() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    let mut server = None;
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nHost: orders\r\nConnection: Keep-Alive\r\n\r\n").await;
        let server = match &mut server {
            Some(server) => server,
            none => none.insert(app.accept().await),
        };
        server.head().await;
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let head = client.head().await;
        assert_eq!((head.status(), head.get("connection")), (200, Some("keep-alive")));
        client.expect("ok").await;
    }
}

#[tokio::test]
async fn options_of_the_server_itself_has_its_own_target() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("OPTIONS * HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    assert_eq!(app.accept().await.head().await.line(), "OPTIONS * HTTP/1.1");
}
