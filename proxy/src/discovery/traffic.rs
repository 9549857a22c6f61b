//! What one Service (or directly dialled pod) has seen of this proxy's traffic.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::service::ServiceId;
use crate::{
    balance::{
        affinity::Clients,
        bulkhead::Bulkhead,
        policy::{BudgetPolicy, Policy},
        retry::Budget,
    },
    metrics::{bodies::Bodies, connections::Connections, flow::Flow},
};

/// Counters, the retry budget, the round-robin cursor and whom clients had. Shared by all workers;
/// relaxed atomics but for the last.
#[derive(Debug)]
pub struct Traffic {
    /// HTTP requests, without retries.
    pub requests: AtomicU64,
    /// Those that ended.
    pub flow: Flow,
    /// Their bodies, and those of the responses.
    pub bodies: Arc<Bodies>,
    /// Connections to its endpoints.
    pub connections: Arc<Connections>,
    /// Attempts beyond the first.
    pub retries: AtomicU64,
    /// Requests that got an answer worth giving after a policy retry.
    pub retries_succeeded: AtomicU64,
    /// Retries not made because enough were.
    pub retry_limit: AtomicU64,
    /// Retries not made because the budget was used up.
    pub retry_budget: AtomicU64,
    /// Retries not made because the server asked for none, or for too long a pause.
    pub retry_pushback: AtomicU64,
    /// Breakers opened.
    pub ejections: AtomicU64,
    /// Place of the round-robin algorithm.
    pub cursor: AtomicUsize,
    /// Which endpoint each client had, for affinity by address.
    pub clients: Clients,
    budget: Purse,
    bulkhead: ArcSwapOption<Bulkhead>,
}

/// What one route has seen of this proxy's traffic; it outlives changes of the route.
#[derive(Debug)]
pub struct RouteTraffic {
    /// HTTP requests that took it.
    pub requests: AtomicU64,
    /// Those that ended.
    pub flow: Flow,
    /// Requests that were refused on purpose.
    pub aborted: AtomicU64,
    /// Requests that were held up on purpose.
    pub delayed: AtomicU64,
    /// Copies by what became of them, in the order of [`Mirrored::WORDS`].
    pub mirrored: [AtomicU64; Mirrored::WORDS.len()],
    /// By the backends that it has or had lately.
    backends: Mutex<BTreeMap<ServiceId, Arc<BackendTraffic>>>,
    budget: Purse,
}

/// What one backend of a route has seen by way of it.
#[derive(Debug, Default)]
pub struct BackendTraffic {
    /// HTTP requests that fell to it, without retries.
    pub requests: AtomicU64,
    /// Those that ended.
    pub flow: Flow,
}

/// What became of a copy of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mirrored {
    /// It was answered.
    Answered,
    /// It was not.
    Failed,
    /// Its body was too long, or still on its way.
    TooLarge,
    /// As many were under way as may be.
    Busy,
}

impl Mirrored {
    /// For metrics.
    pub const WORDS: [&str; 4] = ["answered", "failed", "too-large", "busy"];
}

/// A retry budget, made anew when its policy changes.
#[derive(Debug)]
struct Purse {
    budget: ArcSwapOption<Budget>,
    since: Instant,
}

impl Purse {
    fn new(now: Instant) -> Self {
        Self { budget: ArcSwapOption::empty(), since: now }
    }

    fn get(&self, wanted: BudgetPolicy) -> Arc<Budget> {
        if let Some(budget) = self.budget.load_full().filter(|budget| budget.policy() == wanted) {
            return budget;
        }
        let fresh = Arc::new(Budget::new(wanted, self.since));
        self.budget.store(Some(Arc::clone(&fresh)));
        fresh
    }

    fn left(&self, now: Instant) -> Option<u64> {
        self.budget.load().as_ref().map(|budget| budget.left(now))
    }
}

impl RouteTraffic {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            requests: AtomicU64::new(0),
            flow: Flow::default(),
            aborted: AtomicU64::new(0),
            delayed: AtomicU64::new(0),
            mirrored: Default::default(),
            backends: Mutex::default(),
            budget: Purse::new(now),
        }
    }

    /// The retry budget of the route's requests.
    pub fn budget(&self, wanted: BudgetPolicy) -> Arc<Budget> {
        self.budget.get(wanted)
    }

    /// Retries that the budget in force has left; `None`: nothing was retried by policy yet.
    #[must_use]
    pub fn budget_left(&self, now: Instant) -> Option<u64> {
        self.budget.left(now)
    }

    /// Since when there is something to count.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.budget.since
    }

    /// What a backend has seen. One that the route has no more is forgotten here.
    pub(crate) fn backend(&self, id: &ServiceId) -> Arc<BackendTraffic> {
        let mut backends = self.backends.lock();
        backends.retain(|known, traffic| known == id || Arc::strong_count(traffic) > 1);
        Arc::clone(backends.entry(id.clone()).or_default())
    }

    /// All backends that the route has.
    #[must_use]
    pub fn backends(&self) -> Vec<(ServiceId, Arc<BackendTraffic>)> {
        let backends = self.backends.lock();
        backends.iter().map(|(id, traffic)| (id.clone(), Arc::clone(traffic))).collect()
    }

    /// A tick ends.
    pub fn rotate(&self, tick: u64) {
        self.flow.rotate(tick);
        self.backends().iter().for_each(|(_, traffic)| traffic.flow.rotate(tick));
    }

    /// Counts a copy.
    pub fn mirrored(&self, what: Mirrored) {
        self.mirrored[what as usize].fetch_add(1, Ordering::Relaxed);
    }
}

impl Traffic {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            requests: AtomicU64::new(0),
            flow: Flow::default(),
            bodies: Arc::default(),
            connections: Arc::default(),
            retries: AtomicU64::new(0),
            retries_succeeded: AtomicU64::new(0),
            retry_limit: AtomicU64::new(0),
            retry_budget: AtomicU64::new(0),
            retry_pushback: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            cursor: AtomicUsize::new(0),
            clients: Clients::default(),
            budget: Purse::new(now),
            bulkhead: ArcSwapOption::empty(),
        }
    }

    /// Since when there is something to count.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.budget.since
    }

    /// The retry budget; made anew when its policy changes.
    pub fn budget(&self, wanted: BudgetPolicy) -> Arc<Budget> {
        self.budget.get(wanted)
    }

    /// Retries that the budget in force has left; `None`: nothing was retried by policy yet.
    #[must_use]
    pub fn budget_left(&self, now: Instant) -> Option<u64> {
        self.budget.left(now)
    }

    /// The bulkheads; made anew when their policy changes, and then what is under way does not count
    /// any more. `None` where nothing is bounded.
    pub fn bulkhead(&self, policy: &Policy) -> Option<Arc<Bulkhead>> {
        let wanted = &policy.bulkheads;
        if wanted.max_in_flight.is_none() && wanted.max_connections.is_none() {
            return None;
        }
        let known = self.bulkhead.load_full().filter(|known| known.policy() == wanted);
        known.or_else(|| {
            let fresh = Bulkhead::new(wanted).map(Arc::new);
            self.bulkhead.store(fresh.clone());
            fresh
        })
    }
}
