//! What is known of one endpoint, and the guard that each request to it holds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    breaker::{Breaker, Ejection, Health, Ticket},
    ewma::PeakEwma,
    policy::{BalancerPolicy, Policy},
};

/// Longest `Retry-After` that is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Statistics of one endpoint, shared by all workers; they outlive updates of the endpoint's
/// other properties.
#[derive(Debug)]
pub struct EndpointStats {
    ewma: PeakEwma,
    breaker: Breaker,
    in_flight: AtomicU32,
    requests: AtomicU64,
    failures: AtomicU64,
}

/// How a request ended, as far as its endpoint is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The endpoint answered, and not with a failure of its own.
    Success,
    /// It did not, or said that it cannot.
    Failure(FailureKind),
    /// The client gave up: neither a success nor a failure. The time waited so far can raise the
    /// estimate and never lowers it.
    Cancelled,
}

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// A 5xx, or a gRPC code that blames the server.
    ServerError {
        /// What the answer's `Retry-After` or gRPC pushback asks for.
        retry_after: Option<Duration>,
    },
    /// A 429 or RESOURCE_EXHAUSTED: the endpoint works and wants less. Costs latency and counts in
    /// the breaker's success rate, and is no failure in a row.
    RateLimited {
        /// As above.
        retry_after: Option<Duration>,
    },
    /// No connection, a broken one, or a peer that is not who it should be.
    Transport,
    /// No answer in time.
    TimedOut,
}

impl EndpointStats {
    /// An endpoint that nothing is known of.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            ewma: PeakEwma::new(now),
            breaker: Breaker::new(now),
            in_flight: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// Its latency.
    #[must_use]
    pub fn ewma(&self) -> &PeakEwma {
        &self.ewma
    }

    /// Its breaker.
    #[must_use]
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Requests (connections, for opaque TCP) that it is busy with.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests ever sent to it.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Those of them that ended in [`Outcome::Failure`].
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Cost of one more request by peak EWMA, in seconds.
    #[must_use]
    pub fn load(&self, now: Instant, policy: &BalancerPolicy) -> f64 {
        self.ewma.load(now, self.in_flight(), policy)
    }

    fn report(
        &self,
        ticket: Ticket,
        now: Instant,
        rtt: Duration,
        outcome: Outcome,
        policy: &Policy,
        rng: &mut fastrand::Rng,
    ) -> Option<Ejection> {
        let balancer = &policy.balancer;
        let health = match outcome {
            Outcome::Cancelled => {
                self.ewma.observe_at_least(now, rtt, balancer);
                self.breaker.release(ticket);
                return None;
            }
            Outcome::Success => {
                self.ewma.observe(now, rtt, balancer);
                Health::Good
            }
            Outcome::Failure(kind) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                self.ewma.observe(now, kind.cost(rtt, balancer), balancer);
                kind.health()
            }
        };
        self.breaker.record(ticket, health, now, policy.breaker.as_ref(), rng)
    }
}

impl AsRef<Self> for EndpointStats {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl FailureKind {
    /// The latency that the failure counts as.
    fn cost(self, rtt: Duration, policy: &BalancerPolicy) -> Duration {
        let cost = rtt.max(policy.failure_penalty);
        match self {
            Self::ServerError { retry_after } | Self::RateLimited { retry_after } => {
                cost.max(retry_after.unwrap_or_default().min(MAX_RETRY_AFTER))
            }
            Self::Transport | Self::TimedOut => cost,
        }
    }

    fn health(self) -> Health {
        match self {
            Self::RateLimited { .. } => Health::Refusing,
            Self::ServerError { .. } | Self::Transport | Self::TimedOut => Health::Bad,
        }
    }
}

/// A request on its way to an endpoint. Counted as in flight until dropped; dropped without a
/// report it counts as [`Outcome::Cancelled`], and a probe hands its right to the next request.
#[derive(Debug)]
pub struct InFlight<E: AsRef<EndpointStats>> {
    endpoint: Arc<E>,
    ticket: Option<Ticket>,
    probe: bool,
}

impl<E: AsRef<EndpointStats>> InFlight<E> {
    /// A request leaves for this endpoint, without a choice (a pod dialled directly).
    #[must_use]
    pub fn begin(endpoint: Arc<E>, now: Instant) -> Self {
        let ticket = (*endpoint).as_ref().breaker.ticket();
        Self::with_ticket(endpoint, ticket, now)
    }

    pub(super) fn with_ticket(endpoint: Arc<E>, ticket: Ticket, now: Instant) -> Self {
        let stats: &EndpointStats = (*endpoint).as_ref();
        stats.ewma.sent(now);
        stats.requests.fetch_add(1, Ordering::Relaxed);
        stats.in_flight.fetch_add(1, Ordering::Relaxed);
        let probe = ticket.is_probe();
        Self { endpoint, ticket: Some(ticket), probe }
    }

    /// The endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<E> {
        &self.endpoint
    }

    /// Whether this request decides over a half-open breaker.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// Says how the request went after `rtt` (until the response's head; for opaque TCP until the
    /// connection stood), while it stays in flight, so that a stream that lives for hours gives
    /// its verdict early. Only the first report counts. Returns the ejection that it caused.
    pub fn report(
        &mut self,
        now: Instant,
        rtt: Duration,
        outcome: Outcome,
        policy: &Policy,
        rng: &mut fastrand::Rng,
    ) -> Option<Ejection> {
        let ticket = self.ticket.take()?;
        (*self.endpoint).as_ref().report(ticket, now, rtt, outcome, policy, rng)
    }

    /// [`InFlight::report`], and the request is over.
    pub fn finish(
        mut self,
        now: Instant,
        rtt: Duration,
        outcome: Outcome,
        policy: &Policy,
        rng: &mut fastrand::Rng,
    ) -> Option<Ejection> {
        self.report(now, rtt, outcome, policy, rng)
    }
}

impl<E: AsRef<EndpointStats>> Drop for InFlight<E> {
    fn drop(&mut self) {
        let stats: &EndpointStats = (*self.endpoint).as_ref();
        if let Some(ticket) = self.ticket.take() {
            stats.breaker.release(ticket);
        }
        stats.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
