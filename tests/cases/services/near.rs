//! `trafficDistribution`: near endpoints first, and the others where those are not there. What they are
//! too slow for is in `proxy/topology.rs`.

use remora_tests::{
    mesh::{Mesh, NAMESPACE, Pod},
    origin::Origin,
    sidecar::Sidecar,
    wait::eventually,
};
use serde_json::json;

use super::{balanced, serving, who, whos};

const ENTRY: &str = "10.96.0.5:80";

struct Map {
    mesh: Mesh,
    client: Sidecar,
    pods: Vec<Pod>,
    _serving: Vec<(Sidecar, Origin)>,
}

/// A caller on node n1 in zone a, and pods at these (node, zone).
async fn map(distribution: &str, places: &[(&str, &str)]) -> Map {
    let mut mesh = Mesh::new();
    let mut spec = balanced("orders");
    spec["trafficDistribution"] = json!(distribution);
    // In turns nothing spills over, however busy this machine is.
    let annotations = json!({"balancer.remora.io/algorithm": "round-robin",
        "timeout.remora.io/connect": "10s"});
    let object = json!({"apiVersion": "v1", "kind": "Service", "spec": spec,
        "metadata": {"name": "orders", "namespace": NAMESPACE, "annotations": annotations}});
    mesh.write_raw("service-orders", &object.to_string());
    let place = |mut pod: Pod, (node, zone): (&str, &str)| {
        pod.place = (node.to_owned(), zone.to_owned());
        mesh.write_pod(&pod);
        pod
    };
    let web = place(mesh.pod("web", "web"), ("n1", "a"));
    let numbered = places.iter().enumerate();
    let pods: Vec<Pod> =
        numbered.map(|(n, at)| place(mesh.pod(&format!("orders-{n}"), "orders"), *at)).collect();
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &[ENTRY]).await;
    let mut serving_pods = Vec::new();
    for pod in &pods {
        serving_pods.push(serving(&mesh, pod).await);
    }
    Map { mesh, client, pods, _serving: serving_pods }
}

#[tokio::test]
async fn the_own_zone_is_preferred_and_the_others_are_there_when_it_is_empty() {
    for distribution in ["PreferSameZone", "PreferClose"] {
        let map = map(distribution, &[("n2", "a"), ("n3", "b")]).await;
        let entry = map.client.entry(ENTRY);
        assert_eq!(whos(entry, 30).await, ["orders-0"], "{distribution}");
        map.mesh.remove_pod(&map.pods[0]);
        eventually("the other zone", async || (who(entry).await == "orders-1").then_some(())).await;
    }
}

#[tokio::test]
async fn the_own_node_is_preferred_then_the_zone_then_any() {
    let map = map("PreferSameNode", &[("n1", "a"), ("n2", "a"), ("n3", "b")]).await;
    let entry = map.client.entry(ENTRY);
    assert_eq!(whos(entry, 30).await, ["orders-0"]);
    map.mesh.remove_pod(&map.pods[0]);
    eventually("the zone", async || (who(entry).await == "orders-1").then_some(())).await;
    assert_eq!(whos(entry, 30).await, ["orders-1"]);
    map.mesh.remove_pod(&map.pods[1]);
    eventually("any", async || (who(entry).await == "orders-2").then_some(())).await;
}
