//! When something last happened to an endpoint.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::nanos_since;

/// Moments, to the millisecond, counted from when the endpoint became known.
#[derive(Debug, Default)]
pub struct History {
    first_dial: Moment,
    last_success: Moment,
    last_failure: Moment,
}

/// The same, as moments of the clock; `None`: never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moments {
    /// When the endpoint became known, and so could be chosen.
    pub applied: Instant,
    /// When a connection to it was first tried.
    pub first_dial: Option<Instant>,
    /// When it last answered, and not with a failure of its own; for opaque TCP when a connection last
    /// stood.
    pub last_success: Option<Instant>,
    /// When it last failed.
    pub last_failure: Option<Instant>,
}

impl History {
    pub(super) fn dialled(&self, known: Instant, now: Instant) {
        if self.first_dial.get(known).is_none() {
            self.first_dial.set(known, now);
        }
    }

    pub(super) fn succeeded(&self, known: Instant, now: Instant) {
        self.last_success.set(known, now);
    }

    pub(super) fn failed(&self, known: Instant, now: Instant) {
        self.last_failure.set(known, now);
    }

    pub(super) fn moments(&self, known: Instant) -> Moments {
        Moments {
            applied: known,
            first_dial: self.first_dial.get(known),
            last_success: self.last_success.get(known),
            last_failure: self.last_failure.get(known),
        }
    }
}

/// Milliseconds and one more; 0 is never.
#[derive(Debug, Default)]
struct Moment(AtomicU64);

impl Moment {
    fn set(&self, known: Instant, now: Instant) {
        let millis = nanos_since(known, now) / 1_000_000 + 1;
        // A write only when the millisecond changes keeps the line shared between workers.
        if self.0.load(Ordering::Relaxed) < millis {
            self.0.store(millis, Ordering::Relaxed);
        }
    }

    fn get(&self, known: Instant) -> Option<Instant> {
        let millis = self.0.load(Ordering::Relaxed).checked_sub(1)?;
        Some(known + Duration::from_millis(millis))
    }
}
