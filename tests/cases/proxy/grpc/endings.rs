//! Calls that do not end well, and what that says about who served them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use h2::Reason;
use http::{HeaderMap, HeaderName, HeaderValue};
use remora_tests::{
    grpc::{Ended, answer, body, call, fed, message, status, texts},
    mesh::{Mesh, Pair},
    origin::{Origin, Speaks, empty, full, h2 as client},
    streams::{self, App},
    wait::{eventually, within},
};

#[tokio::test]
async fn callers_learn_in_grpc_that_there_is_no_endpoint() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[]);
    let web = mesh.pod("web", "web");
    mesh.start_plane().await;
    let sidecar = mesh.sidecar(&web, &["orders"]).await;
    let mut sender = client(sidecar.entry("orders")).await;
    let response = within("an answer", sender.send_request(call(empty()))).await.unwrap();
    assert_eq!(response.status(), 200);
    let ended = Ended::read(response).await.unwrap();
    assert_eq!((ended.status(), ended.reason()), ("14", "no-endpoints"));
}

#[tokio::test]
async fn a_server_that_dies_under_a_call_is_unavailable_not_a_hang() {
    let pair = Pair::start(&[]).await;
    let origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |_| std::future::pending()).await;
    let mut sender = client(pair.entry()).await;
    let calling = tokio::spawn(async move { sender.send_request(call(empty())).await });
    eventually("the call", || async { (origin.requests() == 1).then_some(()) }).await;
    drop(origin);
    let response = within("the end", calling).await.unwrap().unwrap();
    let ended = Ended::read(response).await.unwrap();
    assert_eq!((ended.status(), ended.reason()), ("14", "upstream-reset"));
}

/// One that dies behind its sidecar, and one that has none: the messages so far arrive, and then trailers
/// in its stead.
#[tokio::test]
async fn a_server_that_dies_in_the_middle_of_a_stream_ends_in_trailers_that_say_so() {
    for meshed in [true, false] {
        let mut mesh = Mesh::new();
        mesh.service("orders", &[]);
        let web = mesh.pod("web", "web");
        let orders = mesh.pod_with("orders-1", "orders", meshed, &[]);
        mesh.start_plane().await;
        let sidecar = mesh.sidecar(&web, &["orders"]).await;
        let _server = if meshed { Some(mesh.sidecar(&orders, &[]).await) } else { None };
        let mut app = App::listen(orders.app()).await;
        let mut sender = client(sidecar.entry("orders")).await;
        let calling = tokio::spawn(async move {
            let response = sender.send_request(call(empty())).await.unwrap();
            Ended::read(response).await.unwrap()
        });
        let mut stream = app.call().await.begin(answer(()));
        streams::send(&mut stream, message("one"), false).await.unwrap();
        drop(app);
        let ended = within("the end", calling).await.unwrap();
        assert_eq!((ended.status(), ended.reason()), ("14", "upstream-reset"), "{ended:?}");
        // Its last words may have died with it.
        assert!(ended.texts.len() <= 1);
        let rows = sidecar.endpoints("orders").await;
        assert_eq!(rows[0]["failures"], 1, "{rows:?}");
    }
}

/// And here it is certain that they were heard.
#[tokio::test]
async fn the_messages_before_a_break_are_given() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let answering = streams::ask(&mut sender, call(()));
    let mut stream = app.call().await.begin(answer(()));
    streams::send(&mut stream, message("one"), false).await.unwrap();
    let mut got = within("a head", answering).await.unwrap().into_body();
    assert_eq!(texts(&streams::chunk(&mut got).await), ["one"]);
    drop(app);
    let (rest, trailers) = streams::read(&mut got).await.unwrap();
    let trailers = trailers.unwrap();
    assert!(rest.is_empty());
    assert_eq!(
        (&trailers["grpc-status"], &trailers["remora-proxy-error"]),
        (&HeaderValue::from_static("14"), &HeaderValue::from_static("upstream-reset"),)
    );
}

#[tokio::test]
async fn a_call_that_is_cancelled_is_cancelled_at_the_server_and_blames_nobody() {
    let pair = Pair::start(&[]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = client(pair.entry()).await;
    let (feed, stream) = fed();
    let calling = tokio::spawn({
        let mut sender = sender.clone();
        async move { sender.send_request(call(stream)).await }
    });
    feed.send(message("one")).await.unwrap();
    let mut called = app.call().await;
    calling.abort();
    drop(feed);
    assert_eq!(called.reset().await, Reason::CANCEL);
    eventually("nothing in flight", async || {
        (pair.client.endpoints("orders").await[0]["in_flight"] == 0).then_some(())
    })
    .await;
    assert_eq!(pair.client.endpoints("orders").await[0]["failures"], 0);
    // The connection lives on.
    let calling =
        tokio::spawn(async move { sender.send_request(call(full(message("two")))).await });
    let mut response = answer(());
    response.headers_mut().extend(status("0"));
    app.call().await.answer(response);
    assert_eq!(within("an answer", calling).await.unwrap().unwrap().headers()["grpc-status"], "0");
}

/// Codes that blame the server, in the head and in trailers; the others are answers.
#[tokio::test]
async fn codes_that_blame_the_server_open_its_breaker_wherever_they_stand() {
    let accrual = "balancer.remora.io/failure-accrual-consecutive-max-failures";
    for (code, blamed) in [
        ("4", true),
        ("13", true),
        ("14", true),
        ("15", true),
        ("5", false),
        ("7", false),
        ("8", false),
    ] {
        for in_trailers in [false, true] {
            let pair = Pair::start(&[(accrual, "3")]).await;
            let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, move |_| async move {
                if in_trailers {
                    return answer(body(vec![message("half")], status(code)));
                }
                let mut response = answer(empty());
                response.headers_mut().extend(status(code));
                response
            })
            .await;
            let mut sender = client(pair.entry()).await;
            for _ in 0..3 {
                let response = within("a head", sender.send_request(call(empty()))).await.unwrap();
                assert_eq!(Ended::read(response).await.unwrap().status(), code);
            }
            eventually("the last verdict", async || {
                let rows = pair.client.endpoints("orders").await;
                (rows[0]["in_flight"] == 0).then_some(())
            })
            .await;
            let row = pair.client.endpoints("orders").await.remove(0);
            let open = row["state"] == "open";
            assert_eq!(open, blamed, "{code}, in trailers: {in_trailers}: {row}");
        }
    }
}

/// Status in the head, and in a second head right behind it, as some servers do whose call failed before
/// its first message.
#[tokio::test]
async fn a_code_that_the_owner_names_is_retried_from_the_head_and_from_trailers_without_a_message()
{
    for in_trailers in [false, true] {
        let pair = Pair::start(&[("retry.remora.io/grpc", "14")]).await;
        let calls = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&calls);
        let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, move |_| {
            let first = counter.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                match (first, in_trailers) {
                    (false, _) => answer(body(vec![message("done")], status("0"))),
                    (true, true) => answer(body(Vec::new(), status("14"))),
                    (true, false) => {
                        let mut response = answer(empty());
                        response.headers_mut().extend(status("14"));
                        response
                    }
                }
            }
        })
        .await;
        let mut sender = client(pair.entry()).await;
        let request = call(full(message("order")));
        let response = within("an answer", sender.send_request(request)).await.unwrap();
        let ended = Ended::read(response).await.unwrap();
        assert_eq!(
            (ended.status(), &*ended.texts),
            ("0", &["done".to_owned()][..]),
            "{in_trailers}"
        );
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }
}

/// Once a message came the call is committed (gRFC A6).
#[tokio::test]
async fn a_code_behind_a_message_is_given_and_not_retried() {
    let pair = Pair::start(&[("retry.remora.io/grpc", "14")]).await;
    let origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |_| async {
        answer(body(vec![message("half")], status("14")))
    })
    .await;
    let mut sender = client(pair.entry()).await;
    let response = within("an answer", sender.send_request(call(empty()))).await.unwrap();
    let ended = Ended::read(response).await.unwrap();
    assert_eq!((ended.status(), &*ended.texts), ("14", &["half".to_owned()][..]));
    assert_eq!(origin.requests(), 1);
}

/// A server that answers early and has nothing to say yet is not kept from its client.
#[tokio::test]
async fn a_head_without_a_code_is_given_although_codes_would_be_retried() {
    let pair = Pair::start(&[("retry.remora.io/grpc", "14")]).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let answering = streams::ask(&mut sender, call(()));
    let mut stream = app.call().await.begin(answer(()));
    let mut got = within("a head", answering).await.unwrap().into_body();
    stream.send_trailers(status("14")).unwrap();
    let (_, trailers) = streams::read(&mut got).await.unwrap();
    assert_eq!(trailers.unwrap()["grpc-status"], "14");
}

#[tokio::test]
async fn retries_are_told_to_the_server() {
    let policy = [("retry.remora.io/grpc", "unavailable"), ("retry.remora.io/limit", "2")];
    let pair = Pair::start(&policy).await;
    let mut app = App::listen(pair.server.pod.app()).await;
    let mut sender = streams::connect(pair.entry()).await;
    let mut sent = streams::open(&mut sender, call(()));
    sent.body.send_data(message("order"), false).unwrap();
    let sum = HeaderName::from_static("x-sum");
    let trailers = HeaderMap::from_iter([(sum.clone(), HeaderValue::from_static("7"))]);
    sent.body.send_trailers(trailers.clone()).unwrap();
    for attempt in 0..3 {
        let mut called = app.call().await;
        let headers = called.request.headers();
        let told = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let (previous, number) = match attempt {
            0 => (None, None),
            n => (Some(n.to_string()), Some((n + 1).to_string())),
        };
        assert_eq!(
            (told("grpc-previous-rpc-attempts"), told("remora-attempt")),
            (previous, number)
        );
        let (asked, got) = streams::read(called.request.body_mut()).await.unwrap();
        assert_eq!((texts(&asked), got), (vec!["order".to_owned()], Some(trailers.clone())));
        let mut response = answer(());
        response.headers_mut().extend(status(if attempt < 2 { "14" } else { "0" }));
        called.answer(response);
    }
    assert_eq!(within("an answer", sent.answer).await.unwrap().headers()["grpc-status"], "0");
}
