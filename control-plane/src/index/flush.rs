//! The end of a batch: computes what it changed, and finds who asked for that.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use tokio::time::Instant;

use super::{Index, Name, SubscriberId, Warning, resolve::PortSnapshots};

/// What a batch of events did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Subscriptions whose answer may have changed.
    pub touched: HashSet<SubscriberId>,
    /// What could not be used.
    pub warnings: Vec<Warning>,
    /// Objects applied or deleted.
    pub objects: usize,
    /// Whether [`Index::take_routes_due`] has something.
    pub routes_due: bool,
}

/// What a batch has touched so far.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Services to compute anew. Most of what can change them changes nothing that is told: a pod
    /// that ends has left its Services before.
    pub(super) services: HashSet<Name>,
    /// Services that are another object now, or that came or went.
    pub(super) redefined: HashSet<Name>,
    pub(super) pods: HashSet<Name>,
    pub(super) addresses: HashSet<IpAddr>,
    /// Services of which what is attached to them may have changed.
    pub(super) routed: BTreeSet<Name>,
    /// Services of which only what callers of a namespace are told has changed.
    pub(super) consumers: HashSet<(Name, Arc<str>)>,
    /// Pods for whose connections something else holds now.
    pub(super) callers: HashSet<Name>,
    /// The same of whole namespaces.
    pub(super) callers_in: HashSet<Arc<str>>,
    pub(super) warnings: Vec<Warning>,
    pub(super) objects: usize,
}

type Ports = BTreeMap<u16, PortSnapshots>;

impl Index {
    /// Computes what the batch changed and finds who asked for it.
    pub(super) fn flush(&mut self, mut touched: Touched, now: Option<Instant>) -> Applied {
        self.attach_routes(&mut touched);
        let consumed = touched.consumers.iter().map(|(name, _)| name);
        let due: HashSet<&Name> = touched.services.iter().chain(consumed).collect();
        let mut changed: HashSet<Name> = HashSet::new();
        // Addresses of endpoints: an ingress controller that dialled one may mean the Service. Of those
        // too whose endpoints are as before: another slice may name one of them by now, and whose
        // address it is hangs on that.
        let mut behind: HashSet<IpAddr> = HashSet::new();
        for name in due {
            let (old, new) = self.recompute(name, now);
            let new = new.unwrap_or(const { &BTreeMap::new() });
            behind.extend(endpoints(&old).chain(endpoints(new)));
            if touched.redefined.contains(name) || !same(&old, new) {
                changed.insert(name.clone());
            }
        }
        touched.services.retain(|name| changed.contains(name));
        for service in touched.services.iter().filter_map(|name| self.services.get(name)) {
            touched.addresses.extend(&service.object.cluster_ips);
        }
        for name in &touched.pods {
            touched.addresses.extend(self.pods.get(name).iter().flat_map(|pod| &pod.object.ips));
        }
        Applied {
            touched: self.concerned(&touched, &behind),
            warnings: touched.warnings,
            objects: touched.objects,
            routes_due: self.routes.is_due(),
        }
    }

    /// A Service's ports as they were and, where there is such a Service, as they are now.
    fn recompute(&mut self, name: &Name, now: Option<Instant>) -> (Ports, Option<&Ports>) {
        let old = self.snapshots.remove(name).unwrap_or_default();
        let new = self.services.get(name).map(|s| self.compute(name, s, &old, now));
        self.gone.note(name, &old, new.as_ref(), now);
        let Some(new) = new else { return (old, None) };
        (old, Some(self.snapshots.entry(name.clone()).or_insert(new)))
    }

    /// Who asked for what was touched.
    fn concerned(&self, touched: &Touched, behind: &HashSet<IpAddr>) -> HashSet<SubscriberId> {
        let mut subscribers = HashSet::new();
        for (name, namespace) in &touched.consumers {
            subscribers.extend(self.subscribers_of(name, namespace));
        }
        for name in &touched.services {
            subscribers.extend(self.subscriptions.of_service(name));
        }
        for name in &touched.pods {
            subscribers.extend(self.subscriptions.of_pod(name));
        }
        for ip in &touched.addresses {
            subscribers.extend(self.subscriptions.of_address(*ip));
        }
        for ip in behind {
            let of_ingress = |id: &SubscriberId| {
                self.subscriptions.target(*id).is_some_and(|(_, caller)| self.is_ingress(caller))
            };
            subscribers.extend(self.subscriptions.of_address(*ip).filter(of_ingress));
        }
        for pod in &touched.callers {
            subscribers.extend(self.subscriptions.of_caller(pod));
        }
        for namespace in &touched.callers_in {
            subscribers.extend(self.subscriptions.of_callers_in(namespace));
        }
        subscribers
    }

    /// Who of a namespace asked for a Service, by name or address.
    fn subscribers_of<'a>(
        &'a self,
        service: &'a Name,
        namespace: &'a str,
    ) -> impl Iterator<Item = SubscriberId> + 'a {
        let known = self.services.get(service);
        let addresses = known.into_iter().flat_map(|service| &service.object.cluster_ips);
        let by_address = addresses.flat_map(|ip| self.subscriptions.of_address(*ip));
        self.subscriptions.of_service(service).chain(by_address).filter(move |id| {
            let caller = self.subscriptions.target(*id).map(|(_, caller)| caller);
            caller.is_some_and(|caller| caller.namespace == *namespace)
        })
    }
}

/// Whether two computations came to the same: what is the same is shared by them.
fn same(old: &Ports, new: &Ports) -> bool {
    old.len() == new.len()
        && old.iter().zip(new).all(|((a, old), (b, new))| a == b && old.is_same(new))
}

fn endpoints(ports: &Ports) -> impl Iterator<Item = IpAddr> {
    let all = ports.values().flat_map(|port| &*port.producer.endpoints);
    all.map(|endpoint| endpoint.address.ip())
}
