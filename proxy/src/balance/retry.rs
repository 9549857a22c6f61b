//! Whether a failed attempt is sent again.
//!
//! An attempt that provably never reached an application ([`Sent::No`]) is sent again at once and
//! unasked, to another endpoint where there is one. Everything else is sent again only where the
//! Service's [`RetryPolicy`] says so, within its limit and its budget, after a pause.

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use http::{Method, StatusCode};

use super::{
    nanos_since,
    policy::{BudgetPolicy, RetryMethods, RetryPolicy},
    window::{Counts, Window},
};

/// Sends beyond the first of a request that never reached an application.
const MAX_RESENDS: u32 = 3;
/// Pause before the first retry, before jitter; it doubles from retry to retry.
const BASE_BACKOFF: Duration = Duration::from_millis(25);
/// Longest pause.
const MAX_BACKOFF: Duration = Duration::from_millis(250);

/// Whether any of a request may have reached an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Provably nothing: the dial failed, REFUSED_STREAM, a stream above GOAWAY's last id, an idle
    /// connection closed with nothing written.
    No,
    /// Something was written and nothing came back.
    Maybe,
    /// The application answered.
    Yes,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Whether it may have had an effect.
    pub sent: Sent,
    /// The endpoint's answer, or where there is none the answer that the proxy would give in its
    /// place (502 or UNAVAILABLE for a broken connection, 504 or DEADLINE_EXCEEDED for a
    /// time-out).
    pub answer: Answer,
    /// Retries of this request so far, by policy.
    pub retries: u32,
    /// Sends of this request so far, beyond the first, because an attempt never reached an
    /// application.
    pub resends: u32,
    /// Endpoints that there are.
    pub endpoints: usize,
}

/// What a client would see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// An HTTP status.
    Http(StatusCode),
    /// A gRPC status code.
    Grpc(u32),
}

/// Send again?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Yes, after a pause.
    Retry {
        /// The pause; zero where the attempt never reached an application.
        backoff: Duration,
    },
    /// No.
    Stop(StopReason),
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The answer is not one to retry, or the method may not be sent twice.
    NotRetryable,
    /// Enough attempts were made.
    Limit,
    /// The Service's share of retries is used up.
    Budget,
    /// The request's body is gone.
    NotReplayable,
}

/// Decides on an attempt that failed. Takes from the budget where the verdict is to retry by
/// policy, before the pause, so that retries that wait are counted too.
///
/// `replayable` says whether the request's body can be sent again from its start.
#[must_use]
pub fn decide(
    policy: Option<&RetryPolicy>,
    attempt: Attempt,
    method: &Method,
    budget: Option<&Budget>,
    replayable: bool,
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Verdict {
    if attempt.sent == Sent::No {
        return decide_unsent(attempt, replayable);
    }
    let Some(policy) = policy.filter(|policy| policy.covers(attempt.answer, method)) else {
        return Verdict::Stop(StopReason::NotRetryable);
    };
    if !replayable {
        return Verdict::Stop(StopReason::NotReplayable);
    }
    if attempt.retries >= policy.limit {
        return Verdict::Stop(StopReason::Limit);
    }
    if budget.is_some_and(|budget| !budget.withdraw(now)) {
        return Verdict::Stop(StopReason::Budget);
    }
    Verdict::Retry { backoff: backoff(attempt.retries, rng) }
}

fn decide_unsent(attempt: Attempt, replayable: bool) -> Verdict {
    if !replayable {
        return Verdict::Stop(StopReason::NotReplayable);
    }
    let endpoints = u32::try_from(attempt.endpoints).unwrap_or(MAX_RESENDS);
    if attempt.resends >= endpoints.min(MAX_RESENDS) {
        return Verdict::Stop(StopReason::Limit);
    }
    Verdict::Retry { backoff: Duration::ZERO }
}

/// Doubled from retry to retry up to the longest, of which between half and all is waited, so that
/// requests that failed together do not come back together.
fn backoff(retries: u32, rng: &mut fastrand::Rng) -> Duration {
    let doubled = BASE_BACKOFF.saturating_mul(1 << retries.min(16)).min(MAX_BACKOFF);
    doubled.mul_f64(0.5 + 0.5 * rng.f64())
}

impl RetryPolicy {
    /// Whether such an answer to such a request is to be retried. A gRPC code that is named is
    /// retried whatever the method: naming it is the owner's say-so.
    fn covers(&self, answer: Answer, method: &Method) -> bool {
        match answer {
            Answer::Http(status) => {
                let named = |range: &RangeInclusive<u16>| range.contains(&status.as_u16());
                self.http.iter().any(named) && self.methods.allow(method)
            }
            Answer::Grpc(code) => self.grpc.contains(&code),
        }
    }
}

impl RetryMethods {
    fn allow(&self, method: &Method) -> bool {
        match self {
            Self::Idempotent => method.is_idempotent(),
            Self::All => true,
            Self::Only(methods) => methods.contains(method),
        }
    }
}

/// Bound on the retries of one Service in this proxy (Finagle `RetryBudget`), shared by all
/// workers: in any window, retries are at most `ratio` times the requests plus `min_per_second`
/// times its length. Lock-free.
#[derive(Debug)]
pub struct Budget {
    epoch: Instant,
    policy: BudgetPolicy,
    /// Requests, and as marked events the retries.
    window: Window,
}

impl Budget {
    /// A budget from which nothing was taken: it holds `min_per_second` for one window.
    #[must_use]
    pub fn new(policy: BudgetPolicy, now: Instant) -> Self {
        Self { epoch: now, policy, window: Window::default() }
    }

    /// What it was made from.
    #[must_use]
    pub fn policy(&self) -> BudgetPolicy {
        self.policy
    }

    /// A request arrived (not a retry).
    pub fn deposit(&self, now: Instant) {
        let now = nanos_since(self.epoch, now);
        self.window.add(now, self.policy.window, Counts { total: 1, marked: 0 });
    }

    /// Takes one retry, if there is one left. Of several that race for the last one, at most one
    /// gets it.
    #[must_use]
    pub fn withdraw(&self, now: Instant) -> bool {
        let now = nanos_since(self.epoch, now);
        let one = Counts { total: 0, marked: 1 };
        // First take, then look: whoever sees a sum within bounds has seen all that were granted.
        self.window.add(now, self.policy.window, one);
        let counts = self.window.sum(now, self.policy.window);
        let reserve = self.policy.min_per_second * self.policy.window.as_secs_f64();
        let granted = counts.marked as f64 <= counts.total as f64 * self.policy.ratio + reserve;
        if !granted {
            self.window.take_back(now, self.policy.window, one);
        }
        granted
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
