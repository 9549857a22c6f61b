//! What a Service's annotations ask for.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use remora_core::{
    names::annotations::{BALANCER_PREFIX, RETRY_PREFIX, TIMEOUT_PREFIX},
    settings::{self, InvalidAnnotation, parse_duration, parse_ratio},
};

/// Annotations that could not be used, and what follows.
pub(crate) type Warnings = Vec<InvalidAnnotation>;

/// A bad value that leaves what it was to change as it was.
pub(super) fn left(mut error: InvalidAnnotation) -> InvalidAnnotation {
    error.problem.push_str("; what held before, or else the default, stays in force");
    error
}

/// All policy of one Service.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Policy {
    /// How endpoints are chosen.
    pub balancer: Balancer,
    /// When they are ejected.
    pub breaker: Breaker,
    /// What is sent again; `None`: only what provably never ran.
    pub retry: Option<Retry>,
    /// Time-outs; absent is no bound.
    pub timeouts: Timeouts,
}

/// How an endpoint is chosen; absent values are the proxy's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Balancer {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Round-trip time assumed of a new endpoint.
    pub default_rtt: Option<Duration>,
    /// Time constant of the moving average.
    pub decay: Option<Duration>,
    /// Latency that a failure counts as, at least.
    pub failure_penalty: Option<Duration>,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// Peak EWMA over power of two choices.
    #[default]
    PeakEwma,
    /// Fewest requests in flight.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Uniformly at random.
    Random,
}

/// When an endpoint is taken out, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct Breaker {
    /// `failure-accrual: none` switches all of it off.
    pub enabled: bool,
    /// Failures in a row; 0 switches this rule off.
    pub consecutive_failures: u32,
    /// First penalty.
    pub min_penalty: Duration,
    /// Longest penalty.
    pub max_penalty: Duration,
    /// Share by which a penalty is lengthened at random.
    pub jitter_ratio: f64,
    /// Share of successes below which it opens; 0 switches this rule off.
    pub success_rate_threshold: f64,
    /// Window of the success rate.
    pub success_rate_window: Duration,
    /// Requests below which the success rate says nothing.
    pub success_rate_min_requests: u32,
}

/// What is sent again although it may have reached an application.
#[derive(Debug, Clone, PartialEq, Default)]
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
}

/// Time-outs; absent is no bound.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// Head of the request to end of the response.
    pub request: Option<Duration>,
    /// End of the request to head of the response.
    pub response: Option<Duration>,
    /// Longest pause in a body.
    pub idle: Option<Duration>,
    /// Establishing a connection.
    pub connect: Option<Duration>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            enabled: true,
            consecutive_failures: 7,
            min_penalty: Duration::from_secs(1),
            max_penalty: Duration::from_secs(60),
            jitter_ratio: 0.5,
            success_rate_threshold: 0.0,
            success_rate_window: Duration::from_secs(10),
            success_rate_min_requests: 5,
        }
    }
}

/// Most sends beyond the first that can be asked for.
const MAX_RETRIES: u32 = 10;

/// Every annotation of a Service that this reads.
pub const KNOWN: [&str; 21] = [
    "balancer.remora.io/algorithm",
    "balancer.remora.io/default-rtt",
    "balancer.remora.io/decay",
    "balancer.remora.io/failure-penalty",
    "balancer.remora.io/failure-accrual",
    "balancer.remora.io/failure-accrual-consecutive-max-failures",
    "balancer.remora.io/failure-accrual-consecutive-min-penalty",
    "balancer.remora.io/failure-accrual-consecutive-max-penalty",
    "balancer.remora.io/failure-accrual-consecutive-jitter-ratio",
    "balancer.remora.io/success-rate-threshold",
    "balancer.remora.io/success-rate-window",
    "balancer.remora.io/success-rate-min-requests",
    "retry.remora.io/http",
    "retry.remora.io/grpc",
    "retry.remora.io/limit",
    "retry.remora.io/timeout",
    "retry.remora.io/methods",
    "timeout.remora.io/request",
    "timeout.remora.io/response",
    "timeout.remora.io/idle",
    "timeout.remora.io/connect",
];

impl Policy {
    /// Reads a Service's annotations. Where one of a group (balancer, breaker, retry, time-outs)
    /// is bad, the group stays as it was, or at its defaults.
    pub(crate) fn parse(map: &Annotations, old: Option<&Self>, warn: &mut Warnings) -> Self {
        unknown_keys(map, warn);
        retries_of_nothing(map, warn);
        let old = old.cloned().unwrap_or_default();
        Self {
            balancer: balancer(map).unwrap_or_else(|e| keep(e, old.balancer, warn)),
            breaker: breaker(map).unwrap_or_else(|e| keep(e, old.breaker, warn)),
            retry: retry(map).unwrap_or_else(|e| keep(e, old.retry, warn)),
            timeouts: timeouts(map).unwrap_or_else(|e| keep(e, old.timeouts, warn)),
        }
    }
}

/// Annotations of ours, by key.
pub(crate) type Annotations = BTreeMap<String, String>;

fn keep<T>(error: InvalidAnnotation, old: T, warn: &mut Warnings) -> T {
    warn.push(left(error));
    old
}

fn unknown_keys(map: &Annotations, warn: &mut Warnings) {
    for key in map.keys() {
        let ours = [BALANCER_PREFIX, RETRY_PREFIX, TIMEOUT_PREFIX];
        let Some(prefix) = ours.into_iter().find(|prefix| key.starts_with(prefix)) else {
            continue;
        };
        if !KNOWN.contains(&key.as_str()) {
            let names: Vec<_> = KNOWN.iter().filter_map(|k| k.strip_prefix(prefix)).collect();
            let problem = format!("unknown, ignored; known under {prefix}: {}", names.join(", "));
            warn.push(InvalidAnnotation { key: key.clone(), problem });
        }
    }
}

/// How to retry, where nothing says what.
fn retries_of_nothing(map: &Annotations, warn: &mut Warnings) {
    let key = |name: &str| format!("{RETRY_PREFIX}{name}");
    let (http, grpc) = (key("http"), key("grpc"));
    if map.contains_key(&http) || map.contains_key(&grpc) {
        return;
    }
    for name in ["limit", "methods", "timeout"] {
        let effect = match name {
            "timeout" => "bounds an attempt but repeats none",
            _ => "has no effect",
        };
        let key = key(name);
        if map.contains_key(&key) {
            let problem =
                format!("{effect} without {http} or {grpc}; add for example {http}: \"504\"");
            warn.push(InvalidAnnotation { key, problem });
        }
    }
}

fn balancer(map: &Annotations) -> Result<Balancer, InvalidAnnotation> {
    Ok(Balancer {
        algorithm: read(map, "balancer", "algorithm", parse_algorithm)?.unwrap_or_default(),
        default_rtt: read(map, "balancer", "default-rtt", parse_positive)?,
        decay: read(map, "balancer", "decay", parse_positive)?,
        failure_penalty: read(map, "balancer", "failure-penalty", parse_duration)?,
    })
}

fn breaker(map: &Annotations) -> Result<Breaker, InvalidAnnotation> {
    let default = Breaker::default();
    let accrual = |suffix: &str| format!("failure-accrual-consecutive-{suffix}");
    let min_penalty = read(map, "balancer", &accrual("min-penalty"), parse_positive)?;
    let max_penalty = read(map, "balancer", &accrual("max-penalty"), parse_positive)?;
    let min_penalty = min_penalty.unwrap_or(default.min_penalty);
    let breaker = Breaker {
        enabled: read(map, "balancer", "failure-accrual", parse_accrual)?.unwrap_or(true),
        consecutive_failures: read(map, "balancer", &accrual("max-failures"), parse_count)?
            .unwrap_or(default.consecutive_failures),
        min_penalty,
        // A longer first penalty alone is no contradiction: the default bound gives way.
        max_penalty: max_penalty.unwrap_or(default.max_penalty.max(min_penalty)),
        jitter_ratio: read(map, "balancer", &accrual("jitter-ratio"), parse_ratio)?
            .unwrap_or(default.jitter_ratio),
        success_rate_threshold: read(map, "balancer", "success-rate-threshold", parse_ratio)?
            .unwrap_or(default.success_rate_threshold),
        success_rate_window: read(map, "balancer", "success-rate-window", parse_positive)?
            .unwrap_or(default.success_rate_window),
        success_rate_min_requests: read(map, "balancer", "success-rate-min-requests", parse_count)?
            .unwrap_or(default.success_rate_min_requests),
    };
    if breaker.max_penalty < breaker.min_penalty {
        return Err(InvalidAnnotation {
            key: format!("{BALANCER_PREFIX}{}", accrual("max-penalty")),
            problem: format!(
                "{:?} is shorter than the first penalty of {:?}; raise it or lower {}",
                breaker.max_penalty,
                breaker.min_penalty,
                accrual("min-penalty")
            ),
        });
    }
    Ok(breaker)
}

fn retry(map: &Annotations) -> Result<Option<Retry>, InvalidAnnotation> {
    let retry = Retry {
        http: read(map, "retry", "http", parse_statuses)?.unwrap_or_default(),
        grpc: read(map, "retry", "grpc", parse_codes)?.unwrap_or_default(),
        limit: read(map, "retry", "limit", parse_limit)?.unwrap_or(1),
        per_try_timeout: read(map, "retry", "timeout", parse_positive)?,
        methods: read(map, "retry", "methods", parse_methods)?.unwrap_or_default(),
    };
    let asked = !retry.http.is_empty() || !retry.grpc.is_empty() || retry.per_try_timeout.is_some();
    Ok(asked.then_some(retry))
}

fn timeouts(map: &Annotations) -> Result<Timeouts, InvalidAnnotation> {
    Ok(Timeouts {
        request: read(map, "timeout", "request", parse_positive)?,
        response: read(map, "timeout", "response", parse_positive)?,
        idle: read(map, "timeout", "idle", parse_positive)?,
        connect: read(map, "timeout", "connect", parse_positive)?,
    })
}

fn read<T>(
    map: &Annotations,
    group: &str,
    name: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, InvalidAnnotation> {
    settings::read(map, &format!("{group}.remora.io/{name}"), parse)
}

fn parse_positive(s: &str) -> Result<Duration, String> {
    match parse_duration(s)? {
        Duration::ZERO => Err(format!("{s:?} is no time at all; remove the annotation for none")),
        duration => Ok(duration),
    }
}

fn parse_algorithm(s: &str) -> Result<Algorithm, String> {
    match s {
        "peak-ewma" => Ok(Algorithm::PeakEwma),
        "least-request" => Ok(Algorithm::LeastRequest),
        "round-robin" => Ok(Algorithm::RoundRobin),
        "random" => Ok(Algorithm::Random),
        _ => Err(format!("{s:?}: use peak-ewma, least-request, round-robin or random")),
    }
}

fn parse_accrual(s: &str) -> Result<bool, String> {
    match s {
        "consecutive" => Ok(true),
        "none" => Ok(false),
        _ => Err(format!("{s:?}: use consecutive or none")),
    }
}

fn parse_count(s: &str) -> Result<u32, String> {
    s.parse().map_err(|_| format!("{s:?} is no number; use a whole number from 0"))
}

fn parse_limit(s: &str) -> Result<u32, String> {
    s.parse()
        .ok()
        .filter(|n| *n <= MAX_RETRIES)
        .ok_or_else(|| format!("{s:?}: use a whole number from 0 to {MAX_RETRIES}"))
}

fn list(s: &str) -> impl Iterator<Item = &str> {
    s.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn parse_statuses(s: &str) -> Result<Vec<RangeInclusive<u16>>, String> {
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
    list(s)
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

fn parse_codes(s: &str) -> Result<Vec<u32>, String> {
    list(s)
        .map(|part| {
            let named = CODES.iter().position(|code| *code == part).and_then(|n| u32::try_from(n).ok());
            named.or_else(|| part.parse().ok()).filter(|code| (1..=16).contains(code)).ok_or_else(|| {
                format!("{part:?}: use codes such as unavailable, resource-exhausted or numbers from 1 to 16")
            })
        })
        .collect()
}

fn parse_methods(s: &str) -> Result<Vec<String>, String> {
    list(s)
        .map(|part| {
            let ok = part == "*" || part.bytes().all(|b| b.is_ascii_uppercase() || b == b'-');
            ok.then(|| part.to_owned())
                .ok_or_else(|| format!("{part:?}: use methods in capitals, as in GET,POST, or *"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(annotations: &[(&str, &str)]) -> Vec<String> {
        let pairs = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let mut warn = Warnings::new();
        let _ = Policy::parse(&pairs.collect(), None, &mut warn);
        warn.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_unknown_key_is_ignored_and_says_nothing_of_what_held_before() {
        let said = warnings(&[("timeout.remora.io/reqest", "1s")]);
        assert_eq!(
            said,
            ["annotation timeout.remora.io/reqest: unknown, ignored; known under \
              timeout.remora.io/: request, response, idle, connect"]
        );
    }

    #[test]
    fn how_to_retry_without_what_to_retry_is_a_warning() {
        let said = warnings(&[("retry.remora.io/timeout", "1s"), ("retry.remora.io/limit", "2")]);
        assert_eq!(
            said,
            [
                "annotation retry.remora.io/limit: has no effect without retry.remora.io/http or \
                 retry.remora.io/grpc; add for example retry.remora.io/http: \"504\"",
                "annotation retry.remora.io/timeout: bounds an attempt but repeats none without \
                 retry.remora.io/http or retry.remora.io/grpc; add for example \
                 retry.remora.io/http: \"504\"",
            ]
        );
        let both = [("retry.remora.io/timeout", "1s"), ("retry.remora.io/grpc", "unavailable")];
        assert_eq!(warnings(&both), Vec::<String>::new());
    }
}
