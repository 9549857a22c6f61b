//! The breaker against a model that is slow and plain, and under many threads.
//!
//! Not loom: it needs its own atomics in place of the real ones, in the window too, and a build of all
//! dependencies that are compiled otherwise under `cfg(loom)`. Instead threads run on the real
//! ones, and what they saw is added up: every transition has one winner, so the sums are exact.

use std::{
    sync::{Barrier, atomic::AtomicUsize},
    thread,
};

use proptest::prelude::*;

use super::{
    tests::{Fixture, policy},
    *,
};

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Begin,
    End(prop::sample::Index, Health),
    GiveUp(prop::sample::Index),
    Probe,
    Policy(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let health = prop_oneof![Just(Health::Good), Just(Health::Refusing), Just(Health::Bad)];
    prop_oneof![
        3 => prop_oneof![0u64..50, 0u64..3000, 0u64..40_000].prop_map(Step::Wait),
        6 => Just(Step::Begin),
        8 => (any::<prop::sample::Index>(), health).prop_map(|(at, health)| Step::End(at, health)),
        1 => any::<prop::sample::Index>().prop_map(Step::GiveUp),
        3 => Just(Step::Probe),
        1 => (0usize..5).prop_map(Step::Policy),
    ]
}

/// Policies that are switched between.
fn policies() -> [Option<BreakerPolicy>; 5] {
    let row = policy();
    let rate = BreakerPolicy {
        consecutive_failures: 0,
        success_rate_threshold: 0.7,
        success_rate_min_requests: 3,
        jitter_ratio: 1.0,
        ..policy()
    };
    let both = BreakerPolicy { consecutive_failures: 2, jitter_ratio: 0.5, ..rate.clone() };
    let other = Duration::from_secs(2);
    let short = BreakerPolicy { success_rate_window: other, max_penalty: other, ..rate.clone() };
    [Some(row), Some(rate), Some(both), Some(short), None]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Closed { run: u32 },
    Open { due: u64 },
    Probing,
}

/// What the documentation says, word for word. Time is in milliseconds.
struct Model {
    stage: Stage,
    /// Counts trips and closings: whose request counts.
    generation: u32,
    streak: u32,
    trips: u32,
    since: u64,
    reason: Option<Reason>,
    /// Results that are counted, of the window's length at the end.
    window: Vec<(u64, bool)>,
    length: u64,
}

impl Model {
    fn new() -> Self {
        let stage = Stage::Closed { run: 0 };
        let (window, reason) = (Vec::new(), None);
        Self { stage, generation: 0, streak: 0, trips: 0, since: 0, reason, window, length: 0 }
    }

    /// The rule that a result breaks, if it is to count.
    fn result(&mut self, health: Health, now: u64, policy: &BreakerPolicy) -> Option<Reason> {
        let Stage::Closed { run } = &mut self.stage else { return None };
        match health {
            Health::Good => *run = 0,
            Health::Bad => *run += 1,
            Health::Refusing => {}
        }
        let run = *run;
        let low = self.rate_is_low(health, now, policy);
        if health == Health::Bad && (1..=run).contains(&policy.consecutive_failures) {
            return Some(Reason::ConsecutiveFailures);
        }
        low.then_some(Reason::SuccessRate)
    }

    fn rate_is_low(&mut self, health: Health, now: u64, policy: &BreakerPolicy) -> bool {
        if policy.success_rate_threshold == 0.0 {
            return false;
        }
        let length = u64::try_from(policy.success_rate_window.as_millis()).unwrap();
        if std::mem::replace(&mut self.length, length) != length {
            self.window.clear();
        }
        self.window.push((now, health == Health::Good));
        let tenth = |at: u64| at / (length / 10);
        let within = self.window.iter().filter(|(at, _)| tenth(now) - tenth(*at) < 10);
        let (mut good, mut all) = (0u32, 0u32);
        for (_, was_good) in within {
            good += u32::from(*was_good);
            all += 1;
        }
        let enough = all >= policy.success_rate_min_requests;
        enough && f64::from(good) / f64::from(all) < policy.success_rate_threshold
    }

    /// Opens it; the penalty is checked and taken from the breaker, because it is drawn.
    fn open(&mut self, reason: Reason, now: u64, policy: &BreakerPolicy, told: Ejection) {
        let again = self.stage == Stage::Probing;
        assert_eq!((told.reason, told.again), (reason, again));
        let base = policy.min_penalty * 2u32.pow(self.streak.min(20));
        let base = base.min(policy.max_penalty);
        let longest = base + base.mul_f64(policy.jitter_ratio);
        assert!((base..=longest).contains(&told.penalty), "{told:?}: {base:?} to {longest:?}");
        if !again {
            self.since = now;
        }
        let penalty = u64::try_from(told.penalty.as_millis()).unwrap();
        self.stage = Stage::Open { due: now + penalty };
        self.reason = Some(reason);
        self.generation += 1;
        self.streak += 1;
        self.trips += 1;
    }

    fn close(&mut self) {
        self.stage = Stage::Closed { run: 0 };
        self.generation += 1;
        self.streak = 0;
        self.reason = None;
        self.window.clear();
    }

    fn end(
        &mut self,
        (generation, probe): (u32, bool),
        health: Health,
        now: u64,
        policy: Option<&BreakerPolicy>,
        told: Option<Ejection>,
    ) {
        let Some(policy) = policy else {
            assert_eq!(told, None);
            if !matches!(self.stage, Stage::Closed { .. }) {
                self.close();
            }
            return;
        };
        let expected = match self.stage {
            _ if generation != self.generation => None,
            Stage::Closed { .. } => self.result(health, now, policy),
            Stage::Probing if probe && health == Health::Good => {
                self.close();
                None
            }
            Stage::Probing if probe => self.reason,
            Stage::Probing | Stage::Open { .. } => None,
        };
        match (expected, told) {
            (None, None) => {}
            (Some(reason), Some(told)) => self.open(reason, now, policy, told),
            differ => panic!("expected and told: {differ:?}"),
        }
    }

    fn compare(&self, f: &Fixture, now: u64) {
        let state = match self.stage {
            Stage::Closed { .. } => State::Closed,
            Stage::Open { due } if now < due => State::Open,
            Stage::Open { .. } | Stage::Probing => State::HalfOpen,
        };
        let due = match self.stage {
            Stage::Open { due } => Some(f.at(due)),
            _ => None,
        };
        let breaker = &f.breaker;
        assert_eq!((f.state(now), breaker.next_probe()), (state, due));
        assert_eq!((breaker.reason(), breaker.trips()), (self.reason, self.trips));
        assert_eq!(breaker.since(), (state != State::Closed).then(|| f.at(self.since)));
        let doubt = matches!(self.stage, Stage::Closed { run } if run > 0);
        assert_eq!((breaker.is_closed(), breaker.doubts()), (state == State::Closed, doubt));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_breaker_does_what_its_documentation_says(
        first in 0usize..4,
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let (f, mut model) = (Fixture::new(policy()), Model::new());
        let policies = policies();
        let mut policy = &policies[first];
        let mut rng = fastrand::Rng::with_seed(1);
        let (mut now, mut tickets) = (0, Vec::new());
        for step in steps {
            match step {
                Step::Wait(millis) => now += millis,
                Step::Policy(index) => policy = &policies[index],
                Step::Begin => tickets.push((f.breaker.ticket(), (model.generation, false))),
                Step::Probe => {
                    let due = matches!(model.stage, Stage::Open { due } if due <= now);
                    let ticket = f.probe(now);
                    prop_assert_eq!(ticket.is_some(), due);
                    if let Some(ticket) = ticket {
                        model.stage = Stage::Probing;
                        tickets.push((ticket, (model.generation, true)));
                    }
                }
                Step::End(at, health) if !tickets.is_empty() => {
                    let (ticket, of) = tickets.swap_remove(at.index(tickets.len()));
                    let at = f.at(now);
                    let told = f.breaker.record(ticket, health, at, policy.as_ref(), &mut rng);
                    model.end(of, health, now, policy.as_ref(), told);
                }
                Step::GiveUp(at) if !tickets.is_empty() => {
                    let (ticket, (generation, probe)) = tickets.swap_remove(at.index(tickets.len()));
                    let due = f.breaker.ejected_until();
                    f.breaker.release(ticket);
                    if probe && model.stage == Stage::Probing && generation == model.generation {
                        prop_assert_eq!(f.breaker.next_probe(), due, "its time is unchanged");
                        let due = due.unwrap().duration_since(f.at(0)).as_millis();
                        model.stage = Stage::Open { due: u64::try_from(due).unwrap() };
                    }
                }
                Step::End(..) | Step::GiveUp(_) => {}
            }
            model.compare(&f, now);
        }
    }
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

const THREADS: u64 = 4;

/// Runs something on several threads, each with a generator of its own.
fn on_threads(work: impl Fn(u64, &mut fastrand::Rng) + Sync) {
    let (work, start) = (&work, &Barrier::new(usize::try_from(THREADS).unwrap()));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                start.wait();
                work(thread, &mut fastrand::Rng::with_seed(thread));
            });
        }
    });
}

#[test]
fn no_failure_in_a_row_is_lost_between_threads() {
    const EACH: u64 = 2000;
    let limit = u32::try_from(THREADS * EACH + 1).unwrap();
    let mut f = Fixture::new(BreakerPolicy { consecutive_failures: limit, ..policy() });
    {
        let f = &f;
        on_threads(|_, rng| {
            for _ in 0..EACH {
                let ticket = f.breaker.ticket();
                let told = f.breaker.record(ticket, Health::Bad, f.at(0), Some(&f.policy), rng);
                assert_eq!(told, None);
            }
        });
    }
    assert!(f.end(Health::Bad, 0).is_some(), "exactly the last one");
}

#[test]
fn no_result_in_the_window_is_lost_between_threads() {
    const EACH: u64 = 2000;
    let mut f = Fixture::new(BreakerPolicy {
        consecutive_failures: 0,
        success_rate_threshold: 1.0,
        success_rate_min_requests: u32::try_from(THREADS * EACH + 1).unwrap(),
        ..policy()
    });
    {
        let f = &f;
        on_threads(|thread, rng| {
            for n in 0..EACH {
                let ticket = f.breaker.ticket();
                // All within one window, not all in one tenth of it.
                let now = f.at((n * 7 + thread * 13) % 9000);
                let told = f.breaker.record(ticket, Health::Bad, now, Some(&f.policy), rng);
                assert_eq!(told, None);
            }
        });
    }
    assert!(f.end(Health::Bad, 9000).is_some(), "exactly the last one");
}

#[test]
fn threads_that_do_everything_at_once_leave_sums_that_agree() {
    const STEPS: u64 = 20_000;
    let millisecond = Duration::from_millis(1);
    let f = Fixture::new(BreakerPolicy {
        consecutive_failures: 3,
        min_penalty: millisecond,
        max_penalty: 4 * millisecond,
        success_rate_threshold: 0.5,
        ..policy()
    });
    let (clock, out) = (AtomicU64::new(0), AtomicUsize::new(0));
    let [first, again, healed, failed, given_up] = std::array::from_fn(|_| AtomicU64::new(0));
    on_threads(|_, rng| {
        // Tickets are held for a while, so that many are late.
        let mut held: Vec<Ticket> = Vec::new();
        for _ in 0..STEPS {
            let now = f.at(clock.fetch_add(u64::from(rng.u8(..8) == 0), Ordering::SeqCst));
            if let Some(probe) = f.breaker.try_probe(now) {
                assert_eq!(out.fetch_add(1, Ordering::SeqCst), 0, "a second probe");
                let health = [Health::Good, Health::Bad, Health::Refusing][rng.usize(..3)];
                thread::yield_now();
                out.fetch_sub(1, Ordering::SeqCst);
                if rng.u8(..4) == 0 {
                    given_up.fetch_add(1, Ordering::SeqCst);
                    f.breaker.release(probe);
                    continue;
                }
                let told = f.breaker.record(probe, health, now, Some(&f.policy), rng);
                assert_eq!(told.is_some(), health != Health::Good);
                assert!(told.is_none_or(|ejection| ejection.again));
                again.fetch_add(u64::from(told.is_some()), Ordering::SeqCst);
                failed.fetch_add(u64::from(health != Health::Good), Ordering::SeqCst);
                healed.fetch_add(u64::from(health == Health::Good), Ordering::SeqCst);
            }
            held.push(f.breaker.ticket());
            if held.len() > 8 {
                let ticket = held.swap_remove(rng.usize(..held.len()));
                let health = if rng.u8(..3) == 0 { Health::Good } else { Health::Bad };
                let told = f.breaker.record(ticket, health, now, Some(&f.policy), rng);
                assert!(told.is_none_or(|ejection| !ejection.again));
                first.fetch_add(u64::from(told.is_some()), Ordering::SeqCst);
            }
        }
    });
    let sum = |count: AtomicU64| count.into_inner();
    let (first, again, healed) = (sum(first), sum(again), sum(healed));
    assert!(healed > 0 && again > 0 && sum(given_up) > 0, "{healed} {again}");
    assert_eq!(again, sum(failed), "each failed probe opened it again");
    assert_eq!(u64::from(f.breaker.trips()), first + again, "each trip was told to one request");
    assert_eq!(
        first,
        healed + u64::from(!f.breaker.is_closed()),
        "openings and closings alternate"
    );
}
