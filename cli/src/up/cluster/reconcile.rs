//! Makes what runs follow the manifests.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod as PodObject;
use notify::Watcher;
use remora_injector::ProxySettings;
use tokio::{sync::Notify, time::sleep};

use super::{
    super::{
        manifests::{self, Key, Manifests, key},
        mesh,
        pod::{self, Pod},
        services,
    },
    Event, Shared,
};

/// An editor writes a file in several steps; this long without one, and the directory is read.
const SETTLE: Duration = Duration::from_millis(100);
impl Shared {
    pub(super) async fn reload(self: &Arc<Self>) -> Result<(), Vec<String>> {
        let manifests = manifests::load(&self.manifests)?;
        let had = self.cluster_ips.lock().clone();
        let cluster_ips = services::allocate(&manifests.services, &had)?;
        self.accept(manifests, cluster_ips).await;
        Ok(())
    }

    /// Puts manifests in force.
    pub(super) async fn accept(
        self: &Arc<Self>,
        manifests: Manifests,
        cluster_ips: BTreeMap<Key, Option<Ipv4Addr>>,
    ) {
        for warning in &manifests.warnings {
            self.warn_once(warning.clone());
        }
        let with_addresses = manifests.services.iter().map(|service| {
            let mut object = service.clone();
            if let Some(ip) = cluster_ips.get(&key(&object.metadata)).copied().flatten() {
                object.spec.get_or_insert_default().cluster_ip = Some(ip.to_string());
            }
            object
        });
        *self.services.write() = with_addresses.collect();
        *self.cluster_ips.lock() = cluster_ips;
        *self.desired.lock() = manifests;
        self.reconcile();
        self.publish().await;
    }

    /// Starts and stops pods so that they become what the manifests ask for.
    fn reconcile(self: &Arc<Self>) {
        if self.stopping.is_cancelled() {
            return;
        }
        let wanted = self.wanted();
        let mut pods = self.pods.lock();
        let mut rolling: BTreeSet<(String, String)> = pods
            .values()
            .filter(|pod| !pod.is_ready() || pod.stop.is_cancelled())
            .filter_map(|pod| Some((pod.key.0.clone(), pod.owner.clone()?)))
            .collect();
        for (key, pod) in &*pods {
            match wanted.get(key) {
                None => pod.stop.cancel(),
                Some(wanted) if wanted.revision == pod.revision => {}
                Some(_) => {
                    // Of a Deployment one pod is replaced at a time; those that are not ready
                    // serve nobody and are replaced at once.
                    let group = pod.owner.clone().map(|owner| (key.0.clone(), owner));
                    let free = group.is_none_or(|group| rolling.insert(group));
                    if free || !pod.is_ready() {
                        pod.stop.cancel();
                    }
                }
            }
        }
        for (key, wanted) in wanted {
            // One of the same name that is on its way out comes first.
            pods.entry(key.clone()).or_insert_with(|| {
                let Wanted { object, sidecar, revision } = wanted;
                let pod = Arc::new(Pod::new(key, object, revision, sidecar));
                self.tasks.spawn(live_and_go(Arc::clone(&pod), Arc::clone(self)));
                pod
            });
        }
    }

    /// The pods that the manifests ask for. One that was to have a sidecar but cannot is left
    /// out, as the webhook refuses it in a cluster.
    fn wanted(&self) -> BTreeMap<Key, Wanted> {
        let desired = self.desired.lock();
        let mut wanted = BTreeMap::new();
        for object in &desired.pods {
            let key = key(&object.metadata);
            let place = format!("pod {}/{}", key.0, key.1);
            match mesh::sidecar(object, desired.namespaces.get(&key.0)) {
                Ok((sidecar, warnings)) => {
                    for warning in warnings {
                        self.warn_once(format!("{place}: {warning}"));
                    }
                    let manifest = serde_json::to_string(object).unwrap_or_default();
                    let revision = format!("{manifest} {sidecar:?}");
                    wanted.insert(key, Wanted { object: object.clone(), sidecar, revision });
                }
                Err(problem) => self.warn_once(format!("{place} is not started: {problem}")),
            }
        }
        if wanted.is_empty() && !desired.pods.is_empty() {
            self.warn_once(
                "no pod runs: each was refused, see above; edits of the manifests take effect"
                    .into(),
            );
        }
        wanted
    }
}

/// A pod that the manifests ask for.
struct Wanted {
    object: PodObject,
    sidecar: Option<ProxySettings>,
    revision: String,
}

async fn live_and_go(pod: Arc<Pod>, shared: Arc<Shared>) {
    pod::run(Arc::clone(&pod), Arc::clone(&shared)).await;
    shared.pods.lock().remove(&pod.key);
    shared.publish().await;
    shared.announce(&pod, "is gone", Event::Gone);
    shared.reconcile();
    shared.gone.notify_waiters();
}

/// Follows the directory, and pods that make room for their successors.
pub(super) async fn follow(shared: Arc<Shared>) {
    let changed = Arc::new(Notify::new());
    let tell = Arc::clone(&changed);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading is no change.
        if !matches!(event, Ok(notify::Event { kind: notify::EventKind::Access(_), .. })) {
            tell.notify_one();
        }
    });
    let watching = watcher.and_then(|mut watcher| {
        watcher.watch(&shared.manifests, notify::RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    if let Err(error) = &watching {
        shared.console.say(&format!("edits of the manifests will not be noticed: {error}"));
    }
    let mut last = Vec::new();
    loop {
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            () = shared.reconcile.notified() => shared.reconcile(),
            () = changed.notified() => {
                sleep(SETTLE).await;
                let problems = shared.reload().await.err().unwrap_or_default();
                if problems != last {
                    for problem in &problems {
                        shared.console.say(&format!("{problem} (what was in force stays)"));
                    }
                    last = problems;
                }
            }
        }
    }
}
