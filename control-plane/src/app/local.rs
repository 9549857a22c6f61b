//! One machine: manifests, tokens and the CA in directories.

use std::sync::Arc;

use anyhow::Context;
use remora_core::drain;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::Instant,
};

use super::{Args, Plane, end_with};
use crate::{
    discovery::State,
    identity::{
        bundle::Roots,
        keeper::{Keeper, Seen},
        store,
        token::TokenDir,
    },
    leader::trust_bundles::PublishedBundle,
    source::manifest::watch::{Loaded, watch as watch_manifests},
};

/// Serves until draining begins.
pub(super) async fn serve(
    args: Args,
    plane: Plane,
    listener: TcpListener,
    drain: drain::Watch,
) -> anyhow::Result<()> {
    let (clock, lifetime) = (plane.clock, args.leaf_lifetime);
    let authority = store::open(args.ca_dir.as_deref(), &args.trust_domain, lifetime, clock())?;
    let (says, mut seen) = mpsc::channel(4);
    says.send(Seen::Issuer(Arc::new(authority))).await?;
    let Some(keeper) = Keeper::first(plane.setup(Roots::default()), &mut seen, &drain).await else {
        return Ok(());
    };
    let published = keeper.published();
    if let Some(path) = &args.trust_bundle_out {
        store::write_bundle(path, &published.borrow().pem)?;
    }
    let follow = async {
        if let Some(dir) = args.ca_dir {
            store::follow(dir, lifetime, clock, says, drain.clone()).await;
        }
    };
    let write = async {
        if let Some(path) = args.trust_bundle_out {
            write_bundles(&path, published, &drain).await;
        }
    };
    let token_dir = args.token_dir.context("--token-dir is missing")?;
    let state = Arc::clone(&plane.state);
    let manifests =
        watch_manifests(args.manifests, move |loaded| apply(&state, loaded), drain.clone());
    let tokens = Arc::new(TokenDir::new(token_dir));
    let grpc = plane.grpc(keeper, seen, tokens, listener, &drain);
    let (grpc, watched, (), ()) = tokio::join!(grpc, end_with(&drain, manifests), follow, write);
    watched.context("manifests cannot be watched; raise fs.inotify.max_user_instances")?;
    grpc
}

async fn write_bundles(
    path: &std::path::Path,
    mut published: watch::Receiver<Arc<PublishedBundle>>,
    drain: &drain::Watch,
) {
    loop {
        tokio::select! {
            () = drain.draining() => return,
            Ok(()) = published.changed() => {}
            else => return,
        }
        let bundle = Arc::clone(&published.borrow_and_update());
        if let Err(error) = store::write_bundle(path, &bundle.pem) {
            tracing::error!(%error, "trust bundle not written");
        }
    }
}

fn apply(state: &State, loaded: Loaded) {
    let events = match loaded {
        Loaded::First(events) | Loaded::Changed(events) => events,
        Loaded::Bad(problems) => {
            state.metrics.load_failures.inc();
            for problem in problems {
                tracing::error!("{problem}");
            }
            if state.is_loaded() {
                tracing::warn!("manifests refused; the last good state stays in force");
            }
            return;
        }
    };
    let first = !state.is_loaded();
    for warning in state.apply(events, Instant::now()) {
        tracing::warn!("{warning}");
    }
    if first {
        tracing::info!("manifests loaded");
    }
}
