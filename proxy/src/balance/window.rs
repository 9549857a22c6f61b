//! Counts over a sliding window, without a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Parts of a window.
pub(super) const BUCKETS: u64 = 10;

/// Two counts, of all events and of marked ones, over the last ten tenths of a window.
///
/// A bucket is one word: 24 bits of the tick it counts for and 20 bits for each count. A bucket
/// that is full is halved, so that the ratio of the counts stays right. An event that comes late,
/// when its bucket counts for a later time already, is not counted. A window of another length
/// begins empty.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Nanoseconds of a bucket.
    tick: AtomicU64,
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
/// Ticks by which an event may be overtaken: two windows.
const LATE: u64 = 2 * BUCKETS;

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
        let tick = self.tick(now, length) & TICK_MASK;
        let mut sum = Counts::default();
        for bucket in &self.buckets {
            let word = bucket.load(Ordering::SeqCst);
            if later(word >> (2 * COUNT_BITS), tick) < BUCKETS {
                let counts = unpack(word);
                sum.total += counts.total;
                sum.marked += counts.marked;
            }
        }
        sum
    }

    /// The counts of the part of the window that `now` is in.
    pub(super) fn newest(&self, now: u64, length: Duration) -> Counts {
        let tick = self.tick(now, length);
        // Below BUCKETS, so the cast is exact.
        let word = self.buckets[(tick % BUCKETS) as usize].load(Ordering::SeqCst);
        let current = word >> (2 * COUNT_BITS) == tick & TICK_MASK;
        if current { unpack(word) } else { Counts::default() }
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        for bucket in &self.buckets {
            bucket.store(0, Ordering::SeqCst);
        }
    }

    fn change(&self, now: u64, length: Duration, next: impl Fn(Counts) -> Counts) {
        let tick = self.tick(now, length);
        // Below BUCKETS, so the cast is exact.
        let bucket = &self.buckets[(tick % BUCKETS) as usize];
        let tick = tick & TICK_MASK;
        let step = |word: u64| {
            let (counts, of) = (unpack(word), word >> (2 * COUNT_BITS));
            if of == tick {
                return Some(pack(tick, next(counts)));
            }
            // A little later: written by somebody who was not held up. Much later: long ago, the
            // tick has come round.
            let overtaken = later(tick, of) <= LATE && counts != Counts::default();
            (!overtaken).then(|| pack(tick, next(Counts::default())))
        };
        // Where the closure declines, the event is too late to be counted.
        let _ = bucket.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step);
    }

    /// The number of the bucket for `now`.
    fn tick(&self, now: u64, length: Duration) -> u64 {
        let nanos = bucket_nanos(length);
        if self.tick.load(Ordering::Relaxed) != nanos {
            let before = self.tick.swap(nanos, Ordering::Relaxed);
            // One that was never used is empty: to clear it could only take what another thread has
            // counted meanwhile.
            if before != 0 && before != nanos {
                self.clear();
            }
        }
        now / nanos
    }
}

/// By how many ticks the second is after the first; ticks come round.
fn later(first: u64, second: u64) -> u64 {
    second.wrapping_sub(first) & TICK_MASK
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
    fn the_newest_part_is_that_of_now_alone() {
        let window = Window::default();
        window.add(0, LENGTH, BOTH);
        assert_eq!(window.newest(SECOND - 1, LENGTH), BOTH);
        assert_eq!(window.newest(SECOND, LENGTH), Counts::default());
        assert_eq!(window.newest(10 * SECOND, LENGTH), Counts::default());
    }

    #[test]
    fn what_is_taken_back_was_never_there() {
        let window = Window::default();
        window.add(0, LENGTH, BOTH);
        window.take_back(0, LENGTH, Counts { total: 0, marked: 1 });
        assert_eq!(window.sum(0, LENGTH), Counts { total: 1, marked: 0 });
    }

    #[test]
    fn an_event_that_comes_late_does_not_wipe_out_later_ones() {
        let window = Window::default();
        window.add(10 * SECOND, LENGTH, BOTH);
        window.add(0, LENGTH, BOTH);
        window.take_back(0, LENGTH, BOTH);
        assert_eq!(window.sum(10 * SECOND, LENGTH), BOTH);
        // A little late, its bucket is still its own.
        window.add(9 * SECOND, LENGTH, BOTH);
        assert_eq!(window.sum(10 * SECOND, LENGTH), Counts { total: 2, marked: 2 });
    }

    #[test]
    fn a_bucket_from_long_ago_is_no_obstacle() {
        // The last is 190 days: just before ticks come round.
        for idle in [20, 1000, 1_000_000, 16_500_000] {
            let window = Window::default();
            window.add(30 * SECOND, LENGTH, BOTH);
            let now = (30 + idle) * SECOND;
            assert_eq!(window.sum(now, LENGTH), Counts::default());
            window.add(now, LENGTH, BOTH);
            assert_eq!(window.sum(now, LENGTH), BOTH, "{idle}");
        }
    }

    #[test]
    fn a_window_of_another_length_begins_empty() {
        let window = Window::default();
        for second in 0..40 {
            window.add(second * SECOND, LENGTH, BOTH);
        }
        let longer = 2 * LENGTH;
        window.add(40 * SECOND, longer, BOTH);
        // Ticks of one second and of two would be taken for each other from here on.
        for second in (42..80).step_by(2) {
            assert_eq!(
                window.sum(second * SECOND, longer),
                if second < 60 { BOTH } else { Counts::default() }
            );
        }
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
