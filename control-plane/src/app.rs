//! Puts the parts together: the only file that knows all others.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use remora_core::{
    admin::{self, Admin},
    drain, names, settings,
    spiffe::SpiffeId,
    telemetry::LogHandle,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use crate::{
    dashboard::Dashboard,
    discovery::{Discovery, State},
    identity::{
        Identity,
        bundle::Roots,
        ca,
        keeper::{Keeper, Seen, Setup},
        rotation::{Rules, Signer},
        token::TokenReview,
    },
    index::Index,
    metrics::Metrics,
    pages, server,
    server::tls,
    source::kube::Status,
};

mod kubernetes;
mod local;
mod sidecars;

/// The program's flags.
#[derive(Debug, Clone, clap::Args)]
#[command(group = clap::ArgGroup::new("home").required(true))]
pub struct Args {
    /// Directory of manifests (YAML or JSON, searched recursively); may be given several times.
    #[arg(long = "manifests", value_name = "DIR", group = "home", requires = "token_dir")]
    pub manifests: Vec<PathBuf>,
    /// Directory of the workloads' registered tokens.
    #[arg(long, value_name = "DIR", requires = "manifests")]
    pub token_dir: Option<PathBuf>,
    /// Directory of ca.crt, tls.crt and tls.key; made if absent, followed while running. Without it
    /// the CA lives in memory.
    #[arg(long, value_name = "DIR", requires = "manifests")]
    pub ca_dir: Option<PathBuf>,
    /// Where to write the roots for proxies to trust at their start.
    #[arg(long, value_name = "FILE", requires = "manifests")]
    pub trust_bundle_out: Option<PathBuf>,
    /// Take objects, tokens and the issuer from a Kubernetes API server.
    #[arg(long, group = "home")]
    pub kubernetes: bool,
    /// How to reach the API server. Without it: $KUBECONFIG, ~/.kube/config, or the cluster that this
    /// runs in.
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    pub kubeconfig: Option<PathBuf>,
    /// The control plane's own namespace.
    #[arg(long, value_name = "NAME", default_value = names::SYSTEM_NAMESPACE)]
    pub namespace: String,
    /// Name of this replica in the election of the leader; made unique by a random suffix.
    #[arg(long, value_name = "NAME", env = "HOSTNAME", default_value = "control-plane")]
    pub replica: String,
    /// Never make the issuer's Secret: somebody else brings it.
    #[arg(long, requires = "kubernetes")]
    pub external_issuer: bool,
    /// Address of the gRPC server.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8086")]
    pub listen: SocketAddr,
    /// Address of the admin server.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9990")]
    pub admin_listen: SocketAddr,
    /// Address at which the API server may ask, by HTTPS, about routes and Services that are applied.
    /// Without it nothing is judged at admission.
    #[arg(long, value_name = "ADDR", requires = "kubernetes")]
    pub admission_listen: Option<SocketAddr>,
    /// Trust domain of the SPIFFE ids.
    #[arg(long, value_name = "NAME", default_value = names::TRUST_DOMAIN)]
    pub trust_domain: String,
    /// DNS suffix of the cluster.
    #[arg(long, value_name = "NAME", default_value = names::CLUSTER_DOMAIN)]
    pub cluster_domain: String,
    /// Lifetime of the workloads' certificates, at least 10s.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = leaf_lifetime)]
    pub leaf_lifetime: Duration,
    /// How long a new root is published before certificates of it are given out.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = settings::parse_duration)]
    pub rotation_overlap: Duration,
}

impl Args {
    /// The flags of a home in directories, all others at their defaults.
    #[must_use]
    pub fn local(manifests: Vec<PathBuf>, token_dir: PathBuf) -> Self {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            manifests,
            token_dir: Some(token_dir),
            ca_dir: None,
            trust_bundle_out: None,
            kubernetes: false,
            kubeconfig: None,
            namespace: names::SYSTEM_NAMESPACE.to_owned(),
            replica: "control-plane".to_owned(),
            external_issuer: false,
            listen: loopback(names::ports::CONTROL_PLANE),
            admin_listen: loopback(names::ports::CONTROL_PLANE_ADMIN),
            admission_listen: None,
            trust_domain: names::TRUST_DOMAIN.to_owned(),
            cluster_domain: names::CLUSTER_DOMAIN.to_owned(),
            leaf_lifetime: Duration::from_secs(24 * 3600),
            rotation_overlap: Duration::from_secs(60),
        }
    }
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
    drain::until_signal(GRACE, |watch| run(args, Some(log), watch)).await
}

/// Runs until draining begins.
///
/// # Errors
/// One line where it cannot start: what, where, the mend.
pub async fn run(args: Args, log: Option<LogHandle>, drain: drain::Watch) -> anyhow::Result<()> {
    let admission = async {
        let Some(address) = args.admission_listen else { return Ok(None) };
        bind(address, "--admission-listen").await.map(Some)
    };
    let listeners = Listeners {
        grpc: bind(args.listen, "--listen").await?,
        admin: bind(args.admin_listen, "--admin-listen").await?,
        admission: admission.await?,
    };
    serve(args, listeners, log, drain).await
}

/// Where the program listens, bound already.
#[derive(Debug)]
pub struct Listeners {
    /// Discovery and identity.
    pub grpc: TcpListener,
    /// The admin server.
    pub admin: TcpListener,
    /// Reviews at admission, in Kubernetes; without it nothing is judged there.
    pub admission: Option<TcpListener>,
}

/// The same on listeners that are bound already.
///
/// # Errors
/// As [`run`].
pub async fn serve(
    args: Args,
    listeners: Listeners,
    log: Option<LogHandle>,
    drain: drain::Watch,
) -> anyhow::Result<()> {
    let Listeners { grpc, admin: admin_listener, admission } = listeners;
    let plane = Plane::new(&args)?;
    let admin = Admin {
        ready: Arc::new({
            let plane = plane.clone();
            move || plane.ready()
        }),
        metrics: Arc::new(plane.metrics.registry(plane.source.clone())),
        log,
    };
    let dashboard = Dashboard::new(Arc::clone(&plane.state), plane.clock);
    let router = pages::router(admin, Arc::clone(&dashboard));
    let serving = async {
        if args.kubernetes {
            Box::pin(kubernetes::serve(args, plane, (grpc, admission), drain.clone())).await
        } else {
            Box::pin(local::serve(args, plane, grpc, drain.clone())).await
        }
    };
    let (served, (), ()) = tokio::join!(
        end_with(&drain, serving),
        admin::serve(admin_listener, router, drain.clone()),
        dashboard.run(drain.clone()),
    );
    served
}

/// What both homes share.
#[derive(Clone)]
struct Plane {
    own_id: SpiffeId,
    trust_domain: String,
    rules: Rules,
    clock: fn() -> SystemTime,
    metrics: Arc<Metrics>,
    state: Arc<State>,
    /// Who signs, as soon as there is somebody.
    signer: Arc<OnceLock<watch::Receiver<Arc<Signer>>>>,
    /// How the watches of the API server go; `None` without one.
    source: Option<Arc<Status>>,
}

impl Plane {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::default());
        let index = Index::new(&args.trust_domain, &args.cluster_domain);
        Ok(Self {
            own_id: SpiffeId::control_plane(&args.trust_domain).context("--trust-domain")?,
            trust_domain: args.trust_domain.clone(),
            rules: Rules { overlap: args.rotation_overlap, leaf_lifetime: args.leaf_lifetime },
            clock: wall_clock,
            state: State::new(index, Arc::clone(&metrics)),
            metrics,
            signer: Arc::default(),
            source: args.kubernetes.then(Arc::default),
        })
    }

    /// The first state and an issuer that signs. Not whether the API server answers right now: what is
    /// known goes on being served without it.
    fn ready(&self) -> Result<(), String> {
        if !self.state.is_loaded() {
            let watches = self.source.as_ref().map(|source| source.waiting());
            return Err(match watches {
                None => "manifests not loaded yet; see the log for what is wrong".to_owned(),
                Some(Some(waiting)) => format!("waiting for {waiting}"),
                Some(None) => "the first lists are being read".to_owned(),
            });
        }
        let Some(signer) = self.signer.get() else {
            return Err("no good issuer yet; see the log for what is wrong with it".to_owned());
        };
        let (signer, now) = (signer.borrow(), (self.clock)());
        if now >= signer.authority.expires() {
            return Err("the issuer's certificate has expired; put a new one in its place".into());
        }
        match signer.signs_from.duration_since(now) {
            Ok(wait) if !wait.is_zero() => Err(format!(
                "the issuer's root is new to proxies; it signs in {} s",
                wait.as_secs() + 1
            )),
            _ => Ok(()),
        }
    }

    /// What identity begins with.
    fn setup(&self, published: Roots) -> Setup {
        Setup {
            rules: self.rules,
            trust_domain: self.trust_domain.clone(),
            published,
            clock: self.clock,
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// Serves gRPC with what a keeper says, until draining begins and the streams have ended.
    async fn grpc(
        &self,
        keeper: Keeper,
        seen: mpsc::Receiver<Seen>,
        tokens: Arc<dyn TokenReview>,
        listener: TcpListener,
        drain: &drain::Watch,
    ) -> anyhow::Result<()> {
        let (signer, bundle, clock) = (keeper.signer(), keeper.bundle(), self.clock);
        let authority = Arc::clone(&signer.borrow().authority);
        let roots = Arc::clone(&bundle.borrow());
        let (config, renew_in) = tls::issue(&authority, &roots, &self.own_id, clock())?;
        let config = Arc::new(ArcSwap::from_pointee(config));
        let discovery = Discovery {
            state: Arc::clone(&self.state),
            bundle: bundle.clone(),
            drain: drain.clone(),
        };
        let identity = Identity {
            signer: signer.clone(),
            tokens,
            trust_domain: self.trust_domain.clone(),
            bundle: bundle.clone(),
            clock,
            metrics: Arc::clone(&self.metrics),
        };
        let _ = self.signer.set(signer.clone());
        let renewal = tls::renew(
            (signer, bundle),
            |authority, roots| tls::issue(authority, roots, &self.own_id, clock()),
            Arc::clone(&config),
            renew_in,
            drain.clone(),
        );
        tracing::info!(listen = %listener.local_addr()?, "control plane serving");
        let ages = server::Ages::new(fastrand::Rng::new());
        let grpc = server::run(listener, config, discovery, identity, ages, drain.clone());
        let ((), (), keeper) = tokio::join!(grpc, renewal, keeper.run(seen, drain.clone()));
        drop(keeper);
        Ok(())
    }
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

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let bound = match TcpListener::bind(address).await {
        // A machine without IPv6: all addresses are those of IPv4.
        Err(error)
            if address.ip() == Ipv6Addr::UNSPECIFIED
                && error.kind() != io::ErrorKind::AddrInUse =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    match bound {
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
