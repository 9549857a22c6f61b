//! From a route as it is written to what it means, as far as that can be said without other objects.
//!
//! A rule that cannot be done is a [`Problem`], and the route is then partly invalid. Where it is
//! known which requests it is for, they are answered 500 rather than given to a lesser rule: a rule
//! may stand for a check that must not be passed by. Where that is not known, the rule is left out.

use std::sync::Arc;

use super::{
    filters, matches, policy,
    rule::{Filter, Policy, RouteMatch},
};
use crate::{
    index::{
        Name,
        policy::{Warnings, route::RoutePolicy},
    },
    source::{
        Kind,
        route::{self, BackendRef, Rules},
    },
};

/// A route as the index keeps it.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::index) struct Parsed {
    pub(in crate::index) object: Arc<route::Route>,
    pub(super) rules: Box<[ParsedRule]>,
    /// What the route's annotations say.
    annotated: RoutePolicy,
}

/// A rule of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ParsedRule {
    /// See [`super::rule::Rule::name`].
    pub(super) name: Arc<str>,
    /// With what decides between two that both hold. Empty: the rule is left out.
    pub(super) matches: Box<[(Rank, RouteMatch)]>,
    /// Of a TLSRoute; empty: all.
    pub(super) server_names: Box<[(Rank, String)]>,
    pub(super) filters: Box<[Filter<Ref>]>,
    pub(super) backends: Box<[ParsedBackend]>,
    pub(super) policy: Policy,
    /// Why it cannot be done.
    pub(super) problem: Option<Problem>,
}

/// A backend of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ParsedBackend {
    pub(super) weight: u32,
    pub(super) to: Ref,
    pub(super) filters: Box<[Filter<Ref>]>,
}

/// A reference as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ref {
    pub(super) name: Name,
    /// 0 where there is none.
    pub(super) port: u16,
    /// Of what kind, where that is no Service.
    pub(super) other: Option<Box<str>>,
}

/// What comes first of two that both hold: the greater, part by part.
pub(super) type Rank = [usize; 5];

/// Why a rule cannot be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) reason: Reason,
    pub(super) message: String,
}

/// Reasons of a rule, of which the condition `Accepted` (all rules) or `PartiallyInvalid` (some) tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    UnsupportedValue,
    IncompatibleFilters,
    /// A filter that is an object of a kind that is not known here; told in `ResolvedRefs`.
    UnknownFilter,
}

impl Problem {
    pub(super) fn unsupported(message: impl Into<String>) -> Self {
        Self { reason: Reason::UnsupportedValue, message: message.into() }
    }
}

impl Parsed {
    /// Reads a route. What of its annotations cannot be used is a warning, and what held before
    /// holds on.
    pub(in crate::index) fn parse(
        object: &Arc<route::Route>,
        old: Option<&Self>,
        warn: &mut Warnings,
    ) -> Self {
        let map = object.meta.annotations.to_map();
        let retries = match &object.rules {
            Rules::Http(rules) => rules.iter().any(|rule| rule.retry.is_some()),
            _ => false,
        };
        let annotated = RoutePolicy::parse(&map, retries, old.map(|old| &old.annotated), warn);
        let rules = match &object.rules {
            Rules::Http(rules) => each(rules, |at, rule| http(object, &annotated, at, rule)),
            Rules::Grpc(rules) => each(rules, |at, rule| grpc(object, &annotated, at, rule)),
            Rules::Tls(rules) | Rules::Tcp(rules) => {
                each(rules, |at, rule| stream(object, at, rule))
            }
        };
        Self { object: Arc::clone(object), rules, annotated }
    }

    pub(super) fn kind(&self) -> Kind {
        self.object.kind()
    }

    /// Whether any of its rules can be done.
    pub(super) fn is_usable(&self) -> bool {
        self.rules.iter().any(ParsedRule::is_done)
    }

    /// Every reference of its rules, mirrors included.
    pub(super) fn references(&self) -> impl Iterator<Item = &Ref> {
        self.rules.iter().flat_map(ParsedRule::references)
    }
}

impl ParsedRule {
    /// A reference that nobody can follow does not make a rule a bad one.
    pub(super) fn is_done(&self) -> bool {
        self.problem.as_ref().is_none_or(|problem| problem.reason == Reason::UnknownFilter)
    }

    fn references(&self) -> impl Iterator<Item = &Ref> {
        let of_backends = self.backends.iter().flat_map(|backend| {
            let mirrors = backend.filters.iter().filter_map(Filter::reference);
            std::iter::once(&backend.to).chain(mirrors)
        });
        self.filters.iter().filter_map(Filter::reference).chain(of_backends)
    }

    /// A rule that does nothing but name itself and take what matches.
    fn bare(object: &route::Route, at: usize, name: Option<&str>) -> Self {
        let Name { namespace, name: route } = &object.meta.name;
        let name = match name {
            Some(rule) => format!("{namespace}/{route}/{rule}"),
            None => format!("{namespace}/{route}/{at}"),
        };
        Self {
            name: name.into(),
            matches: [].into(),
            server_names: [].into(),
            filters: [].into(),
            backends: [].into(),
            policy: Policy::default(),
            problem: None,
        }
    }
}

fn each<R>(rules: &[R], one: impl Fn(usize, &R) -> ParsedRule) -> Box<[ParsedRule]> {
    rules.iter().enumerate().map(|(at, rule)| one(at, rule)).collect()
}

fn http(
    object: &route::Route,
    annotated: &RoutePolicy,
    at: usize,
    rule: &route::HttpRule,
) -> ParsedRule {
    let mut parsed = ParsedRule::bare(object, at, rule.name.as_deref());
    let attempt = |parsed: &mut ParsedRule| {
        parsed.matches = matches::http(&rule.matches)?;
        let prefix = matches::single_prefix(&parsed.matches);
        let filters = filters::parse(object, &rule.filters, prefix)?;
        let backends = backends(object, &rule.backend_refs, prefix)?;
        parsed.policy = policy::of_http(annotated, rule, &parsed.name)?;
        (parsed.filters, parsed.backends) = (filters, backends);
        Ok(())
    };
    parsed.problem = attempt(&mut parsed).err();
    parsed
}

fn grpc(
    object: &route::Route,
    annotated: &RoutePolicy,
    at: usize,
    rule: &route::GrpcRule,
) -> ParsedRule {
    let mut parsed = ParsedRule::bare(object, at, rule.name.as_deref());
    let attempt = |parsed: &mut ParsedRule| {
        parsed.matches = matches::grpc(&rule.matches)?;
        let filters = filters::parse(object, &rule.filters, false)?;
        let backends = backends(object, &rule.backend_refs, false)?;
        parsed.policy = policy::of_grpc(annotated, rule, &parsed.name)?;
        (parsed.filters, parsed.backends) = (filters, backends);
        Ok(())
    };
    parsed.problem = attempt(&mut parsed).err();
    parsed
}

fn stream(object: &route::Route, at: usize, rule: &route::StreamRule) -> ParsedRule {
    let mut parsed = ParsedRule::bare(object, at, rule.name.as_deref());
    parsed.server_names = matches::server_names(&object.hostnames);
    match backends(object, &rule.backend_refs, false) {
        Ok(backends) => parsed.backends = backends,
        Err(problem) => parsed.problem = Some(problem),
    }
    parsed
}

fn backends(
    object: &route::Route,
    written: &[BackendRef],
    prefix: bool,
) -> Result<Box<[ParsedBackend]>, Problem> {
    let one = |backend: &BackendRef| {
        Ok(ParsedBackend {
            weight: backend.weight.map_or(1, |weight| u32::try_from(weight).unwrap_or(0)),
            to: reference(object, backend),
            filters: filters::parse(object, &backend.filters, prefix)?,
        })
    };
    written.iter().map(one).collect()
}

/// What a reference means: a Service of the route's namespace where it says nothing else.
pub(super) fn reference(object: &route::Route, written: &BackendRef) -> Ref {
    let group = written.group.as_deref().unwrap_or_default();
    let kind = written.kind.as_deref().unwrap_or("Service");
    let other = match (group, kind) {
        ("" | "core", "Service") => None,
        ("", kind) => Some(kind.into()),
        (group, kind) => Some(format!("{group} {kind}").into()),
    };
    let own = &object.meta.name.namespace;
    let elsewhere = written.namespace.as_deref().filter(|namespace| **namespace != **own);
    Ref {
        name: Name {
            namespace: elsewhere.map_or_else(|| Arc::clone(own), Into::into),
            name: written.name.as_str().into(),
        },
        port: written.port.and_then(|port| u16::try_from(port).ok()).unwrap_or(0),
        other,
    }
}
