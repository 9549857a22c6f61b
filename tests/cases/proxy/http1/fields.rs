//! Header fields on their way.

use remora_tests::{mesh::Pair, wire::Wire};

#[tokio::test]
async fn repeated_and_odd_fields_arrive_as_they_were_sent() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send(
            "GET / HTTP/1.1\r\nHost: orders\r\nX-ODD-Case: One\r\nx-many: 1\r\nX-Many: 2\r\n\
             X-Empty:\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n",
        )
        .await;
    let mut server = app.accept().await;
    let head = server.head().await;
    assert_eq!(head.all("x-many"), ["1", "2"]);
    assert_eq!(head.all("x-empty"), [""]);
    assert_eq!(head.all("cookie"), ["a=1", "b=2"]);
    assert!(head.0.contains("X-ODD-Case: One"), "{head:?}");
    server
        .send(
            "HTTP/1.1 200 Fine\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-WEIRD: é\r\n\
             Content-Length: 0\r\n\r\n",
        )
        .await;
    let head = client.head().await;
    assert_eq!(head.all("set-cookie"), ["a=1", "b=2"]);
    assert!(head.0.contains("X-WEIRD: "), "{head:?}");
}

#[tokio::test]
async fn hop_by_hop_fields_stay_on_their_hop() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send(
            "GET / HTTP/1.1\r\nHost: orders\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\
             Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nX-End: 1\r\n\r\n",
        )
        .await;
    let mut server = app.accept().await;
    let head = server.head().await;
    for gone in ["x-hop", "keep-alive", "proxy-connection", "te"] {
        assert_eq!(head.get(gone), None, "{gone}");
    }
    assert_eq!(head.get("x-end"), Some("1"));
    server
        .send("HTTP/1.1 200 OK\r\nConnection: close, X-Back\r\nX-Back: 1\r\nContent-Length: 2\r\n\r\nok")
        .await;
    let head = client.head().await;
    assert_eq!(head.get("x-back"), None);
    assert_ne!(head.get("connection"), Some("close"), "the client's connection stays");
    client.expect("ok").await;
    client.send("GET /again HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    assert_eq!(app.accept().await.head().await.line(), "GET /again HTTP/1.1");
}

/// All of a head but what belongs to the connection, byte for byte, through four parsers.
#[tokio::test]
async fn a_head_arrives_in_its_order_and_spelling() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    let fields = "hOST: orders\r\nz-last-first:1\r\nA: \t spaced out \t\r\nx-a: 1\r\nX-B: 2\r\nx-a: 3\r\n\
                  X-Quoted: \"a, b\"\r\nX_Under: 1\r\nX-High: caf\u{e9}\r\n";
    client.send(format!("DELETE /%2e%2E/a//b/./c;d?e=f&&g?h HTTP/1.1\r\n{fields}\r\n")).await;
    let mut server = app.accept().await;
    let head = server.head().await;
    assert_eq!(head.line(), "DELETE /%2e%2E/a//b/./c;d?e=f&&g?h HTTP/1.1");
    assert!(head.0.contains(fields), "{}", head.0);
    let fields = "X-z:1\r\nx-A: 2\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nx-a: 3\r\n";
    server.send(format!("HTTP/1.1 200 Quite  Fine\r\n{fields}Content-Length: 0\r\n\r\n")).await;
    let head = client.head().await;
    assert_eq!(head.line(), "HTTP/1.1 200 Quite  Fine");
    assert!(head.0.contains(fields), "{}", head.0);
}

#[tokio::test]
async fn a_folded_field_of_an_answer_arrives_on_one_line() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    server
        .send("HTTP/1.1 200 OK\r\nX-Fold: one\r\n\ttwo\r\nX-Gap : 3\nContent-Length: 0\r\n\r\n")
        .await;
    let head = client.head().await;
    assert_eq!(
        head.get("x-fold").map(|v| v.split_whitespace().collect()),
        Some(vec!["one", "two"])
    );
    assert!(head.0.contains("X-Gap: 3\r\nContent-Length: 0\r\n"), "{}", head.0);
}

/// Those that frame or route are never believed there (RFC 9110 §6.5.1).
#[tokio::test]
async fn trailers_that_would_change_the_message_do_not_travel() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\
             Content-Length: 9\r\nX-Sum: 7\r\nHost: other\r\nRemora-Client-Id: me\r\n\r\n",
        )
        .await;
    let mut server = app.accept().await;
    server.head().await;
    server.expect("0\r\nX-Sum: 7\r\n\r\n").await;
}
