//! Certificates and roots that are replaced under load.

use std::{collections::HashSet, time::Duration};

use remora_tests::{mesh::Mesh, sidecar::Sidecar, wait::eventually};

use super::Shop;

/// Renewed after one to two seconds, each at a moment of its own.
const SHORT: Duration = Duration::from_secs(4);
/// How long a new root is known before anybody has a certificate of it.
const OVERLAP: Duration = Duration::from_secs(1);

async fn serial(sidecar: &Sidecar) -> String {
    sidecar.certs().await["serial"].to_string()
}

/// Waits until each has had so many more certificates, one after the other.
async fn renewed(shop: &Shop, times: usize) {
    for sidecar in shop.sidecars() {
        let mut known = HashSet::from([serial(sidecar).await]);
        eventually("new certificates", async || {
            known.insert(serial(sidecar).await);
            (known.len() > times).then_some(())
        })
        .await;
    }
}

async fn until_roots(shop: &Shop, count: u64) {
    for sidecar in shop.sidecars() {
        eventually(&format!("{count} roots"), async || {
            (sidecar.certs().await["roots"] == count).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn certificates_that_are_replaced_every_second_cost_no_request() {
    let mut mesh = Mesh::new();
    mesh.leaf_lifetime = SHORT;
    let shop = Shop::open(mesh, 2, 2).await;
    let load = shop.load();
    load.passes(100).await;
    renewed(&shop, 3).await;
    load.passes(100).await;
    load.without_failures().await;
}

/// The old root alone, then both, then the new one alone.
#[tokio::test]
async fn a_root_that_is_replaced_costs_no_request() {
    let mut mesh = Mesh::new();
    (mesh.leaf_lifetime, mesh.rotation_overlap) = (SHORT, OVERLAP);
    let mut shop = Shop::open(mesh, 2, 2).await;
    let load = shop.load();
    load.passes(100).await;
    until_roots(&shop, 1).await;
    shop.mesh.replace_root();
    until_roots(&shop, 2).await;
    // The new one signs after the overlap, in which each may get one more of the old.
    shop.mesh.plane_phase("retiring").await;
    renewed(&shop, 1).await;
    load.passes(100).await;
    // The old root would stay for longer than its last certificates; a control plane that starts
    // anew knows nothing of it.
    shop.mesh.kill_plane().await;
    shop.mesh.start_plane().await;
    until_roots(&shop, 1).await;
    renewed(&shop, 1).await;
    load.passes(100).await;
    load.without_failures().await;
}
