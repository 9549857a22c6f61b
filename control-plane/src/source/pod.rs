//! What the index reads of a Pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{self as core, Container, Probe},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use remora_core::names::{PROXY_CONTAINER, annotations, ports};

use crate::interned::Interned;

use super::object::{Meta, ZONE_LABEL, is_tcp, read_of_pods};

/// Where a gRPC probe asks, in HTTP's words (gRPC Health Checking Protocol).
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";

/// A `v1` Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its name and annotations.
    pub meta: Meta,
    /// Its addresses, sorted.
    pub ips: Box<[IpAddr]>,
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

    /// Shares what others have too.
    pub(super) fn intern(&mut self, strings: &mut Interned<str>) {
        self.meta.name.intern(strings);
        for text in [&mut self.service_account, &mut self.owner, &mut self.node, &mut self.zone] {
            strings.share(text);
        }
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
        let zone = meta.labels.as_ref().and_then(|labels| labels.get(ZONE_LABEL));
        Self {
            meta: Meta::of(meta, read_of_pods),
            ips: ips.into(),
            service_account: account.unwrap_or("default").into(),
            sidecar: meta
                .annotations
                .as_ref()
                .is_some_and(|all| all.contains_key(annotations::INJECTED)),
            owner: owner(meta).into(),
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

/// Who made the pod, in the words of whoever wrote it: a ReplicaSet is its Deployment's, which calls
/// it by its own name and the hash that is also on the pod.
fn owner(meta: &ObjectMeta) -> String {
    let owners = meta.owner_references.iter().flatten();
    let Some(owner) = owners.into_iter().find(|owner| owner.controller == Some(true)) else {
        return String::new();
    };
    let hash = meta.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    let deployment = hash
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    match deployment {
        Some(name) => format!("Deployment/{name}"),
        None => format!("{}/{}", owner.kind, owner.name),
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(annotations: Value, spec: Value) -> Pod {
        let object = json!({"metadata": {"name": "p", "annotations": annotations}, "spec": spec});
        Pod::running(&serde_json::from_value(object).unwrap())
    }

    /// Ports and paths in one line each.
    fn ports_of(containers: Value) -> Vec<String> {
        let pod = pod(json!({}), json!({"containers": containers}));
        pod.ports
            .iter()
            .map(|port| format!("{} {}", port.number, port.probe_paths.join(",")))
            .collect()
    }

    #[test]
    fn only_a_container_that_stays_makes_a_sidecar_and_only_with_the_annotation() {
        let ours = json!({"remora.io/proxy-version": "1"});
        let app = json!([{"name": "app"}]);
        let native = json!([{"name": "remora-proxy", "restartPolicy": "Always"}]);
        let has = |annotations: &Value, spec: Value| pod(annotations.clone(), spec).sidecar;
        assert!(has(&ours, json!({"containers": app, "initContainers": native})));
        assert!(has(&ours, json!({"containers": [{"name": "remora-proxy"}, {"name": "app"}]})));
        assert!(!has(&ours, json!({"containers": app})), "anyone may write an annotation");
        assert!(!has(&json!({}), json!({"containers": app, "initContainers": native})));
        let ends = json!([{"name": "remora-proxy"}]);
        assert!(!has(&ours, json!({"containers": app, "initContainers": ends})));
        let on_host = json!({"containers": app, "initContainers": native, "hostNetwork": true});
        assert!(!has(&ours, on_host));
    }

    #[test]
    fn what_the_kubelet_asks_over_http_is_open_whatever_asks() {
        let container = json!({
            "name": "app",
            "ports": [{"name": "web", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}],
            "livenessProbe": {"httpGet": {"path": "healthz?full=1", "port": "web"}},
            "readinessProbe": {"grpc": {"port": 9000}},
            "startupProbe": {"tcpSocket": {"port": 7000}},
            "lifecycle": {
                "postStart": {"httpGet": {"path": "/warm", "port": 8080}},
                "preStop": {"httpGet": {"port": 8081}},
            },
        });
        assert_eq!(
            ports_of(json!([container])),
            ["8080 /healthz,/warm", "8081 /", "9000 /grpc.health.v1.Health/Check"]
        );
    }

    #[test]
    fn probes_that_the_proxy_answers_and_the_proxys_own_ports_are_not_the_applications() {
        let probe = |path| json!({"httpGet": {"path": path, "port": 4191}});
        let containers = json!([
            {"name": "remora-proxy", "ports": [{"containerPort": 4143}], "readinessProbe": probe("/ready")},
            {"name": "app", "ports": [{"containerPort": 80}], "livenessProbe": probe("/probe/app/liveness")},
        ]);
        assert_eq!(ports_of(containers), ["80 "]);
    }

    #[test]
    fn a_pod_of_a_deployment_says_so_and_others_name_their_controller() {
        let owner = |kind: &str, name: &str, hash: &str| {
            let meta = json!({"labels": {"pod-template-hash": hash}, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "Other", "name": "x", "uid": ""},
                {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "", "controller": true}]});
            super::owner(&serde_json::from_value(meta).unwrap())
        };
        assert_eq!(owner("ReplicaSet", "cart-5f5f96b85", "5f5f96b85"), "Deployment/cart");
        assert_eq!(owner("ReplicaSet", "by-hand", "5f5f96b85"), "ReplicaSet/by-hand");
        assert_eq!(owner("StatefulSet", "db", "5f5f96b85"), "StatefulSet/db");
    }
}
