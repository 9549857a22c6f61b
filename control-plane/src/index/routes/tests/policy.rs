//! Time-outs, retries and sessions: fields of the standard, and annotations.

use super::*;

#[test]
fn fields_of_the_standard_win_over_annotations() {
    let mut route = on_cart(
        "HTTPRoute",
        "shop",
        "r",
        json!([
            {"name": "own", "backendRefs": [to("cart")],
                "timeouts": {"request": "0s", "backendRequest": "2s"},
                "retry": {"codes": [503], "attempts": 3, "backoff": "100ms"},
                "sessionPersistence": {"sessionName": "s", "absoluteTimeout": "1h",
                    "cookieConfig": {"lifetimeType": "Permanent"}}},
            {"name": "none", "matches": [{"path": {"value": "/n"}}], "backendRefs": [to("cart")],
                "sessionPersistence": {"type": "Header"}},
        ]),
    );
    route["metadata"]["annotations"] = json!({"timeout.remora.io/request": "9s",
        "timeout.remora.io/idle": "30s", "retry.remora.io/http": "5xx",
        "retry.remora.io/methods": "POST", "fault.remora.io/abort-http": "503",
        "fault.remora.io/abort-percent": "50", "fault.remora.io/headers": "x-test=1"});
    let index = index(&[service("shop", "cart"), route]);
    let routes = routes(&index, "shop", 80).unwrap();
    let of = |name: &str| {
        let route = routes.http.iter().find(|route| route.rule.name.ends_with(name)).unwrap();
        route.rule.policy.clone()
    };
    let (own, none) = (of("own"), of("none"));
    let seconds = std::time::Duration::from_secs;
    let service = crate::index::policy::timeouts::Timeouts {
        request: Some(seconds(7)),
        connect: Some(seconds(1)),
        ..Default::default()
    };
    let (timeouts, attempt) = own.timeouts.unwrap().over(&service);
    assert_eq!((timeouts.request, timeouts.idle), (None, Some(seconds(30))));
    assert_eq!((timeouts.connect, attempt), (Some(seconds(1)), Some(seconds(2))));
    assert_eq!(none.timeouts.unwrap().over(&service).0.request, Some(seconds(9)));
    let retry = own.retry.unwrap();
    assert_eq!(
        (retry.http, retry.limit, retry.methods),
        (vec![503..=503], 3, vec!["POST".to_owned()])
    );
    // Of which between half and all is waited: never less than what is asked for.
    assert_eq!(retry.backoff, std::time::Duration::from_millis(200));
    assert_eq!(none.retry.unwrap().http, [500..=599]);
    assert_eq!(
        own.session,
        Some(Session::Cookie { name: "s".into(), timeout: Some(seconds(3600)) })
    );
    let Some(Session::Header { name }) = none.session else { panic!() };
    assert!(name.starts_with("remora-session-"), "{name}");
    let fault = own.fault.unwrap();
    assert_eq!((fault.abort_http, fault.abort_share, fault.headers.len()), (Some(503), 0.5, 1));
}

#[test]
fn annotations_that_mean_nothing_on_a_route_are_told() {
    let mut index = index(&[]);
    let mut route = on_cart("HTTPRoute", "shop", "r", json!([]));
    route["metadata"]["annotations"] = json!({"balancer.remora.io/algorithm": "random",
        "fault.remora.io/delay-percent": "5", "fault.remora.io/abort-htp": "500",
        "fault.remora.io/abort-grpc": "teapot"});
    let applied = apply(&mut index, &[route]);
    let keys: Vec<&str> = applied.warnings.iter().map(|w| w.annotation.key.as_str()).collect();
    assert_eq!(
        keys,
        ["balancer.remora.io/algorithm", "fault.remora.io/abort-htp", "fault.remora.io/abort-grpc"]
    );
    assert_eq!(applied.warnings[0].object.to_string(), "HTTPRoute shop/r");
}
