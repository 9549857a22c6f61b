//! What is told of objects, and how.

use std::path::Path;

use remora_core::admission::read;
use serde_json::json;

use super::*;
use crate::{
    index::Index,
    source::{Event, manifest},
};

mod https;

/// What the watch says of an object.
fn seen(value: &Value) -> Event {
    let resource = match value["kind"].as_str().unwrap() {
        "Service" => SERVICE,
        _ => HTTP,
    };
    let request = request("CREATE", resource, value.clone(), Value::Null);
    let object = reader(&request).unwrap()(value).unwrap();
    Event::Apply(object.slim().unwrap())
}

/// What other objects there are.
struct World(Index);

impl World {
    /// The Services `cart` and `next` of `shop`, and these.
    fn with(more: &[Value]) -> Self {
        let mut index = Index::new("cluster.local", "cluster.local");
        let ours = [service("cart", json!({})), service("next", json!({}))];
        index.apply(ours.iter().chain(more).map(seen));
        Self(index)
    }

    fn judge(&self, request: &Request) -> Verdict {
        judge(request, |object| Some(self.0.around(object)))
    }

    /// The same in few words: `denied` or `warned`, rule and field.
    fn told(&self, request: &Request) -> Vec<String> {
        let Verdict::Judged { denied, warned } = self.judge(request) else {
            panic!("{:?}", self.judge(request))
        };
        let line = |word: &'static str| {
            move |finding: Finding| format!("{word} {} {}", finding.rule, finding.field)
        };
        let denied = denied.into_iter().map(line("denied"));
        denied.chain(warned.into_iter().map(line("warned"))).collect()
    }
}

fn body(operation: &str, (group, plural): (&str, &str), object: Value, old: Value) -> Vec<u8> {
    let resource = json!({"group": group, "version": "v1", "resource": plural});
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("shop").to_owned();
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "u-1", "resource": resource, "operation": operation,
            "namespace": namespace, "object": object, "oldObject": old}});
    review.to_string().into_bytes()
}

fn request(operation: &str, resource: (&str, &str), object: Value, old: Value) -> Request {
    read(&body(operation, resource, object, old)).unwrap()
}

const HTTP: (&str, &str) = (GROUP, "httproutes");
const SERVICE: (&str, &str) = ("", "services");

fn created(object: Value) -> Request {
    request("CREATE", HTTP, object, Value::Null)
}

fn updated(old: Value, new: Value) -> Request {
    request("UPDATE", HTTP, new, old)
}

fn service(name: &str, annotations: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "annotations": annotations},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]}})
}

fn route(name: &str, rules: Value) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "cart"}], "rules": rules}})
}

fn to(name: &str) -> Value {
    json!([{"name": name, "port": 80}])
}

fn on(path: &str, backends: Value) -> Value {
    json!({"matches": [{"path": {"type": "PathPrefix", "value": path}}], "backendRefs": backends})
}

/// A rule that no proxy could do.
fn impossible(path: &str) -> Value {
    let filter =
        json!({"type": "ExtensionRef", "extensionRef": {"group": "a", "kind": "B", "name": "c"}});
    let mut rule = on(path, to("next"));
    rule["filters"] = json!([filter]);
    rule
}

fn sound() -> Value {
    route("r", json!([on("/", to("next"))]))
}

#[test]
fn a_sound_route_is_allowed_without_a_word() {
    assert_eq!(World::with(&[]).told(&created(sound())), [""; 0]);
}

#[test]
fn what_cannot_be_done_whatever_else_there_is_is_denied_all_at_once() {
    let mut bad = route("r", json!([on("/a", to("next")), impossible("/b"), {"name": "nowhere"}]));
    bad["metadata"]["annotations"] = json!({"timeout.remora.io/request": "soon"});
    let expected = [
        "denied annotation-value metadata.annotations[timeout.remora.io/request]",
        "denied rule-invalid spec.rules[1]",
        "denied no-backend spec.rules[2].backendRefs",
    ];
    assert_eq!(World::with(&[]).told(&created(bad.clone())), expected);
    // Whether the Services are there or not, and whether it is a trial.
    let mut trial = created(bad.clone());
    trial.dry_run = Some(true);
    assert_eq!(World::with(&[]).told(&trial), expected);
    let Verdict::Judged { denied, warned } = judge(&created(bad), |_| None) else { panic!() };
    assert_eq!((denied.len(), warned.len()), (3, 0), "nothing is known of others yet");
}

#[test]
fn a_backend_of_a_kind_that_is_none_is_denied() {
    let other = json!([{"group": "a.example", "kind": "Bucket", "name": "b"}]);
    let told = World::with(&[]).told(&created(route("r", json!([on("/", other)]))));
    assert_eq!(told, ["denied backend-kind spec.rules[0].backendRefs[0]"]);
}

#[test]
fn what_may_still_come_is_no_more_than_a_warning() {
    let world = World::with(&[]);
    let mut early = route("r", json!([on("/", to("later"))]));
    assert_eq!(
        world.told(&created(early.clone())),
        ["warned backend-missing spec.rules[0].backendRefs[0].name"]
    );
    early["spec"]["parentRefs"][0]["name"] = json!("later");
    early["spec"]["rules"] =
        json!([on("/", json!([{"name": "next", "namespace": "bank", "port": 80}]))]);
    assert_eq!(
        world.told(&created(early)),
        [
            "warned parent-missing spec.parentRefs[0].name",
            "warned grant-missing spec.rules[0].backendRefs[0]"
        ]
    );
    let wrong_port = route("r", json!([on("/", json!([{"name": "next", "port": 81}]))]));
    assert_eq!(
        world.told(&created(wrong_port)),
        ["warned backend-port spec.rules[0].backendRefs[0].port"]
    );
}

#[test]
fn a_rule_that_the_route_itself_takes_everything_from_is_denied_and_by_another_warned_of() {
    let twice =
        route("r", json!([on("/a", to("next")), on("/a/b", to("cart")), on("/a/b", to("next"))]));
    let shadowed = "denied rule-shadowed spec.rules[2]";
    assert_eq!(World::with(&[]).told(&created(twice.clone())), [shadowed]);
    let mut early = twice;
    early["spec"]["parentRefs"][0]["name"] = json!("later");
    let told = World::with(&[]).told(&created(early));
    assert!(told.contains(&shadowed.to_owned()), "before its Service too: {told:?}");

    let older = route("a", json!([on("/", to("next"))]));
    assert_eq!(
        World::with(&[older]).told(&created(sound())),
        ["warned rule-shadowed spec.rules[0]"]
    );
}

#[test]
fn weights_that_are_all_zero_are_carried_out_and_only_warned_of() {
    let zero = json!([{"name": "next", "port": 80, "weight": 0}]);
    let told = World::with(&[]).told(&created(route("r", json!([on("/", zero)]))));
    assert_eq!(told, ["warned weights-zero spec.rules[0].backendRefs"]);
}

#[test]
fn a_parent_that_says_service_and_forgets_the_group_is_denied() {
    let mut slip = sound();
    // As the API server fills it in.
    slip["spec"]["parentRefs"][0]["group"] = json!(GROUP);
    assert_eq!(
        World::with(&[]).told(&created(slip)),
        ["denied parent-kind spec.parentRefs[0].group"]
    );
}

#[test]
fn an_update_is_denied_for_what_it_brings_and_not_for_what_was_there() {
    let world = World::with(&[]);
    let bad = route("r", json!([impossible("/b")]));
    let known = "warned rule-invalid spec.rules[1]";
    // The rule has moved.
    let moved = route("r", json!([on("/a", to("next")), impossible("/b")]));
    assert_eq!(world.told(&updated(bad.clone(), moved.clone())), [known]);
    let another = route("r", json!([on("/a", to("next")), impossible("/b"), impossible("/c")]));
    let told = world.told(&updated(moved.clone(), another));
    assert_eq!(told, ["denied rule-invalid spec.rules[2]", known]);
    let other = route("r", json!([on("/a", to("next")), impossible("/b"), {"name": "nowhere"}]));
    let told = world.told(&updated(moved.clone(), other));
    assert_eq!(told, ["denied no-backend spec.rules[2].backendRefs", known]);
    assert_eq!(world.told(&updated(moved, sound())), [""; 0], "mended");
    // It was somebody else's before.
    let mut gateways = bad.clone();
    gateways["spec"]["parentRefs"] = json!([{"name": "edge"}]);
    assert_eq!(world.told(&updated(gateways, bad)), ["denied rule-invalid spec.rules[0]"]);
}

#[test]
fn what_changes_nothing_that_is_read_here_passes_even_where_all_is_wrong() {
    let world = World::with(&[]);
    let bad = route("r", json!([impossible("/b")]));
    let mut labelled = bad.clone();
    labelled["metadata"]["labels"] = json!({"team": "x"});
    labelled["metadata"]["annotations"] = json!({"argocd.argoproj.io/sync-wave": "1"});
    assert_eq!(world.judge(&updated(bad.clone(), labelled)), Verdict::Untouched);
    let mut going = route("r", json!([impossible("/c")]));
    going["metadata"]["deletionTimestamp"] = json!("2027-01-15T08:00:00Z");
    assert_eq!(world.judge(&updated(bad.clone(), going)), Verdict::Untouched);
    let mut status = updated(bad.clone(), route("r", json!([impossible("/c")])));
    status.sub_resource = Some("status".to_owned());
    assert_eq!(world.judge(&status), Verdict::Untouched);
    assert_eq!(world.judge(&request("DELETE", HTTP, Value::Null, bad)), Verdict::Untouched);
}

#[test]
fn what_is_somebody_elses_or_the_clusters_own_is_left_alone() {
    let world = World::with(&[]);
    let mut gateways = route("r", json!([impossible("/b")]));
    gateways["spec"]["parentRefs"] = json!([{"name": "edge"}]);
    assert_eq!(world.judge(&created(gateways)), Verdict::Untouched);
    for namespace in ["kube-system", "kube-node-lease", "remora-system"] {
        let mut system = route("r", json!([impossible("/b")]));
        system["metadata"]["namespace"] = json!(namespace);
        assert_eq!(world.judge(&created(system)), Verdict::Untouched);
    }
    let plain = request("CREATE", SERVICE, service("s", json!({"other.io/x": "1"})), Value::Null);
    assert_eq!(world.judge(&plain), Verdict::Untouched);
    let pods = request("CREATE", ("", "pods"), json!({"metadata": {}}), Value::Null);
    assert_eq!(world.judge(&pods), Verdict::Untouched);
    let foreign = request("CREATE", ("a.example", "httproutes"), sound(), Value::Null);
    assert_eq!(world.judge(&foreign), Verdict::Untouched);
}

#[test]
fn a_port_that_only_the_pods_call_opaque_is_seen_to_be() {
    let text = |opaque: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: cart, namespace: shop}}\n\
             spec: {{clusterIP: 10.96.0.1, selector: {{app: cart}}, ports: [{{port: 80}}]}}\n\
             ---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: cart-0, namespace: shop, labels: {{app: cart}}, \
             annotations: {{config.remora.io/opaque-ports: \"{opaque}\"}}}}\n\
             spec: {{containers: [{{name: c}}]}}\n\
             status: {{podIP: 10.244.0.7, conditions: [{{type: Ready, status: \"True\"}}]}}\n"
        )
    };
    let told = |opaque: &str| {
        let objects = manifest::parse(Path::new("a.yaml"), &text(opaque)).unwrap();
        let mut index = Index::new("cluster.local", "cluster.local");
        index.apply([Event::Reset(objects.resolved().into_values().collect())]);
        World(index).told(&created(route("r", json!([on("/", to("cart"))]))))
    };
    assert_eq!(told("80"), ["warned route-on-opaque-port spec.parentRefs"]);
    assert_eq!(told("81"), [""; 0]);
}

#[test]
fn a_service_is_told_of_its_annotations() {
    let told = |annotations| {
        let service = service("s", annotations);
        World::with(&[]).told(&request("CREATE", SERVICE, service, Value::Null))
    };
    let field = |key: &str| format!("metadata.annotations[{key}]");
    assert_eq!(told(json!({"timeout.remora.io/request": "3s"})), [""; 0]);
    assert_eq!(
        told(json!({"timeout.remora.io/request": "soon", "retry.remora.io/hhtp": "503"})),
        [
            format!("denied annotation-value {}", field("timeout.remora.io/request")),
            format!("warned annotation-ignored {}", field("retry.remora.io/hhtp")),
        ]
    );
    assert_eq!(
        told(json!({"remora.io/inject": "enabled"})),
        [format!("warned annotation-ignored {}", field("remora.io/inject"))]
    );
    // A retry where nothing can be seen that could be sent again.
    let told = told(json!({"config.remora.io/opaque-ports": "80", "retry.remora.io/http": "503"}));
    assert_eq!(told, [format!("warned retry-never {}", field("retry.remora.io"))]);
}

#[test]
fn an_object_that_cannot_be_read_is_allowed_and_said_to_be_unread() {
    let mut newer = sound();
    newer["spec"]["rules"] = json!({"from": "a later version"});
    let request = created(newer);
    let Verdict::Unreadable(why) = World::with(&[]).judge(&request) else { panic!() };
    assert!(why.starts_with("spec.rules: "), "{why}");
}

fn reviewer() -> Reviewer {
    let state = State::new(World::with(&[]).0, Arc::default());
    state.apply([], tokio::time::Instant::now());
    Reviewer { state }
}

async fn answer(reviewer: &Reviewer, body: &[u8]) -> Value {
    let answer = reviewer.answer(body).await.unwrap();
    serde_json::from_slice::<Value>(&answer).unwrap()["response"].clone()
}

#[tokio::test(start_paused = true)]
async fn the_answer_says_field_reason_and_mend_and_is_counted() {
    let reviewer = reviewer();
    let bad = route("r", json!([impossible("/b"), on("/c", to("later")), {"name": "nowhere"}]));
    let denied = answer(&reviewer, &body("CREATE", HTTP, bad, Value::Null)).await;
    assert_eq!((&denied["uid"], &denied["allowed"]), (&json!("u-1"), &json!(false)));
    assert_eq!(
        (&denied["status"]["code"], &denied["status"]["reason"]),
        (&json!(422), &json!("Invalid"))
    );
    let message = denied["status"]["message"].as_str().unwrap();
    let lines: Vec<&str> = message.lines().collect();
    assert_eq!(lines[0], "remora: HTTPRoute shop/r would not do what is written");
    assert!(
        lines[1].starts_with("  spec.rules[0]: ")
            && lines[1].ends_with("; correct or remove it (rule-invalid)"),
        "{message}"
    );
    assert!(lines[2].starts_with("  spec.rules[2].backendRefs: missing, "), "{message}");
    assert_eq!(lines.len(), 3, "{message}");
    let warnings = denied["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].as_str().unwrap().starts_with(
        "remora: spec.rules[1].backendRefs[0].name: there is no service shop/later; correct the name"
    ), "{warnings:?}");

    let warned = route("r", json!([on("/c", to("later"))]));
    let warned = answer(&reviewer, &body("CREATE", HTTP, warned, Value::Null)).await;
    assert_eq!(
        (&warned["allowed"], warned["warnings"].as_array().unwrap().len()),
        (&json!(true), 1)
    );
    let fine = answer(&reviewer, &body("CREATE", HTTP, sound(), Value::Null)).await;
    assert_eq!(fine, json!({"uid": "u-1", "allowed": true}));
    let plain = body("CREATE", SERVICE, service("s", json!({})), Value::Null);
    assert_eq!(answer(&reviewer, &plain).await, json!({"uid": "u-1", "allowed": true}));
    let mut newer = sound();
    newer["spec"]["rules"] = json!(1);
    let unread = answer(&reviewer, &body("CREATE", HTTP, newer, Value::Null)).await;
    assert!(unread["warnings"][0].as_str().unwrap().contains("not judged"), "{unread}");

    let mut text = String::new();
    let registry = reviewer.state.metrics.registry(None);
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for result in ["denied", "warned", "allowed", "untouched", "unreadable"] {
        let line = format!("remora_control_plane_admission_reviews_total{{result=\"{result}\"}} 1");
        assert!(text.contains(&line), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn many_findings_are_told_in_one_bounded_answer() {
    let rules: Vec<Value> = (0..40).map(|n| impossible(&format!("/{n}"))).collect();
    let denied =
        answer(&reviewer(), &body("CREATE", HTTP, route("r", json!(rules)), Value::Null)).await;
    let message = denied["status"]["message"].as_str().unwrap();
    assert_eq!(message.lines().count(), 1 + MAX_FINDINGS + 1);
    assert_eq!(message.lines().last(), Some("  and 20 more"));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_was_applied_a_moment_before_its_route_is_waited_for() {
    let reviewer = reviewer();
    let state = Arc::clone(&reviewer.state);
    let news = async move {
        tokio::time::sleep(SETTLE / 2).await;
        let service = service("later", json!({}));
        state.apply([seen(&service)], tokio::time::Instant::now());
    };
    let body = body("CREATE", HTTP, route("r", json!([on("/", to("later"))])), Value::Null);
    let (answer, ()) = tokio::join!(answer(&reviewer, &body), news);
    assert_eq!(answer, json!({"uid": "u-1", "allowed": true}));
}

#[tokio::test(start_paused = true)]
async fn before_the_first_state_nothing_is_said_to_be_missing() {
    let index = Index::new("cluster.local", "cluster.local");
    let reviewer = Reviewer { state: State::new(index, Arc::default()) };
    let early = answer(&reviewer, &body("CREATE", HTTP, sound(), Value::Null)).await;
    assert_eq!(early, json!({"uid": "u-1", "allowed": true}));
    reviewer.state.apply([], tokio::time::Instant::now());
    let later = answer(&reviewer, &body("CREATE", HTTP, sound(), Value::Null)).await;
    assert_eq!(later["warnings"].as_array().map(Vec::len), Some(2), "{later}");
}
