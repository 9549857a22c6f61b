//! `remora uninstall` on an installation that has been at work.

use std::time::Duration;

use remora_cli::install::uninstall::{self, uninstall};
use remora_tests::apiserver::{ApiServer, Fault};
use serde_json::{Value, json};

use super::cluster::Cluster;

const BUNDLE: &str = "remora-trust-bundle";

/// An installation, two namespaces that use it and one that never heard of it.
async fn at_work() -> ApiServer {
    let api = Cluster::install().await.api;
    for name in ["shop", "billing", "other"] {
        let labels =
            if name == "other" { json!({}) } else { json!({"remora.io/inject": "enabled"}) };
        let metadata = json!({"name": name, "labels": labels, "annotations": labels});
        api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
    }
    for namespace in ["shop", "billing", "remora-system"] {
        api.put(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
            "name": BUNDLE, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "remora"}}}));
    }
    api.put(json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "remora-identity-issuer", "namespace": "remora-system"}}));
    // Not ours, however alike.
    api.put(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": BUNDLE, "namespace": "other"}}));
    api.put(
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "rules": [],
        "metadata": {"name": "reader", "labels": {"app.kubernetes.io/part-of": "remora"}}}),
    );
    api
}

fn sidecar(api: &ApiServer, namespace: &str, name: &str, phase: &str) {
    api.put(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace,
            "annotations": {"remora.io/proxy-version": "0.1.0"},
            "labels": {"pod-template-hash": "abc12"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc12",
                "uid": "1", "controller": true}]},
        "spec": {"containers": []}, "status": {"phase": phase}}));
}

async fn run(
    api: &ApiServer,
    dry_run: bool,
    force: bool,
) -> (Result<bool, uninstall::Error>, String) {
    let args = uninstall::Args {
        dry_run,
        force,
        timeout: Duration::from_secs(20),
        kubeconfig: None,
        context: None,
    };
    let mut out = Vec::new();
    let done = uninstall(api.client(), &args, &mut out).await;
    (done, String::from_utf8(out).unwrap())
}

/// Kind and name of everything that a cluster's owner would call ours.
fn left(api: &ApiServer) -> Vec<String> {
    let ours = |object: &Value| {
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().unwrap();
        (name.starts_with("remora") && metadata["namespace"] != "other")
            || metadata["labels"].get("remora.io/inject").is_some()
    };
    [
        "namespaces",
        "configmaps",
        "secrets",
        "serviceaccounts",
        "services",
        "deployments",
        "poddisruptionbudgets",
        "roles",
        "rolebindings",
        "clusterroles",
        "clusterrolebindings",
        "mutatingwebhookconfigurations",
        "validatingwebhookconfigurations",
    ]
    .iter()
    .flat_map(|kind| api.objects(kind).into_iter().map(move |object| (kind, object)))
    .filter(|(_, object)| ours(object))
    .map(|(kind, object)| format!("{kind}/{}", object["metadata"]["name"]))
    .collect()
}

#[tokio::test]
async fn nothing_of_ours_is_left_and_everything_else_is() {
    let api = at_work().await;
    assert!(left(&api).len() > 15);
    let (done, said) = run(&api, false, false).await;
    assert!(done.unwrap(), "{said}");
    assert_eq!(left(&api), Vec::<String>::new(), "{said}");
    assert!(api.object("configmaps", "other", BUNDLE).is_some());
    assert!(api.object("clusterroles", "", "reader").is_some());
    let shop = api.object("namespaces", "", "shop").unwrap();
    assert_eq!(shop["metadata"]["annotations"]["remora.io/inject"], "enabled");
    assert!(said.contains("kubectl annotate namespace shop remora.io/inject-"), "{said}");

    let (done, said) = run(&api, false, false).await;
    assert!(done.unwrap());
    assert!(said.starts_with("there is no Remora in this cluster"), "{said}");
}

#[tokio::test]
async fn the_webhook_goes_first_and_the_namespace_last() {
    let api = at_work().await;
    let (_, said) = run(&api, false, false).await;
    let removed: Vec<&str> =
        said.lines().filter_map(|line| line.strip_prefix("removed ")).collect();
    assert_eq!(removed.first(), Some(&"mutatingwebhookconfiguration/remora-injector"));
    assert_eq!(removed.last(), Some(&"namespace/remora-system"));
    let at = |start: &str| removed.iter().position(|line| line.starts_with(start)).unwrap();
    assert!(at("deployment/") < at("label "), "who mirrors labels ends before they go");
    assert!(at("deployment/") < at("configmap/"), "who writes bundles ends before they go");
    assert!(at("configmap/") < at("clusterrole/"));
}

#[tokio::test]
async fn a_dry_run_says_the_same_and_removes_nothing() {
    let api = at_work().await;
    let before = left(&api);
    let (done, would) = run(&api, true, false).await;
    assert!(done.unwrap());
    assert_eq!(left(&api), before);
    let (_, did) = run(&api, false, false).await;
    let objects = |said: &str, verb: &str| -> Vec<String> {
        let lines = said.lines().filter_map(|line| line.strip_prefix(verb));
        lines.map(|line| line.replace(" with all that is in it", "")).collect()
    };
    assert_eq!(objects(&would, "would remove "), objects(&did, "removed "));
}

#[tokio::test]
async fn pods_with_sidecars_forbid_it_unless_forced() {
    let api = at_work().await;
    sidecar(&api, "shop", "web-1", "Running");
    sidecar(&api, "shop", "web-2", "Pending");
    let before = left(&api);
    let (done, said) = run(&api, false, false).await;
    assert!(!done.unwrap());
    assert!(said.starts_with("2 pods have sidecars:\n  2 of Deployment web in shop\n"), "{said}");
    assert_eq!(left(&api), before);

    let (done, said) = run(&api, false, true).await;
    assert!(done.unwrap(), "{said}");
    assert_eq!(left(&api), Vec::<String>::new());
    assert!(api.object("pods", "shop", "web-1").is_some());
}

#[tokio::test]
async fn pods_that_have_ended_are_in_nobodys_way() {
    let api = at_work().await;
    sidecar(&api, "shop", "job-1", "Succeeded");
    assert!(run(&api, false, false).await.0.unwrap());
}

#[tokio::test]
async fn what_failed_is_named_and_the_next_run_goes_on() {
    let api = at_work().await;
    api.fail("delete", "clusterroles", Fault::Forbidden);
    let (done, _) = run(&api, false, false).await;
    let error = done.unwrap_err().to_string();
    assert!(error.starts_with("cannot delete clusterrole/remora-control-plane: "), "{error}");
    assert!(error.contains("run it once more"), "{error}");
    api.heal();
    assert!(run(&api, false, false).await.0.unwrap());
    assert_eq!(left(&api), Vec::<String>::new());
}

#[tokio::test]
async fn a_namespace_that_does_not_go_is_named() {
    let api = at_work().await;
    api.keep_terminating();
    let args = uninstall::Args {
        dry_run: false,
        force: false,
        timeout: Duration::from_millis(500),
        kubeconfig: None,
        context: None,
    };
    let error = uninstall(api.client(), &args, &mut Vec::new()).await.unwrap_err().to_string();
    assert!(error.starts_with("namespace/remora-system is still there after 500ms"), "{error}");
}
