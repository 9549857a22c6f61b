//! A small shop, as the index and the proxies would tell it.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{
    answers::Answers,
    cluster::{Asked, Cluster},
    merge::Heard,
};
use crate::{
    index::{
        Name, Sidecar,
        answer::{Endpoint, Head, Snapshot},
        policy::Policy,
        protocol::Protocol,
    },
    source::Distribution,
};

/// A port of a Service in `shop` with these pods of one Deployment, named by the ends of their
/// addresses.
pub(super) fn snapshot(name: &str, port: u16, owner: &str, pods: &[u8]) -> Arc<Snapshot> {
    let head = Head {
        service: Name::new("shop", name),
        port,
        port_name: "http".to_owned(),
        protocol: Protocol::Http1,
        policy: Policy::parse(&BTreeMap::new(), None, None, &mut Vec::new()),
        node_local: false,
        distribution: Distribution::Any,
        routes: None,
    };
    let endpoint = |n: &u8| {
        Arc::new(Endpoint {
            address: ([10, 0, 0, *n], 8080).into(),
            identity: Some(sidecar(owner, *n).identity),
            pod: Some(sidecar(owner, *n).pod),
            owner: format!("Deployment/{owner}").into(),
            node: "n1".into(),
            zone: "".into(),
            for_zones: [].into(),
        })
    };
    Arc::new(Snapshot { head: Arc::new(head), endpoints: pods.iter().map(endpoint).collect() })
}

pub(super) fn sidecar(owner: &str, n: u8) -> Sidecar {
    Sidecar {
        pod: Name::new("shop", &format!("{owner}-{n}")),
        owner: format!("Deployment/{owner}").into(),
        identity: Arc::new(format!("spiffe://cluster.local/ns/shop/sa/{owner}").parse().unwrap()),
        ip: [10, 0, 0, n].into(),
    }
}

/// web-1 and web-2 call orders-3 and orders-4.
pub(super) fn shop() -> Cluster {
    let snapshots =
        vec![snapshot("web", 80, "web", &[1, 2]), snapshot("orders", 80, "orders", &[3, 4])];
    let sidecars =
        vec![sidecar("orders", 3), sidecar("orders", 4), sidecar("web", 1), sidecar("web", 2)];
    Cluster::of(snapshots, sidecars, &HashSet::from([Name::new("shop", "web-1")]))
}

pub(super) fn window(requests: u64, failures: u64, p50_us: u64, p99_us: u64) -> Value {
    json!({"10s": {"seconds": 10.0, "requests": requests, "failures": failures,
        "p50_us": p50_us, "p90_us": p50_us, "p99_us": p99_us, "p999_us": p99_us, "max_us": p99_us}})
}

/// What a caller of `orders` says: of orders-4 as it takes it, and its own requests.
pub(super) fn caller(state: &str, windows: &Value) -> Value {
    let breaker = match state {
        "ready" => json!({"reason": null, "trips": 0, "since_ms": null, "next_probe_ms": null}),
        _ => json!({"reason": "success-rate", "trips": 2, "since_ms": 100, "next_probe_ms": 900}),
    };
    json!({"services": [{"namespace": "shop", "name": "orders", "port": 80, "target": "10.96.0.2:80",
    "protocol": "http/1.1", "windows": windows, "counts": {"requests": 1},
    "routes": [{"name": "shop/orders/0", "windows": windows}],
    "endpoints": [
        {"address": "10.0.0.3:8080", "state": "ready", "ewma_ms": 2.0, "in_flight": 1,
         "breaker": {"reason": null, "trips": 0}, "windows": windows},
        {"address": "10.0.0.4:8080", "state": state, "ewma_ms": 9.0, "in_flight": 2,
         "breaker": breaker, "windows": {}},
    ]}]})
}

pub(super) fn answers(
    endpoints: &Value,
    inbound: &Value,
    events: &Value,
    certs: &Value,
) -> Answers {
    let bodies = [endpoints, inbound, events, certs].map(|value| Some(value.to_string()));
    Answers::parse(&bodies).unwrap()
}

pub(super) fn asked<'a>(cluster: &'a Cluster, pod: &str) -> &'a Asked {
    cluster.asked.iter().find(|asked| &*asked.pod.name == pod).unwrap()
}

/// The whole shop, heard: web-1 has ejected orders-4, web-2 has not, orders-3 says who called, orders-4
/// does not answer.
pub(super) fn heard(cluster: &Cluster) -> Heard {
    let mut heard = Heard::default();
    let event = |at_ms: u64, kind: &str| {
        json!({"at_ms": at_ms, "ago_ms": 1, "service": "shop/orders:80", "endpoint": "10.0.0.4:8080",
            "pod": "orders-4", "kind": kind, "reason": "success-rate", "penalty_ms": 1000})
    };
    let none = json!({});
    let web_1 = answers(
        &caller("open", &window(100, 50, 1000, 9000)),
        &none,
        &json!({"events": [event(2, "ejected"), event(1, "recovered"),
            {"at_ms": 3, "service": "shop/unknown:80", "kind": "ejected"}]}),
        &json!({"identity": "spiffe://cluster.local/ns/shop/sa/web", "not_after": 2000}),
    );
    heard.add(cluster, asked(cluster, "web-1"), web_1);
    let web_2 = answers(
        &caller("ready", &window(300, 0, 2000, 4000)),
        &none,
        &json!({"events": [event(5, "ejected")]}),
        &json!({"not_after": 1000}),
    );
    heard.add(cluster, asked(cluster, "web-2"), web_2);
    let orders_3 = answers(
        &none,
        &json!({"policy": "all-unauthenticated", "ports": [
            {"port": 8080, "windows": {}, "callers": [
                {"id": "spiffe://cluster.local/ns/shop/sa/web", "requests": 7, "failures": 2},
                {"id": "none", "requests": 1, "failures": 0}]},
            {"port": 9999, "callers": [{"id": "none", "requests": 99, "failures": 0}]}]}),
        &none,
        &none,
    );
    heard.add(cluster, asked(cluster, "orders-3"), orders_3);
    heard.fail(asked(cluster, "orders-4"), "no answer within 1 s".to_owned());
    heard.finish(cluster);
    heard
}
