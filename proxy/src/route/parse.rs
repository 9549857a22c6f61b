//! Routes as the control plane sends them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue, StatusCode, header};
use remora_proto::v1 as pb;

use super::{
    Filter, Route,
    backend::{Backend, Backends, Weighted},
    cors::{Cors, List, Origin, Origins},
    fault::{Abort, Fault},
    matching::{HeaderMatch, PathMatch, QueryMatch, RouteMatch, TextMatch},
    mirror::Mirror,
    modify::{HeaderModifier, is_protected},
    redirect::{Redirect, Scheme},
    rewrite::{PathModifier, UrlRewrite},
    stream::{ServerName, StreamRoute},
};
use crate::{
    balance::policy::Policy,
    discovery::{
        ServiceId, Target, WireError, policy,
        traffic::RouteTraffic,
        wire::{self, duration, ratio},
    },
};

/// Expressions of one Service: what they compile to is bounded one by one.
const MAX_PATTERNS: usize = 256;
/// Longest time that a fault holds a request up.
const MAX_DELAY: Duration = Duration::from_secs(300);

/// Reads the routes of a Service; `policy` is its own, and `before` are the routes that it had. What of
/// them cannot be done and is left out is added to `left_out`.
///
/// # Errors
/// Where one of them cannot be read: a part of the routes would send requests elsewhere.
pub fn routes<'a>(
    service: &'a pb::Service,
    policy: &Policy,
    (before, now): (&'a [Arc<Route>], Instant),
    left_out: &mut Vec<WireError>,
) -> Result<Vec<Arc<Route>>, WireError> {
    let patterns = service.routes.iter().map(patterns).sum::<usize>();
    if patterns > MAX_PATTERNS {
        let text = format!("{patterns} regular expressions; {MAX_PATTERNS} are the most");
        return Err(WireError::new("routes", text));
    }
    let mut reader = Reader { left_out };
    // A rule may come as several routes of one name, and its traffic is one.
    let known = before.iter().map(|known| (&*known.name, Arc::clone(&known.traffic)));
    let mut traffic: HashMap<&str, Arc<RouteTraffic>> = known.collect();
    let mut route = |wire: &'a pb::Route| {
        let known = traffic.entry(&wire.name);
        let traffic = known.or_insert_with(|| Arc::new(RouteTraffic::new(now)));
        reader.route(wire, policy, Arc::clone(traffic)).map(Arc::new)
    };
    service.routes.iter().map(&mut route).collect()
}

/// Reads the routes of a Service for connections that are carried as bytes.
///
/// # Errors
/// Where one of them cannot be read.
pub fn stream_routes(
    service: &pb::Service,
    left_out: &mut Vec<WireError>,
) -> Result<Vec<StreamRoute>, WireError> {
    let mut reader = Reader { left_out };
    let mut route = |wire: &pb::StreamRoute| {
        Ok(StreamRoute {
            name: wire.name.as_str().into(),
            names: wire.server_names.iter().map(|name| ServerName::new(name)).collect(),
            backends: reader.backends(&wire.backends, wire.no_backend)?,
        })
    };
    service.stream_routes.iter().map(&mut route).collect()
}

fn patterns(route: &pb::Route) -> usize {
    let headers = |headers: &[pb::HeaderMatch]| headers.iter().filter(|h| h.regex).count();
    let in_match = |wanted: &pb::RouteMatch| {
        let path = matches!(wanted.path, Some(pb::route_match::Path::PathRegex(_)));
        let query = wanted.query.iter().filter(|q| q.regex).count();
        usize::from(path) + headers(&wanted.headers) + query
    };
    let fault = route.fault.as_ref().map_or(0, |fault| headers(&fault.headers));
    route.matches.iter().map(in_match).sum::<usize>() + fault
}

struct Reader<'a> {
    left_out: &'a mut Vec<WireError>,
}

impl Reader<'_> {
    fn route(
        &mut self,
        wire: &pb::Route,
        parent: &Policy,
        traffic: Arc<RouteTraffic>,
    ) -> Result<Route, WireError> {
        let mut timeouts = match &wire.timeouts {
            Some(own) => policy::timeouts(own)?,
            None => parent.timeouts.clone(),
        };
        // Zero switches a bound off (GEP-1742).
        timeouts.request = timeouts.request.filter(|bound| !bound.is_zero());
        timeouts.backend_request = timeouts.backend_request.filter(|bound| !bound.is_zero());
        let retry = wire.retry.as_ref().map(policy::retry).transpose()?;
        Ok(Route {
            name: wire.name.as_str().into(),
            matches: wire.matches.iter().map(route_match).collect::<Result<_, _>>()?,
            backends: self.backends(&wire.backends, wire.no_backend)?.known_to(&traffic),
            filters: self.filters(&wire.filters)?,
            retry: retry.or_else(|| parent.retry.clone()),
            timeouts,
            affinity: wire.affinity.as_ref().map(policy::affinity).transpose()?.flatten(),
            fault: wire.fault.as_ref().map(fault).transpose()?,
            traffic,
        })
    }

    fn backends(
        &mut self,
        wire: &[pb::WeightedBackend],
        none: bool,
    ) -> Result<Backends, WireError> {
        if wire.is_empty() && !none {
            return Ok(Backends::Own);
        }
        let list = if none { &[] } else { wire };
        let list = list.iter().map(|backend| self.backend(backend)).collect::<Result<_, _>>()?;
        Ok(Backends::Weighted(Weighted::new(list)))
    }

    fn backend(&mut self, wire: &pb::WeightedBackend) -> Result<Backend, WireError> {
        let invalid = (!wire.invalid.is_empty()).then(|| wire.invalid.as_str().into());
        let port = match wire::port("routes.backends.port", wire.port) {
            // A reference that leads nowhere need not name one.
            Err(_) if invalid.is_some() => 0,
            port => port?,
        };
        Ok(Backend {
            id: ServiceId {
                namespace: wire.namespace.as_str().into(),
                name: wire.name.as_str().into(),
                port,
            },
            target: Target::Authority(format!("{}.{}.svc:{port}", wire.name, wire.namespace)),
            weight: wire.weight,
            filters: self.filters(&wire.filters)?,
            invalid,
            traffic: Arc::default(),
        })
    }

    fn filters(&mut self, wire: &[pb::Filter]) -> Result<Box<[Filter]>, WireError> {
        use pb::filter::Kind;
        let mut filters = Vec::with_capacity(wire.len());
        for filter in wire {
            match &filter.kind {
                Some(Kind::RequestHeaders(wire)) => {
                    let (modifier, host) = self.modifier(wire)?;
                    filters.push(Filter::RequestHeaders(modifier));
                    // It is beside the fields in HTTP/2, and in HTTP/1 there is one.
                    let host = host.map(|host| UrlRewrite { host: Some(host), path: None });
                    filters.extend(host.map(Filter::Rewrite));
                }
                Some(Kind::ResponseHeaders(wire)) => {
                    filters.push(Filter::ResponseHeaders(self.modifier(wire)?.0));
                }
                Some(Kind::Redirect(wire)) => filters.push(Filter::Redirect(redirect(wire)?)),
                Some(Kind::Rewrite(wire)) => filters.push(Filter::Rewrite(rewrite(wire)?)),
                Some(Kind::Mirror(wire)) => {
                    filters.extend(self.mirror(wire)?.map(Arc::new).map(Filter::Mirror))
                }
                Some(Kind::Cors(wire)) => filters.push(Filter::Cors(Box::new(cors(wire)?))),
                None => {
                    let text = "of a kind that this version does not know; update the proxy";
                    self.left_out.push(WireError::new("routes.filters", text));
                }
            }
        }
        Ok(filters.into())
    }

    /// The host that is set comes apart.
    fn modifier(
        &mut self,
        wire: &pb::HeaderModifier,
    ) -> Result<(HeaderModifier, Option<HeaderValue>), WireError> {
        let mut host = None;
        let mut ours = |name: &HeaderName| {
            let protected = is_protected(name);
            if protected {
                let text = format!("{name} is not a route's to change");
                self.left_out.push(WireError::new("routes.filters.headers", text));
            }
            !protected
        };
        let mut pairs = |pairs: &[pb::Header]| {
            let mut list = Vec::with_capacity(pairs.len());
            for pair in pairs {
                let name = field_name("routes.filters.headers", &pair.name)?;
                let value = field_value("routes.filters.headers", &pair.value)?;
                if name == header::HOST {
                    host = Some(value);
                } else if ours(&name) {
                    list.push((name, value));
                }
            }
            Ok::<_, WireError>(list.into())
        };
        let (set, add) = (pairs(&wire.set)?, pairs(&wire.add)?);
        let names = wire.remove.iter().map(|name| field_name("routes.filters.headers", name));
        let mut remove = names.collect::<Result<Vec<_>, _>>()?;
        // A request without a host is none.
        remove.retain(|name| *name != header::HOST && ours(name));
        Ok((HeaderModifier { remove: remove.into(), set, add }, host))
    }

    /// `None` where it leads nowhere: such a mirror is dropped (`HTTPRequestMirrorFilter`).
    fn mirror(&mut self, wire: &pb::Mirror) -> Result<Option<Mirror>, WireError> {
        let Some(backend) = &wire.backend else {
            return Err(WireError::new("routes.filters.mirror.backend", "is absent"));
        };
        let backend = self.backend(backend)?;
        if let Some(why) = &backend.invalid {
            let text = format!("{}: {why}", backend.id);
            self.left_out.push(WireError::new("routes.filters.mirror.backend", text));
            return Ok(None);
        }
        let (numerator, denominator) = match wire.denominator {
            0 => (1, 1),
            denominator => (wire.numerator, denominator),
        };
        Ok(Some(Mirror { backend, numerator, denominator }))
    }
}

fn route_match(wire: &pb::RouteMatch) -> Result<RouteMatch, WireError> {
    use pb::route_match::Path;
    let path = match &wire.path {
        None => None,
        Some(Path::PathExact(path)) => Some(PathMatch::Exact(path.as_str().into())),
        Some(Path::PathPrefix(path)) => Some(PathMatch::prefix(path)),
        Some(Path::PathRegex(path)) => {
            Some(PathMatch::Pattern(text("routes.matches.path", path, true)?))
        }
    };
    let method = match wire.method.as_str() {
        "" => None,
        name => Some(policy::method("routes.matches.method", name)?),
    };
    let query = wire.query.iter().map(|query| {
        let value = text("routes.matches.query", &query.value, query.regex)?;
        Ok::<_, WireError>(QueryMatch { name: query.name.as_str().into(), value })
    });
    let query = query.collect::<Result<_, _>>()?;
    Ok(RouteMatch { path, method, headers: headers(&wire.headers)?, query })
}

fn headers(wire: &[pb::HeaderMatch]) -> Result<Box<[HeaderMatch]>, WireError> {
    let header = |header: &pb::HeaderMatch| {
        Ok(HeaderMatch {
            name: field_name("routes.matches.headers", &header.name)?,
            value: text("routes.matches.headers", &header.value, header.regex)?,
        })
    };
    wire.iter().map(header).collect()
}

fn text(field: &'static str, text: &str, pattern: bool) -> Result<TextMatch, WireError> {
    if !pattern {
        return Ok(TextMatch::exact(text));
    }
    TextMatch::pattern(text).map_err(|problem| WireError::new(field, problem))
}

fn field_name(field: &'static str, name: &str) -> Result<HeaderName, WireError> {
    name.parse().map_err(|_| WireError::new(field, format!("{name:?} is no field's name")))
}

fn field_value(field: &'static str, value: &str) -> Result<HeaderValue, WireError> {
    let bad = |_| WireError::new(field, format!("{value:?} is no field's value"));
    HeaderValue::from_str(value).map_err(bad)
}

fn redirect(wire: &pb::Redirect) -> Result<Redirect, WireError> {
    let scheme = match wire.scheme.as_str() {
        "" => None,
        "http" => Some(Scheme::Http),
        "https" => Some(Scheme::Https),
        other => {
            let text = format!("{other:?} is neither http nor https");
            return Err(WireError::new("routes.filters.redirect.scheme", text));
        }
    };
    let host = (!wire.hostname.is_empty()).then_some(&*wire.hostname);
    if let Some(host) = host {
        self::host("routes.filters.redirect.hostname", host)?;
    }
    let port = match wire.port {
        0 => None,
        port => Some(wire::port("routes.filters.redirect.port", port)?),
    };
    let status = match wire.status {
        0 => StatusCode::FOUND,
        301 => StatusCode::MOVED_PERMANENTLY,
        302 => StatusCode::FOUND,
        303 => StatusCode::SEE_OTHER,
        307 => StatusCode::TEMPORARY_REDIRECT,
        308 => StatusCode::PERMANENT_REDIRECT,
        other => {
            let text = format!("{other} is no status of a redirect");
            return Err(WireError::new("routes.filters.redirect.status", text));
        }
    };
    let path = wire.path.as_ref().and_then(path_modifier);
    Ok(Redirect { scheme, host: host.map(Into::into), port, path, status })
}

fn rewrite(wire: &pb::UrlRewrite) -> Result<UrlRewrite, WireError> {
    let host = match wire.hostname.as_str() {
        "" => None,
        name => Some(host("routes.filters.rewrite.hostname", name)?),
    };
    Ok(UrlRewrite { host, path: wire.path.as_ref().and_then(path_modifier) })
}

/// The name of a host, as DNS has them.
fn host(field: &'static str, name: &str) -> Result<HeaderValue, WireError> {
    let valid = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if !valid {
        return Err(WireError::new(field, format!("{name:?} is no host's name")));
    }
    field_value(field, name)
}

fn path_modifier(wire: &pb::PathModifier) -> Option<PathModifier> {
    use pb::path_modifier::Kind;
    Some(match wire.kind.as_ref()? {
        Kind::ReplaceFull(path) => PathModifier::full(path),
        Kind::ReplacePrefix(path) => PathModifier::prefix(path),
    })
}

fn cors(wire: &pb::Cors) -> Result<Cors, WireError> {
    let origin = |text: &String| {
        Origin::parse(text).ok_or_else(|| {
            let text = format!("{text:?} is no origin, which is http[s]://host[:port]");
            WireError::new("routes.filters.cors.allow_origins", text)
        })
    };
    let origins = match wire.allow_origins.iter().any(|origin| origin == "*") {
        true => Origins::Any,
        false => Origins::Listed(wire.allow_origins.iter().map(origin).collect::<Result<_, _>>()?),
    };
    let list = |words: &[String]| {
        if words.is_empty() {
            return Ok(List::None);
        }
        if words.iter().any(|word| word == "*") {
            return Ok(List::Any);
        }
        field_value("routes.filters.cors", &words.join(", ")).map(List::Listed)
    };
    let max_age = duration("routes.filters.cors.max_age", wire.max_age.as_ref())?;
    Ok(Cors {
        origins,
        methods: list(&wire.allow_methods)?,
        headers: list(&wire.allow_headers)?,
        expose: list(&wire.expose_headers)?,
        credentials: wire.allow_credentials,
        max_age: max_age.map(|age| HeaderValue::from(age.as_secs())),
    })
}

fn fault(wire: &pb::Fault) -> Result<Fault, WireError> {
    let delay = duration("routes.fault.delay", wire.delay.as_ref())?;
    if let Some(delay) = delay.filter(|delay| *delay > MAX_DELAY) {
        let text = format!("{delay:?}; {MAX_DELAY:?} are the most");
        return Err(WireError::new("routes.fault.delay", text));
    }
    let delay_share = ratio("routes.fault.delay_share", wire.delay_share)?;
    let abort_share = ratio("routes.fault.abort_share", wire.abort_share)?;
    let http = match wire.abort_http {
        0 => None,
        code => Some(code),
    };
    let http = http.map(|code| {
        let status = u16::try_from(code).ok().filter(|code| (200..=999).contains(code));
        status.and_then(|code| StatusCode::from_u16(code).ok()).ok_or_else(|| {
            WireError::new("routes.fault.abort_http", format!("{code} is no final status"))
        })
    });
    let abort = Abort::new(http.transpose()?, (wire.abort_grpc > 0).then_some(wire.abort_grpc));
    Ok(Fault {
        headers: headers(&wire.headers)?,
        delay: delay.map(|delay| (delay, delay_share)),
        abort: abort.map(|abort| (abort, abort_share)),
    })
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
