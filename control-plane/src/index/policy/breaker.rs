//! When an endpoint is taken out, and for how long.

use std::time::Duration;

use remora_core::settings::{InvalidAnnotation, parse_ratio};

use super::{Annotations, Warnings, no_effect, read, values, warning};

const ACCRUAL: &str = "balancer.remora.io/failure-accrual";
const MAX_FAILURES: &str = "balancer.remora.io/failure-accrual-consecutive-max-failures";
const MIN_PENALTY: &str = "balancer.remora.io/failure-accrual-consecutive-min-penalty";
const MAX_PENALTY: &str = "balancer.remora.io/failure-accrual-consecutive-max-penalty";
const JITTER_RATIO: &str = "balancer.remora.io/failure-accrual-consecutive-jitter-ratio";
const THRESHOLD: &str = "balancer.remora.io/success-rate-threshold";
const WINDOW: &str = "balancer.remora.io/success-rate-window";
const MIN_REQUESTS: &str = "balancer.remora.io/success-rate-min-requests";

pub(super) const KEYS: [&str; 8] = [
    ACCRUAL,
    MAX_FAILURES,
    MIN_PENALTY,
    MAX_PENALTY,
    JITTER_RATIO,
    THRESHOLD,
    WINDOW,
    MIN_REQUESTS,
];

/// Threshold of `failure-accrual: success-rate` where none is given.
const DEFAULT_THRESHOLD: f64 = 0.8;

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accrual {
    Consecutive,
    SuccessRate,
    None,
}

pub(super) fn parse(map: &Annotations, warn: &mut Warnings) -> Result<Breaker, InvalidAnnotation> {
    let default = Breaker::default();
    let accrual = read(map, ACCRUAL, parse_accrual)?.unwrap_or(Accrual::Consecutive);
    let (consecutive, threshold) = match accrual {
        Accrual::SuccessRate => (0, DEFAULT_THRESHOLD),
        Accrual::Consecutive | Accrual::None => {
            (default.consecutive_failures, default.success_rate_threshold)
        }
    };
    let max_failures = read(map, MAX_FAILURES, values::count)?;
    let max_failures = max_failures.filter(|_| accrual != Accrual::SuccessRate);
    let min_penalty = read(map, MIN_PENALTY, values::positive)?.unwrap_or(default.min_penalty);
    let max_penalty = read(map, MAX_PENALTY, values::positive)?;
    let breaker = Breaker {
        enabled: accrual != Accrual::None,
        consecutive_failures: max_failures.unwrap_or(consecutive),
        min_penalty,
        // A longer first penalty alone is no contradiction: the default bound gives way.
        max_penalty: max_penalty.unwrap_or(default.max_penalty.max(min_penalty)),
        jitter_ratio: read(map, JITTER_RATIO, parse_ratio)?.unwrap_or(default.jitter_ratio),
        success_rate_threshold: read(map, THRESHOLD, parse_ratio)?.unwrap_or(threshold),
        success_rate_window: read(map, WINDOW, values::positive)?
            .unwrap_or(default.success_rate_window),
        success_rate_min_requests: read(map, MIN_REQUESTS, values::count)?
            .unwrap_or(default.success_rate_min_requests),
    };
    if breaker.max_penalty < breaker.min_penalty {
        let problem = format!(
            "{:?} is shorter than the first penalty of {:?}; raise it or lower {MIN_PENALTY}",
            breaker.max_penalty, breaker.min_penalty,
        );
        return Err(warning(MAX_PENALTY, problem));
    }
    if accrual == Accrual::SuccessRate && breaker.success_rate_threshold <= 0.0 {
        let problem = format!(
            "0 switches off what {ACCRUAL}: success-rate asks for; use a share above 0, or {ACCRUAL}: none"
        );
        return Err(warning(THRESHOLD, problem));
    }
    idle_settings(map, accrual, &breaker, warn);
    Ok(breaker)
}

/// Settings of rules that are off.
fn idle_settings(map: &Annotations, accrual: Accrual, breaker: &Breaker, warn: &mut Warnings) {
    match accrual {
        Accrual::None => {
            let with =
                format!("with {ACCRUAL}: none; remove this, or use consecutive or success-rate");
            no_effect(map, &KEYS[1..], &with, warn);
        }
        Accrual::SuccessRate => {
            let with = format!(
                "with {ACCRUAL}: success-rate; remove this, or use consecutive with {THRESHOLD} for both rules"
            );
            no_effect(map, &[MAX_FAILURES], &with, warn);
        }
        Accrual::Consecutive if breaker.success_rate_threshold <= 0.0 => {
            let without = format!("without {THRESHOLD} above 0; add that, or remove this");
            no_effect(map, &[WINDOW, MIN_REQUESTS], &without, warn);
        }
        Accrual::Consecutive => {}
    }
}

fn parse_accrual(s: &str) -> Result<Accrual, String> {
    match s {
        "consecutive" => Ok(Accrual::Consecutive),
        "success-rate" => Ok(Accrual::SuccessRate),
        "none" => Ok(Accrual::None),
        _ => Err(format!("{s:?}: use consecutive, success-rate or none")),
    }
}
