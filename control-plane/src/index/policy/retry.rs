//! What is sent again although it may have reached an application.

use std::{ops::RangeInclusive, time::Duration};

use remora_core::settings::{InvalidAnnotation, parse_duration, parse_ratio};

use super::{Annotations, Warnings, read, values, warning};

const HTTP: &str = "retry.remora.io/http";
const GRPC: &str = "retry.remora.io/grpc";
const LIMIT: &str = "retry.remora.io/limit";
const TIMEOUT: &str = "retry.remora.io/timeout";
const METHODS: &str = "retry.remora.io/methods";
const BACKOFF: &str = "retry.remora.io/backoff";
const MAX_BACKOFF: &str = "retry.remora.io/max-backoff";
const BUDGET_RATIO: &str = "retry.remora.io/budget-ratio";
const BUDGET_MIN: &str = "retry.remora.io/budget-min-per-second";
const BUDGET_WINDOW: &str = "retry.remora.io/budget-window";

pub(super) const KEYS: [&str; 10] = [
    HTTP,
    GRPC,
    LIMIT,
    TIMEOUT,
    METHODS,
    BACKOFF,
    MAX_BACKOFF,
    BUDGET_RATIO,
    BUDGET_MIN,
    BUDGET_WINDOW,
];

/// Most sends beyond the first that can be asked for, and how many there are unasked.
pub(in crate::index) const MAX_RETRIES: u32 = 10;
const DEFAULT_LIMIT: u32 = 1;
/// The first and the longest pause where nothing else is asked for.
const BACKOFFS: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(250));
/// Most retries per second that can always be allowed.
const MAX_PER_SECOND: f64 = 1e6;

/// What is sent again although it may have reached an application.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// HTTP statuses.
    pub http: Vec<RangeInclusive<u16>>,
    /// gRPC codes.
    pub grpc: Vec<u32>,
    /// Sends beyond the first.
    pub limit: u32,
    /// Bound on one attempt.
    pub per_try_timeout: Option<Duration>,
    /// Methods; empty: the idempotent ones; `*`: all.
    pub methods: Vec<String>,
    /// Pause before the first retry.
    pub backoff: Duration,
    /// Longest pause.
    pub max_backoff: Duration,
    /// Bound on the share of retries.
    pub budget: Budget,
    /// Attempts without an answer are retried too, whatever the statuses are.
    pub unanswered: bool,
}

/// Bound on the share of retries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Retries per request.
    pub ratio: f64,
    /// Retries per second that are always allowed.
    pub min_per_second: f64,
    /// Window over which requests count.
    pub window: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { ratio: 0.2, min_per_second: 10.0, window: Duration::from_secs(10) }
    }
}

impl Default for Retry {
    /// One more send, of nothing.
    fn default() -> Self {
        Self {
            http: Vec::new(),
            grpc: Vec::new(),
            limit: DEFAULT_LIMIT,
            per_try_timeout: None,
            methods: Vec::new(),
            backoff: BACKOFFS.0,
            max_backoff: BACKOFFS.1,
            budget: Budget::default(),
            unanswered: false,
        }
    }
}

/// `None` where nothing is to be sent again and no attempt has a bound of its own.
pub(super) fn parse(
    map: &Annotations,
    warn: &mut Warnings,
) -> Result<Option<Retry>, InvalidAnnotation> {
    let retry = read_all(map)?;
    if retry.http.is_empty() && retry.grpc.is_empty() {
        retries_of_nothing(map, warn);
    } else if retry.budget.ratio <= 0.0 && retry.budget.min_per_second <= 0.0 {
        let problem = format!("0 together with {BUDGET_MIN}: 0 allows no retry at all; raise one");
        warn.push(warning(BUDGET_RATIO, problem));
    }
    let asked = !retry.http.is_empty() || !retry.grpc.is_empty() || retry.per_try_timeout.is_some();
    Ok(asked.then_some(retry))
}

/// All that the annotations say of retries, be there something to retry or not.
pub(super) fn read_all(map: &Annotations) -> Result<Retry, InvalidAnnotation> {
    let backoff = read(map, BACKOFF, parse_duration)?.unwrap_or(BACKOFFS.0);
    let max_backoff = read(map, MAX_BACKOFF, parse_duration)?;
    let retry = Retry {
        http: read(map, HTTP, statuses)?.unwrap_or_default(),
        grpc: read(map, GRPC, codes)?.unwrap_or_default(),
        limit: read(map, LIMIT, limit)?.unwrap_or(DEFAULT_LIMIT),
        per_try_timeout: read(map, TIMEOUT, values::positive)?,
        methods: read(map, METHODS, methods)?.unwrap_or_default(),
        backoff,
        // A longer first pause alone is no contradiction: the default bound gives way.
        max_backoff: max_backoff.unwrap_or(BACKOFFS.1.max(backoff)),
        budget: budget(map)?,
        unanswered: false,
    };
    if retry.max_backoff < retry.backoff {
        let problem = format!(
            "{:?} is shorter than the first pause of {:?}; raise it or lower {BACKOFF}",
            retry.max_backoff, retry.backoff,
        );
        return Err(warning(MAX_BACKOFF, problem));
    }
    Ok(retry)
}

fn budget(map: &Annotations) -> Result<Budget, InvalidAnnotation> {
    let default = Budget::default();
    Ok(Budget {
        ratio: read(map, BUDGET_RATIO, parse_ratio)?.unwrap_or(default.ratio),
        min_per_second: read(map, BUDGET_MIN, per_second)?.unwrap_or(default.min_per_second),
        window: read(map, BUDGET_WINDOW, values::between(1..=60))?.unwrap_or(default.window),
    })
}

/// How to retry, where nothing says what.
fn retries_of_nothing(map: &Annotations, warn: &mut Warnings) {
    if map.contains_key(HTTP) || map.contains_key(GRPC) {
        return;
    }
    for key in KEYS.into_iter().filter(|key| map.contains_key(*key)) {
        let effect = match key {
            TIMEOUT => "bounds an attempt but repeats none",
            _ => "has no effect",
        };
        let problem = format!("{effect} without {HTTP} or {GRPC}; add for example {HTTP}: \"504\"");
        warn.push(warning(key, problem));
    }
}

fn limit(s: &str) -> Result<u32, String> {
    s.parse()
        .ok()
        .filter(|n| *n <= MAX_RETRIES)
        .ok_or_else(|| format!("{s:?}: use a whole number from 0 to {MAX_RETRIES}"))
}

fn per_second(s: &str) -> Result<f64, String> {
    s.parse()
        .ok()
        .filter(|n| (0.0..=MAX_PER_SECOND).contains(n))
        .ok_or_else(|| format!("{s:?}: use a number from 0 to {MAX_PER_SECOND}"))
}

fn statuses(s: &str) -> Result<Vec<RangeInclusive<u16>>, String> {
    let status = |text: &str| text.parse::<u16>().ok().filter(|n| (100..=599).contains(n));
    let range = |part: &str| match part {
        "5xx" => Some(500..=599),
        "gateway-error" => Some(502..=504),
        _ => match part.split_once('-') {
            Some((from, to)) => {
                Some(status(from.trim())?..=status(to.trim())?).filter(|range| !range.is_empty())
            }
            None => status(part).map(|n| n..=n),
        },
    };
    values::list(s)
        .map(|part| {
            range(part).ok_or_else(|| {
                format!(
                    "{part:?}: use statuses and ranges, as in 503,500-504, 5xx or gateway-error"
                )
            })
        })
        .collect()
}

/// Names of the codes, by number.
const CODES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid-argument",
    "deadline-exceeded",
    "not-found",
    "already-exists",
    "permission-denied",
    "resource-exhausted",
    "failed-precondition",
    "aborted",
    "out-of-range",
    "unimplemented",
    "internal",
    "unavailable",
    "data-loss",
    "unauthenticated",
];

fn codes(s: &str) -> Result<Vec<u32>, String> {
    values::list(s).map(code).collect()
}

/// A gRPC status code of a failure, by name or number.
pub(super) fn code(s: &str) -> Result<u32, String> {
    let named = CODES.iter().position(|code| *code == s).and_then(|n| u32::try_from(n).ok());
    named.or_else(|| s.parse().ok()).filter(|code| (1..=16).contains(code)).ok_or_else(|| {
        format!("{s:?}: use codes such as unavailable, resource-exhausted or numbers from 1 to 16")
    })
}

fn methods(s: &str) -> Result<Vec<String>, String> {
    values::list(s)
        .map(|part| {
            let ok = part == "*" || part.bytes().all(|b| b.is_ascii_uppercase() || b == b'-');
            ok.then(|| part.to_owned())
                .ok_or_else(|| format!("{part:?}: use methods in capitals, as in GET,POST, or *"))
        })
        .collect()
}
