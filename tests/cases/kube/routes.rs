//! Gateway API's routes on a cluster: what the control plane says of them.

use remora_tests::apiserver::ApiServer;
use serde_json::{Value, json};

use super::cluster::Cluster;

const NAMESPACE: &str = "shop";

/// A route on the Service `cart`, with what another controller said of it.
fn route(generation: i64, backend: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"namespace": NAMESPACE, "name": "cart", "generation": generation},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "cart"}],
            "rules": [{"backendRefs": [{"name": backend, "port": 80}]}],
        },
        "status": {"parents": [{"parentRef": {"name": "edge"}, "conditions": [],
            "controllerName": "other.example/gateway", "theirs": "kept"}]},
    })
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {"clusterIP": "10.96.7.7", "ports": [{"port": 80}]},
    })
}

/// Our entry's conditions, as `Accepted=True:Accepted`, once there are any about this generation.
fn said(api: &ApiServer, generation: i64) -> Option<Vec<String>> {
    let object = api.object("httproutes", NAMESPACE, "cart")?;
    let entries = object["status"]["parents"].as_array()?;
    let ours = entries.iter().find(|e| e["controllerName"] == "remora.io/mesh-controller")?;
    let conditions = ours["conditions"].as_array()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let shown =
        |c: &Value| format!("{}={}:{}", text(&c["type"]), text(&c["status"]), text(&c["reason"]));
    let current = conditions.iter().all(|c| c["observedGeneration"] == generation);
    current.then(|| conditions.iter().map(shown).collect())
}

fn patches(api: &ApiServer) -> usize {
    let written = |a: &&remora_tests::apiserver::Asked| {
        a.verb == "patch" && a.subresource.as_deref() == Some("status")
    };
    api.asked().iter().filter(written).count()
}

#[tokio::test]
async fn one_of_two_replicas_says_what_became_of_a_route_and_the_other_goes_on() {
    let cluster = Cluster::install().await;
    cluster.api.serve_gateway_api();
    let (first, second) = (cluster.control_plane(&[]).await, cluster.control_plane(&[]).await);
    first.ready().await;
    second.ready().await;
    cluster
        .api
        .put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}));
    cluster.api.put(service("cart"));
    cluster.api.put(route(1, "cart"));
    let conditions = cluster.api.until("a status", |api| said(api, 1)).await;
    assert_eq!(conditions, ["Accepted=True:Accepted", "ResolvedRefs=True:ResolvedRefs"]);
    let object = cluster.api.object("httproutes", NAMESPACE, "cart").unwrap();
    assert_eq!(object["status"]["parents"][0]["theirs"], "kept");
    assert_eq!(patches(&cluster.api), 1, "written once");

    // Whoever leads, the other follows.
    first.end().await;
    cluster.api.merge(
        "httproutes",
        NAMESPACE,
        "cart",
        json!({
            "metadata": {"generation": 2},
            "spec": {"rules": [{"backendRefs": [{"name": "gone", "port": 80}]}]},
        }),
    );
    let conditions = cluster.api.until("a new status", |api| said(api, 2)).await;
    assert_eq!(conditions, ["Accepted=True:Accepted", "ResolvedRefs=False:BackendNotFound"]);
    second.end().await;
    assert_eq!(cluster.api.refused(), [], "the installed role suffices");
}
