//! Objects reduced to what the index reads. A whole Pod is some 10 kB of which a few hundred bytes
//! matter here; this is the one place that says which.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use remora_core::names::annotations;

use crate::interned::Interned;

/// Label that ties a slice to its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Annotation of a Service by which endpoints are preferred by zone; older than `trafficDistribution`.
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
/// `timeoutSeconds` of `sessionAffinity: ClientIP`: the API's default and its bounds.
const CLIENT_IP_TIMEOUT: i32 = 10_800;
pub(super) const CLIENT_IP_TIMEOUTS: std::ops::RangeInclusive<i32> = 1..=86_400;
/// Label of a Node's zone, and where a Pod has it, of the Pod's.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Namespace and name. Cloning shares it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// The namespace; empty for objects that are in none.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

/// What an object is called and what its annotations of ours say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Namespace and name.
    pub name: Name,
    /// The annotations that begin with a prefix of ours.
    pub annotations: Annotations,
}

/// A few annotations, in the order of their keys; small, because thousands of objects have them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Annotations(Box<[(Box<str>, Box<str>)]>);

/// A `v1` Namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its name and annotations.
    pub meta: Meta,
}

/// A `v1` Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name, in no namespace.
    pub name: Name,
    /// Its zone; empty if unknown.
    pub zone: Arc<str>,
}

/// A `v1` Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name and annotations.
    pub meta: Meta,
    /// What is dialled, sorted; none for a headless or external one.
    pub cluster_ips: Vec<IpAddr>,
    /// How it serves.
    pub kind: ServiceKind,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy: Local`.
    pub node_local: bool,
    /// `trafficDistribution`.
    pub distribution: Distribution,
    /// `sessionAffinity: ClientIP`: for how long after the last use.
    pub client_ip: Option<Duration>,
}

/// Which endpoints a Service prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Distribution {
    /// None.
    #[default]
    Any,
    /// Those in the caller's zone: `PreferSameZone`, its older name `PreferClose`, and the annotation
    /// `service.kubernetes.io/topology-mode: Auto`.
    SameZone,
    /// Those on the caller's node, else in its zone: `PreferSameNode`.
    SameNode,
}

/// How a Service serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceKind {
    /// By an address of its own.
    Balanced,
    /// By the addresses of its pods.
    Headless,
    /// By another name.
    External,
}

/// A TCP port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its number.
    pub number: u16,
    /// Its name; empty if it has none.
    pub name: String,
    /// `appProtocol`, as it is written.
    pub app_protocol: Option<String>,
}

/// A `discovery.k8s.io/v1` EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its name; it has no annotations of ours.
    pub meta: Meta,
    /// The Service it belongs to, in its own namespace; empty for none, and for slices of host
    /// names.
    pub service: Arc<str>,
    /// TCP ports by port name. One without a number means "all" and is left out: it has no meaning
    /// here.
    pub ports: Box<[(Box<str>, u16)]>,
    /// Its endpoints.
    pub endpoints: Box<[SliceEndpoint]>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address. EndpointSlice API: consumers use the first one.
    pub ip: IpAddr,
    /// Takes traffic; unknown counts as true.
    pub ready: bool,
    /// Answers, even where it is not ready; unknown is the same as `ready`.
    pub serving: bool,
    /// Is going.
    pub terminating: bool,
    /// Its pod.
    pub pod: Option<Name>,
    /// Its node; empty if unknown.
    pub node: Arc<str>,
    /// Its zone; empty if unknown.
    pub zone: Arc<str>,
    /// Zones it should serve; empty: all.
    pub for_zones: Box<[Box<str>]>,
}

impl Name {
    /// From its parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Shares what others have too.
    pub(super) fn intern(&mut self, strings: &mut Interned<str>) {
        strings.share(&mut self.namespace);
        strings.share(&mut self.name);
    }
}

impl Meta {
    /// Of a namespaced object; `keep` says which of the annotations of ours are read.
    pub(super) fn of(meta: &ObjectMeta, keep: impl Fn(&str) -> bool) -> Self {
        let annotations = meta.annotations.iter().flatten();
        let ours = annotations.filter(|(key, _)| is_ours(key) && keep(key));
        Self {
            name: Name::new(
                meta.namespace.as_deref().unwrap_or("default"),
                meta.name.as_deref().unwrap_or_default(),
            ),
            annotations: Annotations(
                ours.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
            ),
        }
    }
}

fn is_ours(key: &str) -> bool {
    key.split_once('/')
        .is_some_and(|(prefix, _)| prefix == "remora.io" || prefix.ends_with(".remora.io"))
}

impl Annotations {
    /// As a map.
    #[must_use]
    pub fn to_map(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    /// One of them.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| **known == *key).map(|(_, value)| &**value)
    }
}

impl From<&ObjectMeta> for Namespace {
    fn from(meta: &ObjectMeta) -> Self {
        let Meta { name, annotations } = Meta::of(meta, |_| true);
        Self { meta: Meta { name: Name { namespace: "".into(), ..name }, annotations } }
    }
}

impl From<&core::Namespace> for Namespace {
    fn from(object: &core::Namespace) -> Self {
        (&object.metadata).into()
    }
}

impl From<&ObjectMeta> for Node {
    fn from(meta: &ObjectMeta) -> Self {
        let zone = meta.labels.as_ref().and_then(|labels| labels.get(ZONE_LABEL));
        Self {
            name: Name::new("", meta.name.as_deref().unwrap_or_default()),
            zone: zone.map_or("", String::as_str).into(),
        }
    }
}

impl From<&core::Service> for Service {
    fn from(object: &core::Service) -> Self {
        let none = core::ServiceSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&none);
        let kind = if spec.type_.as_deref() == Some("ExternalName") {
            ServiceKind::External
        } else if spec.cluster_ip.as_deref() == Some("None") {
            ServiceKind::Headless
        } else {
            ServiceKind::Balanced
        };
        let addresses = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let mut cluster_ips: Vec<IpAddr> = match kind {
            ServiceKind::External => Vec::new(),
            _ => addresses.filter_map(|ip| ip.parse().ok()).collect(),
        };
        cluster_ips.sort_unstable();
        cluster_ips.dedup();
        let tcp = |port: &&core::ServicePort| is_tcp(port.protocol.as_deref());
        let ports = spec.ports.iter().flatten().filter(tcp).filter_map(|port| {
            Some(ServicePort {
                number: u16::try_from(port.port).ok()?,
                name: port.name.clone().unwrap_or_default(),
                app_protocol: port.app_protocol.clone(),
            })
        });
        Self {
            meta: Meta::of(&object.metadata, |_| true),
            cluster_ips,
            kind,
            ports: ports.collect(),
            node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            distribution: distribution(object, spec),
            client_ip: client_ip(spec),
        }
    }
}

/// A word that the API may get later means nothing here.
fn distribution(object: &core::Service, spec: &core::ServiceSpec) -> Distribution {
    let annotations = object.metadata.annotations.as_ref();
    let mode = annotations.and_then(|map| map.get(TOPOLOGY_MODE)).map(String::as_str);
    match (spec.traffic_distribution.as_deref(), mode) {
        (Some("PreferSameNode"), _) => Distribution::SameNode,
        (Some("PreferClose" | "PreferSameZone"), _) => Distribution::SameZone,
        (None, Some("Auto" | "auto")) => Distribution::SameZone,
        _ => Distribution::Any,
    }
}

fn client_ip(spec: &core::ServiceSpec) -> Option<Duration> {
    spec.session_affinity.as_deref().filter(|kind| *kind == "ClientIP")?;
    let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    let seconds = config.and_then(|client_ip| client_ip.timeout_seconds);
    let (least, most) = CLIENT_IP_TIMEOUTS.into_inner();
    // The API server lets nothing else pass.
    let seconds = seconds.unwrap_or(CLIENT_IP_TIMEOUT).clamp(least, most);
    Some(Duration::from_secs(u64::from(seconds.unsigned_abs())))
}

impl From<&discovery::EndpointSlice> for EndpointSlice {
    fn from(object: &discovery::EndpointSlice) -> Self {
        let meta = Meta::of(&object.metadata, |_| false);
        let labels = object.metadata.labels.as_ref();
        let service = labels
            .and_then(|labels| labels.get(SERVICE_NAME_LABEL))
            .filter(|_| object.address_type != "FQDN");
        let Some(service) = service else {
            return Self { meta, service: "".into(), ports: [].into(), endpoints: [].into() };
        };
        let tcp = |port: &&discovery::EndpointPort| is_tcp(port.protocol.as_deref());
        let ports = object.ports.iter().flatten().filter(tcp).filter_map(|port| {
            let number = u16::try_from(port.port?).ok().filter(|n| *n > 0)?;
            Some((port.name.as_deref().unwrap_or_default().into(), number))
        });
        let endpoints =
            object.endpoints.iter().filter_map(|e| SliceEndpoint::parse(e, &meta.name.namespace));
        Self {
            service: service.as_str().into(),
            ports: ports.collect(),
            endpoints: endpoints.collect(),
            meta,
        }
    }
}

impl EndpointSlice {
    /// Shares what others have too; its pods' names are the pods' own.
    pub(super) fn intern(&mut self, strings: &mut Interned<str>) {
        strings.share(&mut self.meta.name.namespace);
        strings.share(&mut self.service);
        for endpoint in &mut self.endpoints {
            endpoint.pod.iter_mut().for_each(|pod| pod.intern(strings));
            strings.share(&mut endpoint.node);
            strings.share(&mut endpoint.zone);
        }
    }
}

impl SliceEndpoint {
    /// `None` for one without an address.
    fn parse(object: &discovery::Endpoint, namespace: &Arc<str>) -> Option<Self> {
        let conditions = object.conditions.clone().unwrap_or_default();
        // EndpointSlice API: an unknown `ready` counts as true, an unknown `serving` as `ready`.
        let ready = conditions.ready.unwrap_or(true);
        let pod = object.target_ref.as_ref().filter(|r| r.kind.as_deref() == Some("Pod"));
        let hints = object.hints.as_ref().and_then(|hints| hints.for_zones.as_ref());
        let text = |text: Option<&str>| text.unwrap_or_default().into();
        Some(Self {
            ip: object.addresses.iter().find_map(|ip| ip.parse().ok())?,
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
            pod: pod.and_then(|pod| {
                let elsewhere = pod.namespace.as_deref().filter(|other| *other != &**namespace);
                let namespace = elsewhere.map_or_else(|| Arc::clone(namespace), Into::into);
                Some(Name { namespace, name: pod.name.as_deref()?.into() })
            }),
            node: text(object.node_name.as_deref()),
            zone: text(object.zone.as_deref()),
            for_zones: hints.into_iter().flatten().map(|zone| zone.name.as_str().into()).collect(),
        })
    }
}

/// Kubernetes' default protocol is TCP.
pub(super) fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

/// Annotations of a Pod that the index reads; the injector reads the others.
pub(super) fn read_of_pods(key: &str) -> bool {
    [
        annotations::OPAQUE_PORTS,
        annotations::DEFAULT_INBOUND_POLICY,
        annotations::DEFAULT_OUTBOUND_POLICY,
        annotations::INGRESS,
        annotations::SKIP_INBOUND_PORTS,
        annotations::INJECT,
    ]
    .contains(&key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn slice(object: Value) -> EndpointSlice {
        let object: discovery::EndpointSlice = serde_json::from_value(object).unwrap();
        (&object).into()
    }

    fn meta() -> Value {
        json!({"name": "s", "namespace": "shop", "labels": {"kubernetes.io/service-name": "cart"}})
    }

    #[test]
    fn a_slice_without_endpoints_says_null_and_is_empty() {
        let empty = slice(
            json!({"metadata": meta(), "addressType": "IPv4", "endpoints": null, "ports": null}),
        );
        assert_eq!((&*empty.service, empty.ports.len(), empty.endpoints.len()), ("cart", 0, 0));
    }

    #[test]
    fn unknown_conditions_count_as_ready_and_serving() {
        let endpoints =
            json!([{"addresses": ["10.0.0.1"], "conditions": {}}, {"addresses": ["10.0.0.2"]}]);
        let slice =
            slice(json!({"metadata": meta(), "addressType": "IPv4", "endpoints": endpoints}));
        assert!(slice.endpoints.iter().all(|e| e.ready && e.serving && !e.terminating));
    }

    #[test]
    fn slices_of_host_names_and_of_no_service_belong_to_none() {
        let names = json!({"metadata": meta(), "addressType": "FQDN", "endpoints": [{"addresses": ["a.example"]}]});
        assert_eq!(&*slice(names).service, "");
        let loose = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": []});
        assert_eq!(&*slice(loose).service, "");
    }

    #[test]
    fn session_affinity_is_read_with_the_apis_default() {
        let client_ip = |spec: Value| {
            let object = json!({"metadata": {"name": "cart"}, "spec": spec});
            let object: core::Service = serde_json::from_value(object).unwrap();
            Service::from(&object).client_ip.map(|timeout| timeout.as_secs())
        };
        let config = |seconds| json!({"clientIP": {"timeoutSeconds": seconds}});
        assert_eq!(client_ip(json!({})), None);
        assert_eq!(client_ip(json!({"sessionAffinity": "None"})), None);
        assert_eq!(client_ip(json!({"sessionAffinity": "ClientIP"})), Some(10_800));
        for (seconds, expected) in [(1, 1), (86_400, 86_400), (0, 1), (-5, 1), (100_000, 86_400)] {
            let spec =
                json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config(seconds)});
            assert_eq!(client_ip(spec), Some(expected));
        }
    }

    #[test]
    fn traffic_distribution_is_read_under_all_its_names() {
        let read = |spec: Value, annotations: Value| {
            let meta = json!({"name": "cart", "annotations": annotations});
            let object = json!({"metadata": meta, "spec": spec});
            let object: core::Service = serde_json::from_value(object).unwrap();
            Service::from(&object).distribution
        };
        let by_field = |word| read(json!({"trafficDistribution": word}), json!({}));
        assert_eq!(by_field("PreferClose"), Distribution::SameZone);
        assert_eq!(by_field("PreferSameZone"), Distribution::SameZone);
        assert_eq!(by_field("PreferSameNode"), Distribution::SameNode);
        assert_eq!(by_field("PreferTheMoon"), Distribution::Any);
        let auto = json!({"service.kubernetes.io/topology-mode": "Auto"});
        assert_eq!(read(json!({}), auto), Distribution::SameZone);
        assert_eq!(read(json!({}), json!({})), Distribution::Any);
    }

    #[test]
    fn annotations_of_others_are_not_kept() {
        let object: core::Namespace = serde_json::from_value(json!({"metadata": {"name": "shop",
            "annotations": {"remora.io/inject": "enabled", "config.remora.io/opaque-ports": "1",
                "kubectl.kubernetes.io/last-applied-configuration": "{}", "notremora.io/x": "1"}}}))
        .unwrap();
        let kept = Namespace::from(&object).meta.annotations;
        assert_eq!(kept.find("remora.io/inject"), Some("enabled"));
        assert_eq!(kept.to_map().len(), 2);
    }
}
