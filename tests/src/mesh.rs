//! A mesh from manifests: a directory of objects, tokens, and the control plane that reads them.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use remora_control_plane::identity::{bundle, ca::NewRoot};
use remora_core::{
    names::{TRUST_DOMAIN, annotations::INJECTED},
    settings::HeaderSize,
};
use remora_proxy::config::{InboundForward, OutboundService};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{
    address::Block,
    process::Process,
    sidecar::{Sidecar, sum, try_get},
    wait::{eventually, within},
    wire::App,
};

/// Namespace of everything.
pub const NAMESPACE: &str = "shop";
/// Port of every Service.
pub const SERVICE_PORT: u16 = 80;
/// Port of every pod, where callers dial.
pub const POD_PORT: u16 = 8080;
/// Where the application of a pod with a sidecar listens, behind it.
const APP_PORT: u16 = 9080;
/// First port of the outbound listeners.
const ENTRY_PORT: u16 = 5000;

/// Manifests, tokens and the control plane.
#[derive(Debug)]
pub struct Mesh {
    dir: TempDir,
    block: Block,
    plane_ip: Ipv4Addr,
    /// Lifetime of the workloads' certificates.
    pub leaf_lifetime: Duration,
    /// How long a new root is published before certificates of it are given out.
    pub rotation_overlap: Duration,
    /// How long sidecars wait for open requests when they end.
    pub grace: Duration,
    /// Worker threads of each sidecar.
    pub workers: u16,
    /// Connections that each sidecar carries at most, where that is not left to the machine.
    pub max_connections: Option<u16>,
    /// Largest head of a request that sidecars take.
    pub max_header_size: HeaderSize,
    plane: Option<Plane>,
}

#[derive(Debug)]
struct Plane {
    stop: CancellationToken,
    thread: JoinHandle<anyhow::Result<()>>,
}

/// One pod.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name, and that of its ServiceAccount.
    pub name: String,
    /// The Service that selects it.
    pub service: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Whether it has a sidecar, as the manifests say.
    pub meshed: bool,
    /// Its annotations.
    pub annotations: Vec<(String, String)>,
    /// Path of its readiness probe.
    pub probe: Option<String>,
    /// Its node and its zone; empty where the manifest does not say.
    pub place: (String, String),
    /// Whether its probes hold.
    pub ready: bool,
}

impl Pod {
    /// Where callers dial.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.ip, POD_PORT))
    }

    /// Where the application listens.
    #[must_use]
    pub fn app(&self) -> SocketAddr {
        SocketAddr::from((self.ip, if self.meshed { APP_PORT } else { POD_PORT }))
    }

    /// Its SPIFFE id.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{}", self.name)
    }
}

impl Default for Mesh {
    fn default() -> Self {
        Self::new()
    }
}

impl Mesh {
    /// Empty, with no control plane running yet.
    ///
    /// # Panics
    /// Where the temporary directory cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for part in ["objects/manifests", "tokens", "ca", "pods"] {
            std::fs::create_dir_all(dir.path().join(part)).expect("a directory");
        }
        let block = Block::claim();
        let plane_ip = block.next();
        let mesh = Self {
            dir,
            block,
            plane_ip,
            leaf_lifetime: Duration::from_secs(3600),
            rotation_overlap: Duration::from_secs(60),
            grace: Duration::from_millis(200),
            workers: 1,
            max_connections: None,
            max_header_size: HeaderSize::default(),
            plane: None,
        };
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        mesh.write_raw("namespace", &namespace.to_string());
        mesh
    }

    /// Writes a Service of port 80 that selects the pods made for it.
    ///
    /// Connecting may take long on a busy machine, so the bound is wide unless given.
    pub fn service(&self, name: &str, annotations: &[(&str, &str)]) {
        self.write_service(name, annotations, None);
    }

    /// The same with an `appProtocol`.
    pub fn service_speaking(&self, name: &str, protocol: &str) {
        self.write_service(name, &[], Some(protocol));
    }

    /// The same with annotations.
    pub fn write_service(&self, name: &str, annotations: &[(&str, &str)], protocol: Option<&str>) {
        let mut all = serde_json::Map::new();
        all.insert("timeout.remora.io/connect".into(), "10s".into());
        all.extend(annotations.iter().map(|(k, v)| ((*k).to_owned(), json!(v))));
        let port = json!({"port": SERVICE_PORT, "targetPort": POD_PORT, "appProtocol": protocol});
        let object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE, "annotations": all},
            "spec": {"selector": {"app": name}, "ports": [port]},
        });
        self.write_raw(&format!("service-{name}"), &object.to_string());
    }

    /// Writes a Service with this `spec`.
    pub fn service_of(&self, name: &str, spec: &Value) {
        let annotations = json!({"timeout.remora.io/connect": "10s"});
        let object = json!({"apiVersion": "v1", "kind": "Service", "spec": spec,
            "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations}});
        self.write_raw(&format!("service-{name}"), &object.to_string());
    }

    /// Writes a pod with a sidecar; the sidecar itself is started apart.
    pub fn pod(&self, name: &str, service: &str) -> Pod {
        self.pod_with(name, service, true, &[])
    }

    /// Writes a pod without one.
    pub fn plain_pod(&self, name: &str, service: &str) -> Pod {
        self.pod_with(name, service, false, &[])
    }

    /// Writes a pod.
    pub fn pod_with(
        &self,
        name: &str,
        service: &str,
        meshed: bool,
        annotations: &[(&str, &str)],
    ) -> Pod {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        let pod = Pod {
            name: name.to_owned(),
            service: service.to_owned(),
            ip: self.block.next(),
            meshed,
            annotations: annotations.iter().map(own).collect(),
            probe: None,
            place: Default::default(),
            ready: true,
        };
        self.write_pod(&pod);
        pod
    }

    /// Writes a pod as it is now.
    pub fn write_pod(&self, pod: &Pod) {
        let own = pod.annotations.iter().map(|(k, v)| (k.clone(), json!(v)));
        let mut annotations: serde_json::Map<String, Value> = own.collect();
        if pod.meshed {
            annotations.insert(INJECTED.to_owned(), json!("test"));
        }
        let probe =
            pod.probe.as_ref().map(|path| json!({"httpGet": {"path": path, "port": POD_PORT}}));
        let (node, zone) = &pod.place;
        let mut labels = serde_json::Map::from_iter([("app".to_owned(), json!(pod.service))]);
        if !zone.is_empty() {
            labels.insert("topology.kubernetes.io/zone".to_owned(), json!(zone));
        }
        let ready = if pod.ready { "True" } else { "False" };
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod.name, "namespace": NAMESPACE,
                         "labels": labels, "annotations": annotations},
            "spec": {"serviceAccountName": pod.name, "nodeName": node, "containers": [
                {"name": "app", "ports": [{"containerPort": POD_PORT}], "readinessProbe": probe}]},
            "status": {"phase": "Running", "podIP": pod.ip, "podIPs": [{"ip": pod.ip}],
                       "conditions": [{"type": "Ready", "status": ready}]},
        });
        self.write_raw(&format!("pod-{}", pod.name), &object.to_string());
    }

    /// Takes a pod out of the manifests.
    ///
    /// # Panics
    /// Where it is not in them.
    pub fn remove_pod(&self, pod: &Pod) {
        std::fs::remove_file(self.manifest(&format!("pod-{}", pod.name))).expect("its manifest");
    }

    /// Takes a Service out of the manifests.
    ///
    /// # Panics
    /// Where it is not in them.
    pub fn remove_service(&self, name: &str) {
        self.remove(&format!("service-{name}"));
    }

    /// Takes a file out of the manifests.
    ///
    /// # Panics
    /// Where it is not in them.
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.manifest(name)).expect("a manifest");
    }

    /// Whether there is such a file of the manifests.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.manifest(name).exists()
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.dir.path().join("objects/manifests").join(format!("{name}.json"))
    }

    /// Writes a file of the manifests, whatever is in it, at once.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn write_raw(&self, name: &str, text: &str) {
        let draft = self.dir.path().join(format!("{name}.draft"));
        std::fs::write(&draft, text).expect("a manifest");
        std::fs::rename(draft, self.manifest(name)).expect("a manifest in place");
    }

    /// Waits until a metric of the control plane is at least so much.
    pub async fn plane_metric(&self, name: &str, least: u64) {
        eventually(&format!("{name} >= {least}"), async || {
            let (_, text) = try_get(self.plane_admin(), "/metrics").await?;
            (sum(&text, name, &[]) >= least).then_some(())
        })
        .await;
    }

    /// Waits until the issuer's rotation is so far.
    pub async fn plane_phase(&self, phase: &str) {
        let metric = "remora_control_plane_issuer_rotation";
        eventually(&format!("rotation: {phase}"), async || {
            let (_, text) = try_get(self.plane_admin(), "/metrics").await?;
            (sum(&text, metric, &[("phase", phase)]) == 1).then_some(())
        })
        .await;
    }

    /// Puts a new root, and nothing of the old one, where the control plane has its CA.
    ///
    /// # Panics
    /// Where it cannot be made or written.
    pub fn replace_root(&self) {
        #[expect(clippy::disallowed_methods, reason = "validity is wall time")]
        let now = SystemTime::now();
        let root = NewRoot::generate(TRUST_DOMAIN, now).expect("a root");
        let dir = self.dir.path().join("ca");
        let certificate = bundle::pem(&root.certificate);
        // Written in place, so that the key stays as closed as it was.
        for (file, text) in [
            ("tls.key", root.key.serialize_pem()),
            ("tls.crt", certificate.clone()),
            ("ca.crt", certificate),
        ] {
            std::fs::write(dir.join(file), text).expect("a file of the CA");
        }
    }

    /// Starts the control plane (again) and waits until it has read the manifests.
    ///
    /// # Panics
    /// Where it does not come up.
    pub async fn start_plane(&mut self) {
        let admin = self.plane_admin();
        let objects = vec![self.dir.path().join("objects/manifests")];
        let args = remora_control_plane::Args {
            ca_dir: Some(self.dir.path().join("ca")),
            trust_bundle_out: Some(self.bundle()),
            listen: self.plane_addr(),
            admin_listen: admin,
            leaf_lifetime: self.leaf_lifetime,
            rotation_overlap: self.rotation_overlap,
            ..remora_control_plane::Args::local(objects, self.dir.path().join("tokens"))
        };
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let thread = std::thread::Builder::new().name("control-plane".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (_drain, watch) = remora_core::drain::Drain::new();
            let run = remora_control_plane::run(args, None, watch);
            // As a kill: whatever is open is cut with the runtime.
            let ended = runtime.block_on(stopping.run_until_cancelled_owned(run));
            ended.unwrap_or(Ok(()))
        });
        self.plane = Some(Plane { stop, thread: thread.expect("a thread") });
        eventually("a ready control plane", || async {
            let ended = self.plane.as_ref().is_some_and(|plane| plane.thread.is_finished());
            assert!(!ended, "the control plane ended");
            matches!(try_get(admin, "/ready").await, Some((200, _))).then_some(())
        })
        .await;
    }

    /// Kills the control plane.
    ///
    /// # Panics
    /// Where it fails instead of ending.
    pub async fn kill_plane(&mut self) {
        let Some(plane) = self.plane.take() else { return };
        plane.stop.cancel();
        let join = tokio::task::spawn_blocking(move || plane.thread.join());
        let result = within("the control plane's end", join).await.expect("joined");
        result.expect("no panic").expect("no error");
    }

    fn plane_addr(&self) -> SocketAddr {
        SocketAddr::from((self.plane_ip, 8086))
    }

    /// The control plane's admin endpoint.
    #[must_use]
    pub fn plane_admin(&self) -> SocketAddr {
        SocketAddr::from((self.plane_ip, 9990))
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("ca-bundle.pem")
    }

    /// Starts a pod's sidecar, with a listener for each of the Services and addresses that its
    /// application calls.
    pub async fn sidecar(&self, pod: &Pod, calls: &[&str]) -> Sidecar {
        let sidecar = self.unready_sidecar(pod, calls);
        sidecar.ready().await;
        sidecar
    }

    /// The same in a process of its own; `program` is a `remora`.
    pub async fn sidecar_process(&self, program: &Path, pod: &Pod, calls: &[&str]) -> Sidecar {
        let args = self.sidecar_args(pod, &pod.name, calls);
        let sidecar = Sidecar::spawn(program, pod.clone(), &args);
        sidecar.ready().await;
        sidecar
    }

    /// The same as a process of its own, of a program that takes `proxy` as its subcommand, with room for
    /// so many file descriptors; not waited for.
    #[must_use]
    pub fn process(
        &self,
        program: &str,
        pod: &Pod,
        calls: &[&str],
        descriptors: Option<u32>,
    ) -> Process {
        Process::launch(program, &self.sidecar_args(pod, &pod.name, calls), descriptors)
    }

    /// The same without waiting until it is ready.
    pub fn unready_sidecar(&self, pod: &Pod, calls: &[&str]) -> Sidecar {
        Sidecar::launch(pod.clone(), self.sidecar_args(pod, &pod.name, calls))
    }

    /// The same with its inbound listener at another port, so that where callers dial
    /// ([`Pod::address`]) something of the test's can stand between the proxies.
    pub async fn sidecar_behind(&self, pod: &Pod, port: u16) -> Sidecar {
        let mut args = self.sidecar_args(pod, &pod.name, &[]);
        for forward in &mut args.inbound_forward {
            forward.listen.set_port(port);
        }
        let sidecar = Sidecar::launch(pod.clone(), args);
        sidecar.ready().await;
        sidecar
    }

    /// The same with another ServiceAccount than the pod's own.
    pub async fn impostor(&self, pod: &Pod, account: &str) -> Sidecar {
        let sidecar = Sidecar::launch(pod.clone(), self.sidecar_args(pod, account, &[]));
        sidecar.ready().await;
        sidecar
    }

    fn sidecar_args(&self, pod: &Pod, account: &str, calls: &[&str]) -> remora_proxy::config::Args {
        let at = |port| SocketAddr::from((pod.ip, port));
        let entry = |(port, service): (u16, &&str)| OutboundService {
            listen: at(port),
            authority: match service.split_once(':') {
                // An address, as an application that was intercepted dials it; a name with its namespace,
                // for one that is elsewhere.
                Some((name, _)) if service.parse::<SocketAddr>().is_ok() || name.contains('.') => {
                    (*service).to_owned()
                }
                Some((service, port)) => format!("{service}.{NAMESPACE}:{port}"),
                None => format!("{service}.{NAMESPACE}:{SERVICE_PORT}"),
            },
        };
        let forward = InboundForward { listen: pod.address(), target: at(APP_PORT) };
        remora_proxy::config::Args {
            outbound_listen: vec![at(4140)],
            inbound_listen: vec![at(4143)],
            admin_listen: at(4191),
            control_plane: self.plane_addr().to_string(),
            control_plane_id: None,
            trust_bundle: self.bundle(),
            token_file: self.token(pod, account),
            pod_namespace: NAMESPACE.to_owned(),
            pod_name: pod.name.clone(),
            pod_ips: vec![pod.ip.into()],
            node: pod.place.0.clone(),
            zone: String::new(),
            workers: Some(self.workers),
            max_connections: self.max_connections,
            max_header_size: self.max_header_size,
            mark: None,
            shutdown_grace_period: self.grace,
            shutdown_linger: std::time::Duration::ZERO,
            probes: "{}".to_owned(),
            snapshot: None,
            outbound_service: (ENTRY_PORT..).zip(calls).map(entry).collect(),
            inbound_forward: if pod.meshed { vec![forward] } else { Vec::new() },
        }
    }

    /// Registers a token and gives the file that has it.
    fn token(&self, pod: &Pod, account: &str) -> PathBuf {
        let mut rng = fastrand::Rng::new();
        let token: String = (0..32).map(|_| format!("{:02x}", rng.u8(..))).collect();
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
        let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let who = json!({"namespace": NAMESPACE, "serviceAccount": account, "pod": pod.name});
        let registered = self.dir.path().join("tokens").join(format!("{hash}.json"));
        std::fs::write(registered, who.to_string()).expect("a registered token");
        let file = self.dir.path().join("pods").join(format!("{}.token", pod.name));
        std::fs::write(&file, token).expect("a token file");
        file
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if let Some(plane) = &self.plane {
            plane.stop.cancel();
        }
    }
}

/// The usual picture: `web` calls the Service `orders`, which has one pod; both have sidecars.
#[derive(Debug)]
pub struct Pair {
    /// Everything around them.
    pub mesh: Mesh,
    /// The caller's sidecar.
    pub client: Sidecar,
    /// The sidecar of `orders-1`.
    pub server: Sidecar,
}

impl Pair {
    /// Brings it up; the annotations are the Service's.
    pub async fn start(annotations: &[(&str, &str)]) -> Self {
        Self::in_mesh(Mesh::new(), annotations).await
    }

    /// The same in a mesh with settings of its own.
    pub async fn in_mesh(mut mesh: Mesh, annotations: &[(&str, &str)]) -> Self {
        mesh.service("orders", annotations);
        let (web, orders) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
        mesh.start_plane().await;
        let (client, server) =
            tokio::join!(mesh.sidecar(&web, &["orders"]), mesh.sidecar(&orders, &[]));
        Self { mesh, client, server }
    }

    /// The same with the application's listener in place.
    pub async fn with_app(annotations: &[(&str, &str)]) -> (Self, App) {
        let pair = Self::start(annotations).await;
        let app = App::listen(pair.server.pod.app()).await;
        (pair, app)
    }

    /// Where `web` dials `orders`.
    #[must_use]
    pub fn entry(&self) -> SocketAddr {
        self.client.entry("orders")
    }
}
