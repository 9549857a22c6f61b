//! Bounds on time that a Service's owner sets, on each codec and on bytes.

use std::time::Duration;

use h2::Reason;
use http::{Request, Response};
use remora_tests::{
    mesh::{Mesh, Pair},
    origin::{Origin, Speaks, empty, full, h2 as client},
    streams,
    wait::{eventually, within},
    wire::Wire,
};
use tokio::time::Instant;

const IDLE: [(&str, &str); 1] = [("timeout.remora.io/idle", "300ms")];

async fn counted(pair: &Pair, reason: &str) {
    let labels = [("direction", "outbound"), ("reason", reason)];
    pair.client.until("remora_proxy_errors_total", &labels, 1).await;
}

fn get() -> Request<()> {
    Request::get("http://orders/").body(()).unwrap()
}

#[tokio::test]
async fn over_http_2_a_request_that_takes_too_long_is_504_and_cancelled() {
    for (key, reason) in [
        ("timeout.remora.io/request", "request-timeout"),
        ("timeout.remora.io/response", "response-timeout"),
        ("retry.remora.io/timeout", "response-timeout"),
    ] {
        let pair = Pair::start(&[(key, "300ms")]).await;
        let mut app = streams::App::listen(pair.server.pod.app()).await;
        let mut sender = streams::connect(pair.entry()).await;
        let answer = streams::ask(&mut sender, get());
        let mut call = app.call().await;
        let answer = within("an answer", answer).await.unwrap();
        assert_eq!(answer.status(), 504, "{key}");
        assert_eq!(answer.headers()["remora-proxy-error"], reason, "{key}");
        assert_eq!(call.reset().await, Reason::CANCEL, "{key}");
    }
}

/// It bounds the whole response, the head's bound only the head.
#[tokio::test]
async fn only_the_requests_own_bound_ends_an_answer_that_has_begun() {
    for (key, whole) in [("timeout.remora.io/request", false), ("timeout.remora.io/response", true)]
    {
        let pair = Pair::start(&[(key, "400ms")]).await;
        let mut app = streams::App::listen(pair.server.pod.app()).await;
        let mut sender = streams::connect(pair.entry()).await;
        let answer = streams::ask(&mut sender, get());
        let mut body = app.call().await.begin(Response::new(()));
        let begun = Instant::now();
        body.send_data("one".into(), false).unwrap();
        let mut answer = within("a head", answer).await.unwrap().into_body();
        assert_eq!(streams::chunk(&mut answer).await, "one");
        tokio::time::sleep_until(begun + Duration::from_millis(600)).await;
        let _ = body.send_data("two".into(), true);
        let read = streams::read(&mut answer).await;
        assert_eq!(read.is_ok_and(|(rest, _)| rest == b"two"), whole, "{key}");
    }
}

/// The bound on the response's head begins when the request is complete.
#[tokio::test]
async fn an_upload_may_take_longer_than_the_response() {
    let (pair, app) = Pair::with_app(&[("timeout.remora.io/response", "300ms")]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("PUT / HTTP/1.1\r\nHost: orders\r\nContent-Length: 8\r\n\r\nhalf").await;
    let mut server = app.accept().await;
    server.head().await;
    server.expect("half").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    client.send("rest").await;
    server.expect("rest").await;
    server.send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 201);
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_repeated_elsewhere_over_http_2_too() {
    let mut mesh = Mesh::new();
    let policy = [
        ("balancer.remora.io/algorithm", "round-robin"),
        ("retry.remora.io/http", "504"),
        ("retry.remora.io/timeout", "300ms"),
    ];
    mesh.service("orders", &policy);
    let web = mesh.pod("web", "web");
    let pods = [mesh.plain_pod("hangs", "orders"), mesh.plain_pod("works", "orders")];
    mesh.start_plane().await;
    let sidecar = mesh.sidecar(&web, &["orders"]).await;
    let hangs = Origin::serve(pods[0].app(), Speaks::H2, |_| std::future::pending()).await;
    let _works = Origin::serve(pods[1].app(), Speaks::H2, |_| async { Response::new(full("")) });
    let _works = _works.await;
    let mut sender = client(sidecar.entry("orders")).await;
    for _ in 0..2 {
        let request = Request::get("http://orders/").body(empty()).unwrap();
        let answer = within("an answer", sender.send_request(request)).await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    assert!(hangs.requests() > 0, "round robin came to it");
}

/// A head was given: what is left is to break off.
#[tokio::test]
async fn an_answer_that_pauses_too_long_is_broken_off() {
    let (pair, app) = Pair::with_app(&IDLE).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n").await;
    // Slow, and never too slow.
    for n in 0..5 {
        server.send(n.to_string()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(client.head().await.status(), 200);
    client.expect("01234").await;
    let rest = client.rest().await;
    assert!(rest.as_ref().map_or(true, Vec::is_empty), "{rest:?}");
    counted(&pair, "response-timeout").await;
    let _ = server.rest().await;
}

#[tokio::test]
async fn an_answer_that_pauses_too_long_is_reset_over_http_2() {
    let pair = Pair::start(&IDLE).await;
    let mut app = streams::App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let answer = streams::ask(&mut sender, get());
    let mut body = app.call().await.begin(Response::new(()));
    body.send_data("one".into(), false).unwrap();
    let mut answer = within("a head", answer).await.unwrap().into_body();
    assert_eq!(streams::chunk(&mut answer).await, "one");
    assert!(streams::read(&mut answer).await.is_err());
    assert_eq!(streams::reset(&mut body).await, Reason::CANCEL);
}

#[tokio::test]
async fn an_upload_that_pauses_too_long_is_408_and_the_clients_fault() {
    let (pair, app) = Pair::with_app(&IDLE).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("PUT / HTTP/1.1\r\nHost: orders\r\nContent-Length: 8\r\n\r\nhalf").await;
    let mut server = app.accept().await;
    server.head().await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("remora-proxy-error")), (408, Some("request-timeout")));
    let _ = server.rest().await;
    assert_eq!(pair.client.endpoints("orders").await[0]["failures"], 0);
}

#[tokio::test]
async fn an_upload_that_pauses_too_long_is_408_over_http_2() {
    let pair = Pair::start(&IDLE).await;
    let mut app = streams::App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let request = Request::put("http://orders/").body(()).unwrap();
    let mut sent = streams::open(&mut sender, request);
    streams::send(&mut sent.body, "half".into(), false).await.unwrap();
    let mut call = app.call().await;
    assert_eq!(streams::chunk(call.request.body_mut()).await, "half");
    let answer = within("an answer", &mut sent.answer).await.unwrap();
    assert_eq!(answer.status(), 408);
    assert_eq!(call.reset().await, Reason::CANCEL);
}

/// Waiting for an answer is not a pause in a body: that has bounds of its own.
#[tokio::test]
async fn a_server_that_thinks_longer_than_the_pause_is_not_idle() {
    let (pair, app) = Pair::with_app(&IDLE).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    server.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 204);
}

#[tokio::test]
async fn bytes_that_pause_too_long_end_in_a_reset_on_both_sides() {
    let (pair, app) = Pair::with_app(&IDLE).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("\x01hello").await;
    let mut server = app.accept().await;
    server.expect("\x01hello").await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.send("word").await;
        client.expect("word").await;
    }
    assert!(client.rest().await.is_err());
    assert!(server.rest().await.is_err());
}

#[tokio::test]
async fn an_upgraded_connection_that_pauses_too_long_ends_on_both_sides() {
    let (pair, app) = Pair::with_app(&IDLE).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send("GET / HTTP/1.1\r\nHost: orders\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n")
        .await;
    let mut server = app.accept().await;
    server.head().await;
    server
        .send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n")
        .await;
    assert_eq!(client.head().await.status(), 101);
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.send("word").await;
        server.expect("word").await;
    }
    let ends = async { (client.rest().await.is_err(), server.rest().await.is_err()) };
    assert_eq!(within("the end", ends).await, (true, true));
}

/// No bound is set: neither end of a quiet connection is touched.
#[tokio::test]
async fn without_a_word_from_the_owner_nothing_that_is_open_is_bounded() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut bytes = Wire::dial(pair.entry()).await;
    bytes.send("\x01hello").await;
    let mut server = app.accept().await;
    server.expect("\x01hello").await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut answering = app.accept().await;
    answering.head().await;
    answering.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").await;
    assert_eq!(client.head().await.status(), 200);
    client.expect("half").await;
    // Longer than any bound above.
    tokio::time::sleep(Duration::from_secs(2)).await;
    answering.send("rest").await;
    client.expect("rest").await;
    bytes.send("more").await;
    server.expect("more").await;
    eventually("one in flight", async || {
        (pair.client.endpoints("orders").await[0]["in_flight"] == 1).then_some(())
    })
    .await;
}
