//! Puts the parts together: the only file that knows all others.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use remora_core::{
    admin::{self, Admin},
    drain::{self, Drain, Drained},
    names, settings,
    spiffe::SpiffeId,
    telemetry::LogHandle,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::Instant,
};

use crate::{
    discovery::{Discovery, State},
    identity::{Identity, ca, store, token::TokenDir, unix_seconds},
    index::Index,
    metrics::Metrics,
    pages, server,
    server::tls,
    source::manifest::watch::{Loaded, watch as watch_manifests},
};

/// The program's flags.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Directory of manifests (YAML or JSON, searched recursively); may be given several times.
    #[arg(long = "manifests", value_name = "DIR", required = true)]
    pub manifests: Vec<PathBuf>,
    /// Directory of the workloads' registered tokens.
    #[arg(long, value_name = "DIR")]
    pub token_dir: PathBuf,
    /// Directory of ca.crt, tls.crt and tls.key; made if absent. Without it the CA lives in memory.
    #[arg(long, value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,
    /// Where to write the roots for proxies to trust at their start.
    #[arg(long, value_name = "FILE")]
    pub trust_bundle_out: Option<PathBuf>,
    /// Address of the gRPC server.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8086")]
    pub listen: SocketAddr,
    /// Address of the admin server.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9990")]
    pub admin_listen: SocketAddr,
    /// Trust domain of the SPIFFE ids.
    #[arg(long, value_name = "NAME", default_value = names::TRUST_DOMAIN)]
    pub trust_domain: String,
    /// DNS suffix of the cluster.
    #[arg(long, value_name = "NAME", default_value = names::CLUSTER_DOMAIN)]
    pub cluster_domain: String,
    /// Lifetime of the workloads' certificates, at least 10s.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = leaf_lifetime)]
    pub leaf_lifetime: Duration,
}

fn leaf_lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = settings::parse_duration(text)?;
    if lifetime < ca::MIN_LEAF_LIFETIME {
        return Err(format!("{text:?} is too short; use at least 10s"));
    }
    Ok(lifetime)
}

/// Time that open streams have for ending by themselves.
const GRACE: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// As [`run`].
pub async fn until_signal(args: Args, log: LogHandle) -> anyhow::Result<()> {
    let (drain, watch) = Drain::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut running = std::pin::pin!(run(args, Some(log), watch));
    tokio::select! {
        result = &mut running => return result,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining");
    let (drained, result) =
        tokio::join!(drain.drain(GRACE), tokio::time::timeout(GRACE, &mut running));
    if let Drained::Aborted(left) = drained {
        tracing::warn!(left, "drain deadline passed");
    }
    result.unwrap_or(Ok(()))
}

/// Runs until draining begins.
///
/// # Errors
/// One line where it cannot start: what, where, the mend.
pub async fn run(args: Args, log: Option<LogHandle>, drain: drain::Watch) -> anyhow::Result<()> {
    let listener = bind(args.listen, "--listen").await?;
    let admin_listener = bind(args.admin_listen, "--admin-listen").await?;
    serve(args, listener, admin_listener, log, drain).await
}

/// The same on listeners that are bound already.
///
/// # Errors
/// As [`run`].
pub async fn serve(
    args: Args,
    listener: TcpListener,
    admin_listener: TcpListener,
    log: Option<LogHandle>,
    drain: drain::Watch,
) -> anyhow::Result<()> {
    let clock = wall_clock;
    let own_id = SpiffeId::control_plane(&args.trust_domain).context("--trust-domain")?;
    let lifetime = args.leaf_lifetime;
    let authority =
        Arc::new(store::open(args.ca_dir.as_deref(), &args.trust_domain, lifetime, clock())?);
    if let Some(path) = &args.trust_bundle_out {
        store::write_bundle(path, &authority)?;
    }
    let (config, renew_in) = tls::issue(&authority, &own_id, clock())?;
    let config = Arc::new(ArcSwap::from_pointee(config));

    let metrics = Arc::new(Metrics::default());
    metrics.ca_expiry.set(unix_seconds(authority.expires()));
    let index = Index::new(&args.trust_domain, &args.cluster_domain);
    let state = State::new(index, Arc::clone(&metrics));
    let (bundle_in_force, bundle) = watch::channel(ca::bundle(&authority, &args.trust_domain));

    let ready = {
        let (state, expires) = (Arc::clone(&state), authority.expires());
        Arc::new(move || readiness(state.is_loaded(), clock() < expires))
    };
    let admin = Admin { ready, metrics: Arc::new(metrics.registry()), log };
    let router = pages::router(admin, Arc::clone(&state));
    let discovery =
        Discovery { state: Arc::clone(&state), bundle: bundle.clone(), drain: drain.clone() };
    let identity = Identity {
        authority: Arc::clone(&authority),
        tokens: Arc::new(TokenDir::new(args.token_dir)),
        trust_domain: args.trust_domain,
        bundle,
        clock,
        metrics: Arc::clone(&metrics),
    };
    let apply = move |loaded_now| apply(&state, loaded_now);
    let manifests = watch_manifests(args.manifests, apply, drain.clone());
    let renewal =
        tls::renew(authority, own_id, Arc::clone(&config), renew_in, clock, drain.clone());
    tracing::info!(
        listen = %listener.local_addr()?, admin = %admin_listener.local_addr()?,
        "control plane serving"
    );

    let grpc = server::run(
        listener,
        config,
        discovery,
        identity,
        server::Ages::new(fastrand::Rng::new()),
        drain.clone(),
    );
    let ((), watched, (), ()) = tokio::join!(
        grpc,
        end_with(&drain, manifests),
        renewal,
        admin::serve(admin_listener, router, drain.clone()),
    );
    drop(bundle_in_force);
    watched.context("manifests cannot be watched; raise fs.inotify.max_user_instances")
}

/// One part that fails ends them all, in order.
async fn end_with<E>(
    drain: &drain::Watch,
    part: impl Future<Output = Result<(), E>>,
) -> Result<(), E> {
    let result = part.await;
    drain.start();
    result
}

fn readiness(loaded: bool, ca_valid: bool) -> Result<(), String> {
    match (loaded, ca_valid) {
        (true, true) => Ok(()),
        (false, _) => Err("manifests not loaded yet; see the log for what is wrong".to_owned()),
        (_, false) => Err("CA certificate has expired".to_owned()),
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

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) => match error.kind() {
            io::ErrorKind::AddrInUse => {
                bail!("port in use: {address}; end the other process or choose another {flag}")
            }
            io::ErrorKind::AddrNotAvailable => {
                bail!("{address} is not an address of this machine; choose another {flag}")
            }
            io::ErrorKind::PermissionDenied => {
                bail!("{address}: not allowed; choose a port above 1023 for {flag}")
            }
            _ => bail!("cannot listen on {address}: {error}; choose another {flag}"),
        },
    }
}

/// Certificates live in wall time.
#[expect(clippy::disallowed_methods, reason = "the edge where wall time enters, for certificates")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests;
