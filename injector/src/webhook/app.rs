//! Puts the parts together: the only file that knows all others.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow, bail};
use kube::Client;
use remora_core::{
    admin::{self, Admin},
    drain::{self, Drain},
    names::INJECTOR_SERVICE_ACCOUNT,
    telemetry::LogHandle,
};
use tokio::{net::TcpListener, sync::watch};

use super::{
    args::Args,
    certs::{self, Timing, bundle::Published},
    cluster,
    events::{self, Events},
    metrics::Metrics,
    namespaces::Namespaces,
    review::Reviewer,
    server,
};

/// Name of the Service.
const SERVICE: &str = INJECTOR_SERVICE_ACCOUNT;
/// Time in which API servers learn that this replica goes; it answers all the while.
const LINGER: Duration = Duration::from_secs(3);
/// Time from the signal to the end; a review takes 5 s at most.
const GRACE: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// As [`run`].
pub async fn until_signal(args: Args, log: LogHandle) -> anyhow::Result<()> {
    drain::until_signal(GRACE, |watch| run(args, Some(log), watch)).await
}

/// Runs until draining begins.
///
/// # Errors
/// One line where it cannot start: what, where, the mend.
pub async fn run(args: Args, log: Option<LogHandle>, drain: drain::Watch) -> anyhow::Result<()> {
    let client = cluster::connect(args.kubeconfig.as_deref()).await?;
    let listener = bind(args.listen, "--listen").await?;
    let admin_listener = bind(args.admin_listen, "--admin-listen").await?;
    serve(args, client, listener, admin_listener, log, drain).await
}

/// The same on listeners that are bound already, with a client of its own.
///
/// # Errors
/// Where a flag cannot be used.
pub async fn serve(
    args: Args,
    client: Client,
    listener: TcpListener,
    admin_listener: TcpListener,
    log: Option<LogHandle>,
    drain: drain::Watch,
) -> anyhow::Result<()> {
    let mut settings = args.settings().map_err(|problem| anyhow!(problem))?;
    let metrics = Arc::new(Metrics::default());
    let (events, notices) = Events::new(Arc::clone(&metrics));
    let namespaces = Namespaces::new(client.clone(), args.namespace.clone(), Arc::clone(&metrics));
    let (tls, serving) = watch::channel(None);

    let ready = {
        let (namespaces, serving, drain) =
            (Arc::clone(&namespaces), serving.clone(), drain.clone());
        Arc::new(move || {
            readiness(drain.is_draining(), serving.borrow().is_some(), namespaces.is_synced())
        })
    };
    let router = admin::router(Admin { ready, metrics: Arc::new(metrics.registry()), log });
    // Readiness must tell of the drain as long as reviews are still answered.
    let (admin_drain, admin_watch) = Drain::new();
    let admin = tokio::spawn(admin::serve(admin_listener, router, admin_watch));

    tracing::info!(listen = %listener.local_addr()?, "injector starting");
    settings.native_sidecar = tokio::select! {
        () = drain.draining() => return Ok(()),
        native = cluster::native_sidecar(args.native_sidecar, &client) => native,
    };
    let reviewer = Arc::new(Reviewer {
        settings,
        namespaces: Arc::clone(&namespaces),
        events: events.clone(),
        metrics: Arc::clone(&metrics),
    });
    let reviews = server::run(listener, serving, reviewer, LINGER, drain.clone());
    let context = certs::Context {
        client: client.clone(),
        names: names(&args.namespace, &args.cluster_domain),
        namespace: args.namespace,
        configuration: args.webhook_configuration,
        clock: wall_clock,
        timing: Timing::default(),
        metrics: Arc::clone(&metrics),
        drain: drain.clone(),
    };
    let (made, newest) = watch::channel(None);
    let (seen, published) = watch::channel(Published::Unknown);
    let writing =
        events::write(notices, client.clone(), &args.instance, wall_clock, &metrics, &drain);
    tokio::join!(
        Box::pin(drain.track(reviews)),
        Box::pin(certs::keep(context.clone(), made)),
        Box::pin(certs::bundle::keep(context.clone(), newest.clone(), seen)),
        Box::pin(certs::serving::choose(context, newest, published, tls)),
        Box::pin(namespaces.watch(&events, &drain)),
        Box::pin(namespaces.mirror(&drain)),
        Box::pin(writing),
    );
    admin_drain.drain(Duration::from_secs(1)).await;
    admin.await.context("admin server ended")
}

fn readiness(draining: bool, serving: bool, synced: bool) -> Result<(), String> {
    if draining {
        return Err("draining".to_owned());
    }
    match (serving, synced) {
        (true, true) => Ok(()),
        (false, _) => {
            Err("no certificate yet that the API server trusts; see the log for why".to_owned())
        }
        (true, false) => Err("namespaces not listed yet; see the log for why".to_owned()),
    }
}

/// The names under which API servers call; kube-apiserver uses the first.
fn names(namespace: &str, cluster_domain: &str) -> Vec<String> {
    let name = format!("{SERVICE}.{namespace}.svc");
    vec![format!("{name}.{cluster_domain}"), name]
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let error = match TcpListener::bind(address).await {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    // A node without IPv6 has no [::].
    if address.ip() == std::net::Ipv6Addr::UNSPECIFIED
        && !matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
        && let Ok(listener) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
    {
        return Ok(listener);
    }
    match error.kind() {
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
    }
}

/// Certificates and events live in wall time.
#[expect(clippy::disallowed_methods, reason = "the edge where wall time enters")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
