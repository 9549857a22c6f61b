//! Streams that end by a reset: the code says why, and it arrives.

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response};
use remora_tests::{
    frames::{END_HEADERS, Frames, block, kind},
    grpc,
    mesh::{Mesh, Pair},
    origin::empty,
    streams::{self, App},
    wait::{eventually, within},
    wire,
};

/// One that no library gives by itself.
const ODD: Reason = Reason::INADEQUATE_SECURITY;

fn get() -> Request<()> {
    Request::get("http://orders/").body(()).unwrap()
}

fn post() -> Request<()> {
    Request::post("http://orders/").body(()).unwrap()
}

/// Nobody's fault as far as the balancer is concerned.
async fn no_failure_counted(pair: &Pair) {
    eventually("nothing in flight", async || {
        let rows = pair.client.endpoints("orders").await;
        rows.iter().all(|row| row["in_flight"] == 0).then_some(())
    })
    .await;
    let rows = pair.client.endpoints("orders").await;
    assert!(rows.iter().all(|row| row["failures"] == 0), "{rows:?}");
}

#[tokio::test]
async fn a_client_that_cancels_before_the_answer_is_cancelled_at_the_application() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let answer = streams::ask(&mut sender, get());
    let mut call = app.call().await;
    drop(answer);
    assert_eq!(call.reset().await, Reason::CANCEL);
    no_failure_counted(&pair).await;
}

#[tokio::test]
async fn a_client_that_cancels_during_the_answer_is_cancelled_at_the_application() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let answer = streams::ask(&mut sender, get());
    let mut call = app.call().await;
    let mut body = call.begin(Response::new(()));
    body.send_data(Bytes::from_static(b"some"), false).unwrap();
    let mut answer = within("a head", answer).await.unwrap().into_body();
    assert_eq!(streams::chunk(&mut answer).await, "some");
    drop(answer);
    assert_eq!(streams::reset(&mut body).await, Reason::CANCEL);
    no_failure_counted(&pair).await;
}

/// While the request is still on its way, its reset can say more than CANCEL.
#[tokio::test]
async fn a_client_that_breaks_its_upload_off_gives_the_application_its_code() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let mut sent = streams::open(&mut sender, post());
    streams::send(&mut sent.body, Bytes::from_static(b"half"), false).await.unwrap();
    let mut call = app.call().await;
    assert_eq!(streams::chunk(call.request.body_mut()).await, "half");
    sent.body.send_reset(ODD);
    let broken = streams::read(call.request.body_mut()).await.unwrap_err();
    assert_eq!((broken.reason(), call.reset().await), (Some(ODD), ODD));
    no_failure_counted(&pair).await;
}

#[tokio::test]
async fn a_client_whose_connection_breaks_during_the_upload_is_cancelled_at_the_application() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut frames = Frames::dial(pair.entry()).await;
    let head = [(":method", &b"POST"[..]), (":scheme", b"http"), (":path", b"/")];
    frames.send(kind::HEADERS, END_HEADERS, 1, &block(&head)).await;
    frames.send(kind::DATA, 0, 1, b"half").await;
    let mut call = app.call().await;
    assert_eq!(streams::chunk(call.request.body_mut()).await, "half");
    frames.reset();
    assert_eq!(call.reset().await, Reason::CANCEL);
    no_failure_counted(&pair).await;
}

#[tokio::test]
async fn an_application_that_resets_before_it_answers_gives_the_client_its_code() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    for code in [ODD, Reason::ENHANCE_YOUR_CALM, Reason::CANCEL, 0xdead_beef_u32.into()] {
        let answer = streams::ask(&mut sender, get());
        app.call().await.respond.send_reset(code);
        let error = within("a reset", answer).await.unwrap_err();
        assert!(error.is_remote() && error.reason() == Some(code), "{code:?}: {error:?}");
    }
    let reason = [("direction", "outbound"), ("reason", "upstream-reset")];
    assert_eq!(pair.client.metric("remora_proxy_errors_total", &reason).await, 4);
    let rows = pair.client.endpoints("orders").await;
    assert_eq!(rows[0]["failures"], 4, "{rows:?}");
}

#[tokio::test]
async fn an_application_that_resets_in_the_middle_gives_the_client_what_it_had_and_its_code() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    for request in [get(), grpc::call(())] {
        let answer = streams::ask(&mut sender, request);
        let mut call = app.call().await;
        let mut body = call.begin(Response::new(()));
        body.send_data(Bytes::from_static(b"some"), false).unwrap();
        let mut answer = within("a head", answer).await.unwrap().into_body();
        assert_eq!(streams::chunk(&mut answer).await, "some");
        body.send_reset(ODD);
        let error = streams::read(&mut answer).await.unwrap_err();
        assert!(error.is_remote() && error.reason() == Some(ODD), "{error:?}");
    }
}

#[tokio::test]
async fn an_application_without_a_sidecar_gives_its_code_as_well() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[]);
    let (web, orders) = (mesh.pod("web", "web"), mesh.plain_pod("orders-1", "orders"));
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let mut app = App::listen(orders.app()).await;
    let mut sender = streams::connect(client.entry("orders")).await;
    let answer = streams::ask(&mut sender, get());
    app.call().await.respond.send_reset(ODD);
    assert_eq!(within("a reset", answer).await.unwrap_err().reason(), Some(ODD));
}

#[tokio::test]
async fn a_reset_ends_its_own_stream_and_no_other() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let first = streams::ask(&mut sender, get());
    let mut one = app.call().await;
    let second = streams::ask(&mut sender, get());
    app.call().await.respond.send_reset(ODD);
    assert_eq!(within("a reset", second).await.unwrap_err().reason(), Some(ODD));
    one.answer(Response::new(()));
    assert_eq!(within("an answer", first).await.unwrap().status(), 200);
}

/// The connection ends, and with it the only way to say why: whoever calls by gRPC is told, everyone
/// else sees the stream break.
#[tokio::test]
async fn an_application_that_dies_in_the_middle_breaks_the_stream() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let answer = streams::ask(&mut sender, get());
    let mut body = app.call().await.begin(Response::new(()));
    body.send_data(Bytes::from_static(b"some"), false).unwrap();
    let mut answer = within("a head", answer).await.unwrap().into_body();
    assert_eq!(streams::chunk(&mut answer).await, "some");
    drop(app);
    let error = streams::read(&mut answer).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{error:?}");
}

/// RFC 9113 §8.1: NO_ERROR after a complete answer asks for no more of the request. h2 says it for an
/// answer whose handles are dropped; told to reset, it would throw away what it has not written yet.
#[tokio::test]
async fn an_answer_that_is_complete_before_the_request_ends_the_upload() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let mut sent = streams::open(&mut sender, post());
    streams::send(&mut sent.body, Bytes::from_static(b"beginning"), false).await.unwrap();
    let mut call = app.call().await;
    assert_eq!(streams::chunk(call.request.body_mut()).await, "beginning");
    let too_large = Response::builder().status(413).body(()).unwrap();
    let mut body = call.begin(too_large);
    body.send_data(Bytes::from_static(b"enough"), true).unwrap();
    drop((body, call));
    let answer = within("an answer", &mut sent.answer).await.unwrap();
    assert_eq!(answer.status(), 413);
    let (text, _) = streams::read(&mut answer.into_body()).await.unwrap();
    assert_eq!(text, b"enough");
    assert_eq!(streams::reset(&mut sent.body).await, Reason::NO_ERROR);
}

/// hyper, as many clients, has no other word for it than an error; what counts is that it is one.
#[tokio::test]
async fn a_call_on_a_stream_that_the_only_application_refuses_is_told_why() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let refuse = async {
        loop {
            app.call().await.respond.send_reset(Reason::REFUSED_STREAM);
        }
    };
    let mut sender = remora_tests::origin::h2(pair.entry()).await;
    let request = Request::post("http://orders/").body(empty()).unwrap();
    let response = tokio::select! {
        response = within("an answer", sender.send_request(request)) => response.unwrap(),
        () = refuse => unreachable!(),
    };
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["remora-proxy-error"], "overloaded");
}

#[tokio::test]
async fn a_frame_that_breaks_the_protocol_ends_the_clients_connection_and_no_other() {
    let pair = Pair::start(&[]).await;
    let app = wire::App::listen(pair.server.pod.app()).await;
    let mut bad = Frames::dial(pair.entry()).await;
    // DATA on a stream that was never opened.
    bad.send(kind::DATA, 0, 7, b"what").await;
    let mut frame = bad.next().await.unwrap();
    while frame.kind != kind::GOAWAY {
        frame = bad.next().await.unwrap();
    }
    assert!(bad.next().await.is_err(), "the connection ends");
    assert!(!app.has_caller().await);
}
