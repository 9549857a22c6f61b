//! Wire policies to the balancer's vocabulary, with the defaults that the `.proto` documents.

use std::time::Duration;

use remora_proto::v1 as pb;

use super::wire::{WireError, duration, ratio};
use crate::balance::policy::{
    Affinity, Algorithm, BalancerPolicy, BreakerPolicy, BudgetPolicy, Bulkheads, HashOn, Policy,
    Prefer, RetryMethods, RetryPolicy, TimeoutPolicy, Topology,
};

/// Kubernetes' default for `sessionAffinity: ClientIP`.
const AFFINITY_TIMEOUT: Duration = Duration::from_secs(10_800);

pub(super) fn policy(service: &pb::Service) -> Result<Policy, WireError> {
    Ok(Policy {
        balancer: service.balancer.as_ref().map(balancer).transpose()?.unwrap_or_default(),
        affinity: service.affinity.as_ref().map(affinity).transpose()?.flatten(),
        breaker: service.breaker.as_ref().map(breaker).transpose()?,
        retry: service.retry.as_ref().map(retry).transpose()?,
        timeouts: service.timeouts.as_ref().map(timeouts).transpose()?.unwrap_or_default(),
        bulkheads: service.bulkheads.as_ref().map(bulkheads).transpose()?.unwrap_or_default(),
        topology: service.topology.as_ref().map(topology).unwrap_or_default(),
    })
}

fn topology(wire: &pb::Topology) -> Topology {
    use pb::topology::Prefer as Wire;
    // A word that this version does not know means: any.
    let prefer = match Wire::try_from(wire.prefer).unwrap_or_default() {
        Wire::Any => Prefer::Any,
        Wire::SameZone => Prefer::SameZone,
        Wire::SameNode => Prefer::SameNode,
    };
    Topology { prefer, node: wire.node.as_str().into(), zone: wire.zone.as_str().into() }
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
        Wire::RingHash => Algorithm::RingHash,
    };
    Ok(BalancerPolicy {
        algorithm,
        hash_on: policy.hash_on.as_ref().map(hash_on).transpose()?.unwrap_or_default(),
        slow_start: span("balancer.slow_start", &policy.slow_start, default.slow_start)?,
        default_rtt: span("balancer.default_rtt", &policy.default_rtt, default.default_rtt)?,
        decay: span("balancer.decay", &policy.decay, default.decay)?,
        failure_penalty: span(
            "balancer.failure_penalty",
            &policy.failure_penalty,
            default.failure_penalty,
        )?,
    })
}

fn hash_on(wire: &pb::HashOn) -> Result<HashOn, WireError> {
    use pb::hash_on::On;
    Ok(match &wire.on {
        Some(On::Header(name)) => HashOn::Header(name.parse().map_err(|_| {
            WireError::new("balancer.hash_on.header", format!("{name:?} is no header's name"))
        })?),
        Some(On::Cookie(name)) => HashOn::Cookie(cookie("balancer.hash_on.cookie", name)?),
        // Absent too where it is something that this version does not know.
        Some(On::ClientAddress(_)) | None => HashOn::ClientAddress,
    })
}

/// `None` where it is something that this version does not know.
pub(crate) fn affinity(wire: &pb::SessionAffinity) -> Result<Option<Affinity>, WireError> {
    use pb::session_affinity::By;
    Ok(match &wire.by {
        Some(By::Cookie(by)) => Some(Affinity::Cookie {
            name: cookie("affinity.cookie.name", &by.name)?,
            timeout: duration("affinity.cookie.timeout", by.timeout.as_ref())?,
        }),
        Some(By::ClientAddress(by)) => Some(Affinity::ClientAddress {
            timeout: span("affinity.client_address.timeout", &by.timeout, AFFINITY_TIMEOUT)?,
        }),
        Some(By::Header(by)) => Some(Affinity::Header {
            name: by.name.parse().map_err(|_| {
                WireError::new("affinity.header", format!("{:?} is no header's name", by.name))
            })?,
        }),
        None => None,
    })
}

/// A cookie's name is a token (RFC 6265 §4.1.1), as a method is.
fn cookie(field: &'static str, name: &str) -> Result<Box<str>, WireError> {
    match http::Method::from_bytes(name.as_bytes()) {
        Ok(_) => Ok(name.into()),
        Err(_) => Err(WireError::new(field, format!("{name:?} is no cookie's name"))),
    }
}

fn bulkheads(wire: &pb::Bulkheads) -> Result<Bulkheads, WireError> {
    let timeout = Bulkheads::default().pending_timeout;
    Ok(Bulkheads {
        max_connections: wire.max_connections,
        max_in_flight: wire.max_in_flight,
        max_pending: wire.max_pending,
        pending_timeout: span("bulkheads.pending_timeout", &wire.pending_timeout, timeout)?,
    })
}

/// A duration that has a default.
fn span(
    field: &'static str,
    value: &Option<prost_types::Duration>,
    default: Duration,
) -> Result<Duration, WireError> {
    Ok(duration(field, value.as_ref())?.unwrap_or(default))
}

fn breaker(policy: &pb::BreakerPolicy) -> Result<BreakerPolicy, WireError> {
    let default = BreakerPolicy::default();
    let min_penalty = span("breaker.min_penalty", &policy.min_penalty, default.min_penalty)?;
    let max_penalty = span("breaker.max_penalty", &policy.max_penalty, default.max_penalty)?;
    Ok(BreakerPolicy {
        consecutive_failures: policy.consecutive_failures,
        min_penalty,
        max_penalty: max_penalty.max(min_penalty),
        jitter_ratio: ratio("breaker.jitter_ratio", policy.jitter_ratio)?,
        success_rate_threshold: ratio(
            "breaker.success_rate_threshold",
            policy.success_rate_threshold,
        )?,
        success_rate_window: span(
            "breaker.success_rate_window",
            &policy.success_rate_window,
            default.success_rate_window,
        )?,
        success_rate_min_requests: policy.success_rate_min_requests,
    })
}

pub(crate) fn retry(policy: &pb::RetryPolicy) -> Result<RetryPolicy, WireError> {
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
    let default = RetryPolicy::default();
    let backoff = span("retry.backoff", &policy.backoff, default.backoff)?;
    let max_backoff = span("retry.max_backoff", &policy.max_backoff, default.max_backoff)?;
    Ok(RetryPolicy {
        http,
        grpc: policy.grpc.clone(),
        unanswered: policy.unanswered,
        limit: policy.limit,
        per_try_timeout: duration("retry.per_try_timeout", policy.per_try_timeout.as_ref())?,
        methods: methods(&policy.methods)?,
        backoff,
        max_backoff: max_backoff.max(backoff),
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

pub(crate) fn method(field: &'static str, name: &str) -> Result<http::Method, WireError> {
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
        window: span("retry.budget.window", &policy.window, BudgetPolicy::default().window)?,
    })
}

pub(crate) fn timeouts(policy: &pb::TimeoutPolicy) -> Result<TimeoutPolicy, WireError> {
    Ok(TimeoutPolicy {
        request: duration("timeouts.request", policy.request.as_ref())?,
        response: duration("timeouts.response", policy.response.as_ref())?,
        idle: duration("timeouts.idle", policy.idle.as_ref())?,
        backend_request: duration("timeouts.backend_request", policy.backend_request.as_ref())?,
        connect: span("timeouts.connect", &policy.connect, TimeoutPolicy::default().connect)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

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
    fn what_is_told_is_what_holds() {
        use pb::{hash_on::On, session_affinity::By};
        let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
        let sent = pb::Service {
            balancer: Some(pb::BalancerPolicy {
                algorithm: pb::balancer_policy::Algorithm::RingHash.into(),
                hash_on: Some(pb::HashOn { on: Some(On::Header("X-User".to_owned())) }),
                slow_start: Some(seconds(30)),
                ..Default::default()
            }),
            affinity: Some(pb::SessionAffinity {
                by: Some(By::Cookie(pb::AffinityCookie { name: "a".to_owned(), timeout: None })),
            }),
            retry: Some(pb::RetryPolicy {
                backoff: Some(seconds(2)),
                max_backoff: Some(seconds(1)),
                ..Default::default()
            }),
            bulkheads: Some(pb::Bulkheads { max_in_flight: Some(7), ..Default::default() }),
            ..Default::default()
        };
        let policy = policy(&sent).unwrap();
        assert_eq!(policy.balancer.algorithm, Algorithm::RingHash);
        assert_eq!(policy.balancer.hash_on, HashOn::Header("x-user".parse().unwrap()));
        assert_eq!(policy.balancer.slow_start, Duration::from_secs(30));
        let affinity = Affinity::Cookie { name: "a".into(), timeout: None };
        assert_eq!(policy.affinity, Some(affinity));
        let bulkheads = Bulkheads { max_in_flight: Some(7), ..Bulkheads::default() };
        assert_eq!(policy.bulkheads, bulkheads);
        let retry = policy.retry.unwrap();
        assert_eq!((retry.backoff, retry.max_backoff), (2 * SECOND, 2 * SECOND));
        assert_eq!(retry.budget, BudgetPolicy::default());
    }

    #[test]
    fn a_choice_that_this_version_does_not_know_is_none() {
        let later = pb::SessionAffinity { by: None };
        assert_eq!(affinity(&later), Ok(None));
        assert_eq!(hash_on(&pb::HashOn { on: None }), Ok(HashOn::ClientAddress));
        let by = pb::session_affinity::By::ClientAddress(pb::AffinityAddress::default());
        let timeout = AFFINITY_TIMEOUT;
        let found = affinity(&pb::SessionAffinity { by: Some(by) });
        assert_eq!(found, Ok(Some(Affinity::ClientAddress { timeout })));
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
        for name in ["", "a b", "a=b", "ä"] {
            let on = Some(pb::hash_on::On::Header(name.to_owned()));
            let bad = hash_on(&pb::HashOn { on }).unwrap_err();
            assert_eq!(bad.field, "balancer.hash_on.header", "{name}");
            let on = Some(pb::hash_on::On::Cookie(name.to_owned()));
            let bad = hash_on(&pb::HashOn { on }).unwrap_err();
            assert_eq!(bad.field, "balancer.hash_on.cookie", "{name}");
        }
    }
}
