//! The fallback where the machine forbids namespaces: one network, ordinary child processes, and
//! sidecars whose listeners are dialled explicitly instead of by redirection. Everything between
//! the sidecars is the same: discovery, mTLS, balancing, retries, breakers.

mod layout;
mod process;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::{net::TcpStream, sync::mpsc, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    cluster::{Cluster, Error, Pod},
    manifests::{self, Values},
    shop::HttpClient,
};
use layout::{Block, Shop, Slot};
use process::Process;

/// Time between two looks at manifests and processes.
const TICK: Duration = Duration::from_millis(100);
/// Time for a probe.
const PROBE_LIMIT: Duration = Duration::from_millis(500);
/// Time for a leaving pod.
const LEAVES_WITHIN: Duration = Duration::from_secs(10);

/// The story's side.
pub(super) struct Loopback {
    manifests: PathBuf,
    pods: Arc<Mutex<Vec<Pod>>>,
    /// Whether the control plane is to run.
    control_plane: mpsc::Sender<bool>,
    /// The control plane's admin endpoint.
    dashboard: SocketAddr,
}

/// The side that owns the processes.
pub(super) struct Keeper {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Ends all processes and waits until they are gone.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

impl Cluster for Loopback {
    fn manifests(&self) -> &Path {
        &self.manifests
    }

    async fn pods(&mut self) -> Result<Vec<Pod>, Error> {
        Ok(self.pods.lock().clone())
    }

    async fn kill_control_plane(&mut self) -> Result<(), Error> {
        self.want_control_plane(false).await
    }

    async fn revive_control_plane(&mut self) -> Result<(), Error> {
        self.want_control_plane(true).await
    }

    fn to_try(&self, pods: &[Pod]) -> Vec<String> {
        let Some(web) = pods.iter().find(|pod| pod.is_of("web")) else { return Vec::new() };
        vec![
            format!("open http://{}/ in a browser: the dashboard", self.dashboard),
            format!("curl http://{}/endpoints", web.admin),
            format!("curl http://{}/metrics", web.admin),
            format!("edit {}", self.manifests.join("orders.yaml").display()),
        ]
    }
}

impl Loopback {
    async fn want_control_plane(&self, wanted: bool) -> Result<(), Error> {
        let gone = |_| Error::Mesh("the demo's processes are no longer looked after".into());
        self.control_plane.send(wanted).await.map_err(gone)
    }
}

/// Starts the control plane and the shop.
pub(super) async fn start(
    values: &Values,
    dir: &Path,
    manifests: PathBuf,
    leaf_lifetime: Duration,
) -> Result<(Loopback, Keeper), Error> {
    let files = Files { root: dir.to_owned() };
    for sub in ["logs", "resolved", "tokens", "ca", "proxies"] {
        let path = files.root.join(sub);
        fs::create_dir_all(&path).map_err(Error::file(&path))?;
    }
    let block = Block::of_process(std::process::id());
    let shop = read(block, &manifests)?;
    for (name, object) in &shop.objects {
        manifests::replace(&files.resolved().join(name), &object.to_string())?;
    }
    let pods = Arc::new(Mutex::new(Vec::new()));
    let (control_plane, wanted) = mpsc::channel(4);
    let stop = CancellationToken::new();
    let network = Network {
        control_plane: files.control_plane(values, block, leaf_lifetime),
        control_plane_wanted: true,
        remora: values.remora.clone(),
        files,
        block,
        manifests: manifests.clone(),
        pods: BTreeMap::new(),
        seen: Arc::clone(&pods),
    };
    let task = tokio::spawn(network.run(wanted, stop.clone()));
    let dashboard = block.control_plane_admin();
    Ok((Loopback { manifests, pods, control_plane, dashboard }, Keeper { stop, task }))
}

fn read(block: Block, manifests: &Path) -> Result<Shop, Error> {
    let mut texts = Vec::new();
    for name in ["shop.yaml", "orders.yaml"] {
        let path = manifests.join(name);
        texts.push(fs::read_to_string(&path).map_err(Error::file(&path))?);
    }
    Shop::parse(block, &texts).map_err(Error::Mesh)
}

/// Where things are.
#[derive(Debug, Clone)]
struct Files {
    root: PathBuf,
}

impl Files {
    fn resolved(&self) -> PathBuf {
        self.root.join("resolved")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    fn bundle(&self) -> PathBuf {
        self.root.join("trust-bundle.pem")
    }

    fn token(&self, pod: &str) -> PathBuf {
        self.root.join("proxies").join(format!("{pod}.token"))
    }

    fn control_plane(&self, values: &Values, block: Block, leaf_lifetime: Duration) -> Process {
        let lifetime = format!("{}s", leaf_lifetime.as_secs());
        let mut words = vec![values.remora.clone().into_os_string(), "control-plane".into()];
        let mut flag = |name: &str, value: std::ffi::OsString| words.extend([name.into(), value]);
        flag("--manifests", self.resolved().into());
        flag("--token-dir", self.root.join("tokens").into());
        flag("--ca-dir", self.root.join("ca").into());
        flag("--trust-bundle-out", self.bundle().into());
        flag("--listen", block.control_plane().to_string().into());
        flag("--admin-listen", block.control_plane_admin().to_string().into());
        flag("--leaf-lifetime", lifetime.into());
        Process::new(words, BTreeMap::new(), self.log("control-plane"))
    }
}

/// All processes and what is known of them.
struct Network {
    files: Files,
    block: Block,
    remora: PathBuf,
    manifests: PathBuf,
    control_plane: Process,
    control_plane_wanted: bool,
    /// By the number of the slot.
    pods: BTreeMap<u8, Running>,
    seen: Arc<Mutex<Vec<Pod>>>,
}

struct Running {
    slot: Slot,
    program: Process,
    sidecar: Process,
    ready: bool,
    leaving_since: Option<Instant>,
}

impl Network {
    async fn run(mut self, mut wanted: mpsc::Receiver<bool>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(wanted) = wanted.recv() => {
                    self.control_plane_wanted = wanted;
                    if !wanted {
                        self.control_plane.kill().await;
                    }
                }
                _ = tick.tick() => {}
            }
            // What fails now (a manifest being edited, no process slot left) is tried again.
            if let Err(error) = self.tend().await {
                eprintln!("remora: demo: {error}");
            }
        }
        for pod in self.pods.values_mut() {
            pod.program.kill().await;
            pod.sidecar.kill().await;
        }
        self.control_plane.kill().await;
    }

    async fn tend(&mut self) -> Result<(), Error> {
        if self.control_plane_wanted {
            self.control_plane.keep()?;
        }
        // The sidecars cannot do without the roots.
        if !self.files.bundle().exists() {
            return Ok(());
        }
        self.reconcile()?;
        for pod in self.pods.values_mut().filter(|pod| pod.leaving_since.is_none()) {
            pod.sidecar.keep()?;
            pod.program.keep()?;
        }
        self.probe().await?;
        self.bury().await?;
        let pods = self.pods.values();
        *self.seen.lock() = pods
            .map(|pod| Pod {
                name: pod.slot.name.clone(),
                admin: pod.slot.admin(),
                ready: pod.ready && pod.leaving_since.is_none(),
            })
            .collect();
        Ok(())
    }

    /// Makes as many pods as the manifests say.
    fn reconcile(&mut self) -> Result<(), Error> {
        for deployment in read(self.block, &self.manifests)?.deployments {
            let owner = deployment["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let replicas = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
            let names: Vec<_> = (0..replicas).map(|i| format!("{owner}-{i}")).collect();
            for name in &names {
                if !self.pods.values().any(|pod| pod.slot.name == *name) {
                    self.add(name.clone(), deployment.clone())?;
                }
            }
            let prefix = format!("{owner}-");
            for pod in self.pods.values_mut() {
                let surplus = pod.slot.name.starts_with(&prefix) && !names.contains(&pod.slot.name);
                if surplus && pod.leaving_since.is_none() {
                    pod.leaving_since = Some(Instant::now());
                    publish(&self.files, pod)?;
                    pod.program.terminate();
                    pod.sidecar.terminate();
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, name: String, deployment: Value) -> Result<(), Error> {
        let Some(k) = (1..=250).find(|k| !self.pods.contains_key(k)) else {
            return Err(Error::Mesh(format!("no address is left for {name}")));
        };
        let slot = Slot { block: self.block, k, name, deployment };
        let token = self.files.token(&slot.name);
        write_token(&self.files, &slot, &token)?;
        let (words, env) = slot.program_command();
        let program = Process::new(words, env, self.files.log(&slot.name));
        let sidecar = Process::new(
            slot.sidecar_command(&self.remora, &token, &self.files.bundle()),
            BTreeMap::new(),
            self.files.log(&format!("{}.proxy", slot.name)),
        );
        let running = Running { slot, program, sidecar, ready: false, leaving_since: None };
        publish(&self.files, &running)?;
        self.pods.insert(k, running);
        Ok(())
    }

    /// Asks all pods at once whether they are ready and publishes what changed.
    async fn probe(&mut self) -> Result<(), Error> {
        let probes = self.pods.values().map(|pod| is_ready(&pod.slot));
        let answers = futures_util::future::join_all(probes).await;
        for (pod, ready) in self.pods.values_mut().zip(answers) {
            if pod.ready != ready {
                pod.ready = ready;
                publish(&self.files, pod)?;
            }
        }
        Ok(())
    }

    /// Removes pods whose processes have ended, or should have.
    async fn bury(&mut self) -> Result<(), Error> {
        let mut gone = Vec::new();
        for (k, pod) in &mut self.pods {
            let Some(since) = pod.leaving_since else { continue };
            if since.elapsed() > LEAVES_WITHIN {
                pod.program.kill().await;
                pod.sidecar.kill().await;
            }
            if !pod.program.runs() && !pod.sidecar.runs() {
                gone.push(*k);
            }
        }
        for pod in gone.iter().filter_map(|k| self.pods.remove(k)) {
            let path = object_path(&self.files, &pod.slot);
            fs::remove_file(&path).map_err(Error::file(&path))?;
        }
        Ok(())
    }
}

async fn is_ready(slot: &Slot) -> bool {
    let sidecar = HttpClient::new(slot.admin().to_string(), PROBE_LIMIT);
    if !sidecar.get_fresh("/ready").await.is_ok_and(|answer| answer.status().is_success()) {
        return false;
    }
    let Some(program) = slot.program() else { return true };
    matches!(tokio::time::timeout(PROBE_LIMIT, TcpStream::connect(program)).await, Ok(Ok(_)))
}

fn object_path(files: &Files, slot: &Slot) -> PathBuf {
    files.resolved().join(format!("pod-{}.json", slot.name))
}

fn publish(files: &Files, pod: &Running) -> Result<(), Error> {
    let object = pod.slot.object(pod.ready, pod.leaving_since.is_some());
    manifests::replace(&object_path(files, &pod.slot), &object.to_string())
}

/// The token is the pod's proof; the registry knows its hash.
fn write_token(files: &Files, slot: &Slot, path: &Path) -> Result<(), Error> {
    let mut random = [0; 32];
    aws_lc_rs::rand::fill(&mut random)
        .map_err(|_| Error::Mesh("the system gives no random numbers".into()))?;
    let token = hex(&random);
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    let entry = files.root.join("tokens").join(format!("{}.json", hex(hash.as_ref())));
    write_secret(&entry, &slot.registry_entry().to_string()).map_err(Error::file(&entry))?;
    write_secret(path, &token).map_err(Error::file(path))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(path)?;
    std::io::Write::write_all(&mut file, text.as_bytes())
}
