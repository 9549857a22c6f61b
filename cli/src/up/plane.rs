//! The control plane of a stage: a process of its own on the node's address.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use remora_core::names::{CLUSTER_DOMAIN, TRUST_DOMAIN, ports};
use tokio::{process::Command, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    cluster::Shared,
    console::Log,
    net::NODE,
    probe,
    process::{Kept, Program, Restart, keep},
};

/// How often it is asked whether it is ready.
const POLL: Duration = Duration::from_millis(25);
/// Time for it to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// Starts the control plane and waits until it is ready, however often it has to be restarted.
pub async fn start(shared: &Arc<Shared>, stop: CancellationToken) -> Kept {
    let state = &shared.state;
    let (resolved, tokens, ca) = (state.path("resolved"), state.path("tokens"), state.path("ca"));
    let bundle = state.path("proxies").join("trust-bundle.pem");
    let lifetime = shared.leaf_lifetime.clone();
    let trust_bundle = bundle.clone();
    let command = move || {
        let mut command = Command::new("/proc/self/exe");
        command.arg("control-plane");
        command.arg("--manifests").arg(&resolved).arg("--token-dir").arg(&tokens);
        command.arg("--ca-dir").arg(&ca).arg("--trust-bundle-out").arg(&trust_bundle);
        command.args(["--listen", &format!("{NODE}:{}", ports::CONTROL_PLANE)]);
        command.args(["--admin-listen", &format!("{NODE}:{}", ports::CONTROL_PLANE_ADMIN)]);
        command.args(["--trust-domain", TRUST_DOMAIN, "--cluster-domain", CLUSTER_DOMAIN]);
        if let Some(lifetime) = &lifetime {
            command.args(["--leaf-lifetime", lifetime]);
        }
        command
    };
    let program = Program {
        label: "control plane".into(),
        command: Box::new(command),
        log: Log::at(&state.path("logs").join("control-plane.log")),
        prefix: None,
        restart: Restart::Always,
        grace: GRACE,
    };
    let (kept, work) = keep(program, shared.console, stop);
    shared.tasks.spawn(work);
    let admin = SocketAddr::from((NODE, ports::CONTROL_PLANE_ADMIN));
    while !(bundle.exists() && matches!(probe::get(admin, "/ready", &[]).await, Ok(200))) {
        sleep(POLL).await;
    }
    if let Some(at) = shared.dashboard {
        shared.console.say(&format!("the dashboard is at http://{at}/"));
    }
    kept
}
