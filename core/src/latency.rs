//! Latency histograms of bounded size: one per worker, merged on reading.

use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

/// Largest value kept exactly enough; longer ones count as this.
const MAX_MICROS: u64 = 60_000_000;

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
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(MAX_MICROS);
        self.0.lock().saturating_record(micros.clamp(1, MAX_MICROS));
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
        let h = self.0.lock();
        Quantiles {
            count: h.len(),
            p50_us: h.value_at_quantile(0.5),
            p90_us: h.value_at_quantile(0.9),
            p99_us: h.value_at_quantile(0.99),
            p999_us: h.value_at_quantile(0.999),
            max_us: h.max(),
        }
    }

    /// Calls `f(upper bound, count at or below it)` for each bound, for a Prometheus histogram,
    /// and returns the number of observations and their sum.
    pub fn cumulative(
        &self,
        bounds: &[Duration],
        mut f: impl FnMut(Duration, u64),
    ) -> (u64, Duration) {
        let h = self.0.lock();
        for &bound in bounds {
            f(bound, h.count_between(0, u64::try_from(bound.as_micros()).unwrap_or(MAX_MICROS)));
        }
        let micros: f64 = h
            .iter_recorded()
            .map(|v| v.value_iterated_to() as f64 * v.count_at_value() as f64)
            .sum();
        (h.len(), Duration::from_secs_f64(micros / 1e6))
    }
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
