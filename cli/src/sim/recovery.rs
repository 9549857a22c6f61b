//! How long after the end of a disturbance callers still notice it.
//!
//! *Before* is the last seconds (ten at most) ahead of the first disturbance: their longest p99 and
//! their smallest success rate, second by second, so that ordinary noise is part of it. Callers
//! notice no more from the moment on which begin two seconds in both of which p99 is at most a tenth
//! above that, and success at most a percentage point below. Measured where five seconds without a
//! disturbance follow.

use std::{ops::Range, time::Duration};

use serde::Serialize;

use super::{
    measure::{quantile, success, within},
    record::Sample,
};

/// Most of the time ahead of the first disturbance that is looked at.
const BEFORE: Duration = Duration::from_secs(10);
/// The least that must be there.
const LEAST_BEFORE: u32 = 2;
/// What must follow a disturbance.
const QUIET: Duration = Duration::from_secs(5);
const SECOND: Duration = Duration::from_secs(1);
/// How exactly the moment is found.
const STEP: Duration = Duration::from_millis(100);

/// From the end of a disturbance until callers notice it no more; of several, the longest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recovery {
    /// Nothing was disturbed, or too near to the beginning or the end to be measured.
    NotMeasured,
    /// After so many seconds.
    After(f64),
    /// Not before the next disturbance or the end.
    Never,
}

impl Recovery {
    /// In seconds; infinite for never.
    pub(super) fn seconds(self) -> Option<f64> {
        match self {
            Self::NotMeasured => None,
            Self::After(seconds) => Some(seconds),
            Self::Never => Some(f64::INFINITY),
        }
    }
}

/// What was usual.
struct Before {
    p99: Duration,
    success: f64,
}

/// Measures over samples in order of arrival; `run` is what of the run counts.
pub(super) fn measure(
    samples: &[Sample],
    disturbances: &[Range<Duration>],
    run: Range<Duration>,
) -> Recovery {
    let Some(first) = disturbances.first() else { return Recovery::NotMeasured };
    let Some(before) = before(samples, run.start, first.start) else {
        return Recovery::NotMeasured;
    };
    let mut longest = Recovery::NotMeasured;
    for (index, disturbance) in disturbances.iter().enumerate() {
        let until = disturbances.get(index + 1).map_or(run.end, |next| next.start).min(run.end);
        if disturbance.end + QUIET > until {
            continue;
        }
        let this = match before.is_back(samples, disturbance.end..until) {
            Some(time) => Recovery::After(time.as_secs_f64()),
            None => return Recovery::Never,
        };
        if this.seconds() > longest.seconds() {
            longest = this;
        }
    }
    longest
}

fn before(samples: &[Sample], from: Duration, to: Duration) -> Option<Before> {
    let mut seconds = 0;
    let mut before = Before { p99: Duration::ZERO, success: 1.0 };
    let mut end = to;
    while u64::from(seconds) < BEFORE.as_secs() && end >= from + SECOND {
        let of_second = within(samples, &(end - SECOND..end));
        if let Some((p99, success)) = quantile(of_second, 0.99).zip(success(of_second)) {
            before.p99 = before.p99.max(p99);
            before.success = before.success.min(success);
            seconds += 1;
        }
        end -= SECOND;
    }
    (seconds >= LEAST_BEFORE).then_some(before)
}

impl Before {
    fn is_back(&self, samples: &[Sample], span: Range<Duration>) -> Option<Duration> {
        let mut from = span.start;
        while from + SECOND <= span.end {
            let next = from + SECOND;
            let stays = next + SECOND > span.end || self.is_usual(samples, next);
            if stays && self.is_usual(samples, from) {
                return Some(from - span.start);
            }
            from += STEP;
        }
        None
    }

    fn is_usual(&self, samples: &[Sample], from: Duration) -> bool {
        let samples = within(samples, &(from..from + SECOND));
        quantile(samples, 0.99).zip(success(samples)).is_some_and(|(p99, success)| {
            p99 <= self.p99.mul_f64(1.1) && success >= self.success - 0.01
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::record::Record;

    const RUN: Range<Duration> = Duration::ZERO..Duration::from_secs(60);

    /// A hundred requests a second; what they take, and whether they fail, by the moment.
    fn samples(latency: impl Fn(f64) -> (u64, bool)) -> Vec<Sample> {
        let mut record = Record::new(1, RUN.end, RUN.start);
        for n in 0..6000 {
            let at = Duration::from_millis(n * 10);
            let (ms, failed) = latency(at.as_secs_f64());
            let failure = failed.then(|| "503".to_owned());
            record.ended(at, at + Duration::from_millis(ms), 1, failure);
        }
        record.close();
        record.samples
    }

    fn span(from: u64, to: u64) -> Range<Duration> {
        Duration::from_secs(from)..Duration::from_secs(to)
    }

    #[test]
    fn it_ends_where_two_seconds_begin_that_are_as_before() {
        let samples = samples(|at| (if (20.0..33.5).contains(&at) { 50 } else { 10 }, false));
        let Recovery::After(seconds) = measure(&samples, &[span(20, 30)], RUN) else { panic!() };
        assert!((3.4..=3.6).contains(&seconds), "{seconds}");
    }

    #[test]
    fn failures_count_as_much_as_latency() {
        let samples = samples(|at| (10, (20.0..32.0).contains(&at)));
        let Recovery::After(seconds) = measure(&samples, &[span(20, 30)], RUN) else { panic!() };
        assert!((1.9..=2.1).contains(&seconds), "{seconds}");
    }

    #[test]
    fn noise_that_was_there_before_is_no_trouble() {
        let samples = samples(|at| (if at % 3.0 < 0.1 { 40 } else { 10 }, false));
        assert_eq!(measure(&samples, &[span(20, 30)], RUN), Recovery::After(0.0));
    }

    #[test]
    fn what_stays_bad_is_never_over() {
        let samples = samples(|at| (if at >= 20.0 { 50 } else { 10 }, false));
        assert_eq!(measure(&samples, &[span(20, 30)], RUN), Recovery::Never);
    }

    #[test]
    fn of_several_the_longest_counts_and_those_without_quiet_after_them_do_not() {
        let bad = |at: f64| (20.0..23.0).contains(&at) || (40.0..45.0).contains(&at) || at > 56.0;
        let samples = samples(|at| (if bad(at) { 50 } else { 10 }, false));
        let spans = [span(20, 22), span(40, 42), span(56, 57)];
        let Recovery::After(seconds) = measure(&samples, &spans, RUN) else { panic!() };
        assert!((2.9..=3.1).contains(&seconds), "{seconds}");
    }

    #[test]
    fn without_a_disturbance_or_without_a_before_nothing_is_measured() {
        let samples = samples(|_| (10, false));
        assert_eq!(measure(&samples, &[], RUN), Recovery::NotMeasured);
        assert_eq!(measure(&samples, &[span(1, 30)], RUN), Recovery::NotMeasured);
    }
}
