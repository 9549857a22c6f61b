//! Keeps the ConfigMap `remora-trust-bundle` right wherever sidecars start: kubelet holds a pod
//! back until the ConfigMap of its volume is there, so a namespace that opts in must get it at
//! once, and one that somebody deleted or changed must come back.
//!
//! Written by server-side apply, forced: the content is ours, labels and annotations that others
//! add stay. A namespace that is no longer opted in keeps its ConfigMap: pods in it may still have
//! sidecars, and roots are no secret. `remora uninstall` removes them all by their label.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
};

use futures_util::{FutureExt, StreamExt, future, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use remora_core::{drain, names};
use tokio::{sync::watch, time::Instant};

use super::{CallError, Seldom, call};

mod plan;

use plan::{Outcome, Plan};

/// Who wrote a field, for `kubectl get --show-managed-fields` and for conflicts.
pub const FIELD_MANAGER: &str = "remora-control-plane";
/// Writes at a time.
const AT_ONCE: usize = 8;

/// What the ConfigMaps hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishedBundle {
    /// The roots, PEM. Nothing is published as long as it is empty.
    pub pem: String,
    /// Annotations that tell other replicas what they must know of the roots.
    pub annotations: BTreeMap<String, String>,
}

/// While this replica leads, keeps the ConfigMap right in `own` and in each of `namespaces`, until
/// draining begins.
///
/// `namespaces` are those that opted in (annotation or label `remora.io/inject: enabled`) or that
/// have a pod which did or which has a sidecar.
pub async fn publish(
    client: Client,
    own: String,
    mut leading: watch::Receiver<bool>,
    bundle: watch::Receiver<Arc<PublishedBundle>>,
    namespaces: watch::Receiver<Arc<BTreeSet<Arc<str>>>>,
    mut rng: fastrand::Rng,
    drain: drain::Watch,
) {
    let own: Arc<str> = own.into();
    loop {
        tokio::select! {
            () = drain.draining() => return,
            elected = leading.wait_for(|leading| *leading) => if elected.is_err() { return },
        }
        let term = Term {
            client: client.clone(),
            own: own.clone(),
            bundle: bundle.clone(),
            namespaces: namespaces.clone(),
            plan: Plan::default(),
            reported: Seldom::default(),
            rng: rng.fork(),
        };
        tokio::select! {
            () = drain.draining() => return,
            ended = leading.wait_for(|leading| !*leading) => if ended.is_err() { return },
            () = term.run() => return,
        }
    }
}

/// One time of leading.
struct Term {
    client: Client,
    own: Arc<str>,
    bundle: watch::Receiver<Arc<PublishedBundle>>,
    namespaces: watch::Receiver<Arc<BTreeSet<Arc<str>>>>,
    plan: Plan,
    reported: Seldom,
    rng: fastrand::Rng,
}

impl Term {
    /// Ends where nobody feeds it any more.
    async fn run(mut self) {
        let mut watching = pin!(seen(self.client.clone()));
        let mut writing = FuturesUnordered::new();
        self.bundle.mark_changed();
        self.namespaces.mark_changed();
        let mut map = ConfigMap::default();
        loop {
            let now = Instant::now();
            while writing.len() < AT_ONCE && map.data.is_some() {
                let Some(namespace) = self.plan.start(now) else { break };
                writing.push(apply(self.client.clone(), namespace, map.clone()));
            }
            let due = match self.plan.next() {
                Some(at) if writing.len() < AT_ONCE && map.data.is_some() => {
                    tokio::time::sleep_until(at).left_future()
                }
                _ => future::pending().right_future(),
            };
            tokio::select! {
                () = due => {}
                changed = self.bundle.changed() => {
                    if changed.is_err() { return }
                    map = config_map(&self.bundle.borrow_and_update());
                    self.plan.all_due(Instant::now());
                }
                changed = self.namespaces.changed() => {
                    if changed.is_err() { return }
                    let mut wanted = BTreeSet::clone(&self.namespaces.borrow_and_update());
                    wanted.insert(self.own.clone());
                    self.plan.want(wanted, Instant::now());
                }
                Some((namespace, result)) = writing.next(), if !writing.is_empty() => {
                    let outcome = self.judge(&namespace, result);
                    self.plan.finish(&namespace, outcome, Instant::now(), &mut self.rng);
                }
                Some((namespace, found)) = watching.next() => {
                    if found.is_none_or(|found| !says(&found, &map)) {
                        self.plan.touch(&namespace, Instant::now());
                    }
                }
            }
        }
    }

    fn judge(&mut self, namespace: &str, result: Result<(), CallError>) -> Outcome {
        let Err(error) = result else { return Outcome::Written };
        if is_gone(&error) {
            tracing::debug!(namespace, "namespace is going; it needs no trust bundle");
            return Outcome::Gone;
        }
        if self.reported.due(Instant::now()) {
            let mend = error.mend();
            tracing::warn!(
                namespace,
                name = names::TRUST_BUNDLE_CONFIG_MAP,
                "trust bundle not written, new pods with a sidecar wait for it there: {error}{mend}"
            );
        }
        Outcome::Failed
    }
}

/// The namespace does not exist, or not for long.
fn is_gone(error: &CallError) -> bool {
    let Some(status) = error.status() else { return false };
    let terminating = || {
        let causes = status.details.iter().flat_map(|details| &details.causes);
        causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
            || status.message.contains("being terminated")
    };
    status.code == 404 || (status.code == 403 && terminating())
}

async fn apply(
    client: Client,
    namespace: Arc<str>,
    map: ConfigMap,
) -> (Arc<str>, Result<(), CallError>) {
    let api = Api::<ConfigMap>::namespaced(client, &namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&map);
    let result = call(api.patch(names::TRUST_BUNDLE_CONFIG_MAP, &params, &patch)).await;
    (namespace, result.map(drop))
}

/// The ConfigMaps of our name, whoever wrote them; `None`: deleted. Errors are waited out: what is
/// missed is written again in time.
fn seen(client: Client) -> impl futures_util::Stream<Item = (Arc<str>, Option<ConfigMap>)> {
    let fields = format!("metadata.name={}", names::TRUST_BUNDLE_CONFIG_MAP);
    let config = watcher::Config::default().fields(&fields);
    watcher(Api::<ConfigMap>::all(client), config).default_backoff().filter_map(|event| {
        let found = match event {
            Ok(watcher::Event::Apply(map) | watcher::Event::InitApply(map)) => {
                namespace_of(&map).map(|namespace| (namespace, Some(map)))
            }
            Ok(watcher::Event::Delete(map)) => {
                namespace_of(&map).map(|namespace| (namespace, None))
            }
            Ok(watcher::Event::Init | watcher::Event::InitDone) => None,
            Err(error) => {
                tracing::debug!(%error, "trust bundles are not watched for a moment");
                None
            }
        };
        future::ready(found)
    })
}

fn namespace_of(map: &ConfigMap) -> Option<Arc<str>> {
    map.metadata.namespace.as_deref().map(Into::into)
}

/// What is applied; without data where there is no bundle yet.
fn config_map(bundle: &PublishedBundle) -> ConfigMap {
    let pem = (!bundle.pem.is_empty()).then(|| bundle.pem.clone());
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(names::TRUST_BUNDLE_CONFIG_MAP.to_owned()),
            labels: Some(
                [(names::labels::PART_OF.to_owned(), names::labels::REMORA.to_owned())].into(),
            ),
            annotations: Some(bundle.annotations.clone()).filter(|all| !all.is_empty()),
            ..ObjectMeta::default()
        },
        data: pem.map(|pem| [(names::TRUST_BUNDLE_KEY.to_owned(), pem)].into()),
        ..ConfigMap::default()
    }
}

/// Whether a ConfigMap says all that ours says.
fn says(found: &ConfigMap, ours: &ConfigMap) -> bool {
    fn within(
        ours: Option<&BTreeMap<String, String>>,
        found: Option<&BTreeMap<String, String>>,
    ) -> bool {
        ours.into_iter()
            .flatten()
            .all(|(key, value)| found.and_then(|found| found.get(key)) == Some(value))
    }
    within(ours.data.as_ref(), found.data.as_ref())
        && within(ours.metadata.labels.as_ref(), found.metadata.labels.as_ref())
        && within(ours.metadata.annotations.as_ref(), found.metadata.annotations.as_ref())
}

#[cfg(test)]
mod tests;
