//! What is sent again and what never is, and time-outs.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use remora_tests::{
    mesh::{Mesh, Pair},
    origin::{Answer, Origin, Speaks, full, get, h1},
    wait::within,
    wire::{App, Wire},
};

/// Fails so many times, then answers with the attempt that the proxy tells.
async fn failing_first(pair: &Pair, status: u16, times: usize) -> Origin {
    let left = Arc::new(AtomicUsize::new(times));
    Origin::serve(pair.server.pod.app(), Speaks::H1, move |request: Request<_>| {
        let take = |n: usize| n.checked_sub(1);
        let fails = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
        let attempt = request.headers().get("remora-attempt").cloned();
        async move {
            let mut response = Response::new(full("answer"));
            if fails {
                *response.status_mut() = status.try_into().unwrap();
            }
            response.headers_mut().extend(
                attempt.map(|attempt| (http::HeaderName::from_static("x-attempt"), attempt)),
            );
            response
        }
    })
    .await
}

async fn post(pair: &Pair, body: &'static str) -> Answer {
    let request = Request::post("/").header("host", "orders").body(full(body)).unwrap();
    let mut sender = h1(pair.entry()).await;
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    Answer::read(response).await.unwrap()
}

#[tokio::test]
async fn without_a_word_from_the_owner_nothing_that_ran_is_retried() {
    let pair = Pair::start(&[]).await;
    let origin = failing_first(&pair, 503, 1).await;
    assert_eq!(get(pair.entry()).await.unwrap().status, 503);
    assert_eq!(origin.requests(), 1);
}

#[tokio::test]
async fn a_get_is_retried_as_annotated_and_told_its_attempt() {
    let pair =
        Pair::start(&[("retry.remora.io/http", "5xx"), ("retry.remora.io/limit", "2")]).await;
    let origin = failing_first(&pair, 503, 2).await;
    let answer = get(pair.entry()).await.unwrap();
    assert_eq!((answer.status, answer.text.as_str()), (200, "answer"));
    assert_eq!(answer.headers["x-attempt"], "3");
    assert_eq!(origin.requests(), 3);
    let retries = "remora_outbound_retries_total";
    assert_eq!(pair.client.metric(retries, &[("result", "sent")]).await, 2);
    assert_eq!(pair.client.metric(retries, &[("result", "succeeded")]).await, 1);
}

#[tokio::test]
async fn the_last_answer_is_given_when_the_limit_is_reached() {
    let pair =
        Pair::start(&[("retry.remora.io/http", "500"), ("retry.remora.io/limit", "2")]).await;
    let origin = failing_first(&pair, 500, usize::MAX).await;
    let answer = get(pair.entry()).await.unwrap();
    assert_eq!((answer.status, answer.text.as_str(), answer.reason()), (500, "answer", None));
    assert_eq!(origin.requests(), 3);
    let retries = "remora_outbound_retries_total";
    assert_eq!(pair.client.metric(retries, &[("result", "limit")]).await, 1);
}

#[tokio::test]
async fn a_status_that_is_not_named_is_not_retried() {
    let pair =
        Pair::start(&[("retry.remora.io/http", "503"), ("retry.remora.io/limit", "2")]).await;
    let origin = failing_first(&pair, 500, 1).await;
    assert_eq!(get(pair.entry()).await.unwrap().status, 500);
    assert_eq!(origin.requests(), 1);
}

#[tokio::test]
async fn a_post_is_not_retried_unless_its_owner_names_the_method() {
    let policy = [("retry.remora.io/http", "5xx"), ("retry.remora.io/limit", "2")];
    let pair = Pair::start(&policy).await;
    let origin = failing_first(&pair, 503, 1).await;
    assert_eq!(post(&pair, "once").await.status, 503);
    assert_eq!(origin.requests(), 1);

    let pair = Pair::start(&[policy[0], policy[1], ("retry.remora.io/methods", "POST")]).await;
    let origin = failing_first(&pair, 503, 1).await;
    assert_eq!(post(&pair, "twice").await.status, 200);
    assert_eq!(origin.requests(), 2);
}

#[tokio::test]
async fn a_retry_sends_the_whole_body_again() {
    let policy = [("retry.remora.io/http", "5xx"), ("retry.remora.io/methods", "POST")];
    let (pair, app) = Pair::with_app(&policy).await;
    let call = tokio::spawn(async move { (post(&pair, "the body").await, pair) });
    let mut server = app.accept().await;
    for (attempt, status) in [(None, "503 No"), (Some("2"), "200 OK")] {
        let head = server.head().await;
        assert_eq!(head.get("remora-attempt"), attempt);
        server.expect("the body").await;
        server.send(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")).await;
    }
    assert_eq!(within("the answer", call).await.unwrap().0.status, 200);
}

#[tokio::test]
async fn the_budget_bounds_the_share_of_retries() {
    let pair = Pair::start(&[
        ("retry.remora.io/http", "5xx"),
        ("retry.remora.io/limit", "10"),
        ("retry.remora.io/budget-min-per-second", "0"),
        ("retry.remora.io/budget-window", "60s"),
        ("balancer.remora.io/failure-accrual", "none"),
    ])
    .await;
    let origin = failing_first(&pair, 500, usize::MAX).await;
    let calls = (0..25).map(|_| async { get(pair.entry()).await.unwrap().status });
    let statuses = futures_util::future::join_all(calls).await;
    assert!(statuses.iter().all(|status| *status == 500));
    // A fifth of the requests, and nothing else.
    assert_eq!(origin.requests() - 25, 5);
    let spent = [("result", "budget")];
    assert!(pair.client.metric("remora_outbound_retries_total", &spent).await > 0);
}

/// The application reads an order and dies over it: the client hears of it, and nobody orders twice.
async fn is_sent_once(entry: SocketAddr, app: &App) {
    for method in ["POST", "GET"] {
        let mut client = Wire::dial(entry).await;
        client
            .send(format!("{method} / HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\n\r\norder"))
            .await;
        let mut server = app.accept().await;
        server.head().await;
        server.expect("order").await;
        drop(server);
        let head = client.head().await;
        assert_eq!((head.status(), head.get("remora-proxy-error")), (502, Some("upstream-reset")));
        assert!(!app.has_caller().await, "{method} was sent again");
    }
}

#[tokio::test]
async fn a_request_that_may_have_run_is_never_sent_twice() {
    let (pair, app) = Pair::with_app(&[]).await;
    is_sent_once(pair.entry(), &app).await;
}

#[tokio::test]
async fn nor_is_it_where_the_application_has_no_sidecar() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[]);
    let (web, orders) = (mesh.pod("web", "web"), mesh.plain_pod("orders-1", "orders"));
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    is_sent_once(client.entry("orders"), &App::listen(orders.app()).await).await;
}

#[tokio::test]
async fn nor_is_it_where_another_endpoint_could_take_it() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[("balancer.remora.io/algorithm", "round-robin")]);
    let web = mesh.pod("web", "web");
    let pods = [mesh.plain_pod("orders-1", "orders"), mesh.plain_pod("orders-2", "orders")];
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let (one, two) = (App::listen(pods[0].app()).await, App::listen(pods[1].app()).await);
    let mut caller = Wire::dial(client.entry("orders")).await;
    caller.send("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\n\r\norder").await;
    let mut server = tokio::select! {
        server = one.accept() => server,
        server = two.accept() => server,
    };
    server.head().await;
    server.expect("order").await;
    drop(server);
    assert_eq!(caller.head().await.status(), 502);
    assert!(!one.has_caller().await && !two.has_caller().await);
}

#[tokio::test]
async fn a_request_on_a_pooled_connection_that_dies_after_reading_it_is_not_sent_twice() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    let request = "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\n\r\norder";
    client.send(request).await;
    let mut server = app.accept().await;
    server.head().await;
    server.expect("order").await;
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    client.send(request).await;
    server.head().await;
    server.expect("order").await;
    drop(server);
    assert_eq!(client.head().await.status(), 502);
    assert!(!app.has_caller().await);
}

#[tokio::test]
async fn a_request_that_meets_a_connection_closed_while_idle_is_sent_over_another() {
    let (pair, app) = Pair::with_app(&[]).await;
    for n in 0..10 {
        let mut client = Wire::dial(pair.entry()).await;
        client
            .send(format!("POST /{n} HTTP/1.1\r\nHost: orders\r\nContent-Length: 0\r\n\r\n"))
            .await;
        let mut server = app.accept().await;
        assert_eq!(server.head().await.line(), format!("POST /{n} HTTP/1.1"));
        server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(client.head().await.status(), 200);
        // The application closes without saying so, as servers with a keep-alive bound do.
        drop(server);
    }
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_504_and_cancelled() {
    let (pair, app) = Pair::with_app(&[("timeout.remora.io/request", "300ms")]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("remora-proxy-error")), (504, Some("request-timeout")));
    // The application sees that nobody waits any more.
    let _ = server.rest().await;
    let reason = [("direction", "outbound"), ("reason", "request-timeout")];
    assert_eq!(pair.client.metric("remora_proxy_errors_total", &reason).await, 1);
}

#[tokio::test]
async fn an_answer_that_does_not_end_in_time_is_broken_off() {
    let (pair, app) = Pair::with_app(&[("timeout.remora.io/request", "300ms")]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    assert_eq!(client.head().await.status(), 200);
    let rest = client.rest().await;
    assert!(rest.as_ref().map_or(true, |body| body == b"half"), "{rest:?}");
    let _ = server.rest().await;
}

#[tokio::test]
async fn a_response_head_that_takes_too_long_is_504() {
    let (pair, app) = Pair::with_app(&[("timeout.remora.io/response", "300ms")]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("remora-proxy-error")), (504, Some("response-timeout")));
}

/// A listener whose queue is full answers no SYN, as a dead machine would not.
#[tokio::test]
async fn an_endpoint_that_does_not_answer_the_dial_is_504_connect_timeout() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[("timeout.remora.io/connect", "200ms")]);
    let (web, mute) = (mesh.pod("web", "web"), mesh.plain_pod("mute", "orders"));
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(mute.app()).unwrap();
    let _listener = socket.listen(1).unwrap();
    let mut queue = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(100), tokio::net::TcpStream::connect(mute.app()))
            .await
    {
        queue.push(stream);
    }
    let answer = get(client.entry("orders")).await.unwrap();
    assert_eq!((answer.status, answer.reason()), (504, Some("connect-timeout")), "{answer:?}");
}

#[tokio::test]
async fn a_sidecar_that_accepts_and_says_nothing_is_504_connect_timeout() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[("timeout.remora.io/connect", "200ms")]);
    let (web, mute) = (mesh.pod("web", "web"), mesh.pod("mute", "orders"));
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let _mute = App::listen(mute.address()).await;
    let answer = get(client.entry("orders")).await.unwrap();
    assert_eq!((answer.status, answer.reason()), (504, Some("connect-timeout")), "{answer:?}");
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_given_up_for_another_endpoint() {
    let mut mesh = Mesh::new();
    mesh.service(
        "orders",
        &[
            ("balancer.remora.io/algorithm", "round-robin"),
            ("retry.remora.io/http", "504"),
            ("retry.remora.io/timeout", "200ms"),
        ],
    );
    let web = mesh.pod("web", "web");
    let pods = [mesh.plain_pod("hangs", "orders"), mesh.plain_pod("works", "orders")];
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let hangs = Origin::serve(pods[0].app(), Speaks::H1, |_| std::future::pending()).await;
    let _works = Origin::saying(pods[1].app(), "works").await;
    for _ in 0..2 {
        assert_eq!(get(client.entry("orders")).await.unwrap().text, "works");
    }
    assert!(hangs.requests() > 0, "round robin came to it");
}
