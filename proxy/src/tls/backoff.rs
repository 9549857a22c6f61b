//! Pauses between attempts: doubling, jittered, bounded.

use std::time::Duration;

/// Exponential back-off with half of each pause at random, so that a fleet does not come back at
/// the same moment.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The pause before the next attempt: between half and all of the current step.
    pub(crate) fn next(&mut self, rng: &mut fastrand::Rng) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.longest);
        step.mul_f64(0.5 + 0.5 * rng.f64())
    }

    /// After a success.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_within_their_bounds_and_start_again_after_success() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut rng = fastrand::Rng::with_seed(1);
        let mut backoff = Backoff::new(first, longest);
        let mut step = first;
        for _ in 0..10 {
            let pause = backoff.next(&mut rng);
            assert!((step / 2..=step).contains(&pause), "{pause:?} of {step:?}");
            step = (step * 2).min(longest);
        }
        backoff.reset();
        assert!(backoff.next(&mut rng) <= first);
    }
}
