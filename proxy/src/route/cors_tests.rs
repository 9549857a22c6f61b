use http::HeaderMap;

use super::*;
use crate::route::testing::{fields, parts};

const ORIGIN: &str = "origin";
const METHOD: &str = "access-control-request-method";
const HEADERS: &str = "access-control-request-headers";

fn listed(text: &'static str) -> List {
    List::Listed(HeaderValue::from_static(text))
}

/// The filter of the conformance suite's first route.
fn cors() -> Cors {
    let origins = ["https://www.foo.com", "https://*.bar.com"];
    Cors {
        origins: Origins::Listed(origins.iter().map(|o| Origin::parse(o).unwrap()).collect()),
        methods: listed("GET, OPTIONS"),
        headers: listed("x-header-1, x-header-2"),
        expose: listed("x-header-3, x-header-4"),
        credentials: true,
        max_age: Some(HeaderValue::from_static("3600")),
    }
}

fn wild(credentials: bool) -> Cors {
    Cors {
        origins: Origins::Any,
        methods: List::Any,
        headers: List::Any,
        expose: List::Any,
        credentials,
        max_age: None,
    }
}

fn preflight(cors: &Cors, sent: &[(&str, &str)]) -> Vec<(String, String)> {
    let response = cors.answer(&parts("OPTIONS", "/", sent)).unwrap();
    assert_eq!(response.status(), 204);
    fields(response.headers())
}

fn applied(cors: &Cors, origin: Option<&'static str>, response: HeaderMap) -> HeaderMap {
    let mut response = response;
    cors.apply(origin.map(HeaderValue::from_static).as_ref(), &mut response);
    response
}

fn pairs(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_preflight_of_an_allowed_origin_is_told_all_that_is_allowed() {
    for origin in ["https://www.foo.com", "https://www.bar.com", "https://xpto.www.bar.com"] {
        let sent = [(ORIGIN, origin), (METHOD, "GET"), (HEADERS, "x-header-1, x-header-2")];
        assert_eq!(
            preflight(&cors(), &sent),
            pairs(&[
                ("vary", "Origin"),
                ("access-control-allow-origin", origin),
                ("access-control-allow-credentials", "true"),
                ("access-control-expose-headers", "x-header-3, x-header-4"),
                ("access-control-allow-methods", "GET, OPTIONS"),
                ("access-control-allow-headers", "x-header-1, x-header-2"),
                ("access-control-max-age", "3600"),
            ])
        );
    }
}

#[test]
fn a_preflight_of_another_origin_is_answered_without_permission() {
    let sent = [(ORIGIN, "https://foobar.com"), (METHOD, "GET")];
    assert_eq!(preflight(&cors(), &sent), pairs(&[("vary", "Origin")]));
}

#[test]
fn a_wildcard_is_a_star_or_with_credentials_what_was_asked_for() {
    let sent = [(ORIGIN, "https://other.foo.com:81"), (METHOD, "PUT"), (HEADERS, "x-a, x-b")];
    assert_eq!(
        preflight(&wild(false), &sent),
        pairs(&[
            ("access-control-allow-origin", "*"),
            ("access-control-expose-headers", "*"),
            ("access-control-allow-methods", "*"),
            ("access-control-allow-headers", "*"),
        ])
    );
    let echoed = pairs(&[
        ("vary", "Origin"),
        ("access-control-allow-origin", "https://other.foo.com:81"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "PUT"),
        ("access-control-allow-headers", "x-a, x-b"),
    ]);
    assert_eq!(preflight(&wild(true), &sent), echoed);
    assert_eq!(preflight(&wild(true), &sent[..2]), echoed[..4]);
}

#[test]
fn only_options_with_origin_and_a_method_is_a_preflight() {
    let sent = [(ORIGIN, "https://www.foo.com"), (METHOD, "GET")];
    assert!(cors().answer(&parts("GET", "/", &sent)).is_none());
    assert!(cors().answer(&parts("OPTIONS", "/", &sent[..1])).is_none());
    assert!(cors().answer(&parts("OPTIONS", "/", &sent[1..])).is_none());
}

#[test]
fn what_the_application_says_of_sharing_does_not_count() {
    let said = HeaderMap::from_iter([
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
        (header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("9")),
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain")),
        (header::VARY, HeaderValue::from_static("Accept")),
    ]);
    let denied = applied(&cors(), Some("https://foobar.com"), said.clone());
    let kept = [("content-type", "text/plain"), ("vary", "Accept"), ("vary", "Origin")];
    assert_eq!(fields(&denied), pairs(&kept));
    assert_eq!(applied(&cors(), None, said.clone()), denied, "whatever is cached is for all");
    let allowed = applied(&cors(), Some("https://www.foo.com"), said);
    assert_eq!(allowed[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://www.foo.com");
    assert_eq!(allowed[header::ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
    assert!(!allowed.contains_key(header::ACCESS_CONTROL_ALLOW_METHODS));
}

#[test]
fn origins_are_compared_by_scheme_host_and_port() {
    for (pattern, origin, same) in [
        ("https://foo.com", "https://foo.com", true),
        ("https://foo.com", "HTTPS://FOO.com", true),
        ("https://foo.com", "https://foo.com:443", true),
        ("http://foo.com:80", "http://foo.com", true),
        ("https://foo.com", "http://foo.com", false),
        ("https://foo.com", "https://foo.com:8443", false),
        ("https://foo.com:8443", "https://foo.com:8443", true),
        ("https://*.foo.com", "https://a.foo.com", true),
        ("https://*.foo.com", "https://a.b.foo.com", true),
        ("https://*.foo.com", "https://foo.com", false),
        ("https://*.foo.com", "https://afoo.com", false),
        ("https://*.foo.com", "https://.foo.com.evil.example", false),
        ("https://*", "https://anything.example", true),
        ("https://*", "http://anything.example", false),
        ("https://foo.com", "https://foo.com/a", false),
        ("https://foo.com", "null", false),
    ] {
        let parsed = Origin::parse(pattern).unwrap();
        let found = Origin::parts(origin).is_some_and(|parts| parsed.is(parts));
        assert_eq!(found, same, "{pattern} {origin}");
    }
    for bad in ["", "foo.com", "ftp://foo.com", "https://", "https://a.*.com", "https://*a.com"] {
        assert_eq!(Origin::parse(bad), None, "{bad}");
    }
}
