//! Bodies, and answers that have none.

use http::{Request, Response};
use remora_tests::{
    mesh::Pair,
    origin::{Answer, Origin, Speaks, empty, full, h2 as client},
    streams::{self, App},
    wait::within,
};

#[tokio::test]
async fn answers_without_a_body_keep_their_length_and_end_at_once() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    for (method, status, length) in [
        ("HEAD", 200, Some("1234")),
        ("HEAD", 200, None),
        ("HEAD", 404, Some("0")),
        ("GET", 204, None),
        ("GET", 304, Some("77")),
        ("GET", 200, Some("0")),
        ("GET", 200, None),
    ] {
        let request = Request::builder().method(method).uri("http://orders/").body(()).unwrap();
        let answer = streams::ask(&mut sender, request);
        let mut call = app.call().await;
        assert_eq!(call.request.method(), method);
        let mut response = Response::builder().status(status).body(()).unwrap();
        response
            .headers_mut()
            .extend(length.map(|length| (http::header::CONTENT_LENGTH, length.parse().unwrap())));
        call.answer(response);
        let answer = within("an answer", answer).await.unwrap();
        let got = answer.headers().get("content-length").map(|value| value.to_str().unwrap());
        assert_eq!((answer.status().as_u16(), got), (status, length), "{method}");
        let mut body = answer.into_body();
        assert!(body.is_end_stream(), "{method} {status} {length:?}");
        assert_eq!(streams::read(&mut body).await.unwrap(), (Vec::new(), None));
    }
}

#[tokio::test]
async fn an_answer_during_the_upload_reaches_the_client_at_once() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let request = Request::post("http://orders/").body(()).unwrap();
    let mut sent = streams::open(&mut sender, request);
    let mut call = app.call().await;
    let mut body = call.begin(Response::new(()));
    let mut answer = within("a head", &mut sent.answer).await.unwrap().into_body();
    // Both bodies move from here on, each waiting for the other.
    for n in 0..5u8 {
        sent.body.send_data(vec![n; 3].into(), false).unwrap();
        assert_eq!(streams::chunk(call.request.body_mut()).await, vec![n; 3]);
        body.send_data(vec![n; 2].into(), false).unwrap();
        assert_eq!(streams::chunk(&mut answer).await, vec![n; 2]);
    }
    sent.body.send_data("end".into(), true).unwrap();
    assert_eq!(streams::read(call.request.body_mut()).await.unwrap().0, b"end");
    body.send_data("done".into(), true).unwrap();
    assert_eq!(streams::read(&mut answer).await.unwrap().0, b"done");
}

#[tokio::test]
async fn empty_frames_are_no_end() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let request = Request::post("http://orders/").body(()).unwrap();
    let mut sent = streams::open(&mut sender, request);
    for part in ["", "a", "", "", "b"] {
        sent.body.send_data(part.into(), false).unwrap();
    }
    sent.body.send_data("".into(), true).unwrap();
    let mut call = app.call().await;
    assert_eq!(streams::read(call.request.body_mut()).await.unwrap().0, b"ab");
    call.answer(Response::new(()));
    assert_eq!(within("an answer", sent.answer).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_hundred_requests_at_once_share_one_connection() {
    let pair = Pair::start(&[]).await;
    let origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |request| async move {
        Response::new(full(request.uri().path().to_owned()))
    })
    .await;
    let sender = client(pair.entry()).await;
    let calls = (0..100).map(|n| {
        let mut sender = sender.clone();
        async move {
            let request = Request::get(format!("http://orders/{n}")).body(empty()).unwrap();
            let response = within("an answer", sender.send_request(request)).await.unwrap();
            assert_eq!(Answer::read(response).await.unwrap().text, format!("/{n}"));
        }
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(origin.requests(), 100);
    let mtls = [("direction", "outbound"), ("tls", "mtls")];
    assert_eq!(pair.client.metric("remora_tcp_connections_total", &mtls).await, 1);
}
