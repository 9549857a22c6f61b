//! Puts the proxy together: the only file that knows all others.

use std::{future::Future, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use remora_core::{
    admin::Admin,
    drain::{Drain, Drained},
    names::{TRUST_DOMAIN, env},
    spiffe::SpiffeId,
    telemetry::LogHandle,
};
use remora_proto::v1 as pb;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, View},
    collect::{self, Collector},
    config::{self, Args, workers_for_quota},
    discovery::{self, Discovery, Limits, snapshot::Snapshot},
    metrics::{Metrics, wall::wall_clock},
    net::{
        admission::{self, Admission},
        connect::Connector,
        listener,
    },
    probe::{Prober, Probes},
    runtime,
    shared::Shared,
    sight::{
        Sight,
        access_log::AccessLog,
        traces::{
            Tracer,
            export::{Export, Workload},
            queue::Queue,
        },
    },
    tls::{certify, channel::ControlPlane, identity::Identity},
};

/// Runs the proxy until `stop` resolves (or the admin endpoint says so), drains and returns.
///
/// # Errors
/// What keeps it from starting: a port in use, a thread that cannot be made.
pub async fn run(
    args: Args,
    log: Option<LogHandle>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    run_with(args, log, Arc::default(), stop).await
}

/// The same with spans that others made, or make, beside those of requests.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    args: Args,
    log: Option<LogHandle>,
    spans: Arc<Queue>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let (drain, watch) = Drain::new();
    let mut rng = fastrand::Rng::new();
    let metrics = Arc::new(Metrics::new(started.into_std()));
    let watched = Watched::start(&args, &metrics, spans)?;
    let sight = Sight::new(rng.u64(..), wall_clock);
    let sight = sight.logging(watched.log.clone()).tracing(watched.tracer(&args.sight, &mut rng));
    let shared = Shared {
        discovery: Discovery::new(Limits::default(), started.into_std()),
        identity: Identity::new(),
        connector: Connector { mark: args.mark },
        admission: admission(args.max_connections),
        max_header_size: args.max_header_size,
        metrics,
        sight: Arc::new(sight),
        drain: watch.clone(),
        pod_ips: args.pod_ips.as_slice().into(),
    };
    let workers = args.workers.map_or_else(default_workers, usize::from);
    let (listeners, own) = runtime::listen(&args, workers)?;
    let admin_listeners = admin_listeners(&args)?;
    let probes: Probes =
        args.probes.parse().map_err(|problem| anyhow!("--probes ({}): {problem}", env::PROBES))?;
    let prober = Prober::new(probes, &args.pod_ips);
    let args = Arc::new(args);

    let tasks = control_tasks(&args, &shared, &mut rng)?;
    let stopped = CancellationToken::new();
    let running = runtime::start(listeners, &shared, &own, &stopped, &mut rng)
        .context("cannot start worker threads")?;

    // The admin endpoint answers to the very end, so it does not take part in the drain.
    let shutdown = CancellationToken::new();
    let (admin_drain, admin_watch) = Drain::new();
    let runtime::Workers { threads, mut runtimes } = running;
    runtimes.push(("control".to_owned(), tokio::runtime::Handle::current()));
    let collector = collector(&shared, runtimes, Arc::clone(&watched.spans));
    let router = admin_router(&args, &shared, prober, (collector, log), &shutdown);
    let mut admin = JoinSet::new();
    for socket in admin_listeners {
        let socket = tokio::net::TcpListener::from_std(socket)?;
        admin.spawn(remora_core::admin::serve(socket, router.clone(), admin_watch.clone()));
    }
    tracing::info!(workers, pod = %args.pod_name, "proxy started");
    let linger = tokio::select! {
        () = stop => args.shutdown_linger,
        // Whoever asks for it needs the proxy no more.
        () = shutdown.cancelled() => Duration::ZERO,
        // Says when it is ready, and then has nothing more to do.
        () = async { report_ready(&shared, started).await; std::future::pending().await } => Duration::ZERO,
    };
    let grace = args.shutdown_grace_period;
    tracing::info!(?linger, ?grace, "draining");
    let drained = if linger.is_zero() {
        drain.drain(grace).await
    } else {
        drain.drain_once_quiet(linger, grace).await
    };
    match drained {
        Drained::Clean => tracing::info!("drained"),
        Drained::Aborted(left) => tracing::warn!(left, "grace period over, connections cut"),
    }
    stopped.cancel();
    admin_watch.start();
    drop(admin_drain);
    tasks.iter().for_each(JoinHandle::abort);
    for thread in threads {
        // A worker that panicked has said so already.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
    admin.abort_all();
    watched.end().await;
    Ok(())
}

/// What the process tells of requests while it runs, and has to finish telling when it ends.
struct Watched {
    log: Option<AccessLog>,
    spans: Arc<Queue>,
    export: Option<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Watched {
    fn start(args: &Args, metrics: &Arc<Metrics>, spans: Arc<Queue>) -> anyhow::Result<Self> {
        let config::Sight { access_log, access_log_format, .. } = &args.sight;
        let format = access_log_format.unwrap_or_default();
        let out = Box::new(std::io::stdout());
        let log = AccessLog::start(*access_log, format, out, Arc::clone(metrics));
        let log = log.context("cannot start the access log's thread")?;
        let stop = CancellationToken::new();
        let export = args.sight.trace_collector.clone().map(|collector| {
            let service = args.sight.service_name.clone().unwrap_or_else(|| args.pod_name.clone());
            let workload = Workload {
                service,
                namespace: args.pod_namespace.clone(),
                pod: args.pod_name.clone(),
                node: args.node.clone(),
            };
            Export::new(Arc::clone(&spans), collector, args.mark, workload)
        });
        let export = export.transpose().context("cannot make the exporter of spans")?;
        let export = export.map(|export| tokio::spawn(export.run(stop.clone())));
        Ok(Self { log, spans, export, stop })
    }

    /// Decides which requests are traced; `None` where there is nobody to tell.
    fn tracer(&self, sight: &config::Sight, rng: &mut fastrand::Rng) -> Option<Tracer> {
        self.export.as_ref()?;
        Some(Tracer::new(sight.trace_sample_rate, Arc::clone(&self.spans), rng.u64(..)))
    }

    /// Tells what is left to be told, for a moment at most.
    async fn end(self) {
        self.stop.cancel();
        if let Some(export) = self.export {
            // A task that panicked has said so already.
            let _ = export.await;
        }
        if let Some(log) = self.log {
            log.close().await;
        }
    }
}

/// One for each family, as for traffic: a kubelet asks the pod's first address.
fn admin_listeners(args: &Args) -> anyhow::Result<Vec<std::net::TcpListener>> {
    let twin = listener::ipv6_twin(args.admin_listen).filter(|_| listener::has_ipv6());
    let mut sockets = Vec::new();
    for address in [Some(args.admin_listen), twin].into_iter().flatten() {
        sockets.extend(listener::bind(address, 1)?);
    }
    Ok(sockets)
}

/// What this process has room for. All descriptors that it may have are asked for.
fn admission(max_connections: Option<u16>) -> Arc<Admission> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let descriptors = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    let memory = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let memory = admission::memory_limit(memory.as_deref());
    let places = max_connections.map(usize::from);
    let places = places.unwrap_or_else(|| admission::places(descriptors, memory));
    Admission::new(places, admission::streams(memory))
}

fn default_workers() -> usize {
    workers_for_quota(std::fs::read_to_string("/sys/fs/cgroup/cpu.max").ok().as_deref())
}

/// Identity, discovery and the ticks of what is counted, on the control thread.
fn control_tasks(
    args: &Arc<Args>,
    shared: &Shared,
    rng: &mut fastrand::Rng,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let id = match &args.control_plane_id {
        Some(id) => id.clone(),
        None => SpiffeId::control_plane(TRUST_DOMAIN)?,
    };
    let settings = certify::Settings {
        trust_domain: id.trust_domain().to_owned(),
        trust_bundle: args.trust_bundle.clone(),
        token: args.token_file.clone(),
        workload: format!("pod {}/{}", args.pod_namespace, args.pod_name),
    };
    let control_plane =
        ControlPlane { authority: args.control_plane.as_str().into(), id, mark: args.mark };
    let certify = certify::run(
        shared.identity.clone(),
        settings,
        control_plane.clone(),
        rng.fork(),
        certify::wall_clock,
    );
    let hello = pb::Hello {
        namespace: args.pod_namespace.clone(),
        pod: args.pod_name.clone(),
        node: args.node.clone(),
        zone: args.zone.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let snapshot = args.snapshot.as_ref().map(|path| {
        Snapshot::load(path, &shared.discovery, Instant::now().into_std()).unwrap_or_else(|error| {
            tracing::warn!(%error, "starting without a snapshot");
            Snapshot::empty(path)
        })
    });
    let (identity, trust_bundle) = (shared.identity.clone(), args.trust_bundle.clone());
    let mesh = discovery::client::Mesh { control_plane, identity, trust_bundle };
    let watch = discovery::client::run(
        shared.discovery.clone(),
        shared.identity.clone(),
        mesh,
        hello,
        snapshot,
        rng.fork(),
    );
    let tick = collect::tick(Arc::clone(&shared.metrics), shared.discovery.clone());
    Ok(vec![tokio::spawn(certify), tokio::spawn(watch), tokio::spawn(tick)])
}

fn collector(
    shared: &Shared,
    runtimes: Vec<(String, tokio::runtime::Handle)>,
    spans: Arc<Queue>,
) -> Collector {
    Collector {
        metrics: Arc::clone(&shared.metrics),
        discovery: shared.discovery.clone(),
        identity: shared.identity.clone(),
        admission: Arc::clone(&shared.admission),
        runtimes,
        spans,
    }
}

fn admin_router(
    args: &Arc<Args>,
    shared: &Shared,
    prober: Prober,
    (collector, log): (Collector, Option<LogHandle>),
    shutdown: &CancellationToken,
) -> axum::Router {
    let ready = {
        let shared = shared.clone();
        Arc::new(move || missing(&shared).map_or(Ok(()), Err))
    };
    let view = View {
        discovery: shared.discovery.clone(),
        identity: shared.identity.clone(),
        metrics: Arc::clone(&shared.metrics),
        args: Arc::clone(args),
        sight: Arc::clone(&shared.sight),
        drain: shared.drain.clone(),
        shutdown: shutdown.clone(),
        prober,
    };
    admin::router(Admin { ready, metrics: Arc::new(collector), log }, view)
}

/// What the proxy cannot do its work without.
fn missing(shared: &Shared) -> Option<String> {
    if shared.drain.is_draining() {
        return Some("draining".to_owned());
    }
    if !shared.identity.ready() {
        return Some("no certificate yet".to_owned());
    }
    let error = || shared.discovery.status().error.map_or_else(String::new, |e| format!(" ({e})"));
    (!shared.discovery.configured()).then(|| format!("no configuration yet{}", error()))
}

async fn report_ready(shared: &Shared, started: Instant) {
    shared.identity.wait_ready().await;
    shared.discovery.wait_configured().await;
    tracing::info!(after_ms = started.elapsed().as_millis(), "ready");
}

/// Resolves on SIGTERM or SIGINT.
///
/// # Errors
/// Where the handlers cannot be installed.
pub fn signals() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
