//! HTTP/2 with prior knowledge, and gRPC on it, through both proxies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use remora_tests::{
    mesh::Pair,
    origin::{Answer, Body, BodyError, Origin, Speaks, empty, full, h2 as client},
    wait::{eventually, within},
};
use tokio::sync::mpsc;

/// One length-prefixed gRPC message.
fn message(text: &str) -> Bytes {
    let mut out = vec![0];
    out.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
    out.extend(text.as_bytes());
    out.into()
}

/// The texts of gRPC messages.
fn texts(mut bytes: &[u8]) -> Vec<String> {
    let mut out = Vec::new();
    while let [0, a, b, c, d, rest @ ..] = bytes {
        let len = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        out.push(String::from_utf8(rest[..len].to_vec()).unwrap());
        bytes = &rest[len..];
    }
    assert!(bytes.is_empty());
    out
}

fn status(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static(code),
    )])
}

fn frames(messages: Vec<Bytes>, trailers: HeaderMap) -> Body {
    let frames = messages.into_iter().map(Frame::data).chain([Frame::trailers(trailers)]);
    StreamBody::new(stream::iter(frames.map(Ok::<_, BodyError>))).boxed_unsync()
}

fn grpc(body: Body) -> Request<Body> {
    Request::post("http://orders/shop.Orders/Call")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

fn grpc_response(body: Body) -> Response<Body> {
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

/// A body fed by the test.
fn fed() -> (mpsc::Sender<Bytes>, Body) {
    let (feed, fed) = mpsc::channel::<Bytes>(1);
    let frames = stream::unfold(fed, |mut fed| async move {
        fed.recv().await.map(|data| (Ok::<_, BodyError>(Frame::data(data)), fed))
    });
    (feed, StreamBody::new(frames).boxed_unsync())
}

#[tokio::test]
async fn unary_calls_share_one_connection_and_keep_their_trailers() {
    let pair = Pair::start(&[]).await;
    let origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |request| async move {
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(request.uri().path(), "/shop.Orders/Call");
        let asked = request.into_body().collect().await.unwrap().to_bytes();
        let answer = format!("re: {}", texts(&asked)[0]);
        grpc_response(frames(vec![message(&answer)], status("0")))
    })
    .await;
    let sender = client(pair.entry()).await;
    let calls = (0..20).map(|n| {
        let mut sender = sender.clone();
        async move {
            let request = grpc(full(message(&n.to_string())));
            let response = within("an answer", sender.send_request(request)).await.unwrap();
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
            assert_eq!(texts(&body.to_bytes()), [format!("re: {n}")]);
        }
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(origin.requests(), 20);
    let mtls = [("direction", "outbound"), ("tls", "mtls")];
    assert_eq!(pair.client.metric("remora_tcp_connections_total", &mtls).await, 1);
    pair.server.until("remora_inbound_http_requests_total", &[("tls", "mtls")], 20).await;
}

#[tokio::test]
async fn messages_of_a_server_stream_arrive_as_they_are_sent() {
    let pair = Pair::start(&[]).await;
    let (feed, body) = fed();
    let body = Arc::new(std::sync::Mutex::new(Some(body)));
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, move |_| {
        let body = body.lock().unwrap().take().unwrap();
        async move { grpc_response(body) }
    })
    .await;
    let mut sender = client(pair.entry()).await;
    let response = within("a head", sender.send_request(grpc(empty()))).await.unwrap();
    let mut body = response.into_body();
    for n in 0..3 {
        feed.send(message(&n.to_string())).await.unwrap();
        let frame = within("a message", body.frame()).await.unwrap().unwrap();
        assert_eq!(texts(frame.data_ref().unwrap()), [n.to_string()]);
    }
    drop(feed);
    assert!(within("the end", body.collect()).await.unwrap().to_bytes().is_empty());
}

#[tokio::test]
async fn messages_of_a_client_stream_arrive_as_they_are_sent() {
    let pair = Pair::start(&[]).await;
    let (seen, mut arrived) = mpsc::channel::<String>(8);
    let _origin =
        Origin::serve(pair.server.pod.app(), Speaks::H2, move |request: Request<Incoming>| {
            let seen = seen.clone();
            async move {
                let mut body = request.into_body();
                let mut count = 0;
                while let Some(frame) = body.frame().await {
                    for text in texts(frame.unwrap().data_ref().unwrap()) {
                        count += 1;
                        seen.send(text).await.unwrap();
                    }
                }
                grpc_response(frames(vec![message(&count.to_string())], status("0")))
            }
        })
        .await;
    let (feed, body) = fed();
    let mut sender = client(pair.entry()).await;
    let call = tokio::spawn(async move { sender.send_request(grpc(body)).await });
    for n in 0..3 {
        feed.send(message(&n.to_string())).await.unwrap();
        assert_eq!(within("a message", arrived.recv()).await.unwrap(), n.to_string());
    }
    drop(feed);
    let answer = within("the answer", call).await.unwrap().unwrap();
    let body = answer.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(texts(&body.to_bytes()), ["3"]);
}

#[tokio::test]
async fn an_answer_of_trailers_only_stays_one() {
    let pair = Pair::start(&[]).await;
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |_| async {
        let mut response = grpc_response(empty());
        response.headers_mut().extend(status("5"));
        response
    })
    .await;
    let mut sender = client(pair.entry()).await;
    let response = within("a head", sender.send_request(grpc(empty()))).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "5");
    assert!(hyper::body::Body::is_end_stream(response.body()));
}

#[tokio::test]
async fn a_call_that_is_cancelled_is_cancelled_at_the_server() {
    /// Counts its drops: hyper drops a handler whose stream is reset.
    struct Gone(Arc<AtomicUsize>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let pair = Pair::start(&[]).await;
    let gone = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&gone);
    let origin = Origin::serve(pair.server.pod.app(), Speaks::H2, move |request| {
        let guard = Gone(Arc::clone(&counted));
        async move {
            let _guard = guard;
            let _request = request;
            std::future::pending().await
        }
    })
    .await;
    let mut sender = client(pair.entry()).await;
    let call = tokio::spawn(async move {
        let _ = sender.send_request(grpc(empty())).await;
        sender
    });
    eventually("the call", || async { (origin.requests() == 1).then_some(()) }).await;
    assert_eq!(gone.load(Ordering::SeqCst), 0);
    call.abort();
    eventually("its end", || async { (gone.load(Ordering::SeqCst) == 1).then_some(()) }).await;
}

#[tokio::test]
async fn a_body_far_beyond_the_windows_arrives_whole_and_a_slow_reader_holds_it_back() {
    const CHUNK: usize = 64 * 1024;
    const CHUNKS: usize = 160;
    let pair = Pair::start(&[]).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, move |_| {
        let counter = Arc::clone(&counter);
        let chunks = stream::iter(0..CHUNKS).map(move |n| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok::<_, BodyError>(Frame::data(Bytes::from(vec![n as u8; CHUNK])))
        });
        async move { Response::new(StreamBody::new(chunks).boxed_unsync()) }
    })
    .await;
    let mut sender = client(pair.entry()).await;
    let request = Request::get("http://orders/").body(empty()).unwrap();
    let response = within("a head", sender.send_request(request)).await.unwrap();
    // Nothing is read yet: the sender must come to a stop before all is sent.
    let mut last = usize::MAX;
    eventually("the sender to be held back", || {
        let now = sent.load(Ordering::SeqCst);
        let settled = now > 0 && now == last;
        last = now;
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            settled.then_some(())
        }
    })
    .await;
    assert!(sent.load(Ordering::SeqCst) < CHUNKS, "ten megabytes are not buffered");
    let mut body = response.into_body();
    let mut total = 0;
    while let Some(frame) = within("data", body.frame()).await {
        for byte in frame.unwrap().into_data().unwrap() {
            assert_eq!(byte, (total / CHUNK) as u8);
            total += 1;
        }
    }
    assert_eq!(total, CHUNK * CHUNKS);
}

#[tokio::test]
async fn a_stream_that_the_server_refuses_is_sent_again() {
    let pair = Pair::start(&[]).await;
    let listener = tokio::net::TcpListener::bind(pair.server.pod.app()).await.unwrap();
    let refuse_first = async {
        let mut left = 1;
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_request, mut respond))) = connection.accept().await {
                if left > 0 {
                    left -= 1;
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                } else {
                    respond.send_response(Response::new(()), true).unwrap();
                }
            }
        }
    };
    let call = async {
        let request = Request::post("http://orders/").body(empty()).unwrap();
        within("an answer", client(pair.entry()).await.send_request(request)).await.unwrap()
    };
    let answer = tokio::select! {
        answer = call => answer,
        () = refuse_first => unreachable!(),
    };
    assert_eq!(answer.status(), 200, "{answer:?}");
}

#[tokio::test]
async fn a_server_that_says_goaway_loses_no_call() {
    let pair = Pair::start(&[]).await;
    let listener = tokio::net::TcpListener::bind(pair.server.pod.app()).await.unwrap();
    // Each connection answers one call and says GOAWAY while it does.
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
async fn http_2_without_grpc_keeps_statuses_fields_and_authority() {
    let pair = Pair::start(&[]).await;
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |request| async move {
        let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        Response::builder().status(418).header("x-authority", authority).body(full("tea")).unwrap()
    })
    .await;
    let mut sender = client(pair.entry()).await;
    let request = Request::get("http://orders.shop:80/pot").body(empty()).unwrap();
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    let answer = Answer::read(response).await.unwrap();
    assert_eq!((answer.status, answer.text.as_str()), (418, "tea"));
    assert_eq!(answer.headers["x-authority"], "orders.shop:80");
}

#[tokio::test]
async fn grpc_callers_learn_in_grpc_that_there_is_no_endpoint() {
    let mut mesh = remora_tests::mesh::Mesh::new();
    mesh.service("orders", &[]);
    let web = mesh.pod("web", "web");
    mesh.start_plane().await;
    let sidecar = mesh.sidecar(&web, &["orders"]).await;
    let mut sender = client(sidecar.entry("orders")).await;
    let response = within("an answer", sender.send_request(grpc(empty()))).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["remora-proxy-error"], "no-endpoints");
}

#[tokio::test]
async fn a_server_that_dies_under_a_call_is_a_reset_not_a_hang() {
    let pair = Pair::start(&[]).await;
    let origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |_| std::future::pending()).await;
    let mut sender = client(pair.entry()).await;
    let call = tokio::spawn(async move { sender.send_request(grpc(empty())).await });
    eventually("the call", || async { (origin.requests() == 1).then_some(()) }).await;
    drop(origin);
    let response = within("the end", call).await.unwrap().unwrap();
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["remora-proxy-error"], "upstream-reset");
}

#[tokio::test]
async fn an_upload_far_beyond_the_windows_arrives_whole() {
    let pair = Pair::start(&[]).await;
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
        Response::new(full(format!("{} {sum}", body.len())))
    })
    .await;
    let data: Vec<u8> = (0..5_000_000u32).map(|n| (n >> 3) as u8).collect();
    let sum: u64 = data.iter().map(|byte| u64::from(*byte)).sum();
    let expected = format!("{} {sum}", data.len());
    let mut sender = client(pair.entry()).await;
    let request = Request::post("http://orders/").body(full(data)).unwrap();
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    assert_eq!(Answer::read(response).await.unwrap().text, expected);
}

#[tokio::test]
async fn a_code_that_the_owner_names_is_retried() {
    let pair = Pair::start(&[("retry.remora.io/grpc", "14")]).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, move |_| {
        let code = if counter.fetch_add(1, Ordering::SeqCst) == 0 { "14" } else { "0" };
        async move {
            let mut response = grpc_response(empty());
            response.headers_mut().extend(status(code));
            response
        }
    })
    .await;
    let mut sender = client(pair.entry()).await;
    let request = grpc(full(message("order")));
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "0");
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_head_beyond_the_limit_is_answered_431_and_the_connection_goes_on() {
    let pair = Pair::start(&[]).await;
    let origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |_| async {
        Response::new(full("hello"))
    })
    .await;
    let mut sender = client(pair.entry()).await;
    let large = "x".repeat(16_000);
    let mut request = Request::get("http://orders/").body(empty()).unwrap();
    for name in ["x-a", "x-b", "x-c", "x-d", "x-e"] {
        request.headers_mut().insert(name, large.parse().unwrap());
    }
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    assert_eq!((response.status().as_u16(), origin.requests()), (431, 0));
    let request = Request::get("http://orders/").body(empty()).unwrap();
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 200);
}
