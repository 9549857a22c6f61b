//! Gateway API's routes on Services (GAMMA).
//!
//! - [`rule`]: what proxies are told, in the index's words;
//! - `parse` reads one route, with `matches`, `filters`, `policy` and `check`: all that can be said
//!   without other objects;
//! - `attach` puts the routes of a Service together: whose they are (producer or consumer), which
//!   kind wins, what comes first, and where their references lead;
//! - `status` says what became of a route, for the route's own status;
//! - `view` says what a route means, for those who judge manifests; `around` what it depends on.
//!
//! What is computed for a Service is kept until one of the objects changes that it depends on: its
//! routes, itself, a Service that they refer to, or a grant. Endpoints are none of these.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use remora_core::settings::InvalidAnnotation;

use super::{Index, Name, Touched, in_namespace};
use crate::source::{
    Kind,
    route::{self, ReferenceGrant},
};

mod around;
mod attach;
pub(in crate::index) mod check;
mod filters;
mod matches;
mod parse;
mod policy;
pub mod rule;
mod status;
mod view;

pub use status::RouteStatus;
pub use view::{Followed, Matched, Ordered, OrderedMatch, Refusal};

pub(super) use attach::Attached;
pub(super) use parse::Parsed;

/// What identifies a route.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId {
    /// Which kind of route.
    pub kind: Kind,
    /// Namespace and name.
    pub name: Name,
}

/// All routes and grants, and who refers to what.
#[derive(Debug, Default)]
pub(super) struct Routes {
    routes: BTreeMap<RouteId, Parsed>,
    grants: BTreeMap<Name, Arc<ReferenceGrant>>,
    /// Routes by the Service that they want to be attached to, and by one that they refer to.
    on: super::Reverse<Name, RouteId>,
    to: super::Reverse<Name, RouteId>,
    /// Routes by another namespace that they refer to.
    into: super::Reverse<Arc<str>, RouteId>,
    /// What is attached to each port of a Service; nothing is there for those without routes.
    attached: BTreeMap<Name, BTreeMap<u16, Attached>>,
    /// Routes whose status may have to say something else; none that are gone.
    due: BTreeSet<RouteId>,
}

impl Routes {
    pub(super) fn keys(&self) -> impl Iterator<Item = &RouteId> {
        self.routes.keys()
    }

    pub(super) fn grants(&self) -> impl Iterator<Item = &Name> {
        self.grants.keys()
    }

    pub(super) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// What is attached to a port.
    pub(super) fn at(&self, service: &Name, port: u16) -> Option<&Attached> {
        self.attached.get(service)?.get(&port)
    }

    /// The Services whose routes refer to one.
    pub(super) fn referring<'a>(&'a self, service: &'a Name) -> impl Iterator<Item = Name> + 'a {
        self.to.of(service).flat_map(move |id| self.parents(id))
    }

    fn parents(&self, id: &RouteId) -> impl Iterator<Item = Name> + '_ {
        self.routes.get(id).into_iter().flat_map(Parsed::services)
    }

    fn replace(&mut self, id: &RouteId, new: Option<Parsed>, touched: &mut Touched) {
        let old = self.routes.remove(id);
        if let Some(old) = &old {
            old.services().for_each(|service| self.on.remove(&service, id));
            old.references().for_each(|to| {
                self.to.remove(&to.name, id);
                self.into.remove(&to.name.namespace, id);
            });
        }
        if let Some(new) = &new {
            new.services().for_each(|service| self.on.insert(service, id.clone()));
            for to in new.references() {
                self.to.insert(to.name.clone(), id.clone());
                if to.name.namespace != id.name.namespace {
                    self.into.insert(Arc::clone(&to.name.namespace), id.clone());
                }
            }
        }
        touched.routed.extend([&old, &new].into_iter().flatten().flat_map(Parsed::services));
        self.due.remove(id);
        if let Some(new) = new {
            self.due.insert(id.clone());
            self.routes.insert(id.clone(), new);
        }
    }
}

impl Index {
    pub(super) fn put_route(
        &mut self,
        object: &Arc<route::Route>,
        bad: &mut Vec<InvalidAnnotation>,
        touched: &mut Touched,
    ) {
        let id = RouteId { kind: object.kind(), name: object.meta.name.clone() };
        let old = self.routes.routes.get(&id);
        if old.is_none_or(|old| old.object != *object) {
            let new = Parsed::parse(object, old, bad);
            self.routes.replace(&id, Some(new), touched);
        }
    }

    pub(super) fn remove_route(&mut self, kind: Kind, name: Name, touched: &mut Touched) {
        self.routes.replace(&RouteId { kind, name }, None, touched);
    }

    pub(super) fn replace_grant(
        &mut self,
        name: &Name,
        new: Option<Arc<ReferenceGrant>>,
        touched: &mut Touched,
    ) {
        let old = match &new {
            Some(new) => self.routes.grants.insert(name.clone(), Arc::clone(new)),
            None => self.routes.grants.remove(name),
        };
        if old != new {
            let concerned = self.routes.into.of(&name.namespace);
            touched.routed.extend(concerned.flat_map(|id| self.routes.parents(id)));
        }
    }

    /// Whether a grant in the namespace of `to` lets a route refer to it.
    fn is_granted(&self, route: &Parsed, to: &Name) -> bool {
        let from = &route.object.meta.name.namespace;
        let kind = route.kind().as_str();
        in_namespace(&self.routes.grants, &to.namespace).any(|(_, grant)| {
            let of = |source: &route::GrantFrom| {
                source.group == route::GROUP && source.kind == kind && source.namespace == **from
            };
            let what = |target: &route::GrantTo| {
                let name = target.name.as_deref().filter(|name| !name.is_empty());
                target.group.is_empty()
                    && target.kind == "Service"
                    && name.is_none_or(|name| *name == *to.name)
            };
            grant.from.iter().any(of) && grant.to.iter().any(what)
        })
    }

    /// Computes what is attached to the Services whose routes may have changed, and notes where that
    /// has changed what is told, and to whom.
    pub(super) fn attach_routes(&mut self, touched: &mut Touched) {
        for name in std::mem::take(&mut touched.routed) {
            self.routes.due.extend(self.routes.on.of(&name).cloned());
            let old = self.routes.attached.remove(&name).unwrap_or_default();
            let new = self.attach(&name, &old);
            let ports = old.keys().chain(new.keys());
            for (old, new) in ports.map(|port| (old.get(port), new.get(port))) {
                let producer = |attached: Option<&Attached>| attached?.producer.clone();
                if producer(old) != producer(new) {
                    touched.services.insert(name.clone());
                }
                let consumers = |attached: Option<&Attached>| {
                    attached.map(|attached| attached.consumers.clone()).unwrap_or_default()
                };
                let (old, new) = (consumers(old), consumers(new));
                for namespace in old.keys().chain(new.keys()) {
                    if old.get(namespace) != new.get(namespace) {
                        touched.consumers.insert((name.clone(), Arc::clone(namespace)));
                    }
                }
            }
            if !new.is_empty() {
                self.routes.attached.insert(name, new);
            }
        }
    }
}

#[cfg(test)]
mod tests;
