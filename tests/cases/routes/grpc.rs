//! GRPCRoutes.

use http::Request;
use remora_tests::{
    grpc::{Ended, message},
    origin::{full, h2},
    wait::within,
};
use serde_json::{Value, json};

use super::shop::{Shop, Told, of_kind, to, weighted};

/// One call of `/service/method`, and how it ended.
async fn call(shop: &Shop, path: &str, fields: &[(&str, &str)]) -> Ended {
    let mut request = Request::post(format!("http://orders{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(full(message("?"))).unwrap();
    let mut sender = h2(shop.client.entry("orders")).await;
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    Ended::read(response).await.unwrap()
}

/// The Service that answered, or the status.
fn who(ended: &Ended) -> String {
    match ended.status() {
        "0" => Told::of_call(ended).service().to_owned(),
        status => status.to_owned(),
    }
}

fn method(to_service: &str, kind: &str, service: Option<&str>, method: Option<&str>) -> Value {
    let mut wanted = json!({"type": kind});
    if let Some(service) = service {
        wanted["service"] = json!(service);
    }
    if let Some(method) = method {
        wanted["method"] = json!(method);
    }
    json!({"matches": [{"method": wanted}], "backendRefs": [to(to_service)]})
}

#[tokio::test]
async fn a_call_is_matched_by_service_method_or_both_exactly_or_by_expression() {
    let rules = json!([
        method("v1", "Exact", Some("shop.Cart"), None),
        method("v2", "Exact", Some("shop.Cart"), Some("Add")),
        method("v3", "Exact", None, Some("Ping")),
        method("v4", "RegularExpression", Some("bank\\..*"), Some("Get.*")),
    ]);
    let services = ["v1", "v2", "v3", "v4"];
    let shop = Shop::start(&services, &[of_kind("GRPCRoute", "r", rules)]).await;
    for (path, wanted) in [
        ("/shop.Cart/Get", "v1"),
        ("/shop.Cart/Add", "v2"),
        ("/any.Thing/Ping", "v3"),
        ("/bank.Pay/GetAll", "v4"),
        // gRPC's word for 404: UNIMPLEMENTED.
        ("/bank.Pay/Set", "12"),
        ("/shop.Carts/Get", "12"),
    ] {
        assert_eq!(who(&call(&shop, path, &[]).await), wanted, "{path}");
    }
}

#[tokio::test]
async fn a_call_is_matched_by_its_metadata() {
    let field = json!([{"name": "color", "value": "blue"}]);
    let rules = json!([
        {"matches": [{"headers": field}], "backendRefs": [to("v1")]},
        {"backendRefs": [to("v2")]},
    ]);
    let shop = Shop::start(&["v1", "v2"], &[of_kind("GRPCRoute", "r", rules)]).await;
    assert_eq!(who(&call(&shop, "/a.B/C", &[("color", "blue")]).await), "v1");
    assert_eq!(who(&call(&shop, "/a.B/C", &[]).await), "v2");
}

#[tokio::test]
async fn calls_over_one_connection_are_split_by_weight() {
    let backends = [weighted("v1", 70), weighted("v2", 30), weighted("v3", 0)];
    let rules = json!([{"backendRefs": backends}]);
    let shop = Shop::start(&["v1", "v2", "v3"], &[of_kind("GRPCRoute", "r", rules)]).await;
    let sender = h2(shop.client.entry("orders")).await;
    for _ in 0..200 {
        let request =
            Request::post("http://orders/a.B/C").header("content-type", "application/grpc");
        let request = request.header("te", "trailers").body(full(message("?"))).unwrap();
        let response = within("an answer", sender.clone().send_request(request)).await.unwrap();
        assert_eq!(Ended::read(response).await.unwrap().status(), "0");
    }
    // Six standard deviations around 60.
    assert!((22..=98).contains(&shop.seen("v2")), "{}", shop.seen("v2"));
    assert_eq!((shop.seen("v1") + shop.seen("v2"), shop.seen("v3")), (200, 0));
}

#[tokio::test]
async fn a_backend_that_does_not_exist_ends_calls_as_grpc_does() {
    let rules = json!([{"backendRefs": [to("gone")]}]);
    let shop = Shop::start(&[], &[of_kind("GRPCRoute", "r", rules)]).await;
    let ended = call(&shop, "/a.B/C", &[]).await;
    assert_eq!((ended.status(), ended.reason()), ("14", "no-route"));
}

#[tokio::test]
async fn a_call_that_a_route_retries_or_fails_on_purpose_ends_in_grpcs_own_words() {
    let annotated = |annotations: Value| {
        let mut object = of_kind("GRPCRoute", "r", json!([{"backendRefs": [to("v1")]}]));
        object["metadata"]["annotations"] = annotations;
        object
    };
    let retry = json!({"retry.remora.io/grpc": "unavailable", "retry.remora.io/limit": "1"});
    let fault = json!({"fault.remora.io/abort-grpc": "resource-exhausted"});
    let shop = Shop::start(&["v1"], &[annotated(retry)]).await;
    let ended = call(&shop, "/a.B/C", &[("x-fail-first", "1")]).await;
    assert_eq!((ended.status(), shop.seen("v1")), ("0", 2));
    let shop = Shop::start(&["v1"], &[annotated(fault)]).await;
    let ended = call(&shop, "/a.B/C", &[]).await;
    assert_eq!((ended.status(), ended.trailers_only), ("8", true));
    assert_eq!(shop.seen("v1"), 0);
}
