//! Events as they reach the API server.

use std::time::Duration;

use serde_json::Value;

use super::{api::Api, fixed_time, recorded};
use crate::webhook::events::{Notice, Reason, Writer};

const EVENTS: &str = "apis/events.k8s.io/v1/namespaces/shop/events/";

fn notice() -> Notice {
    let review = recorded("deployment.create");
    let pod = serde_json::from_value(review["request"]["object"].clone()).unwrap();
    Notice::about_pod("shop", &pod, Reason::Skipped, "no sidecar: for a reason")
}

fn only_event(api: &Api) -> Value {
    let keys = api.keys(EVENTS);
    assert_eq!(keys.len(), 1, "{keys:?}");
    api.get(&keys[0]).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_same_again_is_a_series_written_once_a_minute() {
    let api = Api::new();
    let mut writer = Writer::new(api.client(), "replica-0", fixed_time);
    let mut results = Vec::new();
    for _ in 0..5 {
        results.push(writer.write(&notice(), tokio::time::Instant::now()).await);
        tokio::time::advance(Duration::from_secs(25)).await;
    }
    assert_eq!(results, ["written", "aggregated", "aggregated", "written", "aggregated"]);
    let event = only_event(&api);
    assert_eq!(event["regarding"]["kind"], "Deployment");
    assert_eq!(event["reportingInstance"], "replica-0");
    assert_eq!(event["eventTime"], "2027-01-15T08:00:00.000000Z");
    assert_eq!(event["series"]["count"], 4);
}

#[tokio::test(start_paused = true)]
async fn another_replicas_event_becomes_a_series() {
    let api = Api::new();
    for instance in ["replica-0", "replica-1"] {
        let mut writer = Writer::new(api.client(), instance, fixed_time);
        assert_eq!(writer.write(&notice(), tokio::time::Instant::now()).await, "written");
    }
    assert_eq!(only_event(&api)["series"]["count"], 2);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_api_server_forgot_is_written_anew() {
    let api = Api::new();
    let mut writer = Writer::new(api.client(), "replica-0", fixed_time);
    writer.write(&notice(), tokio::time::Instant::now()).await;
    api.delete(&api.keys(EVENTS)[0]);
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(writer.write(&notice(), tokio::time::Instant::now()).await, "written");
    assert!(only_event(&api)["series"].is_null());
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_not_remembered_as_written() {
    let api = Api::new();
    let mut writer = Writer::new(api.client(), "replica-0", fixed_time);
    api.break_with(Some(403));
    assert_eq!(writer.write(&notice(), tokio::time::Instant::now()).await, "failed");
    api.break_with(None);
    assert_eq!(writer.write(&notice(), tokio::time::Instant::now()).await, "written");
}
