//! In Kubernetes: objects, tokens and the issuer from the API server.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use http::{HeaderValue, header::USER_AGENT};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use remora_core::drain;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::Instant,
};

use super::{Args, Plane, end_with, sidecars::Sidecars};
use crate::{
    discovery::State,
    identity::{keeper::Keeper, review::ApiReview, secret},
    leader::{self, Inputs, Replica},
    metrics::Metrics,
    source::{Event, kube as source},
};

/// Longest wait for a connection to the API server.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest silence on a connection. Watches are ended by the server before that.
const READ: Duration = Duration::from_secs(305);

/// Serves until draining begins.
pub(super) async fn serve(
    args: Args,
    plane: Plane,
    listener: TcpListener,
    drain: drain::Watch,
) -> anyhow::Result<()> {
    let client = client(args.kubeconfig.as_deref()).await?;
    let mut rng = fastrand::Rng::new();
    let replica = Replica {
        namespace: args.namespace.clone(),
        identity: format!("{}_{:08x}", args.replica, rng.u32(..)),
    };
    let home = secret::Home {
        client: client.clone(),
        namespace: args.namespace,
        trust_domain: args.trust_domain,
        external: args.external_issuer,
        leaf_lifetime: args.leaf_lifetime,
        clock: plane.clock,
    };
    let (namespaces, with_sidecars) = watch::channel(Arc::default());
    let source = {
        let (state, mut sidecars) = (Arc::clone(&plane.state), Sidecars::default());
        let apply = move |events: Vec<Event>| {
            let changed = sidecars.apply(&events);
            apply(&state, events);
            if changed {
                let new = Arc::new(sidecars.namespaces());
                namespaces.send_if_modified(|old| {
                    let changed = *old != new;
                    *old = new;
                    changed
                });
            }
        };
        let status = plane.source.clone().unwrap_or_default();
        source::watch(client.clone(), status, apply, drain.clone())
    };
    let (says, mut seen) = mpsc::channel(4);
    let serving = async {
        let Some(published) = home.published(&drain).await else { return Ok(()) };
        let Some(keeper) = Keeper::first(plane.setup(published), &mut seen, &drain).await else {
            return Ok(());
        };
        let inputs = Inputs {
            bundle: keeper.published(),
            namespaces: with_sidecars,
            notices: keeper.notices(),
            state: Arc::clone(&plane.state),
        };
        let (leading, lead) =
            leader::run(client.clone(), replica, inputs, plane.clock, rng, drain.clone());
        let tokens = Arc::new(ApiReview::new(client.clone(), Arc::clone(&plane.metrics)));
        let (served, (), ()) = tokio::join!(
            plane.grpc(keeper, seen, tokens, listener, &drain),
            lead,
            show_leading(leading, &plane.metrics),
        );
        served
    };
    let (served, (), ()) =
        tokio::join!(end_with(&drain, serving), home.follow(says, drain.clone()), source);
    served
}

fn apply(state: &State, events: Vec<Event>) {
    let first = !state.is_loaded();
    for warning in state.apply(events, Instant::now()) {
        tracing::warn!("{warning}");
    }
    if first {
        tracing::info!("first state of the cluster is there");
    }
}

/// Ends when the election does.
async fn show_leading(mut leading: watch::Receiver<bool>, metrics: &Metrics) {
    loop {
        metrics.leader.set(i64::from(*leading.borrow_and_update()));
        if leading.changed().await.is_err() {
            metrics.leader.set(0);
            return;
        }
    }
}

/// A client for the API server.
async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    // Its messages repeat their causes, so only they are told.
    let mut config = match kubeconfig {
        Some(path) => match Kubeconfig::read_from(path) {
            Ok(read) => Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await,
            Err(error) => Err(error),
        }
        .map_err(|error| {
            let path = path.display();
            anyhow!("--kubeconfig {path}: {error}; name a kubeconfig that this user can read")
        })?,
        None => Config::infer().await.map_err(|error| {
            anyhow!(
                "neither a kubeconfig nor a cluster around: {error}; name one with --kubeconfig"
            )
        })?,
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(READ);
    // Every caller has its own back-off; two of them would multiply.
    config.default_retry = false;
    let agent = concat!("remora-control-plane/", env!("CARGO_PKG_VERSION"));
    config.headers.push((USER_AGENT, HeaderValue::from_static(agent)));
    Client::try_from(config).context("the API server's address or certificates cannot be used")
}
