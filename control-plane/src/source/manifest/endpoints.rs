//! EndpointSlices of Services with selectors, computed from Pods as the EndpointSlice controller
//! does it: there is no controller where the source is a directory.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{Container, ObjectReference, Pod, Service, ServicePort},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use crate::source::{SERVICE_NAME_LABEL, ZONE_LABEL};

const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGED_BY: &str = "control-plane.remora.io";

/// A slice's ports as they are for one group of pods: (name, number, protocol, appProtocol).
type Ports = Vec<(String, i32, String, Option<String>)>;

/// The slices of one Service, given the Pods of its namespace.
///
/// One slice per address family and per distinct set of resolved target ports. A Service without
/// a selector has none: its slices are made by hand.
#[must_use]
pub fn slices<'a>(
    service: &Service,
    pods: impl IntoIterator<Item = &'a Arc<Pod>>,
) -> Vec<EndpointSlice> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let Some(selector) = spec.selector.as_ref().filter(|s| !s.is_empty()) else {
        return Vec::new();
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let publish_not_ready = spec.publish_not_ready_addresses.unwrap_or(false);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let mut groups: BTreeMap<(&'static str, Ports), Vec<Endpoint>> = BTreeMap::new();
    for pod in pods {
        if !selected(pod, selector) || finished(pod) {
            continue;
        }
        for ip in pod_ips(pod) {
            if let Some(family) = served_family(service, ip) {
                let key = (family, ports_of(pod, ports));
                groups.entry(key).or_default().push(endpoint(pod, ip, publish_not_ready));
            }
        }
    }
    let name = service.metadata.name.clone().unwrap_or_default();
    groups
        .into_iter()
        .map(|((family, ports), endpoints)| slice(service, &name, family, ports, endpoints))
        .collect()
}

/// Whether a selector picks a pod.
pub(crate) fn selected(pod: &Pod, selector: &BTreeMap<String, String>) -> bool {
    let Some(labels) = &pod.metadata.labels else { return false };
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn pod_ips(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut ips: Vec<IpAddr> =
        all.chain(status.pod_ip.as_deref()).filter_map(|ip| ip.parse().ok()).collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}

/// The slice family for an address, where the Service serves that family.
fn served_family(service: &Service, ip: IpAddr) -> Option<&'static str> {
    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let spec = service.spec.as_ref()?;
    if let Some(families) = spec.ip_families.as_ref().filter(|f| !f.is_empty()) {
        return families.iter().any(|f| f == family).then_some(family);
    }
    let cluster_ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut parsed = cluster_ips.filter_map(|ip| ip.parse::<IpAddr>().ok()).peekable();
    if parsed.peek().is_none() {
        return Some(family);
    }
    parsed.any(|cluster_ip| cluster_ip.is_ipv4() == ip.is_ipv4()).then_some(family)
}

/// A port whose name the pod does not have is left out for that pod, as the controller does.
fn ports_of(pod: &Pod, ports: &[ServicePort]) -> Ports {
    let mut resolved: Ports = ports
        .iter()
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let number = match &port.target_port {
                None | Some(IntOrString::Int(0)) => port.port,
                Some(IntOrString::Int(number)) => *number,
                Some(IntOrString::String(name)) => named_port(pod, name, &protocol)?,
            };
            let name = port.name.clone().unwrap_or_default();
            Some((name, number, protocol, port.app_protocol.clone()))
        })
        .collect();
    resolved.sort();
    resolved
}

/// The number of a port that a pod names.
pub(crate) fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(sidecars).find_map(|container: &Container| {
        container.ports.iter().flatten().find_map(|port| {
            let same = port.name.as_deref() == Some(name)
                && port.protocol.as_deref().unwrap_or("TCP") == protocol;
            same.then_some(port.container_port)
        })
    })
}

fn endpoint(pod: &Pod, ip: IpAddr, publish_not_ready: bool) -> Endpoint {
    let serving = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let labels = pod.metadata.labels.as_ref();
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(publish_not_ready || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        zone: labels.and_then(|labels| labels.get(ZONE_LABEL).cloned()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

fn slice(
    service: &Service,
    name: &str,
    family: &str,
    ports: Ports,
    mut endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    // The name says the ports, so that a slice keeps its name while pods come and go.
    let mut slice_name = format!("{name}-remora-{}", family.to_ascii_lowercase());
    for (port_name, number, ..) in &ports {
        slice_name.push_str(&format!("-{port_name}{number}"));
    }
    EndpointSlice {
        address_type: family.to_owned(),
        endpoints,
        metadata: ObjectMeta {
            name: Some(slice_name),
            namespace: service.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([
                (SERVICE_NAME_LABEL.to_owned(), name.to_owned()),
                (MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned()),
            ])),
            ..ObjectMeta::default()
        },
        ports: Some(
            ports
                .into_iter()
                .map(|(name, number, protocol, app_protocol)| EndpointPort {
                    name: Some(name),
                    port: Some(number),
                    protocol: Some(protocol),
                    app_protocol,
                })
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "orders", "namespace": "shop"}, "spec": spec
        }))
        .unwrap()
    }

    fn pod(name: &str, ip: &str, port: i32, ready: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "shop", "labels": {"app": "orders"}},
                "spec": {"containers": [
                    {"name": "c", "ports": [{"name": "http", "containerPort": port}]}
                ]},
                "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": ready}]}
            }))
            .unwrap(),
        )
    }

    fn conditions(endpoint: &Endpoint) -> (bool, bool, bool) {
        let c = endpoint.conditions.as_ref().unwrap();
        (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
    }

    #[test]
    fn named_target_ports_are_resolved_per_pod() {
        let service = service(
            json!({"selector": {"app": "orders"}, "ports": [{"port": 80, "targetPort": "http"}]}),
        );
        let pods = [
            pod("a", "10.0.0.1", 8080, "True"),
            pod("b", "10.0.0.2", 9090, "True"),
            pod("c", "10.0.0.3", 8080, "True"),
        ];
        let slices = slices(&service, &pods);
        let shape: Vec<_> = slices
            .iter()
            .map(|s| (s.ports.as_ref().unwrap()[0].port.unwrap(), s.endpoints.len()))
            .collect();
        assert_eq!(shape, [(8080, 2), (9090, 1)]);
    }

    #[test]
    fn conditions_follow_readiness_termination_and_publish_not_ready() {
        let spec = json!({"selector": {"app": "orders"}, "ports": [{"port": 80}]});
        let mut leaving = (*pod("c", "10.0.0.3", 80, "True")).clone();
        leaving.metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
        let pods = [
            pod("a", "10.0.0.1", 80, "True"),
            pod("b", "10.0.0.2", 80, "False"),
            Arc::new(leaving),
        ];
        let all = slices(&service(spec), &pods);
        let got: Vec<_> = all[0].endpoints.iter().map(conditions).collect();
        assert_eq!(got, [(true, true, false), (false, false, false), (false, true, true)]);

        let spec = json!({
            "selector": {"app": "orders"}, "ports": [{"port": 80}],
            "publishNotReadyAddresses": true
        });
        let all = slices(&service(spec), &pods);
        assert!(all[0].endpoints.iter().all(|e| conditions(e).0));
    }

    #[test]
    fn no_selector_no_match_no_address_and_finished_pods_make_no_endpoint() {
        assert!(
            slices(&service(json!({"ports": [{"port": 80}]})), &[pod("a", "10.0.0.1", 80, "True")])
                .is_empty()
        );
        let mut done = (*pod("a", "10.0.0.1", 80, "True")).clone();
        done.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
        let mut unplaced = (*pod("b", "10.0.0.1", 80, "True")).clone();
        unplaced.status = None;
        let spec = json!({"selector": {"app": "orders"}, "ports": [{"port": 80}]});
        assert!(slices(&service(spec), &[Arc::new(done), Arc::new(unplaced)]).is_empty());
        let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
        assert!(slices(&service(spec), &[pod("a", "10.0.0.1", 80, "True")]).is_empty());
    }

    #[test]
    fn families_follow_the_cluster_ip() {
        let spec = json!({
            "clusterIP": "10.96.0.1", "selector": {"app": "orders"}, "ports": [{"port": 80}]
        });
        let mut dual = (*pod("a", "10.0.0.1", 80, "True")).clone();
        dual.status.as_mut().unwrap().pod_ips =
            Some(serde_json::from_value(json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}])).unwrap());
        let slices = slices(&service(spec), &[Arc::new(dual)]);
        assert_eq!(slices.len(), 1);
        assert_eq!(slices[0].address_type, "IPv4");
    }
}
