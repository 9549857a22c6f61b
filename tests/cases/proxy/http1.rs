//! HTTP/1.x through both proxies, byte for byte.

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
}
