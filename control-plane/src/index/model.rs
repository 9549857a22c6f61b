//! Objects as the index keeps them: with what their annotations mean.

use std::{collections::BTreeMap, sync::Arc};

use remora_core::{
    names::{annotations, ports},
    settings::{self, DefaultPolicy, Ingress, OutboundPolicy, PortSet},
    spiffe::SpiffeId,
};

use super::{
    policy::{self, Annotations, Policy, Warnings},
    protocol::AppProtocol,
};
use crate::source::{self, Meta};

/// What a Namespace says about the things in it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Namespace {
    pub(super) object: Arc<source::Namespace>,
    /// See [`Pod::unproxied`].
    pub(super) unproxied: Option<PortSet>,
    pub(super) opaque: Option<PortSet>,
    pub(super) inbound: Option<DefaultPolicy>,
    pub(super) dials: Dials,
}

/// What holds for connections that a pod opens, where something is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Dials {
    pub(super) policy: Option<OutboundPolicy>,
    pub(super) ingress: Option<Ingress>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Service {
    pub(super) object: Arc<source::Service>,
    /// TCP ports, by number.
    pub(super) ports: BTreeMap<u16, ServicePort>,
    pub(super) opaque: Option<PortSet>,
    pub(super) policy: Policy,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServicePort {
    pub(super) name: String,
    pub(super) app_protocol: Option<AppProtocol>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pod {
    pub(super) object: Arc<source::Pod>,
    /// The SPIFFE id, where the pod has a sidecar.
    pub(super) identity: Option<Arc<SpiffeId>>,
    /// Ports whose inbound traffic does not pass the sidecar, where the pod says it itself.
    pub(super) unproxied: Option<PortSet>,
    pub(super) opaque: Option<PortSet>,
    pub(super) inbound: Option<DefaultPolicy>,
    pub(super) dials: Dials,
}

impl Namespace {
    pub(super) fn parse(
        object: &Arc<source::Namespace>,
        old: Option<&Self>,
        warn: &mut Warnings,
    ) -> Self {
        let mut read = Reader::new(&object.meta, warn);
        Self {
            object: Arc::clone(object),
            unproxied: read.unproxied(old.map(|old| &old.unproxied)),
            opaque: read.opaque(old.map(|old| &old.opaque)),
            inbound: read.inbound(old.map(|old| &old.inbound)),
            dials: read.dials(old.map(|old| &old.dials)),
        }
    }
}

impl Service {
    pub(super) fn parse(
        object: &Arc<source::Service>,
        old: Option<&Self>,
        warn: &mut Warnings,
    ) -> Self {
        let ports = object.ports.iter().map(|port| {
            let app_protocol = port.app_protocol.as_deref().map(AppProtocol::parse);
            (port.number, ServicePort { name: port.name.clone(), app_protocol })
        });
        let map = object.meta.annotations.to_map();
        let policy = Policy::parse(&map, object.client_ip, old.map(|old| &old.policy), warn);
        Self {
            object: Arc::clone(object),
            ports: ports.collect(),
            opaque: Reader { map, warn }.opaque(old.map(|old| &old.opaque)),
            policy,
        }
    }

    /// `80, 9090`, for messages.
    pub(super) fn port_list(&self) -> String {
        let ports: Vec<String> = self.ports.keys().map(ToString::to_string).collect();
        if ports.is_empty() { "none".to_owned() } else { ports.join(", ") }
    }
}

impl Pod {
    pub(super) fn parse(
        object: &Arc<source::Pod>,
        trust_domain: &str,
        old: Option<&Self>,
        warn: &mut Warnings,
    ) -> Self {
        let meta = &object.meta;
        let namespace = &meta.name.namespace;
        let id = || SpiffeId::new(trust_domain, namespace, &object.service_account).ok();
        let mut read = Reader::new(meta, warn);
        Self {
            object: Arc::clone(object),
            identity: object.sidecar.then(id).flatten().map(Arc::new),
            unproxied: read.unproxied(old.map(|old| &old.unproxied)),
            opaque: read.opaque(old.map(|old| &old.opaque)),
            inbound: read.inbound(old.map(|old| &old.inbound)),
            dials: read.dials(old.map(|old| &old.dials)),
        }
    }

    /// Whether the addresses are the pod's own and it still runs.
    pub(super) fn addressable(&self) -> bool {
        !self.object.finished && !self.object.host_network
    }

    /// The identity that a peer must prove who is dialled at a port of this pod.
    pub(super) fn identity_at(
        &self,
        port: u16,
        namespace: Option<&Namespace>,
    ) -> Option<&Arc<SpiffeId>> {
        let on_namespace = namespace.and_then(|namespace| namespace.unproxied.as_ref());
        let unproxied = settings::in_force(self.unproxied.as_ref(), on_namespace);
        let bypassed = unproxied.is_some_and(|set| set.contains(port));
        self.identity.as_ref().filter(|_| port != ports::PROXY_ADMIN && !bypassed)
    }
}

/// Reads configuration annotations; a bad one is a warning, and what held before holds on.
struct Reader<'a> {
    map: Annotations,
    warn: &'a mut Warnings,
}

impl<'a> Reader<'a> {
    fn new(meta: &Meta, warn: &'a mut Warnings) -> Self {
        Self { map: meta.annotations.to_map(), warn }
    }

    fn opaque(&mut self, old: Option<&Option<PortSet>>) -> Option<PortSet> {
        self.read(annotations::OPAQUE_PORTS, old)
    }

    fn inbound(&mut self, old: Option<&Option<DefaultPolicy>>) -> Option<DefaultPolicy> {
        self.read(annotations::DEFAULT_INBOUND_POLICY, old)
    }

    fn dials(&mut self, old: Option<&Dials>) -> Dials {
        let policy = old.map(|old| &old.policy);
        Dials {
            policy: self.read(annotations::DEFAULT_OUTBOUND_POLICY, policy),
            ingress: self.read(annotations::INGRESS, old.map(|old| &old.ingress)),
        }
    }

    fn unproxied(&mut self, old: Option<&Option<PortSet>>) -> Option<PortSet> {
        self.read(annotations::SKIP_INBOUND_PORTS, old)
    }

    fn read<T>(&mut self, key: &str, old: Option<&Option<T>>) -> Option<T>
    where
        T: std::str::FromStr<Err = String> + Clone,
    {
        match settings::read(&self.map, key, str::parse) {
            Ok(value) => value,
            Err(error) => {
                self.warn.push(policy::left(error));
                old.cloned().flatten()
            }
        }
    }
}
