//! Fields, and frames that mean nothing to a proxy, on their way.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use remora_tests::{
    frames::{END_HEADERS, END_STREAM, Frames, block, kind},
    mesh::Pair,
    origin::{Answer, Origin, Speaks, empty, full, h2 as client},
    streams::{self, App},
    wait::within,
};

fn values<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

#[tokio::test]
async fn status_authority_and_path_arrive_as_they_were_sent() {
    let pair = Pair::start(&[]).await;
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |request| async move {
        let uri = request.uri().to_string();
        Response::builder().status(418).header("x-uri", uri).body(full("tea")).unwrap()
    })
    .await;
    let mut sender = client(pair.entry()).await;
    for uri in [
        "http://orders.shop:80/pot",
        "https://orders/%2e%2E/a//b/./c;d?e=f&&g?h",
        "http://anything.at.all/?",
        "http://[::1]:81/",
    ] {
        let request = Request::get(uri).body(empty()).unwrap();
        let response = within("an answer", sender.send_request(request)).await.unwrap();
        let answer = Answer::read(response).await.unwrap();
        assert_eq!((answer.status, answer.text.as_str()), (418, "tea"));
        assert_eq!(answer.headers["x-uri"], uri);
    }
}

#[tokio::test]
async fn fields_arrive_as_often_as_they_were_sent() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let request = Request::get("http://orders/")
        .header("x-many", "1")
        .header("x-other", "")
        .header("x-many", "2")
        // Crumbs of a cookie (RFC 9113 §8.2.3).
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .header("priority", "u=1, i")
        .header("x-high", HeaderValue::from_bytes(b"caf\xe9").unwrap());
    let answer = streams::ask(&mut sender, request.body(()).unwrap());
    let mut call = app.call().await;
    let headers = call.request.headers();
    assert_eq!(values(headers, "x-many"), ["1", "2"]);
    assert_eq!(values(headers, "cookie"), ["a=1", "b=2"]);
    assert_eq!(
        (headers["te"].as_bytes(), headers["x-other"].as_bytes()),
        (&b"trailers"[..], &b""[..])
    );
    assert_eq!(headers["priority"], "u=1, i");
    assert_eq!(headers["x-high"].as_bytes(), b"caf\xe9");
    let response = Response::builder()
        .header("set-cookie", "a=1")
        .header("set-cookie", "b=2")
        .header("priority", "u=3");
    call.answer(response.body(()).unwrap());
    let answer = within("an answer", answer).await.unwrap();
    assert_eq!(values(answer.headers(), "set-cookie"), ["a=1", "b=2"]);
    assert_eq!(answer.headers()["priority"], "u=3");
    assert!(!answer.headers().contains_key("date"), "{answer:?}");
}

/// A hundred times over what goes into one frame.
#[tokio::test]
async fn heads_of_many_frames_arrive_whole_both_ways() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let large = |headers: &mut HeaderMap| {
        for n in 0..100 {
            let name = HeaderName::try_from(format!("x-{n}")).unwrap();
            headers.insert(name, HeaderValue::try_from("v".repeat(550 + n)).unwrap());
        }
    };
    let mut request = Request::get("http://orders/").body(()).unwrap();
    large(request.headers_mut());
    let answer = streams::ask(&mut sender, request);
    let mut call = app.call().await;
    let mut expected = HeaderMap::new();
    large(&mut expected);
    let mut got = call.request.headers().clone();
    got.remove("remora-client-id").unwrap();
    assert!(got == expected);
    let mut response = Response::new(());
    large(response.headers_mut());
    let mut body = call.begin(response);
    body.send_trailers(expected.clone()).unwrap();
    let answer = within("an answer", answer).await.unwrap();
    assert!(*answer.headers() == expected);
    let (_, trailers) = streams::read(&mut answer.into_body()).await.unwrap();
    assert!(trailers.unwrap() == expected);
}

#[tokio::test]
async fn trailers_travel_both_ways_without_what_only_proxies_say() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let mut sent = streams::open(&mut sender, Request::post("http://orders/").body(()).unwrap());
    let field = |name: &'static str| (HeaderName::from_static(name), HeaderValue::from_static("7"));
    let trailers = HeaderMap::from_iter([field("x-sum"), field("remora-proxy-error")]);
    sent.body.send_data("body".into(), false).unwrap();
    sent.body.send_trailers(trailers.clone()).unwrap();
    let mut call = app.call().await;
    let wanted = Some(HeaderMap::from_iter([field("x-sum")]));
    let (body, got) = streams::read(call.request.body_mut()).await.unwrap();
    assert_eq!((body.as_slice(), got), (&b"body"[..], wanted.clone()));
    let mut body = call.begin(Response::new(()));
    body.send_trailers(trailers).unwrap();
    let answer = within("an answer", sent.answer).await.unwrap();
    let (body, got) = streams::read(&mut answer.into_body()).await.unwrap();
    assert_eq!((body.as_slice(), got), (&b""[..], wanted));
}

/// As curl and browsers do not, but proxies of HTTP/1 do (RFC 9113 §8.3.1).
#[tokio::test]
async fn a_request_without_authority_keeps_its_host_and_gets_none() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut frames = Frames::dial(pair.entry()).await;
    let head = [
        (":method", &b"GET"[..]),
        (":scheme", b"http"),
        (":path", b"/a?b"),
        ("host", b"orders.shop"),
    ];
    frames.send(kind::HEADERS, END_HEADERS | END_STREAM, 1, &block(&head)).await;
    let mut call = app.call().await;
    assert_eq!(call.request.uri().to_string(), "/a?b");
    assert_eq!(values(call.request.headers(), "host"), ["orders.shop"]);
    call.answer(Response::new(()));
    assert!(frames.next().await.unwrap().is_status(200));
}

#[tokio::test]
async fn an_empty_post_is_not_given_a_length() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let _answer = streams::ask(&mut sender, Request::post("http://orders/").body(()).unwrap());
    let call = app.call().await;
    assert_eq!(call.request.headers().get("content-length"), None);
    assert!(call.request.body().is_end_stream());
    let zero = Request::post("http://orders/").header("content-length", "0").body(()).unwrap();
    let _answer = streams::ask(&mut sender, zero);
    assert_eq!(app.call().await.request.headers()["content-length"], "0");
}

/// Priorities (withdrawn by RFC 9113 §5.3), and frames that nobody knows (§5.5), a padded head and
/// padded data.
#[tokio::test]
async fn priorities_and_unknown_frames_are_passed_over() {
    const PADDED: u8 = 8;
    const PRIORITY: u8 = 0x20;
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut frames = Frames::dial(pair.entry()).await;
    // Of streams that are idle, and that depend on each other.
    frames.send(kind::PRIORITY, 0, 3, &[0x80, 0, 0, 5, 255]).await;
    frames.send(kind::PRIORITY, 0, 5, &[0, 0, 0, 3, 0]).await;
    // PRIORITY_UPDATE (RFC 9218), and one that does not exist.
    frames.send(0x10, 0, 0, b"\0\0\0\x01u=7").await;
    frames.send(0xfa, 0xff, 1, b"what").await;
    let head = [
        (":method", &b"POST"[..]),
        (":scheme", b"http"),
        (":path", b"/"),
        (":authority", b"orders"),
    ];
    let mut payload = vec![3, 0, 0, 0, 0, 16];
    payload.extend(block(&head));
    payload.extend([0; 3]);
    frames.send(kind::HEADERS, END_HEADERS | PADDED | PRIORITY, 1, &payload).await;
    frames.send(kind::PRIORITY, 0, 1, &[0, 0, 0, 3, 7]).await;
    frames.send(kind::DATA, END_STREAM | PADDED, 1, b"\x02body\0\0").await;
    let mut call = app.call().await;
    let (body, _) = streams::read(call.request.body_mut()).await.unwrap();
    assert_eq!(body, b"body");
    call.answer(Response::new(()));
    assert!(frames.next().await.unwrap().is_status(200));
}
