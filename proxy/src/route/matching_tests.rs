use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::balance::testing::epoch;
use crate::route::{
    Filter, Route,
    backend::Backends,
    cors::{Cors, List, Origins},
    find,
    testing::{h1, parts},
};

fn route(name: &str, matches: Vec<RouteMatch>) -> Arc<Route> {
    Arc::new(Route {
        name: name.into(),
        matches: matches.into(),
        backends: Backends::Own,
        filters: [].into(),
        retry: None,
        timeouts: Default::default(),
        affinity: None,
        fault: None,
        traffic: Arc::new(crate::discovery::traffic::RouteTraffic::new(epoch())),
    })
}

fn path(path: PathMatch) -> RouteMatch {
    RouteMatch { path: Some(path), ..Default::default() }
}

fn header(name: &'static str, value: TextMatch) -> RouteMatch {
    let header = HeaderMatch { name: HeaderName::from_static(name), value };
    RouteMatch { headers: [header].into(), ..Default::default() }
}

fn query(name: &str, value: TextMatch) -> RouteMatch {
    let query = QueryMatch { name: name.into(), value };
    RouteMatch { query: [query].into(), ..Default::default() }
}

fn pattern(text: &str) -> TextMatch {
    TextMatch::pattern(text).unwrap()
}

fn holds(wanted: &RouteMatch, uri: &str, fields: &[(&str, &str)]) -> bool {
    wanted.holds(&parts("GET", uri, fields), None).is_some()
}

#[test]
fn a_prefix_matches_whole_elements_only() {
    for (wanted, asked, holds_of) in [
        ("/", "/anything", Some(0)),
        ("/api", "/api", Some(4)),
        ("/api/", "/api", Some(4)),
        ("/api", "/api/", Some(4)),
        ("/api", "/api/v1?a=b", Some(4)),
        ("/api", "/apiary", None),
        ("/api", "/API", None),
    ] {
        let found = path(PathMatch::prefix(wanted)).holds(&parts("GET", asked, &[]), None);
        assert_eq!(found, holds_of.map(Some), "{wanted} {asked}");
    }
}

#[test]
fn an_exact_path_and_an_expression_take_the_whole_path_without_the_query() {
    let exact = path(PathMatch::Exact("/a".into()));
    assert!(holds(&exact, "/a?b", &[]));
    assert!(!holds(&exact, "/a/", &[]));
    let pattern = path(PathMatch::Pattern(pattern("/v[12]/.*")));
    assert!(holds(&pattern, "/v1/a/b?c", &[]));
    assert!(!holds(&pattern, "/v3/a", &[]));
    assert!(!holds(&pattern, "/a/v1/a", &[]));
}

#[test]
fn a_default_match_takes_requests_without_a_path_too() {
    let all = path(PathMatch::prefix("/"));
    let options = h1("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(all.holds(&options, None), Some(Some(0)));
    let connect = h1("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n");
    assert_eq!(all.holds(&connect, None), Some(Some(0)));
}

#[test]
fn of_several_fields_the_first_counts() {
    let exact = header("x-a", TextMatch::exact("1"));
    assert!(holds(&exact, "/", &[("x-a", "1"), ("x-a", "2")]));
    assert!(!holds(&exact, "/", &[("x-a", "2"), ("x-a", "1")]));
    assert!(!holds(&exact, "/", &[("x-b", "1")]));
    let digits = header("x-a", pattern("[0-9]+"));
    assert!(holds(&digits, "/", &[("x-a", "42")]));
    assert!(!holds(&digits, "/", &[("x-a", "42b")]));
}

#[test]
fn the_host_is_a_field_in_either_version() {
    let host = header("host", TextMatch::exact("echo:8080"));
    assert!(holds(&host, "http://echo:8080/", &[]));
    assert!(!holds(&host, "http://echo/", &[]));
    let request = h1("GET / HTTP/1.1\r\nHost: echo:8080\r\n\r\n");
    assert!(host.holds(&request, None).is_some());
}

#[test]
fn parameters_are_compared_decoded_and_the_first_counts() {
    for (name, value, asked, wanted) in [
        ("animal", "whale", "animal=whale", true),
        ("animal", "whale", "other=1&animal=whale&x", true),
        ("animal", "whale", "animal=whaledolphin", false),
        ("animal", "whale", "animal=dog&animal=whale", false),
        ("animal", "whale", "animals=whale", false),
        ("animal", "blue whale", "animal=blue%20whale", true),
        ("animal", "blue whale", "%61nimal=blue+whale", true),
        ("animal", "blue+whale", "animal=blue%2bwhale", true),
        ("animal", "50%", "animal=50%", true),
        ("animal", "5%4", "animal=5%4", true),
        ("animal", "", "animal", true),
        ("animal", "a=b", "animal=a=b", true),
        ("animal", "", "", false),
    ] {
        let wanted_match = query(name, TextMatch::exact(value));
        assert_eq!(holds(&wanted_match, &format!("/?{asked}"), &[]), wanted, "{asked}");
    }
    assert!(!holds(&query("animal", TextMatch::exact("")), "/", &[]));
    let spaced = query("animal", pattern("b[a-z]+ whale"));
    assert!(holds(&spaced, "/?animal=blue+whale", &[]));
    assert!(!holds(&spaced, "/?animal=blue-whale", &[]));
}

#[test]
fn all_conditions_of_one_match_must_hold_and_one_match_is_enough() {
    let both = RouteMatch { method: Some(Method::POST), ..header("x-a", TextMatch::exact("1")) };
    let routes = [route("r", vec![both, path(PathMatch::Exact("/b".into()))])];
    let taken = |method: &str, uri: &str, fields: &[(&str, &str)]| {
        find(&routes, &parts(method, uri, fields)).is_some()
    };
    assert!(taken("POST", "/", &[("x-a", "1")]));
    assert!(!taken("GET", "/", &[("x-a", "1")]));
    assert!(!taken("POST", "/", &[]));
    assert!(taken("GET", "/b", &[]));
}

#[test]
fn the_first_route_that_matches_is_taken() {
    let routes = [
        route("exact", vec![path(PathMatch::Exact("/a".into()))]),
        route("prefix", vec![path(PathMatch::prefix("/a"))]),
        route("all", vec![]),
    ];
    let taken = |uri: &str| {
        let request = parts("GET", uri, &[]);
        let found = find(&routes, &request).unwrap();
        (found.route.name.to_string(), found.prefix)
    };
    assert_eq!(taken("/a"), ("exact".to_owned(), None));
    assert_eq!(taken("/a/b"), ("prefix".to_owned(), Some(2)));
    assert_eq!(taken("/b"), ("all".to_owned(), Some(0)));
    assert!(find(&routes[..2], &parts("GET", "/b", &[])).is_none());
}

#[test]
fn a_preflight_takes_the_route_of_the_request_that_it_asks_for() {
    let put = || RouteMatch { method: Some(Method::PUT), ..Default::default() };
    let sent = [("origin", "http://a"), ("access-control-request-method", "PUT")];
    let preflight = parts("OPTIONS", "/", &sent);
    assert!(find(&[route("plain", vec![put()])], &preflight).is_none());
    let cors = Cors {
        origins: Origins::Any,
        methods: List::Any,
        headers: List::None,
        expose: List::None,
        credentials: false,
        max_age: None,
    };
    let mut shared = route("shared", vec![put()]);
    Arc::get_mut(&mut shared).unwrap().filters = [Filter::Cors(Box::new(cors))].into();
    assert!(find(&[shared.clone()], &preflight).is_some());
    assert!(find(&[shared], &parts("OPTIONS", "/", &sent[..1])).is_none());
}

proptest! {
    /// What both codecs make of the same request is the same to routes.
    #[test]
    fn both_codecs_match_alike(
        path_text in "(/[a-c]{0,2}){1,3}",
        query_text in prop::option::of("[a-c=&%2+]{0,8}"),
        value in "[a-c]{0,2}",
        wanted_path in "(/[a-c]{0,2}){1,2}",
        kind in 0u8..3,
        wanted_value in "[a-c]{1,2}",
    ) {
        let query_text = query_text.map(|q| format!("?{q}")).unwrap_or_default();
        let uri = format!("{path_text}{query_text}");
        let text = format!("GET {uri} HTTP/1.1\r\nHost: orders\r\nX-A: {value}\r\n\r\n");
        let first = h1(&text);
        let second = parts("GET", &format!("http://orders{uri}"), &[("x-a", &value)]);
        let wanted = RouteMatch {
            path: Some(match kind {
                0 => PathMatch::Exact(wanted_path.as_str().into()),
                1 => PathMatch::prefix(&wanted_path),
                _ => PathMatch::Pattern(pattern(&wanted_path)),
            }),
            ..Default::default()
        };
        prop_assert_eq!(wanted.holds(&first, None), wanted.holds(&second, None));
        for wanted in [
            query("a", TextMatch::exact(&wanted_value)),
            header("x-a", TextMatch::exact(&wanted_value)),
        ] {
            prop_assert_eq!(wanted.holds(&first, None), wanted.holds(&second, None));
        }
    }

    #[test]
    fn decoding_undoes_encoding(text in ".{0,12}") {
        let encoded: String = text.bytes().map(|b| format!("%{b:02x}")).collect();
        prop_assert!(decoded(&encoded).eq(text.bytes()));
    }
}
