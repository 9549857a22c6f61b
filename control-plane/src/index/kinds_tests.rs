//! Kinds of Services and of callers, where what is answered is all there is to it.

use std::net::SocketAddr;

use k8s_openapi::api::discovery::v1 as discovery;
use serde_json::{Value, json};

use super::{
    answer::{Answer, Caller, Target},
    protocol::Protocol,
    *,
};

fn namespace(annotations: Value) -> Event {
    let object = json!({"metadata": {"name": "shop", "annotations": annotations}});
    let object: core::Namespace = serde_json::from_value(object).unwrap();
    Event::Apply(Object::Namespace(Arc::new((&object).into())))
}

fn service(name: &str, spec: Value) -> Event {
    let object = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
    let object: core::Service = serde_json::from_value(object).unwrap();
    Event::Apply(Object::Service(Arc::new((&object).into())))
}

fn pod(name: &str, ip: &str, annotations: Value) -> Event {
    let mut all = json!({"remora.io/proxy-version": "1"});
    all.as_object_mut().unwrap().extend(annotations.as_object().unwrap().clone());
    let object = json!({"metadata": {"name": name, "namespace": "shop", "annotations": all},
        "spec": {"containers": []}, "status": {"podIP": ip, "podIPs": [{"ip": ip}]}});
    let object: core::Pod = serde_json::from_value(object).unwrap();
    Event::Apply(Object::Pod(Arc::new(source::Pod::described(&object))))
}

/// A slice of `service` whose endpoints are these pods at these addresses, at port 8080.
fn slice(name: &str, service: &str, endpoints: &[(&str, &str)]) -> Event {
    let conditions = json!({"ready": true});
    let endpoint = |(pod, ip): &(&str, &str)| {
        json!({"addresses": [ip], "conditions": conditions,
            "targetRef": {"kind": "Pod", "name": pod, "namespace": "shop"}})
    };
    let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
    let object = json!({"metadata": {"name": name, "namespace": "shop",
        "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv6",
        "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}]});
    let object: discovery::EndpointSlice = serde_json::from_value(object).unwrap();
    Event::Apply(Object::EndpointSlice(Arc::new((&object).into())))
}

fn balanced(name: &str, ip: &str) -> Event {
    service(name, json!({"clusterIP": ip, "ports": [{"name": "http", "port": 80}]}))
}

fn caller() -> Caller {
    Caller { namespace: "shop".to_owned(), pod: "gate".to_owned(), ..Caller::default() }
}

fn target(address: &str) -> Target {
    Target::Address(address.parse::<SocketAddr>().unwrap())
}

fn at(index: &Index, address: &str) -> Answer {
    index.resolve(&target(address), &caller())
}

fn index(events: impl IntoIterator<Item = Event>) -> Index {
    let mut index = Index::new("cluster.local", "cluster.local");
    index.apply(events);
    index
}

/// The Service that is answered, or `None` for anything else.
fn of_service(answer: &Answer) -> Option<(&str, usize)> {
    let Answer::Service(snapshot) = answer else { return None };
    Some((&snapshot.head.service.name, snapshot.endpoints.len()))
}

const DENY: &str = "config.remora.io/default-outbound-policy";
const INGRESS: &str = "config.remora.io/ingress";

#[test]
fn what_is_outside_is_refused_by_the_pods_word_then_the_namespaces() {
    let mut index = index([namespace(json!({DENY: "deny"})), pod("gate", "10.0.0.9", json!({}))]);
    let alias = service("alias", json!({"type": "ExternalName", "externalName": "example.com"}));
    index.apply([alias, balanced("orders", "10.96.0.1")]);
    let Answer::Refused(why) = at(&index, "192.0.2.1:443") else { panic!() };
    for part in ["192.0.2.1:443", DENY, "namespace shop"] {
        assert!(why.contains(part), "{why}");
    }
    let by_name = index.resolve(&Target::authority("alias.shop:80").unwrap(), &caller());
    assert!(matches!(by_name, Answer::Refused(_)), "{by_name:?}");
    assert!(of_service(&at(&index, "10.96.0.1:80")).is_some(), "a Service is inside");
    index.apply([pod("gate", "10.0.0.9", json!({DENY: "allow"}))]);
    assert_eq!(at(&index, "192.0.2.1:443"), Answer::NotOurs);
    index.apply([namespace(json!({})), pod("gate", "10.0.0.9", json!({DENY: "deny"}))]);
    let Answer::Refused(why) = at(&index, "192.0.2.1:443") else { panic!() };
    assert!(why.contains("pod shop/gate"), "{why}");
}

#[test]
fn who_asked_for_what_is_outside_hears_of_a_change_of_policy() {
    let mut index = index([namespace(json!({})), pod("gate", "10.0.0.9", json!({}))]);
    let id = SubscriberId { stream: 1, id: 1 };
    index.subscribe(id, target("192.0.2.1:443"), Arc::new(caller()));
    let touched = |applied: Applied| applied.touched.contains(&id);
    assert!(touched(index.apply([namespace(json!({DENY: "deny"}))])));
    assert!(!touched(index.apply([namespace(json!({DENY: "deny", "remora.io/x": "1"}))])));
    assert!(touched(index.apply([pod("gate", "10.0.0.9", json!({DENY: "allow"}))])));
    let gone = Key { kind: Kind::Namespace, namespace: String::new(), name: "shop".to_owned() };
    assert!(touched(index.apply([Event::Delete(gone)])));
}

#[test]
fn a_controller_in_front_that_dials_a_pod_means_the_one_service_of_that_endpoint() {
    let pods = [("a", "10.0.0.1"), ("b", "10.0.0.2")];
    let mut index = index([
        balanced("orders", "10.96.0.1"),
        slice("s", "orders", &pods),
        pod("a", "10.0.0.1", json!({})),
        pod("b", "10.0.0.2", json!({})),
        pod("gate", "10.0.0.9", json!({})),
    ]);
    assert!(matches!(at(&index, "10.0.0.1:8080"), Answer::Pod(_)), "others mean the pod");
    let id = SubscriberId { stream: 1, id: 1 };
    index.subscribe(id, target("10.0.0.1:8080"), Arc::new(caller()));
    let applied = index.apply([pod("gate", "10.0.0.9", json!({INGRESS: "enabled"}))]);
    assert!(applied.touched.contains(&id));
    assert_eq!(of_service(&at(&index, "10.0.0.1:8080")), Some(("orders", 2)));
    assert!(matches!(at(&index, "10.0.0.1:9090"), Answer::Pod(_)), "no port of a Service");

    // Another Service over the same pods: nobody can tell which is meant. A headless one does not count.
    let headless =
        service("each", json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}));
    index.apply([headless, slice("h", "each", &pods)]);
    assert_eq!(of_service(&at(&index, "10.0.0.1:8080")), Some(("orders", 2)));
    let applied = index.apply([balanced("both", "10.96.0.2"), slice("t", "both", &pods)]);
    assert!(applied.touched.contains(&id));
    assert!(matches!(at(&index, "10.0.0.1:8080"), Answer::Pod(_)));
    let applied = index.apply([slice("t", "both", &[])]);
    assert!(applied.touched.contains(&id));
    assert_eq!(of_service(&at(&index, "10.0.0.1:8080")), Some(("orders", 2)));

    // What happens to the Service is told to those who dialled one of its pods.
    let applied = index.apply([slice("s", "orders", &pods[..1])]);
    assert!(applied.touched.contains(&id));
    assert_eq!(of_service(&at(&index, "10.0.0.1:8080")), Some(("orders", 1)));
    let applied = index.apply([slice("s", "orders", &pods[1..])]);
    assert!(applied.touched.contains(&id));
    assert!(matches!(at(&index, "10.0.0.1:8080"), Answer::Pod(_)), "an endpoint no more");
}

#[test]
fn an_address_that_is_handed_on_means_the_service_whichever_pod_its_slice_names() {
    let mut index = index([
        balanced("orders", "10.96.0.1"),
        pod("gate", "10.0.0.9", json!({INGRESS: "enabled"})),
        pod("a-has-it-now", "10.0.0.1", json!({})),
        pod("b-had-it", "10.0.0.1", json!({})),
        slice("s", "orders", &[("b-had-it", "10.0.0.1")]),
    ]);
    assert_eq!(of_service(&at(&index, "10.0.0.1:8080")), Some(("orders", 1)));

    // Of a pod without an address yet nobody knows that it is meant; by another slice that names the
    // one which has the address everybody does, though the Service's endpoints are as before.
    let id = SubscriberId { stream: 1, id: 1 };
    index.subscribe(id, target("10.0.0.1:8080"), Arc::new(caller()));
    let nowhere = json!({"metadata": {"name": "b-had-it", "namespace": "shop"},
        "spec": {"containers": []}});
    let nowhere: core::Pod = serde_json::from_value(nowhere).unwrap();
    index.apply([Event::Apply(Object::Pod(Arc::new(source::Pod::described(&nowhere))))]);
    assert!(matches!(at(&index, "10.0.0.1:8080"), Answer::Pod(_)));
    let applied = index.apply([slice("t", "orders", &[("a-has-it-now", "10.0.0.1")])]);
    assert!(applied.touched.contains(&id));
    assert_eq!(of_service(&at(&index, "10.0.0.1:8080")), Some(("orders", 1)));
}

#[test]
fn a_service_of_both_families_is_found_by_either_address_and_one_of_ipv6_by_its_own() {
    let spec = json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
        "ports": [{"name": "http", "port": 80}]});
    let index = index([
        service("dual", spec),
        balanced("six", "fd00:96::2"),
        pod("a", "fd00::1", json!({})),
        slice("d", "dual", &[("a", "fd00::1")]),
        slice("s", "six", &[("a", "fd00::1")]),
    ]);
    for (address, name) in
        [("10.96.0.1:80", "dual"), ("[fd00:96::1]:80", "dual"), ("[fd00:96::2]:80", "six")]
    {
        let answer = at(&index, address);
        assert_eq!(of_service(&answer), Some((name, 1)), "{address}");
        let Answer::Service(snapshot) = answer else { panic!() };
        let endpoint = &snapshot.endpoints[0];
        assert_eq!(endpoint.address.to_string(), "[fd00::1]:8080");
        assert!(endpoint.identity.is_some(), "no mTLS for {address}");
    }
    let Answer::Pod(pod) = at(&index, "[fd00::1]:8080") else { panic!() };
    assert_eq!(pod.protocol, Protocol::Detect);
}

/// Zones that endpoints are for, by address, and what the Service prefers.
fn hints(index: &Index) -> (source::Distribution, Vec<Vec<String>>) {
    let Answer::Service(snapshot) = index.resolve(&target("10.96.0.5:80"), &caller()) else {
        panic!()
    };
    let zones = |endpoint: &Arc<answer::Endpoint>| {
        endpoint.for_zones.iter().map(ToString::to_string).collect()
    };
    (snapshot.head.distribution, snapshot.endpoints.iter().map(zones).collect())
}

#[test]
fn hints_count_where_every_endpoint_has_them_whatever_the_service_says() {
    use source::Distribution::{Any, SameNode, SameZone};
    let slice = |zones: &[&[&str]]| {
        let endpoint = |(n, zones): (usize, &&[&str])| {
            let zones: Vec<Value> = zones.iter().map(|zone| json!({"name": zone})).collect();
            json!({"addresses": [format!("10.244.0.{}", n + 1)], "hints": {"forZones": zones}})
        };
        let endpoints: Vec<Value> = zones.iter().enumerate().map(endpoint).collect();
        let object = json!({"metadata": {"name": "orders-x", "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "orders"}}, "addressType": "IPv4",
            "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}]});
        let object: discovery::EndpointSlice = serde_json::from_value(object).unwrap();
        Event::Apply(Object::EndpointSlice(Arc::new((&object).into())))
    };
    let mut index = Index::new("cluster.local", "cluster.local");
    index.apply([balanced("orders", "10.96.0.5"), slice(&[&["a"], &["b", "c"]])]);
    let words = |zones: &[&[&str]]| -> Vec<Vec<String>> {
        zones.iter().map(|zones| zones.iter().map(|zone| (*zone).to_owned()).collect()).collect()
    };
    assert_eq!(hints(&index), (SameZone, words(&[&["a"], &["b", "c"]])));
    index.apply([slice(&[&["a"], &[]])]);
    assert_eq!(hints(&index), (Any, words(&[&[], &[]])), "one has none");
    let spec = json!({"clusterIP": "10.96.0.5", "ports": [{"name": "http", "port": 80}],
        "trafficDistribution": "PreferSameNode"});
    index.apply([service("orders", spec), slice(&[&["a"], &["b"]])]);
    assert_eq!(hints(&index), (SameNode, words(&[&["a"], &["b"]])));
    index.apply([slice(&[])]);
    assert_eq!(hints(&index), (SameNode, words(&[])));
}
