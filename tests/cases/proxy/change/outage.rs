//! The control plane is away, and comes back.

use remora_tests::{
    load::Load,
    mesh::Mesh,
    origin::{Origin, get},
    wait::eventually,
};

#[tokio::test]
async fn traffic_goes_on_without_the_control_plane_and_its_return_brings_what_changed() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[]);
    mesh.service("stock", &[]);
    let (web, orders) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
    mesh.start_plane().await;
    let (client, _server) =
        tokio::join!(mesh.sidecar(&web, &["orders", "stock"]), mesh.sidecar(&orders, &[]));
    let _origin = Origin::saying(orders.app(), "hello").await;
    let load = Load::start(client.entry("orders"));
    load.passes(50).await;
    mesh.kill_plane().await;
    eventually("the proxy to notice", || async {
        (client.metric("remora_discovery_connected", &[]).await == 0).then_some(())
    })
    .await;
    load.passes(100).await;
    assert_eq!(client.get("/ready").await.0, 200, "what is known stays in force");
    // What nobody asked for before is not known; it is answered, not left to hang.
    let unknown = get(client.entry("stock")).await.unwrap();
    assert_eq!((unknown.status, unknown.reason()), (504, Some("discovery-timeout")));
    // Meanwhile the world moves on.
    let second = mesh.plain_pod("orders-2", "orders");
    let second_origin = Origin::saying(second.app(), "second").await;
    mesh.start_plane().await;
    client.until("remora_discovery_connected", &[], 1).await;
    client.until_endpoints("orders", 2).await;
    eventually("traffic for the new endpoint", || async {
        (second_origin.requests() > 0).then_some(())
    })
    .await;
    load.without_failures().await;
}
