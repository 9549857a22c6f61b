//! Retries and time-outs that are dangerous, or that contradict each other.

use std::{collections::BTreeSet, time::Duration};

use super::{Report, Rule, key_of};
use crate::{
    index::{
        Name,
        policy::{retry::Retry, timeouts::Timeouts},
        protocol::Protocol,
        routes::{RouteId, rule::Policy},
    },
    source::{
        Key, Kind,
        route::{HttpRule, Rules},
    },
};

/// Statuses by which a server says that it did not do what was asked (RFC 6585 §4, RFC 9110 §15.6.4).
const NOT_DONE: [u16; 2] = [429, 503];
/// UNAVAILABLE, which most servers answer before they do anything.
const UNAVAILABLE: u32 = 14;
/// Methods that are repeated unasked, since a repetition changes nothing (RFC 9110 §9.2.2).
const IDEMPOTENT: [&str; 6] = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];

/// Where something is written, for the names of fields.
struct Place {
    key: Key,
    retry: String,
    timeouts: String,
}

pub(super) fn check(report: &mut Report<'_>) {
    let index = report.index;
    for service in report.objects.services() {
        let meta = &service.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        let name = Name::new(namespace, meta.name.as_deref().unwrap_or_default());
        let Some(policy) = index.service_policy(&name) else { continue };
        let place = Place {
            key: key_of(Kind::Service, &name),
            retry: "metadata.annotations[retry.remora.io]".to_owned(),
            timeouts: "metadata.annotations[timeout.remora.io]".to_owned(),
        };
        if let Some(retry) = &policy.retry {
            unsafe_retries(report, &place, retry);
        }
        times(report, &place, policy.retry.as_ref(), &policy.timeouts, None);
        without_requests(report, &place, &name);
    }
    for id in index.route_ids() {
        for (at, policy) in index.rule_policies(id).enumerate() {
            of_rule(report, id, at, policy);
        }
    }
}

/// A rule of a route, with what the Services say that it is on.
fn of_rule(report: &mut Report<'_>, id: &RouteId, at: usize, policy: &Policy) {
    let index = report.index;
    let Some(route) = index.route(id) else { return };
    let written = match &route.rules {
        Rules::Http(rules) => rules.get(at),
        _ => None,
    };
    let field = |own: bool, name: &str| match own {
        true => format!("spec.rules[{at}].{name}"),
        false => format!("metadata.annotations[{name}.remora.io]").replace("timeouts", "timeout"),
    };
    let place = Place {
        key: key_of(id.kind, &id.name),
        retry: field(written.is_some_and(|rule| rule.retry.is_some()), "retry"),
        timeouts: field(written.is_some_and(|rule| rule.timeouts.is_some()), "timeouts"),
    };
    if let Some(retry) = &policy.retry {
        unsafe_retries(report, &place, retry);
        never_retried(report, &place, written, retry);
    }
    if policy.retry.is_none() && policy.timeouts.is_none() {
        // All of it is the Service's, and told there.
        return;
    }
    let services = route.parents.iter().filter(|parent| parent.is_service());
    let parents: BTreeSet<Name> =
        services.filter_map(|parent| Some(index.parent(id, parent)?.0)).collect();
    let nothing = crate::index::policy::Policy::default();
    for parent in parents {
        let service = index.service_policy(&parent).unwrap_or(&nothing);
        let own = policy.timeouts.clone().unwrap_or_default();
        let (timeouts, one) = own.over(&service.timeouts);
        let retry = policy.retry.as_ref().or(service.retry.as_ref());
        times(report, &place, retry, &timeouts, one);
    }
}

fn unsafe_retries(report: &mut Report<'_>, place: &Place, retry: &Retry) {
    if !retry.http.is_empty() {
        let done = retry.http.iter().any(|range| range.clone().any(|s| !NOT_DONE.contains(&s)));
        let named = |method: &&String| !IDEMPOTENT.contains(&method.as_str());
        let (problem, mend) = match retry.methods.iter().find(named) {
            Some(all) if all == "*" => (
                "methods: * repeats every method, POST and PATCH too, whatever the application \
                 has done by then"
                    .to_owned(),
                "name the methods that it recognises repetitions of, or leave them out",
            ),
            Some(method) if done => (
                format!(
                    "{method} is repeated after statuses other than 429 and 503, which do not say \
                     that the application did nothing"
                ),
                "retry it on 429 and 503 only; nothing to do where the application recognises a \
                 repetition",
            ),
            _ => (String::new(), ""),
        };
        if !problem.is_empty() {
            report.add(Rule::RetryUnsafe, &place.key, place.retry.clone(), problem, mend);
        }
    }
    let codes: Vec<String> =
        retry.grpc.iter().filter(|code| **code != UNAVAILABLE).map(ToString::to_string).collect();
    if !codes.is_empty() {
        let problem = format!(
            "gRPC code {} is repeated for every method, though the server may have done what was \
             asked",
            codes.join(", ")
        );
        let mend = "name unavailable only; nothing to do where every method can be repeated";
        report.add(Rule::RetryUnsafe, &place.key, place.retry.clone(), problem, mend);
    }
}

/// A rule's own retry that has nothing to repeat.
fn never_retried(
    report: &mut Report<'_>,
    place: &Place,
    written: Option<&HttpRule>,
    retry: &Retry,
) {
    let Some(rule) = written.filter(|rule| rule.retry.is_some()) else { return };
    if retry.http.is_empty() && retry.grpc.is_empty() {
        let problem = "names no status, so that nothing is repeated";
        let mend = "add codes, for example codes: [503]";
        return report.add(Rule::RetryNever, &place.key, place.retry.clone(), problem, mend);
    }
    let repeated = |method: &str| {
        let asked = |one: &String| one == "*" || one == method;
        match retry.methods.is_empty() {
            true => IDEMPOTENT.contains(&method),
            false => retry.methods.iter().any(asked),
        }
    };
    let methods: Option<Vec<&String>> =
        rule.matches.iter().map(|one| one.method.as_ref()).collect();
    let methods = methods.filter(|methods| !methods.is_empty()).unwrap_or_default();
    if let [first, ..] = &methods[..]
        && !methods.iter().any(|method| repeated(method))
    {
        let problem = format!(
            "the rule is for {first}, which is not repeated without an Idempotency-Key or your \
             word for it"
        );
        let mend = "remove it; or add the annotation retry.remora.io/methods to the route, where \
                    the application recognises a repetition";
        report.add(Rule::RetryNever, &place.key, place.retry.clone(), problem, mend);
    }
}

/// Time-outs beside each other; `one` is that of an attempt, where a route says it.
fn times(
    report: &mut Report<'_>,
    place: &Place,
    retry: Option<&Retry>,
    timeouts: &Timeouts,
    one: Option<Duration>,
) {
    let Some(request) = timeouts.request else { return };
    for (name, other) in [("response", timeouts.response), ("connect", timeouts.connect)] {
        if let Some(other) = other.filter(|other| *other >= request) {
            let problem = format!(
                "{name} of {other:?} can never pass: the whole request ends after {request:?}"
            );
            let mend = format!("make {name} shorter than request, or remove it");
            report.add(Rule::TimeoutNever, &place.key, place.timeouts.clone(), problem, mend);
        }
    }
    let Some(retry) = retry else { return };
    let Some(attempt) = one.or(retry.per_try_timeout) else { return };
    if attempt >= request {
        let problem = format!(
            "an attempt may take {attempt:?}, and the whole request ends after {request:?}: none \
             is ever given up for another"
        );
        let mend = "make the time-out of an attempt shorter than that of the request";
        return report.add(Rule::TimeoutNever, &place.key, place.retry.clone(), problem, mend);
    }
    if retry.limit == 0 || retry.http.is_empty() && retry.grpc.is_empty() {
        return;
    }
    let needed = attempt.saturating_mul(retry.limit + 1).saturating_add(pauses(retry));
    if needed > request {
        let problem = format!(
            "{} attempts of {attempt:?} and the pauses between them may take {needed:?}, and the \
             whole request ends after {request:?}: the last are cut short or never made",
            retry.limit + 1
        );
        let mend = "lower the number of attempts or their time-out, or raise that of the request";
        report.add(Rule::RetryBeyondTimeout, &place.key, place.retry.clone(), problem, mend);
    }
}

/// The longest that all pauses together can be: each is at most twice the one before.
fn pauses(retry: &Retry) -> Duration {
    let pause = |n: u32| {
        let doubled = retry.backoff.saturating_mul(1 << n.min(16));
        doubled.min(retry.max_backoff.max(retry.backoff))
    };
    (0..retry.limit).map(pause).sum()
}

/// What is for requests, on a Service that carries only bytes.
fn without_requests(report: &mut Report<'_>, place: &Place, name: &Name) {
    let ports = report.index.snapshots().map(|snapshot| &snapshot.head);
    let ports: Vec<Protocol> =
        ports.filter(|head| head.service == *name).map(|head| head.protocol).collect();
    let bytes = |protocol: &Protocol| matches!(protocol, Protocol::Opaque | Protocol::Tls);
    if ports.is_empty() || !ports.iter().all(bytes) {
        return;
    }
    let Some(policy) = report.index.service_policy(name) else { return };
    let (retry, timeouts) = (policy.retry.is_some(), &policy.timeouts);
    let timed = timeouts.request.is_some() || timeouts.response.is_some();
    let mend = "remove it, or take a port out of opaque-ports";
    let why = "all ports are carried as bytes, where no request is seen";
    if retry {
        report.add(Rule::RetryNever, &place.key, place.retry.clone(), why, mend);
    }
    if timed {
        report.add(Rule::TimeoutNever, &place.key, place.timeouts.clone(), why, mend);
    }
}
