//! What the status of a route should say of its Services: a pure function of the index.

use std::collections::BTreeSet;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use remora_core::names::ROUTE_CONTROLLER;

use super::{
    RouteId,
    attach::{ports, precedence},
    parse::{Parsed, Reason},
    rule::{RefReason, Unresolved},
};
use crate::{
    index::{Index, Name, model::Service},
    source::{
        ServiceKind,
        route::{ParentRef, ParentStatus},
    },
};

/// Most reasons that one message has.
const MAX_REASONS: usize = 5;

const ACCEPTED: &str = "Accepted";
const RESOLVED_REFS: &str = "ResolvedRefs";
const PARTIALLY_INVALID: &str = "PartiallyInvalid";

/// What our entries in a route's status should say.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteStatus {
    /// Which version of the route this is about.
    pub generation: i64,
    parents: Vec<(ParentRef, Vec<Verdict>)>,
    /// What they say, as far as the index has heard.
    ours: Box<[ParentStatus]>,
}

/// A condition without its time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    of: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Index {
    /// What the status of a route should say; `None` where there is no such route.
    #[must_use]
    pub fn route_status(&self, id: &RouteId) -> Option<RouteStatus> {
        let route = self.routes.routes.get(id)?;
        let services = route.object.parents.iter().filter(|parent| parent.is_service());
        let parents = services.map(|parent| (parent.clone(), self.verdicts(route, parent)));
        Some(RouteStatus {
            generation: route.object.generation,
            parents: parents.collect(),
            ours: route.object.ours.clone(),
        })
    }

    /// All routes.
    pub fn route_ids(&self) -> impl Iterator<Item = &RouteId> {
        self.routes.keys()
    }

    /// The routes of which [`Index::route_status`] may say something new since the last call.
    pub fn take_routes_due(&mut self) -> Vec<RouteId> {
        std::mem::take(&mut self.routes.due).into_iter().collect()
    }

    fn verdicts(&self, route: &Parsed, parent: &ParentRef) -> Vec<Verdict> {
        let name = route.parent(parent);
        let refused = self.refused(route, parent, &name);
        let accepted = refused.is_none();
        let mut verdicts = vec![
            refused.unwrap_or_else(|| Verdict::good(ACCEPTED, "attached to the Service")),
            self.resolved_refs(route, &name),
        ];
        let bad: Vec<_> = route.rules.iter().filter(|rule| !rule.is_done()).collect();
        if accepted && let Some(problem) = bad.first().and_then(|rule| rule.problem.as_ref()) {
            let why = bad.iter().filter_map(|rule| {
                let rule_name = rule.name.rsplit('/').next().unwrap_or_default();
                Some(format!("{rule_name}: {}", rule.problem.as_ref()?.message))
            });
            verdicts.push(Verdict {
                of: PARTIALLY_INVALID,
                holds: true,
                reason: problem.reason.as_str(),
                message: format!(
                    "Dropped Rule {}; what only it matches is answered 500 where its matches can be told",
                    joined(why)
                ),
            });
        }
        verdicts
    }

    /// Why a Service does not take a route.
    fn refused(&self, route: &Parsed, parent: &ParentRef, name: &Name) -> Option<Verdict> {
        let no = |reason, message| Some(Verdict { of: ACCEPTED, holds: false, reason, message });
        if !route.is_usable() {
            let problems = route.rules.iter().filter_map(|rule| rule.problem.as_ref());
            let reason = problems.clone().next().map_or("UnsupportedValue", |p| p.reason.as_str());
            let why = joined(problems.map(|problem| problem.message.clone()));
            let none = "it has no rule that can be done".to_owned();
            return no(reason, if why.is_empty() { none } else { why });
        }
        let Name { namespace, name: bare } = name;
        let Some(service) = self.services.get(name) else {
            return no("NoMatchingParent", format!("there is no service {namespace}/{bare}"));
        };
        if service.object.kind != ServiceKind::Balanced {
            let message = format!("service {namespace}/{bare} has no cluster address to route");
            return no("NoMatchingParent", message);
        }
        let ports = ports(service, parent);
        if ports.is_empty() {
            let has = service.port_list();
            let message = format!(
                "service {namespace}/{bare} has no port of that number and name; it has {has}"
            );
            return no("NoMatchingParent", message);
        }
        let own = precedence(route.kind());
        let better = |port: &u16| self.counting(route, name, service, *port) < own;
        if ports.iter().all(better) {
            let message = "a more specific kind of route is on the same port, and only that counts \
                           (GRPCRoute, HTTPRoute, TLSRoute, TCPRoute)";
            return no("Conflicted", message.to_owned());
        }
        None
    }

    /// Which kind counts on a port among the routes of the same group.
    fn counting(&self, of: &Parsed, name: &Name, service: &Service, port: u16) -> usize {
        let group = of.group(name);
        let rivals = self.routes_on(name).filter(|route| {
            route.is_usable()
                && route.group(name) == group
                && self.ports_of(route, name, service).contains(&port)
        });
        rivals.map(|route| precedence(route.kind())).min().unwrap_or(usize::MAX)
    }

    fn resolved_refs(&self, route: &Parsed, parent: &Name) -> Verdict {
        let followed = route.references().filter_map(|to| self.follow(route, to, parent).invalid);
        let unknown = route.rules.iter().filter_map(|rule| rule.problem.as_ref());
        let unknown = unknown.filter(|problem| problem.reason == Reason::UnknownFilter);
        let unknown = unknown.map(|problem| Unresolved {
            reason: RefReason::InvalidKind,
            message: problem.message.as_str().into(),
        });
        // Each once, whatever the order of rules.
        let bad: BTreeSet<(RefReason, Box<str>)> =
            followed.chain(unknown).map(|bad| (bad.reason, bad.message)).collect();
        let Some((reason, _)) = bad.first() else {
            return Verdict::good(RESOLVED_REFS, "all references lead to Services");
        };
        Verdict {
            of: RESOLVED_REFS,
            holds: false,
            reason: reason.as_str(),
            message: joined(bad.iter().map(|(_, message)| message.to_string())),
        }
    }
}

/// The first few, so that a message keeps within the API's bounds.
fn joined(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.take(MAX_REASONS + 1).collect();
    let mut text = all.iter().take(MAX_REASONS).cloned().collect::<Vec<_>>().join("; ");
    if all.len() > MAX_REASONS {
        text.push_str("; and more");
    }
    text.chars().take(4096).collect()
}

impl Verdict {
    fn good(of: &'static str, message: &str) -> Self {
        Self { of, holds: true, reason: of, message: message.to_owned() }
    }

    /// The condition; its time is that of the last one, where that holds too.
    fn condition(&self, generation: i64, known: Option<&Condition>, now: Timestamp) -> Condition {
        let status = if self.holds { "True" } else { "False" };
        let since = known.filter(|known| known.status == status);
        Condition {
            type_: self.of.to_owned(),
            status: status.to_owned(),
            reason: self.reason.to_owned(),
            message: self.message.clone(),
            observed_generation: Some(generation),
            last_transition_time: since
                .map_or(Time(now), |known| known.last_transition_time.clone()),
        }
    }
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::UnsupportedValue | Self::UnknownFilter => "UnsupportedValue",
            Self::IncompatibleFilters => "IncompatibleFilters",
        }
    }
}

impl RouteStatus {
    /// What is not as it was asked for, a line for each, for those who have no status to read.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let of = |(parent, verdicts): &(ParentRef, Vec<Verdict>)| {
            let service = parent.name.clone();
            let bad = verdicts.iter().filter(|v| v.holds == (v.of == PARTIALLY_INVALID));
            bad.map(move |v| format!("on service {service}: {}: {}", v.reason, v.message))
                .collect::<Vec<_>>()
        };
        self.parents.iter().flat_map(of).collect()
    }

    /// Whether the entries say it already, as far as the index has heard.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.entries(&self.ours, Timestamp::UNIX_EPOCH) == *self.ours
    }

    /// Whether what is known here is older than what was said by a replica that knew more.
    #[must_use]
    pub fn is_stale(&self, ours: &[ParentStatus]) -> bool {
        let observed = ours.iter().flat_map(|entry| &entry.conditions);
        observed.filter_map(|c| c.observed_generation).any(|seen| seen > self.generation)
    }

    /// Our entries, one for each parent that is a Service. Where `ours` has a condition with the same
    /// status, its time is kept, and so are conditions of other types.
    #[must_use]
    pub fn entries(&self, ours: &[ParentStatus], now: Timestamp) -> Vec<ParentStatus> {
        let entry = |(parent, verdicts): &(ParentRef, Vec<Verdict>)| {
            let known = ours.iter().find(|entry| entry.parent_ref == *parent);
            let known = known.map_or(&[][..], |entry| &entry.conditions);
            let foreign = known.iter().filter(|condition| {
                ![ACCEPTED, RESOLVED_REFS, PARTIALLY_INVALID].contains(&&*condition.type_)
            });
            let of = |verdict: &Verdict| {
                let before = known.iter().find(|condition| condition.type_ == verdict.of);
                verdict.condition(self.generation, before, now)
            };
            ParentStatus {
                parent_ref: parent.clone(),
                controller_name: ROUTE_CONTROLLER.to_owned(),
                conditions: verdicts.iter().map(of).chain(foreign.cloned()).collect(),
            }
        };
        self.parents.iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests;
