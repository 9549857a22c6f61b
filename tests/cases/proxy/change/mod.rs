//! Things that change under load, with every request counted: proxies that drain, replicas that come
//! and go, certificates, the control plane, and peers that die.

mod death;
mod drain;
mod keys;
mod outage;
mod rollout;

use std::{net::SocketAddr, path::Path, time::Duration};

use futures_util::future::join_all;
use remora_tests::{
    load::{Calls, Load, answer},
    mesh::{Mesh, Pod},
    origin::{Origin, Speaks},
    sidecar::Sidecar,
};

/// `remora`, for proxies that are processes of their own.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_remora-under-test"))
}

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

/// `orders` with its replicas, and those who call it.
struct Shop {
    mesh: Mesh,
    replicas: Vec<Replica>,
    callers: Vec<Sidecar>,
}

impl Shop {
    async fn open(mesh: Mesh, replicas: usize, callers: usize) -> Self {
        mesh.service("orders", &[]);
        Self::stock(mesh, replicas, callers).await
    }

    /// The same where the Service is written already.
    async fn stock(mut mesh: Mesh, replicas: usize, callers: usize) -> Self {
        let pods: Vec<_> =
            (0..replicas).map(|n| mesh.pod(&format!("orders-{n}"), "orders")).collect();
        let webs: Vec<_> = (0..callers).map(|n| mesh.pod(&format!("web-{n}"), "web")).collect();
        mesh.start_plane().await;
        let replicas = join_all(pods.into_iter().map(|pod| Replica::of(&mesh, pod))).await;
        let callers = join_all(webs.iter().map(|web| mesh.sidecar(web, &["orders"]))).await;
        Self { mesh, replicas, callers }
    }

    fn entries(&self) -> Vec<SocketAddr> {
        self.callers.iter().map(|caller| caller.entry("orders")).collect()
    }

    fn load(&self) -> Load {
        Load::of(&self.entries(), &Calls::ALL)
    }

    fn sidecars(&self) -> impl Iterator<Item = &Sidecar> {
        self.callers.iter().chain(self.replicas.iter().map(|replica| &replica.sidecar))
    }

    async fn until_endpoints(&self, count: usize) {
        join_all(self.callers.iter().map(|caller| caller.until_endpoints("orders", count))).await;
    }
}
