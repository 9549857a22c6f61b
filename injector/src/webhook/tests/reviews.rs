//! Recorded reviews and their answers.

use std::time::Duration;

use json_patch::jsonptr::Pointer;
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    NAMESPACES, RECORDED, Reviewer,
    api::Api,
    namespace, recorded, reviewer,
    schema::{self, AdmissionResponse},
};

async fn answer(reviewer: &Reviewer, review: &Value) -> AdmissionResponse {
    let body = reviewer.answer(review.to_string().as_bytes()).await.unwrap();
    schema::check(review["request"]["uid"].as_str().unwrap(), &body)
}

fn injected(review: &Value, response: &AdmissionResponse) -> Value {
    let mut pod = review["request"]["object"].clone();
    json_patch::patch(&mut pod, &response.operations().expect("a patch")).unwrap();
    pod
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let items = pod.pointer(list).and_then(Value::as_array).cloned().unwrap_or_default();
    items.iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn every_recorded_review_is_answered_by_the_schema() {
    let (reviewer, _queue) = reviewer(&Api::new());
    for (name, _) in RECORDED {
        let review = recorded(name);
        let response = answer(&reviewer, &review).await;
        let untouched = ["delete", "update", "opted-out", "host-network"];
        assert!(response.allowed, "{name}: {:?}", response.status);
        assert_eq!(
            response.patch.is_none(),
            untouched.iter().any(|word| name.contains(word)),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_pod_of_an_enabled_namespace_gets_the_sidecar_before_its_own_containers() {
    let (reviewer, _queue) = reviewer(&Api::new());
    let review = recorded("sidecar-and-init.create");
    let pod = injected(&review, &answer(&reviewer, &review).await);
    assert_eq!(
        names(&pod, "/spec/initContainers"),
        ["remora-init", "remora-proxy", "setup", "logs"]
    );
}

#[tokio::test]
async fn a_reinvocation_leaves_the_sidecar_as_it_is() {
    let (reviewer, _queue) = reviewer(&Api::new());
    let mut review = recorded("deployment.create");
    let pod = injected(&review, &answer(&reviewer, &review).await);
    review["request"]["object"] = pod.clone();
    review["request"]["uid"] = json!("another");
    let again = answer(&reviewer, &review).await;
    let unchanged = again.patch.is_none() || injected(&review, &again) == pod;
    assert!(again.allowed && unchanged);
}

#[tokio::test]
async fn a_bad_annotation_is_refused_with_its_name_and_the_mend() {
    let (reviewer, mut queue) = reviewer(&Api::new());
    let mut review = recorded("deployment.create");
    let annotations = json!({ "config.remora.io/opaque-ports": "x" });
    review["request"]["object"]["metadata"]["annotations"] = annotations;
    let response = answer(&reviewer, &review).await;
    let status = response.status.unwrap();
    assert_eq!((response.allowed, status.code), (false, Some(422)));
    let message = status.message.unwrap();
    assert!(message.starts_with("remora: annotation config.remora.io/opaque-ports: "), "{message}");
    assert!(message.contains("use numbers from 1 to 65535"), "{message}");
    let event = format!("{:?}", queue.try_recv().unwrap());
    assert!(event.contains("Refused") && event.contains("Deployment"), "{event}");
}

#[tokio::test]
async fn a_surprising_skip_is_a_warning_and_an_event_but_not_in_a_dry_run() {
    let (reviewer, mut queue) = reviewer(&Api::new());
    let mut review = recorded("host-network.create");
    let response = answer(&reviewer, &review).await;
    assert!(response.warnings[0].contains("hostNetwork"), "{:?}", response.warnings);
    assert!(queue.try_recv().is_ok());
    review["request"]["dryRun"] = json!(true);
    answer(&reviewer, &review).await;
    assert!(queue.try_recv().is_err());
    answer(&reviewer, &recorded("opted-out.create")).await;
    assert!(queue.try_recv().is_err(), "who says no himself is not told");
}

#[tokio::test]
async fn the_namespace_of_the_request_counts() {
    let api = Api::new();
    let (reviewer, _queue) = reviewer(&api);
    let mut review = recorded("deployment.create");
    review["request"]["object"]["metadata"].as_object_mut().unwrap().remove("namespace");
    assert!(answer(&reviewer, &review).await.patch.is_some());
    let silent = namespace(&json!({}), &json!({ "remora.io/inject": "enabled" }));
    api.put(&format!("{NAMESPACES}/shop"), silent);
    assert!(answer(&reviewer, &review).await.patch.is_none(), "the label alone is no opt-in");
}

#[tokio::test]
async fn a_namespace_that_cannot_be_looked_up_means_try_again() {
    let api = Api::new();
    let (reviewer, _queue) = reviewer(&api);
    api.break_with(Some(500));
    let response = answer(&reviewer, &recorded("deployment.create")).await;
    let status = response.status.unwrap();
    assert_eq!((response.allowed, status.code), (false, Some(503)));
    assert_eq!(status.details.unwrap().retry_after_seconds, Some(1));
    assert!(status.message.unwrap().ends_with("try again"));
    let off = answer(&reviewer, &recorded("opted-out.create")).await;
    assert!(off.allowed && off.patch.is_none());
}

#[tokio::test]
async fn a_pod_that_cannot_be_read_is_denied_only_where_it_asked() {
    let api = Api::new();
    let (reviewer, _queue) = reviewer(&api);
    let mut review = recorded("deployment.create");
    review["request"]["object"]["spec"]["containers"] = json!("several");
    let denied = answer(&reviewer, &review).await;
    assert_eq!((denied.allowed, denied.status.unwrap().code), (false, Some(422)));
    let off = json!({ "remora.io/inject": "disabled" });
    review["request"]["object"]["metadata"]["annotations"] = off;
    let allowed = answer(&reviewer, &review).await;
    assert!(allowed.allowed && allowed.patch.is_none() && allowed.warnings.len() == 1);
    review["request"]["object"]["metadata"]["annotations"] = json!({});
    api.put(&format!("{NAMESPACES}/shop"), namespace(&json!({}), &json!({})));
    assert!(answer(&reviewer, &review).await.allowed);
}

#[tokio::test]
async fn a_body_that_is_no_review_is_an_error() {
    let (reviewer, _queue) = reviewer(&Api::new());
    let good = recorded("deployment.create");
    let mut beta = good.clone();
    beta["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let mut empty = good.clone();
    empty.as_object_mut().unwrap().remove("request");
    let mut nameless = good.clone();
    nameless["request"]["uid"] = json!("");
    for (body, word) in [
        ("{".to_owned(), "no AdmissionReview"),
        ("[]".to_owned(), "no AdmissionReview"),
        (beta.to_string(), "v1beta1"),
        (empty.to_string(), "no request"),
        (nameless.to_string(), "no request"),
        ("{}".to_owned(), "speaks AdmissionReview"),
    ] {
        let error = reviewer.answer(body.as_bytes()).await.unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

/// Whether everything of `before` is in `after`, lists in their order. What a probe does may change:
/// the proxy answers some in the application's stead.
fn keeps(before: &Value, after: &Value) -> Result<(), String> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            before.iter().filter(|(_, value)| !value.is_null()).try_for_each(|(key, value)| {
                if ["tcpSocket", "httpGet"].contains(&key.as_str()) {
                    return Ok(());
                }
                let kept = after.get(key).ok_or_else(|| format!("{key} is gone"))?;
                keeps(value, kept).map_err(|problem| format!("{key}.{problem}"))
            })
        }
        (Value::Array(before), Value::Array(after)) => {
            let mut rest = after.iter();
            before.iter().enumerate().try_for_each(|(n, item)| {
                let found = rest.any(|other| keeps(item, other).is_ok());
                found.then_some(()).ok_or_else(|| format!("[{n}] is gone"))
            })
        }
        _ if before == after => Ok(()),
        _ => Err(format!("{before} became {after}")),
    }
}

/// Places of a pod where a later API may have fields that we do not know.
const PLACES: [&str; 7] = [
    "",
    "/metadata",
    "/metadata/annotations",
    "/spec",
    "/spec/containers/0",
    "/spec/securityContext",
    "/spec/volumes/0",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_patch_keeps_every_field_of_the_pod(
        which in 0..RECORDED.len(),
        unknown in prop::collection::vec((0..PLACES.len(), "[a-z]{3,8}", any::<u16>()), 0..6),
        nulls in prop::collection::vec(prop::sample::select(&["initContainers", "tolerations"][..]), 0..2),
    ) {
        let mut review = recorded(RECORDED[which].0);
        let pod = &mut review["request"]["object"];
        if !pod.is_object() {
            return Ok(());
        }
        for (place, key, value) in unknown {
            let value = if PLACES[place].ends_with("annotations") {
                json!(value.to_string())
            } else {
                json!({ "later": value })
            };
            let pointer = Pointer::from_static(PLACES[place]);
            if let Some(map) = pointer.resolve_mut(pod).ok().and_then(Value::as_object_mut) {
                map.insert(format!("x-{key}"), value);
            }
        }
        for list in nulls {
            let spec = pod["spec"].as_object_mut().unwrap();
            spec.entry(list).or_insert(Value::Null);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let response = runtime.block_on(async {
            let (reviewer, _queue) = reviewer(&Api::new());
            answer(&reviewer, &review).await
        });
        prop_assert!(response.allowed);
        if response.patch.is_some() {
            let after = injected(&review, &response);
            prop_assert_eq!(keeps(&review["request"]["object"], &after), Ok(()));
            prop_assert!(serde_json::from_value::<Pod>(after).is_ok());
        }
    }
}

#[tokio::test]
async fn a_pod_of_twenty_containers_costs_less_than_ten_milliseconds() {
    let (reviewer, _queue) = reviewer(&Api::new());
    let review = twenty_containers().to_string();
    let mut batches = Vec::new();
    for _ in 0..5 {
        let started = on_cpu();
        for _ in 0..BATCH {
            reviewer.answer(review.as_bytes()).await.unwrap();
        }
        batches.push(on_cpu() - started);
    }
    judge("twenty containers", &batches);
}

/// What this thread has had of a processor: what else the machine does is not in it. A test's runtime
/// has one thread.
pub(super) fn on_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

/// Reviews of a batch.
pub(super) const BATCH: u32 = 100;

/// Prints what a review costs in the best batch, which counts.
pub(super) fn judge(what: &str, batches: &[Duration]) {
    let best = *batches.iter().min().unwrap() / BATCH;
    println!("{what}: {best:?}");
    assert!(best < Duration::from_millis(10), "{best:?}");
}

pub(super) fn twenty_containers() -> Value {
    let mut review = recorded("probes.create");
    let containers = review.pointer_mut("/request/object/spec/containers").unwrap();
    let pattern = containers[0].clone();
    let list = containers.as_array_mut().unwrap();
    while list.len() < 20 {
        let mut next = pattern.clone();
        next["name"] = json!(format!("c{}", list.len()));
        let variable = |n| json!({ "name": format!("VARIABLE_{n}"), "value": "x".repeat(40) });
        next["env"] = (0..10).map(variable).collect();
        next.as_object_mut().unwrap().remove("ports");
        list.push(next);
    }
    review
}
