use proptest::prelude::*;

use super::*;
use crate::balance::{
    policy::{Affinity, BalancerPolicy, BreakerPolicy},
    stats::{FailureKind, Outcome},
    testing::epoch,
    token::Token,
};

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
const ALL: [Algorithm; 5] = [
    Algorithm::PeakEwma,
    Algorithm::LeastRequest,
    Algorithm::RoundRobin,
    Algorithm::Random,
    Algorithm::RingHash,
];

pub(super) struct Fixture {
    pub(super) endpoints: Endpoints<EndpointStats>,
    pub(super) policy: Policy,
    cursor: AtomicUsize,
    pub(super) now: Instant,
    pub(super) rng: fastrand::Rng,
}

impl Fixture {
    pub(super) fn new(endpoints: usize, algorithm: Algorithm) -> Self {
        let now = epoch();
        let breaker =
            BreakerPolicy { consecutive_failures: 1, jitter_ratio: 0.0, ..Default::default() };
        let balancer = BalancerPolicy { algorithm, ..Default::default() };
        let affinity = Some(Affinity::ClientAddress { timeout: SECOND });
        let policy = Policy { balancer, affinity, breaker: Some(breaker), ..Default::default() };
        let list = (0..endpoints).map(|n| Arc::new(EndpointStats::new(now).named(token(n))));
        Self {
            endpoints: Endpoints::new(list.collect(), &policy),
            policy,
            cursor: AtomicUsize::new(0),
            now,
            rng: fastrand::Rng::with_seed(1),
        }
    }

    /// Endpoints as after an update: those that `keep` names by token, and new ones.
    pub(super) fn update(&mut self, keep: impl Fn(Token) -> bool, new: &[usize]) {
        let old = self.endpoints.iter().filter(|e| keep(e.token())).cloned();
        let joining = |n: &usize| EndpointStats::new(self.now).named(token(*n)).joining(self.now);
        let list = old.chain(new.iter().map(|n| Arc::new(joining(n)))).collect();
        self.endpoints = Endpoints::new(list, &self.policy);
    }

    pub(super) fn pick(&mut self) -> Result<Picked<EndpointStats>, NoEndpoint> {
        self.pick_trying(|_| Tried::No)
    }

    fn pick_trying(
        &mut self,
        tried: impl Fn(usize) -> Tried,
    ) -> Result<Picked<EndpointStats>, NoEndpoint> {
        self.pick_wishing(Wish::default(), tried)
    }

    pub(super) fn pick_wishing(
        &mut self,
        wish: Wish,
        tried: impl Fn(usize) -> Tried,
    ) -> Result<Picked<EndpointStats>, NoEndpoint> {
        let of = |endpoint: &EndpointStats| {
            let same = |e: &Arc<EndpointStats>| std::ptr::eq(Arc::as_ptr(e), endpoint);
            tried(self.endpoints.iter().position(same).unwrap())
        };
        pick(&self.endpoints, &self.policy, &self.cursor, wish, of, self.now, &mut self.rng)
    }

    pub(super) fn end(&mut self, index: usize, rtt: Duration, outcome: Outcome) {
        let guard = InFlight::begin(Arc::clone(&self.endpoints[index]), self.now);
        guard.finish(self.now, rtt, outcome, &self.policy, &mut self.rng);
    }

    pub(super) fn eject(&mut self, index: usize) {
        self.end(index, MS, Outcome::Failure(FailureKind::Transport));
        assert!(!self.endpoints[index].breaker().is_closed());
    }

    /// Which endpoints many picks fall on; each request is over before the next.
    fn seen(&mut self) -> Vec<usize> {
        let mut seen: Vec<_> = (0..300).map(|_| self.pick().unwrap().index).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }
}

pub(super) fn token(n: usize) -> Token {
    Token::of(([10, 0, 0, 1], u16::try_from(n).unwrap()).into(), "")
}

#[test]
fn an_empty_snapshot_has_its_own_answer() {
    assert_eq!(Fixture::new(0, Algorithm::PeakEwma).pick().unwrap_err(), NoEndpoint::Empty);
}

#[test]
fn of_two_the_cheaper_is_taken() {
    let mut f = Fixture::new(2, Algorithm::PeakEwma);
    f.end(0, 10 * MS, Outcome::Success);
    f.end(1, 25 * MS, Outcome::Success);
    let picked: Vec<_> = (0..3).map(|_| f.pick().unwrap()).collect();
    // 10 and 20 ms are cheaper than 25 ms, 30 ms is not.
    assert_eq!(picked.iter().map(|p| p.index).collect::<Vec<_>>(), [0, 0, 1]);
}

#[test]
fn a_new_endpoint_is_asked_at_once_but_not_flooded() {
    let mut f = Fixture::new(2, Algorithm::PeakEwma);
    f.end(0, MS, Outcome::Success);
    let picked: Vec<_> = (0..10).map(|_| f.pick().unwrap()).collect();
    assert_eq!(picked.iter().filter(|p| p.index == 1).count(), 1);
}

#[test]
fn an_endpoint_that_fails_or_refuses_fast_is_not_preferred() {
    let refuses = FailureKind::RateLimited { retry_after: None };
    let fails = FailureKind::ServerError { retry_after: None };
    for kind in [refuses, fails, FailureKind::Transport, FailureKind::TimedOut] {
        let mut f = Fixture::new(2, Algorithm::PeakEwma);
        f.policy.breaker = None;
        f.end(0, 200 * MS, Outcome::Success);
        f.end(1, MS, Outcome::Failure(kind));
        assert_eq!(f.seen(), [0], "{kind:?}");
    }
}

#[test]
fn an_endpoint_that_asked_for_a_pause_is_shunned_for_about_as_long() {
    let mut f = Fixture::new(2, Algorithm::PeakEwma);
    f.end(0, 200 * MS, Outcome::Success);
    let retry_after = Some(30 * SECOND);
    f.end(1, MS, Outcome::Failure(FailureKind::RateLimited { retry_after }));
    for _ in 0..30 {
        f.now += SECOND;
        // Somebody asks the other one all the time.
        f.end(0, 200 * MS, Outcome::Success);
        assert_eq!(f.seen(), [0]);
    }
    f.now += 60 * SECOND;
    f.end(0, 200 * MS, Outcome::Success);
    assert!(f.seen().contains(&1));
}

#[test]
fn least_request_evens_out_what_is_in_flight() {
    let mut f = Fixture::new(2, Algorithm::LeastRequest);
    let _picked: Vec<_> = (0..10).map(|_| f.pick().unwrap()).collect();
    assert!(f.endpoints.iter().all(|e| e.in_flight() == 5));
}

#[test]
fn round_robin_takes_turns_and_spreads_the_turns_of_the_ejected() {
    let mut f = Fixture::new(4, Algorithm::RoundRobin);
    let turns = |f: &mut Fixture| (0..4).map(|_| f.pick().unwrap().index).collect::<Vec<_>>();
    assert_eq!(turns(&mut f), [0, 1, 2, 3]);
    f.eject(1);
    let mut counts = [0; 4];
    for _ in 0..400 {
        counts[f.pick().unwrap().index] += 1;
    }
    assert_eq!(counts[1], 0);
    assert!([0, 2, 3].iter().all(|i| (110..160).contains(&counts[*i])), "{counts:?}");
}

#[test]
fn an_ejected_endpoint_gets_nothing_until_its_probe_is_due() {
    for algorithm in ALL {
        let mut f = Fixture::new(3, algorithm);
        f.eject(1);
        assert_eq!(f.seen(), [0, 2], "{algorithm:?}");
        f.now += Duration::from_secs(1);
        let probe = (0..100).map(|_| f.pick().unwrap()).find(|p| p.index == 1).unwrap();
        assert!(probe.guard.is_probe());
        assert_eq!(f.seen(), [0, 2], "{algorithm:?}: one probe at a time");
        probe.guard.finish(f.now, MS, Outcome::Success, &f.policy, &mut f.rng);
        assert!(f.endpoints[1].breaker().is_closed());
    }
}

#[test]
fn a_service_without_breaker_policy_ejects_nobody() {
    let mut f = Fixture::new(2, Algorithm::Random);
    f.eject(0);
    f.policy.breaker = None;
    assert_eq!(f.seen(), [0, 1]);
}

#[test]
fn a_service_with_one_endpoint_keeps_it() {
    for algorithm in ALL {
        let mut f = Fixture::new(1, algorithm);
        f.eject(0);
        assert_eq!(f.seen(), [0], "{algorithm:?}");
    }
}

#[test]
fn at_most_half_are_ejected_and_those_nearest_to_their_probe_are_spared() {
    for algorithm in ALL {
        let mut f = Fixture::new(5, algorithm);
        // In this order, so that 4 is the first to be probed.
        for index in [4, 0, 2, 1] {
            f.eject(index);
            f.now += MS;
        }
        // Kept, so that cost does not speak against anyone for good.
        let guards: Vec<_> = (0..300).map(|_| f.pick().unwrap()).collect();
        let mut seen: Vec<_> = guards.iter().map(|p| p.index).collect();
        seen.sort_unstable();
        seen.dedup();
        assert!(guards.iter().all(|p| !p.guard.is_probe()));
        assert_eq!(seen, [0, 3, 4], "{algorithm:?}");
    }
}

#[test]
fn another_endpoint_is_taken_for_each_attempt_and_a_tried_one_as_the_last_resort() {
    for algorithm in ALL {
        let mut f = Fixture::new(3, algorithm);
        let avoid = |used: Vec<usize>| {
            move |i: usize| if used.contains(&i) { Tried::Avoid } else { Tried::No }
        };
        for _ in 0..50 {
            assert_eq!(f.pick_trying(avoid(vec![0, 2])).unwrap().index, 1);
            assert!(f.pick_trying(avoid(vec![0, 1, 2])).is_ok());
        }
        // An ejected endpoint is no substitute for a tried one.
        f.eject(1);
        assert_ne!(f.pick_trying(avoid(vec![0, 2])).unwrap().index, 1);
        // Unless it is due for a probe.
        f.now += Duration::from_secs(1);
        assert!(f.pick_trying(avoid(vec![0, 2])).unwrap().guard.is_probe());
    }
}

#[test]
fn a_retry_is_no_probe_while_an_untried_endpoint_is_there() {
    let mut f = Fixture::new(3, Algorithm::PeakEwma);
    f.eject(1);
    f.now += Duration::from_secs(1);
    for _ in 0..50 {
        let tried = |i| if i == 0 { Tried::Avoid } else { Tried::No };
        assert_eq!(f.pick_trying(tried).unwrap().index, 2);
    }
}

#[test]
fn all_ejected_means_that_the_request_excluded_every_endpoint_that_is_not() {
    let mut f = Fixture::new(3, Algorithm::PeakEwma);
    f.eject(1);
    f.now += 400 * MS;
    let exclude = |i| if i == 1 { Tried::No } else { Tried::Exclude };
    let error = f.pick_trying(exclude).unwrap_err();
    assert_eq!(error, NoEndpoint::AllEjected { retry_after: 600 * MS });
    // Not even a due probe goes to an excluded endpoint.
    f.now += Duration::from_secs(1);
    assert_eq!(f.pick_trying(|_| Tried::Exclude).unwrap_err(), NoEndpoint::AllExcluded);
}

#[test]
fn threads_share_endpoints_with_one_probe_each_and_no_leak() {
    const ENDPOINTS: usize = 3;
    let f = Fixture::new(ENDPOINTS, Algorithm::Random);
    let (endpoints, policy, cursor, start) = (&f.endpoints, &f.policy, &f.cursor, f.now);
    let out: [AtomicUsize; ENDPOINTS] = Default::default();
    let (out, probes) = (&out, &AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(thread);
                for step in 0..3000 {
                    let now = start + 20 * MS * step;
                    let tried = |_: &EndpointStats| Tried::No;
                    let wish = Wish::default();
                    let p = pick(endpoints, policy, cursor, wish, tried, now, &mut rng).unwrap();
                    let probe = p.guard.is_probe();
                    if probe {
                        probes.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(out[p.index].fetch_add(1, Ordering::SeqCst), 0, "second probe");
                        std::thread::yield_now();
                        out[p.index].fetch_sub(1, Ordering::SeqCst);
                    }
                    let outcome = match rng.u8(..10) {
                        0 => Outcome::Failure(FailureKind::Transport),
                        1 => continue, // Dropped by the client.
                        _ => Outcome::Success,
                    };
                    p.guard.finish(now, MS, outcome, policy, &mut rng);
                }
            });
        }
    });
    assert!(probes.load(Ordering::SeqCst) > 0);
    assert!(endpoints.iter().all(|e| e.in_flight() == 0));
    assert_eq!(endpoints.iter().map(|e| e.requests()).sum::<u64>(), 4 * 3000);
}

proptest! {
    /// The floor: whoever is ejected, at least half of the endpoints, rounded up, get requests; all
    /// that are not ejected, and of the others those whose probes are nearest.
    #[test]
    fn never_more_than_half_are_left_out(
        n in 1usize..9,
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..9),
        algorithm in 0usize..5,
    ) {
        let mut f = Fixture::new(n, ALL[algorithm]);
        let mut ejected = Vec::new();
        for index in order.into_iter().map(|index| index.index(n)) {
            if !ejected.contains(&index) {
                f.eject(index);
                ejected.push(index);
                f.now += MS;
            }
        }
        let spared = ejected.len().saturating_sub(n / 2);
        let mut expected: Vec<usize> =
            (0..n).filter(|i| !ejected.contains(i) || ejected[..spared].contains(i)).collect();
        expected.sort_unstable();
        // Kept, so that cost does not speak against anyone for good.
        let guards: Vec<_> = (0..100 * n).map(|_| f.pick().unwrap()).collect();
        let mut seen: Vec<_> = guards.iter().map(|p| p.index).collect();
        seen.sort_unstable();
        seen.dedup();
        prop_assert!(seen.len() >= n.div_ceil(2));
        prop_assert_eq!(seen, expected);
    }

    /// The promises of the module's documentation, for any snapshot and any earlier attempts.
    #[test]
    fn a_choice_is_always_made_and_always_the_best_class(
        endpoints in prop::collection::vec((any::<bool>(), 0u8..3), 1..12),
        algorithm in 0usize..5,
        seed in any::<u64>(),
    ) {
        let mut f = Fixture::new(endpoints.len(), ALL[algorithm]);
        f.rng = fastrand::Rng::with_seed(seed);
        for (index, _) in endpoints.iter().enumerate().filter(|(_, (ejected, _))| *ejected) {
            f.eject(index);
        }
        let tried = |i: usize| [Tried::No, Tried::Avoid, Tried::Exclude][usize::from(endpoints[i].1)];
        let healthy = |i: usize| !endpoints[i].0;
        let any_healthy = |t: Tried| (0..endpoints.len()).any(|i| healthy(i) && tried(i) == t);
        let ejected = endpoints.iter().filter(|(ejected, _)| *ejected).count();
        for _ in 0..20 {
            match f.pick_trying(tried) {
                Ok(picked) => {
                    prop_assert_ne!(tried(picked.index), Tried::Exclude);
                    prop_assert!(tried(picked.index) == Tried::No || !any_healthy(Tried::No));
                    prop_assert!(healthy(picked.index) || ejected > endpoints.len() / 2);
                }
                Err(NoEndpoint::Empty) => prop_assert!(false, "not empty"),
                Err(_) => prop_assert!(!any_healthy(Tried::No) && !any_healthy(Tried::Avoid)),
            }
        }
        prop_assert!(f.endpoints.iter().all(|e| e.in_flight() == 0));
        prop_assert!(f.pick().is_ok());
    }
}
