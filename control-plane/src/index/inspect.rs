//! What people are shown of the index beside answers.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use remora_core::spiffe::SpiffeId;

use super::{
    Index, Name, SubscriberId,
    answer::{Caller, Snapshot, Target},
    routes::rule::SharedRoutes,
};

/// A pod with a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    /// The pod.
    pub pod: Name,
    /// `Deployment/orders`; empty if unknown.
    pub owner: Arc<str>,
    /// What it proves to be.
    pub identity: Arc<SpiffeId>,
    /// Its first address.
    pub ip: IpAddr,
}

/// The routes of a Service's port for one group of callers.
#[derive(Debug, Clone, PartialEq)]
pub struct PortRoutes {
    /// The port.
    pub port: u16,
    /// The namespace of the callers; `None`: all that have no routes of their own.
    pub consumers: Option<Arc<str>>,
    /// The routes.
    pub routes: SharedRoutes,
}

impl Index {
    /// All Services' ports.
    pub fn snapshots(&self) -> impl Iterator<Item = &Arc<Snapshot>> {
        self.snapshots.values().flat_map(BTreeMap::values).map(|port| &port.producer)
    }

    /// Pods with a sidecar that run and have an address, by name.
    pub fn sidecars(&self) -> impl Iterator<Item = Sidecar> {
        self.pods.iter().filter(|(_, pod)| !pod.object.finished).filter_map(|(name, pod)| {
            Some(Sidecar {
                pod: name.clone(),
                owner: Arc::clone(&pod.object.owner),
                identity: Arc::clone(pod.identity.as_ref()?),
                ip: *pod.object.ips.first()?,
            })
        })
    }

    /// The ports of a Service, by number; none of one that is not known.
    pub fn port_snapshots(&self, service: &Name) -> impl Iterator<Item = &Arc<Snapshot>> {
        self.snapshots.get(service).into_iter().flatten().map(|(_, port)| &port.producer)
    }

    /// The routes of a Service's ports: those for all callers, then those of each namespace.
    #[must_use]
    pub fn routes_of(&self, service: &Name) -> Vec<PortRoutes> {
        let ports = self.snapshots.get(service).into_iter().flatten();
        ports
            .flat_map(|(port, snapshots)| {
                let consumers = snapshots.consumers.iter();
                let consumers = consumers.map(|(namespace, told)| (Some(namespace), told));
                [(None, &snapshots.producer)].into_iter().chain(consumers).filter_map(
                    |(consumers, told)| {
                        let routes = told.head.routes.clone()?;
                        Some(PortRoutes { port: *port, consumers: consumers.cloned(), routes })
                    },
                )
            })
            .collect()
    }

    /// Who asked for a port of a Service, by its name or address.
    pub fn subscribers(
        &self,
        service: &Name,
        port: u16,
    ) -> impl Iterator<Item = (SubscriberId, &Caller)> {
        let known = self.services.get(service);
        let addresses = known.into_iter().flat_map(|service| &service.object.cluster_ips);
        let by_address = addresses.flat_map(|ip| self.subscriptions.of_address(*ip));
        self.subscriptions.of_service(service).chain(by_address).filter_map(move |id| {
            let (target, caller) = self.subscriptions.target(id)?;
            let asked = match target {
                Target::Address(address) => address.port(),
                Target::Authority(_, port) => *port,
                Target::Inbound => return None,
            };
            (asked == port).then_some((id, caller))
        })
    }
}
