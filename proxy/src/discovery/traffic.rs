//! What one Service (or directly dialled pod) has seen of this proxy's traffic.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwapOption;
use http::StatusCode;
use remora_core::latency::Latency;

use crate::balance::{
    affinity::Clients,
    bulkhead::Bulkhead,
    policy::{BudgetPolicy, Policy},
    retry::Budget,
};

/// Counters, the retry budget, the round-robin cursor and whom clients had. Shared by all workers;
/// relaxed atomics but for the last.
#[derive(Debug)]
pub struct Traffic {
    /// HTTP requests, without retries.
    pub requests: AtomicU64,
    /// HTTP responses given to clients, by class 1xx to 5xx.
    pub responses: [AtomicU64; 5],
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
    /// From the request's arrival to the end of the response.
    pub latency: Latency,
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
    /// Requests that were refused on purpose.
    pub aborted: AtomicU64,
    /// Requests that were held up on purpose.
    pub delayed: AtomicU64,
    /// Copies by what became of them, in the order of [`Mirrored::WORDS`].
    pub mirrored: [AtomicU64; Mirrored::WORDS.len()],
    budget: Purse,
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
}

impl RouteTraffic {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            requests: AtomicU64::new(0),
            aborted: AtomicU64::new(0),
            delayed: AtomicU64::new(0),
            mirrored: Default::default(),
            budget: Purse::new(now),
        }
    }

    /// The retry budget of the route's requests.
    pub fn budget(&self, wanted: BudgetPolicy) -> Arc<Budget> {
        self.budget.get(wanted)
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
            responses: Default::default(),
            retries: AtomicU64::new(0),
            retries_succeeded: AtomicU64::new(0),
            retry_limit: AtomicU64::new(0),
            retry_budget: AtomicU64::new(0),
            retry_pushback: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            latency: Latency::new(),
            cursor: AtomicUsize::new(0),
            clients: Clients::default(),
            budget: Purse::new(now),
            bulkhead: ArcSwapOption::empty(),
        }
    }

    /// Counts a response.
    pub fn responded(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.responses[class].fetch_add(1, Ordering::Relaxed);
    }

    /// The retry budget; made anew when its policy changes.
    pub fn budget(&self, wanted: BudgetPolicy) -> Arc<Budget> {
        self.budget.get(wanted)
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
