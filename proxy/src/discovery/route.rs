//! Routes of a Service: which requests go where, with which policy (Gateway API HTTPRoute rule).

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use remora_proto::v1 as pb;

use super::{
    policy,
    service::ServiceId,
    wire::{self, WireError},
};
use crate::balance::policy::{RetryPolicy, TimeoutPolicy};

/// Requests that match go to the backends with this policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// `namespace/name/rule`.
    pub name: Box<str>,
    /// Any of them suffices; empty: every request.
    pub matches: Vec<RouteMatch>,
    /// Weighted; empty: the Service itself.
    pub backends: Vec<(u32, ServiceId)>,
    /// `None`: the Service's.
    pub retry: Option<RetryPolicy>,
    /// `None`: the Service's.
    pub timeouts: Option<TimeoutPolicy>,
}

/// Conditions that must all hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteMatch {
    /// On the path; `None`: any.
    pub path: Option<PathMatch>,
    /// `None`: any.
    pub method: Option<Method>,
    /// Exact values.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Condition on the path, without the query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// The whole path.
    Exact(Box<str>),
    /// Whole path elements, without a slash at the end: `/api` matches `/api` and `/api/v1`.
    Prefix(Box<str>),
}

impl Route {
    /// Whether a request takes this route.
    #[must_use]
    pub fn matches(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|m| m.holds(method, path, headers))
    }
}

impl RouteMatch {
    fn holds(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        self.path.as_ref().is_none_or(|wanted| wanted.holds(path))
            && self.method.as_ref().is_none_or(|wanted| wanted == method)
            && self.headers.iter().all(|(name, value)| headers.get(name) == Some(value))
    }
}

impl PathMatch {
    fn holds(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => path
                .strip_prefix(&**prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        }
    }
}

impl TryFrom<&pb::Route> for Route {
    type Error = WireError;

    fn try_from(route: &pb::Route) -> Result<Self, WireError> {
        let backend = |backend: &pb::WeightedBackend| {
            let id = ServiceId {
                namespace: backend.namespace.as_str().into(),
                name: backend.name.as_str().into(),
                port: wire::port("route.backends.port", backend.port)?,
            };
            Ok((backend.weight, id))
        };
        Ok(Self {
            name: route.name.as_str().into(),
            matches: route.matches.iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            backends: route.backends.iter().map(backend).collect::<Result<_, WireError>>()?,
            retry: route.retry.as_ref().map(policy::retry).transpose()?,
            timeouts: route.timeouts.as_ref().map(policy::timeouts).transpose()?,
        })
    }
}

impl TryFrom<&pb::RouteMatch> for RouteMatch {
    type Error = WireError;

    fn try_from(wire: &pb::RouteMatch) -> Result<Self, WireError> {
        use pb::route_match::Path;
        let path = match &wire.path {
            None => None,
            Some(Path::PathExact(path)) => Some(PathMatch::Exact(path.as_str().into())),
            Some(Path::PathPrefix(path)) => {
                Some(PathMatch::Prefix(path.trim_end_matches('/').into()))
            }
            Some(Path::PathRegex(path)) => {
                let text = format!("{path:?}: regular expressions are not known here");
                return Err(WireError::new("route.matches.path", text));
            }
        };
        let method = match wire.method.as_str() {
            "" => None,
            name => Some(policy::method("route.matches.method", name)?),
        };
        let header = |header: &pb::HeaderMatch| {
            let bad = || {
                let text = format!("{:?}: {:?} is no HTTP header", header.name, header.value);
                WireError::new("route.matches.headers", text)
            };
            let name = header.name.parse::<HeaderName>().map_err(|_| bad())?;
            let value = HeaderValue::from_str(&header.value).map_err(|_| bad())?;
            Ok((name, value))
        };
        let headers = wire.headers.iter().map(header).collect::<Result<_, WireError>>()?;
        Ok(Self { path, method, headers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(prefix: &str) -> RouteMatch {
        let path = Some(pb::route_match::Path::PathPrefix(prefix.to_owned()));
        (&pb::RouteMatch { path, ..Default::default() }).try_into().unwrap()
    }

    #[test]
    fn a_prefix_matches_whole_elements_only() {
        let none = HeaderMap::new();
        for (wanted, path, holds) in [
            ("/", "/anything", true),
            ("/api", "/api", true),
            ("/api/", "/api", true),
            ("/api", "/api/v1", true),
            ("/api", "/apiary", false),
        ] {
            assert_eq!(prefix(wanted).holds(&Method::GET, path, &none), holds, "{wanted} {path}");
        }
    }

    #[test]
    fn all_conditions_of_one_match_must_hold() {
        let wire = pb::RouteMatch {
            method: "POST".to_owned(),
            headers: vec![pb::HeaderMatch {
                name: "x-a".to_owned(),
                value: "1".to_owned(),
                regex: false,
            }],
            ..Default::default()
        };
        let wanted = RouteMatch::try_from(&wire).unwrap();
        let headers =
            HeaderMap::from_iter([(HeaderName::from_static("x-a"), HeaderValue::from_static("1"))]);
        assert!(wanted.holds(&Method::POST, "/", &headers));
        assert!(!wanted.holds(&Method::GET, "/", &headers));
        assert!(!wanted.holds(&Method::POST, "/", &HeaderMap::new()));
    }
}
