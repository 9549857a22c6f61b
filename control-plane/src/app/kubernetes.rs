//! In Kubernetes: objects, tokens and the issuer from the API server.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use http::{HeaderValue, header::USER_AGENT};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use remora_core::drain;
use tokio::{net::TcpListener, sync::mpsc};

use super::{Args, Plane};
use crate::identity::{keeper::Keeper, review::ApiReview, secret};

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
    let home = secret::Home {
        client: client.clone(),
        namespace: args.namespace,
        trust_domain: args.trust_domain,
        external: args.external_issuer,
        leaf_lifetime: args.leaf_lifetime,
        clock: plane.clock,
    };
    let (says, mut seen) = mpsc::channel(4);
    let grpc = async {
        let Some(published) = home.published(&drain).await else { return Ok(()) };
        let Some(keeper) = Keeper::first(plane.setup(published), &mut seen, &drain).await else {
            return Ok(());
        };
        let tokens = Arc::new(ApiReview::new(client.clone(), Arc::clone(&plane.metrics)));
        plane.grpc(keeper, seen, tokens, listener, &drain).await
    };
    let (grpc, ()) = tokio::join!(grpc, home.follow(says, drain.clone()));
    grpc
}

/// A client for the API server.
async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let read = Kubeconfig::read_from(path)
                .with_context(|| format!("--kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("--kubeconfig {}", path.display()))?
        }
        None => Config::infer().await.context(
            "not in a cluster, and no kubeconfig in $KUBECONFIG or ~/.kube/config; \
             name one with --kubeconfig FILE",
        )?,
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(READ);
    // Every caller has its own back-off; two of them would multiply.
    config.default_retry = false;
    let agent = concat!("remora-control-plane/", env!("CARGO_PKG_VERSION"));
    config.headers.push((USER_AGENT, HeaderValue::from_static(agent)));
    Client::try_from(config).context("the API server's address or certificates cannot be used")
}
