use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::{
    rule::{Filter, Path, RouteMatch, Rule, Session},
    *,
};
use crate::{
    index::{
        SubscriberId,
        answer::{Answer, Caller, Target},
    },
    source::{Event, Key, Object, route::Route},
};

mod policy;

/// Services, routes and grants as manifests write them, by kind.
pub(super) fn apply(index: &mut Index, objects: &[Value]) -> super::super::Applied {
    index.apply(objects.iter().map(|object| Event::Apply(read(object.clone()))))
}

fn read(object: Value) -> Object {
    fn typed<T: serde::de::DeserializeOwned>(object: Value) -> T {
        serde_json::from_value(object).unwrap()
    }
    match object["kind"].as_str().unwrap() {
        "Service" => Object::Service(Arc::new((&typed::<core::Service>(object)).into())),
        "HTTPRoute" => Object::Route(Arc::new(Route::http(&typed(object)))),
        "GRPCRoute" => Object::Route(Arc::new(Route::grpc(&typed(object)))),
        "TLSRoute" => Object::Route(Arc::new(Route::tls(&typed(object)))),
        "TCPRoute" => Object::Route(Arc::new(Route::tcp(&typed(object)))),
        _ => Object::ReferenceGrant(Arc::new((&typed::<route::WrittenGrant>(object)).into())),
    }
}

pub(super) fn index(objects: &[Value]) -> Index {
    let mut index = Index::new("cluster.local", "cluster.local");
    apply(&mut index, objects);
    index
}

pub(super) fn service(namespace: &str, name: &str) -> Value {
    json!({"kind": "Service", "metadata": {"namespace": namespace, "name": name}, "spec": {
        "clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}, {"name": "two", "port": 81}]}})
}

/// A route of a kind on the Service `cart` of `shop`.
pub(super) fn on_cart(kind: &str, namespace: &str, name: &str, rules: Value) -> Value {
    json!({"kind": kind, "metadata": {"namespace": namespace, "name": name}, "spec": {
        "parentRefs": [{"group": "", "kind": "Service", "name": "cart", "namespace": "shop"}],
        "hostnames": [], "rules": rules}})
}

pub(super) fn to(name: &str) -> Value {
    json!({"name": name, "port": 80})
}

fn caller(namespace: &str) -> Arc<Caller> {
    Arc::new(Caller { namespace: namespace.to_owned(), ..Caller::default() })
}

fn routes(index: &Index, from: &str, port: u16) -> Option<super::rule::SharedRoutes> {
    let target = Target::authority(&format!("cart.shop:{port}")).unwrap();
    let Answer::Service(snapshot) = index.resolve(&target, &caller(from)) else { panic!() };
    snapshot.head.routes.clone()
}

/// `rule: match or match > backend*weight`, by precedence.
fn shown(index: &Index, from: &str, port: u16) -> Vec<String> {
    let Some(routes) = routes(index, from, port) else { return Vec::new() };
    let http = routes.http.iter().map(|route| {
        let matches: Vec<String> = route.matches.iter().map(matched).collect();
        format!("{}: {} > {}", route.rule.name, matches.join(" or "), backends(&route.rule))
    });
    let streams = routes.streams.iter().map(|route| {
        format!(
            "{}: {} > {}",
            route.rule.name,
            route.server_names.join(" or "),
            backends(&route.rule)
        )
    });
    http.chain(streams).collect()
}

fn matched(one: &RouteMatch) -> String {
    let path = match &one.path {
        Some(Path::Exact(path)) => format!("={path}"),
        Some(Path::Prefix(path)) => format!("{path}*"),
        Some(Path::Regex(path)) => format!("~{path}"),
        None => "any".to_owned(),
    };
    let values = one.headers.iter().chain(&one.query).map(|value| format!(" {}", value.name));
    path + &one.method.iter().map(|m| format!(" {m}")).chain(values).collect::<String>()
}

fn backends(rule: &Rule) -> String {
    let one = |backend: &super::rule::WeightedBackend| {
        let invalid = backend.backend.invalid.as_ref().map_or("", |no| no.reason.as_str());
        format!("{}*{}{invalid}", backend.backend.service.name, backend.weight)
    };
    rule.backends.iter().map(one).collect::<Vec<_>>().join(",")
}

#[test]
fn matches_of_all_rules_are_in_the_order_of_the_standard() {
    let path = |kind: &str, value: &str| json!({"path": {"type": kind, "value": value}});
    let one = |name: &str, matches: Value| json!({"name": name, "matches": matches, "backendRefs": [to("cart")]});
    let index = index(&[
        service("shop", "cart"),
        on_cart(
            "HTTPRoute",
            "shop",
            "a",
            json!([
                one("all", json!([{}])),
                one("mixed", json!([path("PathPrefix", "/a/"), path("Exact", "/z")])),
                one("longer", json!([path("PathPrefix", "/a/b")])),
                one("method", json!([{"path": {"value": "/a"}, "method": "GET"}])),
                one(
                    "query",
                    json!([{"path": {"value": "/a"}, "queryParams": [{"name": "q", "value": "1"}]}])
                ),
                one(
                    "header",
                    json!([{"path": {"value": "/a"}, "headers": [{"name": "h", "value": "1"}]}])
                ),
                one("regex", json!([path("RegularExpression", "/r.*")])),
            ]),
        ),
    ]);
    assert_eq!(
        shown(&index, "shop", 80),
        [
            "shop/a/mixed: =/z > cart*1",
            "shop/a/regex: ~/r.* > cart*1",
            "shop/a/longer: /a/b* > cart*1",
            "shop/a/method: /a* GET > cart*1",
            "shop/a/header: /a* h > cart*1",
            "shop/a/query: /a* q > cart*1",
            "shop/a/mixed: /a* > cart*1",
            "shop/a/all: /* > cart*1",
        ]
    );
}

#[test]
fn of_two_routes_that_say_the_same_the_older_wins_then_the_first_by_name() {
    let aged = |name: &str, year: &str| {
        let mut route = on_cart("HTTPRoute", "shop", name, json!([{"backendRefs": [to("cart")]}]));
        route["metadata"]["creationTimestamp"] = json!(format!("{year}-01-01T00:00:00Z"));
        route
    };
    let index =
        index(&[service("shop", "cart"), aged("a", "2026"), aged("c", "2025"), aged("b", "2025")]);
    let names = shown(&index, "shop", 80);
    assert_eq!(names, ["shop/b/0: /* > cart*1", "shop/c/0: /* > cart*1", "shop/a/0: /* > cart*1"]);
}

#[test]
fn a_route_of_the_callers_namespace_takes_the_place_of_the_producers() {
    let index = index(&[
        service("shop", "cart"),
        on_cart("HTTPRoute", "shop", "producer", json!([{"backendRefs": [to("cart")]}])),
        on_cart(
            "HTTPRoute",
            "web",
            "consumer",
            json!([{"backendRefs": [
            {"name": "cart", "namespace": "shop", "port": 80}]}]),
        ),
    ]);
    assert_eq!(shown(&index, "web", 80), ["web/consumer/0: /* > cart*1"]);
    assert_eq!(shown(&index, "other", 80), ["shop/producer/0: /* > cart*1"]);
}

#[test]
fn consumers_share_the_endpoints_and_keep_their_answer_while_nothing_changes() {
    let mut index = index(&[
        service("shop", "cart"),
        on_cart("HTTPRoute", "web", "consumer", json!([{"backendRefs": [to("cart")]}])),
    ]);
    let target = Target::authority("cart.shop:80").unwrap();
    let answer = |index: &Index, from| match index.resolve(&target, &caller(from)) {
        Answer::Service(snapshot) => snapshot,
        other => panic!("{other:?}"),
    };
    let (web, other) = (answer(&index, "web"), answer(&index, "other"));
    assert!(Arc::ptr_eq(&web.endpoints, &other.endpoints));
    apply(&mut index, &[on_cart("HTTPRoute", "third", "r", json!([{"backendRefs": [to("x")]}]))]);
    assert!(Arc::ptr_eq(&web, &answer(&index, "web")));
    assert!(Arc::ptr_eq(&other, &answer(&index, "other")));
}

#[test]
fn a_parent_can_be_one_port_by_number_or_name() {
    let with = |name: &str, key: &str, value: Value| {
        let mut route = on_cart("HTTPRoute", "shop", name, json!([{"backendRefs": [to("cart")]}]));
        route["spec"]["parentRefs"][0][key] = value;
        route
    };
    let index = index(&[
        service("shop", "cart"),
        with("number", "port", json!(80)),
        with("name", "sectionName", json!("two")),
        with("absent", "port", json!(8080)),
        with("gateway", "group", json!("gateway.networking.k8s.io")),
    ]);
    assert_eq!(shown(&index, "shop", 80), ["shop/number/0: /* > cart*1"]);
    assert_eq!(shown(&index, "shop", 81), ["shop/name/0: /* > cart*1"]);
}

#[test]
fn of_several_kinds_on_a_port_the_more_specific_counts() {
    let rules = || json!([{"backendRefs": [to("cart")]}]);
    let mut objects = vec![service("shop", "cart")];
    for (kind, expected) in [
        ("TCPRoute", "shop/tcproute/0:  > cart*1"),
        ("TLSRoute", "shop/tlsroute/0:  > cart*1"),
        ("HTTPRoute", "shop/httproute/0: /* > cart*1"),
        ("GRPCRoute", "shop/grpcroute/0: any > cart*1"),
    ] {
        objects.push(on_cart(kind, "shop", &kind.to_lowercase(), rules()));
        assert_eq!(shown(&index(&objects), "shop", 80), [expected]);
    }
}

#[test]
fn grpc_methods_become_paths_by_length() {
    let method =
        |method: Value| json!({"matches": [{"method": method}], "backendRefs": [to("cart")]});
    let index = index(&[
        service("shop", "cart"),
        on_cart(
            "GRPCRoute",
            "shop",
            "g",
            json!([
                method(json!({"method": "Get"})),
                method(json!({"service": "shop.Cart"})),
                method(json!({"service": "shop.Cart", "method": "Get"})),
                method(
                    json!({"type": "RegularExpression", "service": "shop\\..*", "method": "Get|Put"})
                ),
            ]),
        ),
    ]);
    assert_eq!(
        shown(&index, "shop", 80),
        [
            "shop/g/2: =/shop.Cart/Get > cart*1",
            "shop/g/1: /shop.Cart* > cart*1",
            "shop/g/3: ~/(?:shop\\..*)/(?:Get|Put) > cart*1",
            "shop/g/0: ~/[^/]+/Get > cart*1",
        ]
    );
}

#[test]
fn server_names_are_ordered_by_how_much_they_say() {
    let mut route = on_cart("TLSRoute", "shop", "t", json!([{"backendRefs": [to("cart")]}]));
    let mut other = on_cart("TLSRoute", "shop", "u", json!([{"backendRefs": [to("cart")]}]));
    route["spec"]["hostnames"] = json!(["*.example.com", "A.example.com"]);
    other["spec"]["hostnames"] = json!(["*.b.example.com", "long.b.example.com"]);
    let index = index(&[service("shop", "cart"), route, other]);
    assert_eq!(
        shown(&index, "shop", 80),
        [
            "shop/u/0: long.b.example.com > cart*1",
            "shop/t/0: a.example.com > cart*1",
            "shop/u/0: *.b.example.com > cart*1",
            "shop/t/0: *.example.com > cart*1",
        ]
    );
}

#[test]
fn backends_that_cannot_be_used_keep_their_weight_and_say_why() {
    let external = json!({"kind": "Service", "metadata": {"namespace": "shop", "name": "out"},
        "spec": {"type": "ExternalName", "externalName": "example.com"}});
    let index = index(&[
        service("shop", "cart"),
        external,
        on_cart(
            "HTTPRoute",
            "shop",
            "r",
            json!([{"backendRefs": [
            {"name": "cart", "port": 80, "weight": 3}, {"name": "cart", "port": 9, "weight": 2},
            to("none"), to("out"), {"name": "x", "kind": "Bucket", "group": "s3.example"},
            {"name": "cart", "port": 80, "weight": 0}]}]),
        ),
    ]);
    assert_eq!(
        shown(&index, "shop", 80),
        [
            "shop/r/0: /* > cart*3,cart*2BackendNotFound,none*1BackendNotFound,out*1InvalidKind,x*1InvalidKind,cart*0"
        ]
    );
    let routes = routes(&index, "shop", 80).unwrap();
    let why = &routes.http[0].rule.backends[1].backend.invalid.as_ref().unwrap().message;
    assert_eq!(&**why, "service shop/cart has no port 9; it has 80, 81");
}

#[test]
fn another_namespace_must_grant_and_may_take_back() {
    let grant = |to: Value| {
        json!({"kind": "ReferenceGrant", "metadata": {"namespace": "stock", "name": "g"},
        "spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}],
            "to": [to]}})
    };
    let mut index = index(&[
        service("shop", "cart"),
        service("stock", "db"),
        on_cart(
            "HTTPRoute",
            "shop",
            "r",
            json!([{"backendRefs": [
            {"name": "db", "namespace": "stock", "port": 80}]}]),
        ),
    ]);
    let refused = ["shop/r/0: /* > db*1RefNotPermitted"];
    assert_eq!(shown(&index, "shop", 80), refused);
    apply(&mut index, &[grant(json!({"group": "", "kind": "Service", "name": "other"}))]);
    assert_eq!(shown(&index, "shop", 80), refused);
    apply(&mut index, &[grant(json!({"group": "", "kind": "Service"}))]);
    assert_eq!(shown(&index, "shop", 80), ["shop/r/0: /* > db*1"]);
    let (namespace, name) = ("stock".to_owned(), "g".to_owned());
    index.apply([Event::Delete(Key { kind: Kind::ReferenceGrant, namespace, name })]);
    assert_eq!(shown(&index, "shop", 80), refused);
}

#[test]
fn only_those_are_told_whom_a_change_concerns() {
    let mut index =
        index(&[service("shop", "cart"), service("shop", "pay"), service("stock", "db")]);
    let ids = [("shop", "cart.shop:80"), ("web", "cart.shop:80"), ("web", "pay.shop:80")];
    for (id, (from, authority)) in ids.into_iter().enumerate() {
        let id = SubscriberId { stream: 0, id: id as u64 };
        index.subscribe(id, Target::authority(authority).unwrap(), caller(from));
    }
    let told = |applied: super::super::Applied| {
        let mut ids: Vec<u64> = applied.touched.iter().map(|id| id.id).collect();
        ids.sort_unstable();
        ids
    };
    let consumer = |name| on_cart("HTTPRoute", "web", "c", json!([{"backendRefs": [to(name)]}]));
    assert_eq!(told(apply(&mut index, &[consumer("cart")])), [1], "a consumer's route");
    let producer = on_cart("HTTPRoute", "shop", "p", json!([{"backendRefs": [to("new")]}]));
    assert_eq!(
        told(apply(&mut index, std::slice::from_ref(&producer))),
        [0, 1],
        "a producer's route"
    );
    assert_eq!(told(apply(&mut index, &[service("shop", "new")])), [0, 1], "its backend is there");
    let mut annotated = service("shop", "new");
    annotated["metadata"]["annotations"] = json!({"timeout.remora.io/request": "1s"});
    assert_eq!(told(apply(&mut index, &[annotated])), [] as [u64; 0], "its backend is as before");
    let mut written = producer;
    written["status"] = json!({"parents": [{"parentRef": {"name": "cart"},
        "controllerName": "remora.io/mesh-controller", "conditions": []}]});
    assert_eq!(told(apply(&mut index, &[written])), [] as [u64; 0], "what we say of it");
}

#[test]
fn a_rule_that_cannot_be_done_is_answered_rather_than_passed_by() {
    let index = index(&[
        service("shop", "cart"),
        on_cart(
            "HTTPRoute",
            "shop",
            "r",
            json!([
                {"matches": [{"path": {"value": "/secret"}}], "filters": [{"type": "ExternalAuth"}],
                    "backendRefs": [to("cart")]},
                {"matches": [{"path": {"type": "Glob", "value": "/x"}}], "backendRefs": [to("cart")]},
                {"backendRefs": [to("cart")]},
            ]),
        ),
        on_cart("HTTPRoute", "shop", "bad", json!([{"filters": [{"type": "Teapot"}]}])),
    ]);
    assert_eq!(shown(&index, "shop", 80), ["shop/r/0: /secret* > ", "shop/r/2: /* > cart*1"]);
    let routes = routes(&index, "shop", 80).unwrap();
    assert!(routes.http[0].rule.no_backend());
}

/// A proxy refuses all routes of a Service where it cannot do one of them, so none may come to it.
#[test]
fn what_no_proxy_could_do_is_a_problem_of_its_rule_alone() {
    let modified = |name: &str, value: &str| {
        let set = json!([{"name": name, "value": value}]);
        json!({"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": set}}]})
    };
    let matched = |with: serde_json::Value| json!({"matches": [with]});
    let regex = "RegularExpression";
    for bad in [
        matched(json!({"path": {"type": regex, "value": "("}})),
        matched(json!({"headers": [{"type": regex, "name": "a", "value": "(?=a)"}]})),
        matched(json!({"headers": [{"name": "a b", "value": "1"}]})),
        matched(json!({"queryParams": [{"type": regex, "name": "a", "value": ")("}]})),
        matched(json!({"method": "GET IT"})),
        modified("x a", "1"),
        modified("x", "a\r\nb"),
        json!({"filters": [{"type": "URLRewrite", "urlRewrite": {"hostname": "a/b"}}]}),
        json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"hostname": "*"}}]}),
        json!({"filters": [{"type": "CORS", "cors": {"allowOrigins": ["ftp://a"]}}]}),
    ] {
        let rules = json!([bad, {"backendRefs": [to("cart")]}]);
        let index = index(&[service("shop", "cart"), on_cart("HTTPRoute", "shop", "r", rules)]);
        let parsed = &index.routes.routes.values().next().unwrap().rules;
        let done: Vec<_> = parsed.iter().map(|rule| rule.problem.is_none()).collect();
        assert_eq!(done, [false, true], "{bad}");
    }
}

#[test]
fn filters_are_read_with_the_standards_defaults() {
    let index = index(&[
        service("shop", "cart"),
        on_cart(
            "HTTPRoute",
            "shop",
            "r",
            json!([{"matches": [{"path": {"value": "/a"}}], "filters": [
                {"type": "RequestRedirect", "requestRedirect": {"path": {
                    "type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"}}},
                {"type": "RequestMirror", "requestMirror": {"backendRef": to("cart"), "percent": 5}},
                {"type": "CORS", "cors": {"allowOrigins": ["*"]}},
            ]}]),
        ),
    ]);
    let routes = routes(&index, "shop", 80).unwrap();
    let [
        Filter::Redirect(redirect),
        Filter::Mirror { backend, numerator, denominator },
        Filter::Cors(cors),
    ] = &*routes.http[0].rule.filters
    else {
        panic!("{:?}", routes.http[0].rule.filters)
    };
    assert_eq!((redirect.status, redirect.port), (302, None));
    assert_eq!((*numerator, *denominator, &backend.invalid), (5, 100, &None));
    assert_eq!((cors.max_age.as_secs(), cors.allow_credentials), (5, false));
}
