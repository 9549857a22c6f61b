//! The mesh tests of Gateway API's conformance suite about filters; see `conformance`.
//!
//! The suite looks at no more than a redirect's status. What it writes down of where one leads is
//! compared here too.

use serde_json::{Value, json};

use super::{
    conformance::who,
    echo::{Echo, below, call_from, on, on_echo, only},
    shop::{Ask, Told},
};

/// What is sent, and what the application gets: fields with their values, and such as it does not get.
struct Modified {
    /// A path, or what tells a call from others.
    at: &'static str,
    sent: &'static [(&'static str, &'static str)],
    got: &'static [(&'static str, &'static str)],
    absent: &'static [&'static str],
}

impl Modified {
    /// As the suite compares: repeated fields joined.
    fn check(&self, told: &Told) {
        for (name, value) in self.got {
            assert_eq!(told.field(name).join(","), *value, "{name} at {}", self.at);
        }
        for name in self.absent {
            assert_eq!(told.field(name), [""; 0], "{name} at {}", self.at);
        }
    }
}

fn fields(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

fn modifier(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> Value {
    let change = json!({"set": fields(set), "add": fields(add), "remove": remove});
    json!({"type": "RequestHeaderModifier", "requestHeaderModifier": change})
}

/// The rules of both tests that change a request's fields, with the change where `put` puts it.
fn modifying(put: impl Fn(Value, Value) -> Value) -> Value {
    let set = [("X-Header-Set", "set-overwrites-values")];
    let add = [("X-Header-Add", "add-appends-values")];
    let rules = [
        ("/set", modifier(&set, &[], &[])),
        ("/add", modifier(&[], &add, &[])),
        ("/remove", modifier(&[], &[], &["X-Header-Remove"])),
        (
            "/multiple",
            modifier(
                &[("X-Header-Set-1", "header-set-1"), ("X-Header-Set-2", "header-set-2")],
                &[
                    ("X-Header-Add-1", "header-add-1"),
                    ("X-Header-Add-2", "header-add-2"),
                    ("X-Header-Add-3", "header-add-3"),
                ],
                &["X-Header-Remove-1", "X-Header-Remove-2"],
            ),
        ),
        (
            "/case-insensitivity",
            modifier(
                &[("X-Header-Set", "header-set")],
                &[("X-Header-Add", "header-add")],
                &["X-Header-Remove"],
            ),
        ),
    ];
    rules.map(|(path, change)| put(below(path), json!([change]))).into_iter().collect()
}

const MODIFIED: [Modified; 7] = [
    Modified {
        at: "/set",
        sent: &[("some-other-header", "val")],
        got: &[("some-other-header", "val"), ("x-header-set", "set-overwrites-values")],
        absent: &[],
    },
    Modified {
        at: "/set",
        sent: &[("some-other-header", "val"), ("x-header-set", "some-other-value")],
        got: &[("some-other-header", "val"), ("x-header-set", "set-overwrites-values")],
        absent: &[],
    },
    Modified {
        at: "/add",
        sent: &[("some-other-header", "val")],
        got: &[("some-other-header", "val"), ("x-header-add", "add-appends-values")],
        absent: &[],
    },
    Modified {
        at: "/add",
        sent: &[("some-other-header", "val"), ("x-header-add", "some-other-value")],
        got: &[
            ("some-other-header", "val"),
            ("x-header-add", "some-other-value,add-appends-values"),
        ],
        absent: &[],
    },
    Modified {
        at: "/remove",
        sent: &[("x-header-remove", "val")],
        got: &[],
        absent: &["x-header-remove"],
    },
    Modified {
        at: "/multiple",
        sent: &[
            ("x-header-set-2", "set-val-2"),
            ("x-header-add-2", "add-val-2"),
            ("x-header-remove-2", "remove-val-2"),
            ("another-header", "another-header-val"),
        ],
        got: &[
            ("x-header-set-1", "header-set-1"),
            ("x-header-set-2", "header-set-2"),
            ("x-header-add-1", "header-add-1"),
            ("x-header-add-2", "add-val-2,header-add-2"),
            ("x-header-add-3", "header-add-3"),
            ("another-header", "another-header-val"),
        ],
        absent: &["x-header-remove-1", "x-header-remove-2"],
    },
    Modified {
        at: "/case-insensitivity",
        sent: &[
            ("x-header-set", "original-val-set"),
            ("x-header-add", "original-val-add"),
            ("x-header-remove", "original-val-remove"),
            ("another-header", "another-header-val"),
        ],
        got: &[
            ("x-header-set", "header-set"),
            ("x-header-add", "original-val-add,header-add"),
            ("another-header", "another-header-val"),
        ],
        absent: &["x-header-remove"],
    },
];

async fn modifies(rules: Value) {
    let echo = Echo::with(&[on_echo(rules)]).await;
    for case in &MODIFIED {
        let ask = case.sent.iter().fold(Ask::get(case.at), |ask, (n, v)| ask.with(n, *v));
        let told = echo.ask(ask).await;
        assert_eq!((who(&told).as_str(), told.got("path")), ("echo-v1", case.at));
        case.check(&told);
    }
}

#[tokio::test]
async fn mesh_http_route_request_header_modifier() {
    modifies(modifying(|matches, filters| {
        json!({"matches": matches, "filters": filters, "backendRefs": only("echo-v1", 8080)})
    }))
    .await;
}

#[tokio::test]
async fn mesh_http_route_backend_request_header_modifier() {
    modifies(modifying(|matches, filters| {
        let backend = json!([{"name": "echo-v1", "port": 8080, "filters": filters}]);
        json!({"matches": matches, "backendRefs": backend})
    }))
    .await;
}

#[tokio::test]
async fn mesh_grpc_route_request_header_modifier() {
    let rule = |case: &str, change: Value, service: &str| {
        json!({
            "matches": [{"headers": [{"name": "x-test-case", "value": case}]}],
            "filters": [change], "backendRefs": only(service, 7070),
        })
    };
    let several = modifier(
        &[("x-header-set-1", "header-set-1"), ("x-header-set-2", "header-set-2")],
        &[("x-header-add-1", "header-add-1"), ("x-header-add-2", "header-add-2")],
        &["x-header-remove-1", "x-header-remove-2"],
    );
    let rules = json!([
        rule("set", modifier(&[("x-header-set", "set-overwrites-values")], &[], &[]), "echo-v1"),
        rule("add", modifier(&[], &[("x-header-add", "add-appends-values")], &[]), "echo-v1"),
        rule("remove", modifier(&[], &[], &["x-header-remove"]), "echo-v1"),
        rule("multi", several, "echo-v2"),
    ]);
    let echo = Echo::with(&[on("GRPCRoute", "echo", Some(7070), rules)]).await;
    for case in &CALLS {
        let (from, service) = match case.at {
            "multi" => (&echo.v2, "echo-v2"),
            _ => (&echo.v1, "echo-v1"),
        };
        let mut fields = vec![("x-test-case", case.at)];
        fields.extend(case.sent);
        let ended = call_from(from, "echo:7070", &fields).await;
        let told = Told::of_call(&ended);
        assert_eq!((ended.status(), told.service()), ("0", service), "{}", case.at);
        assert_eq!(told.field("x-test-case"), [case.at]);
        case.check(&told);
    }
}

/// By their `x-test-case`.
const CALLS: [Modified; 4] = [
    Modified {
        at: "set",
        sent: &[
            ("some-other-header", "this-header-should-be-set"),
            ("x-header-set", "this-value-should-be-overwritten"),
        ],
        got: &[
            ("some-other-header", "this-header-should-be-set"),
            ("x-header-set", "set-overwrites-values"),
        ],
        absent: &[],
    },
    Modified {
        at: "add",
        sent: &[("x-header-add", "this-value-should-be-appended")],
        got: &[("x-header-add", "this-value-should-be-appended,add-appends-values")],
        absent: &[],
    },
    Modified {
        at: "remove",
        sent: &[("x-header-remove", "this-should-be-removed")],
        got: &[],
        absent: &["x-header-remove"],
    },
    Modified {
        at: "multi",
        sent: &[
            ("x-header-set-2", "set-header-2"),
            ("x-header-add-2", "add-header-2"),
            ("x-header-remove-2", "should-be-removed-2"),
        ],
        got: &[
            ("x-header-set-1", "header-set-1"),
            ("x-header-set-2", "header-set-2"),
            ("x-header-add-1", "header-add-1"),
            ("x-header-add-2", "add-header-2,header-add-2"),
        ],
        absent: &["x-header-remove-1", "x-header-remove-2"],
    },
];

fn full_path(path: &str) -> Value {
    json!({"type": "ReplaceFullPath", "replaceFullPath": path})
}

fn prefix(path: &str) -> Value {
    json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": path})
}

#[tokio::test]
async fn mesh_http_route_rewrite_path() {
    let rule = |path: &str, to: Value, more: Option<Value>| {
        let rewrite = json!({"type": "URLRewrite", "urlRewrite": {"path": to}});
        let filters: Value = [rewrite].into_iter().chain(more).collect();
        json!({"matches": below(path), "filters": filters, "backendRefs": only("echo-v1", 80)})
    };
    let change = modifier(
        &[("X-Header-Set", "set-overwrites-values")],
        &[("X-Header-Add", "header-val-1"), ("X-Header-Add-Append", "header-val-2")],
        &["X-Header-Remove"],
    );
    let rules = json!([
        rule("/prefix/one", prefix("/one"), None),
        rule("/strip-prefix", prefix("/"), None),
        rule("/full/one", full_path("/one"), None),
        rule("/full/rewrite-path-and-modify-headers", full_path("/test"), Some(change.clone())),
        rule("/prefix/rewrite-path-and-modify-headers", prefix("/prefix"), Some(change)),
    ]);
    let echo = Echo::with(&[on_echo(rules)]).await;
    for (path, wanted) in [
        ("/prefix/one/two", "/one/two"),
        ("/strip-prefix/three", "/three"),
        ("/strip-prefix", "/"),
        ("/full/one/two", "/one"),
    ] {
        let told = echo.ask(Ask::get(path)).await;
        assert_eq!((who(&told).as_str(), told.got("path")), ("echo-v1", wanted), "{path}");
    }
    for (path, wanted) in [
        ("/full/rewrite-path-and-modify-headers/test", "/test"),
        ("/prefix/rewrite-path-and-modify-headers/one", "/prefix/one"),
    ] {
        let ask = Ask::get(path).with("x-header-remove", "remove-val");
        let ask = ask.with("x-header-add-append", "append-val-1").with("x-header-set", "set-val");
        let told = echo.ask(ask).await;
        assert_eq!((who(&told).as_str(), told.got("path")), ("echo-v1", wanted), "{path}");
        let case = Modified {
            at: path,
            sent: &[],
            got: &[
                ("x-header-add", "header-val-1"),
                ("x-header-add-append", "append-val-1,header-val-2"),
                ("x-header-set", "set-overwrites-values"),
            ],
            absent: &["x-header-remove"],
        };
        case.check(&told);
    }
}

/// Rules that redirect what is below a path; then what is asked for, with status and Location.
async fn redirects<const N: usize>(rules: [(&str, Value); N], asked: &[(&str, u16, &str)]) {
    let rule = |(path, redirect): (&str, Value)| {
        let filter = json!({"type": "RequestRedirect", "requestRedirect": redirect});
        json!({"matches": below(path), "filters": [filter]})
    };
    let echo = Echo::with(&[on_echo(rules.map(rule).into_iter().collect())]).await;
    for (path, status, location) in asked {
        let told = echo.ask(Ask::get(path)).await;
        assert_eq!((told.status, told.header("location")), (*status, vec![*location]), "{path}");
    }
}

#[tokio::test]
async fn mesh_http_route_303_redirect() {
    let rules = [("/redirect", json!({"statusCode": 303}))];
    redirects(rules, &[("/redirect", 303, "http://echo/redirect")]).await;
}

#[tokio::test]
async fn mesh_http_route_307_redirect() {
    let rules = [("/temporary", json!({"statusCode": 307}))];
    redirects(rules, &[("/temporary", 307, "http://echo/temporary")]).await;
}

#[tokio::test]
async fn mesh_http_route_308_redirect() {
    let rules = [("/permanent", json!({"statusCode": 308}))];
    redirects(rules, &[("/permanent", 308, "http://echo/permanent")]).await;
}

#[tokio::test]
async fn mesh_http_route_redirect_host_and_status() {
    redirects(
        [
            ("/hostname-redirect", json!({"hostname": "example.org"})),
            ("/host-and-status", json!({"hostname": "example.org", "statusCode": 301})),
        ],
        &[
            ("/hostname-redirect", 302, "http://example.org/hostname-redirect"),
            ("/host-and-status", 301, "http://example.org/host-and-status"),
        ],
    )
    .await;
}

#[tokio::test]
async fn mesh_http_route_redirect_path() {
    let replaced = || prefix("/replacement-prefix");
    let whole = || full_path("/replacement-full");
    redirects(
        [
            ("/original-prefix", json!({"path": replaced()})),
            ("/full", json!({"path": full_path("/full-path-replacement")})),
            ("/path-and-host", json!({"hostname": "example.org", "path": replaced()})),
            ("/path-and-status", json!({"path": replaced(), "statusCode": 301})),
            ("/full-path-and-host", json!({"hostname": "example.org", "path": whole()})),
            ("/full-path-and-status", json!({"path": whole(), "statusCode": 301})),
        ],
        &[
            ("/original-prefix/lemon", 302, "http://echo/replacement-prefix/lemon"),
            ("/full/path/original", 302, "http://echo/full-path-replacement"),
            ("/path-and-host", 302, "http://example.org/replacement-prefix"),
            ("/path-and-status", 301, "http://echo/replacement-prefix"),
            ("/full-path-and-host", 302, "http://example.org/replacement-full"),
            ("/full-path-and-status", 301, "http://echo/replacement-full"),
        ],
    )
    .await;
}

#[tokio::test]
async fn mesh_http_route_redirect_port() {
    let host = "example.org";
    redirects(
        [
            ("/port", json!({"port": 8083})),
            ("/port-and-host", json!({"hostname": host, "port": 8083})),
            ("/port-and-status", json!({"port": 8083, "statusCode": 301})),
            (
                "/port-and-host-and-status",
                json!({"hostname": host, "port": 8083, "statusCode": 302}),
            ),
        ],
        &[
            ("/port", 302, "http://echo:8083/port"),
            ("/port-and-host", 302, "http://example.org:8083/port-and-host"),
            ("/port-and-status", 301, "http://echo:8083/port-and-status"),
            ("/port-and-host-and-status", 302, "http://example.org:8083/port-and-host-and-status"),
        ],
    )
    .await;
}

#[tokio::test]
async fn mesh_http_route_scheme_redirect() {
    let host = "example.org";
    redirects(
        [
            ("/scheme", json!({"scheme": "https"})),
            ("/scheme-and-host", json!({"hostname": host, "scheme": "https"})),
            ("/scheme-and-status", json!({"scheme": "https", "statusCode": 301})),
            (
                "/scheme-and-host-and-status",
                json!({"hostname": host, "scheme": "https", "statusCode": 302}),
            ),
        ],
        &[
            ("/scheme", 302, "https://echo/scheme"),
            ("/scheme-and-host", 302, "https://example.org/scheme-and-host"),
            ("/scheme-and-status", 301, "https://echo/scheme-and-status"),
            ("/scheme-and-host-and-status", 302, "https://example.org/scheme-and-host-and-status"),
        ],
    )
    .await;
}
