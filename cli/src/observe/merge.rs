//! What several proxies say of the same Service, put together.
//!
//! Requests and failures add up, and so do rates. Quantiles do not: shown is, of the proxies' p50,
//! the median weighed by their requests, and of their p99 the worst, which the true one cannot
//! exceed.

use std::collections::BTreeMap;

use serde::Serialize;

use super::answers::{self, Destinations, Endpoints, Window, Windows};

/// Success below this is shown as trouble.
const POOR: f64 = 0.99;

/// Which of the proxies' windows is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Span {
    /// The last ten seconds
    #[value(name = "10s")]
    TenSeconds,
    /// The last minute
    #[value(name = "1m")]
    Minute,
    /// Since the proxy started
    Start,
}

impl Span {
    fn of(self, windows: &Windows) -> Option<Window> {
        match self {
            Self::TenSeconds => windows.ten_seconds,
            Self::Minute => windows.minute,
            Self::Start => windows.start,
        }
    }
}

/// What happened in a window, at all proxies together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Traffic {
    /// `None` where no proxy counts.
    pub(crate) requests_per_second: Option<f64>,
    /// Of 1; `None` where there was no request.
    pub(crate) success_rate: Option<f64>,
    /// `None` where there was no request, as with p99.
    pub(crate) p50_us: Option<u64>,
    pub(crate) p99_us: Option<u64>,
}

impl Traffic {
    /// Whether so many requests fail that somebody should look.
    pub(crate) fn is_poor(&self) -> bool {
        self.success_rate.is_some_and(|rate| rate < POOR)
    }

    fn of(windows: &[Window]) -> Self {
        let mut busy: Vec<&Window> = windows.iter().filter(|window| window.requests > 0).collect();
        busy.sort_by_key(|window| window.p50_us);
        let requests: u64 = busy.iter().map(|window| window.requests).sum();
        let failures: u64 = busy.iter().map(|window| window.failures.min(window.requests)).sum();
        let rate = |window: &Window| match window.seconds > 0.0 {
            true => window.requests as f64 / window.seconds,
            false => 0.0,
        };
        let mut below = 0;
        let median = busy.iter().find(|window| {
            below += window.requests;
            below * 2 >= requests
        });
        Self {
            requests_per_second: (!windows.is_empty()).then(|| windows.iter().map(rate).sum()),
            success_rate: (requests > 0).then(|| (requests - failures) as f64 / requests as f64),
            p50_us: median.map(|window| window.p50_us),
            p99_us: busy.iter().map(|window| window.p99_us).max(),
        }
    }
}

/// A port of a Service.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Service {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) protocol: String,
    /// Proxies that know it, since their applications call it.
    pub(crate) callers: usize,
    #[serde(flatten)]
    pub(crate) traffic: Traffic,
    pub(crate) routes: Vec<Route>,
    pub(crate) endpoints: Vec<Endpoint>,
}

impl Service {
    /// `namespace/name:port`
    pub(crate) fn id(&self) -> String {
        format!("{}/{}:{}", self.namespace, self.name, self.port)
    }
}

/// A route of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Route {
    /// `namespace/name/rule`
    pub(crate) name: String,
    /// Proxies that know it.
    pub(crate) callers: usize,
    #[serde(flatten)]
    pub(crate) traffic: Traffic,
}

/// An endpoint of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Endpoint {
    pub(crate) address: String,
    pub(crate) pod: String,
    pub(crate) zone: String,
    /// The worst that a proxy sees: `open`, `half-open`, `ready`.
    pub(crate) state: String,
    /// Why its breaker opened, where it is not ready.
    pub(crate) reason: String,
    /// Milliseconds until the next probe, where one is due.
    pub(crate) next_probe_ms: Option<f64>,
    /// Proxies that see that state.
    pub(crate) seen_by: usize,
    /// Proxies that know the endpoint.
    pub(crate) known_to: usize,
    pub(crate) in_flight: u64,
    #[serde(flatten)]
    pub(crate) traffic: Traffic,
}

impl Endpoint {
    /// Whether every proxy that knows it sends requests to it.
    pub(crate) fn is_ready(&self) -> bool {
        self.state == "ready"
    }
}

type Id = (String, String, u16);

#[derive(Default)]
struct Parts {
    protocol: String,
    callers: Callers,
    windows: Vec<Window>,
    routes: BTreeMap<String, (Callers, Vec<Window>)>,
    /// In the order of the proxies' answers.
    route_order: Vec<String>,
    endpoints: BTreeMap<String, EndpointParts>,
}

/// How many different proxies there were, told one after the other.
#[derive(Debug, Default)]
struct Callers {
    count: usize,
    last: Option<usize>,
}

impl Callers {
    fn add(&mut self, proxy: usize) {
        if self.last != Some(proxy) {
            self.count += 1;
            self.last = Some(proxy);
        }
    }
}

#[derive(Default)]
struct EndpointParts {
    seen: Vec<answers::Endpoint>,
    known_to: Callers,
    windows: Vec<Window>,
}

/// All Services that any of the proxies knows, by namespace, name and port.
pub(crate) fn services<'a>(
    answers: impl IntoIterator<Item = (&'a Endpoints, Option<&'a Destinations>)>,
    span: Span,
) -> Vec<Service> {
    let mut all: BTreeMap<Id, Parts> = BTreeMap::new();
    for (proxy, (endpoints, destinations)) in answers.into_iter().enumerate() {
        for service in &endpoints.services {
            let id = (service.namespace.clone(), service.name.clone(), service.port);
            let parts = all.entry(id).or_default();
            parts.add(proxy, service, span);
            let id = format!("{}/{}:{}", service.namespace, service.name, service.port);
            let known = destinations.iter().flat_map(|known| &known.services);
            for destination in known.filter(|known| known.service == id) {
                for name in destination.routes.iter().chain(&destination.stream_routes) {
                    parts.route(name).0.add(proxy);
                }
            }
        }
    }
    all.into_iter()
        .map(|((namespace, name, port), parts)| parts.done(namespace, name, port))
        .collect()
}

impl Parts {
    fn add(&mut self, proxy: usize, service: &answers::Service, span: Span) {
        self.protocol.clone_from(&service.protocol);
        self.callers.add(proxy);
        self.windows.extend(span.of(&service.windows));
        for route in &service.routes {
            let (callers, windows) = self.route(&route.name);
            callers.add(proxy);
            windows.extend(span.of(&route.windows));
        }
        for endpoint in &service.endpoints {
            let parts = self.endpoints.entry(endpoint.address.clone()).or_default();
            parts.known_to.add(proxy);
            parts.windows.extend(span.of(&endpoint.windows));
            parts.seen.push(endpoint.clone());
        }
    }

    fn route(&mut self, name: &str) -> &mut (Callers, Vec<Window>) {
        if !self.routes.contains_key(name) {
            self.route_order.push(name.to_owned());
        }
        self.routes.entry(name.to_owned()).or_default()
    }

    fn done(mut self, namespace: String, name: String, port: u16) -> Service {
        let routes = self.route_order.into_iter().filter_map(|name| {
            let (callers, windows) = self.routes.remove(&name)?;
            Some(Route { name, callers: callers.count, traffic: Traffic::of(&windows) })
        });
        Service {
            namespace,
            name,
            port,
            protocol: self.protocol,
            callers: self.callers.count,
            traffic: Traffic::of(&self.windows),
            routes: routes.collect(),
            endpoints: self.endpoints.into_iter().map(|(at, parts)| parts.done(at)).collect(),
        }
    }
}

impl EndpointParts {
    fn done(self, address: String) -> Endpoint {
        let worst = self.seen.iter().max_by_key(|seen| badness(&seen.state));
        let state = worst.map(|seen| seen.state.clone()).unwrap_or_default();
        let alike = self.seen.iter().filter(|seen| seen.state == state);
        let reason = alike.clone().find(|seen| !seen.breaker.reason.is_empty());
        let probes = alike.clone().filter_map(|seen| seen.breaker.next_probe_ms);
        Endpoint {
            address,
            pod: worst.map(|seen| seen.pod.clone()).unwrap_or_default(),
            zone: worst.map(|seen| seen.zone.clone()).unwrap_or_default(),
            reason: reason
                .filter(|_| state != "ready")
                .map(|seen| seen.breaker.reason.clone())
                .unwrap_or_default(),
            next_probe_ms: probes.fold(None, |first: Option<f64>, next| {
                Some(first.map_or(next, |first| first.min(next)))
            }),
            seen_by: alike.count().min(self.known_to.count),
            known_to: self.known_to.count,
            in_flight: self.seen.iter().map(|seen| seen.in_flight).sum(),
            traffic: Traffic::of(&self.windows),
            state,
        }
    }
}

fn badness(state: &str) -> u8 {
    match state {
        "ready" => 0,
        "half-open" => 2,
        "open" => 3,
        // A word of a later version.
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn answer(value: Value) -> Endpoints {
        serde_json::from_value(value).unwrap()
    }

    fn window(seconds: f64, requests: u64, failures: u64, p50: u64, p99: u64) -> Value {
        json!({ "10s": { "seconds": seconds, "requests": requests, "failures": failures,
                         "p50_us": p50, "p99_us": p99 } })
    }

    fn web(windows: &Value, state: &str, reason: Value) -> Endpoints {
        answer(json!({ "services": [{ "namespace": "shop", "name": "web", "port": 80,
            "protocol": "http", "windows": windows,
            "routes": [{ "name": "shop/web/0", "windows": windows }],
            "endpoints": [{ "address": "10.0.0.1:80", "pod": "web-0", "state": state,
                            "in_flight": 2, "breaker": { "reason": reason }, "windows": windows }]
        }] }))
    }

    #[test]
    fn counts_add_up_and_the_worst_state_is_told_with_how_many_see_it() {
        let busy = web(&window(10.0, 90, 9, 2000, 9000), "open", json!("consecutive-failures"));
        let idle = web(&window(5.0, 10, 0, 500, 700), "ready", json!("success-rate"));
        let merged = services([(&busy, None), (&idle, None)], Span::TenSeconds);
        let service = &merged[0];
        assert_eq!((service.id().as_str(), service.callers), ("shop/web:80", 2));
        let traffic = Traffic {
            requests_per_second: Some(11.0),
            success_rate: Some(0.91),
            p50_us: Some(2000),
            p99_us: Some(9000),
        };
        assert_eq!(service.traffic, traffic);
        let route = &service.routes[0];
        assert_eq!((route.name.as_str(), route.callers), ("shop/web/0", 2));
        assert_eq!(route.traffic, traffic);
        let endpoint = &service.endpoints[0];
        assert_eq!(
            (endpoint.state.as_str(), endpoint.reason.as_str()),
            ("open", "consecutive-failures")
        );
        assert_eq!((endpoint.seen_by, endpoint.known_to, endpoint.in_flight), (1, 2, 4));
        assert!(!endpoint.is_ready());
    }

    #[test]
    fn where_nobody_counts_nothing_is_claimed() {
        let old = web(&Value::Null, "ready", Value::Null);
        let merged = services([(&old, None)], Span::TenSeconds);
        assert_eq!(merged[0].traffic, Traffic::default());
        let idle = web(&window(10.0, 0, 0, 0, 0), "ready", Value::Null);
        let merged = services([(&idle, None)], Span::TenSeconds);
        let traffic = Traffic { requests_per_second: Some(0.0), ..Traffic::default() };
        assert_eq!(merged[0].traffic, traffic);
    }

    #[test]
    fn a_proxy_that_knows_a_service_by_two_names_is_one_caller() {
        let one = web(&window(10.0, 10, 0, 1, 1), "ready", Value::Null);
        let twice = Endpoints { services: [one.services.clone(), one.services].concat() };
        let merged = services([(&twice, None)], Span::TenSeconds);
        assert_eq!(merged[0].callers, 1);
        assert_eq!(merged[0].traffic.requests_per_second, Some(2.0));
        let endpoint = &merged[0].endpoints[0];
        assert_eq!((endpoint.seen_by, endpoint.known_to), (1, 1));
    }

    #[test]
    fn routes_of_an_older_proxy_have_names_only() {
        let mut old = web(&Value::Null, "ready", Value::Null);
        old.services[0].routes.clear();
        let known: Destinations = serde_json::from_value(json!({ "services": [
            { "service": "shop/web:80", "routes": ["shop/b/0", "shop/a/0"] },
            { "service": "shop/other:80", "routes": ["shop/c/0"] },
            { "kind": "not-ours" } ] }))
        .unwrap();
        let merged = services([(&old, Some(&known))], Span::TenSeconds);
        let names: Vec<_> = merged[0].routes.iter().map(|route| route.name.as_str()).collect();
        assert_eq!(names, ["shop/b/0", "shop/a/0"]);
        assert_eq!(merged[0].routes[0].traffic, Traffic::default());
    }
}
