//! Which requests a rule takes.

use http::Method;
use serde_json::{Value, json};

use super::shop::{Ask, Shop, WAYS, marked, route};

fn path(kind: &str, value: &str) -> Value {
    json!({"path": {"type": kind, "value": value}})
}

/// Asks each over HTTP/1 and HTTP/2 and compares the rule that was taken, or the status.
async fn taken(shop: &Shop, asked: Vec<(Ask, &str)>) {
    for way in WAYS {
        for (ask, rule) in &asked {
            assert_eq!(shop.ask(way, ask).await.rule(), *rule, "{way:?} {ask:?}");
        }
    }
}

#[tokio::test]
async fn a_path_is_matched_exactly_by_prefix_or_by_expression() {
    let rules = json!([
        marked("exact", json!([path("Exact", "/exact")])),
        marked("prefix", json!([path("PathPrefix", "/prefix")])),
        marked("slash", json!([path("PathPrefix", "/slash/")])),
        marked("regex", json!([path("RegularExpression", "/item/[0-9]+")])),
    ]);
    let shop = Shop::start(&[], &[route("r", rules)]).await;
    let asked = vec![
        (Ask::get("/exact"), "exact"),
        (Ask::get("/exact?a=b"), "exact"),
        (Ask::get("/exact/"), "404"),
        (Ask::get("/Exact"), "404"),
        (Ask::get("/prefix"), "prefix"),
        (Ask::get("/prefix/"), "prefix"),
        (Ask::get("/prefix/more?a=b"), "prefix"),
        (Ask::get("/prefixed"), "404"),
        (Ask::get("/slash"), "slash"),
        (Ask::get("/slash/a"), "slash"),
        (Ask::get("/item/12"), "regex"),
        (Ask::get("/item/12/more"), "404"),
        (Ask::get("/item/x"), "404"),
        (Ask::get("/"), "404"),
    ];
    taken(&shop, asked).await;
}

#[tokio::test]
async fn a_field_is_matched_exactly_or_by_expression_and_several_all_must_be_there() {
    let field = |name: &str, value: &str| json!({"name": name, "value": value});
    let rules = json!([
        marked("both", json!([{"headers": [field("Version", "one"), field("color", "blue")]}])),
        marked("one", json!([{"headers": [field("version", "one")]}])),
        marked(
            "regex",
            json!([{"headers": [
            {"name": "version", "value": "t.o", "type": "RegularExpression"}]}])
        ),
    ]);
    let shop = Shop::start(&[], &[route("r", rules)]).await;
    let ask = || Ask::get("/");
    let asked = vec![
        (ask().with("version", "one"), "one"),
        (ask().with("VERSION", "one"), "one"),
        (ask().with("version", "one").with("color", "blue"), "both"),
        (ask().with("color", "blue"), "404"),
        (ask().with("version", "two"), "regex"),
        (ask().with("version", "twoo"), "404"),
        (ask().with("version", "ONE"), "404"),
        (ask(), "404"),
    ];
    taken(&shop, asked).await;
}

#[tokio::test]
async fn a_method_is_matched() {
    let rules = json!([
        marked("post", json!([{"method": "POST"}])),
        marked("delete", json!([{"method": "DELETE"}])),
    ]);
    let shop = Shop::start(&[], &[route("r", rules)]).await;
    let ask = |method| Ask::get("/").method(method);
    let asked = vec![
        (ask(Method::POST), "post"),
        (ask(Method::DELETE), "delete"),
        (ask(Method::GET), "404"),
    ];
    taken(&shop, asked).await;
}

#[tokio::test]
async fn a_parameter_of_the_query_is_matched_exactly_or_by_expression() {
    let rules = json!([
        marked(
            "both",
            json!([{"queryParams": [
            {"name": "animal", "value": "whale"}, {"name": "color", "value": "deep blue"}]}])
        ),
        marked("whale", json!([{"queryParams": [{"name": "animal", "value": "whale"}]}])),
        marked(
            "regex",
            json!([{"queryParams": [
            {"name": "animal", "value": "dol.*", "type": "RegularExpression"}]}])
        ),
    ]);
    let shop = Shop::start(&[], &[route("r", rules)]).await;
    let asked = vec![
        (Ask::get("/?animal=whale"), "whale"),
        (Ask::get("/?x=y&animal=whale"), "whale"),
        (Ask::get("/?animal=whale&color=deep%20blue"), "both"),
        (Ask::get("/?animal=dolphin"), "regex"),
        (Ask::get("/?Animal=whale"), "404"),
        (Ask::get("/?animal=whales"), "404"),
        (Ask::get("/"), "404"),
    ];
    taken(&shop, asked).await;
}

/// The standard's order, as it is written down at `HTTPRouteRule.matches`.
#[tokio::test]
async fn the_match_that_says_most_is_taken_whatever_the_order_of_rules() {
    let header = json!([{"name": "version", "value": "one"}]);
    let query = json!([{"name": "a", "value": "b"}]);
    let rules = json!([
        marked("root", json!([path("PathPrefix", "/")])),
        marked("query", json!([{"queryParams": query}])),
        marked("header", json!([{"headers": header}])),
        marked("method", json!([{"method": "GET"}])),
        marked("short", json!([path("PathPrefix", "/a")])),
        marked("long", json!([path("PathPrefix", "/a/b")])),
        marked("exact", json!([path("Exact", "/a/b/c")])),
        marked("later", json!([path("PathPrefix", "/")])),
    ]);
    let shop = Shop::start(&[], &[route("r", rules)]).await;
    let post = |target: &str| Ask::get(target).method(Method::POST);
    let asked = vec![
        (Ask::get("/a/b/c").with("version", "one"), "exact"),
        (Ask::get("/a/b/d").with("version", "one"), "long"),
        (Ask::get("/a/d?a=b"), "short"),
        (Ask::get("/d?a=b").with("version", "one"), "method"),
        (post("/d?a=b").with("version", "one"), "header"),
        (post("/d?a=b"), "query"),
        (post("/d"), "root"),
    ];
    taken(&shop, asked).await;
}

#[tokio::test]
async fn of_two_routes_that_say_the_same_the_older_is_taken_and_then_the_first_by_name() {
    let created = |name: &str, at: &str| {
        let mut object = route(name, json!([marked(name, json!([path("PathPrefix", "/a")]))]));
        object["metadata"]["creationTimestamp"] = json!(at);
        object
    };
    let (young, old) = ("2026-02-01T00:00:00Z", "2026-01-01T00:00:00Z");
    let routes = [created("a", young), created("z", old), created("y", old)];
    let shop = Shop::start(&[], &routes).await;
    taken(&shop, vec![(Ask::get("/a"), "y")]).await;
}

#[tokio::test]
async fn one_of_several_matches_suffices_and_of_each_all_must_hold() {
    let matches = json!([
        {"path": {"type": "PathPrefix", "value": "/v2"}, "method": "GET",
         "headers": [{"name": "version", "value": "two"}],
         "queryParams": [{"name": "q", "value": "1"}]},
        {"path": {"type": "Exact", "value": "/other"}},
    ]);
    let shop = Shop::start(&[], &[route("r", json!([marked("r", matches)]))]).await;
    let asked = vec![
        (Ask::get("/v2/a?q=1").with("version", "two"), "r"),
        (Ask::get("/other"), "r"),
        (Ask::get("/v2/a?q=1").with("version", "two").method(Method::POST), "404"),
        (Ask::get("/v2/a").with("version", "two"), "404"),
        (Ask::get("/v2/a?q=1"), "404"),
        (Ask::get("/v3?q=1").with("version", "two"), "404"),
    ];
    taken(&shop, asked).await;
}

#[tokio::test]
async fn a_request_that_no_rule_takes_is_answered_404_and_says_why() {
    let rules = json!([marked("r", json!([path("Exact", "/only")]))]);
    let shop = Shop::start(&[], &[route("r", rules)]).await;
    for way in WAYS {
        let told = shop.ask(way, &Ask::get("/else")).await;
        assert_eq!((told.status, told.reason()), (404, Some("no-route")));
    }
    assert_eq!(shop.seen("orders"), 0);
}
