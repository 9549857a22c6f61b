//! When each request of a constant-rate load is due.

use std::time::Duration;

use tokio::time::Instant;

/// Due times at a constant rate. Each is computed from the start, so that rounding does not add up
/// and a late sender is not forgiven.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    start: Instant,
    rate: u32,
    next: u64,
    end: u64,
}

impl Schedule {
    /// `rate` requests per second for `length`, the first at `start`.
    pub(crate) fn new(start: Instant, rate: u32, length: Duration) -> Self {
        let end = length.as_nanos() * u128::from(rate) / 1_000_000_000;
        Self { start, rate, next: 0, end: u64::try_from(end).unwrap_or(u64::MAX) }
    }
}

impl Iterator for Schedule {
    type Item = Instant;

    fn next(&mut self) -> Option<Instant> {
        if self.next >= self.end {
            return None;
        }
        let rate = u64::from(self.rate);
        let (seconds, rest) = (self.next / rate, self.next % rate);
        self.next += 1;
        Some(
            self.start
                + Duration::from_secs(seconds)
                + Duration::from_secs(1) * rest_of(rest) / self.rate,
        )
    }
}

/// `rest` is below the rate, which is a `u32`.
fn rest_of(rest: u64) -> u32 {
    u32::try_from(rest).expect("invariant: a remainder of division by a u32 fits one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn due_times_do_not_drift() {
        let start = Instant::now();
        let due: Vec<_> = Schedule::new(start, 7, Duration::from_secs(100)).collect();
        assert_eq!(due.len(), 700);
        assert_eq!(due[0], start);
        assert_eq!(due[7], start + Duration::from_secs(1));
        assert_eq!(due[693], start + Duration::from_secs(99));
        let gaps = due.windows(2).map(|w| w[1] - w[0]);
        assert!(gaps.into_iter().all(|gap| gap.as_micros().abs_diff(142_857) <= 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_length_shorter_than_one_interval_has_no_request() {
        let mut schedule = Schedule::new(Instant::now(), 1, Duration::from_millis(999));
        assert_eq!(schedule.next(), None);
    }
}
