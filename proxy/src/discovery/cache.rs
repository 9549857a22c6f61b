//! What the data path asks: a look-up without locks, and on a miss a subscription and a bounded
//! wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use remora_proto::v1 as pb;
use tokio::sync::{Notify, watch};

use super::{
    endpoint::Endpoint,
    inbound::InboundPolicy,
    registry::{Registry, Shards},
    service::{PodTarget, Protocol, Service, ServiceId, ServiceState},
    wire::{self, WireError},
};

pub use super::registry::Target;

/// Bounds of the cache.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest wait for the first answer about a target.
    pub timeout: Duration,
    /// Targets known at the same time.
    pub max_targets: usize,
    /// A target that nothing asked for in this time, and whose Service nobody holds, is forgotten.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(3),
            max_targets: 10_000,
            idle: Duration::from_secs(600),
        }
    }
}

/// What a target is.
#[derive(Debug, Clone)]
pub enum Resolution {
    /// A Service of the mesh's world.
    Service(Arc<Service>),
    /// One pod.
    Pod(Arc<PodTarget>),
    /// Pass it through to the original destination.
    NotOurs,
    /// Refuse with a reset; the sentence is for the log.
    Refused(Arc<str>),
}

/// No answer about a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// The control plane said nothing in time, and nothing was known before.
    #[error("no answer about {target} in {waited:?}: {problem}")]
    Timeout {
        /// What was asked.
        target: Target,
        /// How long.
        waited: Duration,
        /// What is wrong with the control plane.
        problem: Arc<str>,
    },
    /// The cache is full.
    #[error(
        "{target} is one target too many: {limit} are known already; is the application scanning \
         addresses? skip-subnets keeps them from the proxy"
    )]
    TooMany {
        /// What was asked.
        target: Target,
        /// The bound.
        limit: usize,
    },
}

impl DiscoveryError {
    /// Metric label and answer header.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "discovery-timeout",
            Self::TooMany { .. } => "overloaded",
        }
    }
}

/// How the stream to the control plane is doing.
#[derive(Debug, Clone)]
pub struct Status {
    /// Whether the stream is up.
    pub connected: bool,
    /// Since when it is as `connected` says.
    pub since: Instant,
    /// When the last message was applied.
    pub last_update: Option<Instant>,
    /// Why it is not connected; the last one.
    pub error: Option<Arc<str>>,
    /// Streams that ended because the control plane asked for a new connection.
    pub asked: u64,
    /// Streams that ended for another reason.
    pub lost: u64,
}

/// Handle to everything that the control plane told. Clones share it.
#[derive(Debug, Clone)]
pub struct Discovery(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    epoch: Instant,
    limits: Limits,
    shards: Shards,
    pub(super) registry: Mutex<Registry>,
    /// Tells the stream task that the registry has something to send.
    pub(super) wake: Notify,
    inbound: ArcSwap<InboundPolicy>,
    configured: watch::Sender<bool>,
    pub(super) status: Mutex<Status>,
    refused: AtomicU64,
}

/// What is known of one target.
#[derive(Debug)]
pub(super) struct Entry {
    /// Subscription id, the same on every stream.
    pub(super) id: u64,
    pub(super) target: Target,
    answer: ArcSwapOption<Resolution>,
    /// Seconds since the cache's epoch.
    last_used: AtomicU64,
    answered: Notify,
}

impl Discovery {
    /// An empty cache.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self(Arc::new(Shared {
            epoch: now,
            limits,
            shards: Shards::default(),
            registry: Mutex::default(),
            wake: Notify::new(),
            inbound: ArcSwap::default(),
            configured: watch::Sender::new(false),
            status: Mutex::new(Status {
                connected: false,
                since: now,
                last_update: None,
                error: None,
                asked: 0,
                lost: 0,
            }),
            refused: AtomicU64::new(0),
        }))
    }

    /// What is known of a target; `None` on a miss. No lock, no allocation.
    #[must_use]
    pub fn cached(&self, target: &Target, now: Instant) -> Option<Resolution> {
        self.0
            .shards
            .with(target, |entry| {
                self.0.touch(entry, now);
                entry.resolution()
            })
            .flatten()
    }

    /// What a target is. On a miss subscribes to it and waits a bounded time.
    ///
    /// # Errors
    /// Where no answer came in time or the cache is full.
    pub async fn resolve(
        &self,
        target: &Target,
        now: Instant,
    ) -> Result<Resolution, DiscoveryError> {
        let entry = match self.0.shards.get(target) {
            Some(entry) => entry,
            None => self.subscribe(target, now)?,
        };
        self.0.touch(&entry, now);
        let waited = self.0.limits.timeout;
        tokio::time::timeout(waited, entry.wait()).await.map_err(|_| DiscoveryError::Timeout {
            target: target.clone(),
            waited,
            problem: self.describe(),
        })
    }

    /// Policy for the pod's own ports; until told, [`InboundPolicy::default`].
    #[must_use]
    pub fn inbound_policy(&self) -> Arc<InboundPolicy> {
        self.0.inbound.load_full()
    }

    /// Whether the first configuration is there: the inbound policy came, or a snapshot was loaded.
    #[must_use]
    pub fn configured(&self) -> bool {
        *self.0.configured.borrow()
    }

    /// Waits for the first configuration; at once where it is there.
    pub async fn wait_configured(&self) {
        let mut configured = self.0.configured.subscribe();
        // The sender lives as long as `self`.
        let _ = configured.wait_for(|configured| *configured).await;
    }

    /// How the stream is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        self.0.status.lock().clone()
    }

    /// Targets that were turned away because the cache was full.
    #[must_use]
    pub fn refused_targets(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Everything known, for the admin endpoint, ordered by target.
    #[must_use]
    pub fn all(&self) -> Vec<(Target, Option<Resolution>)> {
        let registry = self.0.registry.lock();
        let mut all: Vec<_> =
            registry.entries().map(|e| (e.target.clone(), e.resolution())).collect();
        drop(registry);
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    fn subscribe(&self, target: &Target, now: Instant) -> Result<Arc<Entry>, DiscoveryError> {
        let mut registry = self.0.registry.lock();
        // Two misses at once: the second finds the first's entry.
        if let Some(entry) = self.0.shards.get(target) {
            return Ok(entry);
        }
        let limit = self.0.limits.max_targets;
        if registry.len() >= limit {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
            return Err(DiscoveryError::TooMany { target: target.clone(), limit });
        }
        let entry = Arc::new(Entry {
            id: registry.next_id(),
            target: target.clone(),
            answer: ArcSwapOption::empty(),
            last_used: AtomicU64::new(self.0.seconds(now)),
            answered: Notify::new(),
        });
        self.0.shards.insert(&entry);
        registry.add(entry.clone());
        drop(registry);
        self.0.wake.notify_one();
        Ok(entry)
    }

    /// Puts an answer in force that was saved before this process began.
    pub(crate) fn restore(
        &self,
        target: &Target,
        update: &pb::Update,
        now: Instant,
    ) -> Result<(), WireError> {
        if let Ok(entry) = self.subscribe(target, now) {
            entry.apply(update, now)?;
        }
        Ok(())
    }

    pub(super) fn set_inbound(&self, policy: InboundPolicy) {
        self.0.inbound.store(Arc::new(policy));
        self.0.configured.send_if_modified(|configured| !std::mem::replace(configured, true));
    }

    /// Forgets what nothing used for long and nobody holds; returns those targets.
    pub(super) fn sweep(&self, now: Instant) -> Vec<Target> {
        let oldest = self.0.seconds(now).saturating_sub(self.0.limits.idle.as_secs());
        let mut registry = self.0.registry.lock();
        let idle: Vec<_> = registry.entries().filter(|e| e.is_idle(oldest)).cloned().collect();
        for entry in &idle {
            self.0.shards.remove(&entry.target);
            registry.remove(entry.id);
            // Someone may have taken the Service a moment ago: they see that it gets no updates.
            entry.mark_gone();
        }
        drop(registry);
        self.0.wake.notify_one();
        idle.iter().map(|entry| entry.target.clone()).collect()
    }

    fn describe(&self) -> Arc<str> {
        let status = self.0.status.lock();
        match &status.error {
            _ if status.connected => "control plane is connected, but has not answered".into(),
            Some(error) => error.clone(),
            None => "control plane has not been reached yet".into(),
        }
    }
}

impl Shared {
    fn seconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_secs()
    }

    fn touch(&self, entry: &Entry, now: Instant) {
        let seconds = self.seconds(now);
        // A write only when the second changes keeps the line shared between workers.
        if entry.last_used.load(Ordering::Relaxed) < seconds {
            entry.last_used.store(seconds, Ordering::Relaxed);
        }
    }
}

impl Entry {
    pub(super) fn resolution(&self) -> Option<Resolution> {
        self.answer.load().as_deref().cloned()
    }

    async fn wait(&self) -> Resolution {
        loop {
            let answered = self.answered.notified();
            if let Some(resolution) = self.resolution() {
                return resolution;
            }
            answered.await;
        }
    }

    /// Replaces what was known. A Service that stays the same Service keeps its object.
    pub(super) fn apply(
        &self,
        update: &pb::Update,
        now: Instant,
    ) -> Result<Vec<WireError>, WireError> {
        use pb::update::Answer;
        let before = self.resolution();
        let after = match &update.answer {
            Some(Answer::Service(service)) => {
                return self.apply_service(before.as_ref(), service, update.version, now);
            }
            Some(Answer::Pod(pod)) => Resolution::Pod(pod_target(before.as_ref(), pod, now)?),
            Some(Answer::NotOurs(_)) => Resolution::NotOurs,
            Some(Answer::Refused(refused)) => Resolution::Refused(refused.message.as_str().into()),
            Some(Answer::Inbound(_)) => {
                return Err(WireError::new("update.answer", "inbound policy for a dialled target"));
            }
            None => {
                return Err(WireError::new(
                    "update.answer",
                    "of a kind that this version does not know; update the proxy",
                ));
            }
        };
        self.mark_gone();
        self.publish(after);
        Ok(Vec::new())
    }

    fn apply_service(
        &self,
        before: Option<&Resolution>,
        wire: &pb::Service,
        version: u64,
        now: Instant,
    ) -> Result<Vec<WireError>, WireError> {
        let id = ServiceId {
            namespace: wire.namespace.as_str().into(),
            name: wire.name.as_str().into(),
            port: wire::port("service.port", wire.port)?,
        };
        if let Some(Resolution::Service(service)) = before
            && service.id == id
        {
            let (state, bad) =
                ServiceState::from_snapshot(Some(&service.state()), wire, version, now);
            service.replace(state);
            return Ok(bad);
        }
        let (state, bad) = ServiceState::from_snapshot(None, wire, version, now);
        self.mark_gone();
        self.publish(Resolution::Service(Arc::new(Service::new(id, state, now))));
        Ok(bad)
    }

    pub(super) fn apply_delta(
        &self,
        delta: &pb::EndpointsDelta,
        now: Instant,
    ) -> Result<Vec<WireError>, WireError> {
        let Some(Resolution::Service(service)) = self.resolution() else {
            return Err(WireError::new("endpoints", "a delta for something that is no Service"));
        };
        let (state, bad) = service.state().with_delta(delta, now);
        service.replace(state);
        Ok(bad)
    }

    fn publish(&self, resolution: Resolution) {
        self.answer.store(Some(Arc::new(resolution)));
        self.answered.notify_waiters();
    }

    fn mark_gone(&self) {
        if let Some(Resolution::Service(service)) = self.answer.load().as_deref() {
            service.mark_gone();
        }
    }

    fn is_idle(&self, oldest: u64) -> bool {
        let held = match self.answer.load().as_deref() {
            Some(Resolution::Service(service)) => Arc::strong_count(service) > 1,
            _ => false,
        };
        !held && self.last_used.load(Ordering::Relaxed) < oldest
    }
}

fn pod_target(
    before: Option<&Resolution>,
    pod: &pb::Pod,
    now: Instant,
) -> Result<Arc<PodTarget>, WireError> {
    let wire = pod.endpoint.as_ref().ok_or_else(|| WireError::new("pod.endpoint", "is absent"))?;
    let fresh = Endpoint::parse(wire, now)?;
    let endpoint = match before {
        Some(Resolution::Pod(known)) if known.endpoint.is_same_peer(&fresh) => {
            known.endpoint.clone()
        }
        _ => Arc::new(fresh),
    };
    let protocol = Protocol::from_wire(pod.protocol);
    Ok(Arc::new(PodTarget::new(endpoint, protocol, now)))
}
