//! Interim responses, and clients that wait for one.

use remora_tests::{mesh::Pair, wire::Wire};

const UPLOAD: &str =
    "PUT / HTTP/1.1\r\nHost: orders\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";

#[tokio::test]
async fn only_the_application_tells_a_client_to_continue() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send(UPLOAD).await;
    let mut server = app.accept().await;
    assert_eq!(server.head().await.get("expect"), Some("100-continue"));
    assert!(client.is_silent().await, "no proxy may promise what the application has not");
    server.send("HTTP/1.1 100 Continue\r\nX-Kept: 1\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("x-kept")), (100, Some("1")));
    client.send("body").await;
    server.expect("body").await;
    server.send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("connection")), (201, None));
}

#[tokio::test]
async fn a_client_that_does_not_wait_for_100_is_served_as_well() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send(format!("{UPLOAD}body")).await;
    let mut server = app.accept().await;
    server.head().await;
    server.expect("body").await;
    server.send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 201);
}

/// What comes next on that connection could be the body or another request, so it ends.
#[tokio::test]
async fn a_refusal_instead_of_100_ends_the_connection_and_no_body_was_sent() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send(UPLOAD).await;
    let mut server = app.accept().await;
    server.head().await;
    server.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno").await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("connection")), (417, Some("close")));
    assert_eq!(client.rest().await.unwrap(), b"no");
    assert!(server.rest().await.unwrap_or_default().is_empty());
}

#[tokio::test]
async fn an_http_1_0_client_gets_no_interim_answer() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.0\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    server.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await;
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 200);
}

#[tokio::test]
async fn interim_answers_without_end_are_a_broken_upstream() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    server.send("HTTP/1.1 102 Processing\r\n\r\n".repeat(200)).await;
    let mut head = client.head().await;
    while head.status() == 102 {
        head = client.head().await;
    }
    assert_eq!((head.status(), head.get("remora-proxy-error")), (502, Some("upstream-reset")));
}

#[tokio::test]
async fn interim_answers_arrive_before_the_final_one() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    server
        .send(
            "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        )
        .await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("link")), (103, Some("</a.css>")));
    assert_eq!(client.head().await.status(), 200);
    client.expect("ok").await;
}
