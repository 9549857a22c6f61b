//! `trafficDistribution`: who is near, and what spills over from there.

use std::sync::Arc;

use http::{Request, Response};
use remora_tests::{
    mesh::{Mesh, NAMESPACE, POD_PORT, Pod, SERVICE_PORT},
    origin::{Origin, Speaks, full, get},
    sidecar::Sidecar,
    wait::eventually,
};
use serde_json::json;
use tokio::sync::Semaphore;

/// A Service of pods without sidecars in zones a, b and b, and a caller in zone a.
struct Zones {
    mesh: Mesh,
    client: Sidecar,
    pods: Vec<(Pod, Origin)>,
    /// Requests that may end; each pod's own.
    gates: Vec<Arc<Semaphore>>,
}

const FREE: usize = Semaphore::MAX_PERMITS / 2;

impl Zones {
    async fn start(distribution: &str) -> Self {
        Self::start_assuming(distribution, "30ms").await
    }

    /// With what far endpoints are taken to need at least.
    async fn start_assuming(distribution: &str, rtt: &str) -> Self {
        let mut mesh = Mesh::new();
        mesh.write_raw("service-orders", &service(distribution, rtt));
        let web = mesh.pod("web", "web");
        place(&mesh, &web, "a");
        let (mut pods, mut gates) = (Vec::new(), Vec::new());
        for (name, zone) in [("near", "a"), ("far-1", "b"), ("far-2", "b")] {
            let pod = mesh.plain_pod(name, "orders");
            place(&mesh, &pod, zone);
            let gate = Arc::new(Semaphore::new(FREE));
            gates.push(Arc::clone(&gate));
            let origin = Origin::serve(pod.app(), Speaks::H1, move |_: Request<_>| {
                let (gate, zone) = (Arc::clone(&gate), zone);
                async move {
                    let _passed = gate.acquire().await;
                    Response::new(full(zone))
                }
            });
            pods.push((pod, origin.await));
        }
        mesh.start_plane().await;
        let client = mesh.sidecar(&web, &["orders"]).await;
        eventually("an answer", async || {
            (get(client.entry("orders")).await.ok()?.status == 200).then_some(())
        })
        .await;
        client.until_endpoints("orders", 3).await;
        Self { mesh, client, pods, gates }
    }

    /// How many more requests each pod gets, of so many one after the other.
    async fn shares(&self, requests: usize) -> Vec<usize> {
        let count = || self.pods.iter().map(|(_, origin)| origin.requests()).collect::<Vec<_>>();
        let before = count();
        for _ in 0..requests {
            assert_eq!(get(self.client.entry("orders")).await.unwrap().status, 200);
        }
        count().iter().zip(before).map(|(after, before)| after - before).collect()
    }
}

fn service(distribution: &str, rtt: &str) -> String {
    let port = json!({"port": SERVICE_PORT, "targetPort": POD_PORT, "appProtocol": "http"});
    let annotations =
        json!({"timeout.remora.io/connect": "10s", "balancer.remora.io/default-rtt": rtt});
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "orders", "namespace": NAMESPACE, "annotations": annotations},
        "spec": {"selector": {"app": "orders"}, "ports": [port], "trafficDistribution": distribution},
    })
    .to_string()
}

/// Writes a pod with the labels that say where it is.
fn place(mesh: &Mesh, pod: &Pod, zone: &str) {
    let labels = json!({"app": pod.service, "topology.kubernetes.io/zone": zone});
    let annotations = if pod.meshed {
        json!({ (remora_core::names::annotations::INJECTED): "test" })
    } else {
        json!({})
    };
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": NAMESPACE, "labels": labels, "annotations": annotations},
        "spec": {"serviceAccountName": pod.name, "containers": [{"name": "app"}]},
        "status": {"phase": "Running", "podIP": pod.ip, "podIPs": [{"ip": pod.ip}],
                   "conditions": [{"type": "Ready", "status": "True"}]},
    });
    mesh.write_raw(&format!("pod-{}", pod.name), &object.to_string());
}

#[tokio::test]
async fn pods_in_the_callers_zone_get_all_while_they_can_take_it() {
    for word in ["PreferSameZone", "PreferClose", "PreferSameNode"] {
        let zones = Zones::start(word).await;
        assert_eq!(zones.shares(60).await, [60, 0, 0], "{word}");
    }
}

#[tokio::test]
async fn what_the_zone_is_too_slow_for_spills_over_and_comes_back() {
    let zones = Zones::start_assuming("PreferSameZone", "1ms").await;
    // The near pod holds what it gets: with many in flight it costs more than three far ones.
    zones.gates[0].forget_permits(FREE);
    let far = || zones.pods[1..].iter().map(|(_, origin)| origin.requests()).sum::<usize>();
    let before = far();
    let entry = zones.client.entry("orders");
    let held: Vec<_> = (0..200).map(|_| tokio::spawn(get(entry))).collect();
    eventually("requests to spill over", async || (far() > before).then_some(())).await;
    zones.gates[0].add_permits(FREE);
    for call in held {
        assert_eq!(call.await.unwrap().unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_zone_without_a_pod_is_served_by_the_others_until_one_is_there() {
    let mut zones = Zones::start("PreferSameZone").await;
    let (near, origin) = zones.pods.remove(0);
    zones.mesh.remove_pod(&near);
    zones.client.until_endpoints("orders", 2).await;
    let far = zones.shares(40).await;
    assert!(far.iter().sum::<usize>() == 40 && far.iter().all(|share| *share > 0), "{far:?}");
    place(&zones.mesh, &near, "a");
    zones.client.until_endpoints("orders", 3).await;
    zones.pods.insert(0, (near, origin));
    assert_eq!(zones.shares(40).await, [40, 0, 0]);
}
