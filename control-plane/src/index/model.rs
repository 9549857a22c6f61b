//! Objects as the index keeps them: parsed, and no more than what answers are made of.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::{self as core, Probe},
        discovery::v1 as discovery,
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use remora_core::{
    names::{annotations, ports},
    settings::{self, DefaultPolicy, PortSet},
    spiffe::SpiffeId,
};

use super::{
    policy::{self, Policy, Warnings},
    protocol::AppProtocol,
};
use crate::source::manifest::endpoints::SERVICE_NAME_LABEL;

/// Namespace and name. Cloning shares it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl Name {
    /// From its parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub(super) fn of(meta: &ObjectMeta) -> Self {
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        Self::new(namespace, meta.name.as_deref().unwrap_or_default())
    }
}

/// What a Namespace says about the things in it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Namespace {
    /// See [`Pod::unproxied`].
    pub(super) unproxied: Option<PortSet>,
    pub(super) opaque: Option<PortSet>,
    pub(super) inbound: Option<DefaultPolicy>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Service {
    pub(super) cluster_ips: Vec<IpAddr>,
    pub(super) kind: ServiceKind,
    /// TCP ports, by number.
    pub(super) ports: BTreeMap<u16, ServicePort>,
    pub(super) opaque: Option<PortSet>,
    pub(super) policy: Policy,
    /// `internalTrafficPolicy: Local`.
    pub(super) node_local: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServiceKind {
    Balanced,
    Headless,
    External,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServicePort {
    pub(super) name: String,
    pub(super) app_protocol: Option<AppProtocol>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slice {
    pub(super) service: Name,
    /// TCP ports by port name; `None` is "all", which has no meaning here.
    pub(super) ports: Vec<(String, u16)>,
    pub(super) endpoints: Vec<SliceEndpoint>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct SliceEndpoint {
    pub(super) ips: Vec<IpAddr>,
    pub(super) ready: bool,
    pub(super) serving: bool,
    pub(super) terminating: bool,
    pub(super) pod: Option<Name>,
    pub(super) node: String,
    pub(super) zone: String,
    pub(super) for_zones: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pod {
    pub(super) ips: Vec<IpAddr>,
    /// The SPIFFE id, where the pod has a sidecar.
    pub(super) identity: Option<SpiffeId>,
    /// Ports whose inbound traffic does not pass the sidecar, where the pod says it itself.
    pub(super) unproxied: Option<PortSet>,
    pub(super) owner: String,
    pub(super) node: String,
    pub(super) zone: String,
    /// Whether the addresses are the pod's own and it still runs.
    pub(super) addressable: bool,
    pub(super) terminating: bool,
    pub(super) created: i64,
    pub(super) opaque: Option<PortSet>,
    pub(super) inbound: Option<DefaultPolicy>,
    /// Declared and probed TCP ports with the paths that are probed.
    pub(super) ports: BTreeMap<u16, BTreeSet<String>>,
}

impl Namespace {
    pub(super) fn parse(object: &core::Namespace, old: Option<&Self>, warn: &mut Warnings) -> Self {
        let mut read = Reader::new(&object.metadata, warn);
        Self {
            unproxied: read.unproxied(old.map(|old| &old.unproxied)),
            opaque: read.opaque(old.map(|old| &old.opaque)),
            inbound: read.inbound(old.map(|old| &old.inbound)),
        }
    }
}

impl Service {
    pub(super) fn parse(object: &core::Service, old: Option<&Self>, warn: &mut Warnings) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        let addresses = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let mut cluster_ips: Vec<IpAddr> = addresses.filter_map(|ip| ip.parse().ok()).collect();
        cluster_ips.sort_unstable();
        cluster_ips.dedup();
        let kind = if spec.type_.as_deref() == Some("ExternalName") {
            ServiceKind::External
        } else if spec.cluster_ip.as_deref() == Some("None") {
            ServiceKind::Headless
        } else {
            ServiceKind::Balanced
        };
        let tcp = |port: &&core::ServicePort| port.protocol.as_deref().unwrap_or("TCP") == "TCP";
        let ports = spec.ports.iter().flatten().filter(tcp).filter_map(|port| {
            let app_protocol = port.app_protocol.as_deref().map(AppProtocol::parse);
            let name = port.name.clone().unwrap_or_default();
            Some((u16::try_from(port.port).ok()?, ServicePort { name, app_protocol }))
        });
        let policy = Policy::parse(&object.metadata, old.map(|old| &old.policy), warn);
        Self {
            cluster_ips: if kind == ServiceKind::External { Vec::new() } else { cluster_ips },
            kind,
            ports: ports.collect(),
            opaque: Reader::new(&object.metadata, warn).opaque(old.map(|old| &old.opaque)),
            policy,
            node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        }
    }

    /// `80, 9090`, for messages.
    pub(super) fn port_list(&self) -> String {
        let ports: Vec<String> = self.ports.keys().map(ToString::to_string).collect();
        if ports.is_empty() { "none".to_owned() } else { ports.join(", ") }
    }
}

impl Slice {
    /// `None` for slices of no Service, and for host names.
    pub(super) fn parse(object: &discovery::EndpointSlice) -> Option<Self> {
        if object.address_type == "FQDN" {
            return None;
        }
        let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
        let service = object.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
        let tcp =
            |port: &&discovery::EndpointPort| port.protocol.as_deref().unwrap_or("TCP") == "TCP";
        let ports = object.ports.iter().flatten().filter(tcp).filter_map(|port| {
            let number = u16::try_from(port.port?).ok().filter(|n| *n > 0)?;
            Some((port.name.clone().unwrap_or_default(), number))
        });
        Some(Self {
            service: Name::new(namespace, service),
            ports: ports.collect(),
            endpoints: object
                .endpoints
                .iter()
                .map(|e| SliceEndpoint::parse(e, namespace))
                .collect(),
        })
    }
}

impl SliceEndpoint {
    fn parse(object: &discovery::Endpoint, namespace: &str) -> Self {
        let conditions = object.conditions.clone().unwrap_or_default();
        // EndpointSlice API: an unknown `ready` counts as true, an unknown `serving` as `ready`.
        let ready = conditions.ready.unwrap_or(true);
        let pod = object.target_ref.as_ref().filter(|r| r.kind.as_deref() == Some("Pod"));
        let hints = object.hints.as_ref().and_then(|hints| hints.for_zones.as_ref());
        Self {
            ips: object.addresses.iter().filter_map(|ip| ip.parse().ok()).collect(),
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
            pod: pod.and_then(|pod| {
                let namespace = pod.namespace.as_deref().unwrap_or(namespace);
                Some(Name::new(namespace, pod.name.as_deref()?))
            }),
            node: object.node_name.clone().unwrap_or_default(),
            zone: object.zone.clone().unwrap_or_default(),
            for_zones: hints.into_iter().flatten().map(|zone| zone.name.clone()).collect(),
        }
    }
}

impl Pod {
    pub(super) fn parse(
        object: &core::Pod,
        trust_domain: &str,
        old: Option<&Self>,
        warn: &mut Warnings,
    ) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        let status = object.status.clone().unwrap_or_default();
        let meta = &object.metadata;
        let mut ips: Vec<IpAddr> = status
            .pod_ips
            .iter()
            .flatten()
            .map(|ip| ip.ip.as_str())
            .chain(status.pod_ip.as_deref())
            .filter_map(|ip| ip.parse().ok())
            .collect();
        ips.sort_unstable();
        ips.dedup();
        let injected =
            meta.annotations.as_ref().is_some_and(|a| a.contains_key(annotations::INJECTED));
        let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty());
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let mut read = Reader::new(meta, warn);
        Self {
            ips,
            identity: injected
                .then(|| SpiffeId::new(trust_domain, namespace, account.unwrap_or("default")).ok())
                .flatten(),
            unproxied: read.unproxied(old.map(|old| &old.unproxied)),
            owner: meta
                .owner_references
                .iter()
                .flatten()
                .find(|owner| owner.controller == Some(true))
                .map(|owner| format!("{}/{}", owner.kind, owner.name))
                .unwrap_or_default(),
            zone: meta
                .labels
                .as_ref()
                .and_then(|labels| labels.get("topology.kubernetes.io/zone").cloned())
                .unwrap_or_default(),
            addressable: !finished && spec.host_network != Some(true),
            terminating: meta.deletion_timestamp.is_some(),
            created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            opaque: read.opaque(old.map(|old| &old.opaque)),
            inbound: read.inbound(old.map(|old| &old.inbound)),
            ports: inbound_ports(&spec),
            node: spec.node_name.unwrap_or_default(),
        }
    }

    /// The identity that a peer must prove who is dialled at a port of this pod.
    pub(super) fn identity_at(
        &self,
        port: u16,
        namespace: Option<&Namespace>,
    ) -> Option<&SpiffeId> {
        let on_namespace = namespace.and_then(|namespace| namespace.unproxied.as_ref());
        let unproxied = settings::in_force(self.unproxied.as_ref(), on_namespace);
        let bypassed = unproxied.is_some_and(|set| set.contains(port));
        self.identity.as_ref().filter(|_| port != ports::PROXY_ADMIN && !bypassed)
    }
}

fn inbound_ports(spec: &core::PodSpec) -> BTreeMap<u16, BTreeSet<String>> {
    let mut out: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let declared: Vec<(Option<&str>, u16)> = container
            .ports
            .iter()
            .flatten()
            .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
            .filter_map(|port| {
                Some((port.name.as_deref(), u16::try_from(port.container_port).ok()?))
            })
            .collect();
        for (_, port) in &declared {
            out.entry(*port).or_default();
        }
        let probes =
            [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
        for http in probes.into_iter().flatten().filter_map(|probe: &Probe| probe.http_get.as_ref())
        {
            let port = match &http.port {
                IntOrString::Int(number) => u16::try_from(*number).ok(),
                IntOrString::String(name) => {
                    declared.iter().find(|(n, _)| *n == Some(name)).map(|(_, port)| *port)
                }
            };
            if let Some(port) = port {
                // What is probed is the path; the query does not matter.
                let path = http.path.as_deref().unwrap_or("/");
                let path = path.split(['?', '#']).next().unwrap_or("/");
                out.entry(port).or_default().insert(path.to_owned());
            }
        }
    }
    out
}

/// Reads configuration annotations; a bad one is a warning, and what held before holds on.
struct Reader<'a> {
    meta: &'a ObjectMeta,
    warn: &'a mut Warnings,
}

impl<'a> Reader<'a> {
    fn new(meta: &'a ObjectMeta, warn: &'a mut Warnings) -> Self {
        Self { meta, warn }
    }

    fn opaque(&mut self, old: Option<&Option<PortSet>>) -> Option<PortSet> {
        self.read(annotations::OPAQUE_PORTS, old)
    }

    fn inbound(&mut self, old: Option<&Option<DefaultPolicy>>) -> Option<DefaultPolicy> {
        self.read(annotations::DEFAULT_INBOUND_POLICY, old)
    }

    fn unproxied(&mut self, old: Option<&Option<PortSet>>) -> Option<PortSet> {
        self.read(annotations::SKIP_INBOUND_PORTS, old)
    }

    fn read<T>(&mut self, key: &str, old: Option<&Option<T>>) -> Option<T>
    where
        T: std::str::FromStr<Err = String> + Clone,
    {
        let empty = BTreeMap::new();
        let map = self.meta.annotations.as_ref().unwrap_or(&empty);
        match settings::read(map, key, str::parse) {
            Ok(value) => value,
            Err(error) => {
                self.warn.push(policy::left(error));
                old.cloned().flatten()
            }
        }
    }
}
