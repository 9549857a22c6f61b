//! Routes and Services on a cluster: what whoever applies them hears at once.

use http::{HeaderValue, Method};
use k8s_openapi::ByteString;
use remora_core::names::{ISSUER_SECRET, SYSTEM_NAMESPACE};
use remora_tests::{
    origin,
    wait::{eventually, within},
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};

use super::{
    cluster::{Cluster, Program},
    identity::{coded, new_issuer},
};

const NAMESPACE: &str = "shop";
const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes";
const SERVICES: &str = "/api/v1/namespaces/shop/services";
const CONFIGURATION: &str = "validatingwebhookconfigurations";

/// A cluster with two Services and a control plane that the API server can ask.
async fn at_work() -> (Cluster, Program) {
    at_work_with(&[]).await
}

async fn at_work_with(flags: &[&str]) -> (Cluster, Program) {
    let cluster = Cluster::install().await;
    cluster.api.serve_gateway_api();
    cluster.api.namespace(NAMESPACE, &[]);
    for name in ["cart", "next"] {
        cluster.api.put(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": NAMESPACE, "name": name},
            "spec": {"clusterIP": "10.96.7.7", "ports": [{"port": 80}]}}));
    }
    let plane = cluster.control_plane(flags).await;
    plane.ready().await;
    let trusted = |configuration: &Value| {
        let webhooks = configuration["webhooks"].as_array()?;
        let has = |webhook: &Value| webhook["clientConfig"]["caBundle"].is_string();
        (webhooks.len() == 2 && webhooks.iter().all(has)).then_some(())
    };
    cluster
        .api
        .until("the API server's trust", |api| {
            trusted(&api.object(CONFIGURATION, "", "remora-lint")?)
        })
        .await;
    (cluster, plane)
}

/// Status, object and warnings of a request to the API server.
async fn send(
    cluster: &Cluster,
    method: Method,
    path: &str,
    body: &Value,
) -> (u16, Value, Vec<String>) {
    let form =
        if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "kubernetes")
        .header("content-type", form)
        .body(origin::full(body.to_string()))
        .unwrap();
    let mut sender = origin::h1(cluster.api.addr()).await;
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    let answer = origin::Answer::read(response).await.unwrap();
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let warnings = answer.headers.get_all("warning").iter().map(text).collect();
    (answer.status, serde_json::from_str(&answer.text).unwrap(), warnings)
}

fn route(name: &str, rules: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "cart"}], "rules": rules}})
}

/// A rule that no proxy could do.
fn impossible() -> Value {
    json!({"filters": [{"type": "ExtensionRef", "extensionRef": {"group": "a", "kind": "B", "name": "c"}}],
        "backendRefs": [{"name": "next", "port": 80}]})
}

fn to(backend: &str) -> Value {
    json!({"matches": [{"path": {"type": "PathPrefix", "value": "/to"}}],
        "backendRefs": [{"name": backend, "port": 80}]})
}

#[tokio::test]
async fn whoever_applies_a_wrong_route_is_refused_with_all_that_is_wrong() {
    let (cluster, plane) = at_work().await;
    let bad = route("r", json!([impossible(), {"name": "nowhere"}]));
    let trial = format!("{ROUTES}?dryRun=All");
    for path in [ROUTES, &trial] {
        let (status, said, _) = send(&cluster, Method::POST, path, &bad).await;
        let message = said["message"].as_str().unwrap();
        assert_eq!(status, 422, "{message}");
        assert!(message.starts_with("admission webhook \"routes.lint.remora.io\" denied the request: remora: HTTPRoute shop/r"), "{message}");
        for field in ["spec.rules[0]: ", "spec.rules[1].backendRefs: "] {
            assert!(message.contains(field), "{message}");
        }
    }
    assert!(cluster.api.object("httproutes", NAMESPACE, "r").is_none());

    let (status, _, warnings) =
        send(&cluster, Method::POST, ROUTES, &route("r", json!([to("later")]))).await;
    assert_eq!((status, warnings.len()), (201, 1), "{warnings:?}");
    assert!(warnings[0].contains("there is no service shop/later"), "{warnings:?}");

    let rules = json!({"spec": {"rules": [to("next"), impossible()]}});
    let at = format!("{ROUTES}/r");
    let (status, said, _) = send(&cluster, Method::PATCH, &at, &rules).await;
    assert_eq!(status, 422, "{said}");
    let rules = json!({"spec": {"rules": [to("next")]}});
    let (status, _, warnings) = send(&cluster, Method::PATCH, &at, &rules).await;
    assert_eq!((status, warnings), (200, vec![]));
    // What the control plane itself says of the route goes past all this.
    assert_eq!(cluster.api.refused(), [], "the installed role suffices");
    plane.end().await;
}

#[tokio::test]
async fn what_was_wrong_before_can_be_labelled_mended_and_deleted() {
    let (cluster, plane) = at_work().await;
    cluster.api.put(route("old", json!([impossible()])));
    let at = format!("{ROUTES}/old");
    let label = json!({"metadata": {"labels": {"team": "x"}}});
    let (status, _, warnings) = send(&cluster, Method::PATCH, &at, &label).await;
    assert_eq!((status, warnings), (200, vec![]));
    let more = json!({"spec": {"rules": [to("next"), impossible()]}});
    let (status, _, warnings) = send(&cluster, Method::PATCH, &at, &more).await;
    assert_eq!((status, warnings.len()), (200, 1), "{warnings:?}");
    let (status, ..) = send(&cluster, Method::DELETE, &at, &json!({})).await;
    assert_eq!(status, 200);
    plane.end().await;
}

#[tokio::test]
async fn services_with_annotations_of_ours_are_judged_and_others_do_not_come_here() {
    let (cluster, plane) = at_work().await;
    let service = |annotations: Value| {
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": NAMESPACE, "name": "s", "annotations": annotations},
            "spec": {"ports": [{"port": 80}]}})
    };
    let bad = service(json!({"retry.remora.io/limit": "many"}));
    let (status, said, _) = send(&cluster, Method::POST, SERVICES, &bad).await;
    assert_eq!(status, 422, "{said}");
    assert!(
        said["message"].as_str().unwrap().contains("metadata.annotations[retry.remora.io/limit]"),
        "{said}"
    );
    let before = cluster.api.admissions().len();
    let (status, ..) =
        send(&cluster, Method::POST, SERVICES, &service(json!({"a.example/x": "1"}))).await;
    assert_eq!((status, cluster.api.admissions().len()), (201, before));
    plane.end().await;
}

#[tokio::test]
async fn a_namespace_may_opt_out_and_a_dead_control_plane_holds_nobody_up() {
    let (cluster, plane) = at_work().await;
    let bad = |name: &str| route(name, json!([impossible()]));
    let label = json!({"metadata": {"labels": {"remora.io/lint": "disabled"}}});
    cluster.api.merge("namespaces", "", NAMESPACE, label);
    assert_eq!(send(&cluster, Method::POST, ROUTES, &bad("a")).await.0, 201);
    let label = json!({"metadata": {"labels": {"remora.io/lint": null}}});
    cluster.api.merge("namespaces", "", NAMESPACE, label);
    assert_eq!(send(&cluster, Method::POST, ROUTES, &bad("b")).await.0, 422);
    plane.end().await;
    assert_eq!(send(&cluster, Method::POST, ROUTES, &bad("b")).await.0, 201);
}

/// An answer that the API server could not trust would let the route pass, since nobody may be held up.
#[tokio::test]
async fn no_wrong_route_slips_through_while_the_root_is_replaced() {
    let (cluster, plane) = at_work_with(&["--rotation-overlap=1s"]).await;
    let bad = route("r", json!([impossible()]));
    let trial = format!("{ROUTES}?dryRun=All");
    let refused = async || assert_eq!(send(&cluster, Method::POST, &trial, &bad).await.0, 422);
    refused().await;
    let (certificate, key) = new_issuer();
    let data = json!({"tls.crt": coded(&certificate), "tls.key": coded(&key), "ca.crt": coded(&certificate)});
    cluster.api.merge("secrets", SYSTEM_NAMESPACE, ISSUER_SECRET, json!({"data": data}));
    let (mut both, retiring) = (false, "issuer_rotation{phase=\"retiring\"} 1");
    eventually("the new issuer to sign", async || {
        refused().await;
        let configuration = cluster.api.object(CONFIGURATION, "", "remora-lint")?;
        let bundle = configuration["webhooks"][0]["clientConfig"]["caBundle"].clone();
        let bundle: ByteString = serde_json::from_value(bundle).ok()?;
        both |= CertificateDer::pem_slice_iter(&bundle.0).count() == 2;
        let (_, metrics) = plane.try_get("/metrics").await?;
        metrics.contains(retiring).then_some(())
    })
    .await;
    assert!(both, "the old root and the new one were never in the caBundle together");
    for _ in 0..50 {
        refused().await;
    }
    plane.end().await;
}
