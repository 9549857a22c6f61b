//! From a target to its answer.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use remora_core::{
    names::DEFAULT_OPAQUE_PORTS,
    settings::{self, PortSet},
};

use tokio::time::Instant;

use super::{
    Index, Name,
    answer::{Answer, Caller, Endpoint, Head, Inbound, InboundPort, PodPort, Snapshot, Target},
    model::{Pod, Service},
    protocol::{self, Protocol},
    routes::rule::SharedRoutes,
    standing::{self, Condition, Standing},
    subscriptions::Interest,
};
use crate::source::{self, Distribution, ServiceKind, SliceEndpoint};

/// Most ports of a pod's opaque ranges that are spelt out for it.
const MAX_INBOUND_PORTS: usize = 1024;

/// What is told of a Service's port.
#[derive(Debug)]
pub(super) struct PortSnapshots {
    /// To all callers
    pub(super) producer: Arc<Snapshot>,
    /// but for those of namespaces with routes of their own for it. The same but for the routes.
    pub(super) consumers: BTreeMap<Arc<str>, Arc<Snapshot>>,
    /// Every address that its slices name, whether it is told or not, by address.
    pub(super) standings: Box<[Standing]>,
}

/// What the slices of a Service say of one port.
struct Listed {
    /// What can take traffic, by address.
    endpoints: Vec<Endpoint>,
    /// Whether a pod of theirs calls the port opaque.
    opaque: bool,
    /// All that are named.
    conditions: BTreeMap<SocketAddr, Condition>,
}

impl PortSnapshots {
    fn of(&self, namespace: &str) -> &Arc<Snapshot> {
        self.consumers.get(namespace).unwrap_or(&self.producer)
    }

    /// Whether the other is the same; what is equal is shared from one computation to the next.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.producer, &other.producer)
            && self.consumers.len() == other.consumers.len()
            && self
                .consumers
                .iter()
                .zip(&other.consumers)
                .all(|((a, old), (b, new))| a == b && Arc::ptr_eq(old, new))
    }
}

impl Index {
    /// What a target is for a caller.
    #[must_use]
    pub fn resolve(&self, target: &Target, caller: &Caller) -> Answer {
        let answer = match target {
            Target::Address(address) => self.at_address(*address, caller),
            Target::Authority(host, port) => match self.service_name(host, caller) {
                Some(name) => self.of_service(&name, *port, caller),
                None => Answer::NotOurs,
            },
            Target::Inbound => Answer::Inbound(Arc::new(self.inbound(caller))),
        };
        match answer {
            Answer::NotOurs => self.outside(target, caller),
            answer => answer,
        }
    }

    /// What a target's answer depends on.
    pub(super) fn interest(&self, target: &Target, caller: &Caller) -> Interest {
        match target {
            Target::Address(address) => Interest::Address(address.ip().to_canonical()),
            Target::Authority(host, _) => {
                self.service_name(host, caller).map_or(Interest::None, Interest::Service)
            }
            Target::Inbound => Interest::Pod(Name::new(&caller.namespace, &caller.pod)),
        }
    }

    fn at_address(&self, address: SocketAddr, caller: &Caller) -> Answer {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if let Some(name) = self.services_at.of(&address.ip()).next() {
            return self.of_service(name, address.port(), caller);
        }
        let Some((name, pod)) = self.pod_at(address.ip()) else { return Answer::NotOurs };
        if self.is_ingress(caller)
            && let Some((service, port)) = self.service_behind(address)
        {
            return self.of_service(&service, port, caller);
        }
        let explicit = self.explicit_opaque(&name.namespace, pod.opaque.as_ref());
        Answer::Pod(Arc::new(PodPort {
            protocol: protocol::decide(address.port(), explicit, None),
            endpoint: self.pod_endpoint(address, name, pod),
        }))
    }

    fn of_service(&self, name: &Name, port: u16, caller: &Caller) -> Answer {
        let Some(service) = self.services.get(name) else { return Answer::NotOurs };
        if service.object.kind != ServiceKind::Balanced {
            return Answer::NotOurs;
        }
        let port_snapshots = self.snapshots.get(name).and_then(|ports| ports.get(&port));
        match port_snapshots.map(|snapshots| snapshots.of(&caller.namespace)) {
            Some(snapshot) if snapshot.head.node_local && !caller.node.is_empty() => {
                let local = |endpoint: &&Arc<Endpoint>| *endpoint.node == *caller.node;
                Answer::Service(Arc::new(Snapshot {
                    head: Arc::clone(&snapshot.head),
                    endpoints: snapshot.endpoints.iter().filter(local).cloned().collect(),
                }))
            }
            Some(snapshot) => Answer::Service(Arc::clone(snapshot)),
            None => {
                let (namespace, name) = (&name.namespace, &name.name);
                let has = service.port_list();
                let message =
                    format!("service {namespace}/{name} has no port {port}; it has {has}");
                Answer::Refused(message.into())
            }
        }
    }

    /// `name`, `name.ns`, `name.ns.svc` and `name.ns.svc.<cluster domain>`.
    fn service_name(&self, host: &str, caller: &Caller) -> Option<Name> {
        let suffix =
            host.strip_suffix(&self.cluster_domain).and_then(|rest| rest.strip_suffix('.'));
        // `orders.cluster.local` is no Service's name, nor is it one of namespace `cluster`.
        let host = match suffix {
            Some(rest) => rest.strip_suffix(".svc")?,
            None => host.strip_suffix(".svc").unwrap_or(host),
        };
        match host.split('.').collect::<Vec<_>>()[..] {
            [name] if suffix.is_none() && !name.is_empty() => {
                Some(Name::new(&caller.namespace, name))
            }
            [name, namespace] => Some(Name::new(namespace, name)),
            _ => None,
        }
    }

    /// The pod that has an address. Of several (an address that is being handed on), the one that
    /// stays, then the newest.
    fn pod_at(&self, ip: IpAddr) -> Option<(&Name, &Pod)> {
        self.pods_at
            .of(&ip)
            .filter_map(|name| Some((name, self.pods.get(name)?)))
            .filter(|(_, pod)| pod.addressable())
            .min_by_key(|(name, pod)| (pod.object.terminating, Reverse(pod.object.created), *name))
    }

    fn explicit_opaque<'a>(
        &'a self,
        namespace: &str,
        own: Option<&'a PortSet>,
    ) -> Option<&'a PortSet> {
        let on_namespace = self.namespaces.get(namespace).and_then(|n| n.opaque.as_ref());
        settings::in_force(own, on_namespace)
    }

    /// All ports of a Service. What equals its predecessor is shared with it; what does not is so
    /// since `now`.
    pub(super) fn compute(
        &self,
        name: &Name,
        service: &Service,
        old: &BTreeMap<u16, PortSnapshots>,
        now: Option<Instant>,
    ) -> BTreeMap<u16, PortSnapshots> {
        let explicit = self.explicit_opaque(&name.namespace, service.opaque.as_ref());
        let snapshot = |(port, declared): (&u16, &super::model::ServicePort)| {
            let Listed { mut endpoints, opaque, conditions } = self.endpoints(name, &declared.name);
            let hinted = hinted(&mut endpoints);
            let protocol = match protocol::decide(*port, explicit, declared.app_protocol) {
                Protocol::Detect if opaque => Protocol::Opaque,
                protocol => protocol,
            };
            let attached = self.routes.at(name, *port);
            let head = Head {
                service: name.clone(),
                port: *port,
                port_name: declared.name.clone(),
                protocol,
                policy: service.policy.clone(),
                node_local: service.object.node_local,
                distribution: match service.object.distribution {
                    Distribution::Any if hinted => Distribution::SameZone,
                    wished => wished,
                },
                routes: attached.and_then(|attached| attached.producer.clone()),
            };
            let old = old.get(port);
            let producer = shared(head, endpoints, old.map(|old| &old.producer));
            let consumers = attached.into_iter().flat_map(|attached| &attached.consumers);
            let consumers = consumers.map(|(namespace, routes)| {
                let old = old.and_then(|old| old.consumers.get(namespace));
                (Arc::clone(namespace), variant(&producer, routes, old))
            });
            let consumers = consumers.collect();
            let before = old.map(|old| (&*old.standings, &*old.producer));
            let standings = standing::follow(conditions, &producer, before, now);
            (*port, PortSnapshots { consumers, producer, standings })
        };
        service.ports.iter().map(snapshot).collect()
    }

    /// What can take traffic for a port, by address: all that are ready; where none is, those that
    /// still serve while they terminate. And whether one of their pods calls the port opaque.
    fn endpoints(&self, service: &Name, port_name: &str) -> Listed {
        let mut conditions: BTreeMap<SocketAddr, Condition> = BTreeMap::new();
        let mut ready: BTreeMap<SocketAddr, (Endpoint, bool)> = BTreeMap::new();
        let mut leaving: BTreeMap<SocketAddr, (Endpoint, bool)> = BTreeMap::new();
        for slice in self.slices_of.of(service).filter_map(|slice| self.slices.get(slice)) {
            let ports = slice.ports.iter().filter(|(name, _)| **name == *port_name);
            for (_, port) in ports {
                for entry in &*slice.endpoints {
                    let mut condition = if entry.ready {
                        Condition::Ready
                    } else if entry.serving && entry.terminating {
                        Condition::Terminating
                    } else {
                        Condition::NotReady
                    };
                    let list = match condition {
                        Condition::Ready => Some(&mut ready),
                        Condition::Terminating => Some(&mut leaving),
                        _ => None,
                    };
                    if let Some(list) = list {
                        match self.endpoint(entry, *port) {
                            Some((endpoint, opaque)) => {
                                list.entry(endpoint.address).or_insert((endpoint, opaque));
                            }
                            None => condition = Condition::PodUnknown,
                        }
                    }
                    let address = SocketAddr::new(entry.ip, *port);
                    let best = conditions.entry(address).or_insert(condition);
                    *best = condition.min(*best);
                }
            }
        }
        let chosen = if ready.is_empty() { leaving } else { ready };
        let opaque = chosen.values().any(|(_, opaque)| *opaque);
        let endpoints = chosen.into_values().map(|(endpoint, _)| endpoint).collect();
        Listed { endpoints, opaque, conditions }
    }

    /// One entry of a slice; `None` where its pod is not known (yet), has ended or has another
    /// address by now: without the pod its identity is not known, and dialling in plaintext would be a downgrade.
    fn endpoint(&self, entry: &SliceEndpoint, port: u16) -> Option<(Endpoint, bool)> {
        let ip = entry.ip;
        let address = SocketAddr::new(ip, port);
        let pod = match &entry.pod {
            Some(name) => {
                let pod = self.pods.get(name)?;
                let ips = &pod.object.ips;
                if pod.object.finished || !ips.is_empty() && !ips.contains(&ip) {
                    return None;
                }
                Some((name, pod))
            }
            None => self.pod_at(ip),
        };
        let mut endpoint = match pod {
            Some((name, pod)) => self.pod_endpoint(address, name, pod),
            None => Endpoint {
                address,
                identity: None,
                pod: None,
                owner: "".into(),
                node: "".into(),
                zone: "".into(),
                for_zones: [].into(),
            },
        };
        endpoint.for_zones.clone_from(&entry.for_zones);
        if !entry.node.is_empty() {
            endpoint.node.clone_from(&entry.node);
        }
        if !entry.zone.is_empty() {
            endpoint.zone.clone_from(&entry.zone);
        }
        let explicit = pod.and_then(|(_, pod)| pod.opaque.as_ref());
        Some((endpoint, explicit.is_some_and(|set| set.contains(port))))
    }

    fn pod_endpoint(&self, address: SocketAddr, name: &Name, pod: &Pod) -> Endpoint {
        let namespace = self.namespaces.get(&name.namespace);
        Endpoint {
            address,
            identity: pod.identity_at(address.port(), namespace).cloned(),
            pod: Some(name.clone()),
            owner: Arc::clone(&pod.object.owner),
            node: Arc::clone(&pod.object.node),
            zone: Arc::clone(self.zone(&pod.object)),
            for_zones: [].into(),
        }
    }

    /// The zone a pod runs in: what its own label says, else its node's; empty if unknown.
    fn zone<'a>(&'a self, pod: &'a source::Pod) -> &'a Arc<str> {
        let of_node = || self.nodes.get(&pod.node).unwrap_or(&pod.zone);
        if pod.zone.is_empty() { of_node() } else { &pod.zone }
    }

    /// The zone a caller runs in: what it says itself, else its node's; empty if unknown.
    #[must_use]
    pub fn zone_of(&self, caller: &Caller) -> Arc<str> {
        if !caller.zone.is_empty() {
            return caller.zone.as_str().into();
        }
        if let Some(zone) = self.nodes.get(caller.node.as_str()) {
            return Arc::clone(zone);
        }
        let pod = self.pods.get(&Name::new(&caller.namespace, &caller.pod));
        pod.map_or_else(|| "".into(), |pod| Arc::clone(self.zone(&pod.object)))
    }

    fn inbound(&self, caller: &Caller) -> Inbound {
        let pod = self.pods.get(&Name::new(&caller.namespace, &caller.pod));
        let namespace = self.namespaces.get(caller.namespace.as_str());
        let default_policy =
            settings::in_force(pod.and_then(|pod| pod.inbound), namespace.and_then(|n| n.inbound))
                .unwrap_or_default();
        let own = pod.and_then(|pod| pod.opaque.as_ref());
        let explicit = self.explicit_opaque(&caller.namespace, own);
        let mut ports: BTreeSet<u16> = match explicit {
            Some(set) => set.ranges().cloned().flatten().take(MAX_INBOUND_PORTS).collect(),
            None => DEFAULT_OPAQUE_PORTS.into(),
        };
        let known = pod.map_or(&[][..], |pod| &pod.object.ports);
        ports.extend(known.iter().map(|port| port.number));
        let probes = |number| {
            let port = known.iter().find(|port| port.number == number);
            port.into_iter().flat_map(|port| port.probe_paths.iter().map(ToString::to_string))
        };
        let ports = ports.into_iter().map(|port| InboundPort {
            port,
            protocol: protocol::decide(port, explicit, None),
            probe_paths: probes(port).collect(),
        });
        Inbound { default_policy, ports: ports.collect() }
    }
}

/// Whether the hints of the endpoints count: where every one says for which zones it is, as for kube-proxy
/// (KEP-2433). Where one does not, what the others say is left out.
fn hinted(endpoints: &mut [Endpoint]) -> bool {
    let all = !endpoints.is_empty() && endpoints.iter().all(|one| !one.for_zones.is_empty());
    if !all {
        endpoints.iter_mut().for_each(|one| one.for_zones = [].into());
    }
    all
}

/// A snapshot with other routes; all else is shared.
fn variant(
    of: &Arc<Snapshot>,
    routes: &SharedRoutes,
    old: Option<&Arc<Snapshot>>,
) -> Arc<Snapshot> {
    let head = Head { routes: Some(routes.clone()), ..Head::clone(&of.head) };
    let same_head = old.filter(|old| *old.head == head);
    if let Some(old) = same_head
        && Arc::ptr_eq(&old.endpoints, &of.endpoints)
    {
        return Arc::clone(old);
    }
    let head = same_head.map_or_else(|| Arc::new(head), |old| Arc::clone(&old.head));
    Arc::new(Snapshot { head, endpoints: Arc::clone(&of.endpoints) })
}

/// Builds a snapshot of the parts of its predecessor that still hold, so that comparing two is
/// mostly comparing pointers.
fn shared(head: Head, endpoints: Vec<Endpoint>, old: Option<&Arc<Snapshot>>) -> Arc<Snapshot> {
    let Some(old) = old else {
        let endpoints = endpoints.into_iter().map(Arc::new).collect();
        return Arc::new(Snapshot { head: Arc::new(head), endpoints });
    };
    let endpoints: Vec<Arc<Endpoint>> = endpoints
        .into_iter()
        .map(|new| {
            let at = old.endpoints.binary_search_by_key(&new.address, |endpoint| endpoint.address);
            let known = at.ok().map(|at| &old.endpoints[at]).filter(|known| ***known == new);
            known.map_or_else(|| Arc::new(new), Arc::clone)
        })
        .collect();
    let same_head = *old.head == head;
    let same_endpoints = endpoints.len() == old.endpoints.len()
        && endpoints.iter().zip(&*old.endpoints).all(|(a, b)| Arc::ptr_eq(a, b));
    if same_head && same_endpoints {
        return Arc::clone(old);
    }
    Arc::new(Snapshot {
        head: if same_head { Arc::clone(&old.head) } else { Arc::new(head) },
        endpoints: if same_endpoints { Arc::clone(&old.endpoints) } else { endpoints.into() },
    })
}
