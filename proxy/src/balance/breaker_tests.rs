use proptest::prelude::*;

use super::*;

pub(super) fn policy() -> BreakerPolicy {
    BreakerPolicy { consecutive_failures: 3, jitter_ratio: 0.0, ..BreakerPolicy::default() }
}

pub(super) struct Fixture {
    pub(super) breaker: Breaker,
    pub(super) policy: BreakerPolicy,
    epoch: Instant,
    pub(super) rng: fastrand::Rng,
}

impl Fixture {
    pub(super) fn new(policy: BreakerPolicy) -> Self {
        let epoch = crate::balance::testing::epoch();
        let rng = fastrand::Rng::with_seed(1);
        Self { breaker: Breaker::new(epoch), policy, epoch, rng }
    }

    pub(super) fn at(&self, millis: u64) -> Instant {
        self.epoch + Duration::from_millis(millis)
    }

    pub(super) fn record(
        &mut self,
        ticket: Ticket,
        health: Health,
        millis: u64,
    ) -> Option<Ejection> {
        let now = self.at(millis);
        self.breaker.record(ticket, health, now, Some(&self.policy), &mut self.rng)
    }

    pub(super) fn end(&mut self, health: Health, millis: u64) -> Option<Ejection> {
        let ticket = self.breaker.ticket();
        self.record(ticket, health, millis)
    }

    pub(super) fn trip(&mut self, millis: u64) -> Ejection {
        for _ in 1..self.policy.consecutive_failures {
            assert_eq!(self.end(Health::Bad, millis), None);
        }
        self.end(Health::Bad, millis).unwrap()
    }

    pub(super) fn probe(&self, millis: u64) -> Option<Ticket> {
        self.breaker.try_probe(self.at(millis))
    }

    pub(super) fn state(&self, millis: u64) -> State {
        self.breaker.state(self.at(millis))
    }
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
fn a_new_breaker_is_closed_and_has_nothing_to_tell() {
    let f = Fixture::new(policy());
    assert_eq!((f.state(0), f.state(99_000)), (State::Closed, State::Closed));
    assert!(f.breaker.is_closed() && !f.breaker.doubts());
    assert_eq!((f.breaker.reason(), f.breaker.since(), f.breaker.next_probe()), (None, None, None));
    assert_eq!(f.breaker.trips(), 0);
    assert!(f.probe(99_000).is_none(), "nothing to find out");
}

#[test]
fn only_a_probes_ticket_says_that_it_is_one() {
    let mut f = Fixture::new(policy());
    assert!(!f.breaker.ticket().is_probe());
    f.trip(0);
    assert!(!f.breaker.ticket().is_probe());
    assert!(f.probe(1000).unwrap().is_probe());
    assert!(!f.breaker.ticket().is_probe());
}

#[test]
fn while_open_results_neither_close_it_nor_lengthen_the_penalty() {
    let mut f = Fixture::new(policy());
    f.trip(0);
    for health in [Health::Good, Health::Bad, Health::Refusing] {
        for millis in [1, 500, 999] {
            assert_eq!(f.end(health, millis), None);
        }
    }
    assert_eq!((f.state(999), f.breaker.trips()), (State::Open, 1));
    assert_eq!(f.breaker.next_probe(), Some(f.at(1000)));
}

#[test]
fn while_half_open_only_the_probe_decides() {
    let mut f = Fixture::new(policy());
    f.trip(0);
    // Sent although it is ejected: the floor spared it.
    let spared = f.breaker.ticket();
    let probe = f.probe(1000).unwrap();
    for health in [Health::Good, Health::Bad, Health::Refusing] {
        assert_eq!(f.end(health, 1001), None);
        assert_eq!(f.state(1001), State::HalfOpen);
    }
    assert_eq!(f.record(probe, Health::Good, 1002), None);
    // What was sent while it was open says nothing of what it is now.
    assert_eq!(f.record(spared, Health::Bad, 1003), None);
    assert!(!f.breaker.doubts());
}

#[test]
fn it_stays_half_open_until_somebody_asks() {
    let mut f = Fixture::new(policy());
    f.trip(0);
    assert_eq!(f.state(1_000_000), State::HalfOpen);
    assert!(!f.breaker.is_closed());
    assert_eq!(f.breaker.next_probe(), Some(f.at(1000)), "long due");
    assert!(f.probe(1_000_000).is_some());
    assert_eq!(f.breaker.next_probe(), None, "under way");
}

#[test]
fn a_slow_healthy_probe_closes_it_however_long_it_took() {
    let mut f = Fixture::new(policy());
    f.trip(0);
    let probe = f.probe(1000).unwrap();
    for hour in 1..5 {
        assert_eq!(f.state(hour * 3_600_000), State::HalfOpen);
        assert!(f.probe(hour * 3_600_000).is_none(), "one at a time");
    }
    assert_eq!(f.record(probe, Health::Good, 5 * 3_600_000), None);
    assert_eq!(f.state(5 * 3_600_000), State::Closed);
}

#[test]
fn the_penalty_of_a_slow_probe_that_fails_begins_when_it_failed() {
    let mut f = Fixture::new(policy());
    f.trip(0);
    let probe = f.probe(1000).unwrap();
    assert!(f.record(probe, Health::Bad, 50_000).is_some());
    assert_eq!(f.breaker.next_probe(), Some(f.at(52_000)));
    assert!(f.probe(51_999).is_none() && f.probe(52_000).is_some());
}

#[test]
fn a_failed_probe_tells_the_reason_and_the_time_of_the_first_trip() {
    let rate = BreakerPolicy { consecutive_failures: 0, success_rate_threshold: 0.9, ..policy() };
    let mut f = Fixture::new(rate);
    for millis in 0..5 {
        f.end(Health::Bad, millis);
    }
    let probe = f.probe(2000).unwrap();
    let again = f.record(probe, Health::Bad, 2000).unwrap();
    assert_eq!((again.reason, again.again), (Reason::SuccessRate, true));
    assert_eq!(f.breaker.reason(), Some(Reason::SuccessRate));
    assert_eq!(f.breaker.since(), Some(f.at(4)));
}

#[test]
fn an_ordinary_request_given_up_hands_nobody_the_probe() {
    let mut f = Fixture::new(policy());
    f.trip(0);
    let (ordinary, probe) = (f.breaker.ticket(), f.probe(1000).unwrap());
    f.breaker.release(ordinary);
    assert!(f.probe(1001).is_none());
    f.breaker.release(probe);
    assert!(f.probe(1001).is_some());
}

#[test]
fn a_probe_given_up_again_and_again_leaves_the_penalty_as_it_was() {
    let mut f = Fixture::new(policy());
    f.trip(0);
    for millis in 1000..1100 {
        let probe = f.probe(millis).unwrap();
        f.breaker.release(probe);
    }
    assert_eq!(f.breaker.trips(), 1);
    let probe = f.probe(1100).unwrap();
    assert_eq!(f.record(probe, Health::Bad, 1100).unwrap().penalty, Duration::from_secs(2));
}

#[test]
fn a_trip_after_a_success_begins_with_the_first_penalty_again() {
    let mut f = Fixture::new(policy());
    for round in 0..5 {
        let now = 10_000 * round;
        let ejection = f.trip(now);
        assert_eq!((ejection.penalty, ejection.again), (Duration::from_secs(1), false));
        assert_eq!(f.breaker.since(), Some(f.at(now)));
        let probe = f.probe(now + 1000).unwrap();
        assert_eq!(f.record(probe, Health::Good, now + 1000), None);
        assert_eq!(f.breaker.since(), None);
    }
    assert_eq!(f.breaker.trips(), 5);
}

#[test]
fn a_probes_success_is_no_credit_and_leaves_no_debt() {
    let mut f = Fixture::new(policy());
    f.trip(0);
    let probe = f.probe(1000).unwrap();
    f.record(probe, Health::Good, 1000);
    assert!(!f.breaker.doubts());
    assert_eq!((f.end(Health::Bad, 1001), f.end(Health::Bad, 1001)), (None, None));
    assert!(f.end(Health::Bad, 1001).is_some());
}

#[test]
fn a_penalty_below_a_millisecond_lasts_one() {
    let min_penalty = Duration::from_micros(1);
    let mut f = Fixture::new(BreakerPolicy { min_penalty, max_penalty: min_penalty, ..policy() });
    f.trip(7);
    assert!(f.probe(7).is_none() && f.probe(8).is_some());
}

#[test]
fn a_longest_penalty_below_the_first_gives_way() {
    let (min_penalty, max_penalty) = (Duration::from_secs(5), Duration::from_secs(1));
    let mut f = Fixture::new(BreakerPolicy { min_penalty, max_penalty, ..policy() });
    assert_eq!(f.trip(0).penalty, min_penalty);
    let probe = f.probe(5000).unwrap();
    assert_eq!(f.record(probe, Health::Bad, 5000).unwrap().penalty, min_penalty);
}

#[test]
fn jitter_comes_on_top_of_the_longest_penalty_too() {
    let jittered = BreakerPolicy { jitter_ratio: 1.0, ..policy() };
    let mut rng = fastrand::Rng::with_seed(7);
    let drawn: Vec<_> = (0..100).map(|_| penalty(&jittered, 31, &mut rng).as_secs_f64()).collect();
    assert!(drawn.iter().all(|p| (60.0..=120.0).contains(p)));
    assert!(drawn.iter().any(|p| *p > 110.0));
}

#[test]
fn penalties_without_end_do_not_overflow() {
    let most = Duration::from_secs(i64::MAX.unsigned_abs());
    let endless = BreakerPolicy { max_penalty: most, jitter_ratio: 1.0, ..policy() };
    let mut f = Fixture::new(endless);
    f.trip(0);
    let mut now = 1;
    // Far more trips than the word counts; times far beyond what it holds.
    for _ in 0..40 {
        now += 1 << 38;
        if let Some(probe) = f.probe(now) {
            assert!(f.record(probe, Health::Bad, now).is_some());
        }
    }
    assert!(f.breaker.trips() > 30);
    f.policy.min_penalty = most;
    let last = f.at(Word::VALUE_MAX);
    assert!(f.breaker.next_probe().is_none_or(|due| due <= last));
}

#[test]
fn generations_come_round() {
    let mut f = Fixture::new(policy());
    let last = Word { generation: Word::GENERATION_MASK, ..Word::CLOSED };
    f.breaker.word.store(last.pack(), Ordering::SeqCst);
    let old = f.breaker.ticket();
    f.trip(0);
    let probe = f.probe(1000).unwrap();
    assert_eq!(f.record(probe, Health::Good, 1000), None);
    assert_eq!(f.record(old, Health::Bad, 1001), None);
    assert!(f.breaker.is_closed() && !f.breaker.doubts());
    f.trip(1002);
}

#[test]
fn answers_from_two_trips_ago_change_nothing_either() {
    let mut f = Fixture::new(policy());
    let old: Vec<_> = (0..10).map(|_| f.breaker.ticket()).collect();
    for now in [0, 2000] {
        f.trip(now);
        let probe = f.probe(now + 1000).unwrap();
        f.record(probe, Health::Good, now + 1000);
    }
    for ticket in old {
        assert_eq!(f.record(ticket, Health::Bad, 5000), None);
    }
    assert_eq!((f.state(5000), f.breaker.trips()), (State::Closed, 2));
}

#[test]
fn a_clock_read_earlier_by_another_worker_is_harmless() {
    let mut f = Fixture::new(policy());
    f.trip(5000);
    assert!(f.probe(0).is_none() && f.probe(5999).is_none());
    let probe = f.probe(6000).unwrap();
    // Its failure is reported with a clock from before it began.
    assert!(f.record(probe, Health::Bad, 5900).is_some());
    assert_eq!(f.breaker.next_probe(), Some(f.at(7900)));
    let before_everything = f.epoch.checked_sub(Duration::from_secs(1)).unwrap();
    assert_eq!(f.breaker.state(before_everything), State::Open);
}

#[test]
fn a_breaker_that_comes_back_into_the_policy_begins_anew() {
    let mut f = Fixture::new(policy());
    f.trip(0);
    let (probe, now) = (f.probe(1000).unwrap(), f.at(1000));
    assert_eq!(f.breaker.record(probe, Health::Bad, now, None, &mut f.rng), None);
    assert_eq!((f.state(1000), f.breaker.reason()), (State::Closed, None));
    assert_eq!(f.trip(1001).penalty, Duration::from_secs(1), "the past is forgotten");
}

#[test]
fn a_probe_from_before_the_breaker_was_dropped_decides_nothing_afterwards() {
    let mut f = Fixture::new(policy());
    f.trip(0);
    let [old, older] = std::array::from_fn(|_| {
        let (probe, other, now) = (f.probe(1000).unwrap(), f.breaker.ticket(), f.at(1000));
        f.breaker.record(other, Health::Good, now, None, &mut f.rng);
        assert!(f.breaker.is_closed());
        f.trip(0);
        probe
    });
    let probe = f.probe(1000).unwrap();
    assert_eq!(f.record(old, Health::Good, 1001), None);
    f.breaker.release(older);
    assert!(f.state(1001) == State::HalfOpen && f.probe(1001).is_none(), "the new one decides");
    assert_eq!(f.record(probe, Health::Good, 1002), None);
    assert!(f.breaker.is_closed());
}

#[test]
fn a_policy_without_breaker_takes_no_count() {
    let mut f = Fixture::new(policy());
    for _ in 0..100 {
        let (ticket, now) = (f.breaker.ticket(), f.at(0));
        assert_eq!(f.breaker.record(ticket, Health::Bad, now, None, &mut f.rng), None);
    }
    assert!(!f.breaker.doubts());
    f.trip(0);
}

#[test]
fn rules_that_are_switched_off_while_it_is_open_leave_the_probe_to_close_it() {
    let mut f = Fixture::new(policy());
    f.trip(0);
    f.policy.consecutive_failures = 0;
    assert_eq!(f.state(999), State::Open);
    let probe = f.probe(1000).unwrap();
    assert_eq!(f.record(probe, Health::Good, 1000), None);
    for _ in 0..100 {
        assert_eq!(f.end(Health::Bad, 1001), None);
    }
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
