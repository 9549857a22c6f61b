//! Probes of the kubelet that do not get through.

use std::{collections::BTreeMap, str::FromStr, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use remora_core::{
    names::annotations::{INJECT, SKIP_INBOUND_PORTS},
    settings::{DefaultPolicy, Inject, PortSet, in_force, read},
};

use super::{Report, Rule, services::Workload};
use crate::index::{
    Index,
    answer::{Answer, Caller, Inbound, Target},
    protocol::Protocol,
};

pub(super) fn check(report: &mut Report<'_>) {
    let workloads = std::mem::take(&mut report.workloads);
    for workload in &workloads {
        let Some(spec) = &workload.pod.spec else { continue };
        for (i, container) in spec.containers.iter().enumerate() {
            let probes = [
                ("livenessProbe", &container.liveness_probe),
                ("readinessProbe", &container.readiness_probe),
                ("startupProbe", &container.startup_probe),
            ];
            for (name, probe) in probes {
                let field = format!("{}spec.containers[{i}].{name}", workload.at);
                if let Some(probe) = probe {
                    one(report, workload, container, probe, &field);
                }
            }
        }
    }
    report.workloads = workloads;
}

fn one(
    report: &mut Report<'_>,
    workload: &Workload,
    container: &Container,
    probe: &Probe,
    at: &str,
) {
    let http = probe.http_get.as_ref();
    let tcp = probe.tcp_socket.as_ref();
    let named = http.map(|get| &get.port).or(tcp.map(|tcp| &tcp.port));
    if let Some(IntOrString::String(name)) = named
        && number(container, name).is_none()
    {
        let problem = format!(
            "{name:?} is the name of no port of container {}, so that the probe always fails",
            container.name
        );
        let kind = if http.is_some() { "httpGet" } else { "tcpSocket" };
        let mend = "correct it, or name the container's port";
        return report.add(
            Rule::ProbePort,
            &workload.object,
            format!("{at}.{kind}.port"),
            problem,
            mend,
        );
    }
    // The proxy itself carries out those of TCP and HTTPS.
    let plain = |scheme: Option<&str>| scheme.is_none_or(|scheme| scheme != "HTTPS");
    let port = match (http, &probe.grpc) {
        (Some(get), _) if plain(get.scheme.as_deref()) && get.host.is_none() => match &get.port {
            IntOrString::Int(port) => Some(*port),
            IntOrString::String(name) => number(container, name),
        },
        (None, Some(grpc)) => Some(grpc.port),
        _ => None,
    };
    let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { return };
    let index = report.index;
    let Some(inbound) = inbound(index, workload) else { return };
    let opaque = inbound.ports.iter().any(|p| p.port == port && p.protocol == Protocol::Opaque);
    let strict = matches!(
        inbound.default_policy,
        DefaultPolicy::AllAuthenticated | DefaultPolicy::ClusterAuthenticated | DefaultPolicy::Deny
    );
    if strict && opaque && is_meshed(report, workload, port) {
        let problem = format!(
            "port {port} is opaque, so that the proxy sees no path that it could let through, and \
             the policy {} keeps out the kubelet, which has no identity",
            inbound.default_policy
        );
        let mend = "take the port out of opaque-ports, probe by tcpSocket, or probe another port";
        report.add(Rule::ProbeDenied, &workload.object, at, problem, mend);
    }
}

fn number(container: &Container, name: &str) -> Option<i32> {
    let named = |port: &&ContainerPort| {
        port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == "TCP"
    };
    container.ports.iter().flatten().find(named).map(|port| port.container_port)
}

/// What the proxy of such a pod is told.
fn inbound(index: &Index, workload: &Workload) -> Option<Arc<Inbound>> {
    let pod = workload.pod.metadata.name.clone().unwrap_or_default();
    let namespace = workload.object.namespace.clone();
    let caller = Caller { namespace, pod, ..Caller::default() };
    match index.resolve(&Target::Inbound, &caller) {
        Answer::Inbound(inbound) => Some(inbound),
        _ => None,
    }
}

/// Whether a port of the pod passes a sidecar, as far as it and its Namespace say.
fn is_meshed(report: &Report<'_>, workload: &Workload, port: u16) -> bool {
    let mut namespaces = report.objects.namespaces();
    let namespace =
        namespaces.find(|one| one.metadata.name.as_deref() == Some(&workload.object.namespace));
    let pod = workload.pod.metadata.annotations.as_ref();
    let namespace = namespace.and_then(|one| one.metadata.annotations.as_ref());
    let inject: Option<Inject> = said(pod, namespace, INJECT);
    let skipped: Option<PortSet> = said(pod, namespace, SKIP_INBOUND_PORTS);
    inject == Some(Inject::Enabled) && skipped.is_none_or(|set| !set.contains(port))
}

fn said<T: FromStr<Err = String>>(
    pod: Option<&BTreeMap<String, String>>,
    namespace: Option<&BTreeMap<String, String>>,
    key: &str,
) -> Option<T> {
    let of = |all: Option<&BTreeMap<String, String>>| read(all?, key, str::parse::<T>).ok()?;
    in_force(of(pod), of(namespace))
}
