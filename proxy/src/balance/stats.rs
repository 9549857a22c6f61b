//! What is known of one endpoint, and the guard that each request to it holds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    breaker::{Breaker, Ejection, Health, Ticket, Trust},
    ewma::PeakEwma,
    history::{History, Moments},
    policy::{BalancerPolicy, Policy},
    token::Token,
};

/// Longest `Retry-After` that is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// Share of its own that an endpoint gets when it has just joined.
const COLD: f64 = 0.1;

/// Statistics of one endpoint, shared by all workers; they outlive updates of the endpoint's
/// other properties.
#[derive(Debug)]
pub struct EndpointStats {
    token: Token,
    known: Instant,
    history: History,
    joined: Option<Instant>,
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
            token: Token::default(),
            known: now,
            history: History::default(),
            joined: None,
            ewma: PeakEwma::new(now),
            breaker: Breaker::new(now),
            in_flight: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// The same with a name, for rings and sessions.
    #[must_use]
    pub fn named(self, token: Token) -> Self {
        Self { token, ..self }
    }

    /// The same of an endpoint that joined a Service which was known already: it may be cold.
    #[must_use]
    pub fn joining(self, now: Instant) -> Self {
        Self { joined: Some(now), ..self }
    }

    /// What it is called.
    #[must_use]
    pub fn token(&self) -> Token {
        self.token
    }

    /// When it joined; `None`: it was there when the Service was first known.
    #[must_use]
    pub fn joined(&self) -> Option<Instant> {
        self.joined
    }

    /// A connection to it is tried.
    pub fn dialled(&self, now: Instant) {
        self.history.dialled(self.known, now);
    }

    /// When something last happened to it.
    #[must_use]
    pub fn moments(&self) -> Moments {
        self.history.moments(self.known)
    }

    /// How much of its share it may have: from 0.1 when it joined to 1 after `slow_start`, in a
    /// straight line.
    #[must_use]
    pub fn warmth(&self, now: Instant, slow_start: Duration) -> f64 {
        let Some(joined) = self.joined else { return 1.0 };
        let age = now.saturating_duration_since(joined);
        if age >= slow_start {
            return 1.0;
        }
        COLD + (1.0 - COLD) * (age.as_secs_f64() / slow_start.as_secs_f64())
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

    /// What an outcome is to the breaker, once the estimate has learnt of it; `None`: nothing.
    fn learn(
        &self,
        now: Instant,
        rtt: Duration,
        outcome: Outcome,
        policy: &BalancerPolicy,
    ) -> Option<Health> {
        match outcome {
            Outcome::Cancelled => {
                self.ewma.observe_at_least(now, rtt, policy);
                None
            }
            Outcome::Success => {
                self.ewma.observe(now, rtt, policy);
                Some(Health::Good)
            }
            Outcome::Failure(kind) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                self.ewma.observe(now, kind.cost(rtt, policy), policy);
                Some(kind.health())
            }
        }
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
    verdict: Verdict,
    probe: bool,
}

/// What was said of a request so far.
#[derive(Debug)]
enum Verdict {
    None(Ticket),
    /// Its answer has begun well. The estimate knows how long that took; the breaker waits.
    Promised(Ticket),
    /// The same of a probe, which the breaker believed.
    Trusted(Trust),
    /// Nothing can change any more.
    Final,
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
        Self { endpoint, verdict: Verdict::None(ticket), probe }
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

    /// Says that the response's head promises success, `rtt` after the request was sent, and that its
    /// body is still to come. How it ends is for [`Self::report`] to say: a response that breaks off is a
    /// failure, and successes are counted when they are over. Only a probe is believed at once, so that a
    /// stream that lives for hours does not keep its endpoint ejected. Returns whether that closed the
    /// breaker.
    pub fn promise(&mut self, now: Instant, rtt: Duration, policy: &Policy) -> bool {
        let Verdict::None(ticket) = self.take() else { return false };
        let stats: &EndpointStats = (*self.endpoint).as_ref();
        stats.ewma.observe(now, rtt, &policy.balancer);
        let trust = stats.breaker.trust(&ticket, policy.breaker.as_ref());
        let closed = trust.is_some();
        self.verdict = trust.map_or(Verdict::Promised(ticket), Verdict::Trusted);
        closed
    }

    /// Says how the request went after `rtt` (until the response's head; for opaque TCP until the
    /// connection stood), while it may stay in flight. Only the first report counts, and after a
    /// promise only a failure costs time. Returns the ejection that it caused.
    pub fn report(
        &mut self,
        now: Instant,
        rtt: Duration,
        outcome: Outcome,
        policy: &Policy,
        rng: &mut fastrand::Rng,
    ) -> Option<Ejection> {
        let verdict = self.take();
        let stats: &EndpointStats = (*self.endpoint).as_ref();
        let (breaker, rules) = (&stats.breaker, policy.breaker.as_ref());
        let promised = !matches!(verdict, Verdict::None(_));
        if matches!(verdict, Verdict::Final) {
            return None;
        }
        match outcome {
            Outcome::Success => stats.history.succeeded(stats.known, now),
            Outcome::Failure(_) => stats.history.failed(stats.known, now),
            Outcome::Cancelled => {}
        }
        let health = match outcome {
            Outcome::Success if promised => Some(Health::Good),
            Outcome::Cancelled if promised => None,
            _ => stats.learn(now, rtt, outcome, &policy.balancer),
        };
        match (verdict, health) {
            (Verdict::None(ticket) | Verdict::Promised(ticket), Some(health)) => {
                breaker.record(ticket, health, now, rules, rng)
            }
            (Verdict::None(ticket) | Verdict::Promised(ticket), None) => {
                breaker.release(ticket);
                None
            }
            (Verdict::Trusted(trust), Some(Health::Bad | Health::Refusing)) => {
                breaker.disappoint(&trust, now, rules, rng)
            }
            (Verdict::Trusted(_), _) | (Verdict::Final, _) => None,
        }
    }

    fn take(&mut self) -> Verdict {
        std::mem::replace(&mut self.verdict, Verdict::Final)
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
        if let Verdict::None(ticket) | Verdict::Promised(ticket) =
            std::mem::replace(&mut self.verdict, Verdict::Final)
        {
            stats.breaker.release(ticket);
        }
        stats.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
