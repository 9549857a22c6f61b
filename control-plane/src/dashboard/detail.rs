//! What the page of one Service shows, as JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use serde::Serialize;

use super::{
    history::Sample,
    load::Figures,
    merge::{Endpoint as Seen, Service},
    routes::{RouteRow, rows},
    topology::{EventRow, IdentityRow, Shown, event_row, identity_row},
};
use crate::index::{
    Name, PortRoutes,
    answer::{Endpoint, Snapshot},
};

/// Most endpoints that are shown; those that somebody has ejected first.
const MAX_ENDPOINTS: usize = 500;

/// The page of a Service.
#[derive(Debug, Serialize)]
pub(super) struct ServiceView {
    namespace: String,
    name: String,
    /// Whether it is among the Services of the last round; what proxies say is missing otherwise.
    sampled: bool,
    ports: Vec<PortRow>,
    now: Figures,
    /// The last five minutes, oldest first.
    series: Vec<Sample>,
    callers: Vec<CallerRow>,
    /// By identity, as the proxies behind the Service count them since their start.
    identified_callers: Vec<IdentifiedCaller>,
    endpoints: Vec<EndpointRow>,
    endpoints_left_out: usize,
    events: Vec<EventRow>,
    identities: Vec<IdentityRow>,
    routes: Vec<RouteRow>,
    routes_left_out: usize,
}

#[derive(Debug, Serialize)]
struct PortRow {
    port: u16,
    name: String,
    protocol: String,
}

/// A workload that calls.
#[derive(Debug, Serialize)]
struct CallerRow {
    namespace: String,
    workload: String,
    pods: usize,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Debug, Serialize)]
struct IdentifiedCaller {
    id: String,
    requests: u64,
    failures: u64,
}

/// An endpoint of a port.
#[derive(Debug, Serialize)]
struct EndpointRow {
    port: u16,
    address: SocketAddr,
    /// Whether the control plane tells proxies of it; else a proxy still has it.
    known: bool,
    pod: Option<String>,
    owner: Option<String>,
    node: Option<String>,
    zone: Option<String>,
    identity: Option<String>,
    /// The worst that a caller takes it for: `open`, `half-open`, else `ready`; `unused` without a
    /// caller.
    state: &'static str,
    /// Callers that take it for ready, half-open, open.
    ready: usize,
    half_open: usize,
    open: usize,
    reason: Option<String>,
    trips: u64,
    next_probe_ms: Option<u64>,
    in_flight: u64,
    ewma_ms: Option<f64>,
    #[serde(flatten)]
    figures: Figures,
}

/// The page of a Service with these ports and routes, from the last round and the history.
pub(super) fn service(
    name: &Name,
    ports: &[Arc<Snapshot>],
    routes: &[PortRoutes],
    shown: Option<&Shown>,
    series: Vec<Sample>,
) -> ServiceView {
    let none = Service::default();
    let round = shown.and_then(|shown| shown.services.get(name));
    let seen = round.unwrap_or(&none);
    let mut endpoints = endpoints(ports, seen);
    let endpoints_left_out = endpoints.len().saturating_sub(MAX_ENDPOINTS);
    endpoints.truncate(MAX_ENDPOINTS);
    let (routes, routes_left_out) = rows(routes, &seen.routes);
    ServiceView {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        sampled: round.is_some(),
        ports: ports.iter().map(|port| port_row(port)).collect(),
        now: seen.load.figures(),
        series,
        callers: callers(seen),
        identified_callers: identified(seen),
        endpoints,
        endpoints_left_out,
        events: seen.events.iter().map(event_row).collect(),
        identities: identities(ports, shown),
        routes,
        routes_left_out,
    }
}

fn port_row(port: &Snapshot) -> PortRow {
    PortRow {
        port: port.head.port,
        name: port.head.port_name.clone(),
        protocol: format!("{:?}", port.head.protocol).to_ascii_lowercase(),
    }
}

fn callers(seen: &Service) -> Vec<CallerRow> {
    let rows = seen.callers.iter().map(|(workload, (pods, load))| CallerRow {
        namespace: workload.namespace.to_string(),
        workload: workload.name.to_string(),
        pods: *pods,
        figures: load.figures(),
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by(|a, b| b.figures.rps.total_cmp(&a.figures.rps));
    rows
}

fn identified(seen: &Service) -> Vec<IdentifiedCaller> {
    let rows = seen.identities.iter().map(|(id, (requests, failures))| IdentifiedCaller {
        id: id.clone(),
        requests: *requests,
        failures: *failures,
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.requests));
    rows
}

/// Those that the index knows and those that a proxy still has, the ejected first.
fn endpoints(ports: &[Arc<Snapshot>], seen: &Service) -> Vec<EndpointRow> {
    type Both<'a> = (Option<&'a Endpoint>, Option<&'a Seen>);
    let mut all: BTreeMap<(u16, SocketAddr), Both<'_>> = BTreeMap::new();
    for port in ports {
        for endpoint in &*port.endpoints {
            all.entry((port.head.port, endpoint.address)).or_default().0 = Some(endpoint);
        }
    }
    for (key, seen) in &seen.endpoints {
        all.entry(*key).or_default().1 = Some(seen);
    }
    let rows =
        all.into_iter().map(|((port, address), (known, seen))| row(port, address, known, seen));
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by_key(|row| (row.open == 0, row.half_open == 0));
    rows
}

fn row(
    port: u16,
    address: SocketAddr,
    known: Option<&Endpoint>,
    seen: Option<&Seen>,
) -> EndpointRow {
    let none = Seen::default();
    let seen = seen.unwrap_or(&none);
    let [ready, half_open, open] = seen.states;
    let state = match (ready, half_open, open) {
        (_, _, 1..) => "open",
        (_, 1.., _) => "half-open",
        (1.., ..) => "ready",
        _ => "unused",
    };
    let text = |of: fn(&Endpoint) -> &Arc<str>| {
        known.map(|known| of(known).to_string()).filter(|text| !text.is_empty())
    };
    EndpointRow {
        port,
        address,
        known: known.is_some(),
        pod: known
            .and_then(|e| e.pod.as_ref())
            .map(|pod| format!("{}/{}", pod.namespace, pod.name)),
        owner: text(|endpoint| &endpoint.owner),
        node: text(|endpoint| &endpoint.node),
        zone: text(|endpoint| &endpoint.zone),
        identity: known.and_then(|e| e.identity.as_ref()).map(ToString::to_string),
        state,
        ready,
        half_open,
        open,
        reason: seen.reason.clone(),
        trips: seen.trips,
        next_probe_ms: seen.next_probe_ms,
        in_flight: seen.in_flight,
        ewma_ms: seen.ewma_ms,
        figures: seen.load.figures(),
    }
}

/// Of those behind the Service.
fn identities(ports: &[Arc<Snapshot>], shown: Option<&Shown>) -> Vec<IdentityRow> {
    let none = BTreeMap::new();
    let certificates = shown.map_or(&none, |shown| &shown.certificates);
    let endpoints = ports.iter().flat_map(|port| &*port.endpoints);
    let identities: BTreeSet<_> =
        endpoints.filter_map(|endpoint| Some(endpoint.identity.as_ref()?.as_str())).collect();
    identities.into_iter().map(|identity| identity_row(identity, certificates)).collect()
}

#[cfg(test)]
mod tests;
