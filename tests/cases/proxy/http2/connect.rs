//! CONNECT over HTTP/2 (RFC 9113 §8.5).

use bytes::Bytes;
use h2::Reason;
use http::{Method, Request, Response};
use remora_tests::{
    frames::{END_HEADERS, Frames, block, kind},
    mesh::Pair,
    streams::{self, App},
    wait::{eventually, within},
    wire,
};

fn connect(authority: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = authority.parse().unwrap();
    request
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_and_either_side_ends_by_itself() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let mut sent = streams::open(&mut sender, connect("db:5432"));
    let mut call = app.call().await;
    assert_eq!(call.request.method(), Method::CONNECT);
    assert_eq!(call.request.uri().to_string(), "db:5432");
    let mut down = call.begin(Response::new(()));
    let answer = within("a head", sent.answer).await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut answer = answer.into_body();
    down.send_data("server first".into(), false).unwrap();
    assert_eq!(streams::chunk(&mut answer).await, "server first");
    sent.body.send_data("up".into(), false).unwrap();
    assert_eq!(streams::chunk(call.request.body_mut()).await, "up");
    sent.body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(streams::read(call.request.body_mut()).await.unwrap().0, b"");
    assert_eq!(pair.client.endpoints("orders").await[0]["in_flight"], 1, "as long as it lasts");
    down.send_data("late".into(), true).unwrap();
    assert_eq!(streams::read(&mut answer).await.unwrap().0, b"late");
    eventually("its end", async || {
        (pair.client.endpoints("orders").await[0]["in_flight"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_refusal_says_what_the_application_said() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let sent = streams::open(&mut sender, connect("db:5432"));
    let mut body = app.call().await.begin(Response::builder().status(407).body(()).unwrap());
    body.send_data("who".into(), true).unwrap();
    let answer = within("an answer", sent.answer).await.unwrap();
    assert_eq!(answer.status(), 407);
    assert_eq!(streams::read(&mut answer.into_body()).await.unwrap().0, b"who");
}

#[tokio::test]
async fn a_tunnel_whose_application_dies_ends() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let sent = streams::open(&mut sender, connect("db:5432"));
    let _down = app.call().await.begin(Response::new(()));
    let mut answer = within("a head", sent.answer).await.unwrap().into_body();
    drop(app);
    // Whether in order or not, the client does not wait for ever.
    let _ = streams::read(&mut answer).await;
}

#[tokio::test]
async fn one_that_names_no_port_has_a_path_or_a_length_is_refused() {
    type Fields = &'static [(&'static str, &'static [u8])];
    const METHOD: (&str, &[u8]) = (":method", b"CONNECT");
    const AUTHORITY: (&str, &[u8]) = (":authority", b"db:5432");
    let pair = Pair::start(&[]).await;
    let app = wire::App::listen(pair.server.pod.app()).await;
    let bad: [Fields; 7] = [
        &[METHOD],
        &[METHOD, (":authority", b"db")],
        &[METHOD, (":authority", b"db:70000")],
        &[METHOD, AUTHORITY, (":path", b"/")],
        &[METHOD, AUTHORITY, (":scheme", b"http")],
        &[METHOD, AUTHORITY, ("content-length", b"4")],
        // RFC 8441, which was not offered.
        &[METHOD, AUTHORITY, (":scheme", b"http"), (":path", b"/"), (":protocol", b"websocket")],
    ];
    for fields in bad {
        let mut frames = Frames::dial(pair.entry()).await;
        frames.send(kind::HEADERS, END_HEADERS, 1, &block(fields)).await;
        let refused = match frames.next().await {
            Err(_) => true,
            Ok(frame) if frame.kind == kind::RST_STREAM => {
                [Reason::PROTOCOL_ERROR, Reason::INTERNAL_ERROR].contains(&frame.code().into())
            }
            Ok(frame) => frame.kind == kind::GOAWAY || frame.is_status(400),
        };
        assert!(refused, "{fields:?}");
        assert!(!app.has_caller().await, "{fields:?}");
    }
}
