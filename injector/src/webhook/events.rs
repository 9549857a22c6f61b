//! Kubernetes events about pods that did not get what was asked for.
//!
//! They are written off the path of the review: what does not fit into the queue is counted and
//! lost. The pods of a workload fail all alike, so events are about the workload, and one that was
//! written before becomes a series of it.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod},
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use remora_core::{admission::cut, drain};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};

use super::{cluster::REQUEST, metrics::Metrics};
use crate::pod::owner;

/// Events that wait to be written.
const QUEUE: usize = 256;
/// Events remembered, so that the same again is a series.
const REMEMBERED: usize = 1024;
/// The same event is written again at most this often.
const SERIES_EVERY: Duration = Duration::from_secs(60);
/// Longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;
/// Longest part of an event's name that is the object's; 253 is the limit of the whole.
const MAX_NAME: usize = 200;
/// Longest `reportingInstance`.
const MAX_INSTANCE: usize = 128;
/// Events about cluster-scoped objects go here.
const CLUSTER_EVENTS: &str = "default";
const CONTROLLER: &str = "remora.io/injector";
const ACTION: &str = "Injecting";

/// Why somebody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// No sidecar, though the namespace or the pod asked for one.
    Skipped,
    /// The pod was refused.
    Refused,
    /// It has a sidecar, but something in its annotations has no effect.
    Warning,
    /// A namespace's annotation says nothing.
    InvalidAnnotation,
}

impl Reason {
    fn word(self) -> &'static str {
        match self {
            Self::Skipped => "InjectionSkipped",
            Self::Refused => "InjectionRefused",
            Self::Warning => "InjectionWarning",
            Self::InvalidAnnotation => "InvalidAnnotation",
        }
    }
}

/// What is to be said, and of what.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Notice {
    namespace: String,
    regarding: ObjectReference,
    reason: Reason,
    note: String,
}

impl Notice {
    /// About the workload of a pod that is being made.
    pub(crate) fn about_pod(namespace: &str, pod: &Pod, reason: Reason, note: &str) -> Self {
        let owner = owner(pod);
        let references = pod.metadata.owner_references.as_deref().unwrap_or_default();
        let reference = references.iter().find(|r| r.kind == owner.kind && r.name == owner.name);
        let api_version = match (reference, owner.kind.as_str()) {
            (Some(reference), _) => reference.api_version.clone(),
            (None, "Pod") => "v1".to_owned(),
            (None, _) => "apps/v1".to_owned(),
        };
        let regarding = ObjectReference {
            api_version: Some(api_version),
            kind: Some(owner.kind),
            name: Some(owner.name),
            namespace: Some(namespace.to_owned()),
            uid: reference.map(|reference| reference.uid.clone()),
            ..ObjectReference::default()
        };
        Self { namespace: namespace.to_owned(), regarding, reason, note: fit(note) }
    }

    /// About a namespace whose annotation cannot be used.
    pub(crate) fn about_namespace(name: &str, note: &str) -> Self {
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Namespace".to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        let reason = Reason::InvalidAnnotation;
        Self { namespace: CLUSTER_EVENTS.to_owned(), regarding, reason, note: fit(note) }
    }

    /// The event's name: the same for the same notice, whichever replica writes it.
    fn name(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (&self.namespace, &self.regarding.kind, &self.regarding.name).hash(&mut hasher);
        (self.reason, &self.note).hash(&mut hasher);
        let object = self.regarding.name.as_deref().unwrap_or_default();
        let object: String = object.chars().take(MAX_NAME).collect();
        let object = object.trim_end_matches(['.', '-']);
        format!("{}.{:016x}", if object.is_empty() { "pod" } else { object }, hasher.finish())
    }

    fn event(&self, name: &str, instance: &str, now: MicroTime) -> Event {
        Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            event_time: Some(now),
            type_: Some("Warning".to_owned()),
            reason: Some(self.reason.word().to_owned()),
            action: Some(ACTION.to_owned()),
            note: Some(self.note.clone()),
            regarding: Some(self.regarding.clone()),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(instance.to_owned()),
            ..Event::default()
        }
    }
}

fn fit(note: &str) -> String {
    let mut note = cut(note, MAX_NOTE);
    while note.len() > MAX_NOTE {
        note.pop();
    }
    note
}

/// Where notices go in.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    queue: mpsc::Sender<Notice>,
    metrics: Arc<Metrics>,
}

/// Where they come out.
pub(crate) type Queue = mpsc::Receiver<Notice>;

impl Events {
    /// A queue for [`write`].
    pub(crate) fn new(metrics: Arc<Metrics>) -> (Self, Queue) {
        let (queue, notices) = mpsc::channel(QUEUE);
        (Self { queue, metrics }, notices)
    }

    /// Hands one over; never waits.
    pub(crate) fn send(&self, notice: Notice) {
        if self.queue.try_send(notice).is_err() {
            self.metrics.event("dropped");
        }
    }
}

/// Writes what comes, until draining begins.
pub(crate) async fn write(
    mut queue: Queue,
    client: Client,
    instance: &str,
    clock: fn() -> SystemTime,
    metrics: &Metrics,
    drain: &drain::Watch,
) {
    let mut writer = Writer::new(client, instance, clock);
    loop {
        let next = tokio::select! {
            () = drain.draining() => return,
            next = queue.recv() => next,
        };
        let Some(notice) = next else { return };
        let result = writer.write(&notice, Instant::now()).await;
        metrics.event(result);
    }
}

/// Writes events and remembers which.
pub(crate) struct Writer {
    client: Client,
    instance: String,
    clock: fn() -> SystemTime,
    /// By the event's namespace and name.
    seen: HashMap<(String, String), Seen>,
}

struct Seen {
    count: i32,
    at: Instant,
    written: Instant,
}

impl Writer {
    /// One that has written nothing yet; `instance` is this replica.
    pub(crate) fn new(client: Client, instance: &str, clock: fn() -> SystemTime) -> Self {
        Self { client, instance: cut(instance, MAX_INSTANCE), clock, seen: HashMap::new() }
    }

    /// What became of it, as the metrics call it.
    pub(crate) async fn write(&mut self, notice: &Notice, now: Instant) -> &'static str {
        let key = (notice.namespace.clone(), notice.name());
        let Some(seen) = self.seen.get_mut(&key) else {
            let result = self.create(notice, &key.1).await;
            if result != "failed" {
                self.remember(key, now);
            }
            return result;
        };
        seen.count = seen.count.saturating_add(1);
        seen.at = now;
        if now.duration_since(seen.written) < SERIES_EVERY {
            return "aggregated";
        }
        seen.written = now;
        let count = seen.count;
        match self.series(notice, &key.1, count).await {
            // The API server forgets events after an hour.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.create(notice, &key.1).await
            }
            other => told(other.map(|_| ())),
        }
    }

    async fn create(&self, notice: &Notice, name: &str) -> &'static str {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &notice.namespace);
        let event = notice.event(name, &self.instance, self.now());
        let params = PostParams::default();
        match within(api.create(&params, &event)).await {
            // Another replica, or this one before it was restarted.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                told(self.series(notice, name, 2).await)
            }
            other => told(other.map(|_| ())),
        }
    }

    async fn series(&self, notice: &Notice, name: &str, count: i32) -> kube::Result<()> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &notice.namespace);
        let series = EventSeries { count, last_observed_time: self.now() };
        let patch = Patch::Merge(json!({ "series": series }));
        within(api.patch(name, &PatchParams::default(), &patch)).await.map(|_| ())
    }

    fn remember(&mut self, key: (String, String), now: Instant) {
        if self.seen.len() >= REMEMBERED
            && let Some(oldest) =
                self.seen.iter().min_by_key(|(_, seen)| seen.at).map(|(key, _)| key.clone())
        {
            self.seen.remove(&oldest);
        }
        self.seen.insert(key, Seen { count: 1, at: now, written: now });
    }

    fn now(&self) -> MicroTime {
        MicroTime(Timestamp::try_from((self.clock)()).unwrap_or(Timestamp::UNIX_EPOCH))
    }
}

async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    match tokio::time::timeout(REQUEST, request).await {
        Ok(result) => result,
        Err(_) => Err(kube::Error::Service("no answer in time".into())),
    }
}

fn told(result: kube::Result<()>) -> &'static str {
    match result {
        Ok(()) => "written",
        Err(error) => {
            tracing::debug!(%error, "event not written");
            "failed"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(note: &str) -> Notice {
        let pod = serde_json::from_value(json!({ "metadata": {
            "generateName": "web-abc12-",
            "labels": { "pod-template-hash": "abc12" },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc12",
                "uid": "1", "controller": true
            }]
        }}));
        Notice::about_pod("shop", &pod.unwrap(), Reason::Refused, note)
    }

    #[test]
    fn pods_of_one_deployment_give_one_event() {
        let one = notice("bad");
        assert_eq!(one.regarding.kind.as_deref(), Some("Deployment"));
        assert_eq!(one.regarding.name.as_deref(), Some("web"));
        assert_eq!(one.name(), notice("bad").name());
        assert_ne!(one.name(), notice("worse").name());
        assert!(one.name().starts_with("web."));
    }

    #[test]
    fn a_statefulset_is_named_by_its_uid_too() {
        let pod = serde_json::from_value(json!({ "metadata": { "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "7",
            "controller": true
        }]}}));
        let notice = Notice::about_pod("shop", &pod.unwrap(), Reason::Skipped, "");
        assert_eq!(notice.regarding.uid.as_deref(), Some("7"));
        assert_eq!(notice.regarding.api_version.as_deref(), Some("apps/v1"));
    }

    #[test]
    fn notes_and_names_fit_into_what_the_api_server_takes() {
        let long = notice(&"ü".repeat(3000));
        assert!(long.note.len() <= MAX_NOTE);
        let name = format!("{}.", "a".repeat(252));
        let pod = Pod {
            metadata: ObjectMeta { name: Some(name), ..ObjectMeta::default() },
            ..Pod::default()
        };
        let name = Notice::about_pod("shop", &pod, Reason::Skipped, "x").name();
        assert!(name.len() <= 253 && !name.contains(".."), "{name}");
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let metrics = Arc::new(Metrics::default());
        let (events, _queue) = Events::new(Arc::clone(&metrics));
        for _ in 0..QUEUE + 3 {
            events.send(notice("bad"));
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry()).unwrap();
        assert!(text.contains("remora_injector_events_total{result=\"dropped\"} 3"), "{text}");
    }
}
