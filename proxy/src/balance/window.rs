//! Counts over a sliding window, without a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

const BUCKETS: u64 = 10;

/// Two counts, of all events and of marked ones, over the last ten tenths of a window.
///
/// A bucket is one word: 24 bits of the tick it counts for and 20 bits for each count. A bucket
/// that is full is halved, so that the ratio of the counts stays right.
#[derive(Debug, Default)]
pub(super) struct Window {
    buckets: [AtomicU64; BUCKETS as usize],
}

/// What a window, or one bucket of it, holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    /// All events.
    pub(super) total: u64,
    /// Those of them that are marked.
    pub(super) marked: u64,
}

const COUNT_BITS: u32 = 20;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const TICK_MASK: u64 = (1 << 24) - 1;

impl Window {
    /// Counts events at `now`, in nanoseconds.
    pub(super) fn add(&self, now: u64, length: Duration, events: Counts) {
        self.change(now, length, |counts| Counts {
            total: counts.total + events.total,
            marked: counts.marked + events.marked,
        });
    }

    /// Takes back events that were counted at the same `now`.
    pub(super) fn take_back(&self, now: u64, length: Duration, events: Counts) {
        self.change(now, length, |counts| Counts {
            total: counts.total.saturating_sub(events.total),
            marked: counts.marked.saturating_sub(events.marked),
        });
    }

    /// The counts of the window that ends at `now`.
    pub(super) fn sum(&self, now: u64, length: Duration) -> Counts {
        let tick = now / bucket_nanos(length);
        let mut sum = Counts::default();
        for bucket in &self.buckets {
            let word = bucket.load(Ordering::SeqCst);
            if (tick & TICK_MASK).wrapping_sub(word >> (2 * COUNT_BITS)) & TICK_MASK < BUCKETS {
                let counts = unpack(word);
                sum.total += counts.total;
                sum.marked += counts.marked;
            }
        }
        sum
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        for bucket in &self.buckets {
            bucket.store(0, Ordering::SeqCst);
        }
    }

    fn change(&self, now: u64, length: Duration, next: impl Fn(Counts) -> Counts) {
        let tick = now / bucket_nanos(length);
        // Below BUCKETS, so the cast is exact.
        let bucket = &self.buckets[(tick % BUCKETS) as usize];
        let tag = tick & TICK_MASK;
        let step = |word: u64| {
            let counts =
                if word >> (2 * COUNT_BITS) == tag { unpack(word) } else { Counts::default() };
            Some(pack(tag, next(counts)))
        };
        // The closure never declines, so this cannot fail.
        let _ = bucket.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step);
    }
}

fn bucket_nanos(length: Duration) -> u64 {
    u64::try_from(length.as_nanos() / u128::from(BUCKETS)).unwrap_or(u64::MAX).max(1)
}

fn pack(tag: u64, mut counts: Counts) -> u64 {
    while counts.total.max(counts.marked) > COUNT_MAX {
        counts = Counts { total: counts.total / 2, marked: counts.marked / 2 };
    }
    tag << (2 * COUNT_BITS) | counts.total << COUNT_BITS | counts.marked
}

fn unpack(word: u64) -> Counts {
    Counts { total: word >> COUNT_BITS & COUNT_MAX, marked: word & COUNT_MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(10);
    const SECOND: u64 = 1_000_000_000;
    const BOTH: Counts = Counts { total: 1, marked: 1 };

    #[test]
    fn counts_leave_with_their_tenth_of_the_window() {
        let window = Window::default();
        window.add(0, LENGTH, BOTH);
        window.add(5 * SECOND, LENGTH, BOTH);
        assert_eq!(window.sum(10 * SECOND - 1, LENGTH), Counts { total: 2, marked: 2 });
        assert_eq!(window.sum(10 * SECOND, LENGTH), BOTH);
        assert_eq!(window.sum(15 * SECOND, LENGTH), Counts::default());
        window.add(25 * SECOND, LENGTH, BOTH);
        assert_eq!(window.sum(25 * SECOND, LENGTH), BOTH);
    }

    #[test]
    fn what_is_taken_back_was_never_there() {
        let window = Window::default();
        window.add(0, LENGTH, BOTH);
        window.take_back(0, LENGTH, Counts { total: 0, marked: 1 });
        assert_eq!(window.sum(0, LENGTH), Counts { total: 1, marked: 0 });
    }

    #[test]
    fn a_full_bucket_keeps_its_ratio() {
        let window = Window::default();
        for _ in 0..5 {
            window.add(0, LENGTH, Counts { total: COUNT_MAX, marked: COUNT_MAX / 2 });
        }
        let Counts { total, marked } = window.sum(0, LENGTH);
        assert!(total > COUNT_MAX / 4 && (marked as f64 / total as f64 - 0.5).abs() < 0.01);
    }
}
