//! Latency histograms of bounded size, merged on reading.

use std::time::Duration;

use hdrhistogram::{Counter, Histogram};
use parking_lot::Mutex;
use serde::Serialize;

/// Largest value kept exactly enough, in microseconds; longer ones count as this.
pub const MAX_MICROS: u64 = 60_000_000;

/// A histogram from 1 µs to 60 s with two significant digits, about 10 KiB.
///
/// Written by one worker and read now and then by the control thread, so its lock is free in
/// practice.
#[derive(Debug)]
pub struct Latency(Mutex<Histogram<u32>>);

/// A summary of some histograms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub struct Quantiles {
    /// Number of observations.
    pub count: u64,
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

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

impl Latency {
    /// An empty histogram.
    #[must_use]
    pub fn new() -> Self {
        Self(Mutex::new(
            Histogram::new_with_bounds(1, MAX_MICROS, 2)
                .expect("invariant: the bounds are constants that hdrhistogram accepts"),
        ))
    }

    /// Counts one observation.
    pub fn record(&self, elapsed: Duration) {
        self.0.lock().saturating_record(micros(elapsed));
    }

    /// Quantiles over several workers' histograms.
    pub fn merged<'a>(parts: impl IntoIterator<Item = &'a Latency>) -> Quantiles {
        let sum = Self::new();
        {
            let mut sum = sum.0.lock();
            for part in parts {
                sum.add(&*part.0.lock()).expect("invariant: all histograms have the same bounds");
            }
        }
        sum.quantiles()
    }

    /// Quantiles of this one.
    #[must_use]
    pub fn quantiles(&self) -> Quantiles {
        Quantiles::of(&self.0.lock())
    }
}

impl Quantiles {
    /// Of a histogram of microseconds.
    #[must_use]
    pub fn of<C: Counter>(histogram: &Histogram<C>) -> Self {
        Self {
            count: histogram.len(),
            p50_us: histogram.value_at_quantile(0.5),
            p90_us: histogram.value_at_quantile(0.9),
            p99_us: histogram.value_at_quantile(0.99),
            p999_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
        }
    }
}

/// A time as histograms count it: whole microseconds from 1 to [`MAX_MICROS`].
#[must_use]
pub fn micros(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_micros()).unwrap_or(MAX_MICROS).clamp(1, MAX_MICROS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_quantiles_cover_all_workers() {
        let (a, b) = (Latency::new(), Latency::new());
        for ms in 1..=50 {
            a.record(Duration::from_millis(ms));
            b.record(Duration::from_millis(50 + ms));
        }
        let q = Latency::merged([&a, &b]);
        assert_eq!(q.count, 100);
        assert!((49_000..=51_000).contains(&q.p50_us), "{q:?}");
        assert!((98_000..=100_500).contains(&q.p99_us), "{q:?}");
    }

    #[test]
    fn absurd_values_are_capped_not_lost() {
        let l = Latency::new();
        l.record(Duration::ZERO);
        l.record(Duration::from_secs(1 << 40));
        assert_eq!(l.quantiles().count, 2);
    }
}
