//! Services that change while they are used.

use remora_tests::mesh::{Mesh, POD_PORT};
use serde_json::json;

use super::{VIP, serving, who};

#[tokio::test]
async fn kind_and_ports_change_under_live_traffic_without_a_failed_request() {
    let mut mesh = Mesh::new();
    let spec = |kind: &str, ports: serde_json::Value| json!({"type": kind, "clusterIP": VIP, "selector": {"app": "orders"}, "ports": ports});
    let steps = [
        spec("ClusterIP", json!([{"port": 80, "targetPort": POD_PORT}])),
        spec("NodePort", json!([{"port": 80, "targetPort": POD_PORT, "nodePort": 30080}])),
        spec(
            "LoadBalancer",
            json!([
            {"name": "http", "port": 80, "targetPort": POD_PORT},
            {"name": "more", "port": 81, "targetPort": POD_PORT}]),
        ),
        spec(
            "LoadBalancer",
            json!([
            {"name": "more", "port": 81, "targetPort": POD_PORT},
            {"name": "web", "port": 80, "targetPort": POD_PORT, "appProtocol": "http"}]),
        ),
        spec("ClusterIP", json!([{"port": 80, "targetPort": POD_PORT}])),
    ];
    mesh.service_of("orders", &steps[0]);
    let web = mesh.pod("web", "web");
    let pods = [mesh.pod("orders-1", "orders"), mesh.pod("orders-2", "orders")];
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["10.96.0.5:80"]).await;
    let _serving = [serving(&mesh, &pods[0]).await, serving(&mesh, &pods[1]).await];
    for step in &steps {
        mesh.service_of("orders", step);
        // `who` asserts a 200 for each; changes are taken over somewhere among these.
        for _ in 0..150 {
            who(client.entry("10.96.0.5:80")).await;
        }
    }
}
