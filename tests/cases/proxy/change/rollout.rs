//! Replicas, and the sidecars of callers, that are replaced one after the other.

use std::time::Duration;

use remora_tests::{
    load::{Calls, Load},
    mesh::Mesh,
};

use super::{Replica, Shop};

const REPLICAS: usize = 6;
const CALLERS: usize = 3;

/// When the callers learn that a replica goes.
#[derive(Clone, Copy, PartialEq)]
enum Told {
    /// As its sidecar begins to drain.
    Early,
    /// Once nobody is there any more.
    Late,
}

/// Every replica is replaced: the new one up, the old one drained, ended and removed.
async fn rolling_restart(workers: u16, told: Told) {
    let mut mesh = Mesh::new();
    (mesh.grace, mesh.workers) = (Duration::from_secs(10), workers);
    let mut shop = Shop::open(mesh, REPLICAS, CALLERS).await;
    let load = shop.load();
    load.passes(300).await;
    for old in std::mem::take(&mut shop.replicas) {
        let pod = shop.mesh.pod(&format!("{}b", old.pod.name), "orders");
        shop.replicas.push(Replica::of(&shop.mesh, pod).await);
        shop.until_endpoints(REPLICAS + 1).await;
        load.passes(100).await;
        if told == Told::Early {
            shop.mesh.remove_pod(&old.pod);
        }
        old.sidecar.terminate();
        old.sidecar.ended().await;
        drop(old.app);
        if told == Told::Late {
            load.passes(150).await;
            shop.mesh.remove_pod(&old.pod);
        }
        shop.until_endpoints(REPLICAS).await;
    }
    load.passes(100).await;
    let sent = load.without_failures().await;
    for replica in &shop.replicas {
        assert!(replica.app.requests() > 0, "{} had no part of {sent}", replica.pod.name);
    }
}

#[tokio::test]
async fn a_rollout_whose_callers_are_told_in_time_loses_no_request() {
    rolling_restart(1, Told::Early).await;
}

#[tokio::test]
async fn a_rollout_whose_callers_are_told_late_loses_no_request() {
    rolling_restart(2, Told::Late).await;
}

/// The pod stays: what its application has under way is finished, and it dials again.
#[tokio::test]
async fn a_caller_whose_sidecar_is_replaced_loses_no_request() {
    let mut mesh = Mesh::new();
    mesh.grace = Duration::from_secs(10);
    let mut shop = Shop::open(mesh, 2, 2).await;
    let load = Load::patient(&shop.entries(), &Calls::ALL);
    for _ in 0..2 {
        load.passes(100).await;
        let old = shop.callers.remove(0);
        let pod = old.pod.clone();
        old.terminate();
        old.ended().await;
        shop.callers.push(shop.mesh.sidecar(&pod, &["orders"]).await);
    }
    load.passes(100).await;
    load.without_failures().await;
}
