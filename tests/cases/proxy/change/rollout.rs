//! Replicas that are replaced one after the other, sidecars of callers, and applications.

use std::time::Duration;

use futures_util::future::join_all;
use remora_tests::{
    load::{Calls, Load},
    mesh::Mesh,
    sidecar::Sidecar,
};

use super::Replica;

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

/// `orders` with its replicas, and those who call it.
struct Shop {
    mesh: Mesh,
    replicas: Vec<Replica>,
    callers: Vec<Sidecar>,
}

impl Shop {
    async fn open(workers: u16) -> Self {
        let mut mesh = Mesh::new();
        mesh.grace = Duration::from_secs(10);
        mesh.workers = workers;
        mesh.service("orders", &[]);
        let pods: Vec<_> =
            (0..REPLICAS).map(|n| mesh.pod(&format!("orders-{n}"), "orders")).collect();
        let webs: Vec<_> = (0..CALLERS).map(|n| mesh.pod(&format!("web-{n}"), "web")).collect();
        mesh.start_plane().await;
        let replicas = join_all(pods.into_iter().map(|pod| Replica::of(&mesh, pod))).await;
        let callers = join_all(webs.iter().map(|web| mesh.sidecar(web, &["orders"]))).await;
        Self { mesh, replicas, callers }
    }

    fn load(&self) -> Load {
        let entries: Vec<_> = self.callers.iter().map(|caller| caller.entry("orders")).collect();
        Load::of(&entries, &Calls::ALL)
    }

    async fn until_endpoints(&self, count: usize) {
        join_all(self.callers.iter().map(|caller| caller.until_endpoints("orders", count))).await;
    }
}

/// Every replica is replaced: the new one up, the old one drained, ended and removed.
async fn rolling_restart(workers: u16, told: Told) {
    let mut shop = Shop::open(workers).await;
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
    eprintln!("{sent} requests");
}

#[tokio::test]
async fn a_rollout_whose_callers_are_told_in_time_loses_no_request() {
    rolling_restart(1, Told::Early).await;
}

#[tokio::test]
async fn a_rollout_whose_callers_are_told_late_loses_no_request() {
    rolling_restart(2, Told::Late).await;
}
