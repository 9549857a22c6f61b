//! Where routes lead, and which rule takes a request.

use proptest::prelude::*;

use super::*;
use crate::index::routes::rule::{Path as Asked, RouteMatch, ValueMatch};

#[test]
fn a_route_needs_a_parent() {
    let none = http("[]")
        .replace("parentRefs: [{group: \"\", kind: Service, name: cart}]", "parentRefs: []");
    let none = none.replace("rules: []", &format!("rules: [{{{TO_NEXT}}}]"));
    case("route-without-parent spec.parentRefs", &none, &http(&format!("[{{{TO_NEXT}}}]")));
    let gateway = none.replace("parentRefs: []", "parentRefs: [{name: some-gateway}]");
    assert_eq!(with_shop(&gateway), [""; 0], "another's");
}

#[test]
fn parents_must_be_services_with_an_address_and_that_port() {
    let good = http(&format!("[{{{TO_NEXT}}}]"));
    let on = |parent: &str| good.replace("name: cart}", &format!("{parent}}}"));
    case("parent-missing spec.parentRefs[0].name", &on("name: card"), &good);
    case(
        "parent-port spec.parentRefs[0]",
        &on("name: cart, port: 81"),
        &on("name: cart, port: 80"),
    );
    case(
        "parent-kind spec.parentRefs[0].group",
        &good.replace("group: \"\"", "group: gateway.networking.k8s.io"),
        &good,
    );
    let outside = service("outside", "", "{type: ExternalName, externalName: a.example}");
    let on_outside = on("name: outside");
    case(
        "parent-kind spec.parentRefs[0].name",
        &format!("{outside}---\n{on_outside}"),
        &format!("{outside}---\n{good}"),
    );
}

#[test]
fn a_less_specific_kind_of_route_does_not_count() {
    let to_next = format!("[{{{TO_NEXT}}}]");
    let grpc = route("GRPCRoute", "", &to_next);
    let beside = http(&to_next);
    let apart = beside.replace("name: cart}", "name: next}");
    case(
        "route-conflicted spec.parentRefs",
        &format!("{grpc}---\n{beside}"),
        &format!("{grpc}---\n{apart}"),
    );
}

#[test]
fn a_rule_that_nobody_can_do_is_invalid() {
    let filtered = |name: &str| {
        http(&format!(
            "[{{{TO_NEXT}, filters: [{{type: ExtensionRef, extensionRef: {{group: a, kind: B, name: {name}}}}}]}}]"
        ))
    };
    case("rule-invalid spec.rules[0]", &filtered("c"), &http(&format!("[{{{TO_NEXT}}}]")));
}

#[test]
fn requests_are_not_seen_on_an_opaque_port() {
    let on = |annotations: &str| {
        let more = annotated(annotations);
        let route = http(&format!("[{{{TO_NEXT}}}]")).replace("name: cart}", "name: more}");
        format!("{more}---\n{route}")
    };
    case(
        "route-on-opaque-port spec.parentRefs",
        &on("config.remora.io/opaque-ports: \"80\""),
        &on("config.remora.io/opaque-ports: \"81\""),
    );
}

#[test]
fn backends_must_be_services_with_an_address_and_that_port() {
    let to = |backend: &str| http(&format!("[{{backendRefs: [{{{backend}}}]}}]"));
    let good = to("name: next, port: 80");
    case("backend-missing spec.rules[0].backendRefs[0].name", &to("name: nixt, port: 80"), &good);
    case("backend-port spec.rules[0].backendRefs[0].port", &to("name: next, port: 81"), &good);
    let outside = service("outside", "", "{type: ExternalName, externalName: a.example}");
    let to_outside = to("name: outside, port: 80");
    case(
        "backend-kind spec.rules[0].backendRefs[0]",
        &format!("{outside}---\n{to_outside}"),
        &format!("{outside}---\n{good}"),
    );
}

#[test]
fn a_mirror_is_a_backend_too() {
    let mirror = |name: &str| {
        http(&format!(
            "[{{{TO_NEXT}, filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: {name}, port: 80}}}}}}]}}]"
        ))
    };
    case(
        "backend-missing spec.rules[0].filters[0].requestMirror.backendRef.name",
        &mirror("nixt"),
        &mirror("next"),
    );
}

#[test]
fn another_namespace_must_allow_the_reference() {
    let other = "apiVersion: v1\nkind: Service\nmetadata: {name: stock, namespace: other}\n\
                 spec: {ports: [{port: 80}]}\n";
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
                 metadata: {name: g, namespace: other}\nspec:\n  \
                 from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]\n  \
                 to: [{group: \"\", kind: Service}]\n";
    let route = http("[{backendRefs: [{name: stock, namespace: other, port: 80}]}]");
    case(
        "grant-missing spec.rules[0].backendRefs[0]",
        &format!("{other}---\n{route}"),
        &format!("{other}---\n{grant}---\n{route}"),
    );
}

#[test]
fn what_may_be_elsewhere_is_no_more_than_a_warning_that_says_so() {
    let route = http("[{backendRefs: [{name: stock, namespace: other, port: 80}]}]");
    let found = linted(&format!("{SHOP}\n---\n{route}"));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].severity, Severity::Warning);
    assert!(found[0].problem.contains("no Service of namespace other"), "{}", found[0].problem);
    let alone = linted(&http("[{backendRefs: [{name: next, port: 80}]}]"));
    assert!(alone.iter().all(|finding| finding.severity == Severity::Warning), "{alone:?}");
    assert_eq!(alone.len(), 2, "parent and backend: {alone:?}");
}

#[test]
fn a_rule_must_lead_somewhere() {
    let redirect = "filters: [{type: RequestRedirect, requestRedirect: {hostname: a.example}}]";
    case(
        "no-backend spec.rules[0].backendRefs",
        &http("[{name: one}]"),
        &http(&format!("[{{name: one, {redirect}}}]")),
    );
    let weighted = |weight: u32| {
        http(&format!(
            "[{{backendRefs: [{{name: next, port: 80, weight: {weight}}}, {{name: cart, port: 80, weight: 0}}]}}]"
        ))
    };
    case("weights-zero spec.rules[0].backendRefs", &weighted(0), &weighted(1));
}

#[test]
fn a_rule_whose_matches_are_all_taken_is_shadowed() {
    let rules = |first: &str, second: &str| {
        http(&format!("[{{matches: {first}, {TO_NEXT}}}, {{matches: {second}, {TO_NEXT}}}]"))
    };
    let prefix = "[{path: {type: PathPrefix, value: /a}}]";
    case(
        "rule-shadowed spec.rules[1]",
        &rules(prefix, prefix),
        &rules(prefix, "[{path: {value: /b}}]"),
    );
    let any = "[{path: {type: RegularExpression, value: \".*\"}}]";
    case(
        "rule-shadowed spec.rules[1]",
        &rules(any, prefix),
        &rules("[{path: {type: RegularExpression, value: \"/[0-9]+\"}}]", prefix),
    );
    let exact = "[{path: {type: Exact, value: /a}}]";
    assert_eq!(with_shop(&rules(prefix, exact)), [""; 0], "the exact one comes first");
}

#[test]
fn a_match_that_is_taken_beside_one_that_is_not_is_told_alone() {
    let rules = |second: &str| {
        let first = "[{path: {value: /a}}]";
        http(&format!("[{{matches: {first}, {TO_NEXT}}}, {{matches: {second}, {TO_NEXT}}}]"))
    };
    case(
        "match-shadowed spec.rules[1].matches[0]",
        &rules("[{path: {value: /a}}, {path: {value: /b}}]"),
        &rules("[{path: {value: /b}}]"),
    );
}

#[test]
fn a_route_may_be_shadowed_by_an_older_one_but_not_where_it_has_a_port_of_its_own() {
    let first = http(&format!("[{{{TO_NEXT}}}]"));
    let second = first.replace("name: r,", "name: s,");
    let more = annotated("");
    let both =
        second.replace("name: cart}]", "name: cart}, {group: \"\", kind: Service, name: more}]");
    case(
        "rule-shadowed spec.rules[0]",
        &format!("{first}---\n{second}"),
        &format!("{more}---\n{first}---\n{both}"),
    );
}

#[test]
fn only_the_first_rule_for_all_connections_counts() {
    let rules = |count: usize| {
        let rules = vec![format!("{{{TO_NEXT}}}"); count];
        route("TCPRoute", "", &format!("[{}]", rules.join(", ")))
    };
    case("rule-shadowed spec.rules[1]", &rules(2), &rules(1));
}

fn matches() -> impl Strategy<Value = RouteMatch> {
    let text = prop_oneof![Just("/"), Just("/a"), Just("/a/b"), Just("/ab")];
    let path = (0..4, text).prop_map(|(kind, text)| match kind {
        0 => None,
        1 => Some(Asked::Exact(text.to_owned())),
        _ => Some(Asked::Prefix(text.to_owned())),
    });
    let method =
        prop_oneof![Just(None), Just(Some("GET".to_owned())), Just(Some("POST".to_owned()))];
    let value = (prop_oneof![Just("x"), Just("y")], prop_oneof![Just("1"), Just("2")]).prop_map(
        |(name, value)| ValueMatch { name: name.into(), value: value.into(), regex: false },
    );
    let headers = prop::collection::vec(value, 0..2);
    (path, method, headers).prop_map(|(path, method, headers)| RouteMatch {
        path,
        method,
        headers,
        query: Vec::new(),
    })
}

/// Whether a request is matched, said again in the simplest words.
fn holds(one: &RouteMatch, path: &str, method: &str, headers: &[(&str, &str)]) -> bool {
    let path = match &one.path {
        Some(Asked::Exact(wanted)) => path == wanted,
        Some(Asked::Prefix(wanted)) => {
            wanted == "/" || path == wanted || path.starts_with(&format!("{wanted}/"))
        }
        _ => true,
    };
    path && one.method.as_deref().is_none_or(|wanted| wanted == method)
        && one.headers.iter().all(|wanted| {
            headers.iter().any(|(name, value)| *name == wanted.name && *value == wanted.value)
        })
}

proptest! {
    #[test]
    fn what_covers_takes_every_request(
        a in matches(),
        b in matches(),
        path in prop_oneof![Just("/"), Just("/a"), Just("/a/b"), Just("/ab"), Just("/a/b/c")],
        method in prop_oneof![Just("GET"), Just("POST")],
        x in prop_oneof![Just("1"), Just("2")],
    ) {
        let headers = [("x", x), ("y", "1")];
        if shadow::requests_cover(&a, &b) && holds(&b, path, method, &headers) {
            prop_assert!(holds(&a, path, method, &headers), "{:?} {:?}", a, b);
        }
    }
}
