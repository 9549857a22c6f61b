//! `grpc-timeout`: kept by the proxy, passed on reduced, and never invented.

use std::time::Duration;

use h2::Reason;
use http::{HeaderMap, HeaderValue, Request};
use remora_tests::{
    grpc::{Ended, answer, call, message, status},
    mesh::Pair,
    origin::{Body, empty, full, h2 as client},
    streams::{self, App},
    wait::within,
};
use tokio::time::Instant;

fn call_within(timeout: &'static str, body: Body) -> Request<Body> {
    let mut request = call(body);
    request.headers_mut().insert("grpc-timeout", HeaderValue::from_static(timeout));
    request
}

/// Sends a call and hands it over to be answered.
async fn ask(pair: &Pair, request: Request<Body>) -> tokio::task::JoinHandle<Ended> {
    let mut sender = client(pair.entry()).await;
    tokio::spawn(async move {
        let response = within("a head", sender.send_request(request)).await.unwrap();
        Ended::read(response).await.unwrap()
    })
}

fn value(headers: &HeaderMap) -> &str {
    headers["grpc-timeout"].to_str().unwrap()
}

#[tokio::test]
async fn a_call_that_is_not_answered_in_time_ends_in_deadline_exceeded_on_both_sides() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let begun = Instant::now();
    let ended = ask(&pair, call_within("300m", full(message("order")))).await;
    let mut called = app.call().await;
    let ended = within("the end", ended).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!((ended.status(), ended.reason()), ("4", "request-timeout"), "{ended:?}");
    assert!(ended.field("grpc-message").contains("300ms"), "{ended:?}");
    assert_eq!(called.reset().await, Reason::CANCEL);
    // It was the client's own impatience.
    assert_eq!(pair.client.endpoints("orders").await[0]["failures"], 0);
}

#[tokio::test]
async fn the_application_is_told_what_is_left() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    for (timeout, least, most) in [("9S", "8", "9"), ("2M", "119", "120"), ("90000m", "89", "90")] {
        let ended = ask(&pair, call_within(timeout, empty())).await;
        let mut called = app.call().await;
        let left = value(called.request.headers());
        // Finer than it was asked for, and never more.
        let (digits, unit) = left.split_at(left.len() - 1);
        let left: f64 = digits.parse::<f64>().unwrap() / if unit == "u" { 1e6 } else { 1e3 };
        let bounds: [f64; 2] = [least, most].map(|text| text.parse().unwrap());
        assert!(left > bounds[0] && left < bounds[1], "{timeout}: {digits}{unit}");
        let mut response = answer(());
        response.headers_mut().extend(status("0"));
        called.answer(response);
        assert_eq!(within("the end", ended).await.unwrap().status(), "0");
    }
}

#[tokio::test]
async fn a_deadline_that_is_none_is_passed_on_untouched_and_does_not_bound() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    for timeout in ["soon", "100000000n", "5s", "-1m", "m", ""] {
        let ended = ask(&pair, call_within(timeout, empty())).await;
        let mut called = app.call().await;
        assert_eq!(value(called.request.headers()), timeout);
        let mut response = answer(());
        response.headers_mut().extend(status("0"));
        called.answer(response);
        assert_eq!(within("the end", ended).await.unwrap().status(), "0");
    }
}

/// As every client library sends it to others than gRPC servers: not at all.
#[tokio::test]
async fn without_grpc_it_is_a_field_like_any_other() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let request = Request::get("http://orders/").header("grpc-timeout", "1n").body(()).unwrap();
    let answer = streams::ask(&mut sender, request);
    let mut called = app.call().await;
    assert_eq!(value(called.request.headers()), "1n");
    called.answer(http::Response::new(()));
    assert_eq!(within("an answer", answer).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_stream_that_outlives_its_deadline_ends_in_trailers_that_say_so() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let ended = ask(&pair, call_within("400m", full(message("order")))).await;
    let mut called = app.call().await;
    let mut body = called.begin(answer(()));
    for n in 0..3 {
        body.send_data(message(&n.to_string()), false).unwrap();
    }
    let ended = within("the end", ended).await.unwrap();
    assert_eq!(ended.texts, ["0", "1", "2"]);
    assert_eq!((ended.status(), ended.reason()), ("4", "request-timeout"), "{ended:?}");
    assert_eq!(streams::reset(&mut body).await, Reason::CANCEL);
    let endpoint = &pair.client.endpoints("orders").await[0];
    assert_eq!(endpoint["failures"], 0, "the bound was the client's: {endpoint}");
}

/// The deadline is the client's, and the Service's own bound is one as well: the shorter one holds.
#[tokio::test]
async fn the_owners_bound_holds_where_it_is_shorter_and_blames_the_endpoint() {
    let pair = Pair::start(&[("timeout.remora.io/request", "300ms")]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let ended = ask(&pair, call_within("20S", empty())).await;
    let mut called = app.call().await;
    let left = value(called.request.headers());
    assert!(left.ends_with('u') && left.len() <= 7, "reduced to the bound: {left}");
    let ended = within("the end", ended).await.unwrap();
    assert_eq!((ended.status(), ended.reason()), ("4", "request-timeout"));
    assert_eq!(called.reset().await, Reason::CANCEL);
    assert_eq!(pair.client.endpoints("orders").await[0]["failures"], 1);
}

/// Two are due; the first attempt's pushback leaves no time for the second.
#[tokio::test]
async fn a_pause_before_a_retry_is_not_waited_for_beyond_the_deadline() {
    let policy = [
        ("retry.remora.io/grpc", "14"),
        ("retry.remora.io/backoff", "5s"),
        ("retry.remora.io/max-backoff", "5s"),
    ];
    let pair = Pair::start(&policy).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let begun = Instant::now();
    let ended = ask(&pair, call_within("400m", empty())).await;
    let mut response = answer(());
    response.headers_mut().extend(status("14"));
    app.call().await.answer(response);
    let ended = within("the end", ended).await.unwrap();
    assert_eq!((ended.status(), ended.reason()), ("4", "request-timeout"), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(!app.has_call());
}

#[tokio::test]
async fn a_call_without_a_deadline_may_be_silent() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let ended = ask(&pair, call(empty())).await;
    let mut called = app.call().await;
    assert!(called.request.headers().get("grpc-timeout").is_none(), "none is invented");
    let mut body = called.begin(answer(()));
    tokio::time::sleep(Duration::from_millis(700)).await;
    body.send_data(message("late"), false).unwrap();
    body.send_trailers(status("0")).unwrap();
    let ended = within("the end", ended).await.unwrap();
    assert_eq!((ended.status(), &*ended.texts), ("0", &["late".to_owned()][..]));
}
