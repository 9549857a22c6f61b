//! What is kept of a flow: everything since the start as sums, and a minute of ticks.

use std::{
    collections::VecDeque,
    ops::AddAssign,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use remora_core::latency::{MAX_MICROS, Quantiles};
use serde::Serialize;

use super::flow::{Counts, Exemplars, Recent, newest};

/// Ticks that are kept one by one. With what is counted now they make the last minute.
const SLOTS: u64 = 5;

/// Everything up to the last tick.
#[derive(Debug, Default)]
pub(super) struct Past {
    pub(super) counts: Counts,
    pub(super) exemplars: Option<Box<Exemplars>>,
    /// In order of the values.
    latency: Vec<(u32, u64)>,
    /// Newest last; a tick without requests has none.
    slots: VecDeque<Slot>,
    tick: u64,
}

/// The requests of one tick.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    tick: u64,
    failures: u64,
    /// How many took so many microseconds, which hdrhistogram rounded.
    latency: Box<[(u32, u32)]>,
}

impl Past {
    /// Whether a tick is a new one.
    pub(super) fn begin(&mut self, tick: u64) -> bool {
        let new = tick > self.tick;
        if new {
            self.tick = tick;
            while self.slots.front().is_some_and(|slot| slot.tick + SLOTS <= tick) {
                self.slots.pop_front();
            }
        }
        new
    }

    /// Adds what was counted in the tick that ends.
    pub(super) fn take(&mut self, parts: impl Iterator<Item = Box<Recent>>) {
        let (mut latency, mut failures) = (Vec::new(), 0);
        for part in parts {
            self.counts.add(&part.counts);
            failures += part.counts.failures;
            for step in part.latency.iter_recorded() {
                let value = u32::try_from(step.value_iterated_to()).unwrap_or(u32::MAX);
                add(&mut latency, value, step.count_at_value());
            }
            if let Some(newer) = part.exemplars {
                let kept = self.exemplars.get_or_insert_with(Box::default);
                for (kept, newer) in kept.iter_mut().zip(*newer) {
                    *kept = newest(*kept, newer);
                }
            }
        }
        if latency.is_empty() {
            return;
        }
        for (value, count) in &latency {
            add(&mut self.latency, *value, u64::from(*count));
        }
        let slot = Slot { tick: self.tick, failures, latency: latency.into() };
        self.slots.push_back(slot);
    }

    /// The ticks of the last minute.
    pub(super) fn slots(&self, spans: &Spans) -> Vec<Slot> {
        self.slots.iter().filter(|slot| slot.tick + SLOTS > spans.tick).cloned().collect()
    }
}

/// Adds a count to those of a value.
fn add<C: AddAssign>(counts: &mut Vec<(u32, C)>, value: u32, count: C) {
    match counts.binary_search_by_key(&value, |(value, _)| *value) {
        Ok(at) => counts[at].1 += count,
        Err(at) => counts.insert(at, (value, count)),
    }
}

/// Some requests' times together.
#[derive(Debug)]
pub(super) struct Merged {
    latency: Histogram<u64>,
    failures: u64,
}

impl Merged {
    pub(super) fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, MAX_MICROS, 2)
            .expect("invariant: the bounds are constants that hdrhistogram accepts");
        Self { latency, failures: 0 }
    }

    pub(super) fn add_recent(&mut self, recent: &Recent) {
        self.failures += recent.counts.failures;
        for step in recent.latency.iter_recorded() {
            self.count(step.value_iterated_to(), step.count_at_value().into());
        }
    }

    fn add_slot(&mut self, slot: &Slot) {
        self.failures += slot.failures;
        for (value, count) in &slot.latency {
            self.count((*value).into(), (*count).into());
        }
    }

    pub(super) fn add_all(&mut self, past: &Past) {
        self.failures += past.counts.failures;
        for (value, count) in &past.latency {
            self.count((*value).into(), *count);
        }
    }

    fn count(&mut self, value: u64, count: u64) {
        self.latency.saturating_record_n(value, count);
    }

    pub(super) fn quantiles(&self) -> Quantiles {
        Quantiles::of(&self.latency)
    }

    fn window(&self, covers: Duration) -> Window {
        let Quantiles { count, p50_us, p90_us, p99_us, p999_us, max_us } = self.quantiles();
        let (seconds, failures) = (covers.as_secs_f64(), self.failures);
        Window { seconds, requests: count, failures, p50_us, p90_us, p99_us, p999_us, max_us }
    }
}

/// A flow over a time.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Window {
    /// Time that it really covers.
    pub seconds: f64,
    /// Requests that ended, but for those that the client gave up.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Microseconds.
    pub p50_us: u64,
    /// Microseconds.
    pub p90_us: u64,
    /// Microseconds.
    pub p99_us: u64,
    /// Microseconds.
    pub p999_us: u64,
    /// Microseconds.
    pub max_us: u64,
}

/// A flow over the times that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Windows {
    /// From one to two ticks: the last one and what came since.
    #[serde(rename = "10s")]
    pub last: Window,
    /// From five to six ticks.
    #[serde(rename = "1m")]
    pub minute: Window,
    /// Since there is something to count.
    pub start: Window,
}

/// Numbers the ticks and knows when they were.
#[derive(Debug)]
pub struct Ticks(Mutex<Times>);

#[derive(Debug)]
struct Times {
    tick: u64,
    /// When the last ticks ended, newest last; the first of all is when the process began.
    ends: VecDeque<Instant>,
}

impl Ticks {
    /// None yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(Times { tick: 0, ends: [now].into() }))
    }

    /// A tick ends; gives its number, from 1 on.
    pub fn end(&self, now: Instant) -> u64 {
        let mut times = self.0.lock();
        times.tick += 1;
        times.ends.push_back(now);
        while times.ends.len() as u64 > SLOTS + 1 {
            times.ends.pop_front();
        }
        times.tick
    }

    /// The windows of a flow that there is since some time.
    #[must_use]
    pub fn spans(&self, since: Instant, now: Instant) -> Spans {
        let times = self.0.lock();
        let covers = |slots: usize| {
            let from = times.ends.iter().rev().nth(slots).or(times.ends.front());
            now.saturating_duration_since(from.map_or(since, |from| since.max(*from)))
        };
        let minute = usize::try_from(SLOTS).unwrap_or(usize::MAX);
        let start = now.saturating_duration_since(since);
        Spans { tick: times.tick, last: covers(1), minute: covers(minute), start }
    }
}

/// What the windows of a flow cover at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Spans {
    tick: u64,
    last: Duration,
    minute: Duration,
    start: Duration,
}

impl Spans {
    /// Of a flow that there was nothing of.
    pub(super) fn empty(&self) -> Windows {
        let empty =
            |covers: Duration| Window { seconds: covers.as_secs_f64(), ..Window::default() };
        Windows { last: empty(self.last), minute: empty(self.minute), start: empty(self.start) }
    }

    /// `window` has what is counted now.
    pub(super) fn windows(&self, mut window: Merged, slots: &[Slot], all: &Merged) -> Windows {
        slots.iter().filter(|slot| slot.tick == self.tick).for_each(|slot| window.add_slot(slot));
        let last = window.window(self.last);
        slots.iter().filter(|slot| slot.tick != self.tick).for_each(|slot| window.add_slot(slot));
        Windows { last, minute: window.window(self.minute), start: all.window(self.start) }
    }
}
