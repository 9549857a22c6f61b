//! The routes of a Service put together.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    RouteId,
    parse::{Parsed, ParsedRule, Rank, Ref},
    rule::{
        Backend, RefReason, Route, RouteMatch, Routes, Rule, SharedRoutes, StreamRoute, Unresolved,
        WeightedBackend,
    },
    view::{Matched, Ordered, OrderedMatch},
};
use crate::{
    index::{Index, Name, model::Service},
    source::{Kind, ServiceKind, route::ParentRef},
};

/// What is attached to one port of a Service.
#[derive(Debug, Clone, PartialEq, Default)]
pub(in crate::index) struct Attached {
    /// For all callers; `None`: nothing.
    pub(in crate::index) producer: Option<SharedRoutes>,
    /// For the callers of a namespace, in the place of the above.
    pub(in crate::index) consumers: BTreeMap<Arc<str>, SharedRoutes>,
}

/// Whose routes those of a port are: of the namespace that callers must be in, or of the Service's
/// own (`None`). Routes of different groups are not merged (GEP-1294).
type Group = Option<Arc<str>>;

/// A route of a Service with its rules as they are for it.
struct Member<'a> {
    route: &'a Parsed,
    rules: Vec<Arc<Rule>>,
}

impl Parsed {
    /// The Services that it wants to be attached to, without repetition.
    pub(in crate::index) fn services(&self) -> impl Iterator<Item = Name> + use<> {
        let parents = self.object.parents.iter().filter(|parent| parent.is_service());
        parents.map(|parent| self.parent(parent)).collect::<BTreeSet<_>>().into_iter()
    }

    /// The object that a reference to a parent means.
    pub(super) fn parent(&self, written: &ParentRef) -> Name {
        let own = &self.object.meta.name.namespace;
        let elsewhere = written.namespace.as_deref().filter(|namespace| **namespace != **own);
        Name {
            namespace: elsewhere.map_or_else(|| Arc::clone(own), Into::into),
            name: written.name.as_str().into(),
        }
    }

    /// Whose it is on a Service.
    pub(super) fn group(&self, service: &Name) -> Group {
        let own = &self.object.meta.name.namespace;
        (*own != service.namespace).then(|| Arc::clone(own))
    }

    /// What decides between two that say the same: the older, then the first by name.
    fn age(&self) -> (i64, &Name) {
        (self.object.created, &self.object.meta.name)
    }
}

/// The ports that a reference to a Service means; none where the Service is no parent.
pub(super) fn ports(service: &Service, parent: &ParentRef) -> Vec<u16> {
    if service.object.kind != ServiceKind::Balanced {
        return Vec::new();
    }
    let wanted = |(number, port): &(&u16, &crate::index::model::ServicePort)| {
        parent.port.is_none_or(|wanted| wanted == i32::from(**number))
            && parent.section_name.as_ref().is_none_or(|name| name.is_empty() || *name == port.name)
    };
    service.ports.iter().filter(wanted).map(|(number, _)| *number).collect()
}

/// Of several kinds of routes on a port one counts (GEP-1294, "Route types"): the least of these.
pub(super) fn precedence(kind: Kind) -> usize {
    match kind {
        Kind::GrpcRoute => 0,
        Kind::HttpRoute => 1,
        Kind::TlsRoute => 2,
        _ => 3,
    }
}

impl Index {
    /// What is attached to the ports of a Service; what equals its predecessor is shared with it.
    pub(super) fn attach(
        &self,
        name: &Name,
        old: &BTreeMap<u16, Attached>,
    ) -> BTreeMap<u16, Attached> {
        let mut attached: BTreeMap<u16, Attached> = BTreeMap::new();
        let Some(service) = self.services.get(name) else { return attached };
        let members = self.members(name);
        for ((port, group), members) in self.groups(&members, name, service) {
            let new = merge(&members);
            let old = old.get(&port);
            let at = attached.entry(port).or_default();
            match group {
                None => {
                    let old = old.and_then(|old| old.producer.as_ref());
                    at.producer = Some(shared(new, old));
                }
                Some(namespace) => {
                    let old = old.and_then(|old| old.consumers.get(&namespace));
                    at.consumers.insert(namespace, shared(new, old));
                }
            }
        }
        attached
    }

    /// The order of precedence on a port of a Service: every match of the routes of one group, with
    /// the position of its rule and its own, the first that holds first.
    pub(super) fn ordered(&self, name: &Name) -> Vec<Ordered> {
        let Some(service) = self.services.get(name) else { return Vec::new() };
        let members = self.members(name);
        let groups = self.groups(&members, name, service).into_iter();
        let ordered = groups.map(|((port, consumers), members)| {
            let least = members.iter().map(|member| precedence(member.route.kind())).min();
            let counting = |member: &&Member<'_>| Some(precedence(member.route.kind())) == least;
            let members = members.iter().copied().filter(counting);
            let matches = match least {
                Some(0 | 1) => listed(
                    entries(members, |rule| Some(&*rule.matches).filter(|m| !m.is_empty())),
                    |one| Matched::Requests(one.cloned().unwrap_or_default()),
                ),
                _ => listed(entries(members, |rule| Some(&*rule.server_names)), |name| {
                    Matched::Connections(name.cloned())
                }),
            };
            Ordered { service: name.clone(), port, consumers, matches }
        });
        ordered.collect()
    }

    fn members(&self, name: &Name) -> Vec<Member<'_>> {
        self.routes_on(name)
            .filter(|route| route.is_usable())
            .map(|route| Member { route, rules: self.rules(route, name) })
            .collect()
    }

    fn groups<'a, 'm>(
        &self,
        members: &'m [Member<'a>],
        name: &Name,
        service: &Service,
    ) -> BTreeMap<(u16, Group), Vec<&'m Member<'a>>> {
        let mut groups: BTreeMap<(u16, Group), Vec<&Member<'_>>> = BTreeMap::new();
        for member in members {
            for port in self.ports_of(member.route, name, service) {
                groups.entry((port, member.route.group(name))).or_default().push(member);
            }
        }
        groups
    }

    /// All routes that want to be attached to a Service.
    pub(super) fn routes_on<'a>(&'a self, service: &Name) -> impl Iterator<Item = &'a Parsed> {
        self.routes.on.of(service).filter_map(|id| self.routes.routes.get(id))
    }

    /// The ports of a Service that a route means.
    pub(super) fn ports_of(&self, route: &Parsed, name: &Name, service: &Service) -> BTreeSet<u16> {
        let parents = route.object.parents.iter().filter(|parent| parent.is_service());
        parents
            .filter(|parent| route.parent(parent) == *name)
            .flat_map(|parent| ports(service, parent))
            .collect()
    }

    fn rules(&self, route: &Parsed, service: &Name) -> Vec<Arc<Rule>> {
        route.rules.iter().map(|rule| Arc::new(self.rule(route, rule, service))).collect()
    }

    fn rule(&self, route: &Parsed, rule: &ParsedRule, service: &Name) -> Rule {
        let follow = |to: &Ref| self.follow(route, to, service);
        let backends = rule.backends.iter().map(|backend| WeightedBackend {
            weight: backend.weight,
            backend: follow(&backend.to),
            filters: backend.filters.iter().map(|filter| filter.resolved(&follow)).collect(),
        });
        Rule {
            name: Arc::clone(&rule.name),
            filters: rule.filters.iter().map(|filter| filter.resolved(&follow)).collect(),
            backends: backends.collect(),
            policy: rule.policy.clone(),
        }
    }

    /// Where a reference leads for a route on `parent`.
    ///
    /// What is in the route's own namespace needs no grant, nor what is in the parent's: callers
    /// whose traffic a consumer route turns dial Services there already.
    pub(super) fn follow(&self, route: &Parsed, to: &Ref, parent: &Name) -> Backend {
        let own = &route.object.meta.name.namespace;
        let near = to.name.namespace == *own || to.name.namespace == parent.namespace;
        let invalid = self.unresolved(route, to, near);
        Backend { service: to.name.clone(), port: to.port, invalid }
    }

    fn unresolved(&self, route: &Parsed, to: &Ref, near: bool) -> Option<Unresolved> {
        let Name { namespace, name } = &to.name;
        let no = |reason, message: String| Some(Unresolved { reason, message: message.into() });
        if let Some(other) = &to.other {
            let message =
                format!("{other} {namespace}/{name} is no kind of backend; use a Service");
            return no(RefReason::InvalidKind, message);
        }
        if !near && !self.is_granted(route, &to.name) {
            let (kind, from) = (route.kind().as_str(), &route.object.meta.name.namespace);
            let message = format!(
                "no ReferenceGrant in {namespace} lets a {kind} of {from} refer to service {name}"
            );
            return no(RefReason::RefNotPermitted, message);
        }
        let Some(service) = self.services.get(&to.name) else {
            let message = format!("there is no service {namespace}/{name}");
            return no(RefReason::BackendNotFound, message);
        };
        let message = match service.object.kind {
            ServiceKind::External => "stands for a name outside",
            ServiceKind::Headless => "is headless, so that there is nothing to balance over",
            ServiceKind::Balanced if service.ports.contains_key(&to.port) => return None,
            ServiceKind::Balanced => {
                let (port, has) = (to.port, service.port_list());
                let message =
                    format!("service {namespace}/{name} has no port {port}; it has {has}");
                return no(RefReason::BackendNotFound, message);
            }
        };
        let message =
            format!("service {namespace}/{name} {message}; use one with a cluster address");
        no(RefReason::InvalidKind, message)
    }
}

fn shared(new: Routes, old: Option<&SharedRoutes>) -> SharedRoutes {
    match old {
        Some(old) if **old == new => old.clone(),
        _ => SharedRoutes(Arc::new(new)),
    }
}

/// One match of one rule, to be put into its place.
struct Entry<'a, M> {
    rank: Rank,
    route: &'a Parsed,
    /// Positions of the rule and of the match.
    at: (usize, usize),
    rule: &'a Arc<Rule>,
    matches: Option<&'a M>,
}

/// The routes of one group on one port, of the kind that counts.
fn merge(members: &[&Member<'_>]) -> Routes {
    let least = members.iter().map(|member| precedence(member.route.kind())).min();
    let members = members.iter().filter(|m| Some(precedence(m.route.kind())) == least).copied();
    match least {
        Some(0 | 1) => {
            let entries = entries(members, |rule| Some(&*rule.matches).filter(|m| !m.is_empty()));
            let route = |matches: Vec<RouteMatch>, rule| Route { matches: matches.into(), rule };
            Routes { http: joined(entries, route), streams: [].into() }
        }
        _ => {
            let entries = entries(members, |rule| Some(&*rule.server_names));
            let route = |names: Vec<String>, rule| StreamRoute { server_names: names.into(), rule };
            Routes { http: [].into(), streams: joined(entries, route) }
        }
    }
}

/// Every match of every rule in order of precedence. `of` has a rule's matches; `None` leaves the
/// rule out, an empty list is one that holds for everything.
fn entries<'a, M: 'a>(
    members: impl Iterator<Item = &'a Member<'a>>,
    of: impl Fn(&'a ParsedRule) -> Option<&'a [(Rank, M)]>,
) -> Vec<Entry<'a, M>> {
    let mut all = Vec::new();
    for Member { route, rules } in members {
        for (at, (parsed, rule)) in route.rules.iter().zip(rules).enumerate() {
            let Some(matches) = of(parsed) else { continue };
            if matches.is_empty() {
                all.push(Entry { rank: [0; 5], route, at: (at, 0), rule, matches: None });
            }
            for (i, (rank, one)) in matches.iter().enumerate() {
                all.push(Entry { rank: *rank, route, at: (at, i), rule, matches: Some(one) });
            }
        }
    }
    all.sort_by(|a, b| {
        let first = Reverse(a.rank).cmp(&Reverse(b.rank));
        first.then_with(|| a.route.age().cmp(&b.route.age())).then_with(|| a.at.cmp(&b.at))
    });
    all
}

fn listed<M>(
    entries: Vec<Entry<'_, M>>,
    matched: impl Fn(Option<&M>) -> Matched,
) -> Vec<OrderedMatch> {
    let one = |entry: &Entry<'_, M>| OrderedMatch {
        route: RouteId { kind: entry.route.kind(), name: entry.route.object.meta.name.clone() },
        rule: entry.at.0,
        at: entry.at.1,
        matched: matched(entry.matches),
    };
    entries.iter().map(one).collect()
}

/// Neighbours of the same rule are one route.
fn joined<M: Clone, R>(
    entries: Vec<Entry<'_, M>>,
    route: impl Fn(Vec<M>, Arc<Rule>) -> R,
) -> Box<[R]> {
    let same = |a: &Entry<'_, M>, b: &Entry<'_, M>| Arc::ptr_eq(a.rule, b.rule);
    entries
        .chunk_by(same)
        .map(|of_rule| {
            let matches = of_rule.iter().filter_map(|entry| entry.matches.cloned()).collect();
            route(matches, Arc::clone(of_rule[0].rule))
        })
        .collect()
}
