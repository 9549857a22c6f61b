//! The four kinds of calls, and what travels with them.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use remora_tests::{
    grpc::{self, Ended, answer, body, call, fed, message, status, texts},
    mesh::Pair,
    origin::{Origin, Speaks, empty, full, h2 as client},
    wait::within,
};
use tokio::sync::mpsc;

#[tokio::test]
async fn unary_calls_share_one_connection_and_keep_their_trailers() {
    let pair = Pair::start(&[]).await;
    let origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |request| async move {
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(request.uri().path(), "/shop.Orders/Call");
        let asked = request.into_body().collect().await.unwrap().to_bytes();
        let text = format!("re: {}", texts(&asked)[0]);
        answer(body(vec![message(&text)], status("0")))
    })
    .await;
    let sender = client(pair.entry()).await;
    let calls = (0..20).map(|n| {
        let mut sender = sender.clone();
        async move {
            let request = call(full(message(&n.to_string())));
            let response = within("an answer", sender.send_request(request)).await.unwrap();
            let ended = Ended::read(response).await.unwrap();
            assert_eq!((ended.status(), &*ended.texts), ("0", &[format!("re: {n}")][..]));
        }
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(origin.requests(), 20);
    let mtls = [("direction", "outbound"), ("tls", "mtls")];
    assert_eq!(pair.client.metric("remora_tcp_connections_total", &mtls).await, 1);
    pair.server.until("remora_inbound_http_requests_total", &[("tls", "mtls")], 20).await;
    let ok = [("grpc_status", "OK")];
    pair.client.until("remora_outbound_grpc_responses_total", &ok, 20).await;
    pair.client.until("remora_outbound_endpoint_grpc_responses_total", &ok, 20).await;
    pair.server.until("remora_inbound_grpc_responses_total", &ok, 20).await;
}

#[tokio::test]
async fn messages_of_a_server_stream_arrive_as_they_are_sent() {
    let pair = Pair::start(&[]).await;
    let (feed, stream) = fed();
    let stream = Arc::new(std::sync::Mutex::new(Some(stream)));
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, move |_| {
        let stream = stream.lock().unwrap().take().unwrap();
        async move { answer(stream) }
    })
    .await;
    let mut sender = client(pair.entry()).await;
    let response = within("a head", sender.send_request(call(empty()))).await.unwrap();
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
                let mut asked = request.into_body();
                let mut count = 0;
                while let Some(frame) = asked.frame().await {
                    for text in texts(frame.unwrap().data_ref().unwrap()) {
                        count += 1;
                        seen.send(text).await.unwrap();
                    }
                }
                answer(body(vec![message(&count.to_string())], status("0")))
            }
        })
        .await;
    let (feed, stream) = fed();
    let mut sender = client(pair.entry()).await;
    let calling = tokio::spawn(async move { sender.send_request(call(stream)).await });
    for n in 0..3 {
        feed.send(message(&n.to_string())).await.unwrap();
        assert_eq!(within("a message", arrived.recv()).await.unwrap(), n.to_string());
    }
    drop(feed);
    let response = within("the answer", calling).await.unwrap().unwrap();
    let ended = Ended::read(response).await.unwrap();
    assert_eq!((ended.status(), &*ended.texts), ("0", &["3".to_owned()][..]));
}

/// Each message waits for the answer to the one before, so nothing is held back on either way.
#[tokio::test]
async fn messages_of_both_directions_take_turns() {
    let pair = Pair::start(&[("retry.remora.io/grpc", "14")]).await;
    let mut app = remora_tests::streams::App::listen(pair.server.pod.app()).await;
    let (feed, stream) = fed();
    let mut sender = client(pair.entry()).await;
    // The server answers before it has heard a message.
    let calling = tokio::spawn(async move { sender.send_request(call(stream)).await });
    let mut called = app.call().await;
    let mut back = called.begin(answer(()));
    let response = within("a head", calling).await.unwrap().unwrap();
    let mut got = response.into_body();
    for n in 0..4 {
        feed.send(message(&format!("ping {n}"))).await.unwrap();
        let asked = remora_tests::streams::chunk(called.request.body_mut()).await;
        assert_eq!(texts(&asked), [format!("ping {n}")]);
        back.send_data(message(&format!("pong {n}")), false).unwrap();
        let frame = within("a message", got.frame()).await.unwrap().unwrap();
        assert_eq!(texts(frame.data_ref().unwrap()), [format!("pong {n}")]);
    }
    drop(feed);
    let (rest, _) = remora_tests::streams::read(called.request.body_mut()).await.unwrap();
    assert!(rest.is_empty());
    back.send_trailers(status("0")).unwrap();
    let end = within("the end", got.collect()).await.unwrap();
    assert_eq!(end.trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn an_answer_of_trailers_only_stays_one() {
    let pair = Pair::start(&[]).await;
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |_| async {
        let mut response = answer(empty());
        response.headers_mut().extend(status("5"));
        response
    })
    .await;
    let mut sender = client(pair.entry()).await;
    let response = within("a head", sender.send_request(call(empty()))).await.unwrap();
    let ended = Ended::read(response).await.unwrap();
    assert_eq!((ended.status(), ended.trailers_only), ("5", true));
}

/// Metadata, text and binary; a compressed message, which only the ends understand; and a status
/// message of many scripts, percent-encoded as the protocol wants it.
#[tokio::test]
async fn what_travels_with_a_call_arrives_as_it_was_sent() {
    const UNICODE: &str = "%F0%9F%90%9F %E7%84%A1 50 %25%0A";
    let pair = Pair::start(&[]).await;
    let compressed = Bytes::from_static(b"\x01\0\0\0\x03\xffzip");
    let back = compressed.clone();
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, move |request| {
        let back = back.clone();
        async move {
            let headers = request.headers();
            let all: Vec<_> = headers.get_all("trace-bin").iter().collect();
            assert_eq!(all, ["AAEC/w", "//79,AA=="]);
            assert_eq!(
                (&headers["grpc-encoding"], &headers["x-tenant"]),
                (&HeaderValue::from_static("gzip"), &HeaderValue::from_static("a b"),)
            );
            let asked = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(asked, back);
            let mut trailers = status("3");
            trailers.insert("grpc-message", HeaderValue::from_static(UNICODE));
            trailers.insert("grpc-status-details-bin", HeaderValue::from_static("CAMSA/CfkJ8"));
            let mut response = answer(body(vec![back], trailers));
            response.headers_mut().insert("grpc-encoding", HeaderValue::from_static("gzip"));
            response
        }
    })
    .await;
    let mut request = call(full(compressed.clone()));
    let headers = request.headers_mut();
    for (name, value) in [
        ("grpc-encoding", "gzip"),
        ("trace-bin", "AAEC/w"),
        ("trace-bin", "//79,AA=="),
        ("x-tenant", "a b"),
    ] {
        headers.append(name, HeaderValue::from_static(value));
    }
    let mut sender = client(pair.entry()).await;
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    assert_eq!(response.headers()["grpc-encoding"], "gzip");
    let body = response.into_body().collect().await.unwrap();
    let trailers = body.trailers().unwrap().clone();
    assert_eq!(body.to_bytes(), compressed);
    assert_eq!(trailers["grpc-message"], UNICODE);
    assert_eq!(trailers["grpc-status-details-bin"], "CAMSA/CfkJ8");
}

#[tokio::test]
async fn metadata_and_trailers_of_many_kibibytes_arrive_whole() {
    let pair = Pair::start(&[]).await;
    let large = |key: &'static str| {
        let mut map = HeaderMap::new();
        map.insert(key, HeaderValue::try_from("v".repeat(48 * 1024)).unwrap());
        map
    };
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, move |request| async move {
        assert_eq!(request.headers()["x-large-bin"].len(), 48 * 1024);
        let mut trailers = status("0");
        trailers.extend(large("x-details-bin"));
        answer(body(vec![message("ok")], trailers))
    })
    .await;
    let mut request = call(full(message("order")));
    request.headers_mut().extend(large("x-large-bin"));
    let mut sender = client(pair.entry()).await;
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    let ended = Ended::read(response).await.unwrap();
    assert_eq!((ended.status(), ended.field("x-details-bin").len()), ("0", 48 * 1024));
}

#[tokio::test]
async fn a_message_far_beyond_the_windows_arrives_whole() {
    let pair = Pair::start(&[]).await;
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |request| async move {
        let asked = request.into_body().collect().await.unwrap().to_bytes();
        answer(grpc::body(vec![asked], status("0")))
    })
    .await;
    let text: String = (0..700_000).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    let mut sender = client(pair.entry()).await;
    let request = call(full(message(&text)));
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    let ended = Ended::read(response).await.unwrap();
    assert!(ended.status() == "0" && ended.texts == [text]);
}
