//! Whose routes hold for whom, and on which ports.

use std::net::SocketAddr;

use remora_tests::{mesh::Mesh, sidecar::Sidecar, wait::eventually};
use serde_json::{Value, json};

use super::{
    backends::elsewhere,
    shop::{Ask, Shop, WAYS, Way, application, marked, route},
};

/// A route of a namespace on `bank/pay` that names itself in the response.
fn on_pay(namespace: &str, name: &str) -> Value {
    let mut object = route(name, json!([marked(name, json!([]))]));
    object["metadata"]["namespace"] = json!(namespace);
    object["spec"]["parentRefs"][0]["namespace"] = json!("bank");
    object["spec"]["parentRefs"][0]["name"] = json!("pay");
    let backend = json!([{"name": "pay", "namespace": "bank", "port": 80}]);
    object["spec"]["rules"][0]["backendRefs"] = backend;
    object
}

#[tokio::test]
async fn the_route_of_the_callers_namespace_wins_over_the_services_own_and_others_do_not_count() {
    let mesh = Mesh::new();
    let _bank = application(elsewhere(&mesh, "bank", "pay"), "pay").await;
    let objects = [on_pay("bank", "producer"), on_pay("mint", "stranger")];
    let shop = Shop::in_mesh(mesh, &[], &objects, &["pay.bank:80"]).await;
    let entry = shop.client.entry("pay");
    let until = async |rule: &str| {
        eventually(rule, async || {
            (Ask::get("/").send(entry, Way::H1).await.rule() == rule).then_some(())
        })
        .await;
    };
    assert_eq!(Ask::get("/").send(entry, Way::H1).await.rule(), "producer");
    shop.put(&on_pay("shop", "consumer"));
    until("consumer").await;
    let mut moved = on_pay("shop", "consumer");
    moved["spec"]["parentRefs"][0]["name"] = json!("else");
    shop.put(&moved);
    until("producer").await;
}

/// Listeners in the order in which they were asked for.
fn entry(client: &Sidecar, at: u16) -> SocketAddr {
    SocketAddr::from((client.pod.ip, 5000 + at))
}

/// A Service with the ports `http` and `admin`, and who takes a request at each.
async fn at_ports(parent: Value) -> [String; 2] {
    let mesh = Mesh::new();
    let rules = json!([marked("r", json!([]))]);
    let mut object = route("r", rules);
    for (field, value) in parent.as_object().unwrap() {
        object["spec"]["parentRefs"][0][field] = value.clone();
    }
    object["spec"]["rules"][0]["backendRefs"][0]["port"] = json!(81);
    let ports = json!([
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "admin", "port": 81, "targetPort": 8080},
    ]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "two", "namespace": "shop",
            "annotations": {"timeout.remora.io/connect": "10s"}},
        "spec": {"selector": {"app": "orders"}, "ports": ports},
    });
    object["spec"]["parentRefs"][0]["name"] = json!("two");
    object["spec"]["rules"][0]["backendRefs"][0]["name"] = json!("two");
    let shop = Shop::in_mesh(mesh, &[], &[service, object], &["two", "two:81"]).await;
    let ask = Ask::get("/");
    let (http, admin) = (entry(&shop.client, 0), entry(&shop.client, 1));
    let taken = async |at| ask.send(at, Way::H1).await.rule();
    [taken(http).await, taken(admin).await]
}

#[tokio::test]
async fn a_route_is_on_the_ports_that_its_parent_reference_means() {
    for (parent, taken) in [
        (json!({}), ["r", "r"]),
        (json!({"port": 81}), ["200", "r"]),
        (json!({"sectionName": "http"}), ["r", "200"]),
        (json!({"sectionName": "admin", "port": 81}), ["200", "r"]),
        (json!({"sectionName": "http", "port": 81}), ["200", "200"]),
    ] {
        assert_eq!(at_ports(parent.clone()).await, taken, "{parent}");
    }
}

#[tokio::test]
async fn a_grpc_route_takes_the_place_of_http_routes_on_the_same_port() {
    let http = route("h", json!([marked("http", json!([]))]));
    let grpc = super::shop::of_kind("GRPCRoute", "g", json!([marked("grpc", json!([]))]));
    let shop = Shop::start(&[], &[http, grpc]).await;
    for way in WAYS {
        assert_eq!(shop.ask(way, &Ask::get("/a/b")).await.rule(), "grpc");
    }
}
