//! Which requests a rule is for, and what decides between two rules that are both for it.

use super::{
    check,
    parse::{Problem, Rank},
    rule::{Path, RouteMatch, ValueMatch},
};
use crate::source::route::{self, GrpcMatch, HttpMatch};

type Ranked = Box<[(Rank, RouteMatch)]>;

/// Of an HTTPRoute's rule. A match without a path is for every one.
pub(super) fn http(written: &[HttpMatch]) -> Result<Ranked, Problem> {
    if written.is_empty() {
        return one_http(&HttpMatch::default()).map(|one| [one].into());
    }
    written.iter().map(one_http).collect()
}

/// Precedence (HTTPRouteRule.matches): exact paths, then the longest prefix, a method, most fields, most
/// parameters. Where regular expressions stand is up to an implementation: here between exact paths
/// and prefixes, the longest first.
fn one_http(written: &HttpMatch) -> Result<(Rank, RouteMatch), Problem> {
    let path = written.path.as_ref();
    let value = path.and_then(|path| path.value.as_deref()).unwrap_or("/");
    let kind = path.and_then(|path| path.kind.as_deref()).unwrap_or("PathPrefix");
    let (class, path) = match kind {
        "Exact" => (2, Path::Exact(absolute(value)?)),
        "RegularExpression" => (1, Path::Regex(expression(value)?)),
        "PathPrefix" => {
            let value = absolute(value)?;
            let bare = value.trim_end_matches('/');
            (0, Path::Prefix(if bare.is_empty() { "/".to_owned() } else { bare.to_owned() }))
        }
        other => return Err(unknown("type of a path", other)),
    };
    let headers = fields(&written.headers)?;
    let query = values(&written.query_params, |a, b| a == b)?;
    let len = match &path {
        Path::Exact(text) | Path::Prefix(text) | Path::Regex(text) => text.chars().count(),
    };
    let rank = [class, len, usize::from(written.method.is_some()), headers.len(), query.len()];
    let method = written.method.clone();
    if method.as_ref().is_some_and(|method| !check::is_token(method)) {
        return Err(Problem::unsupported(format!("{method:?} is no method")));
    }
    Ok((rank, RouteMatch { path: Some(path), method, headers, query }))
}

fn absolute(path: &str) -> Result<String, Problem> {
    if path.starts_with('/') {
        Ok(path.to_owned())
    } else {
        Err(Problem::unsupported(format!("path {path:?} does not begin with /")))
    }
}

/// Whether all that matches has the same prefix, which can be replaced.
pub(super) fn single_prefix(matches: &[(Rank, RouteMatch)]) -> bool {
    matches!(matches, [(_, RouteMatch { path: Some(Path::Prefix(_)), .. })])
}

/// Of a GRPCRoute's rule. A match without a method is for every one.
pub(super) fn grpc(written: &[GrpcMatch]) -> Result<Ranked, Problem> {
    if written.is_empty() {
        return one_grpc(&GrpcMatch::default()).map(|one| [one].into());
    }
    written.iter().map(one_grpc).collect()
}

/// Precedence (GRPCRouteRule.matches): the longest service, the longest method, most fields.
fn one_grpc(written: &GrpcMatch) -> Result<(Rank, RouteMatch), Problem> {
    let method = written.method.clone().unwrap_or_default();
    let text = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (service, name) = (text(method.service), text(method.method));
    let chars = |text: &Option<String>| text.as_ref().map_or(0, |text| text.chars().count());
    let (services, names) = (chars(&service), chars(&name));
    let path = match (method.kind.as_deref().unwrap_or("Exact"), service, name) {
        ("Exact" | "RegularExpression", None, None) => None,
        ("Exact", Some(service), Some(name)) => Some(Path::Exact(format!("/{service}/{name}"))),
        ("Exact", Some(service), None) => Some(Path::Prefix(format!("/{service}"))),
        // A method's name is letters, digits and underscores.
        ("Exact", None, Some(name)) => Some(Path::Regex(expression(&format!("/[^/]+/{name}"))?)),
        ("RegularExpression", service, name) => {
            for part in [&service, &name].into_iter().flatten() {
                // On its own first: `a)(b` would become good in the brackets.
                expression(part)?;
            }
            let part =
                |part: Option<String>| part.map_or("[^/]+".to_owned(), |p| format!("(?:{p})"));
            Some(Path::Regex(expression(&format!("/{}/{}", part(service), part(name)))?))
        }
        (other, ..) => return Err(unknown("type of a method", other)),
    };
    let headers = fields(&written.headers)?;
    let rank = [services, names, headers.len(), 0, 0];
    Ok((rank, RouteMatch { path, method: None, headers, query: Vec::new() }))
}

fn fields(written: &[route::ValueMatch]) -> Result<Vec<ValueMatch>, Problem> {
    written.iter().try_for_each(|value| check::field_name(&value.name))?;
    values(written, str::eq_ignore_ascii_case)
}

fn expression(text: &str) -> Result<String, Problem> {
    check::pattern(text).map_err(Problem::unsupported)?;
    Ok(text.to_owned())
}

/// Of several with the same name the first counts.
fn values(
    written: &[route::ValueMatch],
    same: impl Fn(&str, &str) -> bool,
) -> Result<Vec<ValueMatch>, Problem> {
    let mut out: Vec<ValueMatch> = Vec::with_capacity(written.len());
    for value in written {
        let regex = match value.kind.as_deref().unwrap_or("Exact") {
            "Exact" => false,
            "RegularExpression" => {
                expression(&value.value)?;
                true
            }
            other => return Err(unknown("type of a value", other)),
        };
        if out.iter().all(|known| !same(&known.name, &value.name)) {
            let (name, value) = (value.name.clone(), value.value.clone());
            out.push(ValueMatch { name, value, regex });
        }
    }
    Ok(out)
}

/// The more a name says, the earlier: characters of one without `*`, then characters.
pub(super) fn server_names(written: &[String]) -> Box<[(Rank, String)]> {
    let rank = |name: &String| {
        let exact = if name.starts_with("*.") { 0 } else { name.len() };
        ([exact, name.len(), 0, 0, 0], name.to_ascii_lowercase())
    };
    written.iter().map(rank).collect()
}

fn unknown(what: &str, word: &str) -> Problem {
    Problem::unsupported(format!("{word:?} is no {what} that is known here"))
}
