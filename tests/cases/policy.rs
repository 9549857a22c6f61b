//! From annotations to what the proxy does: through the index, the message and back, without a network.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1 as core;
use remora_control_plane::{
    discovery::wire::{self, Place},
    index::Index,
    source::{self, Event, Object},
};
use remora_proxy::{
    balance::policy::{
        Affinity, Algorithm, BalancerPolicy, BreakerPolicy, BudgetPolicy, Bulkheads, HashOn,
        Policy, RetryMethods, RetryPolicy, TimeoutPolicy,
    },
    discovery::ServiceState,
};
use serde_json::{Value, json};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// What a proxy makes of a Service with these annotations and fields. Nothing about them is wrong.
fn policy(annotations: &[(&str, &str)], fields: &Value) -> Policy {
    let annotations: BTreeMap<&str, &str> = annotations.iter().copied().collect();
    let mut object = json!({"metadata": {"name": "orders", "namespace": "shop",
        "annotations": annotations}, "spec": {"clusterIP": "10.96.0.5", "ports": [{"port": 80}]}});
    let spec = object["spec"].as_object_mut().expect("an object");
    spec.extend(fields.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
    let object: core::Service = serde_json::from_value(object).expect("a Service");
    let mut index = Index::new("cluster.local", "cluster.local");
    let service = Arc::new(source::Service::from(&object));
    let applied = index.apply([Event::Apply(Object::Service(service))]);
    assert!(applied.warnings.is_empty(), "{:?}", applied.warnings);
    let snapshot = index.snapshots().next().expect("one port");
    let now = tokio::time::Instant::now().into_std();
    let (state, bad) =
        ServiceState::from_snapshot(None, &wire::service(snapshot, &Place::default()), 1, now);
    assert!(bad.is_empty(), "{bad:?}");
    Policy::clone(&state.policy)
}

/// What a Service without annotations has.
fn plain() -> Policy {
    Policy { breaker: Some(BreakerPolicy::default()), ..Policy::default() }
}

#[test]
fn a_service_that_says_nothing_has_the_proxys_defaults() {
    assert_eq!(policy(&[], &json!({})), plain());
}

/// Every annotation but those of a ring.
const ALL: [(&str, &str); 34] = [
    ("balancer.remora.io/algorithm", "least-request"),
    ("balancer.remora.io/slow-start", "30s"),
    ("balancer.remora.io/default-rtt", "5ms"),
    ("balancer.remora.io/decay", "7s"),
    ("balancer.remora.io/failure-penalty", "0s"),
    ("balancer.remora.io/session-affinity", "cookie"),
    ("balancer.remora.io/session-affinity-timeout", "1h"),
    ("balancer.remora.io/session-affinity-cookie-name", "cart"),
    ("balancer.remora.io/max-connections", "10"),
    ("balancer.remora.io/max-in-flight", "100"),
    ("balancer.remora.io/max-pending", "20"),
    ("balancer.remora.io/pending-timeout", "500ms"),
    ("balancer.remora.io/failure-accrual", "consecutive"),
    ("balancer.remora.io/failure-accrual-consecutive-max-failures", "3"),
    ("balancer.remora.io/failure-accrual-consecutive-min-penalty", "2s"),
    ("balancer.remora.io/failure-accrual-consecutive-max-penalty", "20s"),
    ("balancer.remora.io/failure-accrual-consecutive-jitter-ratio", "0.25"),
    ("balancer.remora.io/success-rate-threshold", "0.9"),
    ("balancer.remora.io/success-rate-window", "6s"),
    ("balancer.remora.io/success-rate-min-requests", "50"),
    ("retry.remora.io/http", "503,gateway-error"),
    ("retry.remora.io/grpc", "unavailable"),
    ("retry.remora.io/limit", "3"),
    ("retry.remora.io/timeout", "4s"),
    ("retry.remora.io/methods", "*"),
    ("retry.remora.io/backoff", "10ms"),
    ("retry.remora.io/max-backoff", "2s"),
    ("retry.remora.io/budget-ratio", "0.5"),
    ("retry.remora.io/budget-min-per-second", "0.5"),
    ("retry.remora.io/budget-window", "30s"),
    ("timeout.remora.io/request", "9s"),
    ("timeout.remora.io/response", "8s"),
    ("timeout.remora.io/idle", "1m"),
    ("timeout.remora.io/connect", "3s"),
];

/// What they mean.
fn all() -> Policy {
    Policy {
        balancer: BalancerPolicy {
            algorithm: Algorithm::LeastRequest,
            hash_on: HashOn::ClientAddress,
            slow_start: 30 * SECOND,
            default_rtt: 5 * MS,
            decay: 7 * SECOND,
            failure_penalty: Duration::ZERO,
        },
        affinity: Some(Affinity::Cookie { name: "cart".into(), timeout: Some(3600 * SECOND) }),
        breaker: Some(BreakerPolicy {
            consecutive_failures: 3,
            min_penalty: 2 * SECOND,
            max_penalty: 20 * SECOND,
            jitter_ratio: 0.25,
            success_rate_threshold: 0.9,
            success_rate_window: 6 * SECOND,
            success_rate_min_requests: 50,
        }),
        retry: Some(RetryPolicy {
            http: vec![503..=503, 502..=504],
            grpc: vec![14],
            unanswered: false,
            limit: 3,
            per_try_timeout: Some(4 * SECOND),
            methods: RetryMethods::All,
            backoff: 10 * MS,
            max_backoff: 2 * SECOND,
            budget: BudgetPolicy { ratio: 0.5, min_per_second: 0.5, window: 30 * SECOND },
        }),
        timeouts: TimeoutPolicy {
            request: Some(9 * SECOND),
            response: Some(8 * SECOND),
            idle: Some(60 * SECOND),
            backend_request: None,
            connect: 3 * SECOND,
        },
        bulkheads: Bulkheads {
            max_connections: Some(10),
            max_in_flight: Some(100),
            max_pending: 20,
            pending_timeout: 500 * MS,
        },
        ..Policy::default()
    }
}

#[test]
fn every_annotation_arrives_at_the_proxy() {
    assert_eq!(policy(&ALL, &json!({})), all());
}

#[test]
fn each_algorithm_and_each_thing_to_hash_arrives() {
    let with = |algorithm: &str, hash_on: Option<&str>| {
        let mut annotations = vec![("balancer.remora.io/algorithm", algorithm)];
        annotations.extend(hash_on.map(|on| ("balancer.remora.io/hash-on", on)));
        policy(&annotations, &json!({})).balancer
    };
    for (word, algorithm) in [
        ("peak-ewma", Algorithm::PeakEwma),
        ("least-request", Algorithm::LeastRequest),
        ("round-robin", Algorithm::RoundRobin),
        ("random", Algorithm::Random),
    ] {
        assert_eq!(with(word, None).algorithm, algorithm);
    }
    for (word, hash_on) in [
        ("header:X-User", HashOn::Header("x-user".parse().expect("a name"))),
        ("cookie:Cart", HashOn::Cookie("Cart".into())),
        ("client-address", HashOn::ClientAddress),
    ] {
        let balancer = with("ring-hash", Some(word));
        assert_eq!((balancer.algorithm, balancer.hash_on), (Algorithm::RingHash, hash_on));
    }
}

#[test]
fn kubernetes_own_session_affinity_arrives() {
    let affinity = |fields| policy(&[], &fields).affinity;
    let address = |seconds: u32| Some(Affinity::ClientAddress { timeout: seconds * SECOND });
    assert_eq!(affinity(json!({"sessionAffinity": "None"})), None);
    assert_eq!(affinity(json!({"sessionAffinity": "ClientIP"})), address(10_800));
    let config = json!({"clientIP": {"timeoutSeconds": 600}});
    let fields = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config});
    assert_eq!(affinity(fields.clone()), address(600));
    let none = [("balancer.remora.io/session-affinity", "none")];
    assert_eq!(policy(&none, &fields).affinity, None, "the annotation wins");
}

#[test]
fn failure_accrual_arrives_as_one_rule_or_none() {
    let breaker =
        |word| policy(&[("balancer.remora.io/failure-accrual", word)], &json!({})).breaker;
    assert_eq!(breaker("consecutive"), plain().breaker);
    assert_eq!(breaker("none"), None);
    let rate = BreakerPolicy {
        consecutive_failures: 0,
        success_rate_threshold: 0.8,
        ..BreakerPolicy::default()
    };
    assert_eq!(breaker("success-rate"), Some(rate));
}
