use super::*;
use crate::{
    balance::testing::epoch,
    route::{
        Answer,
        testing::{fields, named},
    },
};

fn read(route: pb::Route) -> Result<(Arc<Route>, Vec<WireError>), WireError> {
    read_with(route, &Policy::default())
}

fn read_with(route: pb::Route, policy: &Policy) -> Result<(Arc<Route>, Vec<WireError>), WireError> {
    let service = pb::Service { routes: vec![route], ..Default::default() };
    let mut left_out = Vec::new();
    let mut routes = routes(&service, policy, (&[], epoch()), &mut left_out)?;
    Ok((routes.remove(0), left_out))
}

fn filter(kind: pb::filter::Kind) -> pb::Filter {
    pb::Filter { kind: Some(kind) }
}

fn with_filter(kind: pb::filter::Kind) -> pb::Route {
    pb::Route { filters: vec![filter(kind)], ..Default::default() }
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn backend(name: &str, weight: u32) -> pb::WeightedBackend {
    pb::WeightedBackend {
        weight,
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        port: 80,
        ..Default::default()
    }
}

#[test]
fn an_empty_route_goes_to_its_service_with_its_policy() {
    let policy = Policy {
        retry: Some(Default::default()),
        timeouts: crate::balance::policy::TimeoutPolicy {
            request: Some(Duration::from_secs(3)),
            idle: Some(Duration::from_secs(5)),
            ..Default::default()
        },
        ..Policy::default()
    };
    let (route, left_out) = read_with(pb::Route::default(), &policy).unwrap();
    assert!(left_out.is_empty());
    assert!(matches!(route.backends, Backends::Own));
    assert_eq!((&route.retry, &route.timeouts), (&policy.retry, &policy.timeouts));

    let timeouts = pb::TimeoutPolicy {
        request: Some(seconds(0)),
        backend_request: Some(seconds(2)),
        idle: Some(seconds(9)),
        ..Default::default()
    };
    let own = pb::Route {
        timeouts: Some(timeouts),
        retry: Some(pb::RetryPolicy { limit: 2, ..Default::default() }),
        ..Default::default()
    };
    let (route, _) = read_with(own, &policy).unwrap();
    assert_eq!(route.timeouts.request, None, "zero switches it off");
    assert_eq!(route.timeouts.backend_request, Some(Duration::from_secs(2)));
    assert_eq!(route.timeouts.idle, Some(Duration::from_secs(9)), "all of them are the route's");
    assert_eq!(route.retry.as_ref().map(|retry| retry.limit), Some(2));
}

#[test]
fn what_a_route_has_seen_outlives_its_changes() {
    let service = |limit| {
        let retry = Some(pb::RetryPolicy { limit, ..Default::default() });
        let route = pb::Route { name: "shop/orders/0".to_owned(), retry, ..Default::default() };
        pb::Service { routes: vec![route.clone(), route], ..Default::default() }
    };
    let read = |limit, before: &[Arc<Route>]| {
        let mut left_out = Vec::new();
        routes(&service(limit), &Policy::default(), (before, epoch()), &mut left_out).unwrap()
    };
    let first = read(1, &[]);
    assert!(Arc::ptr_eq(&first[0].traffic, &first[1].traffic), "one rule in two parts");
    let second = read(2, &first);
    assert!(Arc::ptr_eq(&first[0].traffic, &second[0].traffic));
    assert_eq!(second[0].retry.as_ref().map(|retry| retry.limit), Some(2));
}

#[test]
fn no_backend_is_not_the_service_itself() {
    let none = pb::Route { no_backend: true, ..Default::default() };
    let (route, _) = read(none).unwrap();
    let Backends::Weighted(none) = &route.backends else { panic!("{:?}", route.backends) };
    assert!(none.pick(&mut fastrand::Rng::with_seed(1)).is_err());
}

#[test]
fn backends_are_asked_for_by_name() {
    let wire = pb::Route {
        backends: vec![
            pb::WeightedBackend {
                invalid: "no such Service".to_owned(),
                port: 0,
                ..backend("gone", 1)
            },
            backend("orders", 1),
        ],
        ..Default::default()
    };
    let (route, _) = read(wire).unwrap();
    let Backends::Weighted(list) = &route.backends else { panic!("{:?}", route.backends) };
    let reachable: Vec<_> = list.reachable().map(|(at, b)| (at, b.target.to_string())).collect();
    assert_eq!(reachable, [(1, "orders.shop.svc:80".to_owned())]);
    let mut bad = backend("orders", 1);
    bad.port = 0;
    let bad = pb::Route { backends: vec![bad], ..Default::default() };
    assert_eq!(read(bad).unwrap_err().field, "routes.backends.port");
}

#[test]
fn framing_fields_are_left_out_and_a_host_becomes_a_rewrite() {
    let header = |name: &str, value: &str| pb::Header { name: name.into(), value: value.into() };
    let wire = pb::HeaderModifier {
        set: vec![header("Host", "b.example"), header("X-A", "1"), header("Te", "gzip")],
        add: vec![header("remora-client-id", "spiffe://a")],
        remove: vec!["content-length".to_owned(), "X-B".to_owned(), "host".to_owned()],
    };
    let (route, left_out) = read(with_filter(pb::filter::Kind::RequestHeaders(wire))).unwrap();
    assert_eq!(left_out.len(), 3, "{left_out:?}");
    let [Filter::RequestHeaders(modifier), Filter::Rewrite(rewrite)] = &*route.filters else {
        panic!("{:?}", route.filters)
    };
    let wanted = HeaderModifier {
        remove: [HeaderName::from_static("x-b")].into(),
        set: [named("x-a", "1")].into(),
        add: [].into(),
    };
    assert_eq!(*modifier, wanted);
    assert_eq!(rewrite.host.as_ref().unwrap(), "b.example");
}

#[test]
fn a_mirror_that_leads_nowhere_is_dropped() {
    let mirror = |invalid: &str| {
        let backend = pb::WeightedBackend { invalid: invalid.to_owned(), ..backend("copy", 1) };
        let wire = pb::Mirror { backend: Some(backend), numerator: 0, denominator: 0 };
        read(with_filter(pb::filter::Kind::Mirror(wire))).unwrap()
    };
    let (route, left_out) = mirror("");
    assert!(left_out.is_empty());
    let [Filter::Mirror(all)] = &*route.filters else { panic!("{:?}", route.filters) };
    assert!(all.wants(&mut fastrand::Rng::with_seed(1)), "absent: all");
    let (route, left_out) = mirror("not permitted");
    assert!(route.filters.is_empty());
    assert_eq!(left_out.len(), 1);
}

#[test]
fn a_filter_that_this_version_does_not_know_is_left_out_and_told() {
    let route = pb::Route { filters: vec![pb::Filter { kind: None }], ..Default::default() };
    let (route, left_out) = read(route).unwrap();
    assert!(route.filters.is_empty());
    assert_eq!(left_out[0].field, "routes.filters");
}

#[test]
fn cors_is_joined_once() {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let wire = pb::Cors {
        allow_origins: words(&["https://*.example.com"]),
        allow_methods: words(&["GET", "PUT"]),
        allow_headers: words(&["*"]),
        max_age: Some(seconds(5)),
        ..Default::default()
    };
    let (route, _) = read(with_filter(pb::filter::Kind::Cors(wire))).unwrap();
    let sent = [
        ("origin", "https://a.example.com"),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-a"),
    ];
    let preflight = crate::route::testing::parts("OPTIONS", "/", &sent);
    let Some(Answer::Preflight(answer)) = route.answer(&preflight, None) else { panic!() };
    let told = fields(answer.headers());
    for (name, value) in [
        ("access-control-allow-methods", "GET, PUT"),
        ("access-control-allow-headers", "*"),
        ("access-control-max-age", "5"),
    ] {
        assert!(told.contains(&(name.to_owned(), value.to_owned())), "{name} in {told:?}");
    }
}

#[test]
fn nonsense_is_refused_by_name() {
    use pb::{filter::Kind, route_match::Path};
    let matching =
        |wanted: pb::RouteMatch| pb::Route { matches: vec![wanted], ..Default::default() };
    let header = |name: &str, value: &str, regex| {
        let header = pb::HeaderMatch { name: name.to_owned(), value: value.to_owned(), regex };
        matching(pb::RouteMatch { headers: vec![header], ..Default::default() })
    };
    let fault = |fault| pb::Route { fault: Some(fault), ..Default::default() };
    let regex = Some(Path::PathRegex("(".to_owned()));
    for (route, field) in [
        (matching(pb::RouteMatch { path: regex, ..Default::default() }), "routes.matches.path"),
        (
            matching(pb::RouteMatch { method: "GE T".to_owned(), ..Default::default() }),
            "routes.matches.method",
        ),
        (header("a b", "", false), "routes.matches.headers"),
        (header("a", "[", true), "routes.matches.headers"),
        (
            with_filter(Kind::Redirect(pb::Redirect { status: 305, ..Default::default() })),
            "routes.filters.redirect.status",
        ),
        (
            with_filter(Kind::Redirect(pb::Redirect {
                scheme: "ftp".to_owned(),
                ..Default::default()
            })),
            "routes.filters.redirect.scheme",
        ),
        (
            with_filter(Kind::Redirect(pb::Redirect {
                hostname: "a/b".to_owned(),
                ..Default::default()
            })),
            "routes.filters.redirect.hostname",
        ),
        (
            with_filter(Kind::Rewrite(pb::UrlRewrite { hostname: "a b".to_owned(), path: None })),
            "routes.filters.rewrite.hostname",
        ),
        (
            with_filter(Kind::Cors(pb::Cors {
                allow_origins: vec!["example.com".to_owned()],
                ..Default::default()
            })),
            "routes.filters.cors.allow_origins",
        ),
        (fault(pb::Fault { delay_share: 1.5, ..Default::default() }), "routes.fault.delay_share"),
        (
            fault(pb::Fault { delay: Some(seconds(301)), ..Default::default() }),
            "routes.fault.delay",
        ),
        (fault(pb::Fault { abort_http: 101, ..Default::default() }), "routes.fault.abort_http"),
    ] {
        assert_eq!(read(route).unwrap_err().field, field);
    }
}

#[test]
fn too_many_expressions_are_refused_together() {
    let one = pb::RouteMatch {
        path: Some(pb::route_match::Path::PathRegex("/a".to_owned())),
        ..Default::default()
    };
    let route = |n| pb::Route { matches: vec![one.clone(); n], ..Default::default() };
    assert!(read(route(MAX_PATTERNS)).is_ok());
    assert_eq!(read(route(MAX_PATTERNS + 1)).unwrap_err().field, "routes");
}
