//! What was measured between two moments.

use std::collections::{BTreeMap, VecDeque};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::super::load::{Class, Outcome, Report, Sample};

/// Longest latency told apart.
const MAX_MICROS: u64 = 60_000_000;
/// Different failure texts kept; the others are only counted.
const MAX_TEXTS: usize = 8;

/// Calls that ended in a stretch of time.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    classes: BTreeMap<Class, Tally>,
    replicas: BTreeMap<String, u64>,
    failures: BTreeMap<String, u64>,
    latency: Histogram<u32>,
}

/// How the calls of one class ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Tally {
    pub(crate) ok: u64,
    pub(crate) failed: u64,
}

/// Milliseconds from the due time to the end, of all calls to web.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            classes: BTreeMap::new(),
            replicas: BTreeMap::new(),
            failures: BTreeMap::new(),
            latency: Histogram::new_with_bounds(1, MAX_MICROS, 3)
                .expect("invariant: the bounds are constants that hdrhistogram accepts"),
        }
    }
}

impl Window {
    /// Counts what a report tells.
    pub(crate) fn take(&mut self, report: &Report) {
        for sample in &report.samples {
            self.count(sample);
        }
    }

    fn count(&mut self, sample: &Sample) {
        let tally = self.classes.entry(sample.class).or_default();
        match &sample.outcome {
            Outcome::Answered(replica) => {
                tally.ok += 1;
                if let Some(replica) = replica {
                    *self.replicas.entry(replica.clone()).or_default() += 1;
                }
            }
            Outcome::Failed(why) => {
                tally.failed += 1;
                if self.failures.len() < MAX_TEXTS || self.failures.contains_key(why) {
                    *self.failures.entry(why.clone()).or_default() += 1;
                }
            }
        }
        // A failed call took its time too: leaving it out would flatter the figures.
        if matches!(sample.class, Class::Http | Class::Fresh) {
            let micros = u64::try_from(sample.latency.as_micros()).unwrap_or(MAX_MICROS);
            self.latency.saturating_record(micros.clamp(1, MAX_MICROS));
        }
    }

    /// How the calls of a class ended.
    pub(crate) fn class(&self, class: Class) -> Tally {
        self.classes.get(&class).copied().unwrap_or_default()
    }

    /// How all calls ended.
    pub(crate) fn total(&self) -> Tally {
        self.classes.values().fold(Tally::default(), |sum, tally| Tally {
            ok: sum.ok + tally.ok,
            failed: sum.failed + tally.failed,
        })
    }

    /// Answers that a replica of orders gave.
    pub(crate) fn answers_of(&self, replica: &str) -> u64 {
        self.replicas.get(replica).copied().unwrap_or(0)
    }

    /// Share of the answers that each replica of orders gave.
    pub(crate) fn shares(&self) -> BTreeMap<String, f64> {
        let sum: u64 = self.replicas.values().sum();
        self.replicas.iter().map(|(pod, n)| (pod.clone(), *n as f64 / sum as f64)).collect()
    }

    /// Why calls failed, the first few reasons met.
    pub(crate) fn failures(&self) -> &BTreeMap<String, u64> {
        &self.failures
    }

    /// Latency of the calls to web.
    pub(crate) fn latency(&self) -> Latency {
        let at = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1000.0;
        if self.latency.is_empty() {
            return Latency::default();
        }
        Latency {
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: self.latency.max() as f64 / 1000.0,
        }
    }
}

impl Tally {
    /// Calls that ended.
    pub(crate) fn count(self) -> u64 {
        self.ok + self.failed
    }

    /// Share of the calls that ended well; `None` where none ended.
    pub(crate) fn success_rate(self) -> Option<f64> {
        (self.count() > 0).then(|| self.ok as f64 / self.count() as f64)
    }
}

/// The last moments, for the screen.
#[derive(Debug, Default)]
pub(crate) struct Recent(VecDeque<Report>);

impl Recent {
    /// Reports kept, a tenth of a second each: a second.
    const KEPT: usize = 10;

    /// Adds a report and forgets the oldest.
    pub(crate) fn take(&mut self, report: Report) {
        if self.0.len() == Self::KEPT {
            self.0.pop_front();
        }
        self.0.push_back(report);
    }

    /// All that is kept as one window.
    pub(crate) fn window(&self) -> Window {
        let mut window = Window::default();
        self.0.iter().for_each(|report| window.take(report));
        window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn answered(pod: &str, ms: u64) -> Sample {
        Sample {
            class: Class::Http,
            latency: Duration::from_millis(ms),
            outcome: Outcome::Answered(Some(pod.into())),
        }
    }

    fn failed(why: &str) -> Sample {
        Sample {
            class: Class::Grpc,
            latency: Duration::from_millis(1),
            outcome: Outcome::Failed(why.into()),
        }
    }

    #[test]
    fn shares_are_parts_of_the_answers_that_name_a_replica() {
        let mut window = Window::default();
        let mut samples = vec![answered("orders-0", 1); 3];
        samples.push(answered("orders-1", 1));
        samples.push(failed("x"));
        window.take(&Report { samples });
        assert_eq!(
            window.shares(),
            BTreeMap::from([("orders-0".to_owned(), 0.75), ("orders-1".to_owned(), 0.25)])
        );
        assert_eq!(window.total(), Tally { ok: 4, failed: 1 });
        assert_eq!(window.total().success_rate(), Some(0.8));
        assert_eq!(Window::default().shares(), BTreeMap::new());
        assert_eq!(Window::default().total().success_rate(), None);
    }

    #[test]
    fn quantiles_keep_three_digits() {
        let mut window = Window::default();
        window.take(&Report { samples: (1..=1000).map(|ms| answered("a", ms)).collect() });
        let latency = window.latency();
        assert!((latency.p50_ms - 500.0).abs() <= 0.5, "{latency:?}");
        assert!((latency.p99_ms - 990.0).abs() <= 1.0, "{latency:?}");
        assert!((latency.p999_ms - 999.0).abs() <= 1.0, "{latency:?}");
    }

    #[test]
    fn failure_texts_are_bounded_but_all_failures_count() {
        let mut window = Window::default();
        window.take(&Report { samples: (0..100).map(|n| failed(&n.to_string())).collect() });
        assert_eq!(window.failures().len(), MAX_TEXTS);
        assert_eq!(window.total().failed, 100);
    }

    #[test]
    fn the_recent_window_forgets() {
        let mut recent = Recent::default();
        recent.take(Report { samples: vec![failed("long ago")] });
        for _ in 0..Recent::KEPT {
            recent.take(Report { samples: vec![answered("a", 1)] });
        }
        assert_eq!(recent.window().total(), Tally { ok: 10, failed: 0 });
    }
}
