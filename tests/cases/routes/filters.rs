//! What a rule changes, answers itself, or sends to others too.

use http::Method;
use remora_tests::wait::eventually;
use serde_json::{Value, json};

use super::shop::{Ask, Shop, WAYS, Way, route, to};

fn rule(filters: Value) -> Value {
    json!([{"filters": filters, "backendRefs": [to("orders")]}])
}

fn modifier(kind: &str, field: &str) -> Value {
    json!({"type": kind, field: {
        "set": [{"name": "X-Set", "value": "route"}],
        "add": [{"name": "x-added", "value": "route"}],
        "remove": ["x-removed"],
    }})
}

fn decorated() -> Ask {
    let ask = Ask::get("/").with("x-set", "client").with("x-added", "client");
    ask.with("x-removed", "client").with("x-kept", "client")
}

#[tokio::test]
async fn fields_of_the_request_are_set_added_and_removed() {
    let filters = json!([modifier("RequestHeaderModifier", "requestHeaderModifier")]);
    let shop = Shop::start(&[], &[route("r", rule(filters))]).await;
    for way in WAYS {
        let told = shop.ask(way, &decorated()).await;
        assert_eq!(told.field("x-set"), ["route"], "{way:?}");
        assert_eq!(told.field("x-added"), ["client", "route"], "{way:?}");
        assert_eq!(told.field("x-removed"), [""; 0], "{way:?}");
        assert_eq!(told.field("x-kept"), ["client"], "{way:?}");
        let bare = shop.ask(way, &Ask::get("/")).await;
        assert_eq!((bare.field("x-set"), bare.field("x-added")), (vec!["route"], vec!["route"]));
    }
}

#[tokio::test]
async fn fields_of_the_response_are_set_added_and_removed() {
    let filters = json!([modifier("ResponseHeaderModifier", "responseHeaderModifier")]);
    let shop = Shop::start(&[], &[route("r", rule(filters))]).await;
    for way in WAYS {
        let told = shop.ask(way, &Ask::get("/")).await;
        assert_eq!(told.header("x-set"), ["route"], "{way:?}");
        assert_eq!(told.header("x-added"), ["route"], "{way:?}");
        assert_eq!(told.header("x-removed"), [""; 0], "{way:?}");
        assert_eq!(told.header("x-kept"), ["application"], "{way:?}");
    }
}

#[tokio::test]
async fn filters_of_a_backend_hold_for_what_goes_there_alone_and_come_after_the_rules() {
    let set = |kind: &str, field: &str, value: &str| {
        json!({"type": kind, field: {"set": [{"name": "x-set", "value": value}],
            "add": [{"name": "x-path", "value": value}]}})
    };
    let both = |value: &str| {
        json!([
            set("RequestHeaderModifier", "requestHeaderModifier", value),
            set("ResponseHeaderModifier", "responseHeaderModifier", value),
        ])
    };
    let rules = json!([{"filters": both("rule"), "backendRefs": [
        {"name": "v1", "port": 80, "filters": both("v1")}, to("v2")]}]);
    let shop = Shop::start(&["v1", "v2"], &[route("r", rules)]).await;
    for way in WAYS {
        let (mut v1, mut v2) = (0, 0);
        while v1 == 0 || v2 == 0 {
            let told = shop.ask(way, &decorated()).await;
            if told.service() == "v1" {
                v1 += 1;
                assert_eq!(told.field("x-set"), ["v1"]);
                assert_eq!(told.field("x-path"), ["rule", "v1"]);
                // On the way back the rule's come last.
                assert_eq!(told.header("x-set"), ["rule"]);
            } else {
                v2 += 1;
                assert_eq!(told.field("x-set"), ["rule"]);
                assert_eq!(told.field("x-path"), ["rule"]);
                assert_eq!(told.header("x-set"), ["rule"]);
            }
        }
    }
}

#[tokio::test]
async fn a_redirect_changes_scheme_host_port_and_path_as_it_says() {
    let redirect = |prefix: &str, redirect: Value| {
        json!({
            "matches": [{"path": {"type": "PathPrefix", "value": prefix}}],
            "filters": [{"type": "RequestRedirect", "requestRedirect": redirect}],
        })
    };
    let full = json!({"type": "ReplaceFullPath", "replaceFullPath": "/new"});
    let replaced = |with: &str| json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": with});
    let rules = json!([
        redirect("/host", json!({"hostname": "example.org"})),
        redirect("/303", json!({"hostname": "example.org", "statusCode": 303})),
        redirect("/301", json!({"hostname": "example.org", "statusCode": 301})),
        redirect("/307", json!({"hostname": "example.org", "statusCode": 307})),
        redirect("/308", json!({"hostname": "example.org", "statusCode": 308})),
        redirect("/https", json!({"scheme": "https"})),
        redirect("/httpsport", json!({"scheme": "https", "port": 8443})),
        redirect("/port", json!({"port": 8083})),
        redirect("/port80", json!({"scheme": "http", "port": 80})),
        redirect("/full", json!({"path": full})),
        redirect("/prefix", json!({"path": replaced("/other")})),
        redirect("/cut", json!({"path": replaced("/")})),
    ]);
    let shop = Shop::start(&[], &[route("r", rules)]).await;
    for way in WAYS {
        for (target, status, location) in [
            ("/host/a?b=c", 302, "http://example.org/host/a?b=c"),
            ("/301", 301, "http://example.org/301"),
            ("/303", 303, "http://example.org/303"),
            ("/307", 307, "http://example.org/307"),
            ("/308", 308, "http://example.org/308"),
            ("/https", 302, "https://orders/https"),
            ("/httpsport", 302, "https://orders:8443/httpsport"),
            ("/port", 302, "http://orders:8083/port"),
            ("/port80", 302, "http://orders/port80"),
            ("/full/a?b=c", 302, "http://orders/new?b=c"),
            ("/prefix/a?b=c", 302, "http://orders/other/a?b=c"),
            ("/prefix", 302, "http://orders/other"),
            ("/cut/a", 302, "http://orders/a"),
            ("/cut", 302, "http://orders/"),
        ] {
            let told = shop.ask(way, &Ask::get(target)).await;
            assert_eq!(told.status, status, "{way:?} {target}");
            assert_eq!(told.header("location"), [location], "{way:?} {target}");
        }
    }
    assert_eq!(shop.seen("orders"), 0);
}

#[tokio::test]
async fn a_rewrite_changes_host_and_path_and_leaves_the_query() {
    let rewrite = |prefix: &str, rewrite: Value| {
        json!({
            "matches": [{"path": {"type": "PathPrefix", "value": prefix}}],
            "filters": [{"type": "URLRewrite", "urlRewrite": rewrite}],
            "backendRefs": [to("orders")],
        })
    };
    let replaced = |with: &str| json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": with});
    let full = json!({"type": "ReplaceFullPath", "replaceFullPath": "/one"});
    let rules = json!([
        rewrite("/host", json!({"hostname": "one.example.org"})),
        rewrite("/full", json!({"path": full})),
        rewrite("/prefix/one", json!({"path": replaced("/one")})),
        rewrite("/strip", json!({"path": replaced("/")})),
        rewrite("/both", json!({"hostname": "both.example", "path": replaced("/b")})),
    ]);
    let shop = Shop::start(&[], &[route("r", rules)]).await;
    for way in WAYS {
        for (target, host, path) in [
            ("/host/a?b=c", "one.example.org", "/host/a?b=c"),
            ("/full/a/b?c=d", "orders", "/one?c=d"),
            ("/prefix/one/two?a=b", "orders", "/one/two?a=b"),
            ("/prefix/one", "orders", "/one"),
            ("/strip/one", "orders", "/one"),
            ("/strip", "orders", "/"),
            ("/both/a", "both.example", "/b/a"),
        ] {
            let told = shop.ask(way, &Ask::get(target)).await;
            let got = (told.got("host"), told.got("path"));
            assert_eq!(got, (host, path), "{way:?} {target}");
        }
    }
}

/// As HTTPRouteBackendURLRewrite and HTTPRouteBackendRequestRedirect of the conformance suite.
#[tokio::test]
async fn a_backend_redirects_or_rewrites_what_falls_to_it() {
    let rule = |prefix: &str, filter: Value| {
        json!({
            "matches": [{"path": {"type": "PathPrefix", "value": prefix}}],
            "backendRefs": [{"name": "v1", "port": 80, "filters": [filter]}],
        })
    };
    let full = json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/new"}});
    let prefix = json!({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/other"}});
    let rewrite = |rewrite: &Value| json!({"type": "URLRewrite", "urlRewrite": rewrite});
    let redirect = |to: &Value| json!({"type": "RequestRedirect", "requestRedirect": to});
    let rules = json!([
        rule("/full", rewrite(&full)),
        rule("/prefix", rewrite(&prefix)),
        rule("/moved/full", redirect(&full)),
        rule("/moved/prefix", redirect(&prefix)),
    ]);
    let shop = Shop::start(&["v1"], &[route("r", rules)]).await;
    for way in WAYS {
        for (target, path) in [("/full/a?b=c", "/new?b=c"), ("/prefix/a?b=c", "/other/a?b=c")] {
            let told = shop.ask(way, &Ask::get(target)).await;
            assert_eq!((told.service(), told.got("path")), ("v1", path), "{way:?} {target}");
        }
    }
    let served = shop.seen("v1");
    for way in WAYS {
        for (target, location) in [
            ("/moved/full/a?b=c", "http://orders/new?b=c"),
            ("/moved/prefix/a?b=c", "http://orders/other/a?b=c"),
        ] {
            let told = shop.ask(way, &Ask::get(target)).await;
            assert_eq!((told.status, told.header("location")), (302, vec![location]), "{way:?}");
        }
    }
    assert_eq!(shop.seen("v1"), served);
}

fn mirror(to: &str, share: Value) -> Value {
    let mut mirror = json!({"backendRef": {"name": to, "port": 80}});
    for (field, value) in share.as_object().unwrap() {
        mirror[field] = value.clone();
    }
    json!({"type": "RequestMirror", "requestMirror": mirror})
}

#[tokio::test]
async fn a_copy_of_every_request_goes_to_each_mirror_body_included() {
    let filters = json!([mirror("v1", json!({})), mirror("v2", json!({}))]);
    let shop = Shop::start(&["v1", "v2"], &[route("r", rule(filters))]).await;
    for (round, way) in (1..).zip(WAYS) {
        let ask = Ask::get("/a").method(Method::POST).body("the body");
        let told = shop.ask(way, &ask).await;
        assert_eq!((told.service(), told.got("body")), ("orders", "the body"));
        // A copy counts as answered once the application, which reads all of it, has answered.
        let answered = [("result", "answered"), ("route", "shop/r/0")];
        let copies = 2 * round;
        shop.client.until("remora_outbound_route_mirrors_total", &answered, copies).await;
    }
    assert_eq!((shop.seen("orders"), shop.seen("v1"), shop.seen("v2")), (2, 2, 2));
}

#[tokio::test]
async fn a_mirror_gets_the_share_that_it_is_given() {
    let fraction = json!({"fraction": {"numerator": 1, "denominator": 4}});
    for (share, wanted) in [
        (json!({"percent": 0}), 0..=0),
        // Six standard deviations around 50.
        (fraction, 14..=86),
        (json!({"percent": 100}), 200..=200),
    ] {
        let filters = json!([mirror("v1", share.clone())]);
        let shop = Shop::start(&["v1"], &[route("r", rule(filters))]).await;
        assert_eq!(shop.shares(Way::H1, &Ask::get("/"), 200).await.of("orders"), 200);
        eventually("the copies", async || {
            let counted = shop.client.metric("remora_outbound_route_mirrors_total", &[]).await;
            let busy = [("result", "busy")];
            let busy = shop.client.metric("remora_outbound_route_mirrors_total", &busy).await;
            let seen = shop.seen("v1") as u64 + busy;
            (counted == seen && wanted.contains(&usize::try_from(counted).ok()?)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_mirror_that_hangs_holds_up_no_request() {
    let filters = json!([mirror("v1", json!({}))]);
    let shop = Shop::start(&["v1"], &[route("r", rule(filters))]).await;
    for way in WAYS {
        // More than there are places for copies.
        for _ in 0..70 {
            let told = shop.ask(way, &Ask::get("/").with("x-hang", "v1")).await;
            assert_eq!((told.status, told.service()), (200, "orders"));
        }
    }
    let busy = [("result", "busy")];
    shop.client.until("remora_outbound_route_mirrors_total", &busy, 1).await;
}

fn cors() -> Value {
    json!([{"type": "CORS", "cors": {
        "allowOrigins": ["https://shop.example", "https://*.shop.example"],
        "allowMethods": ["GET", "PUT"], "allowHeaders": ["x-a", "x-b"],
        "exposeHeaders": ["x-c"], "allowCredentials": true, "maxAge": 60}}])
}

#[tokio::test]
async fn a_preflight_is_answered_for_origins_that_may_and_never_reaches_the_application() {
    let shop = Shop::start(&[], &[route("r", rule(cors()))]).await;
    let preflight = |origin: &str| {
        let ask = Ask::get("/").method(Method::OPTIONS).with("origin", origin);
        ask.with("access-control-request-method", "PUT")
    };
    for way in WAYS {
        for origin in ["https://shop.example", "https://eu.shop.example"] {
            let told = shop.ask(way, &preflight(origin)).await;
            assert_eq!(told.status, 204, "{way:?} {origin}");
            assert_eq!(told.header("access-control-allow-origin"), [origin]);
            assert_eq!(told.header("access-control-allow-credentials"), ["true"]);
            assert_eq!(told.header("access-control-max-age"), ["60"]);
            let methods = told.header("access-control-allow-methods").join(",");
            assert!(methods.contains("GET") && methods.contains("PUT"), "{methods}");
            let fields = told.header("access-control-allow-headers").join(",");
            assert!(fields.contains("x-a") && fields.contains("x-b"), "{fields}");
        }
        let told = shop.ask(way, &preflight("https://evil.example")).await;
        assert_eq!(told.header("access-control-allow-origin"), [""; 0]);
        assert_eq!(told.header("access-control-allow-methods"), [""; 0]);
    }
    assert_eq!(shop.seen("orders"), 0);
}

#[tokio::test]
async fn an_actual_request_across_origins_is_passed_on_and_its_response_says_who_may_read_it() {
    let shop = Shop::start(&[], &[route("r", rule(cors()))]).await;
    for way in WAYS {
        let told = shop.ask(way, &Ask::get("/").with("origin", "https://shop.example")).await;
        assert_eq!(told.service(), "orders", "{way:?}");
        assert_eq!(told.header("access-control-allow-origin"), ["https://shop.example"]);
        assert_eq!(told.header("access-control-expose-headers"), ["x-c"]);
        let told = shop.ask(way, &Ask::get("/").with("origin", "https://evil.example")).await;
        assert_eq!(told.service(), "orders", "{way:?}");
        assert_eq!(told.header("access-control-allow-origin"), [""; 0]);
    }
}
