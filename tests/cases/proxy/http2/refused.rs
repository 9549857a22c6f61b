//! Requests that are not forwarded: too large, malformed, or such that the application could
//! understand them differently.

use http::{HeaderName, HeaderValue, Request, Response};
use remora_tests::{
    frames::{END_HEADERS, END_STREAM, Frame, Frames, block, kind},
    mesh::{Mesh, Pair},
    origin::{Answer, Body, Origin, Speaks, empty, full, h2 as client},
    streams::{self, App},
    wait::within,
    wire,
};

const PROTOCOL_ERROR: u32 = 1;

async fn hello(pair: &Pair) -> Origin {
    Origin::serve(pair.server.pod.app(), Speaks::H2, |_| async { Response::new(full("hello")) })
        .await
}

fn with_fields(count: usize, value: &str) -> Request<Body> {
    let mut request = Request::get("http://orders/").body(empty()).unwrap();
    for n in 0..count {
        let name = HeaderName::try_from(format!("x-{n}")).unwrap();
        request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
    }
    request
}

#[tokio::test]
async fn a_head_beyond_the_limit_is_answered_with_the_reason_and_the_connection_goes_on() {
    let pair = Pair::start(&[]).await;
    let origin = hello(&pair).await;
    let mut sender = client(pair.entry()).await;
    let mut long = with_fields(1, &"x".repeat(100));
    *long.uri_mut() = format!("http://orders/{}", "x".repeat(65_450)).parse().unwrap();
    for (request, status) in
        [(with_fields(5, &"x".repeat(14_000)), 431), (with_fields(257, ""), 431), (long, 414)]
    {
        let response = within("an answer", sender.send_request(request)).await.unwrap();
        let answer = Answer::read(response).await.unwrap();
        assert_eq!(
            (answer.status, answer.reason()),
            (status, Some("header-too-large")),
            "{answer:?}"
        );
    }
    assert_eq!(origin.requests(), 0);
    let reason = [("direction", "outbound"), ("reason", "header-too-large")];
    assert_eq!(pair.client.metric("remora_proxy_errors_total", &reason).await, 3);
    let response = within("an answer", sender.send_request(with_fields(255, "x"))).await.unwrap();
    assert_eq!(response.status(), 200);
}

/// So large that the codec does not even look at it, and does not say why.
#[tokio::test]
async fn a_head_far_beyond_the_limit_is_answered_431_and_the_connection_goes_on() {
    let pair = Pair::start(&[]).await;
    let origin = hello(&pair).await;
    let mut sender = client(pair.entry()).await;
    let request = with_fields(10, &"x".repeat(14_000));
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    assert_eq!((response.status().as_u16(), origin.requests()), (431, 0));
    let response = within("an answer", sender.send_request(with_fields(1, ""))).await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn the_limit_is_the_workloads_own() {
    for (limit, fits, exceeds) in [("8Ki", 7_000, 9_000), ("256Ki", 200_000, 270_000)] {
        let mut mesh = Mesh::new();
        mesh.max_header_size = limit.parse().unwrap();
        let pair = Pair::in_mesh(mesh, &[]).await;
        let _origin = hello(&pair).await;
        let mut sender = client(pair.entry()).await;
        for (length, status) in [(fits, 200), (exceeds, 431), (fits, 200)] {
            // In pieces: a frame is not so long.
            let request = with_fields(length / 1_000, &"x".repeat(990));
            let response = within("an answer", sender.send_request(request)).await.unwrap();
            let answer = Answer::read(response).await.unwrap();
            let reason = (status == 431).then_some("header-too-large");
            assert_eq!((answer.status, answer.reason()), (status, reason), "{limit}");
        }
    }
}

/// What the outbound proxy lets pass, the inbound one does, although more was added.
#[tokio::test]
async fn a_head_just_within_the_limit_passes_both_proxies() {
    let pair = Pair::start(&[("retry.remora.io/http", "503")]).await;
    let attempts = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, move |_| {
        let first = attempts.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
        let status = if first { 503 } else { 200 };
        async move { Response::builder().status(status).body(empty()).unwrap() }
    })
    .await;
    // "/" and "orders", and five fields of "x-0", ": " and a line's end around their values.
    let mut request = with_fields(5, &"x".repeat(13_000));
    let left = 65_536 - 1 - 6 - 5 * (13_000 + 7) - 7;
    request.headers_mut().insert("x-r", HeaderValue::try_from("x".repeat(left)).unwrap());
    let mut sender = client(pair.entry()).await;
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 200, "{response:?}");
}

#[tokio::test]
async fn grpc_callers_learn_in_grpc_that_their_metadata_is_too_large() {
    let pair = Pair::start(&[]).await;
    let _origin = hello(&pair).await;
    let mut sender = client(pair.entry()).await;
    let mut request = with_fields(5, &"x".repeat(14_000));
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["grpc-status"]),
        (200, &"8".parse().unwrap())
    );
    assert_eq!(response.headers()["remora-proxy-error"], "header-too-large");
}

type Fields = &'static [(&'static str, &'static [u8])];

const METHOD: (&str, &[u8]) = (":method", b"POST");
const SCHEME: (&str, &[u8]) = (":scheme", b"http");
const PATH: (&str, &[u8]) = (":path", b"/");
const AUTHORITY: (&str, &[u8]) = (":authority", b"orders");

/// Heads that RFC 9113 calls malformed (§8.1 to §8.5), or that could be understood differently; each
/// in an otherwise fine request.
const MALFORMED: [(&str, Fields); 27] = [
    ("no method", &[SCHEME, PATH, AUTHORITY]),
    ("no scheme", &[METHOD, PATH, AUTHORITY]),
    ("no path", &[METHOD, SCHEME, AUTHORITY]),
    ("no path and no authority", &[METHOD, SCHEME]),
    ("empty path", &[METHOD, SCHEME, (":path", b""), AUTHORITY]),
    ("path that is none", &[METHOD, SCHEME, (":path", b"a b"), AUTHORITY]),
    ("path with a line", &[METHOD, SCHEME, (":path", b"/ HTTP/1.1\r\nX: y"), AUTHORITY]),
    ("two paths", &[METHOD, SCHEME, PATH, (":path", b"/other"), AUTHORITY]),
    ("two methods", &[METHOD, (":method", b"GET"), SCHEME, PATH, AUTHORITY]),
    ("method that is none", &[(":method", b"GET /x"), SCHEME, PATH, AUTHORITY]),
    ("status", &[METHOD, SCHEME, PATH, AUTHORITY, (":status", b"200")]),
    ("unknown pseudo field", &[METHOD, SCHEME, PATH, AUTHORITY, (":what", b"x")]),
    ("late pseudo field", &[METHOD, SCHEME, PATH, ("x", b"y"), AUTHORITY]),
    ("authority with a user", &[METHOD, SCHEME, PATH, (":authority", b"me@orders")]),
    ("authority with a line", &[METHOD, SCHEME, PATH, (":authority", b"a\r\nX: y")]),
    ("another host", &[METHOD, SCHEME, PATH, AUTHORITY, ("host", b"billing")]),
    ("two hosts", &[METHOD, SCHEME, PATH, ("host", b"orders"), ("host", b"billing")]),
    ("upper case", &[METHOD, SCHEME, PATH, AUTHORITY, ("X-Upper", b"1")]),
    ("name with a colon", &[METHOD, SCHEME, PATH, AUTHORITY, ("x: y\r\nz", b"1")]),
    ("connection", &[METHOD, SCHEME, PATH, AUTHORITY, ("connection", b"close")]),
    ("transfer-encoding", &[METHOD, SCHEME, PATH, AUTHORITY, ("transfer-encoding", b"chunked")]),
    ("te", &[METHOD, SCHEME, PATH, AUTHORITY, ("te", b"gzip")]),
    ("CR in a value", &[METHOD, SCHEME, PATH, AUTHORITY, ("x", b"a\rb")]),
    ("LF in a value", &[METHOD, SCHEME, PATH, AUTHORITY, ("x", b"a\nhost: b")]),
    ("NUL in a value", &[METHOD, SCHEME, PATH, AUTHORITY, ("x", b"a\0b")]),
    ("length that is none", &[METHOD, SCHEME, PATH, AUTHORITY, ("content-length", b"+4")]),
    (
        "two lengths",
        &[METHOD, SCHEME, PATH, AUTHORITY, ("content-length", b"4"), ("content-length", b"4")],
    ),
];

/// Each of them gets an error of its stream or 400, at one proxy as at the other, and the application
/// none of it.
async fn all_are_refused(entry: std::net::SocketAddr, app: &wire::App) {
    for (what, fields) in MALFORMED {
        let mut frames = Frames::dial(entry).await;
        frames.ask(&block(fields), b"body").await;
        let answer: Frame = frames.next().await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let refused = match answer.kind {
            kind::RST_STREAM => answer.code() == PROTOCOL_ERROR,
            kind::GOAWAY => true,
            _ => answer.is_status(400),
        };
        assert!(refused, "{what}: {answer:?}");
        assert!(!app.has_caller().await, "{what} reached the application");
    }
}

#[tokio::test]
async fn what_is_malformed_is_refused_on_the_way_out() {
    let pair = Pair::start(&[]).await;
    let app = wire::App::listen(pair.server.pod.app()).await;
    all_are_refused(pair.entry(), &app).await;
}

#[tokio::test]
async fn what_is_malformed_is_refused_on_the_way_in() {
    let pair = Pair::start(&[]).await;
    let app = wire::App::listen(pair.server.pod.app()).await;
    all_are_refused(pair.server.pod.address(), &app).await;
}

/// The head has left already, so the application must see that what it has is not all.
#[tokio::test]
async fn content_of_another_length_than_promised_is_never_passed_off_as_whole() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    for body in [&b"bo"[..], b"body and more"] {
        let mut frames = Frames::dial(pair.entry()).await;
        let head = [METHOD, SCHEME, PATH, AUTHORITY, ("content-length", b"8")];
        frames.send(kind::HEADERS, END_HEADERS, 1, &block(&head)).await;
        let mut call = app.call().await;
        frames.send(kind::DATA, END_STREAM, 1, body).await;
        let broken = streams::read(call.request.body_mut()).await;
        assert!(broken.is_err(), "{broken:?}");
        assert_eq!(frames.next().await.unwrap().code(), PROTOCOL_ERROR);
    }
}

#[tokio::test]
async fn a_pseudo_field_in_trailers_goes_no_further() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut frames = Frames::dial(pair.entry()).await;
    let head = block(&[METHOD, SCHEME, PATH, AUTHORITY]);
    frames.send(kind::HEADERS, END_HEADERS, 1, &head).await;
    let mut call = app.call().await;
    frames.send(kind::HEADERS, END_HEADERS | END_STREAM, 1, &block(&[(":path", b"/other")])).await;
    let (body, trailers) = streams::read(call.request.body_mut()).await.unwrap();
    assert!(body.is_empty() && trailers.is_none_or(|trailers| trailers.is_empty()));
    assert_eq!(call.request.uri().path(), "/");
}
