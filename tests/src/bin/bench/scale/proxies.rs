//! Proxies as discovery sees them: a certificate each, a connection each, what they asked for, and
//! confirmations of what they applied. Some are slow, some are stuck.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc as blocking,
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, bail};
use futures_util::stream;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use remora_core::{latency::Latency, names::TRUST_DOMAIN, spiffe::SpiffeId};
use remora_proto::v1::{
    self as pb, discovery_client::DiscoveryClient, identity_client::IdentityClient, subscribe,
    update::Answer, watch_request::Kind as Asked, watch_response::Kind as Told,
};
use remora_proxy::tls::{
    certify::parse_trust_bundle,
    channel::ControlPlane,
    material::{Certificate, Material, server_auth_config},
    verify::TrustBundle,
};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::{
    changes::{Changes, Way},
    cluster::SERVICE_PORT,
};

/// Handshakes at a time.
const CONNECTING: usize = 16;
/// Bytes that a slow or stuck proxy takes without reading them.
const NARROW: u32 = 4096;
/// Requests on their way to the control plane, as in the proxy.
const SEND_QUEUE: usize = 64;
/// Subscription to a proxy's own inbound policy; those to Services follow.
const INBOUND: u64 = 1;

/// How a proxy behaves once it knows all it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conduct {
    /// As it should.
    Steady,
    /// It rests after each message.
    Slow(Duration),
    /// It reads, and confirms nothing.
    Unconfirming,
    /// It reads its stream no more; its connection lives.
    Unreading,
    /// All of it stands still, its connection too.
    Frozen,
}

/// One proxy.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) node: String,
    pub(super) token: String,
    /// Addresses of the Services that its application dials.
    pub(super) dials: Vec<Ipv4Addr>,
    pub(super) conduct: Conduct,
}

/// Where the control plane is and what the proxies share.
#[derive(Clone)]
pub(super) struct Home {
    pub(super) addr: SocketAddr,
    pub(super) roots: TrustBundle,
    pub(super) changes: Arc<Changes>,
}

/// What a group of proxies has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Proxies that know all they asked for.
    pub(super) synced: AtomicUsize,
    /// Messages since the group began.
    pub(super) messages: AtomicU64,
    /// From a change's writing to its application, each by each proxy.
    pub(super) applied: Mutex<Latency>,
    /// Why a stream ended.
    pub(super) failed: Mutex<Option<String>>,
}

impl Seen {
    /// Begins a measurement.
    pub(super) fn begin(&self) -> u64 {
        *self.applied.lock() = Latency::new();
        self.messages.load(Relaxed)
    }

    /// Fails where a stream ended that should not.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        match &*self.failed.lock() {
            Some(why) => bail!("a proxy's stream ended: {why}"),
            None => Ok(()),
        }
    }
}

/// Proxies on a thread of their own.
pub(super) struct Proxies {
    pub(super) seen: Arc<Seen>,
    pub(super) count: usize,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

enum Stop {
    Running(CancellationToken),
    Frozen(Option<blocking::SyncSender<()>>),
}

impl Proxies {
    /// Connects proxies that go on by themselves.
    pub(super) fn start(home: Home, proxies: Vec<Proxy>) -> anyhow::Result<Self> {
        let (seen, stop, count) =
            (Arc::new(Seen::default()), CancellationToken::new(), proxies.len());
        let (told, ended) = (Arc::clone(&seen), stop.clone());
        let thread = spawn(move || {
            block_on(async {
                tokio::select! {
                    () = run_all(&home, proxies, &told) => {}
                    () = ended.cancelled() => {}
                }
            });
        })?;
        Ok(Self { seen, count, stop: Stop::Running(stop), thread: Some(thread) })
    }

    /// Connects proxies that stand still as soon as they know all they asked for: nothing runs on
    /// their thread any more, so that nothing reads from their sockets.
    pub(super) fn start_frozen(home: Home, proxies: Vec<Proxy>) -> anyhow::Result<Self> {
        let (seen, count) = (Arc::new(Seen::default()), proxies.len());
        let told = Arc::clone(&seen);
        let (stop, stopped) = blocking::sync_channel(1);
        let thread = spawn(move || {
            block_on(async {
                let all = run_all(&home, proxies, &told);
                let synced = async {
                    while told.synced.load(Relaxed) < count && told.failed.lock().is_none() {
                        sleep(Duration::from_millis(10)).await;
                    }
                };
                tokio::select! {
                    () = all => {}
                    () = synced => {
                        // Blocks the one thread on purpose; ends when the sender is dropped.
                        _ = stopped.recv();
                    }
                }
            });
        })?;
        Ok(Self { seen, count, stop: Stop::Frozen(Some(stop)), thread: Some(thread) })
    }

    /// Waits until all of them know all they asked for.
    pub(super) async fn synced(&self, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        while self.seen.synced.load(Relaxed) < self.count {
            self.seen.check()?;
            let known = self.seen.synced.load(Relaxed);
            anyhow::ensure!(
                Instant::now() < deadline,
                "{known} of {} proxies know what they asked for after {patience:?}",
                self.count
            );
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        match &mut self.stop {
            Stop::Running(stop) => stop.cancel(),
            Stop::Frozen(stop) => drop(stop.take()),
        }
        if let Some(thread) = self.thread.take() {
            // A panic of theirs was printed.
            _ = thread.join();
        }
    }
}

fn spawn(run: impl FnOnce() + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    Ok(std::thread::Builder::new().name("proxies".to_owned()).spawn(run)?)
}

fn block_on(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => eprintln!("bench: no runtime for the proxies: {error}"),
    }
}

async fn run_all(home: &Home, proxies: Vec<Proxy>, seen: &Arc<Seen>) {
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    let mut running = JoinSet::new();
    for (number, proxy) in proxies.into_iter().enumerate() {
        let (home, seen, connecting) = (home.clone(), Arc::clone(seen), Arc::clone(&connecting));
        running.spawn(async move {
            let pod = proxy.pod.clone();
            let rng = fastrand::Rng::with_seed(u64::try_from(number).unwrap_or(0));
            if let Err(error) = run(&home, proxy, &seen, &connecting, rng).await {
                seen.failed.lock().get_or_insert(format!("{pod}: {error:#}"));
            }
        });
    }
    while running.join_next().await.is_some() {}
}

/// One proxy from its certificate to the end of its stream.
async fn run(
    home: &Home,
    proxy: Proxy,
    seen: &Seen,
    connecting: &Semaphore,
    mut rng: fastrand::Rng,
) -> anyhow::Result<()> {
    let turn = connecting.acquire().await?;
    let control_plane = ControlPlane {
        authority: home.addr.to_string().into(),
        id: SpiffeId::control_plane(TRUST_DOMAIN)?,
        mark: None,
    };
    let material = certify(home, &proxy, &control_plane, &mut rng).await.context("certificate")?;
    let config = material.grpc_config(&control_plane.id)?;
    let channel = match proxy.conduct {
        Conduct::Steady | Conduct::Unconfirming => control_plane.connect(config, &mut rng).await?,
        _ => narrow(home.addr, config).await?,
    };
    drop(turn);
    let (requests, mut queue) = mpsc::channel(SEND_QUEUE);
    begin(&proxy, &requests).await?;
    let queue = stream::poll_fn(move |context| queue.poll_recv(context));
    let mut answers = DiscoveryClient::new(channel).watch(queue).await?.into_inner();
    let mut view = View::default();
    let mut known = 0;
    loop {
        let message = answers.message().await?.context("the control plane ended it")?;
        seen.messages.fetch_add(1, Relaxed);
        let Some(applied) = view.apply(message, &home.changes, seen) else { continue };
        let was_synced = known > proxy.dials.len();
        known = view.services.len() + usize::from(view.inbound);
        if known > proxy.dials.len() && !was_synced {
            seen.synced.fetch_add(1, Relaxed);
        }
        match proxy.conduct {
            Conduct::Steady | Conduct::Frozen => requests.send(request(applied)).await?,
            Conduct::Slow(rest) => {
                requests.send(request(applied)).await?;
                if was_synced {
                    sleep(rest).await;
                }
            }
            Conduct::Unreading => {
                requests.send(request(applied)).await?;
                if known > proxy.dials.len() {
                    std::future::pending::<()>().await;
                }
            }
            Conduct::Unconfirming => {}
        }
    }
}

/// A connection whose streams take little unread, so that what is not read waits at the control plane.
async fn narrow(addr: SocketAddr, config: ClientConfig) -> anyhow::Result<Channel> {
    let tcp = TcpStream::connect(addr).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::IpAddress(addr.ip().into());
    let mut io = Some(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?);
    let connector = tower::service_fn(move |_: http::Uri| {
        let io = io.take().ok_or(std::io::ErrorKind::NotConnected);
        std::future::ready(io.map(TokioIo::new).map_err(std::io::Error::from))
    });
    let endpoint = Endpoint::from_static("http://control-plane").initial_stream_window_size(NARROW);
    Ok(endpoint.connect_with_connector(connector).await?)
}

/// Says who it is and what its application dials.
async fn begin(proxy: &Proxy, requests: &mpsc::Sender<pb::WatchRequest>) -> anyhow::Result<()> {
    let Proxy { namespace, pod, node, .. } = proxy.clone();
    let version = "bench".to_owned();
    let hello = pb::Hello { namespace, pod, node, zone: String::new(), version };
    let inbound = subscribe::Target::Inbound(pb::InboundTarget {});
    let subscribe = |id, target| Asked::Subscribe(pb::Subscribe { id, target: Some(target) });
    requests.send(request(Asked::Hello(hello))).await?;
    requests.send(request(subscribe(INBOUND, inbound))).await?;
    for (id, ip) in (INBOUND + 1..).zip(&proxy.dials) {
        let address = pb::SocketAddress { ip: ip.octets().to_vec(), port: SERVICE_PORT.into() };
        requests.send(request(subscribe(id, subscribe::Target::Address(address)))).await?;
    }
    Ok(())
}

fn request(kind: Asked) -> pb::WatchRequest {
    pb::WatchRequest { kind: Some(kind) }
}

async fn certify(
    home: &Home,
    proxy: &Proxy,
    control_plane: &ControlPlane,
    rng: &mut fastrand::Rng,
) -> anyhow::Result<Material> {
    let config = server_auth_config(&home.roots, &control_plane.id)?;
    let channel = control_plane.connect(config, rng).await?;
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let csr = rcgen::CertificateParams::default().serialize_request(&key)?.der().to_vec();
    let request = pb::CertifyRequest { token: proxy.token.clone().into_bytes(), csr };
    let answer = IdentityClient::new(channel).certify(request).await?.into_inner();
    let roots = answer.trust_bundle.as_ref().context("no roots")?;
    let time = |seconds| {
        UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    };
    let certificate = Certificate::new(
        answer.chain.into_iter().map(CertificateDer::from).collect(),
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        time(answer.not_before),
        time(answer.not_after),
    )?;
    Ok(Material::new(certificate, parse_trust_bundle(roots)?)?)
}

/// What a proxy knows.
#[derive(Default)]
struct View {
    services: HashMap<u64, HashSet<IpAddr>>,
    inbound: bool,
}

impl View {
    /// Takes a message, and gives its confirmation where it has one.
    fn apply(
        &mut self,
        message: pb::WatchResponse,
        changes: &Changes,
        seen: &Seen,
    ) -> Option<Asked> {
        let (id, version) = match message.kind? {
            Told::Update(update) => {
                match update.answer? {
                    Answer::Service(service) => {
                        let new =
                            service.endpoints.iter().filter_map(|e| ip(e.address.as_ref()?));
                        let new: HashSet<IpAddr> = new.collect();
                        let old = self.services.insert(update.id, new.clone()).unwrap_or_default();
                        note(new.difference(&old), Way::Added, changes, seen);
                        note(old.difference(&new), Way::Removed, changes, seen);
                    }
                    Answer::Inbound(_) => self.inbound = true,
                    Answer::Pod(_) | Answer::NotOurs(_) | Answer::Refused(_) => return None,
                }
                (update.id, update.version)
            }
            Told::Endpoints(delta) => {
                let known = self.services.get_mut(&delta.id)?;
                let new = delta.upsert.iter().filter_map(|e| ip(e.address.as_ref()?));
                let new: Vec<IpAddr> = new.filter(|ip| known.insert(*ip)).collect();
                let old: Vec<IpAddr> = delta.remove.iter().filter_map(ip).collect();
                known.retain(|ip| !old.contains(ip));
                note(&new, Way::Added, changes, seen);
                note(&old, Way::Removed, changes, seen);
                (delta.id, delta.version)
            }
            Told::TrustBundle(_) => return None,
        };
        Some(Asked::Ack(pb::Ack { id, version }))
    }
}

/// Notes how old the changes are that were applied now.
fn note<'a>(ips: impl IntoIterator<Item = &'a IpAddr>, way: Way, changes: &Changes, seen: &Seen) {
    let now = Instant::now();
    for age in ips.into_iter().filter_map(|ip| changes.age(*ip, way, now)) {
        seen.applied.lock().record(age);
    }
}

fn ip(address: &pb::SocketAddress) -> Option<IpAddr> {
    Some(IpAddr::from(<[u8; 4]>::try_from(&address.ip[..]).ok()?))
}
