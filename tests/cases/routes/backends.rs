//! Where requests of a rule go.

use serde_json::{Value, json};

use super::shop::{Ask, Shop, WAYS, Way, of_kind, route, to, weighted};
use remora_tests::{
    mesh::Mesh,
    wire::{App, Wire},
};

/// A Service of another namespace with one pod without a sidecar, which the application is put into.
pub(super) fn elsewhere(mesh: &Mesh, namespace: &str, name: &str) -> std::net::SocketAddr {
    let pod = mesh.plain_pod(&format!("{name}-{namespace}"), name);
    for object in [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace,
                         "annotations": {"timeout.remora.io/connect": "10s"}},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
        }),
    ] {
        let file = format!("{}-{namespace}", object["kind"].as_str().unwrap());
        mesh.write_raw(&format!("{file}-{name}"), &object.to_string());
    }
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"containers": [{"name": "app"}]},
        "status": {"phase": "Running", "podIP": pod.ip, "podIPs": [{"ip": pod.ip}],
                   "conditions": [{"type": "Ready", "status": "True"}]},
    });
    mesh.write_raw(&format!("pod-{}", pod.name), &object.to_string());
    pod.app()
}

/// Lets routes of a kind in the test's namespace refer to a Service of `namespace`.
pub(super) fn grant(namespace: &str, service: Option<&str>) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
        "metadata": {"namespace": namespace, "name": "grant"},
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}],
            "to": [{"group": "", "kind": "Service", "name": service}],
        },
    })
}

fn there(service: &str, namespace: &str) -> Value {
    json!({"name": service, "namespace": namespace, "port": 80})
}

#[tokio::test]
async fn two_other_services_get_their_parts_and_the_dialled_one_nothing() {
    let rules = json!([{"backendRefs": [weighted("v1", 80), weighted("v2", 20)]}]);
    let shop = Shop::start(&["v1", "v2"], &[route("r", rules)]).await;
    for way in WAYS {
        let shares = shop.shares(way, &Ask::get("/"), 300).await;
        // Six standard deviations around 60.
        assert!((18..=102).contains(&shares.of("v2")), "{shares:?}");
        assert_eq!(shares.of("v1") + shares.of("v2"), 300, "{shares:?}");
    }
    assert_eq!(shop.seen("orders"), 0);
}

#[tokio::test]
async fn a_backend_of_weight_zero_gets_nothing() {
    let rules = json!([{"backendRefs": [weighted("v1", 1), weighted("v2", 0)]}]);
    let shop = Shop::start(&["v1", "v2"], &[route("r", rules)]).await;
    assert_eq!(shop.shares(Way::H1, &Ask::get("/"), 60).await.of("v1"), 60);
    assert_eq!(shop.seen("v2"), 0);
}

#[tokio::test]
async fn where_nobody_has_a_part_the_answer_is_500() {
    let zero = [weighted("v1", 0), weighted("v2", 0)];
    let match_of = |path: &str| json!([{"path": {"type": "Exact", "value": path}}]);
    let rules = json!([
        {"matches": match_of("/zero"), "backendRefs": zero},
        {"matches": match_of("/none")},
    ]);
    let shop = Shop::start(&["v1", "v2"], &[route("r", rules)]).await;
    for way in WAYS {
        for path in ["/zero", "/none"] {
            let told = shop.ask(way, &Ask::get(path)).await;
            assert_eq!((told.status, told.reason()), (500, Some("no-route")), "{path}");
        }
    }
    assert_eq!(shop.seen("v1") + shop.seen("v2") + shop.seen("orders"), 0);
}

#[tokio::test]
async fn a_backend_that_cannot_be_reached_costs_its_part_and_no_more() {
    let other = json!({"group": "example.com", "kind": "Bucket", "name": "b", "port": 80});
    let no_port = json!({"name": "v1", "port": 8181});
    for bad in [to("gone"), other, no_port] {
        let rules = json!([{"backendRefs": [to("v1"), bad]}]);
        let shop = Shop::start(&["v1"], &[route("r", rules)]).await;
        let shares = shop.shares(Way::H1, &Ask::get("/"), 100).await;
        // Six standard deviations around 50.
        assert!((20..=80).contains(&shares.of("500")), "{bad}: {shares:?}");
        assert_eq!(shares.of("v1") + shares.of("500"), 100, "{bad}: {shares:?}");
    }
}

#[tokio::test]
async fn a_backend_appears_when_its_service_does() {
    let shop = Shop::start(&["v1"], &[route("r", json!([{"backendRefs": [to("late")]}]))]).await;
    assert_eq!(shop.ask(Way::H1, &Ask::get("/")).await.status, 500);
    let pod = shop.mesh.plain_pod("late-1", "late");
    let _origin = super::shop::application(pod.app(), "late").await;
    shop.mesh.service("late", &[]);
    remora_tests::wait::eventually("an answer of the new Service", async || {
        (shop.ask(Way::H1, &Ask::get("/")).await.service() == "late").then_some(())
    })
    .await;
}

#[tokio::test]
async fn another_namespace_is_reached_with_a_grant_and_only_then() {
    let mesh = Mesh::new();
    let bank = super::shop::application(elsewhere(&mesh, "bank", "pay"), "pay").await;
    let rules = json!([{"backendRefs": [there("pay", "bank")]}]);
    let shop = Shop::in_mesh(mesh, &[], &[route("r", rules)], &["orders"]).await;
    let refused = shop.ask(Way::H1, &Ask::get("/")).await;
    assert_eq!((refused.status, refused.reason()), (500, Some("no-route")));
    assert_eq!(bank.requests(), 0);

    let until = async |what: &str, wanted: u16| {
        remora_tests::wait::eventually(what, async || {
            (shop.ask(Way::H1, &Ask::get("/")).await.status == wanted).then_some(())
        })
        .await;
    };
    shop.put(&grant("bank", Some("pay")));
    until("a grant in force", 200).await;
    shop.put(&grant("bank", Some("another")));
    until("a grant for another Service", 500).await;
    shop.put(&grant("bank", None));
    until("a grant for all Services", 200).await;
}

#[tokio::test]
async fn a_grant_for_one_kind_of_route_is_none_for_another() {
    let mesh = Mesh::new();
    let bank = super::shop::application(elsewhere(&mesh, "bank", "pay"), "pay").await;
    let rules = json!([{"backendRefs": [there("pay", "bank")]}]);
    let objects = [of_kind("GRPCRoute", "r", rules), grant("bank", None)];
    let shop = Shop::in_mesh(mesh, &[], &objects, &["orders"]).await;
    assert_eq!(shop.ask(Way::H2, &Ask::get("/")).await.status, 500);
    assert_eq!(bank.requests(), 0);
}

#[tokio::test]
async fn a_backend_that_is_said_to_speak_http_2_is_spoken_to_in_it() {
    let mesh = Mesh::new();
    mesh.service_speaking("v1", "kubernetes.io/h2c");
    let objects = [route("r", json!([{"backendRefs": [to("v1")]}]))];
    let shop = Shop::in_mesh(mesh, &["v1"], &objects, &["orders"]).await;
    let told = shop.ask(Way::H2, &Ask::get("/")).await;
    assert_eq!((told.service(), told.got("version")), ("v1", "HTTP/2.0"));
}

#[tokio::test]
async fn websockets_reach_the_backend_of_a_route() {
    let mesh = Mesh::new();
    mesh.service_speaking("chat", "kubernetes.io/ws");
    let pod = mesh.pod("chat-1", "chat");
    let app = App::listen(pod.app()).await;
    let objects = [route("r", json!([{"backendRefs": [to("chat")]}]))];
    let shop = Shop::in_mesh(mesh, &[], &objects, &["orders"]).await;
    let _sidecar = shop.mesh.sidecar(&pod, &[]).await;
    let mut client = Wire::dial(shop.client.entry("orders")).await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    client.send(format!("GET /chat HTTP/1.1\r\nHost: orders\r\n{upgrade}\r\n")).await;
    let mut server = app.accept().await;
    assert_eq!(server.head().await.get("upgrade"), Some("websocket"));
    server.send(format!("HTTP/1.1 101 Switching Protocols\r\n{upgrade}\r\n")).await;
    assert_eq!(client.head().await.status(), 101);
    client.send("a frame").await;
    server.expect("a frame").await;
    server.send("and back").await;
    client.expect("and back").await;
}
