//! Figures of Services, endpoints and ports, and what happened to endpoints.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::View;
use crate::{
    balance::breaker,
    discovery::{
        Endpoint, Resolution, Service, ServiceState, Target,
        traffic::{RouteTraffic, Traffic},
    },
    metrics::{
        events::{Event, What},
        flow::Flow,
        inbound::Port,
        past::{Ticks, Windows},
        wall::Wall,
    },
};

/// `GET /endpoints`.
pub(super) async fn endpoints(State(view): State<View>) -> Json<Value> {
    let shown = Shown { ticks: &view.metrics.ticks, wall: Wall::clock() };
    let all = view.discovery.all();
    let rows = all.iter().filter_map(|(target, resolution)| match resolution {
        Some(Resolution::Service(service)) => Some(shown.service(target, service)),
        _ => None,
    });
    Json(json!({ "services": rows.collect::<Vec<_>>() }))
}

/// `GET /inbound`.
pub(super) async fn inbound(State(view): State<View>) -> Json<Value> {
    let shown = Shown { ticks: &view.metrics.ticks, wall: Wall::clock() };
    let ports = view.metrics.inbound.all();
    let ports: Vec<Value> = ports.iter().map(|port| shown.port(port)).collect();
    let policy = view.discovery.inbound_policy().default.to_string();
    Json(json!({ "policy": policy, "ports": ports }))
}

/// `GET /events`.
pub(super) async fn events(State(view): State<View>) -> Json<Value> {
    let wall = Wall::clock();
    let events = view.metrics.events.newest_first();
    let events: Vec<Value> = events.iter().map(|event| self::event(event, wall)).collect();
    Json(json!({ "events": events }))
}

fn event(event: &Event, wall: Wall) -> Value {
    let (kind, reason, penalty) = match event.what {
        What::Ejected { reason, penalty } => ("ejected", Some(reason), Some(penalty.as_millis())),
        What::Recovered => ("recovered", None, None),
    };
    json!({
        "at_ms": wall.unix_ms(event.at),
        "ago_ms": wall.now().saturating_duration_since(event.at).as_millis(),
        "service": event.service,
        "endpoint": event.endpoint.to_string(),
        "pod": event.pod,
        "kind": kind,
        "reason": reason,
        "penalty_ms": penalty,
    })
}

/// One look at everything.
struct Shown<'a> {
    ticks: &'a Ticks,
    wall: Wall,
}

impl Shown<'_> {
    fn windows(&self, flow: &Flow, since: Instant) -> Windows {
        flow.windows(&self.ticks.spans(since, self.wall.now()))
    }

    fn service(&self, target: &Target, service: &Service) -> Value {
        let (id, state, traffic) = (&service.id, service.state_full(), &service.traffic);
        let endpoints: Vec<_> = state.endpoints.iter().map(|e| self.endpoint(e, &state)).collect();
        let mut routes: Vec<Value> = Vec::new();
        for route in state.routes.iter() {
            // A rule may be several routes of one name, whose traffic is one.
            if routes.iter().all(|known| known["name"] != *route.name) {
                routes.push(self.route(&route.name, &route.traffic));
            }
        }
        json!({
            "namespace": id.namespace,
            "name": id.name,
            "port": id.port,
            "target": target.to_string(),
            "protocol": state.protocol.as_str(),
            "windows": self.windows(&traffic.flow, traffic.since()),
            "counts": self.counts(traffic),
            "routes": routes,
            "endpoints": endpoints,
        })
    }

    fn route(&self, name: &str, traffic: &RouteTraffic) -> Value {
        json!({ "name": name, "windows": self.windows(&traffic.flow, traffic.since()) })
    }

    fn counts(&self, traffic: &Traffic) -> Value {
        let count = |count: &AtomicU64| count.load(Relaxed);
        let (totals, _) = traffic.flow.totals();
        json!({
            "requests": count(&traffic.requests),
            "failures": totals.failures,
            "retries": count(&traffic.retries),
            "retries_succeeded": count(&traffic.retries_succeeded),
            "retry_limit": count(&traffic.retry_limit),
            "retry_budget": count(&traffic.retry_budget),
            "ejections": count(&traffic.ejections),
            "budget_left": traffic.budget_left(self.wall.now()),
        })
    }

    fn endpoint(&self, endpoint: &Endpoint, state: &ServiceState) -> Value {
        let (stats, now) = (&endpoint.stats, self.wall.now());
        let (breaker, moments) = (stats.breaker(), stats.moments());
        let ago = |at: Instant| now.saturating_duration_since(at).as_millis();
        let unix = |at: Option<Instant>| at.map(|at| self.wall.unix_ms(at));
        let rtt = stats.ewma().rtt(now, &state.policy.balancer);
        json!({
            "address": endpoint.addr.to_string(),
            "namespace": endpoint.namespace,
            "pod": endpoint.pod,
            "owner": endpoint.owner,
            "node": endpoint.node,
            "zone": endpoint.zone,
            "identity": endpoint.identity.as_ref().map(|id| id.as_str()),
            "state": breaker.state(now).as_str(),
            "ewma_ms": rtt.unwrap_or(state.policy.balancer.default_rtt).as_secs_f64() * 1e3,
            "in_flight": stats.in_flight(),
            "requests": stats.requests(),
            "failures": stats.failures(),
            "latency": endpoint.flow.quantiles(),
            "windows": self.windows(&endpoint.flow, moments.applied),
            "breaker": {
                "reason": breaker.reason().map(breaker::Reason::as_str),
                "trips": breaker.trips(),
                "since_ms": breaker.since().map(ago),
                "next_probe_ms":
                    breaker.next_probe().map(|at| at.saturating_duration_since(now).as_millis()),
            },
            "history": {
                "applied_ms": unix(Some(moments.applied)),
                "first_dial_ms": unix(moments.first_dial),
                "last_success_ms": unix(moments.last_success),
                "last_failure_ms": unix(moments.last_failure),
            },
        })
    }

    fn port(&self, port: &Port) -> Value {
        let callers = port.callers().into_iter().map(|(id, caller)| {
            let (requests, failures) = (&caller.requests, &caller.failures);
            json!({ "id": id, "requests": requests.load(Relaxed), "failures": failures.load(Relaxed) })
        });
        json!({
            "port": port.number,
            "windows": self.windows(&port.flow, port.since),
            "callers": callers.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
#[path = "figures_tests.rs"]
mod tests;
