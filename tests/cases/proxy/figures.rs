//! What the two proxies of a request tell about it on their admin ports.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use remora_tests::{
    mesh::Pair,
    origin::{Answer, Origin, Speaks, full, get, h1, h2},
    sidecar::Sidecar,
    wait::{eventually, within},
};
use serde_json::Value;

async fn page(of: &Sidecar, path: &str) -> Value {
    serde_json::from_str(&of.get(path).await.1).unwrap()
}

#[tokio::test]
async fn both_sides_of_a_request_show_it_in_every_window() {
    let pair = Pair::start(&[]).await;
    let _origin = Origin::saying(pair.server.pod.app(), "hello").await;
    for _ in 0..5 {
        assert_eq!(get(pair.entry()).await.unwrap().status, 200);
    }
    let windows = |windows: &Value| {
        ["10s", "1m", "start"].map(|window| windows[window]["requests"].as_u64().unwrap())
    };
    eventually("five requests in all windows of the caller", async || {
        let seen = page(&pair.client, "/endpoints").await;
        let orders = &seen["services"][0];
        let endpoint = &orders["endpoints"][0];
        let both = [windows(&orders["windows"]), windows(&endpoint["windows"])];
        let history = &endpoint["history"];
        let times = ["applied_ms", "first_dial_ms", "last_success_ms"];
        let [applied, dialled, success] = times.map(|name| history[name].as_u64());
        let in_order = applied? <= dialled? && dialled <= success;
        (both == [[5; 3]; 2] && in_order && history["last_failure_ms"].is_null()).then_some(())
    })
    .await;
    eventually("five requests of this caller", async || {
        let seen = page(&pair.server, "/inbound").await;
        let port = &seen["ports"][0];
        let [caller] = &port["callers"].as_array()?[..] else { return None };
        let known = caller["id"] == pair.client.pod.identity().as_str();
        (known && caller["requests"] == 5 && windows(&port["windows"]) == [5; 3]).then_some(())
    })
    .await;
    assert_eq!(page(&pair.client, "/events").await["events"], Value::Array(vec![]));
}

#[tokio::test]
async fn bytes_of_bodies_are_counted_once_by_the_caller_and_as_often_as_they_came_by_the_called() {
    const REQUEST: usize = 20_000;
    const RESPONSE: usize = 300_000;
    let policy = [("retry.remora.io/http", "5xx"), ("retry.remora.io/limit", "1")];
    for speaks in [Speaks::H1, Speaks::H2] {
        let pair = Pair::start(&policy).await;
        let failed = Arc::new(AtomicBool::new(false));
        let failing_once = move |request: Request<Incoming>| {
            let fails = !failed.swap(true, Ordering::SeqCst);
            async move {
                let sent = request.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(sent.len(), REQUEST);
                let mut response =
                    Response::new(full(vec![b'x'; if fails { 0 } else { RESPONSE }]));
                *response.status_mut() =
                    if fails { StatusCode::BAD_GATEWAY } else { StatusCode::OK };
                response
            }
        };
        let _app = Origin::serve(pair.server.pod.app(), speaks, failing_once).await;
        let request = Request::put("http://orders/").header("host", "orders");
        let request = request.body(full(vec![b'x'; REQUEST])).unwrap();
        let response = match speaks {
            Speaks::H1 => within("an answer", h1(pair.entry()).await.send_request(request)).await,
            _ => within("an answer", h2(pair.entry()).await.send_request(request)).await,
        };
        let answer = Answer::read(response.unwrap()).await.unwrap();
        assert_eq!((answer.status, answer.text.len()), (200, RESPONSE));
        for (sidecar, side, wanted) in [
            (&pair.client, "outbound", [REQUEST, RESPONSE]),
            (&pair.server, "inbound", [2 * REQUEST, RESPONSE]),
        ] {
            for (whose, wanted) in ["request", "response"].iter().zip(wanted) {
                let name = format!("remora_{side}_http_{whose}_body_bytes_total");
                sidecar.until(&name, &[], wanted as u64).await;
                assert_eq!(sidecar.metric(&name, &[]).await, wanted as u64, "{name}, {speaks:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_ejection_is_an_event() {
    let max = "balancer.remora.io/failure-accrual-consecutive-max-failures";
    let pair = Pair::start(&[(max, "2")]).await;
    eventually("an ejection", async || {
        // Nobody listens behind the other proxy.
        assert_eq!(get(pair.entry()).await.unwrap().status, 503);
        let seen = page(&pair.client, "/events").await;
        let event = seen["events"].as_array()?.first()?;
        let what = (&event["service"], &event["kind"], &event["reason"]);
        assert_eq!(what.1, "ejected", "{event}");
        assert_eq!(
            (what.0.as_str(), what.2.as_str()),
            (Some("shop/orders:80"), Some("consecutive-failures"))
        );
        Some(())
    })
    .await;
}
