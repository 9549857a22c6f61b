//! Certificates and roots that are replaced under load.

use std::time::Duration;

use remora_tests::{
    load::Load,
    mesh::{Mesh, Pair},
    origin::Origin,
    wait::eventually,
};

#[tokio::test]
async fn certificates_rotate_under_load_without_a_failure() {
    let mut mesh = Mesh::new();
    mesh.leaf_lifetime = Duration::from_secs(10);
    let pair = Pair::in_mesh(mesh, &[]).await;
    let _origin = Origin::saying(pair.server.pod.app(), "hello").await;
    let load = Load::start(pair.entry());
    load.passes(50).await;
    let serials =
        [pair.client.certs().await["serial"].clone(), pair.server.certs().await["serial"].clone()];
    for (sidecar, old) in [&pair.client, &pair.server].into_iter().zip(serials) {
        eventually("a new certificate", || async {
            (sidecar.certs().await["serial"] != old).then_some(())
        })
        .await;
    }
    load.passes(100).await;
    load.without_failures().await;
    assert!(pair.client.metric("remora_identity_cert_refreshes_total", &[]).await >= 2);
}
