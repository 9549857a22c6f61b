//! One machine: manifests, tokens and the CA in directories.

use std::{collections::HashMap, sync::Arc};

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
    index::routes::RouteId,
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
    let (state, mut told) = (Arc::clone(&plane.state), HashMap::new());
    let on = move |loaded| {
        apply(&state, loaded);
        tell_of_routes(&state, &mut told);
    };
    let manifests = watch_manifests(args.manifests, on, drain.clone());
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

/// Says of routes what in a cluster their status would say, once for each change. `told` has what was
/// said last.
fn tell_of_routes(state: &State, told: &mut HashMap<RouteId, Vec<String>>) {
    for id in state.take_routes_due() {
        let status = state.read(|index| index.route_status(&id));
        let problems = status.map(|status| status.problems()).unwrap_or_default();
        let (kind, namespace, name) = (id.kind.as_str(), &id.name.namespace, &id.name.name);
        if told.get(&id) != Some(&problems) {
            problems
                .iter()
                .for_each(|problem| tracing::warn!("{kind} {namespace}/{name} {problem}"));
        }
        if problems.is_empty() {
            told.remove(&id);
        } else {
            told.insert(id, problems);
        }
    }
    told.retain(|id, _| state.read(|index| index.route_status(id).is_some()));
}
