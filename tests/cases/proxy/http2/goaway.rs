//! Connections that are about to end: what was not begun is sent over another, what was begun ends.

use std::time::Duration;

use futures_util::future::join_all;
use h2::Reason;
use http::{Request, Response};
use remora_tests::{
    frames::{END_HEADERS, END_STREAM, Frames, kind},
    mesh::{Mesh, Pair},
    origin::{Origin, Speaks, empty, full, h2 as client},
    streams,
    wait::{eventually, within},
    wire::App,
};

/// HPACK for `:status: 200`.
const OK: &[u8] = &[0x88];

fn post(n: usize) -> Request<remora_tests::origin::Body> {
    Request::post(format!("http://orders/{n}")).body(full("order")).unwrap()
}

/// Heads of three requests, by the streams they came on.
async fn three(frames: &mut Frames) -> Vec<u32> {
    let mut streams = Vec::new();
    while streams.len() < 3 {
        let frame = frames.next().await.unwrap();
        if frame.kind == kind::HEADERS {
            streams.push(frame.stream);
        }
    }
    streams
}

async fn go_away(frames: &mut Frames, last: u32, code: u32) {
    let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
    frames.send(kind::GOAWAY, 0, 0, &payload).await;
}

async fn answer(frames: &mut Frames, stream: u32) {
    frames.send(kind::HEADERS, END_HEADERS | END_STREAM, stream, OK).await;
}

/// Of three requests the application takes the first and says so, with this code; each runs once.
async fn the_rest_is_sent_again(code: Reason) {
    let pair = Pair::start(&[]).await;
    let app = App::listen(pair.server.pod.app()).await;
    let sender = client(pair.entry()).await;
    let calls = (0..3).map(|n| {
        let mut sender = sender.clone();
        async move { within("an answer", sender.send_request(post(n))).await.unwrap().status() }
    });
    let play = async {
        let mut old = Frames::accept(&app).await;
        let seen = three(&mut old).await;
        assert_eq!(seen, [1, 3, 5]);
        go_away(&mut old, 1, code.into()).await;
        answer(&mut old, 1).await;
        let mut new = Frames::accept(&app).await;
        let mut ran = 0;
        while ran < 2 {
            let frame = new.next().await.unwrap();
            if frame.flags & END_STREAM != 0 {
                answer(&mut new, frame.stream).await;
                ran += 1;
            }
        }
        (old, new)
    };
    let (statuses, (_old, mut new)) = tokio::join!(join_all(calls), play);
    assert_eq!(statuses, [200; 3], "{code:?}");
    let more = tokio::time::timeout(Duration::from_millis(50), new.next()).await;
    assert!(more.is_err(), "{code:?}: a request ran twice: {more:?}");
}

#[tokio::test]
async fn streams_above_the_last_one_are_sent_again() {
    the_rest_is_sent_again(Reason::NO_ERROR).await;
}

/// RFC 9113 §6.8 makes no difference.
#[tokio::test]
async fn so_they_are_where_the_connection_ends_over_an_error() {
    the_rest_is_sent_again(Reason::ENHANCE_YOUR_CALM).await;
}

#[tokio::test]
async fn streams_up_to_the_last_one_that_the_connection_takes_along_are_never_sent_again() {
    for code in [Reason::NO_ERROR, Reason::INTERNAL_ERROR] {
        let pair = Pair::start(&[]).await;
        let app = App::listen(pair.server.pod.app()).await;
        let mut sender = client(pair.entry()).await;
        let call = tokio::spawn(async move { (sender.send_request(post(0)).await, sender) });
        let mut frames = Frames::accept(&app).await;
        while frames.next().await.unwrap().flags & END_STREAM == 0 {}
        go_away(&mut frames, 1, code.into()).await;
        drop(frames);
        let (response, _sender) = within("an answer", call).await.unwrap();
        let response = response.unwrap();
        assert_eq!(response.status(), 502);
        assert_eq!(response.headers()["remora-proxy-error"], "upstream-reset");
        assert!(!app.has_caller().await, "{code:?}: it was sent again");
    }
}

#[tokio::test]
async fn a_server_that_says_goaway_with_each_answer_loses_no_call() {
    let pair = Pair::start(&[]).await;
    let listener = tokio::net::TcpListener::bind(pair.server.pod.app()).await.unwrap();
    let serve = async {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut first = true;
                while let Some(Ok((_request, mut respond))) = connection.accept().await {
                    if std::mem::take(&mut first) {
                        connection.graceful_shutdown();
                    }
                    respond.send_response(Response::new(()), true).unwrap();
                }
            });
        }
    };
    let calls = async {
        let mut sender = client(pair.entry()).await;
        for n in 0..20 {
            let request = Request::post("http://orders/").body(empty()).unwrap();
            let answer = within("an answer", sender.send_request(request)).await.unwrap();
            assert_eq!(answer.status(), 200, "call {n}: {answer:?}");
        }
    };
    tokio::select! {
        () = calls => {}
        () = serve => unreachable!(),
    }
}

#[tokio::test]
async fn a_proxy_that_drains_says_goaway_and_finishes_what_is_open() {
    let mut mesh = Mesh::new();
    mesh.grace = Duration::from_secs(10);
    let pair = Pair::in_mesh(mesh, &[]).await;
    let mut app = streams::App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let get = || Request::get("http://orders/").body(()).unwrap();
    let answer = streams::ask(&mut sender, get());
    let mut call = app.call().await;
    pair.client.drain().await;
    // As soon as the connection knows, it takes no more.
    eventually("GOAWAY", async || {
        let ready = tokio::time::timeout(Duration::from_millis(20), sender.clone().ready()).await;
        matches!(ready, Ok(Err(error)) if error.is_go_away() && error.is_remote()).then_some(())
    })
    .await;
    let mut body = call.begin(Response::new(()));
    let mut answer = within("a head", answer).await.unwrap().into_body();
    streams::send(&mut body, "late".into(), true).await.unwrap();
    assert_eq!(streams::read(&mut answer).await.unwrap().0, b"late");
}

#[tokio::test]
async fn callers_do_not_notice_a_sidecar_that_drains() {
    let mut mesh = Mesh::new();
    mesh.grace = Duration::from_secs(10);
    mesh.service("orders", &[("balancer.remora.io/algorithm", "round-robin")]);
    let web = mesh.pod("web", "web");
    let pods = [mesh.pod("orders-1", "orders"), mesh.pod("orders-2", "orders")];
    mesh.start_plane().await;
    let (one, two) = (mesh.sidecar(&pods[0], &[]).await, mesh.sidecar(&pods[1], &[]).await);
    let sidecar = mesh.sidecar(&web, &["orders"]).await;
    let serve = |addr| Origin::serve(addr, Speaks::H2, |_| async { Response::new(full("ok")) });
    let origins = [serve(pods[0].app()).await, serve(pods[1].app()).await];
    let mut sender = client(sidecar.entry("orders")).await;
    let mut sent = 0;
    let mut call = async |count: usize| {
        for _ in 0..count {
            let request = Request::post("http://orders/").body(full("order")).unwrap();
            let answer = within("an answer", sender.send_request(request)).await.unwrap();
            assert_eq!(answer.status(), 200, "{answer:?}");
            sent += 1;
        }
    };
    call(10).await;
    one.drain().await;
    call(30).await;
    let counts = origins.each_ref().map(Origin::requests);
    assert_eq!(counts.iter().sum::<usize>(), sent, "each ran once: {counts:?}");
    assert!(counts[1] > counts[0], "{counts:?}");
    drop(two);
}
