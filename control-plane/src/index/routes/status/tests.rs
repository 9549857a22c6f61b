use serde_json::{Value, json};

use super::{
    super::tests::{apply, index, on_cart, service, to},
    *,
};
use crate::source::{Event, Key, Kind};

fn id(kind: Kind, name: &str) -> RouteId {
    RouteId { kind, name: Name::new("shop", name) }
}

/// The conditions of each parent, as `Accepted=True:Accepted`.
fn conditions(index: &Index, kind: Kind, name: &str) -> Vec<Vec<String>> {
    let status = index.route_status(&id(kind, name)).unwrap();
    let shown = |c: &Condition| format!("{}={}:{}", c.type_, c.status, c.reason);
    let entries = status.entries(&[], Timestamp::UNIX_EPOCH);
    entries.iter().map(|entry| entry.conditions.iter().map(shown).collect()).collect()
}

fn http(index: &Index, name: &str) -> Vec<Vec<String>> {
    conditions(index, Kind::HttpRoute, name)
}

fn message(index: &Index, name: &str, of: &str) -> String {
    let status = index.route_status(&id(Kind::HttpRoute, name)).unwrap();
    let entries = status.entries(&[], Timestamp::UNIX_EPOCH);
    entries[0].conditions.iter().find(|c| c.type_ == of).unwrap().message.clone()
}

#[test]
fn a_good_route_is_accepted_and_its_references_are_resolved() {
    let index = index(&[
        service("shop", "cart"),
        on_cart("HTTPRoute", "shop", "r", json!([{"backendRefs": [to("cart")]}])),
    ]);
    assert_eq!(http(&index, "r"), [["Accepted=True:Accepted", "ResolvedRefs=True:ResolvedRefs"]]);
}

#[test]
fn parents_that_are_not_there_or_lack_the_port_do_not_match() {
    let with = |name: &str, parent: Value| {
        let mut route = on_cart("HTTPRoute", "shop", name, json!([{"backendRefs": [to("cart")]}]));
        route["spec"]["parentRefs"] = parent;
        route
    };
    let parent =
        |name: &str, port: u16| json!({"group": "", "kind": "Service", "name": name, "port": port});
    let headless = json!({"kind": "Service", "metadata": {"namespace": "shop", "name": "less"},
        "spec": {"clusterIP": "None", "ports": [{"port": 80}]}});
    let index = index(&[
        service("shop", "cart"),
        headless,
        with(
            "r",
            json!([parent("cart", 80), parent("cart", 9), parent("none", 80), parent("less", 80)]),
        ),
        with("gateway", json!([{"name": "edge"}])),
    ]);
    let accepted: Vec<String> = http(&index, "r").into_iter().map(|c| c[0].clone()).collect();
    let no = "Accepted=False:NoMatchingParent";
    assert_eq!(accepted, ["Accepted=True:Accepted", no, no, no]);
    assert!(http(&index, "gateway").is_empty(), "of other controllers");
}

#[test]
fn references_say_the_reason_of_the_standard() {
    let mut index = index(&[service("shop", "cart"), service("stock", "db")]);
    let cases = [
        (json!({"name": "none", "port": 80}), "BackendNotFound"),
        (json!({"name": "cart", "port": 9}), "BackendNotFound"),
        (json!({"name": "x", "kind": "Bucket", "group": "s3.example"}), "InvalidKind"),
        (json!({"name": "db", "namespace": "stock", "port": 80}), "RefNotPermitted"),
    ];
    for (to, reason) in cases {
        let mirror = json!({"type": "RequestMirror", "requestMirror": {"backendRef": to}});
        for rule in [json!({"backendRefs": [to]}), json!({"filters": [mirror]})] {
            apply(&mut index, &[on_cart("HTTPRoute", "shop", "r", json!([rule]))]);
            let expected = format!("ResolvedRefs=False:{reason}");
            assert_eq!(http(&index, "r"), [["Accepted=True:Accepted".to_owned(), expected]]);
        }
    }
    let rule = json!({"filters": [{"type": "ExtensionRef", "extensionRef": {}}]});
    apply(&mut index, &[on_cart("HTTPRoute", "shop", "r", json!([rule]))]);
    assert_eq!(http(&index, "r"), [["Accepted=True:Accepted", "ResolvedRefs=False:InvalidKind"]]);
}

#[test]
fn rules_that_cannot_be_done_make_a_route_partly_or_wholly_invalid() {
    let good = json!({"backendRefs": [to("cart")]});
    let bad = json!({"name": "b", "filters": [{"type": "Teapot"}]});
    let both = json!({"filters": [
        {"type": "URLRewrite", "urlRewrite": {}}, {"type": "RequestRedirect", "requestRedirect": {}}]});
    let mut index = index(&[service("shop", "cart")]);
    let mut seen = |rules: Value| {
        apply(&mut index, &[on_cart("HTTPRoute", "shop", "r", rules)]);
        let shown = http(&index, "r").remove(0);
        (shown[0].clone(), shown.get(2).cloned())
    };
    let (accepted, partly) = seen(json!([good, bad]));
    assert_eq!(accepted, "Accepted=True:Accepted");
    assert_eq!(partly.as_deref(), Some("PartiallyInvalid=True:UnsupportedValue"));
    assert_eq!(seen(json!([bad])).0, "Accepted=False:UnsupportedValue");
    assert_eq!(seen(json!([both])).0, "Accepted=False:IncompatibleFilters");
    seen(json!([good, bad]));
    let told = message(&index, "r", "PartiallyInvalid");
    assert!(told.starts_with("Dropped Rule b: filter \"Teapot\""), "{told}");
    let problems = index.route_status(&id(Kind::HttpRoute, "r")).unwrap().problems();
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    assert!(problem.starts_with("on service cart: UnsupportedValue: Dropped Rule b"), "{problem}");
}

#[test]
fn of_two_kinds_on_a_port_the_less_specific_is_conflicted_until_the_other_goes() {
    let rules = || json!([{"backendRefs": [to("cart")]}]);
    let mut index = index(&[
        service("shop", "cart"),
        on_cart("HTTPRoute", "shop", "h", rules()),
        on_cart("GRPCRoute", "shop", "g", rules()),
    ]);
    assert_eq!(http(&index, "h")[0][0], "Accepted=False:Conflicted");
    assert_eq!(conditions(&index, Kind::GrpcRoute, "g")[0][0], "Accepted=True:Accepted");
    index.take_routes_due();
    let key = Key { kind: Kind::GrpcRoute, namespace: "shop".to_owned(), name: "g".to_owned() };
    index.apply([Event::Delete(key)]);
    assert_eq!(index.take_routes_due(), [id(Kind::HttpRoute, "h")], "it has something to say");
    assert_eq!(http(&index, "h")[0][0], "Accepted=True:Accepted");
}

#[test]
fn a_route_is_due_when_what_it_refers_to_comes_and_not_when_that_only_changes_endpoints() {
    let mut index = index(&[
        service("shop", "cart"),
        on_cart("HTTPRoute", "shop", "r", json!([{"backendRefs": [to("new")]}])),
    ]);
    assert_eq!(index.take_routes_due().len(), 1);
    assert!(apply(&mut index, &[service("shop", "new")]).routes_due);
    assert_eq!(index.take_routes_due(), [id(Kind::HttpRoute, "r")]);
    assert!(!apply(&mut index, &[service("shop", "other")]).routes_due);
}

#[test]
fn times_and_foreign_conditions_are_kept_while_the_status_stays() {
    let mut index = index(&[
        service("shop", "cart"),
        on_cart("HTTPRoute", "shop", "r", json!([{"backendRefs": [to("none")]}])),
    ]);
    let of = |index: &Index| index.route_status(&id(Kind::HttpRoute, "r")).unwrap();
    let at = |seconds| Timestamp::from_second(seconds).unwrap();
    let mut first = of(&index).entries(&[], at(100));
    let foreign =
        Condition { type_: "example.com/Seen".to_owned(), ..first[0].conditions[0].clone() };
    first[0].conditions.push(foreign.clone());
    apply(&mut index, &[service("shop", "none")]);
    let second = of(&index).entries(&first, at(200));
    let seconds = |entry: &ParentStatus| -> Vec<i64> {
        entry.conditions.iter().map(|c| c.last_transition_time.0.as_second()).collect()
    };
    assert_eq!(seconds(&second[0]), [100, 200, 100]);
    assert_eq!(second[0].conditions[2], foreign);
    let newer = Condition { observed_generation: Some(7), ..foreign };
    second.into_iter().for_each(|mut entry| {
        entry.conditions.push(newer.clone());
        assert!(of(&index).is_stale(&[entry]), "somebody knew more");
    });
}

#[test]
fn what_is_told_already_is_not_told_again() {
    let mut route = on_cart("HTTPRoute", "shop", "r", json!([{"backendRefs": [to("cart")]}]));
    let mut index = index(&[service("shop", "cart"), route.clone()]);
    let status = |index: &Index| index.route_status(&id(Kind::HttpRoute, "r")).unwrap();
    assert!(!status(&index).is_told());
    let entries = status(&index).entries(&[], Timestamp::UNIX_EPOCH);
    route["status"] = json!({"parents": entries});
    apply(&mut index, std::slice::from_ref(&route));
    assert!(status(&index).is_told());
    route["metadata"]["generation"] = json!(2);
    apply(&mut index, std::slice::from_ref(&route));
    assert!(!status(&index).is_told(), "about an older version");
    route["spec"]["parentRefs"] = json!([]);
    apply(&mut index, &[route]);
    assert!(!status(&index).is_told(), "entries that are left over go");
}
