//! What routes mean, for those who judge manifests rather than serve them.

use std::sync::Arc;

use super::{
    RouteId,
    attach::ports,
    parse::{ParsedRule, Ref},
    rule::{Backend, Filter, Policy, RouteMatch},
};
use crate::{
    index::{Index, Name, policy},
    source::{
        ServiceKind,
        route::{ParentRef, Route},
    },
};

/// The matches that count on a port of a Service for one group of callers, in order of precedence.
#[derive(Debug, Clone, PartialEq)]
pub struct Ordered {
    /// The Service.
    pub service: Name,
    /// Its port.
    pub port: u16,
    /// The namespace of the callers; `None`: all that have no routes of their own.
    pub consumers: Option<Arc<str>>,
    /// The first that holds decides.
    pub matches: Vec<OrderedMatch>,
}

/// One match of one rule.
#[derive(Debug, Clone, PartialEq)]
pub struct OrderedMatch {
    /// The route.
    pub route: RouteId,
    /// Position of its rule in the route.
    pub rule: usize,
    /// Position in the rule, as it is written; for a TLSRoute among its host names.
    pub at: usize,
    /// For what.
    pub matched: Matched,
}

/// For what a match is.
#[derive(Debug, Clone, PartialEq)]
pub enum Matched {
    /// Requests.
    Requests(RouteMatch),
    /// Connections, by the server name of their TLS; `None`: all.
    Connections(Option<String>),
}

/// A reference of a route with where it leads.
#[derive(Debug, Clone, PartialEq)]
pub struct Followed {
    /// Its place in the route, for example `spec.rules[0].backendRefs[1]`.
    pub field: String,
    /// Where it leads.
    pub backend: Backend,
    /// Whether it is meant for a Service.
    pub is_service: bool,
}

/// Why a Service takes no route by a reference to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is not there.
    Missing,
    /// It has no address of its own.
    Kind(ServiceKind),
    /// It has no such port.
    Port,
}

impl Index {
    /// A route as it is written.
    #[must_use]
    pub fn route(&self, id: &RouteId) -> Option<&Arc<Route>> {
        Some(&self.routes.routes.get(id)?.object)
    }

    /// How the rules of a route treat requests, in their order: their own fields and the route's
    /// annotations. What they leave open is the Service's.
    pub fn rule_policies(&self, id: &RouteId) -> impl Iterator<Item = &Policy> {
        self.routes
            .routes
            .get(id)
            .into_iter()
            .flat_map(|route| &route.rules)
            .map(|rule| &rule.policy)
    }

    /// Why rules of a route cannot be done, by their positions.
    pub fn rule_problems(&self, id: &RouteId) -> impl Iterator<Item = (usize, &str)> {
        let rules = self.routes.routes.get(id).into_iter().flat_map(|route| &route.rules);
        let problem = |rule: &'_ ParsedRule| rule.problem.is_some();
        rules
            .enumerate()
            .filter(move |(_, rule)| problem(rule))
            .filter_map(|(at, rule)| Some((at, rule.problem.as_ref()?.message.as_str())))
    }

    /// What a Service's annotations ask for.
    #[must_use]
    pub fn service_policy(&self, name: &Name) -> Option<&policy::Policy> {
        Some(&self.services.get(name)?.policy)
    }

    /// The Service that a route wants to be attached to, and why it is not.
    #[must_use]
    pub fn parent(&self, id: &RouteId, written: &ParentRef) -> Option<(Name, Option<Refusal>)> {
        let name = self.routes.routes.get(id)?.parent(written);
        let refusal = match self.services.get(&name) {
            None => Some(Refusal::Missing),
            Some(service) if service.object.kind != ServiceKind::Balanced => {
                Some(Refusal::Kind(service.object.kind))
            }
            Some(service) => ports(service, written).is_empty().then_some(Refusal::Port),
        };
        Some((name, refusal))
    }

    /// Every reference of a route on a Service, mirrors included.
    #[must_use]
    pub fn followed(&self, id: &RouteId, parent: &Name) -> Vec<Followed> {
        let Some(route) = self.routes.routes.get(id) else { return Vec::new() };
        let mut out = Vec::new();
        for (i, rule) in route.rules.iter().enumerate() {
            let mut add = |field: String, to: &Ref| {
                let backend = self.follow(route, to, parent);
                out.push(Followed { field, backend, is_service: to.other.is_none() });
            };
            let mirrors =
                |at: String, filters: &[Filter<Ref>], add: &mut dyn FnMut(String, &Ref)| {
                    for (k, filter) in filters.iter().enumerate() {
                        if let Some(to) = filter.reference() {
                            add(format!("{at}.filters[{k}].requestMirror.backendRef"), to);
                        }
                    }
                };
            mirrors(format!("spec.rules[{i}]"), &rule.filters, &mut add);
            for (j, backend) in rule.backends.iter().enumerate() {
                let at = format!("spec.rules[{i}].backendRefs[{j}]");
                add(at.clone(), &backend.to);
                mirrors(at, &backend.filters, &mut add);
            }
        }
        out
    }

    /// The matches on all ports of all Services that have routes.
    #[must_use]
    pub fn precedence(&self) -> Vec<Ordered> {
        self.routes.attached.keys().flat_map(|name| self.ordered(name)).collect()
    }
}
