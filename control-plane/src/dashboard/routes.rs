//! The routes of a Service in words.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::load::{Figures, Load};
use crate::index::{
    PortRoutes,
    routes::rule::{
        Backend, Filter, Path, Policy, Redirect, Route, RouteMatch, Rule, Session, StreamRoute,
        ValueMatch, WeightedBackend,
    },
};

/// Most routes that are shown.
const MAX_ROUTES: usize = 200;

/// A route, in order of precedence.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct RouteRow {
    port: u16,
    /// The namespace of the callers it is for; `None`: all that have none of their own.
    consumers: Option<String>,
    /// `namespace/route/rule`.
    name: String,
    /// Any of them suffices; empty: everything.
    matches: Vec<String>,
    backends: Vec<BackendRow>,
    /// What is done to requests on the way.
    filters: Vec<String>,
    /// How they are treated.
    policy: Vec<String>,
    #[serde(flatten)]
    figures: Figures,
}

/// Where requests go.
#[derive(Debug, PartialEq, Serialize)]
struct BackendRow {
    /// `namespace/name:port`.
    service: String,
    weight: u32,
    /// Why it cannot be used; `None`: it can.
    invalid: Option<String>,
}

/// All routes of a Service with the traffic that proxies saw, and how many are left out.
pub(super) fn rows(all: &[PortRoutes], seen: &BTreeMap<String, Load>) -> (Vec<RouteRow>, usize) {
    let rows = all.iter().flat_map(|of| {
        let http = of.routes.http.iter().map(|route| http(of, route, seen));
        http.chain(of.routes.streams.iter().map(|route| stream(of, route, seen)))
    });
    let known: usize = all.iter().map(|of| of.routes.http.len() + of.routes.streams.len()).sum();
    let rows: Vec<_> = rows.take(MAX_ROUTES).collect();
    let left_out = known - rows.len();
    (rows, left_out)
}

fn http(of: &PortRoutes, route: &Route, seen: &BTreeMap<String, Load>) -> RouteRow {
    let matches = route.matches.iter().map(request).collect();
    row(of, &route.rule, matches, seen)
}

fn stream(of: &PortRoutes, route: &StreamRoute, seen: &BTreeMap<String, Load>) -> RouteRow {
    let matches = route.server_names.iter().map(|name| format!("server name {name}")).collect();
    row(of, &route.rule, matches, seen)
}

fn row(
    of: &PortRoutes,
    rule: &Rule,
    matches: Vec<String>,
    seen: &BTreeMap<String, Load>,
) -> RouteRow {
    RouteRow {
        port: of.port,
        consumers: of.consumers.as_ref().map(ToString::to_string),
        name: rule.name.to_string(),
        matches,
        backends: rule.backends.iter().map(backend).collect(),
        filters: rule.filters.iter().map(filter).collect(),
        policy: policy(&rule.policy),
        figures: seen.get(&*rule.name).map(Load::figures).unwrap_or_default(),
    }
}

fn request(of: &RouteMatch) -> String {
    let mut parts = Vec::new();
    parts.extend(of.method.clone());
    parts.extend(of.path.as_ref().map(|path| match path {
        Path::Exact(path) => format!("path {path}"),
        Path::Prefix(path) => format!("path {path} and below"),
        Path::Regex(path) => format!("path like {path}"),
    }));
    parts.extend(of.headers.iter().map(|header| value("header", header)));
    parts.extend(of.query.iter().map(|query| value("query", query)));
    if parts.is_empty() { "every request".to_owned() } else { parts.join(", ") }
}

fn value(what: &str, ValueMatch { name, value, regex }: &ValueMatch) -> String {
    let is = if *regex { "like" } else { "is" };
    format!("{what} {name} {is} {value}")
}

fn service(backend: &Backend) -> String {
    format!("{}/{}:{}", backend.service.namespace, backend.service.name, backend.port)
}

fn backend(of: &WeightedBackend) -> BackendRow {
    BackendRow {
        service: service(&of.backend),
        weight: of.weight,
        invalid: of.backend.invalid.as_ref().map(|why| why.message.to_string()),
    }
}

fn filter(filter: &Filter<Backend>) -> String {
    match filter {
        Filter::RequestHeaders(_) => "changes request headers".to_owned(),
        Filter::ResponseHeaders(_) => "changes response headers".to_owned(),
        Filter::Redirect(Redirect { hostname, status, .. }) => {
            let to = hostname.as_ref().map_or_else(String::new, |host| format!(" to {host}"));
            format!("redirects{to} ({status})")
        }
        Filter::Rewrite(_) => "rewrites the path or host".to_owned(),
        Filter::Mirror { backend, numerator, denominator } => {
            format!("copies {numerator} of {denominator} to {}", service(backend))
        }
        Filter::Cors(_) => "answers preflights (CORS)".to_owned(),
    }
}

fn policy(policy: &Policy) -> Vec<String> {
    let mut words = Vec::new();
    if let Some(retry) = &policy.retry {
        words.push(format!("at most {} retries", retry.limit));
    }
    if let Some(timeouts) = &policy.timeouts {
        let mut bound = |what: &str, time: Option<Duration>| {
            words.extend(time.map(|time| format!("{what} within {time:?}")));
        };
        bound("the whole", timeouts.request.flatten().or(timeouts.annotated.request));
        bound("each attempt", timeouts.backend_request.flatten());
        bound("the head of the response", timeouts.annotated.response);
    }
    words.extend(policy.session.as_ref().map(|session| match session {
        Session::Cookie { name, .. } => format!("session by cookie {name}"),
        Session::Header { name } => format!("session by header {name}"),
    }));
    if policy.fault.is_some() {
        words.push("fails or waits on purpose".to_owned());
    }
    words
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::{super::answers::Window, *};
    use crate::index::{
        Name,
        routes::rule::{RefReason, RouteTimeouts, Routes, SharedRoutes, Unresolved},
    };

    fn to(name: &str, weight: u32, invalid: bool) -> WeightedBackend {
        let unresolved = || Unresolved {
            reason: RefReason::BackendNotFound,
            message: "there is no Service shop/v3".into(),
        };
        let backend = Backend {
            service: Name::new("shop", name),
            port: 80,
            invalid: invalid.then(unresolved),
        };
        WeightedBackend { weight, backend, filters: [].into() }
    }

    #[test]
    fn a_route_is_told_with_its_matches_backends_and_traffic() {
        let rule = Rule {
            name: "shop/orders/0".into(),
            filters: [Filter::Redirect(Redirect {
                scheme: None,
                hostname: Some("a.example".to_owned()),
                port: None,
                path: None,
                status: 302,
            })]
            .into(),
            backends: [to("v1", 9, false), to("v3", 1, true)].into(),
            policy: Policy {
                timeouts: Some(RouteTimeouts {
                    request: Some(Some(Duration::from_secs(2))),
                    ..RouteTimeouts::default()
                }),
                ..Policy::default()
            },
        };
        let header = ValueMatch { name: "x".to_owned(), value: "a|b".to_owned(), regex: true };
        let matched = RouteMatch {
            path: Some(Path::Prefix("/cart".to_owned())),
            method: Some("GET".to_owned()),
            headers: vec![header],
            query: Vec::new(),
        };
        let route =
            Route { matches: [matched, RouteMatch::default()].into(), rule: Arc::new(rule) };
        let routes = Routes { http: [route].into(), streams: [].into() };
        let routes = SharedRoutes(Arc::new(routes));
        let all = [PortRoutes { port: 80, consumers: Some("web".into()), routes }];
        let mut load = Load::default();
        load.add(Some(Window { seconds: 10.0, requests: 10, ..Window::default() }));
        let seen = BTreeMap::from([("shop/orders/0".to_owned(), load)]);
        assert_eq!(
            serde_json::to_value(rows(&all, &seen)).unwrap(),
            json!([[{
                "port": 80, "consumers": "web", "name": "shop/orders/0",
                "matches": ["GET, path /cart and below, header x like a|b", "every request"],
                "backends": [
                    {"service": "shop/v1:80", "weight": 9, "invalid": null},
                    {"service": "shop/v3:80", "weight": 1, "invalid": "there is no Service shop/v3"},
                ],
                "filters": ["redirects to a.example (302)"],
                "policy": ["the whole within 2s"],
                "rps": 1.0, "success": 1.0, "p50_us": null, "p99_us": null,
            }], 0])
        );
    }
}
