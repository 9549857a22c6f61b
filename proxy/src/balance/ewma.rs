//! Latency of one endpoint, estimated so that bad news counts at once and good news with time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::{nanos_since, policy::BalancerPolicy};

/// Peak-sensitive exponentially weighted moving average of round-trip times (Finagle
/// `PeakEwma`).
///
/// * An observation above the estimate replaces it at once; one below it pulls the estimate down,
///   by a share that grows with the time since the last observation (time constant
///   [`BalancerPolicy::decay`]).
/// * While nothing is observed the estimate fades towards zero, so that an endpoint that once was
///   slow is asked again some day. Sending it a request ends that hope until the answer is there:
///   fading starts anew at the remembered value when a request is sent. So one request tries a
///   faded endpoint, not a herd, and one that hangs stays as expensive as it was known to be.
/// * Requests in flight count by their number: the cost is the estimate times one more than is in
///   flight. How long they have been waiting is not looked at, because a request in flight may be
///   a stream that lives for hours; time-outs turn one that hangs into an observation.
/// * An endpoint that never answered costs nothing while it is idle, so that a new one is asked
///   at once, and [`BalancerPolicy::default_rtt`] per request once asked, so that it is not
///   flooded before its first answer.
#[derive(Debug)]
pub struct PeakEwma {
    epoch: Instant,
    /// Bits of the estimate in nanoseconds, an `f64`; [`UNKNOWN`] before the first observation.
    estimate: AtomicU64,
    /// When the last observation was made and the last request sent, in nanoseconds since
    /// `epoch`.
    observed: AtomicU64,
    sent: AtomicU64,
}

/// Bits of a NaN: no round-trip time has been seen.
const UNKNOWN: u64 = u64::MAX;

impl PeakEwma {
    /// An endpoint that has not answered yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            estimate: AtomicU64::new(UNKNOWN),
            observed: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        }
    }

    /// A request leaves for the endpoint.
    pub fn sent(&self, now: Instant) {
        self.sent.fetch_max(nanos_since(self.epoch, now), Ordering::Relaxed);
    }

    /// An answer took `rtt`.
    pub fn observe(&self, now: Instant, rtt: Duration, policy: &BalancerPolicy) {
        let now = nanos_since(self.epoch, now);
        // Each span of time is claimed by exactly one observation, so that concurrent ones decay
        // the estimate once. The stamp is moved before the estimate: a reader in between sees the
        // old estimate unfaded, never a new peak faded by an old age.
        let before = self.observed.fetch_max(now, Ordering::AcqRel);
        let kept = fade(now.saturating_sub(before), policy);
        let rtt = as_nanos(rtt);
        self.update(|estimate| match estimate {
            Some(estimate) if rtt <= estimate => estimate * kept + rtt * (1.0 - kept),
            _ => rtt,
        });
    }

    /// A request was given up after `waited`: its answer would have taken at least that long, so
    /// this can raise the estimate and never lowers it.
    pub fn observe_at_least(&self, now: Instant, waited: Duration, policy: &BalancerPolicy) {
        let known = self.estimate().is_some_and(|estimate| as_nanos(waited) <= estimate);
        // Without an estimate the default stands in, so that a client that leaves at once does
        // not make a new endpoint look fast.
        if !known {
            self.observe(now, waited.max(self.floor(policy)), policy);
        }
    }

    /// Cost of sending one more request: the faded estimate in seconds times `in_flight + 1`.
    #[must_use]
    pub fn load(&self, now: Instant, in_flight: u32, policy: &BalancerPolicy) -> f64 {
        let pending = f64::from(in_flight);
        match self.estimate() {
            None if in_flight == 0 => 0.0,
            None => policy.default_rtt.as_secs_f64() * (pending + 1.0),
            Some(nanos) => nanos / 1e9 * self.fade_since(now, in_flight, policy) * (pending + 1.0),
        }
    }

    /// The estimate as it stands now, for people; `None` before the first answer.
    #[must_use]
    pub fn rtt(&self, now: Instant, policy: &BalancerPolicy) -> Option<Duration> {
        let nanos = self.estimate()? * self.fade_since(now, 0, policy);
        // Far below the cast's bounds: observations are at most `Duration`s that someone waited.
        Some(Duration::from_nanos(nanos as u64))
    }

    fn floor(&self, policy: &BalancerPolicy) -> Duration {
        if self.estimate().is_some() { Duration::ZERO } else { policy.default_rtt }
    }

    fn fade_since(&self, now: Instant, in_flight: u32, policy: &BalancerPolicy) -> f64 {
        let mut from = self.observed.load(Ordering::Acquire);
        if in_flight > 0 {
            from = from.max(self.sent.load(Ordering::Relaxed));
        }
        fade(nanos_since(self.epoch, now).saturating_sub(from), policy)
    }

    fn estimate(&self) -> Option<f64> {
        match self.estimate.load(Ordering::Acquire) {
            UNKNOWN => None,
            bits => Some(f64::from_bits(bits)),
        }
    }

    fn update(&self, next: impl Fn(Option<f64>) -> f64) {
        let step = |bits| {
            let estimate = (bits != UNKNOWN).then(|| f64::from_bits(bits));
            Some(next(estimate).to_bits())
        };
        // The closure never declines, so this cannot fail.
        let _ = self.estimate.fetch_update(Ordering::AcqRel, Ordering::Acquire, step);
    }
}

/// What is left of an estimate after some nanoseconds.
fn fade(elapsed: u64, policy: &BalancerPolicy) -> f64 {
    let decay = as_nanos(policy.decay);
    if decay > 0.0 { (-(elapsed as f64) / decay).exp() } else { 0.0 }
}

fn as_nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(epoch: Instant, millis: u64) -> Instant {
        epoch + Duration::from_millis(millis)
    }

    fn start() -> (PeakEwma, Instant, BalancerPolicy) {
        let epoch = crate::balance::testing::epoch();
        (PeakEwma::new(epoch), epoch, BalancerPolicy::default())
    }

    fn millis(load: f64) -> f64 {
        load * 1000.0
    }

    #[test]
    fn a_new_endpoint_is_asked_first_and_then_costs_the_default() {
        let (ewma, epoch, policy) = start();
        assert_eq!(ewma.load(epoch, 0, &policy), 0.0);
        ewma.sent(epoch);
        assert_eq!(millis(ewma.load(epoch, 1, &policy)), 60.0);
        assert_eq!(ewma.rtt(epoch, &policy), None);
    }

    #[test]
    fn a_peak_counts_at_once_and_fades_with_the_time_constant() {
        let (ewma, epoch, policy) = start();
        ewma.observe(epoch, MS, &policy);
        ewma.observe(epoch, 100 * MS, &policy);
        assert_eq!(millis(ewma.load(epoch, 0, &policy)), 100.0);
        // One time constant later, an answer in 10 ms weighs 1 - 1/e.
        ewma.observe(at(epoch, 10_000), 10 * MS, &policy);
        let expected = 100.0 * (-1f64).exp() + 10.0 * (1.0 - (-1f64).exp());
        assert!((millis(ewma.load(at(epoch, 10_000), 0, &policy)) - expected).abs() < 1e-6);
    }

    #[test]
    fn observations_at_the_same_moment_do_not_wipe_out_a_peak() {
        let (ewma, epoch, policy) = start();
        ewma.observe(epoch, 100 * MS, &policy);
        for _ in 0..1000 {
            ewma.observe(epoch, MS, &policy);
        }
        assert_eq!(millis(ewma.load(epoch, 0, &policy)), 100.0);
    }

    #[test]
    fn an_idle_endpoint_fades_towards_zero() {
        let (ewma, epoch, policy) = start();
        ewma.observe(epoch, 5000 * MS, &policy);
        assert!(millis(ewma.load(at(epoch, 100_000), 0, &policy)) < 1.0);
    }

    #[test]
    fn one_request_to_a_faded_endpoint_brings_its_old_cost_back_until_it_answers() {
        let (ewma, epoch, policy) = start();
        ewma.observe(epoch, 1000 * MS, &policy);
        let later = at(epoch, 100_000);
        ewma.sent(later);
        assert_eq!(millis(ewma.load(later, 1, &policy)), 2000.0);
        // Held for long it fades again, so that one stream does not keep an endpoint out.
        assert!(millis(ewma.load(at(epoch, 200_000), 1, &policy)) < 1.0);
        ewma.observe(later, MS, &policy);
        assert!(millis(ewma.load(later, 0, &policy)) < 2.0);
    }

    #[test]
    fn a_cancelled_request_raises_but_never_lowers() {
        let (ewma, epoch, policy) = start();
        ewma.observe_at_least(epoch, MS, &policy);
        assert_eq!(millis(ewma.load(epoch, 0, &policy)), 30.0);
        ewma.observe_at_least(at(epoch, 10_000), MS, &policy);
        ewma.observe_at_least(epoch, 80 * MS, &policy);
        assert_eq!(millis(ewma.load(epoch, 0, &policy)), 80.0);
    }

    #[test]
    fn time_that_runs_backwards_between_threads_is_harmless() {
        let (ewma, epoch, policy) = start();
        ewma.observe(at(epoch, 1000), 10 * MS, &policy);
        ewma.observe(at(epoch, 999), 5 * MS, &policy);
        assert_eq!(millis(ewma.load(epoch, 0, &policy)), 10.0);
    }

    proptest! {
        #[test]
        fn the_estimate_stays_between_the_extremes_seen(
            steps in prop::collection::vec((0u64..20_000, 1u64..10_000), 1..50),
        ) {
            let (ewma, epoch, policy) = start();
            let (mut now, mut low, mut high) = (0, f64::MAX, 0f64);
            for (gap, rtt) in steps {
                now += gap;
                ewma.observe(at(epoch, now), Duration::from_millis(rtt), &policy);
                (low, high) = (low.min(rtt as f64), high.max(rtt as f64));
                let load = millis(ewma.load(at(epoch, now), 0, &policy));
                prop_assert!(load >= low * 0.999_999 && load <= high * 1.000_001, "{load}");
            }
        }
    }
}
