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
