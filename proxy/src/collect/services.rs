//! What belongs to Services: their own traffic, that of their routes and backends, their endpoints.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{Collector, Labels, Names, Rows, Summed, with};
use crate::{
    balance::breaker::State,
    discovery::{
        Endpoint, Resolution, Service, ServiceId,
        traffic::{BackendTraffic, Mirrored, RouteTraffic, Traffic},
    },
    metrics::{Metrics, flow::Flow, inbound::OTHER, text::Exposition},
};

/// One Service may be known by several targets (address, names), each with its own traffic; they are
/// added up.
type Services = BTreeMap<ServiceId, Vec<Arc<Service>>>;

/// Which counter of something.
type Count<T> = fn(&T) -> &AtomicU64;

fn labels(id: &ServiceId) -> Labels {
    vec![
        ("namespace", id.namespace.to_string()),
        ("service", id.name.to_string()),
        ("port", id.port.to_string()),
    ]
}

impl Collector {
    pub(super) fn services(&self, out: &mut Exposition<'_>) {
        let (mut services, mut shown) = (Services::new(), Shown::default());
        for (_, resolution) in self.discovery.all() {
            match resolution {
                Some(Resolution::Service(service)) => {
                    for endpoint in service.state_full().endpoints.iter() {
                        shown.add(labels(&service.id), endpoint);
                    }
                    services.entry(service.id.clone()).or_default().push(service);
                }
                Some(Resolution::Pod(pod)) => {
                    let endpoint = &pod.endpoint;
                    let namespace = ("namespace", endpoint.namespace.to_string());
                    let port = ("port", endpoint.addr.port().to_string());
                    shown.add(vec![namespace, ("service", String::new()), port], endpoint);
                }
                _ => {}
            }
        }
        requests(out, &services);
        standing(out, &services);
        connections(out, &services);
        routes(out, &services);
        shown.show(&self.metrics, out);
    }
}

/// Requests, answers, latency, retries and ejections.
fn requests(out: &mut Exposition<'_>, services: &Services) {
    let each = |pick: Count<Traffic>| {
        services.iter().map(move |(id, all)| {
            (labels(id), all.iter().map(|s| pick(&s.traffic).load(Relaxed)).sum::<u64>())
        })
    };
    out.counters(
        "remora_outbound_http_requests",
        "Requests of the application, retries not counted",
        each(|t| &t.requests),
    );
    out.counters(
        "remora_outbound_http_request_body_bytes",
        "Bytes of the bodies of requests, retries not counted",
        each(|t| &t.bodies.requests),
    );
    out.counters(
        "remora_outbound_http_response_body_bytes",
        "Bytes of the bodies of responses",
        each(|t| &t.bodies.responses),
    );
    out.counters(
        "remora_outbound_ejections",
        "Endpoints taken out of balancing",
        each(|t| &t.ejections),
    );
    let results: [(&str, Count<Traffic>); 5] = [
        ("sent", |t| &t.retries),
        ("succeeded", |t| &t.retries_succeeded),
        ("limit", |t| &t.retry_limit),
        ("budget", |t| &t.retry_budget),
        ("pushback", |t| &t.retry_pushback),
    ];
    let retries = results.iter().flat_map(|(word, pick)| {
        each(*pick).map(move |(labels, count)| (with(&labels, "result", word), count))
    });
    let help = "Attempts beyond the first, and retries not made";
    out.counters("remora_outbound_retries", help, retries);
    let rows = services.iter().map(|(id, all)| {
        let flows = all.iter().map(|service| &service.traffic.flow);
        (labels(id), Summed::of(flows))
    });
    let names = Names {
        responses: "remora_outbound_http_responses",
        grpc: "remora_outbound_grpc_responses",
        failures: "remora_outbound_http_failures",
        cancelled: "remora_outbound_http_cancelled",
        latency: "remora_outbound_http_latency_seconds",
        what: "requests of the application",
    };
    Rows(rows.collect()).show(&names, out);
}

/// What retries are left, and how many endpoints are in balancing.
fn standing(out: &mut Exposition<'_>, services: &Services) {
    let now = out.wall().now();
    let budgets = services.iter().filter_map(|(id, all)| {
        let left = all.iter().filter_map(|service| service.traffic.budget_left(now));
        Some((labels(id), left.reduce(|sum, left| sum + left)?))
    });
    let help = "Retries that the budget has left";
    out.gauges("remora_outbound_retry_budget_left", help, budgets);
    let states = services.iter().flat_map(|(id, all)| {
        // All targets have the same endpoints, each with statistics of its own.
        let states = [State::Closed, State::HalfOpen, State::Open];
        let mut worst = BTreeMap::<SocketAddr, usize>::new();
        for service in all {
            for endpoint in service.state_full().endpoints.iter() {
                let state = endpoint.stats.breaker().state(now);
                let at = states.iter().position(|known| *known == state).unwrap_or(0);
                let known = worst.entry(endpoint.addr).or_default();
                *known = at.max(*known);
            }
        }
        states.into_iter().enumerate().map(move |(at, state)| {
            let count = worst.values().filter(|state| **state == at).count() as u64;
            (with(&labels(id), "state", state.as_str()), count)
        })
    });
    out.gauges("remora_outbound_endpoints", "Endpoints by the state of their breakers", states);
}

/// Connections to endpoints.
fn connections(out: &mut Exposition<'_>, services: &Services) {
    let each = |words: [&'static str; 2], label, pick: fn(&Traffic) -> &[AtomicU64; 2]| {
        services.iter().flat_map(move |(id, all)| {
            words.into_iter().enumerate().map(move |(at, word)| {
                let sum = all.iter().map(|s| pick(&s.traffic)[at].load(Relaxed)).sum::<u64>();
                (with(&labels(id), label, word), sum)
            })
        })
    };
    let opened = each(["mtls", "none"], "tls", |t| &t.connections.opened);
    out.counters("remora_outbound_connections", "Connections opened to endpoints", opened);
    let open = services.iter().map(|(id, all)| {
        let open = all.iter().map(|service| service.traffic.connections.open.load(Relaxed));
        (labels(id), open.sum::<i64>())
    });
    out.gauges("remora_outbound_open_connections", "Connections to endpoints now", open);
    let bytes = each(["sent", "received"], "flow", |t| &t.connections.bytes);
    out.counters("remora_outbound_tcp_bytes", "Bytes of opaque connections to endpoints", bytes);
}

/// What single routes and their backends have seen; there are series for those that a Service has now.
fn routes(out: &mut Exposition<'_>, services: &Services) {
    let mut routes = BTreeMap::<(&ServiceId, Box<str>), Vec<Arc<RouteTraffic>>>::new();
    for (id, all) in services {
        for service in all {
            let state = service.state_full();
            // A rule may be several routes of one name, whose traffic is one.
            let once: BTreeMap<_, _> = state.routes.iter().map(|r| (&r.name, r)).collect();
            for (name, route) in once {
                routes.entry((id, name.clone())).or_default().push(Arc::clone(&route.traffic));
            }
        }
    }
    let labels = |(id, name): &(&ServiceId, Box<str>)| with(&labels(id), "route", name);
    let requests = routes.iter().map(|(key, all)| {
        (labels(key), all.iter().map(|route| route.requests.load(Relaxed)).sum::<u64>())
    });
    out.counters("remora_outbound_route_requests", "Requests that took a route", requests);
    let faults: [(&str, Count<RouteTraffic>); 2] =
        [("aborted", |route| &route.aborted), ("delayed", |route| &route.delayed)];
    let faults = routes.iter().flat_map(|(key, all)| {
        faults.iter().map(move |(word, pick)| {
            let sum = all.iter().map(|route| pick(route).load(Relaxed)).sum::<u64>();
            (with(&labels(key), "result", word), sum)
        })
    });
    let help = "Requests that a route refused or held up on purpose";
    out.counters("remora_outbound_route_faults", help, faults);
    let mirrors = routes.iter().flat_map(|(key, all)| {
        Mirrored::WORDS.iter().enumerate().map(move |(at, word)| {
            let sum = all.iter().map(|route| route.mirrored[at].load(Relaxed)).sum::<u64>();
            (with(&labels(key), "result", word), sum)
        })
    });
    out.counters("remora_outbound_route_mirrors", "Copies of a route's requests", mirrors);
    let now = out.wall().now();
    let budgets = routes.iter().filter_map(|(key, all)| {
        let left = all.iter().filter_map(|route| route.budget_left(now));
        Some((labels(key), left.reduce(|sum, left| sum + left)?))
    });
    let help = "Retries that the budget of a route has left";
    out.gauges("remora_outbound_route_retry_budget_left", help, budgets);
    let rows = routes
        .iter()
        .map(|(key, all)| (labels(key), Summed::of(all.iter().map(|route| &route.flow))));
    let names = Names {
        responses: "remora_outbound_route_responses",
        grpc: "remora_outbound_route_grpc_responses",
        failures: "remora_outbound_route_failures",
        cancelled: "remora_outbound_route_cancelled",
        latency: "remora_outbound_route_latency_seconds",
        what: "requests that took a route",
    };
    Rows(rows.collect()).show(&names, out);
    let mut backends = BTreeMap::<Labels, Vec<Arc<BackendTraffic>>>::new();
    for (key, all) in &routes {
        for (id, traffic) in all.iter().flat_map(|route| route.backends()) {
            let mut labels = with(&labels(key), "backend_namespace", &id.namespace);
            labels.push(("backend_service", id.name.to_string()));
            labels.push(("backend_port", id.port.to_string()));
            backends.entry(labels).or_default().push(traffic);
        }
    }
    self::backends(out, backends);
}

fn backends(out: &mut Exposition<'_>, backends: BTreeMap<Labels, Vec<Arc<BackendTraffic>>>) {
    let requests = backends.iter().map(|(labels, all)| {
        (labels, all.iter().map(|backend| backend.requests.load(Relaxed)).sum::<u64>())
    });
    let help = "Requests that a route sent to a backend";
    out.counters("remora_outbound_backend_requests", help, requests);
    let rows = backends
        .into_iter()
        .map(|(labels, all)| (labels, Summed::of(all.iter().map(|backend| &backend.flow))));
    let names = Names {
        responses: "remora_outbound_backend_responses",
        grpc: "remora_outbound_backend_grpc_responses",
        failures: "remora_outbound_backend_failures",
        cancelled: "remora_outbound_backend_cancelled",
        latency: "remora_outbound_backend_latency_seconds",
        what: "requests that a route sent to a backend",
    };
    Rows(rows.collect()).show(&names, out);
}

/// Endpoints that are shown one by one.
#[derive(Default)]
struct Shown(BTreeMap<Labels, Summed>);

impl Shown {
    fn add(&mut self, mut labels: Labels, endpoint: &Endpoint) {
        if !endpoint.is_shown() {
            return;
        }
        labels.push(("endpoint", endpoint.addr.to_string()));
        labels.push(("pod", endpoint.pod.to_string()));
        self.row(labels, &endpoint.flow);
    }

    fn row(&mut self, labels: Labels, flow: &Flow) {
        self.0.entry(labels).or_default().add(flow);
    }

    fn show(mut self, metrics: &Metrics, out: &mut Exposition<'_>) {
        let names = ["namespace", "service", "port", "endpoint", "pod"];
        let other = names.map(|name| (name, OTHER.to_owned()));
        self.row(other.into(), &metrics.others);
        let rows = Rows(self.0.into_iter().collect());
        let requests = rows
            .0
            .iter()
            .map(|(labels, sum)| (labels, sum.counts.finished() + sum.counts.cancelled));
        let help = "Attempts at an endpoint that ended";
        out.counters("remora_outbound_endpoint_requests", help, requests);
        let names = Names {
            responses: "remora_outbound_endpoint_responses",
            grpc: "remora_outbound_endpoint_grpc_responses",
            failures: "remora_outbound_endpoint_failures",
            cancelled: "remora_outbound_endpoint_cancelled",
            latency: "remora_outbound_endpoint_latency_seconds",
            what: "attempts at an endpoint",
        };
        rows.show(&names, out);
    }
}
