//! A Service as the data path sees it: one snapshot of policy, routes and endpoints at a time.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use arc_swap::{ArcSwap, Guard};
use remora_proto::v1 as pb;

use super::{
    endpoint::Endpoint,
    policy,
    traffic::Traffic,
    wire::{self, WireError},
};
use crate::{
    balance::{
        Endpoints,
        policy::{Policy, Prefer, Topology},
    },
    route::{self, Route, stream::StreamRoute},
};

/// One port of a Kubernetes Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId {
    /// Namespace of the Service.
    pub namespace: Box<str>,
    /// Name of the Service.
    pub name: Box<str>,
    /// Port number.
    pub port: u16,
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.name, self.port)
    }
}

/// What an application speaks on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// Not told: look at the first bytes.
    #[default]
    Detect,
    /// Bytes; do not look.
    Opaque,
    /// HTTP/1.x.
    Http1,
    /// HTTP/2 with prior knowledge, gRPC included.
    Http2,
    /// TLS of the application's own.
    Tls,
}

impl Protocol {
    /// A word that this version does not know means: look.
    pub(super) fn from_wire(protocol: i32) -> Self {
        match pb::Protocol::try_from(protocol) {
            Ok(pb::Protocol::Opaque) => Self::Opaque,
            Ok(pb::Protocol::Http1) => Self::Http1,
            Ok(pb::Protocol::Http2) => Self::Http2,
            Ok(pb::Protocol::Tls) => Self::Tls,
            Ok(pb::Protocol::Detect) | Err(_) => Self::Detect,
        }
    }

    /// For JSON and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Opaque => "opaque",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tls => "tls",
        }
    }
}

/// A Service whose state is replaced whole while others hold it.
#[derive(Debug)]
pub struct Service {
    /// Which one.
    pub id: ServiceId,
    /// What it has seen of this proxy's traffic.
    pub traffic: Traffic,
    state: ArcSwap<ServiceState>,
    gone: AtomicBool,
}

impl Service {
    pub(super) fn new(id: ServiceId, state: ServiceState, now: Instant) -> Self {
        let traffic = Traffic::new(now);
        Self { id, traffic, state: ArcSwap::from_pointee(state), gone: AtomicBool::new(false) }
    }

    /// The state now, without touching its reference count; for one decision.
    pub fn state(&self) -> Guard<Arc<ServiceState>> {
        self.state.load()
    }

    /// The state now, to be kept for a while.
    #[must_use]
    pub fn state_full(&self) -> Arc<ServiceState> {
        self.state.load_full()
    }

    /// Whether this object gets no more updates, because the Service is gone or nothing asked for
    /// it for long. Ask [`super::Discovery`] again before the next connection or request.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    pub(super) fn replace(&self, state: ServiceState) {
        self.state.store(Arc::new(state));
    }

    pub(super) fn mark_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }
}

/// Everything about a Service at one version.
#[derive(Debug, Clone)]
pub struct ServiceState {
    /// Name of the port; empty if it has none.
    pub port_name: Box<str>,
    /// What is spoken.
    pub protocol: Protocol,
    /// For requests that no route matches.
    pub policy: Arc<Policy>,
    /// In order of precedence; empty: all requests go to the endpoints.
    pub routes: Arc<[Arc<Route>]>,
    /// The same for connections that are carried as bytes.
    pub stream_routes: Arc<[StreamRoute]>,
    /// All that can take traffic; empty: there is none. With what the policy finds them by.
    pub endpoints: Arc<Endpoints<Endpoint>>,
    /// Version on the stream it came by.
    pub version: u64,
}

impl ServiceState {
    /// Applies a complete answer: everything is replaced, endpoints that were known before keep
    /// their object and so their statistics.
    ///
    /// Endpoints must follow whatever else is wrong: one that cannot be read is left out, policy or
    /// routes that cannot be read stay as they were. What was wrong is returned.
    #[must_use]
    pub fn from_snapshot(
        before: Option<&Self>,
        service: &pb::Service,
        version: u64,
        now: Instant,
    ) -> (Self, Vec<WireError>) {
        let endpoints = before.map_or(&[][..], |state| &**state.endpoints);
        // Those of a Service that was not known before have been there for nobody knows how long.
        let joined = before.map(|_| now);
        let known: HashMap<SocketAddr, &Arc<Endpoint>> =
            endpoints.iter().map(|endpoint| (endpoint.addr, endpoint)).collect();
        let mut list = EndpointList::default();
        let mut bad = Vec::new();
        for endpoint in &service.endpoints {
            match Endpoint::parse(endpoint, now) {
                Ok(fresh) => list.upsert(keep(known.get(&fresh.addr).copied(), fresh, joined)),
                Err(error) => bad.push(error),
            }
        }
        let policy = policy::policy(service).map(Arc::new).unwrap_or_else(|error| {
            bad.push(error);
            before.map(|state| state.policy.clone()).unwrap_or_default()
        });
        let known = before.map_or(&[][..], |state| &state.routes);
        let routes = route::parse::routes(service, &policy, (known, now), &mut bad);
        let routes = routes.map(Into::into);
        let routes = routes.unwrap_or_else(|error| {
            bad.push(error);
            before.map(|state| state.routes.clone()).unwrap_or_default()
        });
        let stream_routes = route::parse::stream_routes(service, &mut bad).map(Into::into);
        let stream_routes = stream_routes.unwrap_or_else(|error| {
            bad.push(error);
            before.map(|state| state.stream_routes.clone()).unwrap_or_default()
        });
        let state = Self {
            port_name: service.port_name.as_str().into(),
            protocol: Protocol::from_wire(service.protocol),
            endpoints: placed(list.endpoints, &policy),
            policy,
            routes,
            stream_routes,
            version,
        };
        (state, bad)
    }

    /// Applies a change of endpoints. Removals first, so that a delta naming an address in both
    /// lists means: replaced.
    #[must_use]
    pub fn with_delta(&self, delta: &pb::EndpointsDelta, now: Instant) -> (Self, Vec<WireError>) {
        let mut bad = Vec::new();
        let mut list = EndpointList::from(&**self.endpoints);
        let mut removed = HashMap::new();
        for address in &delta.remove {
            match wire::address("delta.remove", Some(address)) {
                Ok(address) => removed.extend(list.remove(address).map(|e| (address, e))),
                Err(error) => bad.push(error),
            }
        }
        for endpoint in &delta.upsert {
            match Endpoint::parse(endpoint, now) {
                Ok(fresh) => {
                    let known = list.get(fresh.addr).or_else(|| removed.get(&fresh.addr));
                    let endpoint = keep(known, fresh, Some(now));
                    list.upsert(endpoint);
                }
                Err(error) => bad.push(error),
            }
        }
        let endpoints = placed(list.endpoints, &self.policy);
        let state = Self { endpoints, version: delta.version, ..self.clone() };
        (state, bad)
    }
}

/// Endpoints, with those told from the others that are near by the policy's topology.
fn placed(list: Vec<Arc<Endpoint>>, policy: &Policy) -> Arc<Endpoints<Endpoint>> {
    let Topology { prefer, node, zone } = &policy.topology;
    let on_node = |e: &Endpoint| !node.is_empty() && e.node == *node;
    let in_zone = |e: &Endpoint| e.is_for(zone);
    let by_node = *prefer == Prefer::SameNode && list.iter().any(|e| on_node(e));
    Arc::new(match prefer {
        Prefer::Any => Endpoints::new(list, policy),
        _ if by_node => Endpoints::with_near(list, policy, on_node),
        Prefer::SameZone | Prefer::SameNode => Endpoints::with_near(list, policy, in_zone),
    })
}

/// The known object where it is the same peer, else the fresh one, which joined when that is said.
fn keep(known: Option<&Arc<Endpoint>>, fresh: Endpoint, joined: Option<Instant>) -> Arc<Endpoint> {
    match known {
        Some(known) if known.is_same_peer(&fresh) => {
            known.follow(&fresh);
            known.clone()
        }
        _ => Arc::new(match joined {
            Some(now) => Endpoint { stats: fresh.stats.joining(now), ..fresh },
            None => fresh,
        }),
    }
}

/// Endpoints in the order they were told, one for each address.
#[derive(Default)]
struct EndpointList {
    endpoints: Vec<Arc<Endpoint>>,
    position: HashMap<SocketAddr, usize>,
}

impl EndpointList {
    fn upsert(&mut self, endpoint: Arc<Endpoint>) {
        if let Some(&at) = self.position.get(&endpoint.addr) {
            self.endpoints[at] = endpoint;
            return;
        }
        self.position.insert(endpoint.addr, self.endpoints.len());
        self.endpoints.push(endpoint);
    }

    /// The last one takes the place: order carries no meaning.
    fn remove(&mut self, address: SocketAddr) -> Option<Arc<Endpoint>> {
        let at = self.position.remove(&address)?;
        let removed = self.endpoints.swap_remove(at);
        if let Some(moved) = self.endpoints.get(at) {
            self.position.insert(moved.addr, at);
        }
        Some(removed)
    }

    fn get(&self, address: SocketAddr) -> Option<&Arc<Endpoint>> {
        self.position.get(&address).map(|&at| &self.endpoints[at])
    }
}

impl From<&[Arc<Endpoint>]> for EndpointList {
    fn from(endpoints: &[Arc<Endpoint>]) -> Self {
        let position = endpoints.iter().enumerate().map(|(at, e)| (e.addr, at)).collect();
        Self { endpoints: endpoints.to_vec(), position }
    }
}

/// One pod, dialled directly or through a headless Service: no balancing, but still mTLS.
#[derive(Debug)]
pub struct PodTarget {
    /// Where it is.
    pub endpoint: Arc<Endpoint>,
    /// What it speaks.
    pub protocol: Protocol,
    /// The endpoint again, in the form that a choice is made from.
    pub endpoints: Arc<Endpoints<Endpoint>>,
    /// Defaults without a breaker: there is nothing to choose.
    pub policy: Arc<Policy>,
    /// What it has seen of this proxy's traffic.
    pub traffic: Traffic,
}

impl PodTarget {
    /// A pod that nothing was sent to yet.
    #[must_use]
    pub fn new(endpoint: Arc<Endpoint>, protocol: Protocol, now: Instant) -> Self {
        let policy = Arc::<Policy>::default();
        let endpoints = Arc::new(Endpoints::new(vec![Arc::clone(&endpoint)], &policy));
        Self { endpoint, protocol, endpoints, policy, traffic: Traffic::new(now) }
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
