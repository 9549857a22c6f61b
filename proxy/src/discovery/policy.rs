//! Wire policies to the balancer's vocabulary, with the defaults that the `.proto` documents.

use remora_proto::v1 as pb;

use super::wire::{WireError, duration, ratio};
use crate::balance::policy::{
    Algorithm, BalancerPolicy, BreakerPolicy, BudgetPolicy, Policy, RetryMethods, RetryPolicy,
    TimeoutPolicy,
};

pub(super) fn policy(service: &pb::Service) -> Result<Policy, WireError> {
    Ok(Policy {
        balancer: service.balancer.as_ref().map(balancer).transpose()?.unwrap_or_default(),
        breaker: service.breaker.as_ref().map(breaker).transpose()?,
        retry: service.retry.as_ref().map(retry).transpose()?,
        timeouts: service.timeouts.as_ref().map(timeouts).transpose()?.unwrap_or_default(),
    })
}

fn balancer(policy: &pb::BalancerPolicy) -> Result<BalancerPolicy, WireError> {
    use pb::balancer_policy::Algorithm as Wire;
    let default = BalancerPolicy::default();
    // A word that this version does not know falls back to the default, as proto3 wants.
    let algorithm = match Wire::try_from(policy.algorithm).unwrap_or_default() {
        Wire::PeakEwma => Algorithm::PeakEwma,
        Wire::LeastRequest => Algorithm::LeastRequest,
        Wire::RoundRobin => Algorithm::RoundRobin,
        Wire::Random => Algorithm::Random,
    };
    let span = |field, value: &Option<_>, default| {
        duration(field, value.as_ref()).map(|d| d.unwrap_or(default))
    };
    Ok(BalancerPolicy {
        algorithm,
        default_rtt: span("balancer.default_rtt", &policy.default_rtt, default.default_rtt)?,
        decay: span("balancer.decay", &policy.decay, default.decay)?,
        failure_penalty: span(
            "balancer.failure_penalty",
            &policy.failure_penalty,
            default.failure_penalty,
        )?,
    })
}

fn breaker(policy: &pb::BreakerPolicy) -> Result<BreakerPolicy, WireError> {
    let default = BreakerPolicy::default();
    let min_penalty = duration("breaker.min_penalty", policy.min_penalty.as_ref())?
        .unwrap_or(default.min_penalty);
    let max_penalty = duration("breaker.max_penalty", policy.max_penalty.as_ref())?
        .unwrap_or(default.max_penalty);
    Ok(BreakerPolicy {
        consecutive_failures: policy.consecutive_failures,
        min_penalty,
        max_penalty: max_penalty.max(min_penalty),
        jitter_ratio: ratio("breaker.jitter_ratio", policy.jitter_ratio)?,
        success_rate_threshold: ratio(
            "breaker.success_rate_threshold",
            policy.success_rate_threshold,
        )?,
        success_rate_window: duration(
            "breaker.success_rate_window",
            policy.success_rate_window.as_ref(),
        )?
        .unwrap_or(default.success_rate_window),
        success_rate_min_requests: policy.success_rate_min_requests,
    })
}

pub(super) fn retry(policy: &pb::RetryPolicy) -> Result<RetryPolicy, WireError> {
    let status = |n: u32| {
        u16::try_from(n)
            .ok()
            .filter(|n| (100..=999).contains(n))
            .ok_or_else(|| WireError::new("retry.http", format!("{n} is no HTTP status")))
    };
    let http = policy
        .http
        .iter()
        .map(|range| Ok(status(range.from)?..=status(range.to)?))
        .collect::<Result<_, WireError>>()?;
    Ok(RetryPolicy {
        http,
        grpc: policy.grpc.clone(),
        limit: policy.limit,
        per_try_timeout: duration("retry.per_try_timeout", policy.per_try_timeout.as_ref())?,
        methods: methods(&policy.methods)?,
        budget: policy.budget.as_ref().map(budget).transpose()?.unwrap_or_default(),
    })
}

fn methods(names: &[String]) -> Result<RetryMethods, WireError> {
    if names.is_empty() {
        return Ok(RetryMethods::Idempotent);
    }
    if names.iter().any(|name| name == "*") {
        return Ok(RetryMethods::All);
    }
    names
        .iter()
        .map(|name| method("retry.methods", name))
        .collect::<Result<_, _>>()
        .map(RetryMethods::Only)
}

pub(super) fn method(field: &'static str, name: &str) -> Result<http::Method, WireError> {
    http::Method::from_bytes(name.as_bytes())
        .map_err(|_| WireError::new(field, format!("{name:?} is no HTTP method")))
}

fn budget(policy: &pb::RetryBudget) -> Result<BudgetPolicy, WireError> {
    let at_least_zero = |field, value: f64| {
        if value.is_finite() && value >= 0.0 {
            return Ok(value);
        }
        Err(WireError::new(field, format!("{value} is not zero or more")))
    };
    Ok(BudgetPolicy {
        ratio: at_least_zero("retry.budget.ratio", policy.ratio)?,
        min_per_second: at_least_zero("retry.budget.min_per_second", policy.min_per_second)?,
        window: duration("retry.budget.window", policy.window.as_ref())?
            .unwrap_or(BudgetPolicy::default().window),
    })
}

pub(super) fn timeouts(policy: &pb::TimeoutPolicy) -> Result<TimeoutPolicy, WireError> {
    Ok(TimeoutPolicy {
        request: duration("timeouts.request", policy.request.as_ref())?,
        response: duration("timeouts.response", policy.response.as_ref())?,
        idle: duration("timeouts.idle", policy.idle.as_ref())?,
        connect: duration("timeouts.connect", policy.connect.as_ref())?
            .unwrap_or(TimeoutPolicy::default().connect),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn absent_fields_are_the_documented_defaults() {
        let policy = policy(&pb::Service::default()).unwrap();
        assert_eq!(policy, Policy::default());
        let sent = pb::Service {
            balancer: Some(pb::BalancerPolicy {
                failure_penalty: Some(prost_types::Duration::default()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let sent = super::policy(&sent).unwrap();
        assert_eq!(sent.balancer.failure_penalty, Duration::ZERO, "present zero is not absent");
        assert_eq!(sent.balancer.decay, Duration::from_secs(10));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let bad = pb::BreakerPolicy { jitter_ratio: f64::NAN, ..Default::default() };
        assert_eq!(breaker(&bad).unwrap_err().field, "breaker.jitter_ratio");
        let bad = pb::RetryPolicy {
            http: vec![pb::StatusRange { from: 5, to: 99 }],
            ..Default::default()
        };
        assert_eq!(retry(&bad).unwrap_err().field, "retry.http");
        let bad = pb::TimeoutPolicy {
            idle: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
            ..Default::default()
        };
        assert_eq!(timeouts(&bad).unwrap_err().field, "timeouts.idle");
    }
}
