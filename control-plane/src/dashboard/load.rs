//! Figures of several proxies put together.

use serde::Serialize;

use super::answers::Window;

/// What finished in the last seconds, per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Load {
    requests_per_second: f64,
    failures_per_second: f64,
    /// Requests whose median is known, and the sum of the medians weighted by them.
    measured: f64,
    weighted_p50: f64,
    p99_us: Option<u64>,
}

/// The same as it is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Figures {
    /// Requests per second.
    pub(super) rps: f64,
    /// The part of them that did not fail, 0 to 1; `None` without requests.
    pub(super) success: Option<f64>,
    /// The mean of the proxies' medians, weighted by their requests, in µs.
    pub(super) p50_us: Option<u64>,
    /// The largest of the proxies', in µs.
    pub(super) p99_us: Option<u64>,
}

impl Load {
    /// Adds what one proxy counted. A window that covers no time says nothing.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    pub(super) fn add(&mut self, window: Option<Window>) {
        let Some(Window { seconds, requests, failures, p50_us, p99_us }) = window else { return };
        // Not a comparison the other way round, which would let NaN pass.
        if !(seconds > 0.0 && seconds.is_finite()) || requests == 0 {
            return;
        }
        self.requests_per_second += requests as f64 / seconds;
        self.failures_per_second += failures.min(requests) as f64 / seconds;
        if let Some(p50_us) = p50_us {
            self.measured += requests as f64;
            self.weighted_p50 += requests as f64 * p50_us as f64;
        }
        self.p99_us = self.p99_us.max(p99_us);
    }

    /// Requests per second, for an order.
    pub(super) fn rps(&self) -> f64 {
        self.requests_per_second
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a mean of values that are no larger"
    )]
    pub(super) fn figures(&self) -> Figures {
        let any = self.requests_per_second > 0.0;
        let p50 = self.weighted_p50 / self.measured;
        Figures {
            rps: self.requests_per_second,
            success: any.then(|| 1.0 - self.failures_per_second / self.requests_per_second),
            p50_us: (self.measured > 0.0).then(|| p50.round() as u64),
            p99_us: self.p99_us,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(seconds: f64, requests: u64, failures: u64, p50: u64, p99: u64) -> Option<Window> {
        Some(Window { seconds, requests, failures, p50_us: Some(p50), p99_us: Some(p99) })
    }

    #[test]
    fn rates_add_up_medians_are_weighted_and_the_largest_p99_counts() {
        let mut load = Load::default();
        load.add(window(10.0, 100, 0, 1000, 3000));
        load.add(window(5.0, 300, 150, 5000, 2000));
        load.add(None);
        let figures = load.figures();
        assert_eq!((figures.p50_us, figures.p99_us), (Some(4000), Some(3000)));
        assert!((figures.rps - 70.0).abs() < 1e-9, "{figures:?}");
        let success = figures.success.unwrap();
        assert!((success - 40.0 / 70.0).abs() < 1e-9, "{success}");
    }

    #[test]
    fn nothing_is_made_up_without_requests() {
        let mut load = Load::default();
        for seconds in [10.0, 0.0, -1.0, f64::NAN, f64::INFINITY] {
            load.add(window(seconds, 0, 0, 0, 0));
        }
        load.add(window(0.0, 5, 5, 1, 1));
        assert_eq!(load.figures(), Figures::default());
        load.add(window(1.0, 1, 9, 1, 1));
        assert_eq!(load.figures().success, Some(0.0), "no more failures than requests");
    }
}
