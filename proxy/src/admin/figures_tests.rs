use std::{sync::Arc, time::Duration};

use http::StatusCode;
use remora_proto::v1 as pb;

use super::*;
use crate::{
    balance::stats::{FailureKind, InFlight, Outcome},
    discovery::{Discovery, Limits},
    metrics::{
        Tls,
        events::{self, Events},
        flow::{End, Finished, Rpc},
        inbound::{Counted, Inbound, Verdict},
    },
};

const MS: Duration = Duration::from_millis(1);
/// Of the wall, at the beginning.
const EPOCH: u64 = 1_700_000_000_000;

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn ended(status: StatusCode) -> Finished {
    Finished { status, rpc: Rpc::No, end: End::Whole, trace: None }
}

fn shown(ticks: &Ticks, began: Instant, later: Duration) -> Shown<'_> {
    Shown { ticks, wall: Wall::at(began + later, Duration::from_millis(EPOCH) + later) }
}

fn orders(began: Instant) -> (Target, Arc<Service>) {
    let endpoint = pb::Endpoint {
        address: Some(pb::SocketAddress { ip: vec![10, 0, 0, 1], port: 8080 }),
        pod: "orders-1".to_owned(),
        owner: "Deployment/orders".to_owned(),
        node: "n1".to_owned(),
        zone: "z1".to_owned(),
        ..Default::default()
    };
    let route = |name: &str| pb::Route { name: name.to_owned(), ..Default::default() };
    let service = pb::Service {
        namespace: "shop".to_owned(),
        name: "orders".to_owned(),
        port: 80,
        endpoints: vec![endpoint],
        // A rule with two matches that are not neighbours.
        routes: ["shop/a/0", "shop/b/0", "shop/a/0"].map(route).into(),
        ..Default::default()
    };
    let answer = Some(pb::update::Answer::Service(service));
    let target = Target::Authority("orders.shop:80".to_owned());
    let discovery = Discovery::new(Limits::default(), began);
    discovery.restore(&target, &pb::Update { id: 0, version: 1, answer }, began).unwrap();
    match discovery.cached(&target, began) {
        Some(Resolution::Service(service)) => (target, service),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_shows_its_windows_counts_and_routes() {
    let began = now();
    let (target, service) = orders(began);
    let (ticks, traffic) = (Ticks::new(began), &service.traffic);
    traffic.requests.store(3, Relaxed);
    traffic.retries.store(2, Relaxed);
    traffic.flow.finished(&ended(StatusCode::OK), 3 * MS, began);
    traffic.flow.finished(&ended(StatusCode::BAD_GATEWAY), 3 * MS, began);
    service.state().routes[2].traffic.flow.finished(&ended(StatusCode::OK), MS, began);
    let seen = shown(&ticks, began, 2000 * MS).service(&target, &service);
    let window = &seen["windows"]["10s"];
    assert_eq!((&window["seconds"], &window["requests"]), (&json!(2.0), &json!(2)));
    assert_eq!(window["failures"], 1);
    assert!((2980..=3020).contains(&window["p50_us"].as_u64().unwrap()), "{window}");
    for window in ["10s", "1m", "start"] {
        for field in ["p50_us", "p90_us", "p99_us", "p999_us", "max_us"] {
            assert!(seen["windows"][window][field].is_u64(), "{window} {field}");
        }
    }
    let counts = json!({ "requests": 3, "failures": 1, "retries": 2, "retries_succeeded": 0,
        "retry_limit": 0, "retry_budget": 0, "ejections": 0, "budget_left": null });
    assert_eq!(seen["counts"], counts);
    let routes = seen["routes"].as_array().unwrap();
    let routes: Vec<_> = routes
        .iter()
        .map(|r| (r["name"].as_str().unwrap(), r["windows"]["start"]["requests"].as_u64().unwrap()))
        .collect();
    assert_eq!(routes, [("shop/a/0", 1), ("shop/b/0", 0)]);
}

#[test]
fn a_budget_shows_what_is_left_of_it() {
    let began = now();
    let (target, service) = orders(began);
    let ticks = Ticks::new(began);
    let budget = service.traffic.budget(Default::default());
    let left =
        || shown(&ticks, began, MS).service(&target, &service)["counts"]["budget_left"].clone();
    let before = left().as_u64().unwrap();
    assert!(before > 0);
    assert!(budget.withdraw(began));
    assert_eq!(left(), before - 1);
}

#[test]
fn an_endpoint_tells_what_last_happened_to_it() {
    let began = now();
    let (target, service) = orders(began);
    let (ticks, state) = (Ticks::new(began), service.state_full());
    let endpoint = &state.endpoints[0];
    let seen =
        |later| shown(&ticks, began, later).service(&target, &service)["endpoints"][0].clone();
    let never = json!({ "applied_ms": EPOCH, "first_dial_ms": null, "last_success_ms": null,
        "last_failure_ms": null });
    assert_eq!(seen(5000 * MS)["history"], never);
    let mut rng = fastrand::Rng::with_seed(1);
    for (after, outcome) in [
        (20, Outcome::Success),
        (30, Outcome::Failure(FailureKind::Transport)),
        (40, Outcome::Success),
        (50, Outcome::Cancelled),
    ] {
        let at = began + after * MS;
        endpoint.stats.dialled(at - 10 * MS);
        let guard = InFlight::begin(Arc::clone(endpoint), at);
        guard.finish(at, MS, outcome, &state.policy, &mut rng);
    }
    let seen = seen(5000 * MS);
    let history = json!({ "applied_ms": EPOCH, "first_dial_ms": EPOCH + 10,
        "last_success_ms": EPOCH + 40, "last_failure_ms": EPOCH + 30 });
    assert_eq!(seen["history"], history);
    assert_eq!((&seen["zone"], &seen["node"]), (&json!("z1"), &json!("n1")));
    assert_eq!((&seen["owner"], &seen["state"]), (&json!("Deployment/orders"), &json!("ready")));
}

#[test]
fn a_port_shows_its_callers() {
    let began = now();
    let inbound = Inbound::new(began);
    let port = inbound.port(8080, began);
    let counted = Counted { caller: port.caller(Some("spiffe://a/ns/b/sa/c")), port };
    counted.arrived(Tls::Mutual, Verdict::Allowed);
    counted.finished(&ended(StatusCode::SERVICE_UNAVAILABLE), MS, began);
    let ticks = Ticks::new(began);
    let seen = shown(&ticks, began, MS).port(&inbound.all()[0]);
    assert_eq!((&seen["port"], &seen["windows"]["1m"]["failures"]), (&json!(8080), &json!(1)));
    let caller = json!([{ "id": "spiffe://a/ns/b/sa/c", "requests": 1, "failures": 1 }]);
    assert_eq!(seen["callers"], caller);
}

#[test]
fn events_come_newest_first_and_the_oldest_go() {
    let (began, ring) = (now(), Events::default());
    let push = |port: usize, what| {
        let endpoint = ([10, 0, 0, 1], u16::try_from(port).unwrap()).into();
        let (service, pod) = ("shop/orders:80".into(), "orders-1".into());
        ring.push(Event { at: began, service, endpoint, pod, what });
    };
    for port in 0..=events::MAX {
        push(port, What::Recovered);
    }
    push(1, What::Ejected { reason: "success-rate", penalty: 1500 * MS });
    let kept = ring.newest_first();
    assert_eq!((kept.len(), kept.last().unwrap().endpoint.port()), (events::MAX, 2));
    let wall = Wall::at(began + 5 * MS, Duration::from_millis(EPOCH + 5));
    let expected = json!({ "at_ms": EPOCH, "ago_ms": 5, "service": "shop/orders:80",
        "endpoint": "10.0.0.1:1", "pod": "orders-1", "kind": "ejected", "reason": "success-rate",
        "penalty_ms": 1500 });
    assert_eq!(event(&kept[0], wall), expected);
    let back = event(&kept[1], wall);
    assert_eq!((&back["kind"], &back["reason"]), (&json!("recovered"), &Value::Null));
    assert_eq!(back["penalty_ms"], Value::Null);
}
