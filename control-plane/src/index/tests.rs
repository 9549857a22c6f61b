use std::net::SocketAddr;

use k8s_openapi::api::discovery::v1 as discovery;
use serde_json::{Value, json};

use super::{
    answer::{Endpoint, Inbound},
    policy::{affinity::Affinity, timeouts::Timeouts},
    protocol::Protocol,
    *,
};

fn namespace(name: &str, annotations: Value) -> Event {
    let object = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "annotations": annotations}});
    let object: core::Namespace = serde_json::from_value(object).unwrap();
    Event::Apply(Object::Namespace(Arc::new((&object).into())))
}

fn service(name: &str, spec: Value, annotations: Value) -> Event {
    let object = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "annotations": annotations}, "spec": spec});
    let object: core::Service = serde_json::from_value(object).unwrap();
    Event::Apply(Object::Service(Arc::new((&object).into())))
}

fn orders() -> Event {
    let ports = json!([{"name": "http", "port": 80}, {"name": "admin", "port": 9090}]);
    service("orders", json!({"clusterIP": "10.96.0.5", "ports": ports}), json!({}))
}

fn pod(name: &str, ip: &str, annotations: Value) -> Event {
    let object = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "annotations": annotations,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "orders",
                "uid": "", "controller": true}]},
        "spec": {"serviceAccountName": "orders", "nodeName": "n1", "containers": [
            {"name": "c", "ports": [{"name": "web", "containerPort": 8080}],
             "readinessProbe": {"httpGet": {"path": "/healthz?full", "port": "web"}}}]},
        "status": {"podIP": ip}});
    let object: core::Pod = serde_json::from_value(object).unwrap();
    Event::Apply(Object::Pod(Arc::new(source::Pod::described(&object))))
}

fn meshed(name: &str, ip: &str) -> Event {
    pod(name, ip, json!({"remora.io/proxy-version": "0.1.0"}))
}

/// Endpoints as (pod, address, ready, serving, terminating).
fn slice(name: &str, endpoints: &[(&str, &str, bool, bool, bool)]) -> Event {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(pod, ip, ready, serving, terminating)| {
            json!({"addresses": [ip], "targetRef": {"kind": "Pod", "name": pod, "namespace": "shop"},
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
        })
        .collect();
    let object = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "orders"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080}, {"name": "admin", "port": 9090}]});
    let object: discovery::EndpointSlice = serde_json::from_value(object).unwrap();
    Event::Apply(Object::EndpointSlice(Arc::new((&object).into())))
}

fn delete(kind: Kind, name: &str) -> Event {
    Event::Delete(Key { kind, namespace: "shop".to_owned(), name: name.to_owned() })
}

fn index(events: impl IntoIterator<Item = Event>) -> Index {
    let mut index = Index::new("cluster.local", "cluster.local");
    index.apply(events);
    index
}

fn caller() -> Caller {
    Caller { namespace: "shop".to_owned(), pod: "web-0".to_owned(), ..Caller::default() }
}

fn at(index: &Index, address: &str) -> Answer {
    index.resolve(&Target::Address(address.parse().unwrap()), &caller())
}

fn named(index: &Index, authority: &str) -> Answer {
    index.resolve(&Target::authority(authority).unwrap(), &caller())
}

fn endpoints(answer: &Answer) -> Vec<Arc<Endpoint>> {
    let Answer::Service(snapshot) = answer else { panic!("no service: {answer:?}") };
    snapshot.endpoints.to_vec()
}

fn addresses(answer: &Answer) -> Vec<String> {
    endpoints(answer).iter().map(|e| e.address.to_string()).collect()
}

fn shop() -> Vec<Event> {
    vec![
        namespace("shop", json!({})),
        orders(),
        meshed("orders-0", "10.244.0.7"),
        pod("orders-1", "10.244.0.8", json!({})),
        slice(
            "s",
            &[
                ("orders-0", "10.244.0.7", true, true, false),
                ("orders-1", "10.244.0.8", true, true, false),
            ],
        ),
    ]
}

#[test]
fn a_cluster_ip_and_port_are_the_service_with_endpoints_at_their_target_port() {
    let index = index(shop());
    let answer = at(&index, "10.96.0.5:80");
    assert_eq!(addresses(&answer), ["10.244.0.7:8080", "10.244.0.8:8080"]);
    assert_eq!(addresses(&at(&index, "[::ffff:10.96.0.5]:9090"))[0], "10.244.0.7:9090");
    let meshed = &endpoints(&answer)[0];
    assert_eq!(
        meshed.identity.as_ref().unwrap().as_str(),
        "spiffe://cluster.local/ns/shop/sa/orders"
    );
    assert_eq!((&*meshed.owner, &*meshed.node), ("Deployment/orders", "n1"));
    assert_eq!(endpoints(&answer)[1].identity, None, "no sidecar, no identity");
}

#[test]
fn a_port_that_the_service_lacks_is_refused_naming_those_it_has() {
    let index = index(shop());
    let refused = Answer::Refused("service shop/orders has no port 81; it has 80, 9090".into());
    assert_eq!(at(&index, "10.96.0.5:81"), refused);
    assert_eq!(named(&index, "orders:81"), refused);
}

#[test]
fn a_pod_address_is_the_pod_and_anything_else_is_not_ours() {
    let index = index(shop());
    let Answer::Pod(port) = at(&index, "10.244.0.7:3000") else { panic!() };
    assert_eq!(port.endpoint.address, "10.244.0.7:3000".parse::<SocketAddr>().unwrap());
    assert!(port.endpoint.identity.is_some());
    assert_eq!(at(&index, "192.0.2.1:80"), Answer::NotOurs);
}

#[test]
fn names_resolve_in_the_callers_namespace_and_by_every_suffix() {
    let index = index(shop());
    let answer = at(&index, "10.96.0.5:80");
    for name in [
        "orders",
        "Orders.shop",
        "orders.shop.svc",
        "orders.shop.svc.cluster.local",
        "orders.shop.svc.cluster.local.",
    ] {
        assert_eq!(named(&index, &format!("{name}:80")), answer, "{name}");
    }
    assert_eq!(named(&index, "orders"), answer, "port 80 is understood");
    assert_eq!(named(&index, "10.96.0.5:80"), answer);
    for name in [
        "orders.other",
        "example.com",
        "a.orders.shop.svc.cluster.local",
        "orders.cluster.local",
        "shop.svc",
    ] {
        assert_eq!(named(&index, &format!("{name}:80")), Answer::NotOurs, "{name}");
    }
    let elsewhere = Caller { namespace: "other".to_owned(), ..Caller::default() };
    let target = Target::authority("orders:80").unwrap();
    assert_eq!(index.resolve(&target, &elsewhere), Answer::NotOurs);
}

#[test]
fn headless_and_external_names_are_not_ours() {
    let headless = json!({"clusterIP": "None", "ports": [{"port": 80}]});
    let external = json!({"type": "ExternalName", "externalName": "example.com"});
    let index = index([service("h", headless, json!({})), service("e", external, json!({}))]);
    assert_eq!(named(&index, "h:80"), Answer::NotOurs);
    assert_eq!(named(&index, "e:80"), Answer::NotOurs);
}

#[test]
fn terminating_endpoints_serve_only_where_none_is_ready() {
    let mut index = index(shop());
    index.apply([slice(
        "s",
        &[
            ("orders-0", "10.244.0.7", false, true, true),
            ("orders-1", "10.244.0.8", true, true, false),
        ],
    )]);
    assert_eq!(addresses(&at(&index, "10.96.0.5:80")), ["10.244.0.8:8080"]);
    index.apply([slice(
        "s",
        &[
            ("orders-0", "10.244.0.7", false, true, true),
            ("orders-1", "10.244.0.8", false, false, false),
        ],
    )]);
    assert_eq!(addresses(&at(&index, "10.96.0.5:80")), ["10.244.0.7:8080"]);
    index.apply([slice("s", &[("orders-0", "10.244.0.7", false, false, true)])]);
    assert!(addresses(&at(&index, "10.96.0.5:80")).is_empty(), "none is not unknown");
}

#[test]
fn slices_are_merged_and_a_replaced_one_is_never_seen_missing() {
    let mut index = index(shop());
    index.apply([
        meshed("orders-2", "10.244.0.9"),
        slice("t", &[("orders-2", "10.244.0.9", true, true, false)]),
    ]);
    assert_eq!(addresses(&at(&index, "10.96.0.5:80")).len(), 3);
    let before = at(&index, "10.96.0.5:80");
    index.apply([
        delete(Kind::EndpointSlice, "t"),
        slice("u", &[("orders-2", "10.244.0.9", true, true, false)]),
    ]);
    let (Answer::Service(before), Answer::Service(after)) = (before, at(&index, "10.96.0.5:80"))
    else {
        panic!()
    };
    assert!(Arc::ptr_eq(&before, &after), "nothing changed, nothing is made anew");
}

#[test]
fn an_endpoint_whose_pod_is_not_known_is_withheld_rather_than_dialled_in_plaintext() {
    let events = [orders(), slice("s", &[("orders-0", "10.244.0.7", true, true, false)])];
    let mut index = index(events);
    assert!(addresses(&at(&index, "10.96.0.5:80")).is_empty());
    index.apply([meshed("orders-0", "10.244.0.7")]);
    assert!(endpoints(&at(&index, "10.96.0.5:80"))[0].identity.is_some());
    index.apply([meshed("orders-0", "10.244.0.99")]);
    assert!(addresses(&at(&index, "10.96.0.5:80")).is_empty(), "the address is someone else's");
}

#[test]
fn ports_that_bypass_the_sidecar_have_no_identity() {
    let annotations =
        json!({"remora.io/proxy-version": "0.1.0", "config.remora.io/skip-inbound-ports": "3000"});
    let index = index([pod("p", "10.244.0.7", annotations)]);
    let identity = |address| match at(&index, address) {
        Answer::Pod(port) => port.endpoint.identity.clone(),
        other => panic!("{other:?}"),
    };
    assert!(identity("10.244.0.7:80").is_some());
    assert!(identity("10.244.0.7:3000").is_none());
    assert!(identity("10.244.0.7:4191").is_none());
}

#[test]
fn a_namespaces_bypass_holds_for_its_pods_unless_they_say_otherwise() {
    let skip = |ports| json!({"config.remora.io/skip-inbound-ports": ports});
    let own = json!({"remora.io/proxy-version": "1", "config.remora.io/skip-inbound-ports": "22"});
    let mut index = index(shop());
    index.apply([pod("own", "10.244.0.9", own), namespace("shop", skip("8080,3000"))]);
    let identity = |index: &Index, address| match at(index, address) {
        Answer::Pod(port) => port.endpoint.identity.clone(),
        Answer::Service(_) => endpoints(&at(index, address))[0].identity.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(identity(&index, "10.244.0.7:3000"), None);
    assert_eq!(identity(&index, "10.96.0.5:80"), None, "endpoints of a Service too");
    assert!(identity(&index, "10.96.0.5:9090").is_some());
    assert!(identity(&index, "10.244.0.9:3000").is_some(), "the pod's own list replaces it");
    assert_eq!(identity(&index, "10.244.0.9:22"), None);
    index.apply([namespace("shop", json!({}))]);
    assert!(identity(&index, "10.96.0.5:80").is_some(), "an edit takes effect");
}

#[test]
fn opaque_ports_come_from_service_then_namespace_then_the_default_list() {
    let protocol = |index: &Index| match at(index, "10.96.0.5:3306") {
        Answer::Service(snapshot) => snapshot.head.protocol,
        other => panic!("{other:?}"),
    };
    let spec = json!({"clusterIP": "10.96.0.5", "ports": [{"port": 3306}]});
    let opaque = |ports| json!({"config.remora.io/opaque-ports": ports});
    let mut index = index([namespace("shop", json!({})), service("db", spec.clone(), json!({}))]);
    assert_eq!(protocol(&index), Protocol::Opaque);
    index.apply([namespace("shop", opaque("1"))]);
    assert_eq!(protocol(&index), Protocol::Detect);
    index.apply([service("db", spec, opaque("3306"))]);
    assert_eq!(protocol(&index), Protocol::Opaque);
}

fn policy(annotations: Value) -> (policy::Policy, Vec<String>) {
    let mut index = Index::new("cluster.local", "cluster.local");
    let spec = json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]});
    let applied = index.apply([service("orders", spec, annotations)]);
    let Answer::Service(snapshot) = at(&index, "10.96.0.5:80") else { panic!() };
    (snapshot.head.policy.clone(), applied.warnings.iter().map(ToString::to_string).collect())
}

#[test]
fn annotations_become_policy() {
    let (policy, warnings) = policy(json!({
        "balancer.remora.io/failure-accrual": "consecutive",
        "balancer.remora.io/failure-accrual-consecutive-max-failures": "3",
        "balancer.remora.io/failure-accrual-consecutive-min-penalty": "2s",
        "balancer.remora.io/failure-accrual-consecutive-max-penalty": "1m",
        "balancer.remora.io/failure-accrual-consecutive-jitter-ratio": "0.1",
        "retry.remora.io/http": "429, gateway-error,500-501",
        "retry.remora.io/grpc": "unavailable,8",
        "retry.remora.io/limit": "2",
        "retry.remora.io/timeout": "250ms",
        "retry.remora.io/methods": "GET,POST",
        "timeout.remora.io/request": "10s",
        "timeout.remora.io/connect": "500ms",
    }));
    assert_eq!(warnings, Vec::<String>::new());
    let breaker = &policy.breaker;
    assert!(breaker.enabled);
    assert_eq!((breaker.consecutive_failures, breaker.jitter_ratio), (3, 0.1));
    assert_eq!((breaker.min_penalty.as_secs(), breaker.max_penalty.as_secs()), (2, 60));
    let retry = policy.retry.unwrap();
    assert_eq!(retry.http, [429..=429, 502..=504, 500..=501]);
    assert_eq!((retry.grpc, retry.limit), (vec![14, 8], 2));
    assert_eq!(retry.methods, ["GET", "POST"]);
    assert_eq!(policy.timeouts.request.unwrap().as_secs(), 10);
}

#[test]
fn without_annotations_the_breaker_is_on_and_retries_are_off() {
    let (policy, _) = policy(json!({}));
    assert!(policy.breaker.enabled && policy.breaker.consecutive_failures == 7);
    assert_eq!(policy.retry, None);
    assert_eq!(policy.timeouts, Timeouts::default());
}

#[test]
fn a_bad_annotation_is_a_warning_with_object_and_mend() {
    let (policy, warnings) = policy(json!({
        "balancer.remora.io/failure-accrual": "sometimes",
        "retry.remora.io/hhtp": "503",
        "timeout.remora.io/idle": "5 s",
    }));
    assert!(policy.breaker.enabled);
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(
        warnings[0].starts_with("Service shop/orders: annotation retry.remora.io/hhtp: unknown")
    );
    assert_eq!(
        warnings[1],
        "Service shop/orders: annotation balancer.remora.io/failure-accrual: \"sometimes\": use consecutive, success-rate or none; what held before, or else the default, stays in force"
    );
}

#[test]
fn a_policy_that_turns_bad_stays_as_it_was() {
    let spec = json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]});
    let timeout =
        |value| service("orders", spec.clone(), json!({"timeout.remora.io/request": value}));
    let mut index = index([timeout("3s")]);
    assert_eq!(index.apply([timeout("fast")]).warnings.len(), 1);
    assert_eq!(index.apply([timeout("fast")]).warnings.len(), 0, "told once");
    let Answer::Service(snapshot) = at(&index, "10.96.0.5:80") else { panic!() };
    assert_eq!(snapshot.head.policy.timeouts.request.unwrap().as_secs(), 3);
}

#[test]
fn session_affinity_of_the_service_is_policy_and_follows_its_changes() {
    let spec = |affinity: &str| {
        json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}], "sessionAffinity": affinity,
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}})
    };
    let affinity = |index: &Index| {
        let Answer::Service(snapshot) = at(index, "10.96.0.5:80") else { panic!() };
        snapshot.head.policy.affinity.clone()
    };
    let mut index = index([service("orders", spec("ClientIP"), json!({}))]);
    let timeout = std::time::Duration::from_secs(60);
    assert_eq!(affinity(&index), Some(Affinity::ClientAddress { timeout }));
    index.apply([service("orders", spec("None"), json!({}))]);
    assert_eq!(affinity(&index), None);
}

fn inbound(index: &Index, pod: &str) -> Arc<Inbound> {
    let caller = Caller { namespace: "shop".to_owned(), pod: pod.to_owned(), ..Caller::default() };
    let Answer::Inbound(inbound) = index.resolve(&Target::Inbound, &caller) else { panic!() };
    inbound
}

#[test]
fn inbound_policy_is_the_pods_then_the_namespaces_with_probe_paths() {
    let policy = |word| json!({"config.remora.io/default-inbound-policy": word});
    let index = index([
        namespace("shop", policy("deny")),
        pod("a", "10.244.0.7", policy("all-authenticated")),
        pod("b", "10.244.0.8", json!({"config.remora.io/opaque-ports": "8080"})),
    ]);
    assert_eq!(inbound(&index, "a").default_policy.to_string(), "all-authenticated");
    assert_eq!(inbound(&index, "b").default_policy.to_string(), "deny");
    assert_eq!(inbound(&index, "unknown").default_policy.to_string(), "deny");
    let ports = &inbound(&index, "b").ports;
    assert_eq!(ports.len(), 1);
    assert_eq!((ports[0].port, ports[0].protocol), (8080, Protocol::Opaque));
    assert_eq!(ports[0].probe_paths, ["/healthz"]);
}

#[test]
fn only_those_who_asked_for_what_changed_are_touched() {
    let mut index = index(shop());
    let caller = Arc::new(caller());
    let targets = [
        Target::Address("10.96.0.5:80".parse().unwrap()),
        Target::authority("orders:80").unwrap(),
        Target::Address("10.244.0.8:80".parse().unwrap()),
        Target::authority("other:80").unwrap(),
        Target::Address("192.0.2.1:80".parse().unwrap()),
    ];
    for (id, target) in targets.into_iter().enumerate() {
        index.subscribe(SubscriberId { stream: 1, id: id as u64 }, target, Arc::clone(&caller));
    }
    let ids = |applied: Applied| {
        let mut ids: Vec<u64> = applied.touched.iter().map(|id| id.id).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(
        ids(index.apply([pod("orders-1", "10.244.0.8", json!({"remora.io/proxy-version": "1"}))])),
        [0, 1, 2]
    );
    assert_eq!(ids(index.apply([orders()])), Vec::<u64>::new(), "the same again changes nothing");
    let other = json!({"clusterIP": "10.96.0.6", "ports": [{"port": 80}]});
    assert_eq!(ids(index.apply([service("other", other, json!({}))])), [3]);
    assert_eq!(ids(index.apply([delete(Kind::Service, "orders")])), [0, 1]);
    assert_eq!(at(&index, "10.96.0.5:80"), Answer::NotOurs);
}

#[test]
fn what_changes_no_answer_touches_nobody() {
    let mut index = index(shop());
    let target = Target::Address("10.96.0.5:80".parse().unwrap());
    index.subscribe(SubscriberId { stream: 1, id: 1 }, target, Arc::new(caller()));
    let stays = ("orders-0", "10.244.0.7", true, true, false);
    let gone = ("orders-1", "10.244.0.8", false, true, true);
    let mut touches = |event: Event| !index.apply([event]).touched.is_empty();
    assert!(touches(slice("s", &[stays, gone])), "it leaves the Service");
    let probed = json!({"config.remora.io/default-inbound-policy": "deny"});
    assert!(!touches(pod("orders-1", "10.244.0.8", probed)), "another pod now, not an endpoint");
    assert!(!touches(slice("s", &[stays])), "out of the slice too");
    assert!(!touches(delete(Kind::Pod, "orders-1")));
    assert!(touches(slice("s", &[])));
}

#[test]
fn internal_traffic_policy_local_keeps_to_the_callers_node() {
    let spec = json!({"clusterIP": "10.96.0.5", "internalTrafficPolicy": "Local",
        "ports": [{"name": "http", "port": 80}]});
    let mut events = shop();
    events.push(service("orders", spec, json!({})));
    let index = index(events);
    let on = |node: &str| {
        let caller = Caller { node: node.to_owned(), ..caller() };
        addresses(&index.resolve(&Target::Address("10.96.0.5:80".parse().unwrap()), &caller)).len()
    };
    assert_eq!((on("n1"), on("n2"), on("")), (2, 0, 2));
}

fn node(name: &str, zone: &str) -> Event {
    let name = Name::new("", name);
    Event::Apply(Object::Node(Arc::new(source::Node { name, zone: zone.into() })))
}

#[test]
fn zones_come_from_the_slice_then_the_pod_then_its_node_and_follow_the_node() {
    let zones = |index: &Index| -> Vec<String> {
        endpoints(&at(index, "10.96.0.5:80")).iter().map(|e| e.zone.to_string()).collect()
    };
    let mut index = index(shop());
    assert_eq!(zones(&index), ["", ""]);
    let caller = Caller { node: "n1".to_owned(), ..caller() };
    let target = Target::Address("10.96.0.5:80".parse().unwrap());
    let id = SubscriberId { stream: 1, id: 1 };
    index.subscribe(id, target, Arc::new(caller.clone()));
    assert!(index.apply([node("n1", "a")]).touched.contains(&id));
    assert_eq!(zones(&index), ["a", "a"]);
    assert_eq!(&*index.zone_of(&caller), "a");
    assert!(index.apply([node("n1", "a"), node("n2", "b")]).touched.is_empty(), "nothing changed");
    index.apply([Event::Replace(Kind::Node, Vec::new())]);
    assert_eq!(zones(&index), ["", ""]);
    let said = Caller { zone: "z".to_owned(), ..caller };
    assert_eq!(&*index.zone_of(&said), "z", "what the proxy says itself wins");
}

#[test]
fn a_list_of_one_kind_leaves_the_others_alone_and_the_state_is_never_empty() {
    let mut index = index(shop());
    let pods = [meshed("orders-0", "10.244.0.7"), meshed("orders-3", "10.244.0.11")];
    let pods = pods.into_iter().filter_map(|event| match event {
        Event::Apply(object) => Some(object),
        _ => None,
    });
    index.apply([Event::Replace(Kind::Pod, pods.collect())]);
    assert_eq!(addresses(&at(&index, "10.96.0.5:80")), ["10.244.0.7:8080"], "orders-1 is gone");
    assert!(matches!(at(&index, "10.244.0.11:80"), Answer::Pod(_)));
    assert_eq!(at(&index, "10.244.0.8:80"), Answer::NotOurs);
}
