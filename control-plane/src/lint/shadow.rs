//! Rules and matches that no request reaches, since an earlier one takes all that they are for.
//!
//! What is known is that one earlier match covers a later one. That several together do, or that two
//! regular expressions mean the same, is not looked for: what is found is certain.

use std::collections::BTreeMap;

use super::{Report, Rule, key_of};
use crate::{
    index::routes::{
        Matched, Ordered, OrderedMatch, RouteId,
        rule::{Path, RouteMatch, ValueMatch},
    },
    source::Key,
};

/// A rule, and of it a match.
type Place = (RouteId, usize, usize);
/// A match of a rule, and who takes what it is for; `None`: it is reached.
type Taken = (usize, Option<Taker>);

/// Who takes what a match is for, for people.
struct Taker {
    text: String,
    /// Whether it is of the same route, on every port that the route is on.
    own: bool,
}

pub(super) fn check(report: &mut Report<'_>) {
    // Of each match, on every port that it is on: who takes what it is for.
    let mut takers: BTreeMap<Place, Vec<Option<Taker>>> = BTreeMap::new();
    for port in report.index.precedence() {
        for (at, one) in port.matches.iter().enumerate() {
            let taker =
                port.matches[..at].iter().find(|first| covers(&first.matched, &one.matched));
            let taker = taker.map(|first| Taker {
                text: described(first, one, &port),
                own: first.route == one.route,
            });
            takers.entry((one.route.clone(), one.rule, one.at)).or_default().push(taker);
        }
    }
    let mut rules: BTreeMap<(RouteId, usize), Vec<Taken>> = BTreeMap::new();
    for ((route, rule, at), takers) in takers {
        // Reached on one port is reached.
        let all: Option<Vec<Taker>> = takers.into_iter().collect();
        let taker = all.and_then(|all| {
            let own = all.iter().all(|taker| taker.own);
            all.into_iter().next().map(|first| Taker { own, ..first })
        });
        rules.entry((route, rule)).or_default().push((at, taker));
    }
    for ((route, rule), matches) in rules {
        let key = key_of(route.kind, &route.name);
        let field = format!("spec.rules[{rule}]");
        let all: Option<Vec<&Taker>> = matches.iter().map(|(_, taker)| taker.as_ref()).collect();
        if let Some([first, ..]) = all.as_deref() {
            let problem = format!("no request ever reaches the rule: {}", first.text);
            let own = all.iter().flatten().all(|taker| taker.own);
            add(report, own, Rule::RuleShadowed, &key, field, problem);
            continue;
        }
        for (at, taker) in matches {
            let Some(taker) = taker else { continue };
            let problem = format!("no request ever reaches the match: {}", taker.text);
            let field = format!("{field}.matches[{at}]");
            add(report, taker.own, Rule::MatchShadowed, &key, field, problem);
        }
    }
}

fn add(report: &mut Report<'_>, own: bool, rule: Rule, key: &Key, field: String, problem: String) {
    let mend = "make the match narrower or the earlier one, or remove it";
    match own {
        true => report.add_own(rule, key, field, problem, mend),
        false => report.add(rule, key, field, problem, mend),
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
    let taken = format!("{place}{route} comes first and takes all of it");
    // Its own rules stand in one order wherever it is attached.
    if route.is_empty() {
        return taken;
    }
    let service = &port.service;
    format!("{taken} (port {} of service {}/{})", port.port, service.namespace, service.name)
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
