//! All pods and Services of a stage: makes what runs follow the manifests, and tells DNS, the
//! node's translation and the control plane what is so.

mod reconcile;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use k8s_openapi::api::core::v1::Service;
use parking_lot::{Mutex, RwLock};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{Notify, OnceCell, broadcast},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Options,
    console::Console,
    dns::{self, Zone},
    error::{Doing, Error},
    manifests::{self, Key, Manifests, key},
    mesh, net, plane,
    pod::{self, Pod},
    process::Kept,
    resolved::{self, Resolved},
    services::{self, Backend, Entry, Table},
    state::{StateDir, write_atomic},
};

/// Events that a slow listener may be behind.
const EVENTS: usize = 1024;

/// Something that happened to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It takes connections.
    Ready(Key),
    /// It does not any more.
    NotReady(Key),
    /// It is gone, its address free.
    Gone(Key),
}

/// A pod, as one moment shows it.
#[derive(Debug, Clone)]
pub struct PodStatus {
    /// Namespace and name.
    pub key: Key,
    /// Its address, once it has one.
    pub address: Option<Ipv4Addr>,
    /// Whether it takes connections.
    pub ready: bool,
    /// Whether it is on its way out.
    pub terminating: bool,
    /// Whether it has a sidecar.
    pub meshed: bool,
    /// How often its containers were started again, all together.
    pub restarts: u32,
    /// Process id of the sidecar inside the stage, while it runs.
    pub proxy_pid: Option<u32>,
}

/// A running cluster. Clones are handles on the same one.
#[derive(Debug, Clone)]
pub struct Cluster {
    shared: Arc<Shared>,
}

/// What pods, the control plane and the reconciler share.
#[derive(Debug)]
pub struct Shared {
    /// Paths of logs, tokens, resolved manifests.
    pub state: StateDir,
    /// The terminal.
    pub console: Console,
    /// Directory of the manifests; the working directory of containers that name none.
    pub manifests: PathBuf,
    /// Whether this is a user namespace, which knows one user only.
    pub one_user: bool,
    /// Passed to the control plane.
    pub leaf_lifetime: Option<String>,
    /// Where the host reaches the dashboard, if it does.
    pub dashboard: Option<SocketAddr>,
    /// Pod addresses.
    pub addresses: Mutex<net::Addresses>,
    /// Services with their addresses.
    pub services: RwLock<Vec<Service>>,
    /// Everything that has to end before the cluster has.
    pub tasks: TaskTracker,
    /// Cancelled when all shall end.
    pub stopping: CancellationToken,
    zone: dns::Shared,
    pods: Mutex<BTreeMap<Key, Arc<Pod>>>,
    cluster_ips: Mutex<BTreeMap<Key, Option<Ipv4Addr>>>,
    desired: Mutex<Manifests>,
    resolved: tokio::sync::Mutex<Published>,
    plane: OnceCell<Kept>,
    plane_stop: CancellationToken,
    events: broadcast::Sender<Event>,
    reconcile: Notify,
    gone: Notify,
    warned: Mutex<BTreeSet<String>>,
}

/// What was told last, so that only changes are told.
#[derive(Debug)]
struct Published {
    resolved: Resolved,
    vips: Vec<services::Vip>,
    pods: Vec<u8>,
}

impl Cluster {
    /// Brings the manifests of a directory to life. Call it inside a stage.
    ///
    /// # Errors
    /// Where the manifests cannot be used or the network cannot be made.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let manifests = manifests::load(&options.dir).map_err(Error::Manifests)?;
        let cluster_ips =
            services::allocate(&manifests.services, &BTreeMap::new()).map_err(Error::Manifests)?;
        net::init_node().await?;
        let zone = dns::Shared::default();
        let dns = (net::NODE, 53);
        let udp = UdpSocket::bind(dns).await.doing(|| "listen for DNS".into())?;
        let tcp = TcpListener::bind(dns).await.doing(|| "listen for DNS".into())?;
        tokio::spawn(dns::serve(udp, tcp, zone.clone()));
        let resolved = Resolved::at(options.state.path("resolved"));
        let shared = Arc::new(Shared {
            console: Console::new(options.quiet),
            manifests: options.dir,
            one_user: options.one_user,
            leaf_lifetime: options.leaf_lifetime,
            dashboard: options.dashboard,
            addresses: Mutex::default(),
            services: RwLock::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            zone,
            pods: Mutex::default(),
            cluster_ips: Mutex::default(),
            desired: Mutex::default(),
            resolved: tokio::sync::Mutex::new(Published {
                resolved,
                vips: Vec::new(),
                pods: Vec::new(),
            }),
            plane: OnceCell::new(),
            plane_stop: CancellationToken::new(),
            events: broadcast::channel(EVENTS).0,
            reconcile: Notify::new(),
            gone: Notify::new(),
            warned: Mutex::default(),
            state: options.state,
        });
        shared.accept(manifests, cluster_ips).await;
        tokio::spawn(reconcile::follow(Arc::clone(&shared)));
        Ok(Self { shared })
    }

    /// What happens to pods from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// All pods as they are.
    #[must_use]
    pub fn pods(&self) -> Vec<PodStatus> {
        let pods = self.shared.pods.lock();
        pods.values().map(|pod| status(pod)).collect()
    }

    /// One pod.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<PodStatus> {
        let key = (namespace.to_owned(), name.to_owned());
        self.shared.pods.lock().get(&key).map(|pod| status(pod))
    }

    /// Resolves once every pod of the manifests is ready and no other is left.
    pub async fn settled(&self) {
        let mut events = self.events();
        loop {
            let wanted: BTreeSet<Key> = {
                let desired = self.shared.desired.lock();
                desired.pods.iter().map(|pod| key(&pod.metadata)).collect()
            };
            let pods = self.pods();
            let ready =
                |pod: &PodStatus| pod.ready && !pod.terminating && wanted.contains(&pod.key);
            if pods.len() == wanted.len() && pods.iter().all(ready) {
                return;
            }
            // Events that were missed have changed what the next look shows.
            if let Err(broadcast::error::RecvError::Closed) = events.recv().await {
                return;
            }
        }
    }

    /// The Services and who is behind them.
    #[must_use]
    pub fn table(&self) -> Table {
        self.shared.table()
    }

    /// Reads the directory now, without waiting for the file system's news.
    ///
    /// # Errors
    /// One line for each problem; what was in force stays so.
    pub async fn reload(&self) -> Result<(), Vec<String>> {
        self.shared.reload().await
    }

    /// Kills the control plane and keeps it from coming back; `false` where none runs.
    #[must_use]
    pub fn kill_control_plane(&self) -> bool {
        self.shared.plane.get().is_some_and(Kept::hold)
    }

    /// Lets the control plane come back.
    pub fn revive_control_plane(&self) {
        if let Some(plane) = self.shared.plane.get() {
            plane.release();
        }
    }

    /// The control plane's process, where one runs.
    #[must_use]
    pub fn control_plane(&self) -> Option<Kept> {
        self.shared.plane.get().cloned()
    }

    /// A pod's sidecar process.
    #[must_use]
    pub fn proxy(&self, namespace: &str, name: &str) -> Option<Kept> {
        let key = (namespace.to_owned(), name.to_owned());
        self.shared.pods.lock().get(&key).and_then(|pod| pod.live().proxy)
    }

    /// The process of a pod's container, by name or the first.
    #[must_use]
    pub fn container(&self, namespace: &str, name: &str, container: Option<&str>) -> Option<Kept> {
        let key = (namespace.to_owned(), name.to_owned());
        let live = self.shared.pods.lock().get(&key).map(|pod| pod.live())?;
        let chosen = |c: &&pod::ContainerLive| container.is_none_or(|name| c.name == name);
        live.containers.iter().find(chosen).map(|c| c.process.clone())
    }

    /// Says something on the terminal, once however often it applies.
    pub fn warn_once(&self, line: String) {
        self.shared.warn_once(line);
    }

    /// Ends all pods, then the control plane.
    pub async fn stop(&self) {
        let shared = &self.shared;
        shared.stopping.cancel();
        for pod in shared.pods.lock().values() {
            pod.stop.cancel();
        }
        loop {
            // Made before the look, so that none that goes in between is missed.
            let gone = shared.gone.notified();
            if shared.pods.lock().is_empty() {
                break;
            }
            gone.await;
        }
        shared.plane_stop.cancel();
        shared.tasks.close();
        shared.tasks.wait().await;
    }
}

impl Shared {
    /// Says something once, however often it applies.
    pub fn warn_once(&self, line: String) {
        if self.warned.lock().insert(line.clone()) {
            self.console.say(&line);
        }
    }

    /// Starts the control plane with the first pod that needs it, and waits until it is ready.
    pub async fn plane(self: &Arc<Self>) {
        self.plane.get_or_init(|| plane::start(self, self.plane_stop.clone())).await;
    }

    /// Tells everyone what is so now. In force when it returns.
    pub async fn publish(self: &Arc<Self>) {
        let mut published = self.resolved.lock().await;
        let table = self.table();
        *self.zone.write() = Arc::new(Zone::of(&table));
        let vips = table.vips();
        if vips != published.vips {
            match mesh::translate(&vips) {
                Ok(()) => published.vips = vips,
                Err(error) => self.warn_once(error.to_string()),
            }
        }
        let pods: Vec<Arc<Pod>> = self.pods.lock().values().cloned().collect();
        let entries: Vec<_> = pods.iter().filter_map(|pod| pod.live().entry).collect();
        let text = serde_json::to_vec(&entries).unwrap_or_default();
        if text != published.pods {
            match write_atomic(&self.state.path("pods.json"), &text) {
                Ok(()) => published.pods = text,
                Err(error) => self.warn_once(format!("cannot write pods.json: {error}")),
            }
        }
        let objects: Vec<_> = {
            let desired = self.desired.lock();
            let ips = self.cluster_ips.lock();
            let namespaces = desired.namespaces.values().map(resolved::value);
            let services = desired.services.iter().map(|s| {
                let ip = ips.get(&key(&s.metadata)).copied().flatten();
                resolved::service(s, ip)
            });
            let slices = desired.slices.iter().map(resolved::value);
            let pods = pods.iter().filter_map(|pod| resolved::pod(pod));
            let routes = desired.routes.iter().cloned();
            namespaces.chain(services).chain(slices).chain(routes).chain(pods).collect()
        };
        if let Err(error) = published.resolved.update(objects.into_iter()) {
            let dir = published.resolved.dir().display().to_string();
            self.warn_once(format!("cannot write {dir}: {error}"));
        }
        for pod in pods {
            match pod.changed_readiness() {
                Some(true) => {
                    let address = pod.live().address.map_or_else(String::new, |a| a.to_string());
                    self.announce(&pod, &format!("is ready at {address}"), Event::Ready);
                    // A rollout may go on with the next pod.
                    self.reconcile.notify_one();
                }
                Some(false) => self.announce(&pod, "is not ready any more", Event::NotReady),
                None => {}
            }
        }
    }

    fn announce(&self, pod: &Pod, what: &str, event: impl FnOnce(Key) -> Event) {
        let (namespace, name) = &pod.key;
        self.console.say(&format!("pod {namespace}/{name} {what}"));
        // Nobody listening is fine.
        let _ = self.events.send(event(pod.key.clone()));
    }

    fn table(&self) -> Table {
        let pods: Vec<Arc<Pod>> = self.pods.lock().values().cloned().collect();
        let desired = self.desired.lock();
        let ips = self.cluster_ips.lock();
        let entries = desired.services.iter().map(|service| {
            let ip = ips.get(&key(&service.metadata)).copied().flatten();
            let mut entry = Entry::new(service, ip);
            let picked = pods.iter().filter(|pod| {
                pod.key.0 == entry.key.0
                    && services::selects(service, pod.object.metadata.labels.as_ref())
            });
            entry.backends = picked.filter_map(|pod| backend(pod)).collect();
            entry.backends.sort_by_key(|backend| backend.address);
            entry
        });
        let mut services: Vec<_> = entries.collect();
        services.sort_by(|a, b| a.key.cmp(&b.key));
        Table { services }
    }
}

fn backend(pod: &Pod) -> Option<Backend> {
    let live = pod.live();
    let containers = pod.object.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named =
        ports.filter_map(|p| Some((p.name.clone()?, u16::try_from(p.container_port).ok()?)));
    Some(Backend {
        address: live.address?,
        hostname: pod.object.spec.as_ref().and_then(|spec| spec.hostname.clone()),
        ready: pod.is_ready(),
        terminating: live.terminating.is_some(),
        named_ports: named.collect(),
    })
}

fn status(pod: &Pod) -> PodStatus {
    let live = pod.live();
    PodStatus {
        key: pod.key.clone(),
        address: live.address,
        ready: pod.is_ready() && live.terminating.is_none(),
        terminating: live.terminating.is_some() || pod.stop.is_cancelled(),
        meshed: pod.sidecar.is_some(),
        restarts: live.containers.iter().map(|c| c.process.restarts()).sum(),
        proxy_pid: live.proxy.as_ref().and_then(Kept::pid),
    }
}
