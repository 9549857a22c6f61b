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
fn a_promise_is_kept_or_broken_when_the_response_ends() {
    let mut f = Fixture::new();
    let mut ejections = 0;
    // As many at a time as you like: that others begin well does not hide that all end badly.
    let mut streams: Vec<_> = (0..2).map(|_| f.begin()).collect();
    for stream in &mut streams {
        stream.promise(f.now, 3 * MS, &f.policy);
    }
    assert_eq!(f.rtt(), Some(3 * MS), "the estimate knows at once");
    let broken = Outcome::Failure(FailureKind::Transport);
    for mut stream in streams {
        let ejection = stream.report(f.now, 3 * MS, broken, &f.policy, &mut f.rng);
        ejections += usize::from(ejection.is_some());
        // And only once.
        assert_eq!(stream.report(f.now, MS, broken, &f.policy, &mut f.rng), None);
    }
    assert_eq!((ejections, f.endpoint.requests(), f.endpoint.failures()), (1, 2, 2));
    assert_eq!(f.rtt(), Some(Duration::from_secs(5)), "a break costs what a failure costs");
}

#[test]
fn a_promise_that_is_kept_ends_a_row_of_failures() {
    let mut f = Fixture::new();
    f.end(MS, ERROR);
    let mut stream = f.begin();
    stream.promise(f.now, MS, &f.policy);
    assert!(f.endpoint.breaker().doubts(), "not yet");
    f.now += Duration::from_secs(60);
    stream.finish(f.now, MS, Outcome::Success, &f.policy, &mut f.rng);
    assert!(!f.endpoint.breaker().doubts());
}

#[test]
fn a_promise_that_nobody_waits_for_says_nothing() {
    let mut f = Fixture::new();
    f.end(MS, ERROR);
    for cancelled in [false, true] {
        let mut stream = f.begin();
        stream.promise(f.now, MS, &f.policy);
        if cancelled {
            stream.report(f.now, MS, Outcome::Cancelled, &f.policy, &mut f.rng);
        }
    }
    assert!(f.endpoint.breaker().doubts());
    assert_eq!(f.endpoint.failures(), 1);
}

#[test]
fn a_probe_is_believed_when_its_answer_begins_and_not_any_more_when_it_breaks() {
    for breaks in [false, true] {
        let mut f = Fixture::new();
        f.end(MS, ERROR);
        let penalty = f.end(MS, ERROR).unwrap().penalty;
        f.now += penalty + MS;
        let ticket = f.endpoint.breaker().try_probe(f.now).unwrap();
        let mut probe = InFlight::with_ticket(Arc::clone(&f.endpoint), ticket, f.now);
        probe.promise(f.now, MS, &f.policy);
        assert_eq!(f.endpoint.breaker().state(f.now), State::Closed);
        let outcome =
            if breaks { Outcome::Failure(FailureKind::Transport) } else { Outcome::Success };
        let ejection = probe.finish(f.now, MS, outcome, &f.policy, &mut f.rng);
        assert_eq!(ejection.map(|ejection| ejection.again), breaks.then_some(true));
    }
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
