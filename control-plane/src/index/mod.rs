//! The index: objects in, answers out. It knows neither where objects come from nor how answers
//! travel, and reads no clock.
//!
//! A batch of events is applied as one change: answers are computed after its last event, so what
//! is briefly missing within a batch (a slice replaced by another) is never seen missing. What a
//! batch costs is proportional to the Services and addresses it touches and to the subscriptions
//! that asked for those, and only those subscriptions hear of it whose answer it may have changed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::core::v1 as core;
use remora_core::{settings::InvalidAnnotation, spiffe::SpiffeId};

use crate::{
    interned::Interned,
    source::{self, EndpointSlice, Event, Key, Kind, Object},
};

pub mod answer;
mod dials;
mod flush;
mod model;
pub mod policy;
pub mod protocol;
mod resolve;
mod reverse;
pub mod routes;
mod subscriptions;

pub use crate::source::Name;
use answer::{Answer, Caller, Snapshot, Target};
pub use flush::Applied;
use flush::Touched;
use model::{Dials, Namespace, Pod, Service};
use resolve::PortSnapshots;
use reverse::Reverse;
use routes::Routes;
pub use subscriptions::SubscriberId;
use subscriptions::Subscriptions;

/// See the module's documentation.
#[derive(Debug)]
pub struct Index {
    trust_domain: String,
    cluster_domain: String,
    /// The pods of a ServiceAccount have one identity.
    identities: Interned<SpiffeId>,
    namespaces: BTreeMap<Arc<str>, Namespace>,
    services: BTreeMap<Name, Service>,
    pods: BTreeMap<Name, Pod>,
    slices: HashMap<Name, Arc<EndpointSlice>>,
    /// Zones of the nodes; empty where a node has none.
    nodes: HashMap<Arc<str>, Arc<str>>,
    /// A Service's slices; a pod's or a bare address's slices; who has an address.
    slices_of: Reverse<Name, Name>,
    slices_naming: Reverse<Reference, Name>,
    services_at: Reverse<IpAddr, Name>,
    pods_at: Reverse<IpAddr, Name>,
    pods_on: Reverse<Arc<str>, Name>,
    routes: Routes,
    /// Every port of every Service, computed when something it depends on changed.
    snapshots: HashMap<Name, BTreeMap<u16, PortSnapshots>>,
    subscriptions: Subscriptions,
}

/// What a slice's endpoint refers to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Reference {
    Pod(Name),
    Address(IpAddr),
}

/// An annotation that could not be used, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {annotation}")]
pub struct Warning {
    /// The object.
    pub object: Key,
    /// The annotation, the mend, and what follows.
    pub annotation: InvalidAnnotation,
}

/// What of a Service's annotations cannot be used: what [`Index::apply`] says of it, for those who
/// show it elsewhere too.
#[must_use]
pub fn service_warnings(service: &Arc<core::Service>) -> Vec<Warning> {
    let mut bad = Vec::new();
    let service = Arc::new(source::Service::from(&**service));
    let _ = Service::parse(&service, None, &mut bad);
    warnings(&Object::Service(service), bad)
}

fn warnings(object: &Object, bad: Vec<InvalidAnnotation>) -> Vec<Warning> {
    bad.into_iter().map(|annotation| Warning { object: object.key(), annotation }).collect()
}

impl Index {
    /// An empty index for a trust domain and a DNS suffix (`cluster.local`).
    #[must_use]
    pub fn new(trust_domain: &str, cluster_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            cluster_domain: cluster_domain.trim_matches('.').to_ascii_lowercase(),
            identities: Interned::default(),
            namespaces: BTreeMap::new(),
            services: BTreeMap::new(),
            pods: BTreeMap::new(),
            slices: HashMap::new(),
            nodes: HashMap::new(),
            slices_of: Reverse::default(),
            slices_naming: Reverse::default(),
            services_at: Reverse::default(),
            pods_at: Reverse::default(),
            pods_on: Reverse::default(),
            routes: Routes::default(),
            snapshots: HashMap::new(),
            subscriptions: Subscriptions::default(),
        }
    }

    /// Applies a batch of events as one change.
    pub fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Applied {
        let mut touched = Touched::default();
        for event in events {
            match event {
                Event::Apply(object) => self.put(&object, &mut touched),
                Event::Delete(Key { kind, namespace, name }) => {
                    self.remove(kind, Name::new(&namespace, &name), &mut touched);
                }
                Event::Replace(kind, objects) => {
                    self.replace_all(self.known(|of| of == kind), &objects, &mut touched);
                }
                Event::Reset(objects) => {
                    self.replace_all(self.known(|_| true), &objects, &mut touched);
                }
            }
        }
        self.flush(touched)
    }

    /// Remembers a subscription; [`Applied::touched`] names it whenever its answer may have
    /// changed.
    pub fn subscribe(&mut self, id: SubscriberId, target: Target, caller: Arc<Caller>) {
        let interest = self.interest(&target, &caller);
        self.subscriptions.insert(id, target, caller, interest);
    }

    /// Forgets a subscription.
    pub fn unsubscribe(&mut self, id: SubscriberId) {
        self.subscriptions.remove(id);
    }

    /// The answer to a subscription now; `None` if there is none of that id.
    #[must_use]
    pub fn answer(&self, id: SubscriberId) -> Option<Answer> {
        let (target, caller) = self.subscriptions.target(id)?;
        Some(self.resolve(target, caller))
    }

    /// All Services' ports, for people to look at.
    pub fn snapshots(&self) -> impl Iterator<Item = &Arc<Snapshot>> {
        self.snapshots.values().flat_map(BTreeMap::values).map(|port| &port.producer)
    }

    /// What is known of the kinds that `wanted` names.
    fn known(&self, wanted: impl Fn(Kind) -> bool) -> Vec<(Kind, Name)> {
        let of = |kind| if wanted(kind) { usize::MAX } else { 0 };
        let named = |kind| move |name: &Name| (kind, name.clone());
        let bare = |kind| {
            move |name: &Arc<str>| (kind, Name { namespace: "".into(), name: Arc::clone(name) })
        };
        let namespaces = self.namespaces.keys().take(of(Kind::Namespace));
        let nodes = self.nodes.keys().take(of(Kind::Node));
        let services = self.services.keys().take(of(Kind::Service));
        let pods = self.pods.keys().take(of(Kind::Pod));
        let slices = self.slices.keys().take(of(Kind::EndpointSlice));
        let routes = self.routes.keys().filter(|id| wanted(id.kind));
        let routes = routes.map(|id| (id.kind, id.name.clone()));
        let grants = self.routes.grants().take(of(Kind::ReferenceGrant));
        let cluster = namespaces.map(bare(Kind::Namespace)).chain(nodes.map(bare(Kind::Node)));
        cluster
            .chain(services.map(named(Kind::Service)))
            .chain(pods.map(named(Kind::Pod)))
            .chain(slices.map(named(Kind::EndpointSlice)))
            .chain(routes)
            .chain(grants.map(named(Kind::ReferenceGrant)))
            .collect()
    }

    fn replace_all(&mut self, known: Vec<(Kind, Name)>, objects: &[Object], touched: &mut Touched) {
        let kept: HashSet<(Kind, &Name)> = objects.iter().map(|o| (o.kind(), o.name())).collect();
        for (kind, name) in known {
            if !kept.contains(&(kind, &name)) {
                self.remove(kind, name, touched);
            }
        }
        objects.iter().for_each(|object| self.put(object, touched));
    }

    /// An object that is the same as before is left alone, and what is wrong with it not told again:
    /// lists repeat what is known.
    fn put(&mut self, object: &Object, touched: &mut Touched) {
        let mut bad = Vec::new();
        match object {
            Object::Namespace(namespace) => self.put_namespace(namespace, &mut bad, touched),
            Object::Service(service) => self.put_service(service, &mut bad, touched),
            Object::Pod(pod) => self.put_pod(pod, &mut bad, touched),
            Object::EndpointSlice(slice) => {
                let belongs = !slice.service.is_empty();
                let name = slice.meta.name.clone();
                self.replace_slice(name, belongs.then(|| Arc::clone(slice)), touched);
            }
            Object::Node(node) => {
                self.replace_node(&node.name.name, Some(Arc::clone(&node.zone)), touched);
            }
            Object::Route(route) => self.put_route(route, &mut bad, touched),
            Object::ReferenceGrant(grant) => {
                self.replace_grant(&grant.meta.name, Some(Arc::clone(grant)), touched);
            }
        }
        touched.objects += 1;
        touched.warnings.extend(warnings(object, bad));
    }

    fn remove(&mut self, kind: Kind, name: Name, touched: &mut Touched) {
        touched.objects += 1;
        match kind {
            Kind::Namespace => {
                let old = self.namespaces.remove(&*name.name);
                self.touch_namespace(&name.name, touched);
                if old.is_some_and(|old| old.dials != Dials::default()) {
                    touched.callers_in.insert(name.name);
                }
            }
            Kind::Service => self.replace_service(name, None, touched),
            Kind::Pod => self.replace_pod(name, None, touched),
            Kind::EndpointSlice => self.replace_slice(name, None, touched),
            Kind::Node => self.replace_node(&name.name, None, touched),
            Kind::Deployment => {}
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                self.remove_route(kind, name, touched);
            }
            Kind::ReferenceGrant => self.replace_grant(&name, None, touched),
        }
    }

    fn put_namespace(
        &mut self,
        object: &Arc<source::Namespace>,
        bad: &mut Vec<InvalidAnnotation>,
        touched: &mut Touched,
    ) {
        let name = &object.meta.name.name;
        let old = self.namespaces.get(name);
        if old.is_none_or(|old| old.object != *object) {
            let new = Namespace::parse(object, old, bad);
            if old.map(|old| old.dials).unwrap_or_default() != new.dials {
                touched.callers_in.insert(Arc::clone(name));
            }
            self.namespaces.insert(Arc::clone(name), new);
            self.touch_namespace(name, touched);
        }
    }

    fn touch_namespace(&self, namespace: &str, touched: &mut Touched) {
        touched.services.extend(in_namespace(&self.services, namespace).map(|(n, _)| n.clone()));
        for (name, pod) in in_namespace(&self.pods, namespace) {
            touched.pods.insert(name.clone());
            touched.services.extend(self.services_naming(name, &pod.object.ips));
        }
    }

    fn put_service(
        &mut self,
        object: &Arc<source::Service>,
        bad: &mut Vec<InvalidAnnotation>,
        touched: &mut Touched,
    ) {
        let name = object.meta.name.clone();
        let old = self.services.get(&name);
        if old.is_none_or(|old| old.object != *object) {
            let new = Service::parse(object, old, bad);
            self.replace_service(name, Some(new), touched);
        }
    }

    fn replace_service(&mut self, name: Name, new: Option<Service>, touched: &mut Touched) {
        let old = self.services.remove(&name);
        for ip in old.iter().flat_map(|old| &old.object.cluster_ips) {
            self.services_at.remove(ip, &name);
        }
        for ip in new.iter().flat_map(|new| &new.object.cluster_ips) {
            self.services_at.insert(*ip, name.clone());
        }
        if old != new {
            let ips =
                [&old, &new].into_iter().flatten().flat_map(|service| &service.object.cluster_ips);
            touched.addresses.extend(ips);
            touched.routed.extend(self.routes.referring(&name));
            touched.routed.insert(name.clone());
            touched.services.insert(name.clone());
            touched.redefined.insert(name.clone());
        }
        if let Some(new) = new {
            self.services.insert(name, new);
        }
    }

    fn put_pod(
        &mut self,
        object: &Arc<source::Pod>,
        bad: &mut Vec<InvalidAnnotation>,
        touched: &mut Touched,
    ) {
        let name = object.meta.name.clone();
        let old = self.pods.get(&name);
        if old.is_none_or(|old| old.object != *object) {
            let mut new = Pod::parse(object, &self.trust_domain, old, bad);
            new.identity.iter_mut().for_each(|identity| self.identities.share(identity));
            self.replace_pod(name, Some(new), touched);
        }
    }

    fn replace_pod(&mut self, name: Name, new: Option<Pod>, touched: &mut Touched) {
        let old = self.pods.remove(&name);
        if let Some(Pod { object, .. }) = &old {
            object.ips.iter().for_each(|ip| self.pods_at.remove(ip, &name));
            self.pods_on.remove(&object.node, &name);
        }
        if let Some(Pod { object, .. }) = &new {
            object.ips.iter().for_each(|ip| self.pods_at.insert(*ip, name.clone()));
            if !object.node.is_empty() {
                self.pods_on.insert(Arc::clone(&object.node), name.clone());
            }
        }
        if old != new {
            let both = [&old, &new].into_iter().flatten();
            let ips: Vec<IpAddr> = both.flat_map(|pod| pod.object.ips.iter().copied()).collect();
            touched.services.extend(self.services_naming(&name, &ips));
            touched.addresses.extend(ips);
            touched.pods.insert(name.clone());
            let dials = |pod: &Option<Pod>| pod.as_ref().map(|pod| pod.dials).unwrap_or_default();
            if dials(&old) != dials(&new) {
                touched.callers.insert(name.clone());
            }
        }
        if let Some(new) = new {
            self.pods.insert(name, new);
        }
    }

    fn replace_node(&mut self, name: &Arc<str>, zone: Option<Arc<str>>, touched: &mut Touched) {
        let old = match &zone {
            Some(zone) => self.nodes.insert(Arc::clone(name), Arc::clone(zone)),
            None => self.nodes.remove(name),
        };
        if old.unwrap_or_default() == zone.unwrap_or_default() {
            return;
        }
        for name in self.pods_on.of(name) {
            if let Some(pod) = self.pods.get(name).filter(|pod| pod.object.zone.is_empty()) {
                touched.services.extend(self.services_naming(name, &pod.object.ips));
                touched.pods.insert(name.clone());
            }
        }
    }

    /// Services whose endpoints name a pod or one of its addresses, in whatever namespace.
    fn services_naming(&self, pod: &Name, ips: &[IpAddr]) -> HashSet<Name> {
        let bare = ips.iter().map(|ip| Reference::Address(*ip));
        bare.chain([Reference::Pod(pod.clone())])
            .flat_map(|reference| self.slices_naming.of(&reference).collect::<Vec<_>>())
            .filter_map(|slice| Some(service_of(self.slices.get(slice)?)))
            .collect()
    }

    fn replace_slice(
        &mut self,
        name: Name,
        new: Option<Arc<EndpointSlice>>,
        touched: &mut Touched,
    ) {
        let old = self.slices.remove(&name);
        if let Some(old) = &old {
            self.slices_of.remove(&service_of(old), &name);
            for reference in references(old) {
                self.slices_naming.remove(&reference, &name);
            }
        }
        if let Some(new) = &new {
            self.slices_of.insert(service_of(new), name.clone());
            for reference in references(new) {
                self.slices_naming.insert(reference, name.clone());
            }
        }
        if old != new {
            touched.services.extend([&old, &new].into_iter().flatten().map(|s| service_of(s)));
        }
        if let Some(new) = new {
            self.slices.insert(name, new);
        }
    }
}

fn service_of(slice: &EndpointSlice) -> Name {
    let namespace = Arc::clone(&slice.meta.name.namespace);
    Name { namespace, name: Arc::clone(&slice.service) }
}

fn references(slice: &EndpointSlice) -> impl Iterator<Item = Reference> + '_ {
    slice.endpoints.iter().map(|endpoint| match &endpoint.pod {
        Some(pod) => Reference::Pod(pod.clone()),
        None => Reference::Address(endpoint.ip),
    })
}

fn in_namespace<'a, T>(
    map: &'a BTreeMap<Name, T>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a Name, &'a T)> {
    map.range(Name::new(namespace, "")..).take_while(move |(name, _)| &*name.namespace == namespace)
}

#[cfg(test)]
mod kinds_tests;
#[cfg(test)]
mod order_tests;
#[cfg(test)]
mod tests;
