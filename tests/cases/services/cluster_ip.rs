//! Services with an address of their own.

use remora_tests::{
    mesh::{Mesh, POD_PORT},
    wire::Wire,
};
use serde_json::json;

use super::{VIP, ask, balanced, by_mtls, serving, tells, who, whos};

#[tokio::test]
async fn a_cluster_address_and_port_are_the_service_whatever_the_host_says() {
    let mut mesh = Mesh::new();
    mesh.service_of("orders", &balanced("orders"));
    let (web, orders) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
    mesh.start_plane().await;
    let entry = format!("{VIP}:80");
    let client = mesh.sidecar(&web, &[&entry, "10.96.0.5:81"]).await;
    let (server, _app) = serving(&mesh, &orders).await;
    for host in ["orders", "books.shop.svc.cluster.local", "example.com:8443", "203.0.113.9"] {
        let answer = ask(client.entry(&entry), host).await;
        assert_eq!((answer.status, answer.text), (200, format!("orders-1 {host}")));
    }
    assert!(by_mtls(&server).await > 0);
    // A port that the Service does not have is refused, as by address so by name.
    assert!(Wire::is_refused(client.entry("10.96.0.5:81"), b"").await);
    let reason = [("direction", "outbound"), ("reason", "no-route")];
    assert_eq!(client.metric("remora_proxy_errors_total", &reason).await, 1);
}

/// Two pods whose containers have the port `main` at different numbers, behind two ports.
#[tokio::test]
async fn named_target_ports_are_each_pods_own_behind_every_port_of_the_service() {
    const ELSEWHERE: u16 = POD_PORT + 1;
    let mut mesh = Mesh::new();
    let port = |name, number| json!({"name": name, "port": number, "targetPort": "main"});
    mesh.service_of(
        "orders",
        &json!({"clusterIP": VIP, "selector": {"app": "orders"},
            "ports": [port("http", 80), port("extra", 8000)]}),
    );
    let web = mesh.pod("web", "web");
    let pods = [mesh.pod("orders-1", "orders"), mesh.pod("orders-2", "orders")];
    for (pod, number) in pods.iter().zip([POD_PORT, ELSEWHERE]) {
        let ports = json!([{"name": "main", "containerPort": number}]);
        let object = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod.name, "namespace": "shop", "labels": {"app": "orders"},
                "annotations": {"remora.io/proxy-version": "test"}},
            "spec": {"serviceAccountName": pod.name, "containers": [{"name": "app", "ports": ports}]},
            "status": {"phase": "Running", "podIP": pod.ip,
                "conditions": [{"type": "Ready", "status": "True"}]}});
        mesh.write_raw(&format!("pod-{}", pod.name), &object.to_string());
    }
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["10.96.0.5:80", "10.96.0.5:8000"]).await;
    let servers =
        [mesh.sidecar(&pods[0], &[]).await, mesh.sidecar_behind(&pods[1], ELSEWHERE).await];
    let _apps = [tells(pods[0].app(), "orders-1").await, tells(pods[1].app(), "orders-2").await];
    for entry in ["10.96.0.5:80", "10.96.0.5:8000"] {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            seen.insert(who(client.entry(entry)).await);
            if seen.len() == 2 {
                break;
            }
        }
        assert_eq!(seen.len(), 2, "{entry}: {seen:?}");
    }
    for server in &servers {
        assert!(by_mtls(server).await > 0);
    }
}

#[tokio::test]
async fn a_headless_services_pod_is_reached_by_its_own_address_with_mtls() {
    let mut mesh = Mesh::new();
    let ports = json!([{"port": POD_PORT}]);
    mesh.service_of(
        "each",
        &json!({"clusterIP": "None", "selector": {"app": "each"}, "ports": ports}),
    );
    let web = mesh.pod("web", "web");
    let pods = [mesh.pod("each-0", "each"), mesh.pod("each-1", "each")];
    mesh.start_plane().await;
    let entries = pods.each_ref().map(|pod| pod.address().to_string());
    let client = mesh.sidecar(&web, &entries.each_ref().map(String::as_str)).await;
    let mut all = Vec::new();
    for pod in &pods {
        all.push(serving(&mesh, pod).await);
    }
    for ((pod, entry), (server, _)) in pods.iter().zip(&entries).zip(&all) {
        assert_eq!(whos(client.entry(entry), 5).await, [pod.name.as_str()]);
        assert!(by_mtls(server).await > 0, "{}", pod.name);
    }
}
