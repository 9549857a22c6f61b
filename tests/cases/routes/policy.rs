//! Time-outs, retries and sessions of a rule, and a Service's breaker beside them.

use std::{collections::BTreeSet, time::Duration};

use http::Method;
use remora_tests::{mesh::Mesh, wait::eventually, wire::App};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::shop::{Ask, Shop, WAYS, Way, application, of_kind, route, to};

fn rule(field: &str, value: Value) -> Value {
    json!([{ "backendRefs": [to("v1")], (field): value }])
}

#[tokio::test]
async fn a_request_ends_with_the_time_that_its_rule_gives_it() {
    let timeouts = json!({"request": "200ms"});
    let shop = Shop::start(&["v1"], &[route("r", rule("timeouts", timeouts))]).await;
    for way in WAYS {
        let told = shop.ask(way, &Ask::get("/").with("x-hang", "v1")).await;
        assert_eq!((told.status, told.reason()), (504, Some("request-timeout")), "{way:?}");
        assert_eq!(shop.ask(way, &Ask::get("/")).await.service(), "v1");
    }
}

#[tokio::test]
async fn an_attempt_ends_with_the_time_that_the_rule_gives_a_backend() {
    let timeouts = json!({"backendRequest": "200ms"});
    let shop = Shop::start(&["v1"], &[route("r", rule("timeouts", timeouts))]).await;
    for way in WAYS {
        let told = shop.ask(way, &Ask::get("/").with("x-hang", "v1")).await;
        assert_eq!((told.status, told.reason()), (504, Some("response-timeout")), "{way:?}");
    }
}

#[tokio::test]
async fn no_bound_is_one_of_zero_whatever_the_service_says() {
    let mesh = Mesh::new();
    mesh.service("orders", &[("timeout.remora.io/request", "1ms")]);
    let rules = json!([{"backendRefs": [to("orders")], "timeouts": {"request": "0s"}}]);
    let shop = Shop::in_mesh(mesh, &[], &[route("r", rules)], &["orders"]).await;
    assert_eq!(shop.shares(Way::H1, &Ask::get("/"), 5).await.of("orders"), 5);
}

#[tokio::test]
async fn a_code_that_the_rule_names_is_retried_as_often_as_it_says() {
    let retry = json!({"codes": [503], "attempts": 2, "backoff": "1ms"});
    let shop = Shop::start(&["v1"], &[route("r", rule("retry", retry))]).await;
    for way in WAYS {
        let told = shop.ask(way, &Ask::get("/").with("x-fail-first", "2")).await;
        assert_eq!((told.status, told.field("remora-attempt")), (200, vec!["3"]), "{way:?}");
        let told = shop.ask(way, &Ask::get("/").with("x-fail-first", "9")).await;
        assert_eq!((told.status, told.field("remora-attempt")), (503, vec!["3"]), "{way:?}");
    }
    assert_eq!(shop.seen("v1"), 12);
}

#[tokio::test]
async fn neither_another_code_nor_a_post_is_retried() {
    let retry = json!({"codes": [500], "attempts": 2});
    let shop = Shop::start(&["v1"], &[route("r", rule("retry", retry))]).await;
    assert_eq!(shop.ask(Way::H1, &Ask::get("/").with("x-fail", "v1")).await.status, 503);
    assert_eq!(shop.seen("v1"), 1);
    let retry = json!({"codes": [503], "attempts": 2});
    let shop = Shop::start(&["v1"], &[route("r", rule("retry", retry))]).await;
    let post = Ask::get("/").method(Method::POST).with("x-fail", "v1");
    assert_eq!(shop.ask(Way::H1, &post).await.status, 503);
    assert_eq!(shop.seen("v1"), 1);
}

#[tokio::test]
async fn a_post_is_retried_with_its_body_where_the_owner_names_the_method() {
    let retry = json!({"codes": [503], "attempts": 1, "backoff": "1ms"});
    let mut object = route("r", rule("retry", retry));
    object["metadata"]["annotations"] = json!({"retry.remora.io/methods": "POST"});
    let shop = Shop::start(&["v1"], &[object]).await;
    for way in WAYS {
        let post = Ask::get("/").method(Method::POST).body("the body").with("x-fail-first", "1");
        let told = shop.ask(way, &post).await;
        assert_eq!((told.status, told.got("body")), (200, "the body"), "{way:?}");
    }
    assert_eq!(shop.seen("v1"), 4);
}

/// GEP-1731: what is configured is the least, whatever jitter is added.
#[tokio::test]
async fn between_attempts_at_least_the_backoff_is_waited() {
    let backoff = Duration::from_millis(200);
    let retry = json!({"codes": [503], "attempts": 1, "backoff": "200ms"});
    let shop = Shop::start(&["v1"], &[route("r", rule("retry", retry))]).await;
    for _ in 0..5 {
        let begun = Instant::now();
        let told = shop.ask(Way::H1, &Ask::get("/").with("x-fail-first", "1")).await;
        assert_eq!(told.status, 200);
        assert!(begun.elapsed() >= backoff, "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn an_attempt_that_took_too_long_is_retried_within_the_time_of_the_request() {
    let rules = json!([{
        "backendRefs": [to("v1")], "retry": {"codes": [504], "attempts": 1, "backoff": "1ms"},
        "timeouts": {"request": "10s", "backendRequest": "1s"},
    }]);
    let shop = Shop::start(&["v1"], &[route("r", rules)]).await;
    for way in WAYS {
        let told = shop.ask(way, &Ask::get("/").with("x-hang-first", "1")).await;
        assert_eq!((told.status, told.field("remora-attempt")), (200, vec!["2"]), "{way:?}");
    }
}

/// GEP-1731, and HTTPRouteRetryConnectionError of the conformance suite; it is the proxy beside the
/// application that sees the connection break.
#[tokio::test]
async fn an_attempt_that_the_application_breaks_off_is_retried_though_no_code_is_named() {
    let mesh = Mesh::new();
    mesh.service("v1", &[]);
    let pod = mesh.pod("v1-1", "v1");
    let app = App::listen(pod.app()).await;
    let retry = json!({"attempts": 2, "backoff": "1ms"});
    let objects = [route("r", rule("retry", retry))];
    let shop = Shop::in_mesh(mesh, &[], &objects, &["orders"]).await;
    let _sidecar = shop.mesh.sidecar(&pod, &[]).await;
    let breaks = async |times: usize| {
        for _ in 0..times {
            app.accept().await.head().await;
        }
    };
    let recovers = async {
        breaks(2).await;
        let mut server = app.accept().await;
        server.head().await;
        server.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
    };
    let ask = Ask::get("/");
    let (told, ()) = tokio::join!(shop.ask(Way::H1, &ask), recovers);
    assert_eq!(told.status, 200);
    let (told, ()) = tokio::join!(shop.ask(Way::H1, &ask), breaks(3));
    assert_eq!((told.status, told.reason()), (502, Some("upstream-reset")));
    let post = ask.method(Method::POST);
    let (told, ()) = tokio::join!(shop.ask(Way::H1, &post), breaks(1));
    assert_eq!((told.status, app.has_caller().await), (502, false));
}

/// Asks as a client without a session, and then as one that has what the first answer gave it.
async fn sessions(
    shop: &Shop,
    way: Way,
    given: &str,
    back: impl Fn(&str) -> (&'static str, String),
) {
    let mut services = BTreeSet::new();
    while services.len() < 2 {
        let told = shop.ask(way, &Ask::get("/")).await;
        let session = told.header(given);
        assert_eq!(session.len(), 1, "{session:?}");
        let (name, value) = back(session[0]);
        services.insert(told.service().to_owned());
        for _ in 0..15 {
            let again = shop.ask(way, &Ask::get("/").with(name, &value)).await;
            assert_eq!(again.service(), told.service(), "{way:?} {value}");
        }
    }
}

fn persisted(by: Value) -> Value {
    json!([{"backendRefs": [to("v1"), to("v2")], "sessionPersistence": by}])
}

#[tokio::test]
async fn a_session_by_cookie_stays_with_its_backend_across_services() {
    let by = json!({"sessionName": "till", "type": "Cookie"});
    let shop = Shop::start(&["v1", "v2"], &[route("r", persisted(by))]).await;
    for way in WAYS {
        sessions(&shop, way, "set-cookie", |cookie| {
            assert!(cookie.starts_with("till="), "{cookie}");
            ("cookie", cookie.split(';').next().unwrap().to_owned())
        })
        .await;
    }
}

#[tokio::test]
async fn a_session_by_field_stays_with_its_backend_across_services() {
    let by = json!({"sessionName": "x-till", "type": "Header"});
    let shop = Shop::start(&["v1", "v2"], &[route("r", persisted(by))]).await;
    for way in WAYS {
        sessions(&shop, way, "x-till", |value| ("x-till", value.to_owned())).await;
    }
}

/// GEP-1619: "Traffic Splitting".
#[tokio::test]
async fn a_session_outlives_the_weight_of_its_backend_and_new_ones_go_elsewhere() {
    let by = json!({"sessionName": "x-till", "type": "Header"});
    let weights = |v1: u32, v2: u32, name: &str| {
        let backends = [super::shop::weighted("v1", v1), super::shop::weighted("v2", v2)];
        json!([{"name": name, "backendRefs": backends, "sessionPersistence": by}])
    };
    let shop = Shop::start(&["v1", "v2"], &[route("r", weights(1, 0, "before"))]).await;
    let first = shop.ask(Way::H1, &Ask::get("/")).await;
    assert_eq!(first.service(), "v1");
    let session = first.header("x-till")[0];
    shop.put(&route("r", weights(0, 1, "after")));
    shop.until_rule("r/after").await;
    let old = Ask::get("/").with("x-till", session);
    assert_eq!(shop.shares(Way::H1, &old, 20).await.of("v1"), 20);
    assert_eq!(shop.shares(Way::H1, &Ask::get("/"), 20).await.of("v2"), 20);
}

#[tokio::test]
async fn annotations_of_a_route_hold_where_its_rules_say_nothing() {
    let mut object = route("r", json!([{"backendRefs": [to("v1")]}]));
    object["metadata"]["annotations"] = json!({
        "retry.remora.io/http": "503", "retry.remora.io/limit": "1",
        "timeout.remora.io/request": "1s",
    });
    let shop = Shop::start(&["v1"], &[object]).await;
    assert_eq!(shop.ask(Way::H1, &Ask::get("/").with("x-fail-first", "1")).await.status, 200);
    let told = shop.ask(Way::H1, &Ask::get("/").with("x-hang", "v1")).await;
    assert_eq!((told.status, told.reason()), (504, Some("request-timeout")));
}

#[tokio::test]
async fn the_backends_breaker_takes_a_failing_pod_out_while_retries_keep_failures_from_callers() {
    let mesh = Mesh::new();
    let prefix = "balancer.remora.io/failure-accrual-consecutive";
    let (max, min) = (format!("{prefix}-max-failures"), format!("{prefix}-min-penalty"));
    let longest = format!("{prefix}-max-penalty");
    let in_turn = ("balancer.remora.io/algorithm", "round-robin");
    mesh.service("v1", &[in_turn, (&*max, "3"), (&*min, "1h"), (&*longest, "1h")]);
    let bad = mesh.plain_pod("v1-bad", "v1");
    let origin = application(bad.app(), "bad").await;
    let retry = json!({"codes": [503], "attempts": 2, "backoff": "1ms"});
    let objects = [route("r", rule("retry", retry))];
    let shop = Shop::in_mesh(mesh, &["v1"], &objects, &["orders"]).await;
    let ask = Ask::get("/").with("x-fail", "bad");
    eventually("an ejection", async || {
        assert_eq!(shop.ask(Way::H1, &ask).await.status, 200);
        let ejected = [("service", "v1")];
        (shop.client.metric("remora_outbound_ejections_total", &ejected).await > 0).then_some(())
    })
    .await;
    let failed = origin.requests();
    assert_eq!(shop.shares(Way::H1, &ask, 30).await.of("v1"), 30);
    assert_eq!(origin.requests(), failed, "nobody asks it any more");
}

#[tokio::test]
async fn a_grpc_route_keeps_sessions_too() {
    let by = json!({"sessionName": "x-till", "type": "Header"});
    let shop = Shop::start(&["v1", "v2"], &[of_kind("GRPCRoute", "r", persisted(by))]).await;
    sessions(&shop, Way::H2, "x-till", |value| ("x-till", value.to_owned())).await;
}
