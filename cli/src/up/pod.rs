//! The life of a pod: namespaces, sidecar, init containers, containers with their probes, and
//! the way out.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Container, Pod as PodObject, PodSpec};
use parking_lot::Mutex;
use remora_injector::ProxySettings;
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    anchor::{Anchor, command_in},
    cluster::Shared,
    console::Log,
    env,
    error::Error,
    exec::{ContainerEntry, Entry},
    manifests::Key,
    probe::Readiness,
    process::{Kept, Program, Restart, Run, keep, once},
    sidecar,
};

/// Time for callers to learn that a pod is leaving before its containers are told to end.
const LEAVE: Duration = Duration::from_millis(500);
/// Pauses before an attempt to bring a pod up is repeated.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
/// Kubernetes' default for `terminationGracePeriodSeconds`.
const GRACE: Duration = Duration::from_secs(30);

/// A pod that should be there, or is on its way out.
#[derive(Debug)]
pub struct Pod {
    /// Namespace and name.
    pub key: Key,
    /// Its manifest.
    pub object: PodObject,
    /// What makes a pod another one when it changes: manifest and sidecar.
    pub revision: String,
    /// The Deployment it is of.
    pub owner: Option<String>,
    /// Settings of its sidecar, where it has one.
    pub sidecar: Option<ProxySettings>,
    /// Cancelled when it shall go.
    pub stop: CancellationToken,
    live: Mutex<Live>,
}

/// What is so at the moment.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// Its address, once it has one.
    pub address: Option<Ipv4Addr>,
    /// Since when it is going away (RFC 3339).
    pub terminating: Option<String>,
    /// Its containers, in the manifest's order.
    pub containers: Vec<ContainerLive>,
    /// The sidecar's process.
    pub proxy: Option<Kept>,
    /// Whether the sidecar can carry connections.
    pub proxy_ready: bool,
    /// What `remora exec` needs.
    pub entry: Option<Entry>,
    /// Whether the world was told that it is ready.
    announced: bool,
}

/// A container at the moment.
#[derive(Debug, Clone)]
pub struct ContainerLive {
    /// Its name.
    pub name: String,
    /// Its process.
    pub process: Kept,
    /// Whether its probe holds.
    pub ready: bool,
}

impl Pod {
    /// A pod that is about to begin.
    #[must_use]
    pub fn new(
        key: Key,
        object: PodObject,
        revision: String,
        sidecar: Option<ProxySettings>,
    ) -> Self {
        let owners = object.metadata.owner_references.iter().flatten();
        let owner = owners.map(|owner| owner.name.clone()).next();
        let (stop, live) = (CancellationToken::new(), Mutex::default());
        Self { key, object, revision, owner, sidecar, stop, live }
    }

    /// What is so at the moment.
    #[must_use]
    pub fn live(&self) -> Live {
        self.live.lock().clone()
    }

    /// Whether it takes connections.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.live.lock().is_ready(self)
    }

    /// `Some(ready)` where that differs from what was announced.
    pub fn changed_readiness(&self) -> Option<bool> {
        let mut live = self.live.lock();
        let ready = live.is_ready(self) && live.terminating.is_none();
        (std::mem::replace(&mut live.announced, ready) != ready).then_some(ready)
    }

    /// Takes note of whether the sidecar can carry connections.
    pub fn proxy_is_ready(&self, ready: bool) {
        self.live.lock().proxy_ready = ready;
    }

    fn spec(&self) -> PodSpec {
        self.object.spec.clone().unwrap_or_default()
    }

    fn label(&self) -> String {
        format!("pod {}/{}", self.key.0, self.key.1)
    }

    fn update(&self, change: impl FnOnce(&mut Live)) {
        change(&mut self.live.lock());
    }
}

impl Live {
    fn is_ready(&self, pod: &Pod) -> bool {
        let containers = pod.object.spec.as_ref().map_or(0, |spec| spec.containers.len());
        self.address.is_some()
            && self.containers.len() == containers
            && self.containers.iter().all(|container| container.ready)
            && (pod.sidecar.is_none() || self.proxy_ready)
    }
}

/// Brings a pod up, keeps it, and takes it down when it is told to stop.
pub async fn run(pod: Arc<Pod>, shared: Arc<Shared>) {
    let [mut pause, longest] = RETRY;
    while !pod.stop.is_cancelled() {
        let Some(address) = shared.addresses.lock().take() else {
            shared.console.say(&format!("{}: no address is left", pod.label()));
            break;
        };
        let result = life(&pod, &shared, address).await;
        shared.addresses.lock().give_back(address);
        pod.update(|live| *live = Live { terminating: live.terminating.take(), ..Live::default() });
        let Err(error) = result else { break };
        shared.console.say(&format!("{}: {error}; trying again in {pause:?}", pod.label()));
        shared.publish().await;
        let _ = pod.stop.run_until_cancelled(sleep(pause)).await;
        pause = (pause * 2).min(longest);
    }
}

async fn life(pod: &Arc<Pod>, shared: &Arc<Shared>, address: Ipv4Addr) -> Result<(), Error> {
    let (namespace, name) = &pod.key;
    let files = shared.state.path("pods").join(format!("{namespace}_{name}"));
    let anchor = Anchor::start(&files, namespace, name, address).await?;
    let plan = Plan::of(pod, shared, address, anchor.pid());
    let entry = plan.entry(pod, anchor.pid());
    pod.update(|live| {
        live.address = Some(address);
        live.entry = Some(entry);
    });
    shared.publish().await;

    let apps_stop = CancellationToken::new();
    let mut apps = JoinSet::new();
    let proxy_stop = CancellationToken::new();
    let mut proxy = JoinSet::new();
    let up = async {
        if let Some(settings) = &pod.sidecar {
            let place = sidecar::Place { anchor: anchor.pid(), address };
            let started = sidecar::start(pod, settings, shared, place, &proxy_stop, &mut proxy);
            let kept = started.await?;
            pod.update(|live| live.proxy = Some(kept.clone()));
            let (watched, shared) = (Arc::clone(pod), Arc::clone(shared));
            proxy.spawn(sidecar::watch(watched, shared, kept, address, proxy_stop.clone()));
            shared_ready(pod).await;
        }
        init(pod, shared, &plan).await;
        Ok::<(), Error>(())
    };
    let result = pod.stop.run_until_cancelled(up).await.unwrap_or(Ok(()));
    if result.is_ok() && !pod.stop.is_cancelled() {
        plan.start(pod, shared, &apps_stop, &mut apps);
        shared.publish().await;
        pod.stop.cancelled().await;
    }
    if result.is_ok() {
        leave(pod, shared).await;
    }
    apps_stop.cancel();
    while apps.join_next().await.is_some() {}
    proxy_stop.cancel();
    while proxy.join_next().await.is_some() {}
    anchor.end().await;
    // Best effort: the directory goes with the stage.
    let _ = std::fs::remove_dir_all(&files);
    result
}

/// Callers first learn that it goes.
async fn leave(pod: &Pod, shared: &Arc<Shared>) {
    let now = now();
    let was_ready = pod.is_ready();
    pod.update(|live| live.terminating = Some(now));
    shared.publish().await;
    if was_ready && !shared.stopping.is_cancelled() {
        let _ = shared.stopping.run_until_cancelled(sleep(LEAVE)).await;
    }
}

/// The API's form of this moment.
#[allow(clippy::disallowed_methods, reason = "a Pod's deletionTimestamp is wall time")]
fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0));
    k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// Waits for the sidecar: it is there before the first container, as a native sidecar is.
async fn shared_ready(pod: &Pod) {
    while !pod.live.lock().proxy_ready {
        sleep(sidecar::POLL).await;
    }
}

/// Init containers one after the other, each until it succeeds.
async fn init(pod: &Pod, shared: &Arc<Shared>, plan: &Plan) {
    for container in &plan.init {
        let mut pause = RETRY[0];
        loop {
            let program = container.program(pod, shared, plan, Restart::Never);
            match once(program, shared.console, &pod.stop).await {
                None | Some(0) => break,
                Some(code) => {
                    shared.console.say(&format!(
                        "{}: init container {} ended with status {code}; again in {pause:?}",
                        pod.label(),
                        container.entry.name
                    ));
                    sleep(pause).await;
                    pause = (pause * 2).min(RETRY[1]);
                }
            }
        }
    }
}

/// All that is needed to start a pod's containers.
struct Plan {
    anchor: u32,
    init: Vec<Planned>,
    containers: Vec<Planned>,
}

struct Planned {
    entry: ContainerEntry,
    command: Vec<String>,
    readiness: Option<Readiness>,
}

impl Plan {
    fn of(pod: &Pod, shared: &Shared, address: Ipv4Addr, anchor: u32) -> Self {
        let services = env::of_services(&pod.key.0, shared.services.read().iter());
        let warn = |problem| shared.warn_once(format!("{}: {problem}", pod.label()));
        let plan = |container: &Container| {
            let env = env::of_container(container, &pod.object, address, &services, warn);
            let readiness = Readiness::of(container, address).unwrap_or_else(|problem| {
                warn(problem);
                None
            });
            let command = env::command_line(container, &env);
            if command.is_empty() {
                warn(format!(
                    "container {} has no command; images are not used here, so add `command`",
                    container.name
                ));
            }
            let workdir = container.working_dir.as_ref().map_or_else(
                || shared.manifests.clone(),
                |dir| PathBuf::from(env::expand(dir, &BTreeMap::new())),
            );
            let entry = ContainerEntry { name: container.name.clone(), workdir, env };
            Planned { entry, command, readiness }
        };
        let spec = pod.spec();
        Self {
            anchor,
            init: spec.init_containers.iter().flatten().map(plan).collect(),
            containers: spec.containers.iter().map(plan).collect(),
        }
    }

    fn entry(&self, pod: &Pod, anchor: u32) -> Entry {
        let (namespace, name) = pod.key.clone();
        let containers = self.containers.iter().map(|c| c.entry.clone()).collect();
        Entry { namespace, pod: name, anchor, meshed: pod.sidecar.is_some(), containers }
    }

    fn start(
        &self,
        pod: &Arc<Pod>,
        shared: &Arc<Shared>,
        stop: &CancellationToken,
        tasks: &mut JoinSet<()>,
    ) {
        let restart = match pod.spec().restart_policy.as_deref() {
            Some("Never") => Restart::Never,
            Some("OnFailure") => Restart::OnFailure,
            _ => Restart::Always,
        };
        for (index, container) in self.containers.iter().enumerate() {
            if container.command.is_empty() {
                continue;
            }
            let program = container.program(pod, shared, self, restart);
            let (process, work) = keep(program, shared.console, stop.clone());
            tasks.spawn(work);
            pod.update(|live| {
                live.containers.push(ContainerLive {
                    name: container.entry.name.clone(),
                    process: process.clone(),
                    ready: false,
                });
            });
            tasks.spawn(follow(
                Arc::clone(pod),
                Arc::clone(shared),
                process,
                Follow {
                    index,
                    readiness: container.readiness.clone(),
                    workdir: container.entry.workdir.clone(),
                    env: container.entry.env.clone(),
                    anchor: self.anchor,
                },
                stop.clone(),
            ));
        }
    }
}

impl Planned {
    fn program(&self, pod: &Pod, shared: &Shared, plan: &Plan, restart: Restart) -> Program {
        let (namespace, name) = &pod.key;
        let container = self.entry.name.clone();
        let log = shared.state.path("logs").join(format!("{namespace}_{name}_{container}.log"));
        let single = plan.init.len() + plan.containers.len() == 1;
        let prefix = if single { name.clone() } else { format!("{name}/{container}") };
        let (anchor, entry, command) = (plan.anchor, self.entry.clone(), self.command.clone());
        let grace = pod.spec().termination_grace_period_seconds;
        Program {
            label: format!("{}: container {container}", pod.label()),
            command: Box::new(move || inside(anchor, &entry.workdir, &entry.env, &command)),
            log: Log::at(&log),
            prefix: Some(prefix),
            restart,
            grace: grace.and_then(|s| u64::try_from(s).ok()).map_or(GRACE, Duration::from_secs),
        }
    }
}

fn inside(
    anchor: u32,
    workdir: &Path,
    env: &BTreeMap<String, String>,
    words: &[String],
) -> tokio::process::Command {
    let mut command = command_in(anchor, workdir, None, words);
    command.env_clear().envs(env);
    command
}

struct Follow {
    index: usize,
    readiness: Option<Readiness>,
    workdir: PathBuf,
    env: BTreeMap<String, String>,
    anchor: u32,
}

/// Keeps a container's readiness: without a probe it is ready while it runs.
async fn follow(
    pod: Arc<Pod>,
    shared: Arc<Shared>,
    process: Kept,
    what: Follow,
    stop: CancellationToken,
) {
    let mut state = process.state();
    let report = async |ready: bool| {
        pod.update(|live| {
            if let Some(container) = live.containers.get_mut(what.index) {
                container.ready = ready;
            }
        });
        shared.publish().await;
    };
    loop {
        let now = *state.borrow_and_update();
        let exec = |words: &[String]| inside(what.anchor, &what.workdir, &what.env, words);
        let changed = match (now, &what.readiness) {
            (Run::Running(_), Some(probe)) => tokio::select! {
                changed = state.changed() => changed.is_ok(),
                () = probe.watch(exec, &report) => true,
                () = stop.cancelled() => false,
            },
            (running, _) => {
                report(matches!(running, Run::Running(_))).await;
                tokio::select! {
                    changed = state.changed() => changed.is_ok(),
                    () = stop.cancelled() => false,
                }
            }
        };
        if !changed {
            return;
        }
        if !matches!(*state.borrow(), Run::Running(_)) {
            report(false).await;
        }
    }
}
