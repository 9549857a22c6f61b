//! The mesh tests of Gateway API's conformance suite (`conformance/tests/mesh`), each under its own
//! name with all of its requests and expectations; here those about where requests go, and in
//! `conformance_filters` those about what is changed. The suite itself needs a cluster.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    echo::{ELSEWHERE, Echo, ask_from, below, call_from, dialled, on, on_echo, only},
    shop::{Ask, Told, Way},
};

/// Who answers, or the status where the answer is no application's good one.
pub(super) fn who(told: &Told) -> String {
    if told.status == 200 { told.service().to_owned() } else { told.status.to_string() }
}

/// A filter that marks responses.
fn marking(value: &str) -> Value {
    let set = json!([{"name": "X-Header-Set", "value": value}]);
    json!([{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": set}}])
}

/// Who answers, and the mark that the response has.
fn marked(told: &Told) -> (String, String) {
    (who(told), told.header("x-header-set").join(","))
}

fn pair(who: &str, mark: &str) -> (String, String) {
    (who.to_owned(), mark.to_owned())
}

#[tokio::test]
async fn mesh_basic() {
    let echo = Echo::with(&[]).await;
    assert_eq!(echo.ask(Ask::get("/")).await.status, 200);
}

#[tokio::test]
async fn mesh_traffic_split() {
    let exact = |path: &str| json!([{"path": {"type": "Exact", "value": path}}]);
    let rules = json!([
        {"matches": exact("/v1"), "backendRefs": only("echo-v1", 80)},
        {"matches": exact("/v2"), "backendRefs": only("echo-v2", 80)},
    ]);
    let echo = Echo::with(&[on("HTTPRoute", "echo", None, rules)]).await;
    assert_eq!(who(&echo.ask(Ask::get("/v1")).await), "echo-v1");
    assert_eq!(who(&echo.ask(Ask::get("/v2")).await), "echo-v2");
}

#[tokio::test]
async fn mesh_ports() {
    let rule = |service: &str, mark: &str| {
        let (filters, backends) = (marking(mark), only(service, 80));
        json!([{"filters": filters, "backendRefs": backends}])
    };
    let echo = Echo::with(&[
        on("HTTPRoute", "echo-v1", Some(80), rule("echo-v1", "v1")),
        on("HTTPRoute", "echo-v2", None, rule("echo-v2", "v2")),
    ])
    .await;
    for (host, wanted) in [
        ("echo-v1", pair("echo-v1", "v1")),
        ("echo-v1:8080", pair("echo-v1", "")),
        ("echo-v2", pair("echo-v2", "v2")),
        ("echo-v2:8080", pair("echo-v2", "v2")),
    ] {
        assert_eq!(marked(&ask_from(&echo.v1, host, Ask::get("/")).await), wanted, "{host}");
    }
}

/// The route of both tests about frontends.
fn frontend() -> Value {
    let rules = json!([{"filters": marking("set"), "backendRefs": only("echo-v2", 80)}]);
    on("HTTPRoute", "echo-v2", None, rules)
}

#[tokio::test]
async fn mesh_frontend() {
    let echo = Echo::with(&[frontend()]).await;
    let told = ask_from(&echo.v1, "echo-v2", Ask::get("/")).await;
    assert_eq!(marked(&told), pair("echo-v2", "set"));
    let pod = echo.v2.pod.address().to_string();
    let told = ask_from(&echo.v1, &pod, Ask::get("/")).await;
    assert_eq!(marked(&told), pair("echo-v2", ""), "by the pod's own address");
}

#[tokio::test]
async fn mesh_frontend_hostname() {
    let echo = Echo::with(&[frontend()]).await;
    for (dialled_host, named, wanted) in [
        ("echo-v2", "echo-v1", pair("echo-v2", "set")),
        ("echo-v1", "echo-v2", pair("echo-v1", "")),
    ] {
        let to = dialled(&echo.v1, dialled_host);
        let told = Ask::get("/").host(named).send(to, Way::H1).await;
        assert_eq!(marked(&told), wanted, "{dialled_host} as {named}");
    }
}

#[tokio::test]
async fn mesh_consumer_route() {
    let backend = json!([{"name": "echo-v1", "namespace": "shop", "port": 80}]);
    let rules = json!([{"filters": marking("set"), "backendRefs": backend}]);
    let mut route = on("HTTPRoute", "echo-v1", None, rules);
    route["metadata"]["namespace"] = json!(ELSEWHERE);
    route["spec"]["parentRefs"][0]["namespace"] = json!("shop");
    let echo = Echo::with(&[route]).await;
    let consumer = echo.elsewhere().await;
    for (from, mark) in [(&consumer, "set"), (&echo.v1, "")] {
        let told = ask_from(from, "echo-v1.shop", Ask::get("/")).await;
        assert_eq!(marked(&told), pair("echo-v1", mark), "from {}", from.pod.namespace);
    }
}

#[tokio::test]
async fn mesh_http_route_simple_same_namespace() {
    let echo = Echo::with(&[on_echo(json!([{"backendRefs": only("echo-v1", 8080)}]))]).await;
    assert_eq!(who(&echo.ask(Ask::get("/")).await), "echo-v1");
}

#[tokio::test]
async fn mesh_http_route_matching() {
    let version = |value: &str| json!({"headers": [{"name": "version", "value": value}]});
    let rule = |path: &str, value: &str, service: &str| {
        let matches = json!([below(path)[0], version(value)]);
        json!({"matches": matches, "backendRefs": only(service, 8080)})
    };
    let rules = json!([rule("/", "one", "echo-v1"), rule("/v2", "two", "echo-v2")]);
    let echo = Echo::with(&[on_echo(rules)]).await;
    let ask = Ask::get;
    for (ask, wanted) in [
        (ask("/"), "echo-v1"),
        (ask("/example"), "echo-v1"),
        (ask("/").with("version", "one"), "echo-v1"),
        (ask("/v2"), "echo-v2"),
        (ask("/v2/example"), "echo-v2"),
        (ask("/").with("version", "two"), "echo-v2"),
        (ask("/v2/"), "echo-v2"),
        (ask("/v2example"), "echo-v1"),
        (ask("/foo/v2/example"), "echo-v1"),
    ] {
        assert_eq!(who(&echo.ask(ask.clone()).await), wanted, "{ask:?}");
    }
}

#[tokio::test]
async fn mesh_http_route_query_param_matching() {
    let animal = |value: &str| json!([{"name": "animal", "value": value}]);
    let version = |value: &str| json!([{"name": "version", "value": value}]);
    let prefix = |path: &str| below(path)[0]["path"].clone();
    let rule = |matches: Value, service: &str| {
        let backends = only(service, 8080);
        json!({"matches": matches, "backendRefs": backends})
    };
    let either = json!([
        {"path": prefix("/path3"), "queryParams": animal("shark")},
        {"path": prefix("/path4"), "headers": version("three"), "queryParams": animal("kraken")},
    ]);
    let rules = json!([
        rule(json!([{"queryParams": animal("whale")}]), "echo-v1"),
        rule(json!([{"queryParams": animal("dolphin")}]), "echo-v2"),
        rule(json!([{"path": prefix("/path1"), "queryParams": animal("whale")}]), "echo-v1"),
        rule(json!([{"headers": version("one"), "queryParams": animal("whale")}]), "echo-v2"),
        rule(either, "echo-v1"),
        rule(below("/path5"), "echo-v1"),
        rule(json!([{"queryParams": animal("hydra")}]), "echo-v2"),
    ]);
    let echo = Echo::with(&[on_echo(rules)]).await;
    let ask = Ask::get;
    for (ask, wanted) in [
        (ask("/?animal=whale"), "echo-v1"),
        (ask("/?animal=dolphin"), "echo-v2"),
        (ask("/?animal=whale&otherparam=irrelevant"), "echo-v1"),
        (ask("/?animal=dolphin&color=yellow"), "echo-v2"),
        (ask("/?color=blue"), "404"),
        (ask("/?animal=dog"), "404"),
        (ask("/?animal=whaledolphin"), "404"),
        (ask("/"), "404"),
        (ask("/path1?animal=whale"), "echo-v1"),
        (ask("/?animal=whale").with("version", "one"), "echo-v2"),
        (ask("/path3?animal=shark"), "echo-v1"),
        (ask("/path4?animal=kraken").with("version", "three"), "echo-v1"),
        (ask("/?animal=shark"), "404"),
        (ask("/path4?animal=kraken"), "404"),
        (ask("/path5?animal=hydra"), "echo-v1"),
    ] {
        assert_eq!(who(&echo.ask(ask.clone()).await), wanted, "{ask:?}");
    }
}

/// The suite names `/named` as the path that arrives for `/unnamed` too, and compares neither; no
/// filter changes it.
#[tokio::test]
async fn mesh_http_route_named_rule() {
    let rules = json!([
        {"name": "named-rule", "matches": below("/named"), "backendRefs": only("echo-v1", 8080)},
        {"matches": below("/unnamed"), "backendRefs": only("echo-v2", 8080)},
    ]);
    let echo = Echo::with(&[on_echo(rules)]).await;
    for (path, wanted) in [("/named", "echo-v1"), ("/unnamed", "echo-v2")] {
        let told = echo.ask(Ask::get(path)).await;
        assert_eq!((who(&told).as_str(), told.got("path")), (wanted, path));
    }
}

/// The suite's measure: of 500 requests each version has its part, give or take five points, in one of
/// ten runs.
async fn seven_and_three_tenths(ask: impl AsyncFn() -> String) {
    let mut runs = Vec::new();
    for _ in 0..10 {
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..500 {
            *seen.entry(ask().await).or_default() += 1;
        }
        let of = |name: &str| seen.get(name).copied().unwrap_or(0);
        assert_eq!(of("echo-v1") + of("echo-v2"), 500, "{seen:?}");
        if (325..=375).contains(&of("echo-v1")) {
            return;
        }
        runs.push(seen);
    }
    panic!("{runs:?}");
}

#[tokio::test]
async fn mesh_http_route_weight() {
    let backends = json!([
        {"name": "echo-v1", "port": 8080, "weight": 70},
        {"name": "echo-v2", "port": 8080, "weight": 30},
    ]);
    let echo = Echo::with(&[on_echo(json!([{"backendRefs": backends}]))]).await;
    seven_and_three_tenths(async || who(&echo.ask(Ask::get("/")).await)).await;
}

/// `echo-v3` is nowhere.
#[tokio::test]
async fn mesh_grpc_route_weight() {
    let weighted = |name: &str, weight: u32| json!({"name": name, "port": 7070, "weight": weight});
    let backends =
        json!([weighted("echo-v1", 70), weighted("echo-v2", 30), weighted("echo-v3", 0)]);
    let rules = json!([{"backendRefs": backends}]);
    let echo = Echo::with(&[on("GRPCRoute", "echo", Some(7070), rules)]).await;
    seven_and_three_tenths(async || {
        let ended = call_from(&echo.v1, "echo:7070", &[]).await;
        assert_eq!(ended.status(), "0");
        Told::of_call(&ended).service().to_owned()
    })
    .await;
}
