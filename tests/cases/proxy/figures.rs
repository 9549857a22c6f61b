//! What the two proxies of a request tell about it on their admin ports.

use remora_tests::{
    mesh::Pair,
    origin::{Origin, get},
    sidecar::Sidecar,
    wait::eventually,
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
