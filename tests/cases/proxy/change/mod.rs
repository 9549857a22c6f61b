//! Things that change under load, with every request counted: proxies that drain, replicas that come
//! and go, certificates, the control plane, and peers that die.

mod drain;
mod keys;
mod outage;
mod rollout;

use std::time::Duration;

use remora_tests::{
    load::answer,
    mesh::{Mesh, Pod},
    origin::{Origin, Speaks},
    sidecar::Sidecar,
};

/// Long enough that requests are under way at any moment.
const BUSY: Duration = Duration::from_millis(5);

/// A pod with its sidecar and its application, which answers whatever [`remora_tests::load`] asks.
struct Replica {
    pod: Pod,
    sidecar: Sidecar,
    app: Origin,
}

impl Replica {
    /// Starts one whose pod is in the manifests already.
    async fn of(mesh: &Mesh, pod: Pod) -> Self {
        let app = serve(&pod).await;
        let sidecar = mesh.sidecar(&pod, &[]).await;
        Self { pod, sidecar, app }
    }
}

async fn serve(pod: &Pod) -> Origin {
    Origin::serve(pod.app(), Speaks::Any, |request| answer(request, BUSY)).await
}
