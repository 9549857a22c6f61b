//! What the index reads of a Pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{self as core, Container, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use remora_core::names::{PROXY_CONTAINER, annotations, ports};

use super::object::{Meta, ZONE_LABEL, is_tcp, read_of_pods};

/// Where a gRPC probe asks, in HTTP's words (gRPC Health Checking Protocol).
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";

/// A `v1` Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its name and annotations.
    pub meta: Meta,
    /// Its addresses, sorted.
    pub ips: Vec<IpAddr>,
    /// The ServiceAccount it runs as.
    pub service_account: Arc<str>,
    /// Whether a proxy of ours answers for it.
    pub sidecar: bool,
    /// `Deployment/orders`; empty if unknown.
    pub owner: Arc<str>,
    /// Its node; empty if unknown.
    pub node: Arc<str>,
    /// The zone that its own label says; empty if it says none.
    pub zone: Arc<str>,
    /// It runs no more (phase Succeeded or Failed): its addresses may be another's by now.
    pub finished: bool,
    /// Its addresses are its node's.
    pub host_network: bool,
    /// It is being deleted.
    pub terminating: bool,
    /// When it was created, in Unix seconds.
    pub created: i64,
    /// Declared and probed TCP ports, by number.
    pub ports: Box<[PodPort]>,
}

/// A TCP port of a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPort {
    /// Its number.
    pub number: u16,
    /// Paths that the kubelet asks for, sorted.
    pub probe_paths: Box<[Box<str>]>,
}

impl Pod {
    /// A pod of a cluster. It has a sidecar where its containers have one: anyone who may create
    /// pods may write our annotation, which must neither promise mTLS nor keep plaintext away.
    #[must_use]
    pub fn running(object: &core::Pod) -> Self {
        let spec = object.spec.as_ref();
        let init = spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten());
        // An init container that ends is not there when a caller comes.
        let staying =
            init.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let proxied = spec
            .into_iter()
            .flat_map(|spec| &spec.containers)
            .chain(staying)
            .any(|container| container.name == PROXY_CONTAINER);
        let mut pod = Self::described(object);
        pod.sidecar &= proxied && !pod.host_network;
        pod
    }

    /// A pod of a manifest, of which whoever runs it says by annotation whether it has a sidecar.
    #[must_use]
    pub fn described(object: &core::Pod) -> Self {
        let (no_spec, no_status) = (core::PodSpec::default(), core::PodStatus::default());
        let spec = object.spec.as_ref().unwrap_or(&no_spec);
        let status = object.status.as_ref().unwrap_or(&no_status);
        let meta = &object.metadata;
        let addresses = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
        let mut ips: Vec<IpAddr> =
            addresses.chain(status.pod_ip.as_deref()).filter_map(|ip| ip.parse().ok()).collect();
        ips.sort_unstable();
        ips.dedup();
        let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty());
        let owner = meta.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        let zone = meta.labels.as_ref().and_then(|labels| labels.get(ZONE_LABEL));
        Self {
            meta: Meta::of(meta, read_of_pods),
            ips,
            service_account: account.unwrap_or("default").into(),
            sidecar: meta
                .annotations
                .as_ref()
                .is_some_and(|all| all.contains_key(annotations::INJECTED)),
            owner: owner.map(|o| format!("{}/{}", o.kind, o.name)).unwrap_or_default().into(),
            node: spec.node_name.as_deref().unwrap_or_default().into(),
            zone: zone.map_or("", String::as_str).into(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            host_network: spec.host_network == Some(true),
            terminating: meta.deletion_timestamp.is_some(),
            created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            ports: inbound_ports(spec),
        }
    }
}

/// What the application's containers listen on, and where the kubelet knocks. The proxy's own
/// container, and what the injector turned to the proxy's admin port, is not the application's.
fn inbound_ports(spec: &core::PodSpec) -> Box<[PodPort]> {
    let mut out: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    for container in containers.filter(|container| container.name != PROXY_CONTAINER) {
        for (_, port) in declared(container) {
            out.entry(port).or_default();
        }
        for (port, path) in knocked(container) {
            if let Some(number) = number_of(port, container) {
                out.entry(number).or_default().insert(path);
            }
        }
    }
    out.remove(&ports::PROXY_ADMIN);
    out.into_iter()
        .map(|(number, paths)| PodPort {
            number,
            probe_paths: paths.into_iter().map(Into::into).collect(),
        })
        .collect()
}

fn declared(container: &Container) -> impl Iterator<Item = (Option<&str>, u16)> {
    let tcp = container.ports.iter().flatten().filter(|port| is_tcp(port.protocol.as_deref()));
    tcp.filter_map(|port| Some((port.name.as_deref(), u16::try_from(port.container_port).ok()?)))
}

fn number_of(port: Port<'_>, container: &Container) -> Option<u16> {
    match port {
        Port::Number(number) => u16::try_from(number).ok().filter(|number| *number > 0),
        Port::Named(name) => {
            declared(container).find(|(known, _)| *known == Some(name)).map(|(_, port)| port)
        }
    }
}

#[derive(Clone, Copy)]
enum Port<'a> {
    Number(i32),
    Named(&'a str),
}

/// What the kubelet asks a container for over HTTP: probes, gRPC probes, lifecycle hooks. The path
/// counts, its query does not.
fn knocked(container: &Container) -> Vec<(Port<'_>, String)> {
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    let probes: Vec<&Probe> = probes.into_iter().flatten().collect();
    let hooks = container.lifecycle.iter().flat_map(|lifecycle| {
        let hooks = [&lifecycle.post_start, &lifecycle.pre_stop];
        hooks.into_iter().flatten().filter_map(|hook| hook.http_get.as_ref())
    });
    let http = probes.iter().filter_map(|probe| probe.http_get.as_ref()).chain(hooks);
    let grpc = probes.iter().filter_map(|probe| probe.grpc.as_ref());
    let http = http.map(|get| {
        let path = get.path.as_deref().unwrap_or_default();
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let port = match &get.port {
            IntOrString::Int(number) => Port::Number(*number),
            IntOrString::String(name) => Port::Named(name),
        };
        (port, format!("/{}", path.strip_prefix('/').unwrap_or(path)))
    });
    http.chain(grpc.map(|grpc| (Port::Number(grpc.port), GRPC_HEALTH.to_owned()))).collect()
}
