use std::time::Duration;

use http::Request;
use http_body_util::Full;
use remora_proto::v1 as pb;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::testing::{App, SOON, Says, World, app};
use super::*;
use pb::filter::Kind;

const ANSWERED: usize = 0;
const FAILED: usize = 1;
const TOO_LARGE: usize = 2;

fn to(name: &str, weight: u32) -> pb::WeightedBackend {
    pb::WeightedBackend {
        weight,
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        port: 80,
        ..Default::default()
    }
}

fn route(backends: Vec<pb::WeightedBackend>) -> pb::Route {
    pb::Route { name: "shop/orders/0".to_owned(), backends, ..Default::default() }
}

fn with_filter(kind: Kind) -> pb::Route {
    pb::Route { filters: vec![pb::Filter { kind: Some(kind) }], ..route(vec![]) }
}

fn header(name: &str, value: &str) -> pb::Header {
    pb::Header { name: name.to_owned(), value: value.to_owned() }
}

fn on_header(name: &str, value: &str) -> Vec<pb::RouteMatch> {
    let header = pb::HeaderMatch { name: name.to_owned(), value: value.to_owned(), regex: false };
    vec![pb::RouteMatch { headers: vec![header], ..Default::default() }]
}

fn millis(millis: i32) -> prost_types::Duration {
    prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 }
}

fn get(uri: &str) -> Request<Full<Bytes>> {
    Request::get(uri).body(Full::default()).unwrap()
}

fn says(answer: &str, line: &str) -> bool {
    answer.to_ascii_lowercase().contains(&line.to_ascii_lowercase())
}

async fn apps() -> (App, App) {
    tokio::join!(app("v1", Says::Status(200)), app("v2", Says::Status(200)))
}

#[tokio::test]
async fn a_request_goes_to_the_backend_of_the_first_route_that_matches() {
    let (v1, v2) = apps().await;
    let world = World::new();
    world.backend("v1", &[&v1]);
    world.backend("v2", &[&v2]);
    let canary = pb::Route { matches: on_header("x-canary", "yes"), ..route(vec![to("v2", 1)]) };
    world.orders(&[], vec![canary, route(vec![to("v1", 1), to("v2", 0)])]);
    assert!(world.get("/", "X-Canary: yes\r\n").await.ends_with("v2"));
    assert!(world.get("/", "").await.ends_with("v1"));
    assert_eq!(world.h2(get("http://orders/")).await.body(), "v1");
}

#[tokio::test]
async fn what_no_route_matches_is_404_and_a_bad_backend_500() {
    let world = World::new();
    let invalid = pb::WeightedBackend { invalid: "not permitted".to_owned(), ..to("v1", 1) };
    let bad = pb::Route { matches: on_header("x-bad", "1"), ..route(vec![invalid]) };
    let empty = pb::Route { matches: on_header("x-none", "1"), no_backend: true, ..route(vec![]) };
    world.orders(&[], vec![bad, empty]);
    for (lines, status, text) in [
        ("", "404 Not Found", "no route"),
        ("X-Bad: 1\r\n", "500 Internal Server Error", "not permitted"),
        ("X-None: 1\r\n", "500 Internal Server Error", "no backend"),
    ] {
        let answer = world.get("/", lines).await;
        assert!(says(&answer, &format!("HTTP/1.1 {status}")), "{answer}");
        assert!(says(&answer, "remora-proxy-error: no-route") && says(&answer, text), "{answer}");
    }
    let request = Request::post("http://orders/a.B/c")
        .header("content-type", "application/grpc")
        .body(Full::default())
        .unwrap();
    let answer = world.h2(request).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["grpc-status"], "12");
    let failed = world.outbound.decisions.newest_first(Instant::now());
    let routes: Vec<_> = failed.iter().rev().map(|f| f.decision.route.as_deref()).collect();
    assert_eq!(routes, [None, Some("shop/orders/0"), Some("shop/orders/0"), None]);
}

#[tokio::test]
async fn requests_and_responses_are_changed_on_the_way() {
    let (mut v1, _) = apps().await;
    let world = World::new();
    let modifier = |set: &str| pb::HeaderModifier {
        set: vec![header(set, "new")],
        remove: vec!["x-gone".to_owned(), "x-app".to_owned()],
        ..Default::default()
    };
    let prefix = pb::path_modifier::Kind::ReplacePrefix("/new".to_owned());
    let rewrite = pb::UrlRewrite {
        hostname: "inner.example".to_owned(),
        path: Some(pb::PathModifier { kind: Some(prefix) }),
    };
    let filter = |kind| pb::Filter { kind: Some(kind) };
    let path = pb::route_match::Path::PathPrefix("/old".to_owned());
    let backend = pb::WeightedBackend {
        filters: vec![filter(Kind::RequestHeaders(modifier("x-backend")))],
        ..to("orders", 1)
    };
    let changed = pb::Route {
        matches: vec![pb::RouteMatch { path: Some(path), ..Default::default() }],
        filters: vec![
            filter(Kind::RequestHeaders(modifier("x-request"))),
            filter(Kind::ResponseHeaders(modifier("x-response"))),
            filter(Kind::Rewrite(rewrite)),
        ],
        ..route(vec![backend])
    };
    world.orders(&[&v1], vec![changed]);
    let answer = world.get("/old/a?b=c", "X-Gone: 1\r\nX-Stays: 2\r\n").await;
    assert!(says(&answer, "x-response: new") && !says(&answer, "x-app"), "{answer}");
    let check = |got: &super::super::testing::Got, target: &str| {
        assert_eq!(got.head.uri.path_and_query().unwrap(), target);
        assert_eq!(got.field("x-request"), Some("new"));
        assert_eq!(got.field("x-backend"), Some("new"));
        assert_eq!(got.field("x-gone"), None);
        let host = got.head.uri.authority().map(|a| a.as_str()).or(got.field("host"));
        assert_eq!(host, Some("inner.example"));
    };
    let got = v1.next().await;
    check(&got, "/new/a?b=c");
    assert_eq!(got.field("x-stays"), Some("2"));
    let mut request = get("http://orders/old/?d");
    request.headers_mut().insert("x-gone", "1".parse().unwrap());
    let answer = world.h2(request).await;
    assert_eq!(answer.headers()["x-response"], "new");
    check(&v1.next().await, "/new/?d");
}

#[tokio::test]
async fn a_redirect_is_answered_in_the_place_of_a_backend() {
    let world = World::new();
    let redirect = pb::Redirect {
        scheme: "https".to_owned(),
        hostname: "example.org".to_owned(),
        status: 308,
        ..Default::default()
    };
    world.orders(&[], vec![with_filter(Kind::Redirect(redirect))]);
    let answer = world.get("/a?b", "").await;
    assert!(says(&answer, "HTTP/1.1 308 Permanent Redirect"), "{answer}");
    assert!(says(&answer, "location: https://example.org/a?b"), "{answer}");
    assert!(!says(&answer, "remora-proxy-error"), "{answer}");
    let answer = world.h2(get("http://orders:8080/a")).await;
    assert_eq!(answer.status(), 308);
    assert_eq!(answer.headers()["location"], "https://example.org/a");
}

#[tokio::test]
async fn a_preflight_is_answered_and_what_follows_is_shared() {
    let (v1, _) = apps().await;
    let world = World::new();
    let cors = pb::Cors {
        allow_origins: vec!["https://a.example".to_owned()],
        allow_methods: vec!["PUT".to_owned()],
        ..Default::default()
    };
    world.orders(&[&v1], vec![with_filter(Kind::Cors(cors))]);
    let preflight = "OPTIONS / HTTP/1.1\r\nHost: orders\r\nOrigin: https://a.example\r\n\
                     Access-Control-Request-Method: PUT\r\nConnection: close\r\n\r\n";
    let answer = world.h1(preflight).await;
    assert!(says(&answer, "HTTP/1.1 204 No Content\r\n"), "{answer}");
    assert!(says(&answer, "access-control-allow-methods: PUT"), "{answer}");
    assert!(!says(&answer, "content-length") && !says(&answer, "x-app"), "{answer}");
    let answer = world.get("/", "Origin: https://a.example\r\n").await;
    assert!(says(&answer, "access-control-allow-origin: https://a.example"), "{answer}");
    assert!(says(&answer, "x-app: v1"), "{answer}");
    let answer = world.get("/", "Origin: https://b.example\r\n").await;
    assert!(!says(&answer, "access-control-allow-origin"), "{answer}");
}

#[tokio::test]
async fn a_fault_refuses_and_says_that_it_was_meant() {
    let world = World::new();
    let fault = pb::Fault { abort_http: 503, abort_share: 1.0, ..Default::default() };
    world.orders(&[], vec![pb::Route { fault: Some(fault), ..route(vec![]) }]);
    let answer = world.get("/", "").await;
    assert!(says(&answer, "HTTP/1.1 503 ") && says(&answer, "remora-fault: abort"), "{answer}");
    assert!(!says(&answer, "remora-proxy-error"), "{answer}");
    let request = Request::post("http://orders/a.B/c")
        .header("content-type", "application/grpc")
        .body(Full::default())
        .unwrap();
    let answer = world.h2(request).await;
    assert_eq!(answer.headers()["grpc-status"], "14");
    assert_eq!(answer.headers()["remora-fault"], "abort");
    assert_eq!(world.route_traffic().aborted.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_request_that_is_held_up_beyond_its_time_is_answered_in_time() {
    let world = World::new();
    let delay = Some(prost_types::Duration { seconds: 200, nanos: 0 });
    let fault = pb::Fault { delay, delay_share: 1.0, ..Default::default() };
    let timeouts = pb::TimeoutPolicy { request: Some(millis(20)), ..Default::default() };
    let slow = pb::Route { fault: Some(fault), timeouts: Some(timeouts), ..route(vec![]) };
    world.orders(&[], vec![slow]);
    let answer = world.get("/", "").await;
    assert!(says(&answer, "HTTP/1.1 504 ") && says(&answer, "request-timeout"), "{answer}");
    assert_eq!(world.route_traffic().delayed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_attempt_ends_with_its_own_time_and_is_retried() {
    let (silent, v1) = tokio::join!(app("silent", Says::Nothing), app("v1", Says::Status(200)));
    let world = World::new();
    world.backend("silent", &[&silent]);
    let timeouts = pb::TimeoutPolicy { backend_request: Some(millis(30)), ..Default::default() };
    let retry = pb::RetryPolicy { limit: 1, unanswered: true, ..Default::default() };
    let timed =
        |retry| pb::Route { timeouts: Some(timeouts), retry, ..route(vec![to("silent", 1)]) };
    world.orders(&[], vec![timed(None)]);
    let answer = world.get("/", "").await;
    assert!(says(&answer, "HTTP/1.1 504 ") && says(&answer, "response-timeout"), "{answer}");
    // One of two answers: whichever is tried first, the client gets its answer.
    world.backend("silent", &[&silent, &v1]);
    world.orders(&[], vec![timed(Some(retry))]);
    for _ in 0..4 {
        assert!(world.get("/", "").await.ends_with("v1"));
    }
}

#[tokio::test]
async fn the_time_of_an_attempt_ends_with_its_response() {
    let half = app("half", Says::Half).await;
    let world = World::new();
    let timeouts = pb::TimeoutPolicy { backend_request: Some(millis(50)), ..Default::default() };
    world.orders(&[&half], vec![pb::Route { timeouts: Some(timeouts), ..route(vec![]) }]);
    let answer = world.get("/", "").await;
    assert!(answer.ends_with("half."), "what came is given, and then it breaks: {answer}");
}

#[tokio::test]
async fn a_copy_goes_to_the_mirror_and_the_request_does_not_notice() {
    let (mut v1, mut copy) = apps().await;
    let world = World::new();
    world.backend("copy", &[&copy]);
    let mirror = pb::Mirror { backend: Some(to("copy", 1)), numerator: 0, denominator: 0 };
    let set = pb::HeaderModifier { set: vec![header("x-set", "1")], ..Default::default() };
    let filters = [Kind::RequestHeaders(set), Kind::Mirror(mirror)];
    let filters = filters.map(|kind| pb::Filter { kind: Some(kind) }).into();
    world.orders(&[&v1], vec![pb::Route { filters, ..route(vec![]) }]);
    let post = "POST /a?b HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\
                Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert!(world.h1(post).await.ends_with("v1"));
    for app in [&mut v1, &mut copy] {
        let got = app.next().await;
        assert_eq!((got.head.uri.to_string().as_str(), &got.body[..]), ("/a?b", &b"abc"[..]));
        assert_eq!((got.field("host"), got.field("x-set")), (Some("orders"), Some("1")));
    }
    world.mirrored(ANSWERED, 1).await;
    let request = Request::post("http://orders/c").body(Full::from("defg")).unwrap();
    assert_eq!(world.h2(request).await.body(), "v1");
    for app in [&mut v1, &mut copy] {
        let got = app.next().await;
        assert_eq!((got.head.uri.path(), &got.body[..]), ("/c", &b"defg"[..]));
    }
    world.mirrored(ANSWERED, 2).await;
}

#[tokio::test]
async fn each_of_several_mirrors_gets_the_whole_body() {
    let (v1, copy) = apps().await;
    let world = World::new();
    world.backend("copy", &[&copy]);
    let mirror = || {
        let backend = Some(to("copy", 1));
        Kind::Mirror(pb::Mirror { backend, numerator: 0, denominator: 0 })
    };
    let filters = [mirror(), mirror(), mirror()].map(|kind| pb::Filter { kind: Some(kind) }).into();
    world.orders(&[&v1], vec![pb::Route { filters, ..route(vec![]) }]);
    let request = Request::post("http://orders/c").body(Full::from("defg")).unwrap();
    assert_eq!(world.h2(request).await.body(), "v1");
    world.mirrored(ANSWERED, 3).await;
    let post =
        "POST / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc";
    assert!(world.h1(post).await.ends_with("v1"));
    world.mirrored(ANSWERED, 6).await;
}

#[tokio::test]
async fn a_mirror_that_is_gone_or_a_body_that_is_too_long_is_counted_and_nothing_else() {
    let (v1, copy) = apps().await;
    let world = World::new();
    world.backend("copy", &[]);
    let mirror = pb::Mirror { backend: Some(to("copy", 1)), numerator: 1, denominator: 1 };
    let mirrored = || vec![with_filter(Kind::Mirror(mirror.clone()))];
    world.orders(&[&v1], mirrored());
    assert!(world.get("/", "").await.ends_with("v1"));
    world.mirrored(FAILED, 1).await;
    world.backend("copy", &[&copy]);
    let body = "x".repeat(crate::http::MAX_KEPT + 1);
    let length = body.len();
    let post = format!(
        "POST / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    assert!(world.h1(&(post + &body)).await.ends_with("v1"));
    world.mirrored(TOO_LARGE, 1).await;
    let request = Request::post("http://orders/").body(Full::from(body)).unwrap();
    assert_eq!(world.h2(request).await.body(), "v1");
    world.mirrored(TOO_LARGE, 2).await;
}

#[tokio::test]
async fn a_session_stays_at_its_endpoint_even_where_the_weight_is_zero_now() {
    let (v1, v2) = apps().await;
    let world = World::new();
    world.backend("v1", &[&v1]);
    world.backend("v2", &[&v2]);
    let by = pb::session_affinity::By::Header(pb::AffinityHeader { name: "x-session".to_owned() });
    let split = |first, second| pb::Route {
        affinity: Some(pb::SessionAffinity { by: Some(by.clone()) }),
        ..route(vec![to("v1", first), to("v2", second)])
    };
    world.orders(&[], vec![split(1, 0)]);
    let answer = world.h2(get("http://orders/")).await;
    assert_eq!(answer.body(), "v1");
    let session = answer.headers()["x-session"].to_str().unwrap().to_owned();
    world.orders(&[], vec![split(0, 1)]);
    assert_eq!(world.h2(get("http://orders/")).await.body(), "v2");
    let answer = world.get("/", &format!("X-Session: {session}\r\n")).await;
    assert!(answer.ends_with("v1") && says(&answer, &format!("x-session: {session}")), "{answer}");
}

/// A ClientHello for a name.
fn hello(name: &'static str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// An application that says its name to whoever says anything.
async fn speaker(name: &'static str) -> App {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 4096]).await;
            socket.write_all(name.as_bytes()).await.unwrap();
        }
    });
    let (got, says) =
        (tokio::sync::mpsc::channel(1).1, tokio::sync::watch::channel(Says::Nothing).0);
    App { address, got, says }
}

#[tokio::test]
async fn a_connection_goes_by_the_name_that_it_asks_for_and_without_one_nowhere() {
    let (a, b) = tokio::join!(speaker("a"), speaker("b"));
    let world = World::new();
    world.backend("a", &[&a]);
    world.backend("b", &[&b]);
    let to_name = |names: &[&str], backend| pb::StreamRoute {
        name: format!("shop/tls/{backend}"),
        server_names: names.iter().map(|name| (*name).to_owned()).collect(),
        backends: vec![to(backend, 1)],
        no_backend: false,
    };
    let stream_routes = vec![to_name(&["a.example"], "a"), to_name(&["*.b.example"], "b")];
    let orders = pb::Service {
        namespace: "shop".to_owned(),
        name: "orders".to_owned(),
        port: 80,
        stream_routes,
        protocol: pb::Protocol::Tls.into(),
        ..Default::default()
    };
    world.tell("orders.shop:80", orders);
    let ask = async |bytes: Vec<u8>| {
        let mut client = world.connect().await;
        client.write_all(&bytes).await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(SOON, client.read_to_string(&mut answer)).await.unwrap();
        read.map(|_| answer).ok()
    };
    assert_eq!(ask(hello("a.example")).await.as_deref(), Some("a"));
    assert_eq!(ask(hello("x.b.example")).await.as_deref(), Some("b"));
    assert_eq!(ask(hello("c.example")).await, None, "a reset");
    assert_eq!(ask(b"GET / HTTP/1.1\r\n\r\n".to_vec()).await, None, "it asks for no name");
}

#[tokio::test]
async fn routes_for_bytes_alone_carry_http_as_bytes() {
    let a = speaker("a").await;
    let world = World::new();
    world.backend("a", &[&a]);
    let all = pb::StreamRoute { backends: vec![to("a", 1)], ..Default::default() };
    let orders = pb::Service {
        namespace: "shop".to_owned(),
        name: "orders".to_owned(),
        port: 80,
        stream_routes: vec![all],
        ..Default::default()
    };
    world.tell("orders.shop:80", orders);
    assert_eq!(world.get("/", "").await, "a");
}

#[tokio::test]
async fn a_client_that_goes_while_it_is_held_up_frees_its_place() {
    let world = World::new();
    let delay = Some(prost_types::Duration { seconds: 200, nanos: 0 });
    let fault = pb::Fault { delay, delay_share: 1.0, ..Default::default() };
    world.orders(&[], vec![pb::Route { fault: Some(fault), ..route(vec![]) }]);
    let mut client = world.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
    let traffic = world.route_traffic();
    let waited = async {
        while traffic.delayed.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        while world.outbound.admission.open() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, waited).await.unwrap();
}
