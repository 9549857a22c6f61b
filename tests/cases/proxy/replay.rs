//! What a retry sends, where, and when.

use std::time::Duration;

use http::{Request, Response};
use remora_tests::{
    mesh::{Mesh, Pair},
    origin::{Answer, Origin, Speaks, empty, full, get, h2},
    wait::within,
    wire::Wire,
};
use tokio::time::Instant;

const POLICY: [(&str, &str); 2] =
    [("retry.remora.io/http", "5xx"), ("retry.remora.io/methods", "*")];
const FAILED: &str = "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n";
const DONE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[tokio::test]
async fn a_body_of_unknown_length_is_sent_again_with_its_trailers() {
    let (pair, app) = Pair::with_app(&POLICY).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\
             \r\n4\r\nfour\r\n5\r\nfive!\r\n0\r\nX-Sum: 9\r\n\r\n",
        )
        .await;
    let mut server = app.accept().await;
    for answer in [FAILED, DONE] {
        server.head().await;
        let body = server.until("X-Sum: 9\r\n\r\n").await;
        assert!(body.contains("four") && body.contains("five!"), "{body:?}");
        server.send(answer).await;
    }
    assert_eq!(client.head().await.status(), 200);
}

#[tokio::test]
async fn over_http_2_a_body_and_its_trailers_are_sent_again_too() {
    use http_body_util::{BodyExt, StreamBody};
    use hyper::body::Frame;

    let pair = Pair::start(&POLICY).await;
    let (seen, mut bodies) = tokio::sync::mpsc::channel(4);
    let origin = Origin::serve(pair.server.pod.app(), Speaks::H2, move |request: Request<_>| {
        let seen = seen.clone();
        async move {
            let again = request.headers().contains_key("remora-attempt");
            let body = request.into_body().collect().await.unwrap();
            let sum = body.trailers().map(|trailers| trailers["x-sum"].clone());
            seen.send((sum.unwrap(), body.to_bytes())).await.unwrap();
            Response::builder().status(if again { 200 } else { 503 }).body(full("")).unwrap()
        }
    })
    .await;
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "9".parse().unwrap());
    let frames =
        [Frame::data("four".into()), Frame::data("five!".into()), Frame::trailers(trailers)];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok))).boxed_unsync();
    let request = Request::post("http://orders/").body(body).unwrap();
    let answer = h2(pair.entry()).await.send_request(request).await.unwrap();
    assert_eq!((answer.status().as_u16(), origin.requests()), (200, 2));
    for _ in 0..2 {
        let (sum, body) = within("a body", bodies.recv()).await.unwrap();
        assert_eq!((sum.to_str().unwrap(), &body[..]), ("9", &b"fourfive!"[..]));
    }
}

/// The client is not done yet: what it sent is repeated, and what it still sends follows.
#[tokio::test]
async fn an_answer_in_the_middle_of_the_upload_is_retried_with_what_there_is() {
    let (pair, app) = Pair::with_app(&POLICY).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("PUT / HTTP/1.1\r\nHost: orders\r\nContent-Length: 8\r\n\r\nhalf").await;
    let mut first = app.accept().await;
    first.head().await;
    first.expect("half").await;
    first.send(FAILED).await;
    let mut second = app.accept().await;
    second.head().await;
    second.expect("half").await;
    client.send("rest").await;
    second.expect("rest").await;
    second.send(DONE).await;
    assert_eq!(client.head().await.status(), 200);
}

#[tokio::test]
async fn a_body_beyond_what_is_kept_arrives_and_is_not_sent_again() {
    const LENGTH: usize = 80 << 10;
    let (pair, app) = Pair::with_app(&POLICY).await;
    let mut client = Wire::dial(pair.entry()).await;
    let head = format!("PUT / HTTP/1.1\r\nHost: orders\r\nContent-Length: {LENGTH}\r\n\r\n");
    client.send(head).await;
    client.send(vec![b'x'; LENGTH]).await;
    let mut server = app.accept().await;
    server.head().await;
    server.exactly(LENGTH).await;
    server.send(FAILED).await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("remora-proxy-error")), (503, None));
    assert!(server.is_silent().await && !app.has_caller().await);
}

#[tokio::test]
async fn a_retry_goes_to_another_endpoint() {
    let mut mesh = Mesh::new();
    let policy = [
        ("retry.remora.io/http", "503"),
        ("retry.remora.io/budget-min-per-second", "1000"),
        ("balancer.remora.io/algorithm", "random"),
        ("balancer.remora.io/failure-accrual", "none"),
    ];
    mesh.service("orders", &policy);
    let web = mesh.pod("web", "web");
    let pods = ["fails", "works", "works-too"].map(|name| mesh.plain_pod(name, "orders"));
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let fails = Origin::serve(pods[0].app(), Speaks::H1, |_| async {
        Response::builder().status(503).body(empty()).unwrap()
    })
    .await;
    let _work =
        [Origin::saying(pods[1].app(), "1").await, Origin::saying(pods[2].app(), "2").await];
    for _ in 0..40 {
        assert_eq!(get(client.entry("orders")).await.unwrap().status, 200);
    }
    assert!(fails.requests() > 0, "chance came to it");
}

#[tokio::test]
async fn a_post_with_an_idempotency_key_is_retried() {
    let pair = Pair::start(&POLICY[..1]).await;
    let origin = Origin::serve(pair.server.pod.app(), Speaks::H1, |_| async {
        Response::builder().status(503).body(empty()).unwrap()
    })
    .await;
    for (key, sends) in [(None, 1), (Some("7d0c"), 2)] {
        let before = origin.requests();
        let mut request = Request::post("/").header("host", "orders").body(full("order")).unwrap();
        request.headers_mut().extend(
            key.map(|key| (http::HeaderName::from_static("idempotency-key"), key.parse().unwrap())),
        );
        let mut sender = remora_tests::origin::h1(pair.entry()).await;
        let answer = within("an answer", sender.send_request(request)).await.unwrap();
        assert_eq!(Answer::read(answer).await.unwrap().status, 503);
        assert_eq!(origin.requests() - before, sends, "{key:?}");
    }
}

/// A server that says when it will be back is not asked before, and not at all where that is long.
#[tokio::test]
async fn retry_after_is_waited_for_where_that_is_short() {
    let (pair, app) = Pair::with_app(&POLICY).await;
    for (after, retried) in [("1", true), ("60", false)] {
        let mut client = Wire::dial(pair.entry()).await;
        client.send("GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").await;
        let mut server = app.accept().await;
        server.head().await;
        let answer = format!(
            "HTTP/1.1 503 No\r\nRetry-After: {after}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        server.send(answer).await;
        let answered = Instant::now();
        if retried {
            let mut again = app.accept().await;
            assert!(answered.elapsed() >= Duration::from_millis(990), "{:?}", answered.elapsed());
            again.head().await;
            again.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        }
        let head = client.head().await;
        assert_eq!(head.status(), if retried { 200 } else { 503 });
        assert_eq!(head.get("retry-after"), (!retried).then_some(after));
    }
}
