//! Routes as gRPC carries them.

use remora_proto::v1 as pb;

use super::{duration, retry, timeouts};
use crate::index::{
    policy::{fault::Fault, timeouts::Timeouts},
    routes::rule::{
        Backend, Cors, Filter, HeaderModifier, Path, PathModifier, Redirect, Rewrite, Route,
        RouteMatch, Rule, Session, StreamRoute, ValueMatch, WeightedBackend,
    },
};

/// A route; `service` has the time-outs that hold where it says nothing.
pub(super) fn route(route: &Route, service: &Timeouts) -> pb::Route {
    let Rule { name, filters, backends, policy } = &*route.rule;
    let with = |own: &crate::index::routes::rule::RouteTimeouts| {
        let (all, backend_request) = own.over(service);
        pb::TimeoutPolicy { backend_request: backend_request.map(duration), ..timeouts(&all) }
    };
    pb::Route {
        name: name.to_string(),
        matches: route.matches.iter().map(route_match).collect(),
        backends: backends.iter().map(weighted).collect(),
        retry: policy.retry.as_ref().map(retry),
        timeouts: policy.timeouts.as_ref().map(with),
        filters: filters.iter().map(filter).collect(),
        affinity: policy.session.as_ref().map(session),
        fault: policy.fault.as_deref().map(fault),
        no_backend: route.rule.no_backend(),
    }
}

/// A route of connections.
pub(super) fn stream_route(route: &StreamRoute) -> pb::StreamRoute {
    pb::StreamRoute {
        name: route.rule.name.to_string(),
        server_names: route.server_names.to_vec(),
        backends: route.rule.backends.iter().map(weighted).collect(),
        no_backend: route.rule.no_backend(),
    }
}

fn route_match(one: &RouteMatch) -> pb::RouteMatch {
    use pb::route_match::Path as Wire;
    let path = one.path.as_ref().map(|path| match path {
        Path::Exact(path) => Wire::PathExact(path.clone()),
        Path::Prefix(path) => Wire::PathPrefix(path.clone()),
        Path::Regex(path) => Wire::PathRegex(path.clone()),
    });
    let query = |value: &ValueMatch| pb::QueryMatch {
        name: value.name.clone(),
        value: value.value.clone(),
        regex: value.regex,
    };
    pb::RouteMatch {
        method: one.method.clone().unwrap_or_default(),
        headers: one.headers.iter().map(header_match).collect(),
        path,
        query: one.query.iter().map(query).collect(),
    }
}

fn header_match(value: &ValueMatch) -> pb::HeaderMatch {
    let ValueMatch { name, value, regex } = value.clone();
    pb::HeaderMatch { name, value, regex }
}

fn weighted(backend: &WeightedBackend) -> pb::WeightedBackend {
    let filters = backend.filters.iter().map(filter).collect();
    pb::WeightedBackend { weight: backend.weight, filters, ..target(&backend.backend) }
}

fn target(backend: &Backend) -> pb::WeightedBackend {
    let invalid = backend.invalid.as_ref().map(|invalid| invalid.message.to_string());
    pb::WeightedBackend {
        weight: 1,
        namespace: backend.service.namespace.to_string(),
        name: backend.service.name.to_string(),
        port: backend.port.into(),
        filters: Vec::new(),
        invalid: invalid.unwrap_or_default(),
    }
}

fn filter(filter: &Filter<Backend>) -> pb::Filter {
    use pb::filter::Kind;
    let kind = match filter {
        Filter::RequestHeaders(change) => Kind::RequestHeaders(headers(change)),
        Filter::ResponseHeaders(change) => Kind::ResponseHeaders(headers(change)),
        Filter::Redirect(to) => Kind::Redirect(redirect(to)),
        Filter::Rewrite(to) => Kind::Rewrite(rewrite(to)),
        Filter::Mirror { backend, numerator, denominator } => Kind::Mirror(pb::Mirror {
            backend: Some(target(backend)),
            numerator: *numerator,
            denominator: *denominator,
        }),
        Filter::Cors(rules) => Kind::Cors(cors(rules)),
    };
    pb::Filter { kind: Some(kind) }
}

fn headers(change: &HeaderModifier) -> pb::HeaderModifier {
    let all = |headers: &[(String, String)]| {
        let header = |(name, value): &(String, String)| pb::Header {
            name: name.clone(),
            value: value.clone(),
        };
        headers.iter().map(header).collect()
    };
    pb::HeaderModifier {
        set: all(&change.set),
        add: all(&change.add),
        remove: change.remove.clone(),
    }
}

fn redirect(to: &Redirect) -> pb::Redirect {
    pb::Redirect {
        scheme: to.scheme.clone().unwrap_or_default(),
        hostname: to.hostname.clone().unwrap_or_default(),
        port: to.port.unwrap_or(0).into(),
        path: to.path.as_ref().map(modifier),
        status: to.status.into(),
    }
}

fn rewrite(to: &Rewrite) -> pb::UrlRewrite {
    pb::UrlRewrite {
        hostname: to.hostname.clone().unwrap_or_default(),
        path: to.path.as_ref().map(modifier),
    }
}

fn modifier(path: &PathModifier) -> pb::PathModifier {
    use pb::path_modifier::Kind;
    let kind = match path {
        PathModifier::Full(path) => Kind::ReplaceFull(path.clone()),
        PathModifier::Prefix(prefix) => Kind::ReplacePrefix(prefix.clone()),
    };
    pb::PathModifier { kind: Some(kind) }
}

fn cors(rules: &Cors) -> pb::Cors {
    pb::Cors {
        allow_origins: rules.allow_origins.clone(),
        allow_methods: rules.allow_methods.clone(),
        allow_headers: rules.allow_headers.clone(),
        expose_headers: rules.expose_headers.clone(),
        allow_credentials: rules.allow_credentials,
        max_age: Some(duration(rules.max_age)),
    }
}

fn session(session: &Session) -> pb::SessionAffinity {
    use pb::session_affinity::By;
    let by = match session.clone() {
        Session::Cookie { name, timeout } => {
            By::Cookie(pb::AffinityCookie { name, timeout: timeout.map(duration) })
        }
        Session::Header { name } => By::Header(pb::AffinityHeader { name }),
    };
    pb::SessionAffinity { by: Some(by) }
}

fn fault(fault: &Fault) -> pb::Fault {
    pb::Fault {
        headers: fault.headers.iter().map(header_match).collect(),
        delay: fault.delay.map(duration),
        delay_share: fault.delay_share,
        abort_http: fault.abort_http.unwrap_or(0).into(),
        abort_grpc: fault.abort_grpc.unwrap_or(0),
        abort_share: fault.abort_share,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use crate::{
        discovery::wire,
        index::{
            Index,
            answer::{Answer, Caller, Target},
        },
        source::{Event, Object, route::Route},
    };

    #[test]
    fn a_route_arrives_with_all_that_it_says() {
        let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(json!({
            "metadata": {"name": "cart", "namespace": "shop", "annotations": {
                "timeout.remora.io/request": "7s"}},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}))
        .unwrap();
        let route = serde_json::from_value(json!({
            "metadata": {"name": "r", "namespace": "shop"},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "cart"}], "rules": [{
                "matches": [{"path": {"value": "/a"}, "method": "GET",
                    "headers": [{"name": "h", "value": "1", "type": "RegularExpression"}],
                    "queryParams": [{"name": "q", "value": "2"}]}],
                "filters": [{"type": "URLRewrite", "urlRewrite": {"hostname": "b.example",
                    "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"}}}],
                "backendRefs": [{"name": "cart", "port": 80, "weight": 9, "filters": [
                    {"type": "RequestHeaderModifier", "requestHeaderModifier": {
                        "set": [{"name": "x", "value": "y"}], "remove": ["z"]}}]},
                    {"name": "gone", "port": 80}],
                "timeouts": {"backendRequest": "2s"},
                "sessionPersistence": {"type": "Header", "sessionName": "s"}}]}}))
        .unwrap();
        let mut index = Index::new("cluster.local", "cluster.local");
        index.apply([
            Event::Apply(Object::Service(Arc::new((&service).into()))),
            Event::Apply(Object::Route(Arc::new(Route::http(&route)))),
        ]);
        let target = Target::authority("cart.shop:80").unwrap();
        let Answer::Service(snapshot) = index.resolve(&target, &Caller::default()) else {
            panic!()
        };
        let routes = wire::service(&snapshot, &wire::Place::default()).routes;
        assert_told(&format!("{:?}", routes[0]));
    }

    /// Every part of it is there.
    fn assert_told(told: &str) {
        for part in [
            "name: \"shop/r/0\"",
            "path: Some(PathPrefix(\"/a\"))",
            "method: \"GET\"",
            "HeaderMatch { name: \"h\", value: \"1\", regex: true }",
            "QueryMatch { name: \"q\", value: \"2\", regex: false }",
            "weight: 9, namespace: \"shop\", name: \"cart\", port: 80",
            "Header { name: \"x\", value: \"y\" }",
            "remove: [\"z\"]",
            "invalid: \"there is no service shop/gone\"",
            "hostname: \"b.example\"",
            "ReplacePrefix(\"/b\")",
            "request: Some(Duration { seconds: 7",
            "backend_request: Some(Duration { seconds: 2",
            "Header(AffinityHeader { name: \"s\" })",
            "no_backend: false",
        ] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
    }
}
