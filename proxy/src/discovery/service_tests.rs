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
        let service = pb::Service { topology, endpoints: endpoints.to_vec(), ..Default::default() };
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
fn hints_take_the_place_of_an_endpoints_own_zone_and_may_change() {
    let hinted = |n: u8, zones: &[&str]| pb::Endpoint {
        zone: "b".to_owned(),
        for_zones: zones.iter().map(|zone| (*zone).to_owned()).collect(),
        ..endpoint(n, n, 1)
    };
    let prefer = pb::topology::Prefer::SameZone.into();
    let topology = pb::Topology { prefer, zone: "a".into(), ..Default::default() };
    let endpoints = vec![hinted(1, &["a", "c"]), hinted(2, &["b"])];
    let service = pb::Service { topology: Some(topology), endpoints, ..Default::default() };
    let (before, _) = ServiceState::from_snapshot(None, &service, 1, now());
    assert_eq!(before.endpoints.near(), Some(&[0][..]));
    let upsert = vec![hinted(1, &["b"]), hinted(2, &["a"])];
    let delta = pb::EndpointsDelta { upsert, ..Default::default() };
    let (after, _) = before.with_delta(&delta, now());
    assert_eq!(after.endpoints.near(), Some(&[1][..]));
    assert!(Arc::ptr_eq(&at(&before, 1), &at(&after, 1)), "its statistics stay");
    let upsert = vec![hinted(1, &[]), hinted(2, &[])];
    let delta = pb::EndpointsDelta { upsert, ..Default::default() };
    assert_eq!(after.with_delta(&delta, now()).0.endpoints.near(), None, "their own zone counts");
}

#[test]
fn a_snapshot_keeps_the_statistics_of_surviving_endpoints() {
    let before = state(vec![endpoint(1, 1, 1), endpoint(2, 1, 1)]);
    let service =
        pb::Service { endpoints: vec![endpoint(2, 1, 1), endpoint(3, 1, 1)], ..Default::default() };
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
