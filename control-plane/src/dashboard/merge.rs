//! What the proxies say, put together by Service. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::SocketAddr,
};

use super::{
    answers::{self, Answers},
    cluster::{Asked, Cluster},
    load::Load,
};
use crate::index::Name;

/// Most endpoints of one Service that are kept.
const MAX_ENDPOINTS: usize = 500;
/// Most routes of one Service whose traffic is kept.
const MAX_ROUTES: usize = 200;
/// Most callers by identity that are kept of one Service.
const MAX_CALLERS: usize = 200;
/// Most events that are kept of one Service.
pub(super) const MAX_EVENTS: usize = 50;
/// Most failed proxies that are named.
const MAX_FAILED: usize = 20;

/// What has been heard in a round so far.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) services: BTreeMap<Name, Service>,
    /// By pod and port, who called it.
    inbound: BTreeMap<(Name, u16), Vec<answers::Caller>>,
    /// By identity: the end of validity of the certificate that ends first, in Unix seconds, and how
    /// many were seen.
    pub(super) certificates: BTreeMap<String, (u64, usize)>,
    /// Proxies that answered.
    pub(super) answered: usize,
    /// Those that did not; the first are named.
    pub(super) failed: usize,
    pub(super) named_failures: Vec<(Name, String)>,
}

/// A Service as its callers see it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Service {
    pub(super) load: Load,
    /// By workload: pods that call, and what they did.
    pub(super) callers: BTreeMap<Name, (usize, Load)>,
    /// By port and address.
    pub(super) endpoints: BTreeMap<(u16, SocketAddr), Endpoint>,
    /// By the route's name.
    pub(super) routes: BTreeMap<String, Load>,
    /// By identity, since the start of the proxies behind the Service: requests and failures.
    pub(super) identities: BTreeMap<String, (u64, u64)>,
    /// Newest first, after [`Heard::finish`].
    pub(super) events: Vec<Event>,
}

/// An endpoint as its callers see it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Endpoint {
    pub(super) load: Load,
    pub(super) in_flight: u64,
    /// The largest estimate.
    pub(super) ewma_ms: Option<f64>,
    /// How many callers take it for ready, half-open, open.
    pub(super) states: [usize; 3],
    /// Of one caller that does not take it for ready.
    pub(super) reason: Option<String>,
    /// The sum over all callers.
    pub(super) trips: u64,
    /// Until the first caller probes it.
    pub(super) next_probe_ms: Option<u64>,
}

/// An event and who saw it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) event: answers::Event,
    pub(super) seen_by: Name,
}

impl Heard {
    /// Adds what one proxy says. Only Services that the index knows count.
    pub(super) fn add(&mut self, cluster: &Cluster, from: &Asked, answers: Answers) {
        self.answered += 1;
        // A pod may have called one Service by several ports and addresses.
        let mut called = BTreeSet::new();
        for told in answers.services {
            let name = Name::new(&told.namespace, &told.name);
            if cluster.services.contains_key(&name) {
                let service = self.services.entry(name.clone()).or_default();
                let caller = service.callers.entry(from.workload.clone()).or_default();
                caller.0 += usize::from(called.insert(name));
                caller.1.add(told.windows.last);
                service.add(told);
            }
        }
        for port in answers.ports {
            self.inbound.insert((from.pod.clone(), port.port), port.callers);
        }
        for event in answers.events {
            let service = event.service.rsplit_once(':').map_or("", |(service, _)| service);
            let Some((namespace, name)) = service.split_once('/') else { continue };
            let name = Name::new(namespace, name);
            if cluster.services.contains_key(&name) {
                let event = Event { event, seen_by: from.pod.clone() };
                self.services.entry(name).or_default().events.push(event);
            }
        }
        if let Some(not_after) = answers.certificate.not_after {
            let seen = self.certificates.entry(from.identity.clone()).or_insert((not_after, 0));
            *seen = (seen.0.min(not_after), seen.1 + 1);
        }
    }

    /// Notes a proxy that was not heard, and why.
    pub(super) fn fail(&mut self, from: &Asked, why: String) {
        self.failed += 1;
        if self.named_failures.len() < MAX_FAILED {
            self.named_failures.push((from.pod.clone(), why));
        }
    }

    /// What needs all of it: the callers of each Service by identity, and the order of events.
    pub(super) fn finish(&mut self, cluster: &Cluster) {
        for (name, ports) in &cluster.services {
            let service = self.services.entry(name.clone()).or_default();
            let endpoints = ports.iter().flat_map(|port| &*port.endpoints);
            let mut behind: Vec<_> = endpoints
                .filter_map(|endpoint| Some((endpoint.pod.clone()?, endpoint.address.port())))
                .collect();
            // Two ports of a Service may be one of the pod.
            behind.sort_unstable();
            behind.dedup();
            for caller in behind.iter().filter_map(|key| self.inbound.get(key)).flatten() {
                service.called_by(caller);
            }
            service.events.sort_by_key(|seen| std::cmp::Reverse(seen.event.at_ms));
            service.events.truncate(MAX_EVENTS);
        }
        self.inbound.clear();
        self.named_failures.sort();
    }
}

impl Service {
    fn add(&mut self, told: answers::Service) {
        self.load.add(told.windows.last);
        for route in told.routes {
            if let Some(load) = slot(&mut self.routes, route.name, MAX_ROUTES) {
                load.add(route.windows.last);
            }
        }
        for endpoint in told.endpoints {
            let Ok(address) = endpoint.address.parse() else { continue };
            if let Some(known) = slot(&mut self.endpoints, (told.port, address), MAX_ENDPOINTS) {
                known.add(endpoint);
            }
        }
    }

    fn called_by(&mut self, caller: &answers::Caller) {
        if let Some(known) = slot(&mut self.identities, caller.id.clone(), MAX_CALLERS) {
            known.0 = known.0.saturating_add(caller.requests);
            known.1 = known.1.saturating_add(caller.failures);
        }
    }
}

impl Endpoint {
    fn add(&mut self, told: answers::Endpoint) {
        self.load.add(told.windows.last);
        self.in_flight = self.in_flight.saturating_add(told.in_flight);
        self.ewma_ms = match (self.ewma_ms, told.ewma_ms) {
            (Some(known), Some(told)) => Some(known.max(told)),
            (known, told) => known.or(told),
        };
        self.trips = self.trips.saturating_add(told.breaker.trips);
        let state = match &*told.state {
            "open" => 2,
            "half-open" => 1,
            _ => 0,
        };
        self.states[state] += 1;
        if state > 0 {
            self.reason = self.reason.take().or(told.breaker.reason);
            let next = [self.next_probe_ms, told.breaker.next_probe_ms];
            self.next_probe_ms = next.into_iter().flatten().min();
        }
    }
}

/// The value of a key, made where there is room for it.
fn slot<K: Ord, V: Default>(map: &mut BTreeMap<K, V>, key: K, most: usize) -> Option<&mut V> {
    let room = map.len() < most;
    match map.entry(key) {
        Entry::Occupied(known) => Some(known.into_mut()),
        Entry::Vacant(new) if room => Some(new.insert(V::default())),
        Entry::Vacant(_) => None,
    }
}

#[cfg(test)]
mod tests;
