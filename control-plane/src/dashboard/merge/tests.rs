use serde_json::json;

use super::{
    super::testing::{answers, asked, caller, heard, shop, window},
    *,
};

fn orders(heard: &Heard) -> &Service {
    &heard.services[&Name::new("shop", "orders")]
}

#[test]
fn callers_of_one_workload_are_one_and_its_pods_are_counted_once() {
    let cluster = shop();
    let mut heard = heard(&cluster);
    // web-1 says it of a second address of the Service too.
    let mut twice = caller("ready", &window(100, 0, 1000, 1000));
    let again = twice["services"][0].clone();
    twice["services"].as_array_mut().unwrap().push(again);
    let none = json!({});
    let twice = answers(&twice, &none, &none, &none);
    heard.add(&cluster, asked(&cluster, "orders-3"), twice);
    let callers: Vec<_> = orders(&heard)
        .callers
        .iter()
        .map(|(name, (pods, load))| (&*name.name, *pods, load.rps().round()))
        .collect();
    assert_eq!(callers, [("Deployment/orders", 1, 20.0), ("Deployment/web", 2, 40.0)]);
}

#[test]
fn an_endpoint_is_what_each_caller_takes_it_for() {
    let heard = heard(&shop());
    let endpoint = |n: u8| &orders(&heard).endpoints[&(80, ([10, 0, 0, n], 8080).into())];
    assert_eq!((endpoint(3).states, endpoint(3).in_flight), ([2, 0, 0], 2));
    assert_eq!(endpoint(3).load.figures().p50_us, Some(1750));
    let ejected = endpoint(4);
    assert_eq!((ejected.states, ejected.trips, ejected.ewma_ms), ([1, 0, 1], 2, Some(9.0)));
    assert_eq!(
        (ejected.reason.as_deref(), ejected.next_probe_ms),
        (Some("success-rate"), Some(900))
    );
}

#[test]
fn callers_by_identity_are_those_of_the_ports_behind_the_service() {
    let heard = heard(&shop());
    let known: Vec<_> =
        orders(&heard).identities.iter().map(|(id, count)| (id.as_str(), *count)).collect();
    assert_eq!(known, [("none", (1, 0)), ("spiffe://cluster.local/ns/shop/sa/web", (7, 2))]);
    assert!(heard.services[&Name::new("shop", "web")].identities.is_empty());
}

#[test]
fn events_are_newest_first_and_of_services_that_are_known() {
    let heard = heard(&shop());
    let events: Vec<_> = orders(&heard)
        .events
        .iter()
        .map(|seen| (seen.event.at_ms, &*seen.event.kind, &*seen.seen_by.name))
        .collect();
    assert_eq!(
        events,
        [(5, "ejected", "web-2"), (2, "ejected", "web-1"), (1, "recovered", "web-1")]
    );
    assert_eq!(heard.services.len(), 2);
}

#[test]
fn the_certificate_that_ends_first_is_told_of_an_identity() {
    let heard = heard(&shop());
    assert_eq!(heard.certificates["spiffe://cluster.local/ns/shop/sa/web"], (1000, 2));
}

#[test]
fn a_proxy_that_makes_things_up_takes_bounded_room() {
    let cluster = shop();
    let mut heard = Heard::default();
    let endpoints: Vec<_> = (0..2 * MAX_ENDPOINTS)
        .map(|n| json!({"address": format!("10.1.{}.{}:80", n / 250, n % 250), "state": "x"}))
        .chain([json!({"address": "no address"})])
        .collect();
    let routes: Vec<_> = (0..2 * MAX_ROUTES).map(|n| json!({"name": n.to_string()})).collect();
    let services: Vec<_> = (0..1000)
        .map(|n| json!({"namespace": "shop", "name": format!("made-up-{n}")}))
        .chain([json!({"namespace": "shop", "name": "orders", "endpoints": endpoints, "routes": routes})])
        .collect();
    let events: Vec<_> =
        (0..1000).map(|n| json!({"at_ms": n, "service": "shop/orders:80"})).collect();
    let callers: Vec<_> =
        (0..1000).map(|n| json!({"id": n.to_string(), "requests": u64::MAX})).collect();
    let told = answers(
        &json!({"services": services}),
        &json!({"ports": [{"port": 8080, "callers": callers}]}),
        &json!({"events": events}),
        &json!({}),
    );
    for pod in ["web-1", "orders-3", "orders-4"] {
        heard.add(&cluster, asked(&cluster, pod), told.clone());
    }
    heard.finish(&cluster);
    let orders = orders(&heard);
    assert_eq!(heard.services.len(), 2);
    assert_eq!((orders.endpoints.len(), orders.routes.len()), (MAX_ENDPOINTS, MAX_ROUTES));
    assert_eq!((orders.identities.len(), orders.events.len()), (MAX_CALLERS, MAX_EVENTS));
    for n in 0..100 {
        heard.fail(asked(&cluster, "web-2"), n.to_string());
    }
    assert_eq!((heard.failed, heard.named_failures.len()), (100, MAX_FAILED));
}
