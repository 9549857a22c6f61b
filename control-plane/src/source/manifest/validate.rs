//! What the types cannot say: names, ports, addresses. One [`Finding`] per problem, with the path
//! of the field.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Pod, PodSpec, Probe, Service, ServiceSpec},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Object, expand::MAX_REPLICAS};
use crate::source::object::CLIENT_IP_TIMEOUTS;

mod routes;

/// A field that cannot be used: its path, what is wrong and the mend.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) field: String,
    pub(super) problem: String,
    pub(super) mend: String,
}

type Findings = Vec<Finding>;

/// Everything wrong with an object.
pub(super) fn check(object: &Object) -> Findings {
    let mut out = Vec::new();
    let meta = object.metadata();
    let name = meta.name.as_deref().unwrap_or_default();
    let is_label = matches!(object, Object::Namespace(_) | Object::Service(_));
    check_name(&mut out, "metadata.name", name, is_label);
    if let Some(namespace) = &meta.namespace {
        check_name(&mut out, "metadata.namespace", namespace, true);
    }
    match object {
        Object::Namespace(_) => {}
        Object::Service(service) => check_service(&mut out, service),
        Object::Pod(pod) => check_pod(&mut out, pod),
        Object::Deployment(deployment) => check_deployment(&mut out, deployment),
        Object::EndpointSlice(slice) => check_slice(&mut out, slice),
        Object::HttpRoute(route) => routes::check_http(&mut out, &route.spec),
        Object::GrpcRoute(route) => routes::check_grpc(&mut out, &route.spec),
        Object::TlsRoute(route) | Object::TcpRoute(route) => {
            routes::check_stream(&mut out, &route.spec);
        }
        Object::ReferenceGrant(grant) => routes::check_grant(&mut out, &grant.spec),
    }
    out
}

fn add(
    out: &mut Findings,
    field: impl Into<String>,
    problem: impl Into<String>,
    mend: impl Into<String>,
) {
    out.push(Finding { field: field.into(), problem: problem.into(), mend: mend.into() });
}

/// RFC 1123: a label has no dots and at most 63 characters, a subdomain at most 253.
fn check_name(out: &mut Findings, field: &str, name: &str, label: bool) {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part_ok = |part: &str| {
        part.len() <= 63
            && part.bytes().all(|b| alnum(b) || b == b'-')
            && part.bytes().next().is_some_and(alnum)
            && part.bytes().last().is_some_and(alnum)
    };
    if name.is_empty() {
        add(out, field, "missing", "add a name");
    } else if !(if label {
        part_ok(name)
    } else {
        name.len() <= 253 && name.split('.').all(part_ok)
    }) {
        let mend = "use lower-case letters, digits and '-', at most 63 characters";
        add(out, field, format!("{name:?} is no valid name"), mend);
    }
}

fn check_port(out: &mut Findings, field: String, port: i32) {
    if !(1..=65535).contains(&port) {
        add(out, field, format!("{port} is no port"), "use a number from 1 to 65535");
    }
}

fn check_protocol(out: &mut Findings, field: String, protocol: Option<&str>) {
    if let Some(other) = protocol.filter(|p| !matches!(*p, "TCP" | "UDP" | "SCTP")) {
        add(out, field, format!("{other:?} is no protocol"), "use TCP, UDP or SCTP");
    }
}

fn check_port_ref(out: &mut Findings, field: String, port: &IntOrString) {
    match port {
        IntOrString::Int(number) => check_port(out, field, *number),
        IntOrString::String(name) => {
            let chars =
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            if !chars || name.len() > 15 || !name.bytes().any(|b| b.is_ascii_lowercase()) {
                let mend = "use a number without quotes, or a port name: at most 15 lower-case letters, digits and '-'";
                add(out, field, format!("{name:?} is neither a port nor a port name"), mend);
            }
        }
    }
}

fn check_ip(out: &mut Findings, field: String, ip: &str) {
    if ip.parse::<IpAddr>().is_err() {
        let mend = "use an address such as 10.96.0.10 or fd00::a";
        add(out, field, format!("{ip:?} is no IP address"), mend);
    }
}

fn check_service(out: &mut Findings, service: &Service) {
    let Some(spec) = &service.spec else {
        return add(out, "spec", "missing", "add spec with ports");
    };
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    match kind {
        "ClusterIP" | "NodePort" | "LoadBalancer" => {}
        "ExternalName" => {
            if spec.external_name.as_deref().unwrap_or_default().is_empty() {
                add(out, "spec.externalName", "missing", "name the host that it stands for");
            }
            return;
        }
        other => {
            let mend = "use ClusterIP, NodePort, LoadBalancer or ExternalName";
            add(out, "spec.type", format!("{other:?} is no Service type"), mend);
        }
    }
    check_session_affinity(out, spec);
    let distribution = spec.traffic_distribution.as_deref();
    let known = ["PreferSameZone", "PreferSameNode", "PreferClose"];
    if let Some(other) = distribution.filter(|word| !known.contains(word)) {
        let mend = "use PreferSameZone or PreferSameNode";
        add(out, "spec.trafficDistribution", format!("{other:?} is no distribution"), mend);
    }
    let headless = spec.cluster_ip.as_deref() == Some("None");
    for ip in spec.cluster_ip.iter().filter(|ip| !matches!(ip.as_str(), "" | "None")) {
        check_ip(out, "spec.clusterIP".to_owned(), ip);
    }
    for (i, ip) in spec.cluster_ips.iter().flatten().enumerate().filter(|(_, ip)| *ip != "None") {
        check_ip(out, format!("spec.clusterIPs[{i}]"), ip);
    }
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() && !headless {
        add(out, "spec.ports", "missing", "add at least one port");
    }
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in ports.iter().enumerate() {
        check_port(out, format!("spec.ports[{i}].port"), port.port);
        check_protocol(out, format!("spec.ports[{i}].protocol"), port.protocol.as_deref());
        if let Some(target) = &port.target_port {
            check_port_ref(out, format!("spec.ports[{i}].targetPort"), target);
        }
        if !numbers.insert((port.port, port.protocol.as_deref().unwrap_or("TCP"))) {
            let problem = format!("port {} is there twice", port.port);
            add(out, format!("spec.ports[{i}].port"), problem, "remove one of them");
        }
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            let mend = "name every port where a Service has several";
            add(out, format!("spec.ports[{i}].name"), "missing", mend);
        } else if !name.is_empty() && !names.insert(name) {
            let problem = format!("{name:?} is there twice");
            add(out, format!("spec.ports[{i}].name"), problem, "rename one of them");
        }
    }
}

fn check_session_affinity(out: &mut Findings, spec: &ServiceSpec) {
    let kind = spec.session_affinity.as_deref().unwrap_or("None");
    if !matches!(kind, "None" | "ClientIP") {
        let problem = format!("{kind:?} is no session affinity");
        return add(out, "spec.sessionAffinity", problem, "use None or ClientIP");
    }
    let Some(config) = &spec.session_affinity_config else { return };
    if kind == "None" {
        let problem = "needs a session affinity";
        add(
            out,
            "spec.sessionAffinityConfig",
            problem,
            "add sessionAffinity: ClientIP, or remove it",
        );
    }
    let seconds = config.client_ip.as_ref().and_then(|client_ip| client_ip.timeout_seconds);
    if let Some(seconds) = seconds.filter(|seconds| !CLIENT_IP_TIMEOUTS.contains(seconds)) {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        add(out, field, format!("{seconds} is out of bounds"), "use a number from 1 to 86400");
    }
}

fn check_pod(out: &mut Findings, pod: &Pod) {
    match &pod.spec {
        Some(spec) => check_pod_spec(out, "spec", spec),
        None => add(out, "spec", "missing", "add spec with containers"),
    }
    let Some(status) = &pod.status else { return };
    for ip in status.pod_ip.iter().filter(|ip| !ip.is_empty()) {
        check_ip(out, "status.podIP".to_owned(), ip);
    }
    for (i, ip) in status.pod_ips.iter().flatten().enumerate() {
        check_ip(out, format!("status.podIPs[{i}].ip"), &ip.ip);
    }
}

fn check_pod_spec(out: &mut Findings, at: &str, spec: &PodSpec) {
    if spec.containers.is_empty() {
        add(out, format!("{at}.containers"), "missing", "add at least one container");
    }
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let mut names = BTreeSet::new();
    for (list, containers) in [("containers", &spec.containers[..]), ("initContainers", init)] {
        for (i, container) in containers.iter().enumerate() {
            let at = format!("{at}.{list}[{i}]");
            check_name(out, &format!("{at}.name"), &container.name, true);
            if !names.insert(container.name.as_str()) {
                let problem = format!("{:?} is there twice", container.name);
                add(out, format!("{at}.name"), problem, "rename one of them");
            }
            for (j, port) in container.ports.iter().flatten().enumerate() {
                check_port(out, format!("{at}.ports[{j}].containerPort"), port.container_port);
                check_protocol(out, format!("{at}.ports[{j}].protocol"), port.protocol.as_deref());
            }
            for (probe_name, probe) in [
                ("livenessProbe", &container.liveness_probe),
                ("readinessProbe", &container.readiness_probe),
                ("startupProbe", &container.startup_probe),
            ] {
                if let Some(probe) = probe {
                    check_probe(out, &format!("{at}.{probe_name}"), probe);
                }
            }
        }
    }
}

fn check_probe(out: &mut Findings, at: &str, probe: &Probe) {
    if let Some(http) = &probe.http_get {
        check_port_ref(out, format!("{at}.httpGet.port"), &http.port);
    }
    if let Some(tcp) = &probe.tcp_socket {
        check_port_ref(out, format!("{at}.tcpSocket.port"), &tcp.port);
    }
}

fn check_deployment(out: &mut Findings, deployment: &Deployment) {
    let Some(spec) = &deployment.spec else {
        return add(out, "spec", "missing", "add spec with selector and template");
    };
    if let Some(n) = spec.replicas.filter(|n| !(0..=MAX_REPLICAS).contains(n)) {
        let mend = format!("use a number from 0 to {MAX_REPLICAS}");
        add(out, "spec.replicas", format!("{n} replicas"), mend);
    }
    let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    for (key, value) in spec.selector.match_labels.iter().flatten() {
        if labels.get(key) != Some(value) {
            let problem = format!("{key}={value} is not among the template's labels");
            let mend = "give spec.template.metadata.labels the same";
            add(out, format!("spec.selector.matchLabels.{key}"), problem, mend);
        }
    }
    match &spec.template.spec {
        Some(pod) => check_pod_spec(out, "spec.template.spec", pod),
        None => add(out, "spec.template.spec", "missing", "add spec with containers"),
    }
}

fn check_slice(out: &mut Findings, slice: &EndpointSlice) {
    let family = slice.address_type.as_str();
    if !matches!(family, "IPv4" | "IPv6" | "FQDN") {
        add(out, "addressType", format!("{family:?} is no address type"), "use IPv4 or IPv6");
    }
    for (i, endpoint) in slice.endpoints.iter().enumerate() {
        for (j, address) in endpoint.addresses.iter().enumerate() {
            let field = format!("endpoints[{i}].addresses[{j}]");
            let wrong = match address.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => family == "IPv6",
                Ok(IpAddr::V6(_)) => family == "IPv4",
                Err(_) => family != "FQDN",
            };
            if wrong {
                let problem = format!("{address:?} is no {family} address");
                add(out, field, problem, "correct it, or addressType");
            }
        }
    }
    for (i, port) in slice.ports.iter().flatten().enumerate() {
        if let Some(number) = port.port {
            check_port(out, format!("ports[{i}].port"), number);
        }
        check_protocol(out, format!("ports[{i}].protocol"), port.protocol.as_deref());
    }
}
