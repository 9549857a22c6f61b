//! Answers as gRPC carries them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use remora_core::settings;
use remora_proto::v1::{self as pb, watch_response};

use crate::index::{
    answer::{Answer, Endpoint, Inbound, PodPort, Snapshot},
    policy::{
        affinity::Affinity,
        balancer::{Algorithm, Balancer, HashOn},
        breaker::Breaker,
        bulkheads::Bulkheads,
        retry::Retry,
        timeouts::Timeouts,
    },
    protocol::Protocol,
};
use crate::source::Distribution;

/// Where the one that asks is; empty where that is not known. It does not change while a pod lives.
#[derive(Debug, Default)]
pub struct Place {
    /// Its node.
    pub node: Arc<str>,
    /// Its zone.
    pub zone: Arc<str>,
}

mod routes;

/// A whole answer.
pub(super) fn update(id: u64, version: u64, answer: &Answer, place: &Place) -> pb::WatchResponse {
    let answer = match answer {
        Answer::Service(snapshot) => pb::update::Answer::Service(service(snapshot, place)),
        Answer::Pod(port) => pb::update::Answer::Pod(pod(port)),
        Answer::NotOurs => pb::update::Answer::NotOurs(pb::NotOurs {}),
        Answer::Refused(message) => {
            pb::update::Answer::Refused(pb::Refused { message: message.to_string() })
        }
        Answer::Inbound(policy) => pb::update::Answer::Inbound(inbound(policy)),
    };
    response(watch_response::Kind::Update(pb::Update { id, version, answer: Some(answer) }))
}

/// The difference between two snapshots of the same port that differ in their endpoints only.
pub(super) fn delta(id: u64, version: u64, old: &Snapshot, new: &Snapshot) -> pb::WatchResponse {
    let (mut upsert, mut remove) = (Vec::new(), Vec::new());
    let (mut left, mut right) = (old.endpoints.iter().peekable(), new.endpoints.iter().peekable());
    loop {
        // Both are sorted by address.
        match (left.peek(), right.peek()) {
            (None, None) => break,
            (Some(a), Some(b)) if a.address == b.address => {
                if !std::sync::Arc::ptr_eq(a, b) && a != b {
                    upsert.push(endpoint(b));
                }
                (_, _) = (left.next(), right.next());
            }
            (Some(a), b) if b.is_none_or(|b| a.address < b.address) => {
                remove.push(socket_address(a.address));
                left.next();
            }
            (_, Some(b)) => {
                upsert.push(endpoint(b));
                right.next();
            }
            (Some(_), None) => break,
        }
    }
    let delta = pb::EndpointsDelta { id, version, upsert, remove };
    response(watch_response::Kind::Endpoints(delta))
}

/// The roots.
pub(super) fn trust_bundle(bundle: &pb::TrustBundle) -> pb::WatchResponse {
    response(watch_response::Kind::TrustBundle(bundle.clone()))
}

fn response(kind: watch_response::Kind) -> pb::WatchResponse {
    pb::WatchResponse { kind: Some(kind) }
}

/// A Service's port with its endpoints.
#[must_use]
pub fn service(snapshot: &Snapshot, place: &Place) -> pb::Service {
    let head = &snapshot.head;
    let (http, streams) = match &head.routes {
        Some(routes) => (&*routes.http, &*routes.streams),
        None => Default::default(),
    };
    pb::Service {
        namespace: head.service.namespace.to_string(),
        name: head.service.name.to_string(),
        port: head.port.into(),
        port_name: head.port_name.clone(),
        protocol: protocol(head.protocol).into(),
        balancer: Some(balancer(&head.policy.balancer)),
        breaker: head.policy.breaker.enabled.then(|| breaker(&head.policy.breaker)),
        retry: head.policy.retry.as_ref().map(retry),
        timeouts: Some(timeouts(&head.policy.timeouts)),
        routes: http.iter().map(|one| routes::route(one, &head.policy.timeouts)).collect(),
        endpoints: snapshot.endpoints.iter().map(|e| endpoint(e)).collect(),
        affinity: head.policy.affinity.as_ref().map(affinity),
        bulkheads: Some(bulkheads(&head.policy.bulkheads)),
        topology: topology(head.distribution, place),
        stream_routes: streams.iter().map(routes::stream_route).collect(),
    }
}

fn topology(distribution: Distribution, place: &Place) -> Option<pb::Topology> {
    use pb::topology::Prefer;
    let prefer = match distribution {
        Distribution::Any => return None,
        Distribution::SameZone => Prefer::SameZone,
        Distribution::SameNode => Prefer::SameNode,
    };
    let (node, zone) = (place.node.to_string(), place.zone.to_string());
    Some(pb::Topology { prefer: prefer.into(), node, zone })
}

fn pod(port: &PodPort) -> pb::Pod {
    pb::Pod { endpoint: Some(endpoint(&port.endpoint)), protocol: protocol(port.protocol).into() }
}

fn endpoint(endpoint: &Endpoint) -> pb::Endpoint {
    let pod = endpoint.pod.as_ref();
    pb::Endpoint {
        address: Some(socket_address(endpoint.address)),
        identity: endpoint.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
        namespace: pod.map(|pod| pod.namespace.to_string()).unwrap_or_default(),
        pod: pod.map(|pod| pod.name.to_string()).unwrap_or_default(),
        owner: endpoint.owner.to_string(),
        node: endpoint.node.to_string(),
        zone: endpoint.zone.to_string(),
        for_zones: endpoint.for_zones.iter().map(ToString::to_string).collect(),
    }
}

fn socket_address(address: SocketAddr) -> pb::SocketAddress {
    let ip = match address {
        SocketAddr::V4(v4) => v4.ip().octets().to_vec(),
        SocketAddr::V6(v6) => v6.ip().octets().to_vec(),
    };
    pb::SocketAddress { ip, port: address.port().into() }
}

fn protocol(protocol: Protocol) -> pb::Protocol {
    match protocol {
        Protocol::Detect => pb::Protocol::Detect,
        Protocol::Opaque => pb::Protocol::Opaque,
        Protocol::Http1 => pb::Protocol::Http1,
        Protocol::Http2 => pb::Protocol::Http2,
        Protocol::Tls => pb::Protocol::Tls,
    }
}

fn balancer(policy: &Balancer) -> pb::BalancerPolicy {
    use pb::balancer_policy::Algorithm as Wire;
    let algorithm = match policy.algorithm {
        Algorithm::PeakEwma => Wire::PeakEwma,
        Algorithm::LeastRequest => Wire::LeastRequest,
        Algorithm::RoundRobin => Wire::RoundRobin,
        Algorithm::Random => Wire::Random,
        Algorithm::RingHash => Wire::RingHash,
    };
    pb::BalancerPolicy {
        algorithm: algorithm.into(),
        default_rtt: policy.default_rtt.map(duration),
        decay: policy.decay.map(duration),
        failure_penalty: policy.failure_penalty.map(duration),
        hash_on: (policy.algorithm == Algorithm::RingHash).then(|| hash_on(&policy.hash_on)),
        slow_start: policy.slow_start.map(duration),
    }
}

fn hash_on(on: &HashOn) -> pb::HashOn {
    use pb::hash_on::On;
    let on = match on {
        HashOn::Header(name) => On::Header(name.clone()),
        HashOn::Cookie(name) => On::Cookie(name.clone()),
        HashOn::ClientAddress => On::ClientAddress(pb::ClientAddress {}),
    };
    pb::HashOn { on: Some(on) }
}

fn affinity(affinity: &Affinity) -> pb::SessionAffinity {
    use pb::session_affinity::By;
    let by = match affinity {
        Affinity::Cookie { name, timeout } => {
            By::Cookie(pb::AffinityCookie { name: name.clone(), timeout: timeout.map(duration) })
        }
        Affinity::ClientAddress { timeout } => {
            By::ClientAddress(pb::AffinityAddress { timeout: Some(duration(*timeout)) })
        }
    };
    pb::SessionAffinity { by: Some(by) }
}

fn bulkheads(policy: &Bulkheads) -> pb::Bulkheads {
    pb::Bulkheads {
        max_connections: policy.max_connections,
        max_in_flight: policy.max_in_flight,
        max_pending: policy.max_pending,
        pending_timeout: policy.pending_timeout.map(duration),
    }
}

fn breaker(policy: &Breaker) -> pb::BreakerPolicy {
    pb::BreakerPolicy {
        consecutive_failures: policy.consecutive_failures,
        min_penalty: Some(duration(policy.min_penalty)),
        max_penalty: Some(duration(policy.max_penalty)),
        jitter_ratio: policy.jitter_ratio,
        success_rate_threshold: policy.success_rate_threshold,
        success_rate_window: Some(duration(policy.success_rate_window)),
        success_rate_min_requests: policy.success_rate_min_requests,
    }
}

fn retry(policy: &Retry) -> pb::RetryPolicy {
    let range = |range: &std::ops::RangeInclusive<u16>| pb::StatusRange {
        from: (*range.start()).into(),
        to: (*range.end()).into(),
    };
    pb::RetryPolicy {
        http: policy.http.iter().map(range).collect(),
        grpc: policy.grpc.clone(),
        limit: policy.limit,
        per_try_timeout: policy.per_try_timeout.map(duration),
        methods: policy.methods.clone(),
        budget: Some(pb::RetryBudget {
            ratio: policy.budget.ratio,
            min_per_second: policy.budget.min_per_second,
            window: Some(duration(policy.budget.window)),
        }),
        backoff: Some(duration(policy.backoff)),
        max_backoff: Some(duration(policy.max_backoff)),
        unanswered: policy.unanswered,
    }
}

fn timeouts(policy: &Timeouts) -> pb::TimeoutPolicy {
    pb::TimeoutPolicy {
        request: policy.request.map(duration),
        response: policy.response.map(duration),
        idle: policy.idle.map(duration),
        connect: policy.connect.map(duration),
        backend_request: None,
    }
}

fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

fn inbound(policy: &Inbound) -> pb::InboundPolicy {
    use settings::DefaultPolicy as Core;
    let default_policy = match policy.default_policy {
        Core::AllUnauthenticated => pb::DefaultPolicy::AllUnauthenticated,
        Core::AllAuthenticated => pb::DefaultPolicy::AllAuthenticated,
        Core::ClusterAuthenticated => pb::DefaultPolicy::ClusterAuthenticated,
        Core::ClusterUnauthenticated => pb::DefaultPolicy::ClusterUnauthenticated,
        Core::Deny => pb::DefaultPolicy::Deny,
        Core::Audit => pb::DefaultPolicy::Audit,
    };
    let port = |port: &crate::index::answer::InboundPort| pb::InboundPort {
        port: port.port.into(),
        protocol: protocol(port.protocol).into(),
        probe_paths: port.probe_paths.clone(),
    };
    pb::InboundPolicy {
        default_policy: default_policy.into(),
        ports: policy.ports.iter().map(port).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use proptest::prelude::*;

    use super::*;
    use crate::index::{Name, answer::Head};

    /// Endpoints by the last byte of their address, in two versions each.
    fn snapshot(endpoints: &BTreeMap<u8, bool>) -> Snapshot {
        let endpoint = |(last, zone): (&u8, &bool)| {
            Arc::new(Endpoint {
                address: SocketAddr::from(([10, 244, 0, *last], 80)),
                identity: None,
                pod: None,
                owner: "".into(),
                node: "".into(),
                zone: if *zone { "a" } else { "b" }.into(),
                for_zones: [].into(),
            })
        };
        let head = Head {
            service: Name::new("shop", "orders"),
            port: 80,
            port_name: String::new(),
            protocol: Protocol::Detect,
            policy: crate::index::policy::Policy::default(),
            node_local: false,
            distribution: Distribution::Any,
            routes: None,
        };
        Snapshot { head: Arc::new(head), endpoints: endpoints.iter().map(endpoint).collect() }
    }

    type Addressed = BTreeMap<(Vec<u8>, u32), pb::Endpoint>;

    fn addressed(endpoints: Vec<pb::Endpoint>) -> Addressed {
        let key = |e: &pb::Endpoint| e.address.clone().map(|a| (a.ip, a.port)).unwrap();
        endpoints.into_iter().map(|e| (key(&e), e)).collect()
    }

    proptest! {
        #[test]
        fn a_sequence_of_deltas_ends_where_a_snapshot_would(
            states in prop::collection::vec(
                prop::collection::btree_map(0u8..12, any::<bool>(), 0..10), 1..8
            )
        ) {
            let snapshots: Vec<Snapshot> = states.iter().map(snapshot).collect();
            let mut seen = addressed(service(&snapshots[0], &Place::default()).endpoints);
            for pair in snapshots.windows(2) {
                let Some(watch_response::Kind::Endpoints(delta)) =
                    delta(1, 1, &pair[0], &pair[1]).kind
                else {
                    panic!("no delta");
                };
                for gone in delta.remove {
                    prop_assert!(seen.remove(&(gone.ip, gone.port)).is_some(), "was never there");
                }
                for (key, endpoint) in addressed(delta.upsert) {
                    prop_assert!(seen.get(&key) != Some(&endpoint), "unchanged, yet sent");
                    seen.insert(key, endpoint);
                }
                prop_assert_eq!(&seen, &addressed(service(&pair[1], &Place::default()).endpoints));
            }
        }
    }
}
