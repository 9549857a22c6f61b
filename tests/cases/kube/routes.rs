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

/// What the conformance suite of Gateway API waits for in an entry: it is about this parent, as the
/// route writes it, every condition of it is about this version, and these hold.
fn entry(api: &ApiServer, plural: &str, namespace: &str, parent: &Value) -> Option<Vec<String>> {
    let object = api.object(plural, namespace, "r")?;
    let entries = object["status"]["parents"].as_array()?;
    let is_ours = |e: &&Value| {
        e["controllerName"] == "remora.io/mesh-controller" && e["parentRef"] == *parent
    };
    let [ours] = entries.iter().filter(is_ours).collect::<Vec<_>>()[..] else { return None };
    let conditions = ours["conditions"].as_array()?;
    let generation = &object["metadata"]["generation"];
    let current = conditions.iter().all(|c| c["observedGeneration"] == *generation);
    let shown = |c: &Value| {
        let text = |field: &str| c[field].as_str().unwrap_or_default().to_owned();
        format!("{}={}:{}", text("type"), text("status"), text("reason"))
    };
    current.then(|| conditions.iter().map(shown).collect())
}

#[tokio::test]
async fn every_parent_of_every_kind_gets_the_entry_that_the_conformance_suite_waits_for() {
    let parent = |more: Value| {
        let mut parent = json!({"group": "", "kind": "Service", "name": "cart"});
        parent.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        parent
    };
    let cases = [
        ("httproutes", "HTTPRoute", NAMESPACE, vec![parent(json!({}))]),
        ("httproutes", "HTTPRoute", "consumer", vec![parent(json!({"namespace": NAMESPACE}))]),
        (
            "grpcroutes",
            "GRPCRoute",
            NAMESPACE,
            vec![parent(json!({"port": 7070})), parent(json!({"sectionName": "more"}))],
        ),
    ];
    let cluster = Cluster::install().await;
    cluster.api.serve_gateway_api();
    let plane = cluster.control_plane(&[]).await;
    plane.ready().await;
    for namespace in [NAMESPACE, "consumer"] {
        cluster.api.namespace(namespace, &[]);
    }
    let mut cart = service("cart");
    cart["spec"]["ports"] = json!([
        {"name": "http", "port": 80}, {"name": "grpc", "port": 7070}, {"name": "more", "port": 7071}]);
    cluster.api.put(cart);
    let rules = |backend: &str| {
        let backend = json!({"name": backend, "namespace": NAMESPACE, "port": 80});
        json!([{"backendRefs": [backend]}])
    };
    for (_, kind, namespace, parents) in &cases {
        cluster.api.put(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
            "metadata": {"namespace": namespace, "name": "r", "generation": 1},
            "spec": {"parentRefs": parents, "rules": rules("cart")},
        }));
    }
    let until = async |wanted: [&str; 2]| {
        for (plural, _, namespace, parents) in &cases {
            for parent in parents {
                let what = format!("an entry of {plural} {namespace}/r about {parent}");
                let told = |api: &ApiServer| {
                    entry(api, plural, namespace, parent).filter(|told| *told == wanted)
                };
                cluster.api.until(&what, told).await;
            }
        }
    };
    until(["Accepted=True:Accepted", "ResolvedRefs=True:ResolvedRefs"]).await;
    let gone = json!({"metadata": {"generation": 2}, "spec": {"rules": rules("gone")}});
    for (plural, _, namespace, _) in &cases {
        cluster.api.merge(plural, namespace, "r", gone.clone());
    }
    until(["Accepted=True:Accepted", "ResolvedRefs=False:BackendNotFound"]).await;
    plane.end().await;
}
