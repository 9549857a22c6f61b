use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use remora_proto::v1 as pb;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::testing::{App, SOON, Says, World, app, service};
use super::*;
use crate::{
    discovery::Service,
    metrics::flow::{Counts, Flow},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn counts(flow: &Flow) -> Counts {
    flow.totals().0
}

/// Requests that ended, failures, and responses by class.
fn seen(flow: &Flow) -> (u64, u64, [u64; 5]) {
    let counts = counts(flow);
    (counts.finished(), counts.failures, counts.responses)
}

fn requests(service: &Service) -> u64 {
    service.traffic.requests.load(Ordering::Relaxed)
}

/// The endpoint of an app.
fn endpoint(service: &Service, app: &App) -> Arc<Endpoint> {
    let state = service.state_full();
    let found = state.endpoints.iter().find(|endpoint| endpoint.addr == app.address);
    Arc::clone(found.unwrap())
}

#[tokio::test]
async fn a_request_counts_for_its_service_and_its_endpoint_over_both_versions() {
    let web = app("web", Says::Status(404)).await;
    let world = World::new();
    world.orders(&[&web], vec![]);
    world.get("/", "").await;
    world.h2(Request::get("http://orders/").body(Full::default()).unwrap()).await;
    let orders = world.service("orders.shop:80");
    let both = (2, 0, [0, 0, 0, 2, 0]);
    assert_eq!((requests(&orders), seen(&orders.traffic.flow)), (2, both));
    assert_eq!(seen(&endpoint(&orders, &web).flow), both);
    let connections = &orders.traffic.connections;
    assert_eq!(connections.opened[1].load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_request_by_a_route_counts_for_the_route_its_backend_and_the_backends_service() {
    let web = app("web", Says::Status(200)).await;
    let world = World::new();
    let to = |name: &str, weight| pb::WeightedBackend {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        port: 80,
        weight,
        ..Default::default()
    };
    let route = pb::Route {
        name: "shop/split/0".to_owned(),
        backends: vec![to("v1", 1), to("v2", 0)],
        ..Default::default()
    };
    world.orders(&[], vec![route.clone()]);
    world.backend("v1", &[&web]);
    world.get("/", "").await;
    world.h2(Request::get("http://orders/").body(Full::default()).unwrap()).await;
    let traffic = world.route_traffic();
    let both = (2, 0, [0, 2, 0, 0, 0]);
    assert_eq!(seen(&traffic.flow), both);
    let parts: Vec<_> = traffic
        .backends()
        .into_iter()
        .map(|(id, part)| (id.name, part.requests.load(Ordering::Relaxed), seen(&part.flow)))
        .collect();
    let none = (0, 0, [0; 5]);
    assert_eq!(parts, [("v1".into(), 2, both), ("v2".into(), 0, none)]);
    assert_eq!(seen(&world.service("v1.shop.svc:80").traffic.flow), both);
    assert_eq!(seen(&world.service("orders.shop:80").traffic.flow), none);
    // What a backend has seen outlives the update that brings the route again.
    world.orders(&[], vec![route]);
    let (_, part) = world.route_traffic().backends().remove(0);
    assert_eq!(seen(&part.flow), both);
}

#[tokio::test]
async fn an_answer_of_the_proxys_own_is_a_failure_of_the_service() {
    let world = World::new();
    world.orders(&[], vec![]);
    world.get("/", "").await;
    world.h2(Request::get("http://orders/").body(Full::default()).unwrap()).await;
    let orders = world.service("orders.shop:80");
    assert_eq!(seen(&orders.traffic.flow), (2, 2, [0, 0, 0, 0, 2]));
    let call = Request::post("http://orders/a.B/C").header("content-type", "application/grpc");
    world.h2(call.body(Full::<Bytes>::default()).unwrap()).await;
    let counts = counts(&orders.traffic.flow);
    assert_eq!((counts.failures, counts.responses[1]), (3, 1));
    assert_eq!(counts.grpc.unwrap()[14], 1);
}

#[tokio::test]
async fn each_attempt_counts_for_its_endpoint_and_the_request_once() {
    let (bad, good) = tokio::join!(app("bad", Says::Status(503)), app("good", Says::Status(200)));
    let world = World::new();
    let retry = pb::RetryPolicy {
        http: vec![pb::StatusRange { from: 503, to: 503 }],
        limit: 3,
        ..Default::default()
    };
    let told = pb::Service { retry: Some(retry), ..service("orders", &[&bad, &good]) };
    world.tell("orders.shop:80", told);
    let orders = world.service("orders.shop:80");
    for _ in 0..8 {
        assert!(world.get("/", "").await.contains(" 200 "));
    }
    assert_eq!(seen(&orders.traffic.flow), (8, 0, [0, 8, 0, 0, 0]));
    assert_eq!(seen(&endpoint(&orders, &good).flow), (8, 0, [0, 8, 0, 0, 0]));
    let retries = orders.traffic.retries.load(Ordering::Relaxed);
    assert!(retries > 0, "both endpoints were tried first at times");
    let (finished, failures, responses) = seen(&endpoint(&orders, &bad).flow);
    assert_eq!((finished, failures, responses[4]), (retries, retries, retries));
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_fails_without_a_response() {
    let (gone, good) = tokio::join!(app("gone", Says::Nothing), app("good", Says::Status(200)));
    let world = World::new();
    let mut told = service("orders", &[&gone, &good]);
    // Nobody listens there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    told.endpoints[0].address.as_mut().unwrap().port = port.into();
    world.tell("orders.shop:80", told);
    let orders = world.service("orders.shop:80");
    let state = orders.state_full();
    let closed = state.endpoints.iter().find(|e| e.addr.port() == port).unwrap();
    while closed.stats.requests() == 0 {
        assert!(world.get("/", "").await.contains(" 200 "));
    }
    assert_eq!(seen(&closed.flow), (1, 1, [0; 5]));
    let moments = closed.stats.moments();
    assert!(moments.first_dial.is_some() && moments.last_failure.is_some());
    assert_eq!(moments.last_success, None);
    let moments = endpoint(&orders, &good).stats.moments();
    assert!(moments.last_success.is_some() && moments.last_failure.is_none());
}

#[tokio::test]
async fn a_response_that_breaks_off_is_a_failure_with_the_status_that_was_given() {
    let half = app("half", Says::Half).await;
    let world = World::new();
    let timeouts = pb::TimeoutPolicy {
        idle: Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 }),
        ..Default::default()
    };
    let told = pb::Service { timeouts: Some(timeouts), ..service("orders", &[&half]) };
    world.tell("orders.shop:80", told);
    assert!(world.get("/", "").await.ends_with("half."));
    let orders = world.service("orders.shop:80");
    assert_eq!(seen(&orders.traffic.flow), (1, 1, [0, 1, 0, 0, 0]));
    assert_eq!(seen(&endpoint(&orders, &half).flow), (1, 1, [0, 1, 0, 0, 0]));
}

#[tokio::test]
async fn a_client_that_goes_away_is_neither_failure_nor_latency() {
    let half = app("half", Says::Half).await;
    let world = World::new();
    world.orders(&[&half], vec![]);
    let mut client = world.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"half.") {
        client.read_buf(&mut answer).await.unwrap();
    }
    // An end of its direction alone would say that it still reads.
    crate::net::connect::reset_on_drop(&client);
    drop(client);
    let orders = world.service("orders.shop:80");
    let cancelled = async {
        while counts(&orders.traffic.flow).cancelled == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, cancelled).await.unwrap();
    assert_eq!(seen(&orders.traffic.flow), (0, 0, [0, 1, 0, 0, 0]));
    assert_eq!(counts(&endpoint(&orders, &half).flow).cancelled, 1);
}

#[tokio::test]
async fn the_trace_of_a_sampled_request_is_kept_and_of_others_none() {
    let web = app("web", Says::Status(200)).await;
    let world = World::new();
    world.orders(&[&web], vec![]);
    let orders = world.service("orders.shop:80");
    let traces = || -> Vec<String> {
        let (_, exemplars) = orders.traffic.flow.totals();
        exemplars.into_iter().flatten().map(|exemplar| exemplar.trace.to_string()).collect()
    };
    world.get("/", &format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-00\r\n")).await;
    world.get("/", "").await;
    assert_eq!(traces(), [""; 0]);
    world.get("/", &format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n")).await;
    assert_eq!(traces(), [TRACE]);
    let request = Request::get("http://orders/");
    let other = TRACE.replace('4', "5");
    let request = request.header("traceparent", format!("00-{other}-00f067aa0ba902b7-01"));
    world.h2(request.body(Full::default()).unwrap()).await;
    assert!(traces().contains(&other), "{:?}", traces());
}

#[tokio::test]
async fn an_ejection_and_the_way_back_are_events() {
    let mut sick = app("sick", Says::Status(500)).await;
    let world = World::new();
    let breaker = pb::BreakerPolicy {
        consecutive_failures: 1,
        min_penalty: Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 }),
        max_penalty: Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 }),
        ..Default::default()
    };
    let told = pb::Service { breaker: Some(breaker), ..service("orders", &[&sick]) };
    world.tell("orders.shop:80", told);
    world.get("/", "").await;
    let events = world.outbound.metrics.events.newest_first();
    let [ejected] = &events[..] else { panic!("{events:?}") };
    assert_eq!((&*ejected.service, ejected.endpoint), ("shop/orders:80", sick.address));
    let reason = "consecutive-failures";
    let penalty = Duration::from_millis(1);
    assert_eq!(ejected.what, What::Ejected { reason, penalty });
    sick.next().await;
    sick.now_says(Says::Status(200));
    let back = async {
        while world.outbound.metrics.events.newest_first()[0].what != What::Recovered {
            world.get("/", "").await;
        }
    };
    tokio::time::timeout(SOON, back).await.unwrap();
}
