//! Why did this request go there? Records of single requests, at both ends of the hop.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use remora_tests::{
    grpc,
    mesh::{Mesh, Pair},
    origin::{Answer, Body, Origin, Speaks, empty, full, get, h1, h2},
    sidecar::Sidecar,
    wait::{eventually, within},
    wire::{App, Wire},
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::JoinHandle,
};

/// Records that a query finds, once there are so many.
async fn records(sidecar: &Sidecar, query: &str, count: usize) -> Vec<Value> {
    let path = format!("/decisions?{query}");
    let all = || async {
        let (status, text) = sidecar.get(&path).await;
        assert_eq!(status, 200, "{text}");
        let shown: Value = serde_json::from_str(&text).unwrap();
        let decisions = shown["decisions"].as_array().unwrap().clone();
        (decisions.len() >= count).then_some(decisions)
    };
    eventually(&path, all).await
}

/// A request that is to be explained.
const ASKING: &str = "GET /slow HTTP/1.1\r\nhost: orders\r\nremora-explain: 1\r\n\r\n";

fn request(explain: bool) -> Request<Body> {
    let request = Request::get("/cart?card=4111").header("host", "orders");
    let request = if explain { request.header("remora-explain", "1") } else { request };
    request.body(empty()).unwrap()
}

async fn ask(pair: &Pair, speaks: Speaks, explain: bool) -> Answer {
    let request = request(explain);
    let response = match speaks {
        Speaks::H1 => within("an answer", h1(pair.entry()).await.send_request(request)).await,
        Speaks::H2 | Speaks::Any => {
            let (mut parts, body) = request.into_parts();
            parts.headers.remove("host");
            parts.uri = "http://orders/cart?card=4111".parse().unwrap();
            let request = Request::from_parts(parts, body);
            within("an answer", h2(pair.entry()).await.send_request(request)).await
        }
    };
    Answer::read(response.unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_request_that_asks_is_explained_by_both_proxies_under_one_id() {
    for (speaks, protocol) in [(Speaks::H1, "http/1.1"), (Speaks::H2, "http/2")] {
        let pair = Pair::start(&[("timeout.remora.io/request", "30s")]).await;
        let app = Origin::serve(pair.server.pod.app(), speaks, |request: Request<_>| async move {
            let mut response = Response::new(full("answer"));
            // What the application learns of it.
            let told = request.headers().get("remora-decision-id").cloned();
            response
                .headers_mut()
                .extend(told.map(|told| (http::HeaderName::from_static("x-told"), told)));
            response
        })
        .await;
        let answer = ask(&pair, speaks, true).await;
        let id = answer.headers["remora-decision-id"].to_str().unwrap().to_owned();
        assert_eq!(answer.headers["x-told"], id.as_str());

        let outbound = &records(&pair.client, &format!("id={id}"), 1).await[0];
        for (field, wanted) in [
            ("direction", Value::from("outbound")),
            ("target", "shop/orders:80".into()),
            ("service", "shop/orders:80".into()),
            ("protocol", protocol.into()),
            ("method", "GET".into()),
            ("path", "/cart".into()),
            ("host", "orders".into()),
            ("status", 200.into()),
            ("reason", Value::Null),
            ("failed", false.into()),
            ("client", "127.0.0.1".into()),
        ] {
            assert_eq!(outbound[field], wanted, "{field}: {outbound:#}");
        }
        assert_eq!(outbound["timeouts"]["request_ms"], 30_000.0);
        let attempt = &outbound["attempts"][0];
        for (field, wanted) in [
            ("endpoint", Value::from(pair.server.pod.address().to_string())),
            ("pod", "orders-1".into()),
            ("identity", pair.server.pod.identity().into()),
            ("tls", "mtls".into()),
            ("chosen", "only-one".into()),
            ("breaker", "ready".into()),
            ("status", 200.into()),
            ("may_have_run", "yes".into()),
            ("verdict", "done".into()),
        ] {
            assert_eq!(attempt[field], wanted, "{field}: {attempt:#}");
        }
        assert!(attempt["connect_us"].as_u64().unwrap() > 0, "the connection was made for it");
        assert!(!outbound.to_string().contains("4111"), "a query is not recorded");

        let inbound = &records(&pair.server, &format!("id={id}"), 1).await[0];
        assert_eq!(inbound["direction"], "inbound");
        assert_eq!(inbound["peer"], pair.client.pod.identity());
        assert_eq!(inbound["policy"], "default-inbound-policy all-unauthenticated");
        assert_eq!((&inbound["path"], &inbound["status"]), (&"/cart".into(), &200.into()));
        assert_eq!(app.requests(), 1);
    }
}

#[tokio::test]
async fn who_does_not_ask_gets_no_id_and_a_connection_that_stood_is_told_apart() {
    let pair = Pair::start(&[]).await;
    let _app = Origin::saying(pair.server.pod.app(), "answer").await;
    assert!(!ask(&pair, Speaks::H1, false).await.headers.contains_key("remora-decision-id"));
    let answer = ask(&pair, Speaks::H1, true).await;
    let id = answer.headers["remora-decision-id"].to_str().unwrap();
    let record = &records(&pair.client, &format!("id={id}"), 1).await[0];
    assert_eq!(record["attempts"][0]["connect_us"], Value::Null);
}

#[tokio::test]
async fn every_failure_is_recorded_under_the_id_in_its_answer() {
    let pair = Pair::start(&[]).await;
    // Nobody listens: the endpoint's proxy says so, and the caller's proxy has nobody else.
    for speaks in [Speaks::H1, Speaks::H2] {
        let answer = ask(&pair, speaks, false).await;
        assert_eq!((answer.status, answer.reason()), (503, Some("connect-failed")));
        let id = answer.headers["remora-decision-id"].to_str().unwrap();
        let record = &records(&pair.client, &format!("id={id}"), 1).await[0];
        assert_eq!((&record["status"], &record["failed"]), (&503.into(), &true.into()));
        assert_eq!(record["reason"], "connect-failed");
        let attempts = record["attempts"].as_array().unwrap();
        assert!(attempts.len() > 1, "what did not run is tried again: {record:#}");
        assert!(attempts.iter().all(|attempt| attempt["may_have_run"] == "no"));
        assert_eq!(attempts.last().unwrap()["verdict"], "limit");
        assert_eq!(record["tried"].as_array().unwrap().len(), attempts.len() - 1);
    }
    assert!(!records(&pair.server, "reason=connect-failed", 1).await.is_empty());
}

#[tokio::test]
async fn a_record_tells_each_attempt_and_why_it_was_tried_again() {
    let policy = [("retry.remora.io/http", "5xx"), ("retry.remora.io/limit", "1")];
    for (speaks, fails, status, verdicts) in [
        (Speaks::H1, 1, 200, ["retry", "done"]),
        (Speaks::H2, 1, 200, ["retry", "done"]),
        (Speaks::H1, 9, 503, ["retry", "limit"]),
        (Speaks::H2, 9, 503, ["retry", "limit"]),
    ] {
        let pair = Pair::start(&policy).await;
        let left = Arc::new(AtomicUsize::new(fails));
        let handler = move |_: Request<_>| {
            let take = |n: usize| n.checked_sub(1);
            let fails = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
            async move {
                let mut response = Response::new(full("answer"));
                *response.status_mut() = if fails { 503 } else { 200 }.try_into().unwrap();
                response
            }
        };
        let _app = Origin::serve(pair.server.pod.app(), speaks, handler).await;
        let answer = ask(&pair, speaks, true).await;
        assert_eq!(answer.status, status);
        let id = answer.headers["remora-decision-id"].to_str().unwrap();
        let record = &records(&pair.client, &format!("id={id}"), 1).await[0];
        let told: Vec<_> = record["attempts"].as_array().unwrap().iter().collect();
        let words: Vec<_> = told.iter().map(|a| a["verdict"].as_str().unwrap()).collect();
        assert_eq!(words, verdicts, "{record:#}");
        assert_eq!((&told[0]["status"], &told[1]["status"]), (&503.into(), &status.into()));
        assert!(told[0]["backoff_us"].as_u64().unwrap() > 0);
        assert!(record["retry_budget_left"].as_f64().unwrap() > 0.0);
        assert_eq!(record["failed"], status == 503);
    }
}

#[tokio::test]
async fn an_application_that_fails_is_recorded_with_its_status() {
    let pair = Pair::start(&[]).await;
    let handler = |_: Request<_>| async {
        let mut response = Response::new(full("out of order"));
        *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        response
    };
    let _app = Origin::serve(pair.server.pod.app(), Speaks::H1, handler).await;
    let answer = get(pair.entry()).await.unwrap();
    assert_eq!((answer.status, answer.reason()), (500, None));
    let id = answer.headers["remora-decision-id"].to_str().unwrap();
    let record = &records(&pair.client, &format!("id={id}"), 1).await[0];
    assert_eq!((&record["status"], &record["reason"]), (&500.into(), &Value::Null));
    assert_eq!(records(&pair.server, "status=5xx", 1).await.len(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_is_recorded_with_the_endpoint_that_kept_it_waiting() {
    for speaks in [Speaks::H1, Speaks::H2] {
        let pair = Pair::start(&[]).await;
        let silent = |_: Request<_>| std::future::pending::<Response<Body>>();
        let app = Origin::serve(pair.server.pod.app(), speaks, silent).await;
        let mut wire = Wire::dial(pair.entry()).await;
        let mut over_h2 = None;
        if speaks == Speaks::H1 {
            wire.send(ASKING).await;
        } else {
            let request = Request::get("http://orders/slow").body(empty()).unwrap();
            let mut sender = h2(pair.entry()).await;
            over_h2 = Some(tokio::spawn(async move { sender.send_request(request).await }));
        }
        let has_it = || async { (app.requests() == 1).then_some(()) };
        eventually("the application has it", has_it).await;
        // An orderly end of HTTP/1 could be that of the request alone.
        wire.reset();
        over_h2.inspect(JoinHandle::abort);

        let outbound = &records(&pair.client, "client_left=true", 1).await[0];
        let inbound = &records(&pair.server, "client_left=true&path=/slow", 1).await[0];
        for record in [outbound, inbound] {
            assert_eq!((&record["status"], &record["reason"]), (&Value::Null, &Value::Null));
            assert_eq!((&record["failed"], &record["path"]), (&false.into(), &"/slow".into()));
        }
        let attempt = &outbound["attempts"][0];
        assert_eq!(attempt["endpoint"], pair.server.pod.address().to_string());
        assert_eq!(
            (&attempt["verdict"], &attempt["may_have_run"]),
            (&"given-up".into(), &"maybe".into())
        );
        assert_eq!(outbound["attempts"].as_array().unwrap().len(), 1);
        for (sidecar, name) in [
            (&pair.client, "remora_outbound_http_cancelled_total"),
            (&pair.client, "remora_outbound_endpoint_cancelled_total"),
            (&pair.server, "remora_inbound_http_cancelled_total"),
        ] {
            assert_eq!(sidecar.metric(name, &[]).await, 1, "{name}");
        }
        assert!(records(&pair.client, "client_left=false", 0).await.is_empty());
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_an_answer_is_recorded_if_it_asked() {
    for speaks in [Speaks::H1, Speaks::H2] {
        let pair = Pair::start(&[]).await;
        let endless = |_: Request<_>| async {
            let chunk = || Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"more")));
            let chunks = stream::iter([chunk()]).chain(stream::pending());
            let body = StreamBody::new(chunks).map_err(|never: Infallible| match never {});
            Response::new(body.boxed_unsync())
        };
        let _app = Origin::serve(pair.server.pod.app(), speaks, endless).await;
        if speaks == Speaks::H1 {
            let mut wire = Wire::dial(pair.entry()).await;
            wire.send(ASKING).await;
            wire.until("more").await;
            wire.reset();
        } else {
            let request = Request::get("http://orders/slow").header("remora-explain", "1");
            let mut sender = h2(pair.entry()).await;
            drop(sender.send_request(request.body(empty()).unwrap()).await.unwrap());
        }
        for sidecar in [&pair.client, &pair.server] {
            let record = &records(sidecar, "client_left=true", 1).await[0];
            assert_eq!((&record["status"], &record["failed"]), (&200.into(), &false.into()));
        }
    }
}

#[tokio::test]
async fn a_grpc_call_that_fails_in_its_trailers_is_recorded_with_its_code() {
    let pair = Pair::start(&[]).await;
    let handler = |_: Request<_>| async {
        grpc::answer(grpc::body(vec![grpc::message("half")], grpc::status("13")))
    };
    let _app = Origin::serve(pair.server.pod.app(), Speaks::H2, handler).await;
    let call = grpc::call(grpc::body(vec![grpc::message("hello")], HeaderMap::new()));
    let response = within("an answer", h2(pair.entry()).await.send_request(call)).await.unwrap();
    assert_eq!(Answer::read(response).await.unwrap().trailers["grpc-status"], "13");
    for sidecar in [&pair.client, &pair.server] {
        let record = &records(sidecar, "failed=true", 1).await[0];
        assert_eq!((&record["protocol"], &record["grpc_status"]), (&"grpc".into(), &13.into()));
    }
}

#[tokio::test]
async fn a_connection_of_bytes_is_recorded_with_what_it_carried() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("\x01hello").await;
    let mut server = app.accept().await;
    server.expect("\x01hello").await;
    server.send("be greeted").await;
    client.expect("be greeted").await;
    drop((client, server));
    // The first of a hundred is recorded.
    let outbound = &records(&pair.client, "failed=false", 1).await[0];
    let inbound = &records(&pair.server, "failed=false", 1).await[0];
    for record in [outbound, inbound] {
        assert_eq!(record["protocol"], "tcp");
        assert_eq!((&record["sent_bytes"], &record["received_bytes"]), (&6.into(), &10.into()));
        assert_eq!((&record["status"], &record["method"]), (&Value::Null, &Value::Null));
    }
    assert_eq!(outbound["target"], "shop/orders:80");
    let attempt = &outbound["attempts"][0];
    assert_eq!(attempt["endpoint"], pair.server.pod.address().to_string());
    assert_eq!((&attempt["verdict"], &attempt["chosen"]), (&"done".into(), &"only-one".into()));
    assert!(attempt["connect_us"].as_u64().unwrap() > 0, "{attempt:#}");
    assert_eq!(inbound["peer"], pair.client.pod.identity());
    assert_eq!(inbound["policy"], "default-inbound-policy all-unauthenticated");
}

#[tokio::test]
async fn a_connection_that_finds_no_endpoint_is_recorded_with_those_it_tried() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[]);
    // Nobody listens there.
    let (web, orders) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    assert!(Wire::is_refused(client.entry("orders"), b"\x01hello").await);
    let record = &records(&client, "failed=true", 1).await[0];
    let target = (&record["target"], &record["protocol"], &record["sent_bytes"]);
    assert_eq!(target, (&"shop/orders:80".into(), &"tcp".into(), &Value::Null));
    assert_eq!(record["reason"], "connect-failed");
    let attempt = &record["attempts"][0];
    assert_eq!(attempt["endpoint"], orders.address().to_string());
    assert_eq!((&attempt["verdict"], &attempt["may_have_run"]), (&"limit".into(), &"no".into()));
}

/// Its proxy takes the connection, and finds nobody behind it: that is a reset, to the caller's proxy too.
#[tokio::test]
async fn a_connection_that_the_endpoint_breaks_before_a_word_is_a_failure_at_both_ends() {
    let pair = Pair::start(&[]).await;
    assert!(Wire::is_refused(pair.entry(), b"\x01hello").await);
    let outbound = &records(&pair.client, "failed=true", 1).await[0];
    assert_eq!(
        (&outbound["reason"], &outbound["protocol"]),
        (&"upstream-reset".into(), &"tcp".into())
    );
    assert_eq!((&outbound["sent_bytes"], &outbound["received_bytes"]), (&6.into(), &0.into()));
    assert_eq!(outbound["attempts"][0]["endpoint"], pair.server.pod.address().to_string());
    let inbound = &records(&pair.server, "failed=true", 1).await[0];
    assert_eq!(
        (&inbound["reason"], &inbound["protocol"]),
        (&"connect-failed".into(), &"tcp".into())
    );
    // Nor does it have to say anything first.
    assert!(Wire::is_refused(pair.entry(), b"").await);
    assert_eq!(records(&pair.client, "reason=upstream-reset", 2).await.len(), 2);
    // What was answered is no failure, however it ends.
    let app = App::listen(pair.server.pod.app()).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("\x01hello").await;
    let mut server = app.accept().await;
    server.expect("\x01hello").await;
    server.send("no").await;
    client.expect("no").await;
    server.reset();
    assert!(client.rest().await.is_err());
    assert_eq!(records(&pair.client, "failed=true", 2).await.len(), 2);
}

#[tokio::test]
async fn somebody_who_listens_sees_requests_as_they_end_through_a_filter() {
    let pair = Pair::start(&[]).await;
    let _app = Origin::saying(pair.server.pod.app(), "answer").await;
    let mut tap = TcpStream::connect(pair.client.admin()).await.unwrap();
    let head =
        "GET /tap?path=/cart&limit=2 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    tap.write_all(head.as_bytes()).await.unwrap();
    let mut tap = BufReader::new(tap);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        within("the tap's head", tap.read_line(&mut line)).await.unwrap();
    }
    for _ in 0..2 {
        assert_eq!(get(pair.entry()).await.unwrap().status, 200);
        assert_eq!(ask(&pair, Speaks::H1, false).await.status, 200);
    }
    let mut rest = String::new();
    within("two records and the end", tap.read_to_string(&mut rest)).await.unwrap();
    let records: Vec<Value> =
        rest.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let records: Vec<_> = records.iter().filter(|record| record.is_object()).collect();
    assert_eq!(records.len(), 2, "{rest}");
    assert!(records.iter().all(|record| record["path"] == "/cart" && record["status"] == 200));
}

#[tokio::test]
async fn a_query_that_cannot_be_read_is_answered_with_how_it_is_written() {
    let pair = Pair::start(&[]).await;
    for (query, says) in [("status=bad", "5xx"), ("id=1", "16 hexadecimal"), ("color=red", "color")]
    {
        let (status, text) = pair.client.get(&format!("/decisions?{query}")).await;
        assert_eq!(status, 400, "{text}");
        assert!(text.contains(says), "{text}");
    }
}
