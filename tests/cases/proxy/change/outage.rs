//! The control plane is away, and comes back.

use std::time::Duration;

use futures_util::future::join_all;
use remora_tests::{
    load::Load,
    mesh::Mesh,
    origin::{Origin, get},
    wait::eventually,
};

use super::{Replica, Shop, serve};

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

/// Half of the replicas go while nobody can say so, and others come that get no certificate yet.
#[tokio::test]
async fn replicas_that_come_and_go_while_the_control_plane_is_away_cost_no_request() {
    let mut mesh = Mesh::new();
    mesh.grace = Duration::from_secs(10);
    let mut shop = Shop::open(mesh, 4, 2).await;
    let load = shop.load();
    load.passes(100).await;
    shop.mesh.kill_plane().await;
    for caller in &shop.callers {
        eventually("the proxy to notice", async || {
            (caller.metric("remora_discovery_connected", &[]).await == 0).then_some(())
        })
        .await;
    }
    let mut come = Vec::new();
    for (n, old) in shop.replicas.drain(..2).enumerate() {
        shop.mesh.remove_pod(&old.pod);
        old.sidecar.terminate();
        old.sidecar.ended().await;
        drop(old.app);
        let pod = shop.mesh.pod(&format!("orders-{n}b"), "orders");
        let (app, sidecar) = (serve(&pod).await, shop.mesh.unready_sidecar(&pod, &[]));
        come.push(Replica { pod, sidecar, app });
        load.passes(100).await;
    }
    shop.mesh.start_plane().await;
    join_all(come.iter().map(|replica| replica.sidecar.ready())).await;
    for replica in &come {
        eventually("a part of the load", async || (replica.app.requests() > 0).then_some(())).await;
    }
    shop.until_endpoints(4).await;
    load.passes(200).await;
    load.without_failures().await;
}

#[tokio::test]
async fn a_control_plane_that_is_killed_again_and_again_costs_no_request() {
    let mut shop = Shop::open(Mesh::new(), 2, 2).await;
    let load = shop.load();
    for _ in 0..3 {
        load.passes(100).await;
        shop.mesh.kill_plane().await;
        shop.mesh.start_plane().await;
        for caller in &shop.callers {
            caller.until("remora_discovery_connected", &[], 1).await;
        }
    }
    load.without_failures().await;
}
