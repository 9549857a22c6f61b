//! What the overview shows, as JSON: who calls which Service, and who is behind it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tokio::time::Instant;

use super::{
    cluster::{Cluster, Identified, workload},
    load::Figures,
    merge::{Event, Heard, Service},
};
use crate::{
    index::{Name, answer::Snapshot},
    moment::{Moment, millis},
};

/// Most Services that are shown: the busiest, then by name.
const MAX_SERVICES: usize = 200;
/// Most edges for calls: the busiest.
const MAX_EDGES: usize = 1000;
/// Most events.
const MAX_EVENTS: usize = 100;
/// Most identities.
const MAX_IDENTITIES: usize = 500;

/// What of a round is kept until the next.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// The Services that are shown.
    pub(super) services: BTreeMap<Name, Service>,
    services_left_out: usize,
    /// See [`Heard::certificates`].
    pub(super) certificates: BTreeMap<String, (u64, usize)>,
    answered: usize,
    failed: usize,
    named_failures: Vec<(Name, String)>,
}

impl Shown {
    /// Chooses the Services that are shown.
    pub(super) fn of(cluster: &Cluster, heard: Heard) -> Self {
        let mut services: Vec<(Name, Service)> = heard.services.into_iter().collect();
        let known = services.len().max(cluster.services.len());
        services.sort_by(|a, b| b.1.load.rps().total_cmp(&a.1.load.rps()));
        services.truncate(MAX_SERVICES);
        Self {
            services_left_out: known - services.len(),
            services: services.into_iter().collect(),
            certificates: heard.certificates,
            answered: heard.answered,
            failed: heard.failed,
            named_failures: heard.named_failures,
        }
    }
}

/// The overview.
#[derive(Debug, Serialize)]
pub(super) struct Topology {
    version: &'static str,
    /// When the round ended, in Unix milliseconds.
    sampled_ms: u64,
    /// How long it took.
    round_ms: u64,
    proxies: Proxies,
    services_left_out: usize,
    edges_left_out: usize,
    nodes: Vec<Node>,
    edges: Vec<Edge>,
    events: Vec<EventRow>,
    identities: Vec<IdentityRow>,
}

/// Who was asked.
#[derive(Debug, Serialize)]
struct Proxies {
    /// Pods with a sidecar.
    known: usize,
    /// Of these, connected to this replica.
    connected: usize,
    asked: usize,
    answered: usize,
    failed: usize,
    /// The first of those that failed.
    failures: Vec<FailureRow>,
}

#[derive(Debug, Serialize)]
struct FailureRow {
    namespace: String,
    pod: String,
    error: String,
}

/// A workload or a Service.
#[derive(Debug, Serialize)]
struct Node {
    id: String,
    kind: &'static str,
    namespace: String,
    name: String,
    /// Pods with a sidecar, of a workload; `None` of a Service.
    pods: Option<usize>,
    /// Of a Service.
    #[serde(flatten)]
    service: Option<ServiceNode>,
}

#[derive(Debug, Serialize)]
struct ServiceNode {
    ports: Vec<u16>,
    endpoints: usize,
    /// Endpoints that at least one caller has ejected.
    ejected: usize,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Debug, Serialize)]
struct Edge {
    from: String,
    to: String,
    /// `calls`: a workload a Service; `serves`: a workload is behind a Service.
    kind: &'static str,
    #[serde(flatten)]
    figures: Option<Figures>,
}

/// An endpoint was ejected or taken back.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct EventRow {
    at_ms: u64,
    service: String,
    endpoint: String,
    pod: Option<String>,
    kind: String,
    reason: Option<String>,
    penalty_ms: Option<u64>,
    /// The pod whose proxy says so, `namespace/name`.
    seen_by: String,
}

/// An identity.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct IdentityRow {
    identity: String,
    /// Pods that have it.
    pods: usize,
    workloads: Vec<String>,
    /// Certificates that were seen, and when the first of them ends, in Unix milliseconds.
    certificates: usize,
    expires_ms: Option<u64>,
}

/// The overview of a round that began at `begin` and ended at `moment`.
pub(super) fn topology(
    cluster: &Cluster,
    shown: &Shown,
    moment: &Moment,
    begin: Instant,
) -> Topology {
    let (calls, edges_left_out) = calls(shown);
    let serves = serves(cluster, shown);
    let mut workloads: BTreeSet<&Name> = calls.iter().map(|(caller, ..)| *caller).collect();
    workloads.extend(serves.iter().map(|(_, behind)| behind));
    let mut nodes: Vec<Node> = workloads
        .into_iter()
        .map(|name| Node {
            id: id("workload", name),
            kind: "workload",
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            pods: Some(cluster.pods.get(name).copied().unwrap_or(0)),
            service: None,
        })
        .collect();
    nodes.extend(shown.services.iter().map(|(name, seen)| service_node(cluster, name, seen)));
    let calls = calls.into_iter().map(|(caller, service, figures)| Edge {
        from: id("workload", caller),
        to: id("service", service),
        kind: "calls",
        figures: Some(figures),
    });
    let serves = serves.iter().map(|(service, behind)| Edge {
        from: id("service", service),
        to: id("workload", behind),
        kind: "serves",
        figures: None,
    });
    Topology {
        version: env!("CARGO_PKG_VERSION"),
        sampled_ms: moment.unix_ms(),
        round_ms: millis(moment.now.saturating_duration_since(begin)),
        proxies: proxies(cluster, shown),
        services_left_out: shown.services_left_out,
        edges_left_out,
        nodes,
        edges: calls.chain(serves).collect(),
        events: newest(shown),
        identities: identities(&cluster.identities, &shown.certificates),
    }
}

fn id(kind: &str, name: &Name) -> String {
    format!("{kind}:{}/{}", name.namespace, name.name)
}

fn proxies(cluster: &Cluster, shown: &Shown) -> Proxies {
    let failures = shown.named_failures.iter().map(|(pod, error)| FailureRow {
        namespace: pod.namespace.to_string(),
        pod: pod.name.to_string(),
        error: error.clone(),
    });
    Proxies {
        known: cluster.sidecars,
        connected: cluster.connected,
        asked: cluster.asked.len(),
        answered: shown.answered,
        failed: shown.failed,
        failures: failures.collect(),
    }
}

fn service_node(cluster: &Cluster, name: &Name, seen: &Service) -> Node {
    let ports = cluster.services.get(name).map_or(&[][..], Vec::as_slice);
    let addresses: BTreeSet<_> =
        ports.iter().flat_map(|port| &*port.endpoints).map(|e| e.address).collect();
    let ejected: BTreeSet<_> =
        seen.endpoints.iter().filter(|(_, e)| e.states[2] > 0).map(|((_, a), _)| a).collect();
    Node {
        id: id("service", name),
        kind: "service",
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        pods: None,
        service: Some(ServiceNode {
            ports: ports.iter().map(|port| port.head.port).collect(),
            endpoints: addresses.len(),
            ejected: ejected.len(),
            figures: seen.load.figures(),
        }),
    }
}

/// Who calls which Service, the busiest first, and how many are left out.
fn calls(shown: &Shown) -> (Vec<(&Name, &Name, Figures)>, usize) {
    let mut all: Vec<_> = shown
        .services
        .iter()
        .flat_map(|(service, seen)| {
            seen.callers.iter().map(move |(caller, (_, load))| (caller, service, load.figures()))
        })
        .collect();
    all.sort_by(|a, b| b.2.rps.total_cmp(&a.2.rps));
    let left_out = all.len().saturating_sub(MAX_EDGES);
    all.truncate(MAX_EDGES);
    (all, left_out)
}

/// Which workloads are behind which Service.
fn serves(cluster: &Cluster, shown: &Shown) -> BTreeSet<(Name, Name)> {
    let shown = shown.services.keys().filter_map(|name| cluster.services.get_key_value(name));
    let behind = |port: &Snapshot| {
        let endpoints = port.endpoints.iter();
        let workloads = endpoints
            .filter_map(|endpoint| Some(workload(&endpoint.owner, endpoint.pod.as_ref()?)));
        workloads.collect::<BTreeSet<Name>>()
    };
    let pairs = shown.flat_map(|(name, ports)| {
        ports.iter().flat_map(move |port| behind(port)).map(move |by| (name.clone(), by))
    });
    pairs.take(MAX_EDGES).collect()
}

fn newest(shown: &Shown) -> Vec<EventRow> {
    let mut all: Vec<&Event> = shown.services.values().flat_map(|seen| &seen.events).collect();
    all.sort_by_key(|seen| std::cmp::Reverse(seen.event.at_ms));
    all.into_iter().take(MAX_EVENTS).map(event_row).collect()
}

/// An event as it is shown.
pub(super) fn event_row(seen: &Event) -> EventRow {
    let event = seen.event.clone();
    EventRow {
        at_ms: event.at_ms,
        service: event.service,
        endpoint: event.endpoint,
        pod: event.pod,
        kind: event.kind,
        reason: event.reason,
        penalty_ms: event.penalty_ms,
        seen_by: format!("{}/{}", seen.seen_by.namespace, seen.seen_by.name),
    }
}

fn identities(
    known: &BTreeMap<String, Identified>,
    certificates: &BTreeMap<String, (u64, usize)>,
) -> Vec<IdentityRow> {
    let rows = known.iter().take(MAX_IDENTITIES).map(|(identity, by)| IdentityRow {
        pods: by.pods,
        workloads: by.workloads.iter().map(|w| format!("{}/{}", w.namespace, w.name)).collect(),
        ..identity_row(identity, certificates)
    });
    rows.collect()
}

/// An identity of which only the certificates are known.
pub(super) fn identity_row(
    identity: &str,
    certificates: &BTreeMap<String, (u64, usize)>,
) -> IdentityRow {
    let seen = certificates.get(identity);
    IdentityRow {
        identity: identity.to_owned(),
        pods: 0,
        workloads: Vec::new(),
        certificates: seen.map_or(0, |(_, count)| *count),
        expires_ms: seen.map(|(ends, _)| ends.saturating_mul(1000)),
    }
}

#[cfg(test)]
mod tests;
