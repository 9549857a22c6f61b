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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::{breaker::State, policy::BreakerPolicy, testing::epoch};
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);
    const ERROR: Outcome = Outcome::Failure(FailureKind::ServerError { retry_after: None });

    struct Fixture {
        endpoint: Arc<EndpointStats>,
        policy: Policy,
        now: Instant,
        rng: fastrand::Rng,
    }

    impl Fixture {
        fn new() -> Self {
            let breaker = BreakerPolicy { consecutive_failures: 2, ..BreakerPolicy::default() };
            let policy = Policy { breaker: Some(breaker), ..Policy::default() };
            let now = epoch();
            let endpoint = Arc::new(EndpointStats::new(now));
            Self { endpoint, policy, now, rng: fastrand::Rng::with_seed(1) }
        }

        fn begin(&self) -> InFlight<EndpointStats> {
            InFlight::begin(Arc::clone(&self.endpoint), self.now)
        }

        fn end(&mut self, rtt: Duration, outcome: Outcome) -> Option<Ejection> {
            self.begin().finish(self.now, rtt, outcome, &self.policy, &mut self.rng)
        }

        fn rtt(&self) -> Option<Duration> {
            self.endpoint.ewma().rtt(self.now, &self.policy.balancer)
        }
    }

    const KINDS: [FailureKind; 4] = [
        FailureKind::ServerError { retry_after: None },
        FailureKind::RateLimited { retry_after: None },
        FailureKind::Transport,
        FailureKind::TimedOut,
    ];

    #[test]
    fn a_failure_costs_the_penalty_however_fast_it_came() {
        for kind in KINDS {
            let mut f = Fixture::new();
            f.end(MS, Outcome::Success);
            f.end(MS, Outcome::Failure(kind));
            assert_eq!(f.rtt(), Some(Duration::from_secs(5)), "{kind:?}");
            assert_eq!((f.endpoint.requests(), f.endpoint.failures()), (2, 1));
        }
    }

    #[test]
    fn a_failure_that_took_longer_than_the_penalty_costs_what_it_took() {
        for kind in KINDS {
            let mut f = Fixture::new();
            f.end(7000 * MS, Outcome::Failure(kind));
            assert_eq!(f.rtt(), Some(7000 * MS), "{kind:?}");
        }
    }

    #[test]
    fn without_a_penalty_a_failure_costs_its_time_and_what_it_asks_for() {
        let mut f = Fixture::new();
        f.policy.balancer.failure_penalty = Duration::ZERO;
        f.end(3 * MS, ERROR);
        assert_eq!(f.rtt(), Some(3 * MS));
        let retry_after = Some(Duration::from_secs(2));
        f.end(MS, Outcome::Failure(FailureKind::ServerError { retry_after }));
        assert_eq!(f.rtt(), Some(Duration::from_secs(2)));
    }

    #[test]
    fn a_penalty_fades_as_any_latency_does() {
        let mut f = Fixture::new();
        f.end(MS, ERROR);
        f.now += Duration::from_secs(10);
        let faded = f.rtt().unwrap().as_secs_f64();
        assert!((faded - 5.0 * (-1f64).exp()).abs() < 1e-6, "{faded}");
    }

    #[test]
    fn rate_limiting_lowers_the_success_rate() {
        let mut f = Fixture::new();
        let breaker = f.policy.breaker.as_mut().unwrap();
        breaker.success_rate_threshold = 0.8;
        let refused = Outcome::Failure(FailureKind::RateLimited { retry_after: None });
        for _ in 0..4 {
            assert_eq!(f.end(MS, refused), None);
        }
        assert!(f.end(MS, refused).is_some());
    }

    #[test]
    fn an_endpoint_that_joined_warms_up_in_a_straight_line() {
        let start = epoch();
        let warmth = |stats: &EndpointStats, seconds| {
            stats.warmth(start + Duration::from_secs(seconds), Duration::from_secs(10))
        };
        let new = EndpointStats::new(start).joining(start);
        let line = [0, 5, 9, 10, 1000].map(|s| (warmth(&new, s) * 100.0).round());
        assert_eq!(line, [10.0, 55.0, 91.0, 100.0, 100.0]);
        let old = EndpointStats::new(start);
        assert!((warmth(&old, 0) - 1.0).abs() < f64::EPSILON, "there from the start");
        assert!((new.warmth(start, Duration::ZERO) - 1.0).abs() < f64::EPSILON, "switched off");
    }

    #[test]
    fn retry_after_raises_the_cost_up_to_a_bound() {
        for (asked, cost) in [(1, 5), (60, 60), (86_400, 300)] {
            let mut f = Fixture::new();
            let retry_after = Some(Duration::from_secs(asked));
            f.end(MS, Outcome::Failure(FailureKind::RateLimited { retry_after }));
            assert_eq!(f.rtt(), Some(Duration::from_secs(cost)));
        }
    }

    #[test]
    fn rate_limiting_does_not_open_the_breaker() {
        let mut f = Fixture::new();
        for _ in 0..10 {
            let kind = FailureKind::RateLimited { retry_after: None };
            assert_eq!(f.end(MS, Outcome::Failure(kind)), None);
        }
        assert!(f.endpoint.breaker().is_closed());
    }

    #[test]
    fn a_cancelled_request_is_neither_a_success_nor_a_failure() {
        let mut f = Fixture::new();
        f.end(MS, ERROR);
        f.end(MS, Outcome::Cancelled);
        drop(f.begin());
        assert_eq!(f.endpoint.failures(), 1);
        assert_eq!(f.rtt(), Some(Duration::from_secs(5)));
        // Had one of them been a success, this would be the first failure in a row.
        assert!(f.end(MS, ERROR).is_some());
    }

    #[test]
    fn a_probe_dropped_without_a_report_hands_its_right_back() {
        let mut f = Fixture::new();
        f.end(MS, ERROR);
        let penalty = f.end(MS, ERROR).unwrap().penalty;
        f.now += penalty + MS;
        let probe = |f: &Fixture| {
            let ticket = f.endpoint.breaker().try_probe(f.now)?;
            Some(InFlight::with_ticket(Arc::clone(&f.endpoint), ticket, f.now))
        };
        let first = probe(&f).unwrap();
        assert!(first.is_probe() && probe(&f).is_none());
        drop(first);
        let second = probe(&f).unwrap();
        second.finish(f.now, MS, Outcome::Success, &f.policy, &mut f.rng);
        assert_eq!(f.endpoint.breaker().state(f.now), State::Closed);
    }

    #[test]
    fn a_stream_gives_its_verdict_early_and_stays_in_flight() {
        let mut f = Fixture::new();
        let mut stream = f.begin();
        stream.report(f.now, 3 * MS, Outcome::Success, &f.policy, &mut f.rng);
        stream.report(f.now, MS, ERROR, &f.policy, &mut f.rng);
        assert_eq!((f.endpoint.in_flight(), f.endpoint.failures()), (1, 0));
        assert_eq!(f.rtt(), Some(3 * MS));
        drop(stream);
        assert_eq!(f.endpoint.in_flight(), 0);
    }

    proptest! {
        #[test]
        fn in_flight_is_the_number_of_guards(steps in prop::collection::vec(0u8..6, 0..200)) {
            let mut f = Fixture::new();
            let mut guards = Vec::new();
            for step in steps {
                match (step, guards.pop()) {
                    (0 | 1, last) => {
                        guards.extend(last);
                        guards.push(f.begin());
                    }
                    (_, None) => {}
                    (2, Some(guard)) => drop(guard),
                    (3, Some(mut guard)) => {
                        guard.report(f.now, MS, ERROR, &f.policy, &mut f.rng);
                        guards.push(guard);
                    }
                    (_, Some(guard)) => {
                        guard.finish(f.now, MS, Outcome::Success, &f.policy, &mut f.rng);
                    }
                }
                prop_assert_eq!(f.endpoint.in_flight() as usize, guards.len());
            }
            drop(guards);
            prop_assert_eq!(f.endpoint.in_flight(), 0);
        }
    }
}
