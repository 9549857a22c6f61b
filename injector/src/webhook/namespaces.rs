//! What the namespaces' annotations say, and the label that mirrors one of them.
//!
//! People write the annotation; the API server's selectors see labels only. So the label follows
//! the annotation, at once and by itself, and never leads: where they differ, the label is
//! rewritten. Every replica does so; a patch carries the resourceVersion that it was decided on, so
//! that the slower one's is refused instead of undoing a later change.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use parking_lot::Mutex;
use remora_core::{
    drain,
    names::{annotations, labels},
    settings::{Inject, read},
};
use serde_json::json;
use tokio::{sync::Notify, time::Instant};

use super::{
    cluster::{Pauses, REQUEST},
    events::{Events, Notice},
    metrics::Metrics,
};
use crate::NamespaceInfo;

/// Longest wait for one namespace that a pod is waiting for.
const LOOKUP: Duration = Duration::from_secs(1);
/// Never labelled, as they are never injected; our own namespace comes to them.
const NEVER_LABELLED: [&str; 2] = ["kube-system", "kube-node-lease"];

/// What is known of all namespaces.
pub(crate) struct Namespaces {
    api: Api<PartialObjectMeta<Namespace>>,
    own: String,
    state: Mutex<State>,
    /// Something is out of step.
    work: Notify,
    metrics: Arc<Metrics>,
}

/// What is known of one.
pub(crate) enum Lookup {
    /// From the watch.
    Cached(NamespaceInfo),
    /// From the API server, just now.
    Asked(NamespaceInfo),
    /// Neither; why.
    Unknown(String),
}

#[derive(Default)]
struct State {
    synced: bool,
    known: HashMap<String, Known>,
    /// Those whose label is not what their annotation says.
    out_of_step: BTreeSet<String>,
}

/// The part of a namespace that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    annotations: BTreeMap<String, String>,
    label: Option<String>,
    version: Option<String>,
}

impl Known {
    fn of(object: &PartialObjectMeta<Namespace>) -> Self {
        let ours =
            |key: &str| key == annotations::INJECT || key.starts_with(annotations::CONFIG_PREFIX);
        let annotations = object.annotations().iter().filter(|(key, _)| ours(key));
        Self {
            annotations: annotations.map(|(k, v)| (k.clone(), v.clone())).collect(),
            label: object.labels().get(labels::INJECT).cloned(),
            version: object.resource_version(),
        }
    }

    /// What the label should be, or why the annotation says nothing.
    fn wanted(&self) -> Result<Option<&'static str>, String> {
        match read(&self.annotations, annotations::INJECT, str::parse::<Inject>) {
            Ok(None) => Ok(None),
            Ok(Some(Inject::Enabled)) => Ok(Some("enabled")),
            Ok(Some(Inject::Disabled)) => Ok(Some("disabled")),
            Err(invalid) => Err(invalid.to_string()),
        }
    }

    fn in_step(&self) -> bool {
        self.wanted().unwrap_or(None) == self.label.as_deref()
    }
}

impl Namespaces {
    /// Nothing known yet; `own` is the namespace that the injector runs in.
    pub(crate) fn new(client: Client, own: String, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            api: Api::all(client),
            own,
            state: Mutex::default(),
            work: Notify::new(),
            metrics,
        })
    }

    /// Whether the first list is there.
    pub(crate) fn is_synced(&self) -> bool {
        self.state.lock().synced
    }

    /// What is known of a namespace; asks the API server where nothing is.
    pub(crate) async fn lookup(&self, name: &str) -> Lookup {
        let known = self.state.lock().known.get(name).map(|known| known.annotations.clone());
        match known {
            Some(annotations) => {
                Lookup::Cached(NamespaceInfo { name: name.to_owned(), annotations })
            }
            None => self.ask(name).await,
        }
    }

    /// What the API server says of a namespace now.
    pub(crate) async fn ask(&self, name: &str) -> Lookup {
        match tokio::time::timeout(LOOKUP, self.api.get(name)).await {
            Ok(Ok(object)) => Lookup::Asked(NamespaceInfo {
                name: name.to_owned(),
                annotations: Known::of(&object).annotations,
            }),
            Ok(Err(error)) => Lookup::Unknown(format!("the API server says: {error}")),
            Err(_) => Lookup::Unknown("the API server does not answer".to_owned()),
        }
    }

    /// Follows the namespaces until draining begins.
    pub(crate) async fn watch(&self, events: &Events, drain: &drain::Watch) {
        let config = watcher::Config::default();
        let mut stream = std::pin::pin!(watcher(self.api.clone(), config).default_backoff());
        // A list that is under way replaces what is known only when it is complete.
        let mut listed = None;
        loop {
            let next = tokio::select! {
                () = drain.draining() => return,
                next = stream.next() => next,
            };
            match next {
                Some(Ok(Event::Init)) => listed = Some(HashMap::new()),
                Some(Ok(Event::InitApply(object))) => {
                    if let Some(listed) = &mut listed {
                        listed.insert(object.name_any(), Known::of(&object));
                    }
                }
                Some(Ok(Event::InitDone)) => {
                    if let Some(listed) = listed.take() {
                        self.replace(listed, events);
                    }
                }
                Some(Ok(Event::Apply(object))) => {
                    self.apply(object.name_any(), Known::of(&object), events);
                }
                Some(Ok(Event::Delete(object))) => self.delete(&object.name_any()),
                Some(Err(error)) => {
                    tracing::warn!(%error, "namespaces cannot be watched; what is known stays");
                }
                None => return,
            }
        }
    }

    fn replace(&self, listed: HashMap<String, Known>, events: &Events) {
        self.state.lock().known.retain(|name, _| listed.contains_key(name));
        for (name, known) in listed {
            self.apply(name, known, events);
        }
        let mut state = self.state.lock();
        if !state.synced {
            state.synced = true;
            tracing::info!(namespaces = state.known.len(), "namespaces known");
        }
        self.metrics.invalid_namespaces(invalid(&state.known));
    }

    fn apply(&self, name: String, known: Known, events: &Events) {
        let mut state = self.state.lock();
        let before = state.known.insert(name.clone(), known.clone());
        let said_before = before.as_ref().map(|before| before.wanted());
        let wanted = known.wanted();
        if let Err(problem) = &wanted
            && said_before.as_ref() != Some(&wanted)
        {
            tracing::warn!(namespace = name, problem, "annotation of a namespace is invalid");
            let note = format!("{problem}; pods get no sidecar until it is mended");
            events.send(Notice::about_namespace(&name, &note));
        }
        if said_before.as_ref().is_some_and(Result::is_err) || wanted.is_err() {
            self.metrics.invalid_namespaces(invalid(&state.known));
        }
        if known.in_step() || self.is_excluded(&name) {
            state.out_of_step.remove(&name);
        } else {
            state.out_of_step.insert(name);
            self.work.notify_one();
        }
    }

    fn delete(&self, name: &str) {
        let mut state = self.state.lock();
        state.known.remove(name);
        state.out_of_step.remove(name);
        self.metrics.invalid_namespaces(invalid(&state.known));
    }

    fn is_excluded(&self, name: &str) -> bool {
        NEVER_LABELLED.contains(&name) || name == self.own
    }

    /// Writes labels that are out of step, until draining begins. Those that fail wait apart, so
    /// that they hold up no other.
    pub(crate) async fn mirror(&self, drain: &drain::Watch) {
        let mut pauses = Pauses::default();
        let mut failed = BTreeSet::new();
        let mut again = Instant::now();
        loop {
            let next = self.state.lock().out_of_step.pop_first();
            if let Some(name) = next {
                if self.write_label(&name).await {
                    continue;
                }
                if failed.is_empty() {
                    again = Instant::now() + pauses.next_pause();
                }
                failed.insert(name);
                continue;
            }
            if failed.is_empty() {
                pauses.reset();
            }
            tokio::select! {
                () = drain.draining() => return,
                () = self.work.notified() => {}
                () = tokio::time::sleep_until(again), if !failed.is_empty() => {
                    self.state.lock().out_of_step.append(&mut failed);
                }
            }
        }
    }

    /// Whether nothing is left to do: done, or somebody was faster, whose change the watch brings.
    async fn write_label(&self, name: &str) -> bool {
        let known = self.state.lock().known.get(name).cloned();
        let Some(known) = known.filter(|known| !known.in_step()) else { return true };
        let label = known.wanted().unwrap_or(None);
        let patch = Patch::Merge(json!({ "metadata": {
            "labels": { (labels::INJECT): label },
            "resourceVersion": known.version,
        }}));
        let params = PatchParams::default();
        let writing = self.api.patch(name, &params, &patch);
        let (result, done) = match tokio::time::timeout(REQUEST, writing).await {
            Ok(Ok(_)) => {
                tracing::info!(namespace = name, label, "namespace labelled");
                ("done", true)
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 409 || status.code == 404 => {
                tracing::debug!(namespace = name, "namespace has changed meanwhile");
                ("conflict", true)
            }
            Ok(Err(error)) => {
                tracing::warn!(namespace = name, %error, "namespace not labelled; trying again");
                ("failed", false)
            }
            Err(_) => {
                tracing::warn!(namespace = name, "namespace not labelled in time; trying again");
                ("failed", false)
            }
        };
        self.metrics.namespace_mirrored(result);
        done
    }
}

fn invalid(known: &HashMap<String, Known>) -> usize {
    known.values().filter(|known| known.wanted().is_err()).count()
}
