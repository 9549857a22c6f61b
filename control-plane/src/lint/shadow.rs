//! Rules and matches that no request reaches, since an earlier one takes all that they are for.
//!
//! What is known is that one earlier match covers a later one. That several together do, or that two
//! regular expressions mean the same, is not looked for: what is found is certain.

use std::collections::BTreeMap;

use super::{Report, Rule, key_of};
use crate::index::routes::{
    Matched, Ordered, OrderedMatch, RouteId,
    rule::{Path, RouteMatch, ValueMatch},
};

/// A rule, and of it a match.
type Place = (RouteId, usize, usize);
/// A match of a rule, and who takes what it is for; `None`: it is reached.
type Taken = (usize, Option<String>);

pub(super) fn check(report: &mut Report<'_>) {
    // Of each match, on every port that it is on: who takes what it is for.
    let mut takers: BTreeMap<Place, Vec<Option<String>>> = BTreeMap::new();
    for port in report.index.precedence() {
        for (at, one) in port.matches.iter().enumerate() {
            let taker =
                port.matches[..at].iter().find(|first| covers(&first.matched, &one.matched));
            let taker = taker.map(|first| described(first, one, &port));
            takers.entry((one.route.clone(), one.rule, one.at)).or_default().push(taker);
        }
    }
    let mut rules: BTreeMap<(RouteId, usize), Vec<Taken>> = BTreeMap::new();
    for ((route, rule, at), takers) in takers {
        // Reached on one port is reached.
        let taker =
            takers.into_iter().collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().next());
        rules.entry((route, rule)).or_default().push((at, taker));
    }
    for ((route, rule), matches) in rules {
        let key = key_of(route.kind, &route.name);
        let field = format!("spec.rules[{rule}]");
        let mend = "make the match narrower or the earlier one, or remove it";
        if let [(_, Some(first)), ..] = &matches[..]
            && matches.iter().all(|(_, taker)| taker.is_some())
        {
            let problem = format!("no request ever reaches the rule: {first}");
            report.add(Rule::RuleShadowed, &key, field, problem, mend);
            continue;
        }
        for (at, taker) in matches {
            let Some(taker) = taker else { continue };
            let problem = format!("no request ever reaches the match: {taker}");
            report.add(Rule::MatchShadowed, &key, format!("{field}.matches[{at}]"), problem, mend);
        }
    }
}

fn described(first: &OrderedMatch, of: &OrderedMatch, port: &Ordered) -> String {
    let place = format!("spec.rules[{}].matches[{}]", first.rule, first.at);
    let route = match &first.route {
        same if *same == of.route => String::new(),
        RouteId { kind, name } => {
            format!(" of {} {}/{}", kind.as_str(), name.namespace, name.name)
        }
    };
    let service = &port.service;
    format!(
        "{place}{route} comes first and takes all of it (port {} of service {}/{})",
        port.port, service.namespace, service.name
    )
}

/// Whether all that is for `b` is for `a` too.
fn covers(a: &Matched, b: &Matched) -> bool {
    match (a, b) {
        (Matched::Requests(a), Matched::Requests(b)) => requests_cover(a, b),
        (Matched::Connections(a), Matched::Connections(b)) => a.is_none() || a == b,
        _ => false,
    }
}

pub(super) fn requests_cover(a: &RouteMatch, b: &RouteMatch) -> bool {
    paths_cover(a.path.as_ref(), b.path.as_ref())
        && (a.method.is_none() || a.method == b.method)
        && values_cover(&a.headers, &b.headers, str::eq_ignore_ascii_case)
        && values_cover(&a.query, &b.query, |a, b| a == b)
}

fn paths_cover(a: Option<&Path>, b: Option<&Path>) -> bool {
    let Some(a) = a else { return true };
    match (a, b) {
        (Path::Prefix(a), _) if a == "/" => true,
        (Path::Regex(a), _) if a == ".*" || a == "/.*" => true,
        (Path::Exact(a), Some(Path::Exact(b))) | (Path::Regex(a), Some(Path::Regex(b))) => a == b,
        (Path::Prefix(a), Some(Path::Exact(b) | Path::Prefix(b))) => {
            b.strip_prefix(a.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        _ => false,
    }
}

/// Whether each of `a` is asked for by `b` too.
fn values_cover(a: &[ValueMatch], b: &[ValueMatch], same: impl Fn(&str, &str) -> bool) -> bool {
    a.iter().all(|a| {
        b.iter().any(|b| {
            let any = a.regex && a.value == ".*";
            same(&a.name, &b.name) && (any || a.regex == b.regex && a.value == b.value)
        })
    })
}
