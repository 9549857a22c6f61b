//! Whether a failed attempt is sent again.
//!
//! An attempt that provably never reached an application ([`Sent::No`]) is sent again at once and
//! unasked, to another endpoint where there is one. Everything else is sent again only where the
//! Service's [`RetryPolicy`] says so, within its limit and its budget, after a pause; and never
//! once the client has begun to get an answer, which the caller sees to.
//!
//! What the server asks for is done: to wait for longer ([`Pushback`]), or not to come again.

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use http::{HeaderName, Method, StatusCode, header};

use super::{
    nanos_since,
    policy::{BudgetPolicy, RetryMethods, RetryPolicy},
    window::{BUCKETS, Counts, Window},
};
use crate::fields::Fields;

/// Sends beyond the first of a request that never reached an application.
const MAX_RESENDS: u32 = 3;
/// Longest pause that a server can ask for; where it wants more, its answer is given instead.
const MAX_PUSHBACK: Duration = Duration::from_secs(5);
/// By how much the retries of a tenth of the budget's window may exceed the share of that tenth.
const BURST: f64 = 2.0;
/// A request that carries it may be sent twice (draft-ietf-httpapi-idempotency-key-header).
pub static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
static GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

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
    /// What the answer asks for.
    pub pushback: Pushback,
    /// Retries of this request so far, by policy.
    pub retries: u32,
    /// Those of them since the last [`Pushback::Exactly`], which starts the doubling of pauses
    /// anew (gRFC A6); all of them where there was none.
    pub backoffs: u32,
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

/// What an answer asks of a client that would come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pushback {
    /// Nothing.
    #[default]
    None,
    /// To wait for so long instead of the usual pause: `grpc-retry-pushback-ms`.
    Exactly(Duration),
    /// To wait for so long at least: `Retry-After`.
    AtLeast(Duration),
    /// Not to come again.
    Never,
}

impl Pushback {
    /// Reads it from the fields that came with an answer: `grpc-retry-pushback-ms` with a gRPC
    /// status (gRFC A6: a number of 32 bits; a negative or unreadable one, or two, mean never), and
    /// seconds of `Retry-After` with a 429 or 503 (RFC 9110 §10.2.3, RFC 6585 §4). Dates there are
    /// rare and not followed.
    #[must_use]
    pub fn read(answer: Answer, fields: &impl Fields) -> Self {
        match answer {
            Answer::Grpc(_) => {
                let mut values = fields.all(&GRPC_PUSHBACK);
                let Some(value) = values.next() else { return Self::None };
                let millis = number(value).and_then(|ms| i32::try_from(ms).ok());
                let millis = millis.and_then(|ms| u64::try_from(ms).ok());
                match millis.filter(|_| values.next().is_none()) {
                    Some(millis) => Self::Exactly(Duration::from_millis(millis)),
                    None => Self::Never,
                }
            }
            Answer::Http(StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => {
                let seconds = fields.get(&header::RETRY_AFTER).and_then(number);
                seconds.map_or(Self::None, |s| Self::AtLeast(Duration::from_secs(s)))
            }
            Answer::Http(_) => Self::None,
        }
    }
}

/// Digits and nothing else; what is too large for anybody is as large as can be.
fn number(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// The request that would be sent again.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Whether it has an `Idempotency-Key` ([`IDEMPOTENCY_KEY`]), with which it counts as
    /// idempotent whatever its method.
    pub keyed: bool,
    /// Whether its body can be sent again from its start.
    pub replayable: bool,
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
///
/// Of several reasons the first in this order is told, so that [`StopReason::Limit`] means that a
/// higher limit would have helped, and [`StopReason::Budget`] that a larger budget would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The answer is not one to retry, or the method may not be sent twice.
    NotRetryable,
    /// The request's body is gone.
    NotReplayable,
    /// The server asked not to be asked again, or not for so long that the client gets the answer
    /// instead.
    Pushback,
    /// Enough attempts were made.
    Limit,
    /// The Service's share of retries is used up.
    Budget,
}

impl StopReason {
    /// For metrics: `not-retryable`, `not-replayable`, `pushback`, `limit` or `budget`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotRetryable => "not-retryable",
            Self::NotReplayable => "not-replayable",
            Self::Pushback => "pushback",
            Self::Limit => "limit",
            Self::Budget => "budget",
        }
    }
}

/// Decides on an attempt that failed. Takes from the budget where the verdict is to retry by
/// policy, before the pause, so that retries that wait are counted too.
#[must_use]
pub fn decide(
    policy: Option<&RetryPolicy>,
    request: Request<'_>,
    attempt: Attempt,
    budget: Option<&Budget>,
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Verdict {
    if attempt.sent == Sent::No {
        return decide_unsent(attempt, request.replayable);
    }
    let Some(policy) = policy.filter(|policy| policy.covers(attempt, request)) else {
        return Verdict::Stop(StopReason::NotRetryable);
    };
    if !request.replayable {
        return Verdict::Stop(StopReason::NotReplayable);
    }
    let Some(backoff) = policy.pause(attempt, rng) else {
        return Verdict::Stop(StopReason::Pushback);
    };
    if attempt.retries >= policy.limit {
        return Verdict::Stop(StopReason::Limit);
    }
    if budget.is_some_and(|budget| !budget.withdraw(now)) {
        return Verdict::Stop(StopReason::Budget);
    }
    Verdict::Retry { backoff }
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

impl RetryPolicy {
    /// Whether such an answer to such a request is to be retried. A gRPC code that is named is
    /// retried whatever the method: naming it is the owner's say-so.
    fn covers(&self, attempt: Attempt, request: Request<'_>) -> bool {
        if self.unanswered && attempt.sent == Sent::Maybe && self.methods.allow(request) {
            return true;
        }
        match attempt.answer {
            Answer::Http(status) => {
                let named = |range: &RangeInclusive<u16>| range.contains(&status.as_u16());
                self.http.iter().any(named) && self.methods.allow(request)
            }
            Answer::Grpc(code) => self.grpc.contains(&code),
        }
    }

    /// How long to wait; `None` where the server does not want to be asked again soon.
    fn pause(&self, attempt: Attempt, rng: &mut fastrand::Rng) -> Option<Duration> {
        let pause = match attempt.pushback {
            Pushback::None => return Some(self.backoff(attempt.backoffs, rng)),
            Pushback::Never => return None,
            Pushback::Exactly(asked) | Pushback::AtLeast(asked) if asked > MAX_PUSHBACK => {
                return None;
            }
            Pushback::Exactly(asked) => asked,
            // All who were turned away at that moment were told the same: they come back apart.
            Pushback::AtLeast(asked) => asked + self.backoff(attempt.backoffs, rng),
        };
        Some(pause)
    }

    /// Doubled from retry to retry up to the longest, of which between half and all is waited, so
    /// that requests that failed together do not come back together.
    fn backoff(&self, backoffs: u32, rng: &mut fastrand::Rng) -> Duration {
        let doubled = self.backoff.saturating_mul(1 << backoffs.min(16));
        let longest = self.max_backoff.max(self.backoff);
        doubled.min(longest).mul_f64(0.5 + 0.5 * rng.f64())
    }
}

impl RetryMethods {
    fn allow(&self, request: Request<'_>) -> bool {
        match self {
            Self::Idempotent => request.keyed || request.method.is_idempotent(),
            Self::All => true,
            Self::Only(methods) => methods.contains(request.method),
        }
    }
}

/// Bound on the retries of one Service in this proxy, shared by all workers (Gateway API GEP-3388,
/// after Finagle's `RetryBudget`). Lock-free.
///
/// In any window, retries are at most `ratio` times the requests, or `min_per_second` times its
/// length where that is more. And they are spread: a tenth of the window gets at most twice what its
/// own requests, or those of an average tenth, would allow. What was saved up before everything
/// failed is not spent in the first moment, when it would multiply the load of servers that may be
/// failing for having too much.
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

    /// Retries that the window has left. There may be none for a moment although some are left, since
    /// they are spread.
    #[must_use]
    pub fn left(&self, now: Instant) -> u64 {
        let counts = self.window.sum(nanos_since(self.epoch, now), self.policy.window);
        // A share of a count of 20 bits, or a policy's number: small enough, and a part is none.
        (self.in_all(counts) as u64).saturating_sub(counts.marked)
    }

    /// Retries that a window may have.
    fn in_all(&self, counts: Counts) -> f64 {
        (counts.total as f64 * self.policy.ratio).max(self.reserve())
    }

    fn reserve(&self) -> f64 {
        self.policy.min_per_second * self.policy.window.as_secs_f64()
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
        let newest = self.window.newest(now, self.policy.window);
        let (ratio, parts) = (self.policy.ratio, BUCKETS as f64);
        let (reserve, in_all) = (self.reserve(), self.in_all(counts));
        let rate = (counts.total as f64 / parts).max(newest.total as f64);
        let at_once = (rate * ratio * BURST).max(reserve / parts).max(1.0);
        let granted = counts.marked as f64 <= in_all && newest.marked as f64 <= at_once;
        if !granted {
            self.window.take_back(now, self.policy.window, one);
        }
        granted
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
