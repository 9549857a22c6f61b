use std::{
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use proptest::prelude::*;

use super::*;

fn policy() -> BreakerPolicy {
    BreakerPolicy { consecutive_failures: 3, jitter_ratio: 0.0, ..BreakerPolicy::default() }
}

struct Fixture {
    breaker: Breaker,
    policy: BreakerPolicy,
    epoch: Instant,
    rng: fastrand::Rng,
}

impl Fixture {
    fn new(policy: BreakerPolicy) -> Self {
        let epoch = crate::balance::sim_tests::epoch();
        let rng = fastrand::Rng::with_seed(1);
        Self { breaker: Breaker::new(epoch), policy, epoch, rng }
    }

    fn at(&self, millis: u64) -> Instant {
        self.epoch + Duration::from_millis(millis)
    }

    fn record(&mut self, ticket: Ticket, health: Health, millis: u64) -> Option<Ejection> {
        let now = self.at(millis);
        self.breaker.record(ticket, health, now, Some(&self.policy), &mut self.rng)
    }

    fn end(&mut self, health: Health, millis: u64) -> Option<Ejection> {
        let ticket = self.breaker.ticket();
        self.record(ticket, health, millis)
    }

    fn trip(&mut self, millis: u64) -> Ejection {
        for _ in 1..self.policy.consecutive_failures {
            assert_eq!(self.end(Health::Bad, millis), None);
        }
        self.end(Health::Bad, millis).unwrap()
    }

    fn probe(&self, millis: u64) -> Option<Ticket> {
        self.breaker.try_probe(self.at(millis))
    }

    fn state(&self, millis: u64) -> State {
        self.breaker.state(self.at(millis))
    }
}

#[test]
fn failures_in_a_row_open_it_and_a_success_breaks_the_row() {
    let mut f = Fixture::new(policy());
    for health in [Health::Bad, Health::Bad, Health::Good, Health::Bad, Health::Bad] {
        assert_eq!(f.end(health, 0), None);
    }
    let ejection = f.end(Health::Bad, 7).unwrap();
    let reason = Reason::ConsecutiveFailures;
    assert_eq!(ejection, Ejection { reason, penalty: Duration::from_secs(1), again: false });
    assert_eq!(f.state(8), State::Open);
    assert_eq!(f.breaker.reason(), Some(reason));
    assert_eq!(f.breaker.since(), Some(f.at(7)));
    assert_eq!(f.breaker.next_probe(), Some(f.at(1007)));
    assert_eq!(f.breaker.trips(), 1);
}

#[test]
fn half_open_admits_one_probe_and_its_success_forgets_the_past() {
    let mut f = Fixture::new(policy());
    f.trip(0);
    assert!(f.probe(999).is_none());
    assert_eq!(f.state(1000), State::HalfOpen);
    let probe = f.probe(1000).unwrap();
    assert!(f.probe(1000).is_none() && f.probe(99_000).is_none());
    assert_eq!(f.record(probe, Health::Good, 1010), None);
    assert_eq!((f.state(1010), f.breaker.reason()), (State::Closed, None));
    assert_eq!(f.trip(1020).penalty, Duration::from_secs(1));
}

#[test]
fn failed_probes_double_the_penalty_up_to_the_longest() {
    let mut f = Fixture::new(policy());
    f.trip(0);
    let mut penalties = Vec::new();
    let mut now = 1000;
    for _ in 0..8 {
        let probe = f.probe(now).unwrap();
        let ejection = f.record(probe, Health::Bad, now).unwrap();
        assert!(ejection.again);
        penalties.push(ejection.penalty.as_secs());
        now += u64::try_from(ejection.penalty.as_millis()).unwrap();
    }
    assert_eq!(penalties, [2, 4, 8, 16, 32, 60, 60, 60]);
    assert_eq!((f.breaker.trips(), f.breaker.since()), (9, Some(f.at(0))));
}

#[test]
fn a_probe_given_up_hands_its_right_to_the_next_request() {
    let mut f = Fixture::new(policy());
    f.trip(0);
    let probe = f.probe(1000).unwrap();
    f.breaker.release(probe);
    assert_eq!(f.state(1001), State::HalfOpen);
    let probe = f.probe(1001).unwrap();
    assert_eq!(f.record(probe, Health::Bad, 1001).unwrap().penalty, Duration::from_secs(2));
}

#[test]
fn answers_to_requests_from_before_the_trip_change_nothing() {
    let mut f = Fixture::new(policy());
    let old: Vec<_> = (0..5).map(|_| f.breaker.ticket()).collect();
    f.trip(0);
    let mut old = old.into_iter();
    for health in [Health::Good, Health::Bad] {
        assert_eq!(f.record(old.next().unwrap(), health, 500), None);
        assert_eq!((f.state(500), f.breaker.trips()), (State::Open, 1));
    }
    let probe = f.probe(1000).unwrap();
    assert_eq!(f.record(old.next().unwrap(), Health::Good, 1001), None);
    assert_eq!(f.state(1001), State::HalfOpen);
    assert_eq!(f.record(probe, Health::Good, 1002), None);
    // Two late failures and two new ones are no three in a row.
    for ticket in old {
        assert_eq!(f.record(ticket, Health::Bad, 1003), None);
    }
    assert_eq!((f.end(Health::Bad, 1004), f.end(Health::Bad, 1004)), (None, None));
    assert_eq!(f.state(1004), State::Closed);
}

#[test]
fn a_low_success_rate_opens_it_once_there_are_enough_requests() {
    let mut f = Fixture::new(BreakerPolicy {
        consecutive_failures: 0,
        success_rate_threshold: 0.8,
        ..policy()
    });
    for _ in 0..4 {
        assert_eq!(f.end(Health::Refusing, 0), None);
    }
    assert_eq!(f.end(Health::Good, 0).unwrap().reason, Reason::SuccessRate);
    // The window starts empty after a probe.
    let probe = f.probe(1000).unwrap();
    assert_eq!(f.record(probe, Health::Good, 1000), None);
    for _ in 0..4 {
        assert_eq!(f.end(Health::Bad, 1001), None);
    }
    // What has left the window does not count.
    assert_eq!(f.end(Health::Bad, 20_000), None);
}

#[test]
fn where_both_rules_hold_the_run_of_failures_is_the_reason() {
    let mut f = Fixture::new(BreakerPolicy {
        consecutive_failures: 5,
        success_rate_threshold: 0.8,
        ..policy()
    });
    assert_eq!(f.trip(0).reason, Reason::ConsecutiveFailures);
}

#[test]
fn refusals_are_no_failures_in_a_row_but_fail_a_probe() {
    let mut f = Fixture::new(policy());
    for _ in 0..50 {
        assert_eq!(f.end(Health::Refusing, 0), None);
    }
    f.trip(0);
    let probe = f.probe(1000).unwrap();
    assert!(f.record(probe, Health::Refusing, 1000).unwrap().again);
}

#[test]
fn jitter_lengthens_a_penalty_by_at_most_its_share() {
    let jittered = BreakerPolicy { jitter_ratio: 0.5, ..policy() };
    let mut rng = fastrand::Rng::with_seed(7);
    let drawn: Vec<_> = (0..100).map(|_| penalty(&jittered, 0, &mut rng).as_secs_f64()).collect();
    assert!(drawn.iter().all(|p| (1.0..=1.5).contains(p)));
    assert!(drawn.iter().any(|p| *p < 1.1) && drawn.iter().any(|p| *p > 1.4));
}

#[test]
fn a_policy_without_breaker_closes_what_was_open() {
    let mut f = Fixture::new(policy());
    f.trip(0);
    let ticket = f.breaker.ticket();
    let now = f.at(1);
    assert_eq!(f.breaker.record(ticket, Health::Bad, now, None, &mut f.rng), None);
    assert_eq!(f.state(1), State::Closed);
}

#[test]
fn threads_that_race_for_a_due_probe_get_exactly_one() {
    const THREADS: usize = 4;
    const ROUNDS: u64 = 300;
    let mut f = Fixture::new(BreakerPolicy {
        min_penalty: Duration::from_millis(1),
        max_penalty: Duration::from_millis(1),
        ..policy()
    });
    f.trip(0);
    let (f, probes, barrier) = (&f, &AtomicUsize::new(0), &Barrier::new(THREADS));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(thread as u64);
                for round in 0..ROUNDS {
                    barrier.wait();
                    let now = f.at(10 * (round + 1));
                    let probe = f.breaker.try_probe(now);
                    probes.fetch_add(usize::from(probe.is_some()), Ordering::SeqCst);
                    barrier.wait();
                    // Given up or failed in turns: either way the next round has one again.
                    match probe {
                        Some(ticket) if round % 2 == 0 => f.breaker.release(ticket),
                        Some(ticket) => {
                            let policy = Some(&f.policy);
                            f.breaker.record(ticket, Health::Bad, now, policy, &mut rng);
                        }
                        None => {}
                    }
                }
            });
        }
    });
    assert_eq!(probes.load(Ordering::SeqCst) as u64, ROUNDS);
}

#[test]
fn threads_that_fail_together_trip_it_once() {
    let f = Fixture::new(policy());
    let (f, ejections) = (&f, &AtomicUsize::new(0));
    thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(thread);
                for _ in 0..100 {
                    let ticket = f.breaker.ticket();
                    let policy = Some(&f.policy);
                    let tripped = f.breaker.record(ticket, Health::Bad, f.at(0), policy, &mut rng);
                    ejections.fetch_add(usize::from(tripped.is_some()), Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!((ejections.load(Ordering::SeqCst), f.breaker.trips()), (1, 1));
}

proptest! {
    /// Whatever happens in whatever order, at most one probe is out and the word stays sound.
    #[test]
    fn at_most_one_probe_is_out(steps in prop::collection::vec((0u8..6, 0u64..2500), 1..200)) {
        let mut f = Fixture::new(policy());
        let (mut now, mut probe, mut others) = (0, None, Vec::new());
        for (step, gap) in steps {
            now += gap;
            match step {
                0 => others.push(f.breaker.ticket()),
                1 => if let Some(ticket) = others.pop() {
                    f.record(ticket, Health::Bad, now);
                },
                2 => if let Some(ticket) = others.pop() {
                    f.record(ticket, Health::Good, now);
                },
                3 => if let Some(ticket) = f.probe(now) {
                    prop_assert!(probe.replace(ticket).is_none(), "a second probe");
                },
                4 => if let Some(ticket) = probe.take() {
                    f.breaker.release(ticket);
                },
                _ => if let Some(ticket) = probe.take() {
                    let health = if gap % 2 == 0 { Health::Good } else { Health::Bad };
                    f.record(ticket, health, now);
                },
            }
            prop_assert!(probe.is_none() || f.state(now) == State::HalfOpen);
            prop_assert_eq!(f.breaker.is_closed(), f.breaker.since().is_none());
        }
    }

    #[test]
    fn words_survive_packing(
        phase in 0u8..3, streak in 0..=Word::STREAK_MAX,
        generation in 0..=Word::GENERATION_MASK, value in 0..=Word::VALUE_MAX,
    ) {
        let phase = [Phase::Closed, Phase::Open, Phase::Probing][usize::from(phase)];
        let word = Word { phase, streak, generation, value };
        prop_assert_eq!(Word::unpack(word.pack()), word);
    }
}
