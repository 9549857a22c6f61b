//! What a cluster's API server would refuse of a route: the bounds, patterns and rules of the
//! standard's CustomResourceDefinitions.

use std::{collections::BTreeSet, time::Duration};

use remora_core::settings::parse_duration;

use super::{Findings, add, check_port};
use crate::source::route::{
    BackendRef, Filter, GrantSpec, GrpcRule, HeaderModifier, HttpMatch, HttpRule, ParentRef,
    PathModifier, RequestRedirect, RouteSpec, StreamRule, ValueMatch,
};

/// Most rules of a route, and most matches of all of them together.
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 128;
const MAX_WEIGHT: i32 = 1_000_000;

const VALUE_KINDS: [&str; 2] = ["Exact", "RegularExpression"];
const HTTP_FILTERS: [&str; 6] = [
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestMirror",
    "RequestRedirect",
    "URLRewrite",
    "CORS",
];
const GRPC_FILTERS: [&str; 3] =
    ["RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror"];

pub(super) fn check_http(out: &mut Findings, spec: &RouteSpec<HttpRule>) {
    let rules = check_common(out, spec, |rule| (rule.name.as_deref(), rule.matches.len()));
    for (i, rule) in rules.iter().enumerate() {
        let at = format!("spec.rules[{i}]");
        for (j, one) in rule.matches.iter().enumerate() {
            check_http_match(out, &format!("{at}.matches[{j}]"), one);
        }
        let prefix = match &rule.matches[..] {
            [] => true,
            [one] => one
                .path
                .as_ref()
                .is_none_or(|path| path.kind.as_deref().is_none_or(|kind| kind == "PathPrefix")),
            _ => false,
        };
        check_filters(out, &at, &rule.filters, &HTTP_FILTERS, prefix);
        check_backends(out, &at, &rule.backend_refs, &HTTP_FILTERS, prefix);
        let redirects = rule.filters.iter().any(|filter| filter.kind == "RequestRedirect");
        if redirects && !rule.backend_refs.is_empty() {
            let problem = "a redirect has no backend";
            add(out, format!("{at}.backendRefs"), problem, "remove it, or the redirect");
        }
        check_policy(out, &at, rule);
    }
}

pub(super) fn check_grpc(out: &mut Findings, spec: &RouteSpec<GrpcRule>) {
    let rules = check_common(out, spec, |rule| (rule.name.as_deref(), rule.matches.len()));
    for (i, rule) in rules.iter().enumerate() {
        let at = format!("spec.rules[{i}]");
        for (j, one) in rule.matches.iter().enumerate() {
            let at = format!("{at}.matches[{j}]");
            check_values(out, &format!("{at}.headers"), &one.headers);
            let Some(method) = &one.method else { continue };
            check_word(out, format!("{at}.method.type"), method.kind.as_deref(), &VALUE_KINDS);
            if method.service.is_none() && method.method.is_none() {
                let problem = "names neither service nor method";
                add(out, format!("{at}.method"), problem, "add one of them, or remove it");
            }
        }
        check_filters(out, &at, &rule.filters, &GRPC_FILTERS, false);
        check_backends(out, &at, &rule.backend_refs, &GRPC_FILTERS, false);
    }
}

pub(super) fn check_stream(out: &mut Findings, spec: &RouteSpec<StreamRule>) {
    let rules = check_common(out, spec, |rule| (rule.name.as_deref(), 0));
    for (i, rule) in rules.iter().enumerate() {
        check_backends(out, &format!("spec.rules[{i}]"), &rule.backend_refs, &[], false);
    }
}

pub(super) fn check_grant(out: &mut Findings, spec: &GrantSpec) {
    if spec.from.is_empty() {
        add(out, "spec.from", "missing", "say who may refer");
    }
    if spec.to.is_empty() {
        add(out, "spec.to", "missing", "say what may be referred to");
    }
}

/// Parents and names, for all kinds of routes.
fn check_common<'a, R>(
    out: &mut Findings,
    spec: &'a RouteSpec<R>,
    of: impl Fn(&R) -> (Option<&str>, usize),
) -> &'a [R] {
    for (i, parent) in spec.parent_refs.iter().enumerate() {
        check_parent(out, &format!("spec.parentRefs[{i}]"), parent);
        if spec.parent_refs[..i].contains(parent) {
            let mend = "remove one of them";
            add(out, format!("spec.parentRefs[{i}]"), "is there twice", mend);
        }
    }
    let rules = spec.rules.as_deref().unwrap_or_default();
    if rules.len() > MAX_RULES {
        let mend = format!("use at most {MAX_RULES}, and more routes");
        add(out, "spec.rules", format!("{} rules", rules.len()), mend);
    }
    let matches: usize = rules.iter().map(|rule| of(rule).1).sum();
    if matches > MAX_MATCHES {
        let mend = format!("use at most {MAX_MATCHES}, and more routes");
        add(out, "spec.rules", format!("{matches} matches"), mend);
    }
    let mut names = BTreeSet::new();
    for (i, name) in rules.iter().enumerate().filter_map(|(i, rule)| Some((i, of(rule).0?))) {
        if !names.insert(name) {
            let problem = format!("{name:?} is there twice");
            add(out, format!("spec.rules[{i}].name"), problem, "rename one of them");
        }
    }
    rules
}

fn check_parent(out: &mut Findings, at: &str, parent: &ParentRef) {
    if parent.kind.as_deref() == Some("Service") && parent.group.is_none() {
        // Otherwise it would be a kind `Service` of Gateway API, and be left alone without a word.
        let mend = "add group: \"\" for a Service";
        add(out, format!("{at}.group"), "missing", mend);
    }
    if let Some(port) = parent.port {
        check_port(out, format!("{at}.port"), port);
    }
}

fn check_http_match(out: &mut Findings, at: &str, one: &HttpMatch) {
    check_values(out, &format!("{at}.headers"), &one.headers);
    check_values(out, &format!("{at}.queryParams"), &one.query_params);
    if let Some(method) = &one.method
        && (method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase()))
    {
        let problem = format!("{method:?} is no method");
        add(out, format!("{at}.method"), problem, "use capitals, as in GET");
    }
    let Some(path) = &one.path else { return };
    let kinds = ["Exact", "PathPrefix", "RegularExpression"];
    check_word(out, format!("{at}.path.type"), path.kind.as_deref(), &kinds);
    if path.kind.as_deref() != Some("RegularExpression") {
        check_path(out, format!("{at}.path.value"), path.value.as_deref().unwrap_or("/"));
    }
}

fn check_path(out: &mut Findings, field: String, path: &str) {
    if !path.starts_with('/') {
        add(out, field, format!("{path:?} is no path"), "begin it with /");
    } else if ["//", "/./", "/../", "%2f", "%2F", "#"].iter().any(|bad| path.contains(bad)) {
        let problem = format!("{path:?} can never be a path that is compared");
        add(out, field, problem, "leave out //, /./, /../, %2F and #");
    }
}

fn check_values(out: &mut Findings, at: &str, values: &[ValueMatch]) {
    for (i, value) in values.iter().enumerate() {
        check_word(out, format!("{at}[{i}].type"), value.kind.as_deref(), &VALUE_KINDS);
        if value.name.is_empty() {
            add(out, format!("{at}[{i}].name"), "missing", "add a name");
        }
    }
}

fn check_word(out: &mut Findings, field: String, word: Option<&str>, known: &[&str]) {
    if let Some(word) = word.filter(|word| !known.contains(word)) {
        add(out, field, format!("{word:?} is not known"), format!("use {}", known.join(", ")));
    }
}

fn check_backends(
    out: &mut Findings,
    at: &str,
    backends: &[BackendRef],
    filters: &[&str],
    prefix: bool,
) {
    for (i, backend) in backends.iter().enumerate() {
        let at = format!("{at}.backendRefs[{i}]");
        check_backend(out, &at, backend);
        if let Some(weight) = backend.weight.filter(|weight| !(0..=MAX_WEIGHT).contains(weight)) {
            let mend = format!("use a number from 0 to {MAX_WEIGHT}");
            add(out, format!("{at}.weight"), format!("{weight} is no weight"), mend);
        }
        check_filters(out, &at, &backend.filters, filters, prefix);
    }
}

fn check_backend(out: &mut Findings, at: &str, backend: &BackendRef) {
    let of_core = backend.group.as_deref().unwrap_or_default().is_empty();
    let service = of_core && backend.kind.as_deref().is_none_or(|kind| kind == "Service");
    match backend.port {
        Some(port) => check_port(out, format!("{at}.port"), port),
        None if service => add(out, format!("{at}.port"), "missing", "add the Service's port"),
        None => {}
    }
}

fn check_filters(out: &mut Findings, at: &str, filters: &[Filter], known: &[&str], prefix: bool) {
    let mut seen = BTreeSet::new();
    for (i, filter) in filters.iter().enumerate() {
        let (at, kind) = (format!("{at}.filters[{i}]"), filter.kind.as_str());
        if !known.contains(&kind) {
            // What needs more than this program has (ExtensionRef, ExternalAuth) is good in a
            // cluster, and told of in the route's status.
            if !matches!(kind, "ExtensionRef" | "ExternalAuth") {
                check_word(out, format!("{at}.type"), Some(kind), known);
            }
            continue;
        }
        if !seen.insert(kind) && kind != "RequestMirror" {
            let problem = format!("{kind} is there twice");
            add(out, format!("{at}.type"), problem, "make one of the two");
        }
        check_filter(out, &at, filter, prefix);
    }
    if seen.contains("RequestRedirect") && seen.contains("URLRewrite") {
        let problem = "RequestRedirect and URLRewrite together";
        add(out, format!("{at}.filters"), problem, "remove one of them");
    }
}

fn check_filter(out: &mut Findings, at: &str, filter: &Filter, prefix: bool) {
    let missing = |out: &mut Findings, field: &str| {
        add(out, format!("{at}.{field}"), "missing", "add it, or change the type");
    };
    match filter.kind.as_str() {
        "RequestHeaderModifier" => match &filter.request_header_modifier {
            Some(change) => check_headers(out, &format!("{at}.requestHeaderModifier"), change),
            None => missing(out, "requestHeaderModifier"),
        },
        "ResponseHeaderModifier" => match &filter.response_header_modifier {
            Some(change) => check_headers(out, &format!("{at}.responseHeaderModifier"), change),
            None => missing(out, "responseHeaderModifier"),
        },
        "RequestMirror" => match &filter.request_mirror {
            Some(mirror) => {
                let at = format!("{at}.requestMirror");
                check_backend(out, &format!("{at}.backendRef"), &mirror.backend_ref);
                if let Some(n) = mirror.percent.filter(|n| !(0..=100).contains(n)) {
                    let problem = format!("{n} percent");
                    add(out, format!("{at}.percent"), problem, "use a number from 0 to 100");
                }
                if let Some(part) = &mirror.fraction
                    && !(0..=part.denominator.unwrap_or(100)).contains(&part.numerator)
                {
                    let mend =
                        "use a numerator from 0 to the denominator (100 where there is none)";
                    add(out, format!("{at}.fraction"), "is no share", mend);
                }
            }
            None => missing(out, "requestMirror"),
        },
        "RequestRedirect" => match &filter.request_redirect {
            Some(redirect) => {
                check_redirect(out, &format!("{at}.requestRedirect"), redirect, prefix);
            }
            None => missing(out, "requestRedirect"),
        },
        "URLRewrite" => match &filter.url_rewrite {
            Some(rewrite) => {
                check_modifier(out, &format!("{at}.urlRewrite"), rewrite.path.as_ref(), prefix);
            }
            None => missing(out, "urlRewrite"),
        },
        _ if filter.cors.is_none() => missing(out, "cors"),
        _ => {}
    }
}

fn check_redirect(out: &mut Findings, at: &str, redirect: &RequestRedirect, prefix: bool) {
    check_word(out, format!("{at}.scheme"), redirect.scheme.as_deref(), &["http", "https"]);
    if let Some(port) = redirect.port {
        check_port(out, format!("{at}.port"), port);
    }
    let codes = [301, 302, 303, 307, 308];
    if let Some(code) = redirect.status_code.filter(|code| !codes.contains(code)) {
        let problem = format!("{code} is no redirect");
        add(out, format!("{at}.statusCode"), problem, "use 301, 302, 303, 307 or 308");
    }
    check_modifier(out, at, redirect.path.as_ref(), prefix);
}

fn check_modifier(out: &mut Findings, at: &str, path: Option<&PathModifier>, prefix: bool) {
    let Some(path) = path else { return };
    let at = format!("{at}.path");
    match path.kind.as_str() {
        "ReplaceFullPath" if path.replace_full_path.is_none() => {
            add(out, format!("{at}.replaceFullPath"), "missing", "add it");
        }
        "ReplacePrefixMatch" if path.replace_prefix_match.is_none() => {
            add(out, format!("{at}.replacePrefixMatch"), "missing", "add it");
        }
        "ReplacePrefixMatch" if !prefix => {
            let problem = "there is not one prefix to replace";
            let mend = "give the rule exactly one match, with a path of type PathPrefix";
            add(out, format!("{at}.type"), problem, mend);
        }
        kind => {
            let known = ["ReplaceFullPath", "ReplacePrefixMatch"];
            check_word(out, format!("{at}.type"), Some(kind), &known);
        }
    }
}

fn check_headers(out: &mut Findings, at: &str, change: &HeaderModifier) {
    let of = |list: &'static str, names: Vec<&str>, out: &mut Findings| {
        for (i, name) in names.iter().enumerate() {
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            if name.is_empty() || !name.bytes().all(token) {
                let problem = format!("{name:?} is no name of a header field");
                add(out, format!("{at}.{list}[{i}]"), problem, "use letters, digits and '-'");
            }
        }
    };
    of("set", change.set.iter().map(|header| &*header.name).collect(), out);
    of("add", change.add.iter().map(|header| &*header.name).collect(), out);
    of("remove", change.remove.iter().map(|name| &**name).collect(), out);
}

fn check_policy(out: &mut Findings, at: &str, rule: &HttpRule) {
    if let Some(timeouts) = &rule.timeouts {
        let field = format!("{at}.timeouts.backendRequest");
        let request = duration(out, format!("{at}.timeouts.request"), timeouts.request.as_deref());
        let one = duration(out, field.clone(), timeouts.backend_request.as_deref());
        if let (Some(request), Some(one)) = (request, one)
            && !request.is_zero()
            && one > request
        {
            add(out, field, "longer than that of the whole request", "make it shorter");
        }
    }
    let Some(retry) = &rule.retry else { return };
    duration(out, format!("{at}.retry.backoff"), retry.backoff.as_deref());
    for (i, code) in retry.codes.iter().enumerate().filter(|(_, code)| !(400..=599).contains(*code))
    {
        let problem = format!("{code} is no status of a failure");
        add(out, format!("{at}.retry.codes[{i}]"), problem, "use a number from 400 to 599");
    }
    if let Some(n) = retry.attempts.filter(|n| *n < 1) {
        add(out, format!("{at}.retry.attempts"), format!("{n} attempts"), "use at least 1");
    }
}

fn duration(out: &mut Findings, field: String, text: Option<&str>) -> Option<Duration> {
    let parsed = text.map(parse_duration)?.ok();
    if parsed.is_none() {
        let problem = format!("{:?} is no duration", text.unwrap_or_default());
        add(out, field, problem, "write for example 250ms or 1m30s");
    }
    parsed
}
