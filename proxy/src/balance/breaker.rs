//! Leaves an endpoint alone that keeps failing, and lets one request find out whether it is back.

use std::{
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::{
    nanos_since,
    policy::BreakerPolicy,
    window::{Counts, Window},
};

/// Circuit breaker of one endpoint.
///
/// Closed → open when a rule of [`BreakerPolicy`] says so; open for a jittered penalty; then
/// half-open: exactly one request in the whole process is the probe. Its success closes the
/// breaker and forgets the past, its failure opens it for twice as long, and giving it up lets the
/// next request be the probe.
///
/// What decides is one word, so that there is nothing to tear: 2 bits of phase, 5 bits counting
/// the trips since the last success, a generation of 17 bits and a value of 40 bits: failures in a
/// row while closed, milliseconds since the epoch (34 years) of the next probe otherwise. The
/// generation changes with every trip and every closing; a result counts only in the generation
/// in which its request began, so late answers from before a trip change nothing.
#[derive(Debug)]
pub struct Breaker {
    epoch: Instant,
    word: AtomicU64,
    window: Window,
    /// Requests that succeeded, probes included.
    successes: AtomicU64,
    /// For people, not for decisions.
    reason: AtomicU8,
    since: AtomicU64,
    trips: AtomicU32,
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Requests pass.
    Closed,
    /// The endpoint serves its penalty.
    Open,
    /// The penalty is over; a probe is due or under way.
    HalfOpen,
}

impl State {
    /// `ready`, `open` or `half-open`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "ready",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// The rule that opened a breaker; where both hold at once, the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Too many failures in a row.
    ConsecutiveFailures,
    /// Too small a share of successes in the window.
    SuccessRate,
}

impl Reason {
    /// `consecutive-failures` or `success-rate`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive-failures",
            Self::SuccessRate => "success-rate",
        }
    }
}

/// A breaker has just opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// Why.
    pub reason: Reason,
    /// For how long.
    pub penalty: Duration,
    /// Whether a failed probe opened it again.
    pub again: bool,
}

/// What a result says about an endpoint's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It works.
    Good,
    /// It works but refuses: counts in the success rate and fails a probe, and is no failure in a
    /// row.
    Refusing,
    /// It failed.
    Bad,
}

/// Admission of one request; it must come back by [`Breaker::record`] or [`Breaker::release`].
#[derive(Debug)]
#[must_use = "a probe that never comes back leaves the breaker half-open"]
pub struct Ticket {
    generation: u32,
    probe: bool,
}

impl Ticket {
    /// Whether this request decides over a half-open breaker.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.probe
    }
}

/// A probe whose answer has begun; it closed the breaker before it was over.
#[derive(Debug)]
pub struct Trust {
    /// The generation that it began.
    generation: u32,
    /// Successes until then.
    successes: u64,
    /// Trips before it.
    streak: u32,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            word: AtomicU64::new(Word::CLOSED.pack()),
            window: Window::default(),
            successes: AtomicU64::new(0),
            reason: AtomicU8::new(0),
            since: AtomicU64::new(0),
            trips: AtomicU32::new(0),
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self, now: Instant) -> State {
        let word = self.word();
        match word.phase {
            Phase::Closed => State::Closed,
            Phase::Open if self.millis(now) < word.value => State::Open,
            Phase::Open | Phase::Probing => State::HalfOpen,
        }
    }

    /// Whether requests pass freely.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.word().phase == Phase::Closed
    }

    /// Whether it is closed and the last result was a failure: the breaker has a doubt.
    pub(super) fn doubts(&self) -> bool {
        let word = self.word();
        word.phase == Phase::Closed && word.value > 0
    }

    /// Why it is not closed.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        if self.is_closed() { None } else { self.last_reason() }
    }

    /// Why it opened last.
    fn last_reason(&self) -> Option<Reason> {
        match self.reason.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(Reason::ConsecutiveFailures),
            _ => Some(Reason::SuccessRate),
        }
    }

    /// When it last went from closed to open; `None` while closed. Failed probes do not move it.
    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        let since = Duration::from_millis(self.since.load(Ordering::Relaxed));
        (!self.is_closed()).then(|| self.epoch + since)
    }

    /// When the next probe is due (it may be past); `None` while closed or while one is under way.
    #[must_use]
    pub fn next_probe(&self) -> Option<Instant> {
        let word = self.word();
        (word.phase == Phase::Open).then(|| self.epoch + Duration::from_millis(word.value))
    }

    /// How often it opened, failed probes included.
    #[must_use]
    pub fn trips(&self) -> u32 {
        self.trips.load(Ordering::Relaxed)
    }

    /// When the next probe was or will be due; `None` while closed.
    pub(super) fn ejected_until(&self) -> Option<Instant> {
        let word = self.word();
        (word.phase != Phase::Closed).then(|| self.epoch + Duration::from_millis(word.value))
    }

    /// An ordinary request begins, whatever the state.
    pub fn ticket(&self) -> Ticket {
        Ticket { generation: self.word().generation, probe: false }
    }

    /// The right to be the probe, if one is due and nobody else has it.
    pub fn try_probe(&self, now: Instant) -> Option<Ticket> {
        let word = self.word();
        let due = word.phase == Phase::Open && word.value <= self.millis(now);
        let next = Word { phase: Phase::Probing, ..word };
        (due && self.exchange(word, next))
            .then_some(Ticket { generation: word.generation, probe: true })
    }

    /// A request ended without a verdict: a probe hands its right back.
    pub fn release(&self, ticket: Ticket) {
        let word = self.word();
        if ticket.probe && word.phase == Phase::Probing && word.generation == ticket.generation {
            // Nobody else moves a breaker that is being probed, except a policy without a
            // breaker, and then there is nothing to hand back.
            self.exchange(word, Word { phase: Phase::Open, ..word });
        }
    }

    /// A request ended. Without a policy, whatever was open closes.
    pub fn record(
        &self,
        ticket: Ticket,
        health: Health,
        now: Instant,
        policy: Option<&BreakerPolicy>,
        rng: &mut fastrand::Rng,
    ) -> Option<Ejection> {
        let Some(policy) = policy else {
            self.reset();
            return None;
        };
        if ticket.probe {
            return self.record_probe(&ticket, health, now, policy, rng);
        }
        let word = self.word();
        if word.phase != Phase::Closed || word.generation != ticket.generation {
            return None;
        }
        self.record_closed(word.generation, health, now, policy, rng)
    }

    /// A probe's answer has begun, and may go on for hours: it closes the breaker now.
    /// [`Self::disappoint`] is for one that does not end well. `None` where the probe decides nothing.
    pub fn trust(&self, probe: &Ticket, policy: Option<&BreakerPolicy>) -> Option<Trust> {
        let word = self.word();
        let due = word.phase == Phase::Probing && word.generation == probe.generation;
        if !due || !probe.probe || policy.is_none() {
            return None;
        }
        // Before closing: nobody counts into the window until then.
        self.window.clear();
        let (closed, successes) = (word.closed(), self.successes.load(Ordering::Acquire));
        let (generation, streak) = (closed.generation, word.streak);
        self.exchange(word, closed).then_some(Trust { generation, successes, streak })
    }

    /// A probe that was trusted has failed after all: the breaker opens as it would have then, unless
    /// others have succeeded since, who make it a failure like any other.
    pub fn disappoint(
        &self,
        trust: &Trust,
        now: Instant,
        policy: Option<&BreakerPolicy>,
        rng: &mut fastrand::Rng,
    ) -> Option<Ejection> {
        let (policy, word) = (policy?, self.word());
        if word.phase != Phase::Closed || word.generation != trust.generation {
            return None;
        }
        if self.successes.load(Ordering::Acquire) != trust.successes {
            return self.record_closed(word.generation, Health::Bad, now, policy, rng);
        }
        let reason = self.last_reason().unwrap_or(Reason::ConsecutiveFailures);
        let before = Word { phase: Phase::Probing, streak: trust.streak, ..word };
        self.open((word, before), reason, now, policy, rng)
    }

    fn record_probe(
        &self,
        ticket: &Ticket,
        health: Health,
        now: Instant,
        policy: &BreakerPolicy,
        rng: &mut fastrand::Rng,
    ) -> Option<Ejection> {
        let word = self.word();
        if word.phase != Phase::Probing || word.generation != ticket.generation {
            return None;
        }
        if health == Health::Good {
            self.trust(ticket, Some(policy));
            self.successes.fetch_add(1, Ordering::AcqRel);
            return None;
        }
        let reason = self.last_reason().unwrap_or(Reason::ConsecutiveFailures);
        self.open((word, word), reason, now, policy, rng)
    }

    fn record_closed(
        &self,
        generation: u32,
        health: Health,
        now: Instant,
        policy: &BreakerPolicy,
        rng: &mut fastrand::Rng,
    ) -> Option<Ejection> {
        let rate_is_low = self.count(health, now, policy);
        if health == Health::Good {
            self.successes.fetch_add(1, Ordering::AcqRel);
        }
        loop {
            let word = self.word();
            if word.phase != Phase::Closed || word.generation != generation {
                return None; // Another result tripped it meanwhile.
            }
            let run = match health {
                Health::Good => 0,
                Health::Refusing => word.value,
                Health::Bad => (word.value + 1).min(Word::VALUE_MAX),
            };
            let limit = u64::from(policy.consecutive_failures);
            let reason = if health == Health::Bad && limit > 0 && run >= limit {
                Some(Reason::ConsecutiveFailures)
            } else if rate_is_low {
                Some(Reason::SuccessRate)
            } else {
                None
            };
            if let Some(reason) = reason {
                if let Some(ejection) = self.open((word, word), reason, now, policy, rng) {
                    return Some(ejection);
                }
            } else if run == word.value || self.exchange(word, Word { value: run, ..word }) {
                return None;
            }
        }
    }

    /// Counts a result in the window and says whether the success rate is too low.
    fn count(&self, health: Health, now: Instant, policy: &BreakerPolicy) -> bool {
        if policy.success_rate_threshold <= 0.0 {
            return false;
        }
        let now = nanos_since(self.epoch, now);
        let failed = u64::from(health != Health::Good);
        self.window.add(now, policy.success_rate_window, Counts { total: 1, marked: failed });
        let counts = self.window.sum(now, policy.success_rate_window);
        let rate = counts.total.saturating_sub(counts.marked) as f64 / counts.total.max(1) as f64;
        counts.total >= u64::from(policy.success_rate_min_requests.max(1))
            && rate < policy.success_rate_threshold
    }

    /// Opens it, unless somebody else changed the word; `before` is what it was as far as the penalty is
    /// concerned.
    fn open(
        &self,
        (word, before): (Word, Word),
        reason: Reason,
        now: Instant,
        policy: &BreakerPolicy,
        rng: &mut fastrand::Rng,
    ) -> Option<Ejection> {
        let penalty = penalty(policy, before.streak, rng);
        let millis = u64::try_from(penalty.as_millis()).unwrap_or(Word::VALUE_MAX).max(1);
        let now = self.millis(now);
        let next = Word {
            phase: Phase::Open,
            streak: (before.streak + 1).min(Word::STREAK_MAX),
            generation: word.next_generation(),
            value: now.saturating_add(millis).min(Word::VALUE_MAX),
        };
        if !self.exchange(word, next) {
            return None;
        }
        let again = before.phase == Phase::Probing;
        if !again {
            self.since.store(now, Ordering::Relaxed);
        }
        self.reason.store(reason as u8 + 1, Ordering::Relaxed);
        self.trips.fetch_add(1, Ordering::Relaxed);
        Some(Ejection { reason, penalty, again })
    }

    fn reset(&self) {
        let word = self.word();
        if word.phase != Phase::Closed {
            self.window.clear();
            self.exchange(word, word.closed());
        }
    }

    fn word(&self) -> Word {
        Word::unpack(self.word.load(Ordering::Acquire))
    }

    fn exchange(&self, from: Word, to: Word) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        self.word.compare_exchange(from.pack(), to.pack(), success, failure).is_ok()
    }

    fn millis(&self, now: Instant) -> u64 {
        nanos_since(self.epoch, now) / 1_000_000
    }
}

/// The penalty of a trip that follows `streak` others: doubled from trip to trip up to the longest,
/// then lengthened at random, so that proxies do not all probe at the same moment.
fn penalty(policy: &BreakerPolicy, streak: u32, rng: &mut fastrand::Rng) -> Duration {
    let doubled = policy.min_penalty.saturating_mul(1 << streak.min(Word::STREAK_MAX));
    let base = doubled.min(policy.max_penalty.max(policy.min_penalty));
    base + base.mul_f64(policy.jitter_ratio.clamp(0.0, 1.0) * rng.f64())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    Open,
    Probing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word {
    phase: Phase,
    streak: u32,
    generation: u32,
    value: u64,
}

impl Word {
    const CLOSED: Self = Self { phase: Phase::Closed, streak: 0, generation: 0, value: 0 };
    const VALUE_BITS: u32 = 40;
    const VALUE_MAX: u64 = (1 << Self::VALUE_BITS) - 1;
    const GENERATION_BITS: u32 = 17;
    const GENERATION_MASK: u32 = (1 << Self::GENERATION_BITS) - 1;
    const STREAK_BITS: u32 = 5;
    const STREAK_MAX: u32 = (1 << Self::STREAK_BITS) - 1;

    fn next_generation(self) -> u32 {
        (self.generation + 1) & Self::GENERATION_MASK
    }

    fn closed(self) -> Self {
        Self { generation: self.next_generation(), ..Self::CLOSED }
    }

    fn pack(self) -> u64 {
        let high = (self.phase as u64) << Self::STREAK_BITS | u64::from(self.streak);
        let high = high << Self::GENERATION_BITS | u64::from(self.generation);
        high << Self::VALUE_BITS | self.value
    }

    fn unpack(word: u64) -> Self {
        // The casts are exact: each field was masked to its bits.
        let high = (word >> Self::VALUE_BITS) as u32;
        let phase = match high >> (Self::GENERATION_BITS + Self::STREAK_BITS) {
            0 => Phase::Closed,
            1 => Phase::Open,
            _ => Phase::Probing,
        };
        Self {
            phase,
            streak: high >> Self::GENERATION_BITS & Self::STREAK_MAX,
            generation: high & Self::GENERATION_MASK,
            value: word & Self::VALUE_MAX,
        }
    }
}

#[cfg(test)]
#[path = "breaker_model_tests.rs"]
mod model_tests;
#[cfg(test)]
#[path = "breaker_rules_tests.rs"]
mod rules_tests;
#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "breaker_trust_tests.rs"]
mod trust_tests;
