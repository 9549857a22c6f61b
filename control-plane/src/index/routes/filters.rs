//! What a rule changes.

use std::time::Duration;

use super::{
    check,
    parse::{Problem, Reason, Ref, reference},
    rule::{Cors, Filter, HeaderModifier, PathModifier, Redirect, Rewrite},
};
use crate::source::route;

/// The standard's default for `maxAge`.
const CORS_MAX_AGE: i32 = 5;

/// Filters of a rule or of a backend; `prefix` says whether there is one prefix to replace.
pub(super) fn parse(
    object: &route::Route,
    written: &[route::Filter],
    prefix: bool,
) -> Result<Box<[Filter<Ref>]>, Problem> {
    let parsed: Result<Box<[Filter<Ref>]>, Problem> =
        written.iter().map(|filter| one(object, filter, prefix)).collect();
    let parsed = parsed?;
    let has = |wanted: fn(&Filter<Ref>) -> bool| parsed.iter().filter(|f| wanted(f)).count();
    let redirects = has(|filter| matches!(filter, Filter::Redirect(_)));
    let rewrites = has(|filter| matches!(filter, Filter::Rewrite(_)));
    if redirects > 0 && rewrites > 0 {
        return Err(incompatible("RequestRedirect and URLRewrite together"));
    }
    let requests = has(|filter| matches!(filter, Filter::RequestHeaders(_)));
    let responses = has(|filter| matches!(filter, Filter::ResponseHeaders(_)));
    let cors = has(|filter| matches!(filter, Filter::Cors(_)));
    if [redirects, rewrites, requests, responses, cors].into_iter().any(|count| count > 1) {
        return Err(incompatible("the same filter twice"));
    }
    Ok(parsed)
}

fn one(
    object: &route::Route,
    written: &route::Filter,
    prefix: bool,
) -> Result<Filter<Ref>, Problem> {
    let missing = || Problem::unsupported(format!("filter {} without its field", written.kind));
    match written.kind.as_str() {
        "RequestHeaderModifier" => {
            let change = written.request_header_modifier.as_ref().ok_or_else(missing)?;
            Ok(Filter::RequestHeaders(headers(change)?))
        }
        "ResponseHeaderModifier" => {
            let change = written.response_header_modifier.as_ref().ok_or_else(missing)?;
            Ok(Filter::ResponseHeaders(headers(change)?))
        }
        "RequestRedirect" => {
            redirect(written.request_redirect.as_ref().ok_or_else(missing)?, prefix)
        }
        "URLRewrite" => {
            let rewrite = written.url_rewrite.as_ref().ok_or_else(missing)?;
            let path = path(rewrite.path.as_ref(), prefix)?;
            Ok(Filter::Rewrite(Rewrite { hostname: host(rewrite.hostname.as_ref())?, path }))
        }
        "RequestMirror" => mirror(object, written.request_mirror.as_ref().ok_or_else(missing)?),
        "CORS" => Ok(Filter::Cors(cors(written.cors.as_ref().ok_or_else(missing)?)?)),
        "ExtensionRef" => Err(Problem {
            reason: Reason::UnknownFilter,
            message: "filter ExtensionRef: no kind of object is a filter here".to_owned(),
        }),
        other => Err(Problem::unsupported(format!("filter {other:?} is not known here"))),
    }
}

fn headers(written: &route::HeaderModifier) -> Result<HeaderModifier, Problem> {
    for header in written.set.iter().chain(&written.add) {
        check::field_name(&header.name)?;
        check::field_value(&header.value)?;
    }
    written.remove.iter().try_for_each(|name| check::field_name(name))?;
    let pairs = |headers: &[route::Header]| {
        headers.iter().map(|header| (header.name.clone(), header.value.clone())).collect()
    };
    Ok(HeaderModifier {
        set: pairs(&written.set),
        add: pairs(&written.add),
        remove: written.remove.clone(),
    })
}

fn redirect(written: &route::RequestRedirect, prefix: bool) -> Result<Filter<Ref>, Problem> {
    let scheme = match written.scheme.as_deref() {
        None | Some("") => None,
        Some(scheme @ ("http" | "https")) => Some(scheme.to_owned()),
        Some(other) => {
            return Err(Problem::unsupported(format!("{other:?} is no scheme to redirect to")));
        }
    };
    let status = match written.status_code.unwrap_or(302) {
        code @ (301 | 302 | 303 | 307 | 308) => u16::try_from(code).unwrap_or(302),
        other => return Err(Problem::unsupported(format!("{other} is no status of a redirect"))),
    };
    let port = written.port.map(|port| {
        let number = u16::try_from(port).ok().filter(|port| *port > 0);
        number.ok_or_else(|| Problem::unsupported(format!("{port} is no port")))
    });
    Ok(Filter::Redirect(Redirect {
        scheme,
        hostname: host(written.hostname.as_ref())?,
        port: port.transpose()?,
        path: path(written.path.as_ref(), prefix)?,
        status,
    }))
}

fn host(name: Option<&String>) -> Result<Option<String>, Problem> {
    let name = name.filter(|name| !name.is_empty());
    name.map(|name| check::host(name).map(|()| name.clone())).transpose()
}

fn path(
    written: Option<&route::PathModifier>,
    prefix: bool,
) -> Result<Option<PathModifier>, Problem> {
    let Some(written) = written else { return Ok(None) };
    match written.kind.as_str() {
        "ReplaceFullPath" => {
            let full = written.replace_full_path.clone().unwrap_or_default();
            Ok(Some(PathModifier::Full(full)))
        }
        "ReplacePrefixMatch" if prefix => {
            let prefix = written.replace_prefix_match.clone().unwrap_or_default();
            Ok(Some(PathModifier::Prefix(prefix)))
        }
        "ReplacePrefixMatch" => Err(incompatible(
            "ReplacePrefixMatch, but the rule has not exactly one match with a path of type PathPrefix",
        )),
        other => Err(Problem::unsupported(format!(
            "{other:?} is no change of a path that is known here"
        ))),
    }
}

fn mirror(object: &route::Route, written: &route::RequestMirror) -> Result<Filter<Ref>, Problem> {
    let share = |numerator: i32, denominator: i32| {
        let bad = || Problem::unsupported(format!("{numerator}/{denominator} is no share"));
        let numerator = u32::try_from(numerator).map_err(|_| bad())?;
        let denominator = u32::try_from(denominator).map_err(|_| bad())?;
        if denominator == 0 || numerator > denominator {
            return Err(bad());
        }
        Ok((numerator, denominator))
    };
    let (numerator, denominator) = match (&written.fraction, written.percent) {
        (Some(part), _) => share(part.numerator, part.denominator.unwrap_or(100))?,
        (None, Some(percent)) => share(percent, 100)?,
        (None, None) => (1, 1),
    };
    Ok(Filter::Mirror { backend: reference(object, &written.backend_ref), numerator, denominator })
}

fn cors(written: &route::Cors) -> Result<Cors, Problem> {
    written.allow_origins.iter().try_for_each(|origin| check::origin(origin))?;
    let lists = [&written.allow_methods, &written.allow_headers, &written.expose_headers];
    lists.into_iter().flatten().try_for_each(|name| check::field_name(name))?;
    let max_age = written.max_age.filter(|seconds| *seconds > 0).unwrap_or(CORS_MAX_AGE);
    Ok(Cors {
        allow_origins: written.allow_origins.clone(),
        allow_methods: written.allow_methods.clone(),
        allow_headers: written.allow_headers.clone(),
        expose_headers: written.expose_headers.clone(),
        allow_credentials: written.allow_credentials.unwrap_or(false),
        max_age: Duration::from_secs(u64::from(max_age.unsigned_abs())),
    })
}

fn incompatible(message: &str) -> Problem {
    Problem { reason: Reason::IncompatibleFilters, message: message.to_owned() }
}
