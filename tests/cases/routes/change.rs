//! Routes that change while requests are under way.

use std::time::Duration;

use remora_tests::{
    load::{self, Calls, Load},
    mesh::{Mesh, SERVICE_PORT},
    origin::{Origin, Speaks},
    wait::eventually,
};
use serde_json::json;

use super::shop::{Ask, Shop, Way, marked, of_kind, route, to, weighted};

/// What applications take for a request, so that some are under way at each edit.
const BUSY: Duration = Duration::from_millis(2);

#[tokio::test]
async fn weights_edited_a_hundred_times_under_load_cost_no_request() {
    let mut mesh = Mesh::new();
    let web = mesh.pod("web", "web");
    let (mut pods, mut origins) = (Vec::new(), Vec::new());
    for name in ["orders", "v1", "v2"] {
        mesh.service(name, &[]);
        let pod = mesh.pod(&format!("{name}-1"), name);
        let answer = |request| load::answer(request, BUSY);
        origins.push(Origin::serve(pod.app(), Speaks::Any, answer).await);
        pods.push(pod);
    }
    let file = "httproute-shop-r";
    let edited = |edit: u32| {
        let backends = [weighted("v1", edit % 11), weighted("v2", 10 - edit % 11)];
        route("r", json!([{"name": format!("edit-{edit}"), "backendRefs": backends}])).to_string()
    };
    mesh.write_raw(file, &edited(0));
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let mut sidecars = Vec::new();
    for pod in &pods {
        sidecars.push(mesh.sidecar(pod, &[]).await);
    }
    let kinds = [Calls::Kept, Calls::Fresh, Calls::Streams, Calls::Grpc];
    let load = Load::of(&[client.entry("orders")], &kinds);
    load.passes(20).await;
    for edit in 1..=100 {
        mesh.write_raw(file, &edited(edit));
        let shown = format!("\"shop/r/edit-{edit}\"");
        eventually(&format!("edit {edit}"), async || {
            client.try_get("/services").await?.1.contains(&shown).then_some(())
        })
        .await;
    }
    load.passes(20).await;
    load.without_failures().await;
    assert_eq!(origins[0].requests(), 0, "port {SERVICE_PORT} of orders is the route's");
    assert!(origins[1].requests() > 0 && origins[2].requests() > 0);
}

#[tokio::test]
async fn a_service_whose_route_is_removed_is_as_it_was_without_one() {
    let shop = Shop::start(&["v1"], &[route("r", json!([{"backendRefs": [to("v1")]}]))]).await;
    assert_eq!(shop.ask(Way::H1, &Ask::get("/")).await.service(), "v1");
    shop.mesh.remove("httproute-shop-r");
    eventually("an answer of the Service's own", async || {
        (shop.ask(Way::H1, &Ask::get("/")).await.service() == "orders").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_file_that_turns_bad_leaves_the_route_that_was_in_force() {
    let shop = Shop::start(&["v1"], &[route("r", json!([{"backendRefs": [to("v1")]}]))]).await;
    assert_eq!(shop.ask(Way::H1, &Ask::get("/")).await.service(), "v1");
    shop.mesh.write_raw("httproute-shop-r", "{\"kind\": \"HTTPRoute\", \"spec\": 7");
    shop.mesh.plane_metric("remora_control_plane_manifest_load_failures_total", 1).await;
    assert_eq!(shop.shares(Way::H1, &Ask::get("/"), 10).await.of("v1"), 10);
    shop.put(&route("r", json!([{"backendRefs": [to("orders")]}])));
    eventually("an answer of the mended route", async || {
        (shop.ask(Way::H1, &Ask::get("/")).await.service() == "orders").then_some(())
    })
    .await;
}

/// A rule may stand for a check: what it was for is not given to a lesser one.
#[tokio::test]
async fn a_rule_that_turns_into_one_that_cannot_be_done_fails_its_requests_and_the_others_go_on() {
    let rules = |filters: serde_json::Value| {
        let mut guarded = marked("guarded", json!([{"path": {"value": "/guarded"}}]));
        guarded["filters"] = filters;
        json!([guarded, marked("rest", json!([]))])
    };
    let shop = Shop::start(&[], &[route("r", rules(json!([])))]).await;
    assert_eq!(shop.ask(Way::H1, &Ask::get("/guarded")).await.status, 200);
    // The API server takes it, but no message can carry it.
    let set = json!([{"name": "x-a", "value": "\u{e4}"}]);
    let bad = json!([{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": set}}]);
    shop.put(&route("r", rules(bad)));
    eventually("a refusal", async || {
        (shop.ask(Way::H1, &Ask::get("/guarded")).await.status == 500).then_some(())
    })
    .await;
    assert_eq!(shop.ask(Way::H1, &Ask::get("/")).await.rule(), "rest");
}

#[tokio::test]
async fn a_route_that_comes_later_takes_effect_on_open_connections() {
    let shop = Shop::start(&["v1"], &[]).await;
    let mut sender = remora_tests::origin::h2(shop.client.entry("orders")).await;
    let mut ask = async || {
        let request = http::Request::get("http://orders/").body(remora_tests::origin::empty());
        let response = sender.send_request(request.unwrap()).await.unwrap();
        remora_tests::origin::Answer::read(response).await.unwrap().text
    };
    assert!(ask().await.contains("orders"));
    shop.put(&of_kind("HTTPRoute", "r", json!([{"backendRefs": [to("v1")]}])));
    eventually("an answer of the route's backend", async || {
        ask().await.contains("\"service\":\"v1\"").then_some(())
    })
    .await;
}
