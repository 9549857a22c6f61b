//! Services: their cluster addresses, the pods behind them, and the node's address translation
//! for pods without a sidecar (kube-proxy's part).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use k8s_openapi::{
    api::core::v1::{Pod as PodObject, Service},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    manifests::{Key, key},
    net::NODE,
};

/// First 16 bits of the cluster addresses that are given out.
const CLUSTER_IPS: [u8; 2] = [10, 96];

/// All Services with the pods behind them, as of one moment.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// In the order of namespace and name.
    pub services: Vec<Entry>,
}

/// A Service.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Namespace and name.
    pub key: Key,
    /// `None` for headless ones and those that are an alias.
    pub cluster_ip: Option<Ipv4Addr>,
    /// Other addresses at which it is reached: of a load balancer, and `externalIPs`.
    pub external: Vec<Ipv4Addr>,
    /// The name that the Service is an alias of.
    pub external_name: Option<String>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Pods that its selector matches, in the order of their addresses.
    pub backends: Vec<Backend>,
    /// Whether pods count before they are ready.
    pub publish_not_ready: bool,
}

/// A port of a Service.
#[derive(Debug, Clone)]
pub struct Port {
    /// Its name.
    pub name: Option<String>,
    /// What callers dial.
    pub port: u16,
    /// What callers dial at the node's address.
    pub node_port: Option<u16>,
    /// Where pods listen.
    pub target: IntOrString,
    /// `TCP` or `UDP`.
    pub protocol: String,
}

/// A pod behind a Service.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its host name within a headless Service.
    pub hostname: Option<String>,
    /// Whether its probes hold.
    pub ready: bool,
    /// Whether it is going away.
    pub terminating: bool,
    /// Ports that its containers name.
    pub named_ports: BTreeMap<String, u16>,
}

/// A cluster address with the pods that connections to it go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    /// The Service's address.
    pub address: Ipv4Addr,
    /// The Service's port.
    pub port: u16,
    /// UDP, or TCP.
    pub udp: bool,
    /// Addresses and ports of the pods; empty means refuse.
    pub targets: Vec<(Ipv4Addr, u16)>,
    /// It is the node's, and other ports of it are not for Services.
    pub node: bool,
}

impl Entry {
    /// The pods that take connections: the ready ones; where there is none, those that are
    /// ready but going away (the rule of kube-proxy).
    pub fn ready(&self) -> impl Iterator<Item = &Backend> {
        let counts = |pod: &&Backend| pod.ready || self.publish_not_ready;
        let staying = self.backends.iter().filter(counts).any(|pod| !pod.terminating);
        self.backends.iter().filter(counts).filter(move |pod| !pod.terminating || !staying)
    }

    /// The port of that number or name.
    #[must_use]
    pub fn port(&self, text: &str) -> Option<&Port> {
        let matches = |p: &&Port| p.port.to_string() == text || p.name.as_deref() == Some(text);
        self.ports.iter().find(matches)
    }

    /// A Service with nobody behind it yet.
    #[must_use]
    pub fn new(service: &Service, cluster_ip: Option<Ipv4Addr>) -> Self {
        let spec = service.spec.clone().unwrap_or_default();
        let port = |number: i32| u16::try_from(number).ok();
        let ports = spec.ports.into_iter().flatten().filter_map(|p| {
            Some(Port {
                port: port(p.port)?,
                node_port: p.node_port.and_then(port).filter(|port| *port > 0),
                target: p.target_port.unwrap_or(IntOrString::Int(p.port)),
                name: p.name,
                protocol: p.protocol.unwrap_or_else(|| "TCP".into()),
            })
        });
        let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
        let external = ingress.filter_map(|ingress| ingress.ip.as_ref());
        let external = external.chain(spec.external_ips.iter().flatten());
        let external: BTreeSet<Ipv4Addr> = external.filter_map(|ip| ip.parse().ok()).collect();
        let alias = spec.type_.as_deref() == Some("ExternalName");
        Self {
            key: key(&service.metadata),
            cluster_ip: cluster_ip.filter(|_| !alias),
            external: external.into_iter().collect(),
            external_name: spec.external_name.filter(|_| alias),
            ports: ports.collect(),
            backends: Vec::new(),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        }
    }
}

impl Backend {
    /// The pod's own number for a Service's port.
    #[must_use]
    pub fn target(&self, port: &Port) -> Option<u16> {
        match &port.target {
            IntOrString::Int(number) => u16::try_from(*number).ok(),
            IntOrString::String(name) => self.named_ports.get(name).copied(),
        }
    }
}

impl Table {
    /// What the node translates.
    #[must_use]
    pub fn vips(&self) -> Vec<Vip> {
        let of = |service: &Entry, port: &Port| {
            let targets = service.ready().filter_map(|pod| Some((pod.address, pod.target(port)?)));
            let targets: Vec<_> = targets.collect();
            let vip = |address, port_number, node| Vip {
                address,
                port: port_number,
                udp: port.protocol == "UDP",
                targets: targets.clone(),
                node,
            };
            let own = service.cluster_ip.iter().chain(&service.external);
            let at_node = service.cluster_ip.and(port.node_port);
            own.map(|address| vip(*address, port.port, false))
                .chain(at_node.map(|port| vip(NODE, port, true)))
                .collect::<Vec<_>>()
        };
        self.services.iter().flat_map(|s| s.ports.iter().flat_map(|p| of(s, p))).collect()
    }

    /// The Service of that name.
    #[must_use]
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Entry> {
        self.services.iter().find(|s| s.key.0 == namespace && s.key.1 == name)
    }
}

/// Whether a Service's selector picks a pod with these labels. No selector picks none.
#[must_use]
pub fn selects(service: &Service, labels: Option<&BTreeMap<String, String>>) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let (Some(selector), Some(labels)) = (selector, labels) else { return false };
    !selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// Ports of Services that lead nowhere: their `targetPort` is a name that none of the selected
/// pods' containers has. One line each; a Service that selects no pod may still get some.
#[must_use]
pub fn unmatched_ports(services: &[Service], pods: &[PodObject]) -> Vec<String> {
    let mut lines = Vec::new();
    for service in services {
        let (namespace, name) = key(&service.metadata);
        let selected: Vec<&PodObject> = pods
            .iter()
            .filter(|pod| {
                key(&pod.metadata).0 == namespace && selects(service, pod.metadata.labels.as_ref())
            })
            .collect();
        let containers =
            selected.iter().filter_map(|p| p.spec.as_ref()).flat_map(|s| &s.containers);
        let names: BTreeSet<&str> = containers
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(|port| port.name.as_deref())
            .collect();
        for port in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
            let Some(IntOrString::String(target)) = &port.target_port else { continue };
            if selected.is_empty() || names.contains(target.as_str()) {
                continue;
            }
            let has = match names.iter().copied().collect::<Vec<_>>().join(", ") {
                none if none.is_empty() => "none".to_owned(),
                some => some,
            };
            lines.push(format!(
                "Service {namespace}/{name}: port {}: targetPort {target:?} is the name of no \
                 container port of the pods it selects (they have: {has}); correct it, or name \
                 the port",
                port.port
            ));
        }
    }
    lines
}

/// Gives each Service its cluster address: the one its manifest asks for, else the one it has
/// had, else one that follows from its name. `None` for those that have none.
///
/// # Errors
/// One line for each Service whose address cannot be given.
pub fn allocate(
    services: &[Service],
    had: &BTreeMap<Key, Option<Ipv4Addr>>,
) -> Result<BTreeMap<Key, Option<Ipv4Addr>>, Vec<String>> {
    let mut given: BTreeMap<Key, Option<Ipv4Addr>> = BTreeMap::new();
    let mut owners: BTreeMap<Ipv4Addr, Key> = BTreeMap::new();
    let mut problems = Vec::new();
    for service in services {
        let key = key(&service.metadata);
        match asked(service) {
            Asked::Any => {}
            Asked::Nothing => {
                given.insert(key, None);
            }
            Asked::This(text) => {
                let usable = text.parse::<Ipv4Addr>().ok().filter(|ip| {
                    !ip.is_loopback() && !ip.is_multicast() && ip.octets()[..2] != [10, 244]
                });
                let place = format!("Service {}/{}", key.0, key.1);
                match usable {
                    None => problems.push(format!(
                        "{place}: spec.clusterIP {text:?} cannot be used; choose one of \
                         10.96.0.0/16, or leave it out"
                    )),
                    Some(ip) => match owners.get(&ip) {
                        Some((namespace, name)) => problems.push(format!(
                            "{place}: spec.clusterIP {ip} is taken by {namespace}/{name}; choose \
                             another, or leave it out"
                        )),
                        None => {
                            owners.insert(ip, key.clone());
                            given.insert(key, Some(ip));
                        }
                    },
                }
            }
        }
    }
    // In the order of names, so that the addresses do not depend on the files' order.
    let open: BTreeSet<Key> = services
        .iter()
        .filter(|service| matches!(asked(service), Asked::Any))
        .map(|service| key(&service.metadata))
        .collect();
    let (kept, fresh): (Vec<_>, Vec<_>) =
        open.into_iter().partition(|key| matches!(had.get(key), Some(Some(_))));
    for key in kept.into_iter().chain(fresh) {
        let wish = had.get(&key).copied().flatten();
        let ip = wish.filter(|ip| !owners.contains_key(ip)).or_else(|| free(&key, &owners));
        if let Some(ip) = ip {
            owners.insert(ip, key.clone());
        }
        given.insert(key, ip);
    }
    if problems.is_empty() { Ok(given) } else { Err(problems) }
}

enum Asked {
    Any,
    Nothing,
    This(String),
}

fn asked(service: &Service) -> Asked {
    let Some(spec) = &service.spec else { return Asked::Any };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Asked::Nothing;
    }
    match spec.cluster_ip.as_deref() {
        None | Some("") => Asked::Any,
        Some("None") => Asked::Nothing,
        Some(ip) => Asked::This(ip.to_owned()),
    }
}

/// FNV-1a of the name, then the next free one.
fn free(key: &Key, taken: &BTreeMap<Ipv4Addr, Key>) -> Option<Ipv4Addr> {
    let bytes = key.0.bytes().chain([b'/']).chain(key.1.bytes());
    let hash = bytes.fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    let [a, b, c, d] = hash.to_be_bytes();
    let start = u16::from_be_bytes([a ^ c, b ^ d]);
    (0..=u16::MAX)
        .map(|step| start.wrapping_add(step))
        .filter(|n| *n != 0 && *n != u16::MAX)
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            Ipv4Addr::new(CLUSTER_IPS[0], CLUSTER_IPS[1], high, low)
        })
        .find(|ip| !taken.contains_key(ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str, ip: Option<&str>) -> Service {
        let object = json!({"metadata": {"name": name}, "spec": {"clusterIP": ip}});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn addresses_follow_from_names_and_stay() {
        let one = allocate(&[service("a", None), service("b", None)], &BTreeMap::new()).unwrap();
        let two = allocate(&[service("b", None), service("a", None)], &BTreeMap::new()).unwrap();
        assert_eq!(one, two);
        let more = allocate(&[service("0", None), service("a", None)], &one).unwrap();
        assert_eq!(more[&("default".into(), "a".into())], one[&("default".into(), "a".into())]);
        let headless = allocate(&[service("h", Some("None"))], &BTreeMap::new()).unwrap();
        assert_eq!(headless[&("default".into(), "h".into())], None);
    }

    #[test]
    fn a_conflict_names_both() {
        let both = [service("a", Some("10.96.0.1")), service("b", Some("10.96.0.1"))];
        let problems = allocate(&both, &BTreeMap::new()).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("Service default/b"), "{problems:?}");
        assert!(problems[0].contains("taken by default/a"), "{problems:?}");
        for bad in ["10.244.0.9", "banana", "127.0.0.1", "::1"] {
            assert!(allocate(&[service("a", Some(bad))], &BTreeMap::new()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_target_port_that_no_selected_pod_has_is_named() {
        let object = json!({"metadata": {"name": "a"}, "spec": {"selector": {"app": "a"},
            "ports": [{"port": 80, "targetPort": "web"}, {"port": 81, "targetPort": 8081}]}});
        let service: Service = serde_json::from_value(object).unwrap();
        let pod = |port: &str| -> PodObject {
            let ports = json!([{"name": port, "containerPort": 8080}]);
            serde_json::from_value(json!({"metadata": {"name": "p", "labels": {"app": "a"}},
                "spec": {"containers": [{"name": "c", "ports": ports}]}}))
            .unwrap()
        };
        let lines = |pods: &[PodObject]| unmatched_ports(std::slice::from_ref(&service), pods);
        assert_eq!(lines(&[]).len(), 0);
        assert_eq!(lines(&[pod("web")]).len(), 0);
        let said = lines(&[pod("http")]);
        assert_eq!(said.len(), 1);
        assert!(said[0].starts_with("Service default/a: port 80:"), "{said:?}");
        assert!(said[0].contains("they have: http"), "{said:?}");
    }

    #[test]
    fn terminating_pods_take_connections_only_where_no_other_does() {
        let pod = |last, ready, terminating| Backend {
            address: Ipv4Addr::new(10, 244, 0, last),
            hostname: None,
            ready,
            terminating,
            named_ports: BTreeMap::from([("http".into(), 8080)]),
        };
        let object = json!({"metadata": {"name": "a"},
            "spec": {"ports": [{"port": 80, "targetPort": "http"}]}});
        let object: Service = serde_json::from_value(object).unwrap();
        let mut entry = Entry::new(&object, Some(Ipv4Addr::new(10, 96, 0, 1)));
        entry.backends = vec![pod(2, true, false), pod(3, true, true), pod(4, false, false)];
        let table = Table { services: vec![entry.clone()] };
        assert_eq!(table.vips()[0].targets, [(Ipv4Addr::new(10, 244, 0, 2), 8080)]);
        entry.backends.remove(0);
        let table = Table { services: vec![entry] };
        assert_eq!(table.vips()[0].targets, [(Ipv4Addr::new(10, 244, 0, 3), 8080)]);
    }
}
