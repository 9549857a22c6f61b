//! Who is behind a Service: by hand, by readiness, by node.

use std::net::SocketAddr;

use remora_tests::{
    mesh::{Mesh, NAMESPACE, POD_PORT, Pod},
    sidecar::Sidecar,
    wait::eventually,
};
use serde_json::{Value, json};

use super::{VIP, ask, balanced, serving, tells, who, whos};

const ENTRY: &str = "10.96.0.5:80";

/// A slice of `orders`, made by hand: addresses with (ready, serving, terminating).
fn by_hand(mesh: &Mesh, endpoints: &[(SocketAddr, [bool; 3])]) {
    let endpoint = |(address, [ready, serving, terminating]): &(SocketAddr, [bool; 3])| {
        json!({"addresses": [address.ip()],
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
    };
    let all: Vec<Value> = endpoints.iter().map(endpoint).collect();
    let object = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "orders-by-hand", "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": "orders"}},
        "addressType": "IPv4", "endpoints": all, "ports": [{"port": POD_PORT}]});
    mesh.write_raw("slice-orders", &object.to_string());
}

/// A Service without selector, and its caller.
async fn selectorless(mesh: &mut Mesh) -> Sidecar {
    let ports = json!([{"port": 80, "targetPort": POD_PORT}]);
    mesh.service_of("orders", &json!({"clusterIP": VIP, "ports": ports}));
    let web = mesh.pod("web", "web");
    mesh.start_plane().await;
    mesh.sidecar(&web, &[ENTRY]).await
}

/// Pods that no label selects and that nothing knows of: addresses outside.
fn outside(mesh: &Mesh, name: &str) -> Pod {
    let pod = mesh.plain_pod(name, "none");
    mesh.remove_pod(&pod);
    pod
}

#[tokio::test]
async fn a_service_without_selector_goes_where_its_handmade_slice_says() {
    let mut mesh = Mesh::new();
    let far = outside(&mesh, "far");
    let _app = tells(far.address(), "far").await;
    let client = selectorless(&mut mesh).await;
    by_hand(&mesh, &[(far.address(), [true, true, false])]);
    eventually("the slice", async || {
        (ask(client.entry(ENTRY), "x").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(who(client.entry(ENTRY)).await, "far");
}

/// The rules of kube-proxy: the ready ones; where there is none, those that serve while they end.
#[tokio::test]
async fn conditions_of_a_slice_count_as_they_do_for_kube_proxy() {
    let mut mesh = Mesh::new();
    let pods = ["a", "b", "c"].map(|name| outside(&mesh, name));
    let mut apps = Vec::new();
    for pod in &pods {
        apps.push(tells(pod.address(), &pod.name).await);
    }
    let client = selectorless(&mut mesh).await;
    let entry = client.entry(ENTRY);
    let [a, b, c] = pods.each_ref().map(Pod::address);
    let leaving = [false, true, true];
    let unready = [false, false, false];
    by_hand(&mesh, &[(a, [true, true, false]), (b, leaving), (c, unready)]);
    eventually("the ready one", async || (ask(entry, "x").await.status == 200).then_some(())).await;
    assert_eq!(whos(entry, 10).await, ["a"]);
    by_hand(&mesh, &[(a, unready), (b, leaving), (c, [false, false, true])]);
    eventually("the one that ends", async || (who(entry).await == "b").then_some(())).await;
    assert_eq!(whos(entry, 10).await, ["b"]);
    by_hand(&mesh, &[(a, unready), (b, [false, false, true]), (c, unready)]);
    let nobody = eventually("nobody", async || {
        let answer = ask(entry, "x").await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!((nobody.status, nobody.reason()), (503, Some("no-endpoints")));
}

/// A slice of `orders` in zone `b`, made by hand: addresses with the zones that each is for.
fn hinted(mesh: &Mesh, endpoints: &[(SocketAddr, &[&str])]) {
    let endpoint = |(address, zones): &(SocketAddr, &[&str])| {
        let zones: Vec<Value> = zones.iter().map(|zone| json!({"name": zone})).collect();
        let hints = if zones.is_empty() { Value::Null } else { json!({"forZones": zones}) };
        json!({"addresses": [address.ip()], "zone": "b", "hints": hints})
    };
    let all: Vec<Value> = endpoints.iter().map(endpoint).collect();
    let object = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "orders-by-hand", "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": "orders"}},
        "addressType": "IPv4", "endpoints": all, "ports": [{"port": POD_PORT}]});
    mesh.write_raw("slice-orders", &object.to_string());
}

/// As kube-proxy does, though the Service says nothing of zones.
#[tokio::test]
async fn hints_of_a_slice_are_followed_where_every_endpoint_has_them() {
    let mut mesh = Mesh::new();
    let pods = ["one", "two"].map(|name| outside(&mesh, name));
    let mut apps = Vec::new();
    for pod in &pods {
        apps.push(tells(pod.address(), &pod.name).await);
    }
    let ports = json!([{"port": 80, "targetPort": POD_PORT}]);
    // In turns nothing spills over, however busy this machine is.
    let annotations = json!({"balancer.remora.io/algorithm": "round-robin",
        "timeout.remora.io/connect": "10s"});
    let object = json!({"apiVersion": "v1", "kind": "Service",
        "spec": {"clusterIP": VIP, "ports": ports},
        "metadata": {"name": "orders", "namespace": NAMESPACE, "annotations": annotations}});
    mesh.write_raw("service-orders", &object.to_string());
    let mut web = mesh.pod("web", "web");
    web.place = ("n1".to_owned(), "a".to_owned());
    mesh.write_pod(&web);
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &[ENTRY]).await;
    let entry = client.entry(ENTRY);
    let [one, two] = pods.each_ref().map(Pod::address);
    hinted(&mesh, &[(one, &["a"]), (two, &["b"])]);
    eventually("the slice", async || (ask(entry, "x").await.status == 200).then_some(())).await;
    assert_eq!(whos(entry, 20).await, ["one"]);
    hinted(&mesh, &[(one, &["b"]), (two, &["a", "c"])]);
    eventually("other hints", async || (who(entry).await == "two").then_some(())).await;
    assert_eq!(whos(entry, 20).await, ["two"]);
    let both = async || (whos(entry, 20).await == ["one", "two"]).then_some(());
    hinted(&mesh, &[(one, &[]), (two, &["a"])]);
    eventually("no hints, since one has none", both).await;
    hinted(&mesh, &[(one, &["b"]), (two, &["c"])]);
    eventually("nobody is for the zone", both).await;
}

#[tokio::test]
async fn a_pod_that_is_not_ready_counts_only_where_the_service_publishes_it() {
    let mut mesh = Mesh::new();
    mesh.service_of("orders", &balanced("orders"));
    let web = mesh.pod("web", "web");
    let mut pod = mesh.pod("orders-1", "orders");
    pod.ready = false;
    mesh.write_pod(&pod);
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &[ENTRY]).await;
    let _serving = serving(&mesh, &pod).await;
    let answer = ask(client.entry(ENTRY), "x").await;
    assert_eq!((answer.status, answer.reason()), (503, Some("no-endpoints")));
    let mut spec = balanced("orders");
    spec["publishNotReadyAddresses"] = json!(true);
    mesh.service_of("orders", &spec);
    eventually("the pod to count", async || {
        (ask(client.entry(ENTRY), "x").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn internal_traffic_policy_local_stays_on_the_node_or_says_that_nobody_is_there() {
    let mut mesh = Mesh::new();
    let mut spec = balanced("orders");
    spec["internalTrafficPolicy"] = json!("Local");
    mesh.service_of("orders", &spec);
    let mut pods =
        ["web", "orders-1", "orders-2"].map(|name| mesh.pod(name, name.split('-').next().unwrap()));
    for (pod, node) in pods.iter_mut().zip(["n1", "n1", "n2"]) {
        pod.place.0 = node.to_owned();
        mesh.write_pod(pod);
    }
    mesh.start_plane().await;
    let client = mesh.sidecar(&pods[0], &[ENTRY]).await;
    let _near = serving(&mesh, &pods[1]).await;
    let _far = serving(&mesh, &pods[2]).await;
    assert_eq!(whos(client.entry(ENTRY), 20).await, ["orders-1"]);
    mesh.remove_pod(&pods[1]);
    eventually("nobody on the node", async || {
        (ask(client.entry(ENTRY), "x").await.reason() == Some("no-endpoints")).then_some(())
    })
    .await;
}
