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
    let in_zone = |e: &Endpoint| !zone.is_empty() && e.zone == *zone;
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
        Some(known) if known.is_same_peer(&fresh) => known.clone(),
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
mod tests {
    use super::*;
    use crate::balance::token::Token;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// Endpoint `n` (its address) in generation `pod` with identity `sa`.
    fn endpoint(n: u8, pod: u8, sa: u8) -> pb::Endpoint {
        pb::Endpoint {
            address: Some(pb::SocketAddress { ip: vec![10, 0, 0, n], port: 8080 }),
            identity: match sa {
                0 => String::new(),
                sa => format!("spiffe://cluster.local/ns/shop/sa/sa{sa}"),
            },
            pod: format!("pod-{pod}"),
            ..Default::default()
        }
    }

    fn state(endpoints: Vec<pb::Endpoint>) -> ServiceState {
        let service = pb::Service { endpoints, ..Default::default() };
        ServiceState::from_snapshot(None, &service, 1, now()).0
    }

    fn at(state: &ServiceState, n: u8) -> Arc<Endpoint> {
        let ip = std::net::IpAddr::from([10, 0, 0, n]);
        state.endpoints.iter().find(|e| e.addr.ip() == ip).unwrap().clone()
    }

    #[test]
    fn who_comes_later_is_told_from_who_was_there_from_the_start() {
        let joined = |state: &ServiceState, n| at(state, n).stats.joined();
        let before = state(vec![endpoint(1, 1, 1), endpoint(2, 1, 1)]);
        assert_eq!((joined(&before, 1), joined(&before, 2)), (None, None));
        let later = now();
        let endpoints = vec![endpoint(1, 1, 1), endpoint(3, 1, 1)];
        let service = pb::Service { endpoints, ..Default::default() };
        let (after, _) = ServiceState::from_snapshot(Some(&before), &service, 2, later);
        assert_eq!((joined(&after, 1), joined(&after, 3)), (None, Some(later)));
        // Another pod at a known address has joined too.
        let upsert = vec![endpoint(1, 2, 1), endpoint(4, 1, 1)];
        let delta = pb::EndpointsDelta { upsert, ..Default::default() };
        let (after, _) = after.with_delta(&delta, later);
        assert_eq!((joined(&after, 1), joined(&after, 4)), (Some(later), Some(later)));
    }

    #[test]
    fn a_ring_and_tokens_follow_every_change_while_the_policy_asks_for_them() {
        let by = pb::session_affinity::By::ClientAddress(pb::AffinityAddress::default());
        let algorithm = pb::balancer_policy::Algorithm::RingHash.into();
        let service = pb::Service {
            balancer: Some(pb::BalancerPolicy { algorithm, ..Default::default() }),
            affinity: Some(pb::SessionAffinity { by: Some(by) }),
            endpoints: vec![endpoint(1, 1, 1)],
            ..Default::default()
        };
        let (asked, _) = ServiceState::from_snapshot(None, &service, 1, now());
        let found = |state: &ServiceState, n: u8| {
            let token = Token::of(([10, 0, 0, n], 8080).into(), "pod-1");
            state.endpoints.find(token).map(|at| state.endpoints[at].addr.ip())
        };
        let ip = |n: u8| Some(std::net::IpAddr::from([10, 0, 0, n]));
        assert_eq!((found(&asked, 1), found(&asked, 2)), (ip(1), None));
        let upsert = vec![endpoint(2, 1, 1)];
        let gone = pb::SocketAddress { ip: vec![10, 0, 0, 1], port: 8080 };
        let delta = pb::EndpointsDelta { upsert, remove: vec![gone], ..Default::default() };
        let (after, _) = asked.with_delta(&delta, now());
        assert_eq!((found(&after, 1), found(&after, 2)), (None, ip(2)));
        assert!(asked.endpoints.ring().is_some() && after.endpoints.ring().is_some());
        let plain = state(vec![endpoint(1, 1, 1)]);
        assert!(plain.endpoints.ring().is_none());
    }

    #[test]
    fn near_endpoints_are_those_on_the_node_or_else_in_the_zone() {
        use pb::topology::Prefer as Wire;
        let placed = |n: u8, node: &str, zone: &str| pb::Endpoint {
            node: node.to_owned(),
            zone: zone.to_owned(),
            ..endpoint(n, n, 1)
        };
        let endpoints = [placed(1, "n1", "a"), placed(2, "n2", "a"), placed(3, "n3", "b")];
        let near = |prefer: Wire, node: &str, zone: &str| {
            let (node, zone) = (node.to_owned(), zone.to_owned());
            let topology = Some(pb::Topology { prefer: prefer.into(), node, zone });
            let service =
                pb::Service { topology, endpoints: endpoints.to_vec(), ..Default::default() };
            let (state, _) = ServiceState::from_snapshot(None, &service, 1, now());
            state.endpoints.near().map(<[usize]>::to_vec)
        };
        assert_eq!(near(Wire::SameZone, "n1", "a"), Some(vec![0, 1]));
        assert_eq!(near(Wire::SameNode, "n1", "a"), Some(vec![0]));
        assert_eq!(near(Wire::SameNode, "n9", "b"), Some(vec![2]), "nobody is on the node");
        for (prefer, node, zone) in
            [(Wire::Any, "n1", "a"), (Wire::SameZone, "n1", "c"), (Wire::SameNode, "", "")]
        {
            assert_eq!(near(prefer, node, zone), None, "{prefer:?} {node} {zone}");
        }
        // What joins later is told from the others as well.
        let topology = Some(pb::Topology {
            prefer: Wire::SameZone.into(),
            zone: "b".into(),
            ..Default::default()
        });
        let service = pb::Service { topology, endpoints: endpoints.to_vec(), ..Default::default() };
        let (state, _) = ServiceState::from_snapshot(None, &service, 1, now());
        let delta = pb::EndpointsDelta { upsert: vec![placed(4, "n4", "b")], ..Default::default() };
        let (state, _) = state.with_delta(&delta, now());
        assert_eq!(state.endpoints.near(), Some(&[2, 3][..]));
    }

    #[test]
    fn a_snapshot_keeps_the_statistics_of_surviving_endpoints() {
        let before = state(vec![endpoint(1, 1, 1), endpoint(2, 1, 1)]);
        let service = pb::Service {
            endpoints: vec![endpoint(2, 1, 1), endpoint(3, 1, 1)],
            ..Default::default()
        };
        let (after, bad) = ServiceState::from_snapshot(Some(&before), &service, 2, now());
        assert!(bad.is_empty());
        assert!(Arc::ptr_eq(&at(&before, 2), &at(&after, 2)));
        assert_eq!(after.endpoints.len(), 2);
    }

    #[test]
    fn a_new_identity_or_pod_at_an_address_is_another_endpoint() {
        let before = state(vec![endpoint(1, 1, 1), endpoint(2, 1, 1), endpoint(3, 1, 1)]);
        let delta = pb::EndpointsDelta {
            upsert: vec![endpoint(1, 1, 2), endpoint(2, 9, 1), endpoint(3, 1, 1)],
            ..Default::default()
        };
        let (after, _) = before.with_delta(&delta, now());
        assert!(!Arc::ptr_eq(&at(&before, 1), &at(&after, 1)));
        assert!(!Arc::ptr_eq(&at(&before, 2), &at(&after, 2)));
        assert!(Arc::ptr_eq(&at(&before, 3), &at(&after, 3)));
    }

    #[test]
    fn a_delta_may_remove_the_last_endpoint() {
        let before = state(vec![endpoint(1, 1, 1)]);
        let delta = pb::EndpointsDelta {
            remove: vec![pb::SocketAddress { ip: vec![10, 0, 0, 1], port: 8080 }],
            ..Default::default()
        };
        assert!(before.with_delta(&delta, now()).0.endpoints.is_empty());
    }

    #[test]
    fn routes_that_cannot_be_read_stay_as_they_were_and_endpoints_follow() {
        let service = |method: &str, endpoints| {
            let wanted = pb::RouteMatch { method: method.to_owned(), ..Default::default() };
            let route = pb::Route { matches: vec![wanted], ..Default::default() };
            pb::Service { routes: vec![route], endpoints, ..Default::default() }
        };
        let (before, bad) = ServiceState::from_snapshot(None, &service("GET", vec![]), 1, now());
        assert!(bad.is_empty());
        let broken = service("G T", vec![endpoint(1, 1, 1)]);
        let (after, bad) = ServiceState::from_snapshot(Some(&before), &broken, 2, now());
        assert_eq!(bad.len(), 1);
        assert!(Arc::ptr_eq(&before.routes[0], &after.routes[0]));
        assert_eq!(after.endpoints.len(), 1);
    }

    #[test]
    fn an_endpoint_with_a_bad_identity_is_left_out_not_dialled_in_plaintext() {
        let bad = pb::Endpoint { identity: "orders".to_owned(), ..endpoint(1, 1, 0) };
        let service = pb::Service { endpoints: vec![bad, endpoint(2, 1, 1)], ..Default::default() };
        let (state, bad) = ServiceState::from_snapshot(None, &service, 1, now());
        assert_eq!((state.endpoints.len(), bad.len()), (1, 1));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Snapshot(BTreeMap<u8, (u8, u8)>),
        Delta(BTreeMap<u8, (u8, u8)>, Vec<u8>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let endpoints = || prop::collection::btree_map(0u8..8, (0u8..3, 0u8..3), 0..6);
        prop_oneof![
            1 => endpoints().prop_map(Step::Snapshot),
            3 => (endpoints(), prop::collection::vec(0u8..8, 0..4))
                .prop_map(|(upsert, remove)| Step::Delta(upsert, remove)),
        ]
    }

    fn wire(endpoints: &BTreeMap<u8, (u8, u8)>) -> Vec<pb::Endpoint> {
        endpoints.iter().map(|(n, (pod, sa))| endpoint(*n, *pod, *sa)).collect()
    }

    fn content(state: &ServiceState) -> BTreeMap<SocketAddr, (String, Option<String>)> {
        let describe = |e: &Arc<Endpoint>| {
            (e.addr, (e.pod.to_string(), e.identity.as_ref().map(ToString::to_string)))
        };
        let map: BTreeMap<_, _> = state.endpoints.iter().map(describe).collect();
        assert_eq!(map.len(), state.endpoints.len(), "one endpoint for each address");
        map
    }

    proptest! {
        #[test]
        fn any_sequence_of_snapshots_and_deltas_ends_in_the_last_full_state(
            steps in prop::collection::vec(step(), 1..20)
        ) {
            let mut applied = state(Vec::new());
            let mut model: BTreeMap<u8, (u8, u8)> = BTreeMap::new();
            for step in steps {
                let before = applied.clone();
                applied = match step {
                    Step::Snapshot(endpoints) => {
                        model = endpoints;
                        let service =
                            pb::Service { endpoints: wire(&model), ..Default::default() };
                        ServiceState::from_snapshot(Some(&before), &service, 1, now()).0
                    }
                    Step::Delta(upsert, remove) => {
                        model.retain(|n, _| !remove.contains(n));
                        model.extend(upsert.clone());
                        let gone = |n: &u8| pb::SocketAddress { ip: vec![10, 0, 0, *n], port: 8080 };
                        let delta = pb::EndpointsDelta {
                            upsert: wire(&upsert),
                            remove: remove.iter().map(gone).collect(),
                            ..Default::default()
                        };
                        before.with_delta(&delta, now()).0
                    }
                };
                prop_assert_eq!(content(&applied), content(&state(wire(&model))));
                for old in before.endpoints.iter() {
                    if let Some(new) = applied.endpoints.iter().find(|new| new.is_same_peer(old)) {
                        prop_assert!(Arc::ptr_eq(old, new), "a surviving endpoint was replaced");
                    }
                }
            }
        }
    }
}
