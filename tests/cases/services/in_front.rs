//! A controller in front of the mesh that dials addresses of pods itself.

use std::collections::BTreeSet;

use remora_tests::mesh::Mesh;

use super::{balanced, by_mtls, serving, who, whos};

#[tokio::test]
async fn an_ingress_controller_that_dials_one_pod_is_balanced_per_request_over_all() {
    let mut mesh = Mesh::new();
    mesh.service_of("orders", &balanced("orders"));
    let enabled = [("config.remora.io/ingress", "enabled")];
    let gate = mesh.pod_with("gate", "gate", true, &enabled);
    let web = mesh.pod("web", "web");
    let pods = [mesh.pod("orders-1", "orders"), mesh.pod("orders-2", "orders")];
    mesh.start_plane().await;
    let dialled = pods[0].address().to_string();
    let front = mesh.sidecar(&gate, &[&dialled]).await;
    let plain = mesh.sidecar(&web, &[&dialled]).await;
    let servers = [serving(&mesh, &pods[0]).await, serving(&mesh, &pods[1]).await];
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        seen.insert(who(front.entry(&dialled)).await);
        if seen.len() == 2 {
            break;
        }
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    for (server, _) in &servers {
        assert!(by_mtls(server).await > 0);
    }
    assert_eq!(whos(plain.entry(&dialled), 20).await, ["orders-1"], "others mean the pod");
}
