//! What kube-proxy does on a node, for the pods that have no sidecar.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use super::{
    RedirectError,
    nft::{self, Action, Base, Chain, Hook, Kind, Match, Rule, Table},
};

/// A port of a Service's address and who answers there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceVip {
    /// The Service's address (`clusterIP`).
    pub vip: IpAddr,
    /// The Service's port.
    pub port: u16,
    /// Where its connections go, of the same family as `vip` (others are left out); none: refused.
    pub endpoints: Vec<SocketAddr>,
    /// The address is not the Service's alone, as a node's is not: its other ports are left alone.
    pub shared: bool,
}

/// Translation of Service addresses in the node's network namespace: TCP, each connection to an
/// endpoint at random.
///
/// Every other TCP port of a listed address that is not shared is refused with a reset, so that a wrong port fails at
/// once instead of timing out. The sender's address is kept except where a pod is sent back to
/// itself: it would drop packets that claim to come from its own address, so there the node puts
/// in its own.
///
/// The node's own connections to a Service address need some route that covers it (the kernel
/// looks for one before the rules see the packet); forwarded ones do not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceNat {
    services: Vec<ServiceVip>,
}

const TABLE: &str = "remora-services";
/// Where destinations are translated, and where sources are.
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;
/// Between them: what still goes to a Service address then was not translated.
const AFTER_DSTNAT: i32 = -50;

impl ServiceNat {
    /// Translation for these Services.
    #[must_use]
    pub fn new(services: Vec<ServiceVip>) -> Self {
        Self { services }
    }

    /// Puts it in force in place of a former one; connections that are established stay.
    ///
    /// # Errors
    /// Where the kernel refuses; the former one then stays.
    pub fn apply(&self) -> Result<(), RedirectError> {
        nft::replace(&self.table())
    }

    /// Removes any translation; no error where there is none.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn remove() -> Result<(), RedirectError> {
        nft::remove(TABLE)
    }

    /// The rules.
    #[must_use]
    pub fn table(&self) -> Table {
        let mut services = Vec::new();
        let mut chains = Vec::new();
        for service in &self.services {
            let endpoints = service.usable();
            if endpoints.is_empty() {
                continue;
            }
            let name = service.chain_name();
            services.push(Rule { matches: service.matches(), action: Action::Jump(name.clone()) });
            chains.push(Chain { name, base: None, rules: spread(&endpoints) });
        }
        let own = self.services.iter().filter(|service| !service.shared);
        let vips: BTreeSet<IpAddr> = own.map(|service| service.vip).collect();
        let whole = vips.into_iter().map(|vip| Rule {
            matches: vec![Match::Destination(IpNet::from(vip)), Match::Tcp],
            action: Action::Reset,
        });
        let idle = self.services.iter().filter(|s| s.shared && s.usable().is_empty());
        let ports = idle.map(|service| Rule { matches: service.matches(), action: Action::Reset });
        let refused: Vec<Rule> = whole.chain(ports).collect();
        let hairpin: BTreeSet<IpAddr> =
            self.services.iter().flat_map(ServiceVip::usable).map(|e| e.ip()).collect();
        let hairpin = hairpin.into_iter().map(|ip| Rule {
            matches: vec![Match::Source(IpNet::from(ip)), Match::Destination(IpNet::from(ip))],
            action: Action::Masquerade,
        });

        let jump =
            |name: &str| vec![Rule { matches: Vec::new(), action: Action::Jump(name.to_owned()) }];
        let base = |name: &str, kind, hook, priority, rules| Chain {
            name: name.to_owned(),
            base: Some(Base { kind, hook, priority }),
            rules,
        };
        chains.push(Chain { name: "services".to_owned(), base: None, rules: services });
        chains.push(Chain { name: "refused".to_owned(), base: None, rules: refused });
        chains.extend([
            base("prerouting", Kind::Nat, Hook::Prerouting, DSTNAT, jump("services")),
            base("output", Kind::Nat, Hook::Output, DSTNAT, jump("services")),
            base("arriving", Kind::Filter, Hook::Prerouting, AFTER_DSTNAT, jump("refused")),
            base("leaving", Kind::Filter, Hook::Output, AFTER_DSTNAT, jump("refused")),
            base("hairpin", Kind::Nat, Hook::Postrouting, SRCNAT, hairpin.collect()),
        ]);
        Table { name: TABLE, chains }
    }
}

impl ServiceVip {
    fn usable(&self) -> Vec<SocketAddr> {
        self.endpoints.iter().filter(|e| e.is_ipv4() == self.vip.is_ipv4()).copied().collect()
    }

    fn matches(&self) -> Vec<Match> {
        vec![
            Match::Destination(IpNet::from(self.vip)),
            Match::Tcp,
            Match::DestinationPort(self.port..=self.port),
        ]
    }

    fn chain_name(&self) -> String {
        format!("vip-{}-{}", self.vip, self.port).replace(':', "_")
    }
}

/// Each endpoint with the same probability: the first of n one time in n, else the second one time
/// in n − 1, and so on.
fn spread(endpoints: &[SocketAddr]) -> Vec<Rule> {
    endpoints
        .iter()
        .zip((1..=endpoints.len()).rev())
        .map(|(&endpoint, left)| Rule {
            matches: match u32::try_from(left) {
                Ok(1) | Err(_) => Vec::new(),
                Ok(left) => vec![Match::OneIn(left)],
            },
            action: Action::Dnat(endpoint),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port of the node's address.
    fn at_node(port: u16, endpoints: &[&str]) -> ServiceVip {
        let endpoints = endpoints.iter().map(|e| e.parse().unwrap()).collect();
        ServiceVip { vip: "10.244.0.1".parse().unwrap(), port, endpoints, shared: true }
    }

    #[test]
    fn endpoints_share_evenly_and_other_ports_are_refused() {
        let nat = ServiceNat::new(vec![
            ServiceVip {
                vip: "10.96.0.1".parse().unwrap(),
                port: 80,
                endpoints: ["10.244.0.2:8080", "10.244.0.3:8080", "[fd00::3]:8080"]
                    .map(|e| e.parse().unwrap())
                    .to_vec(),
                shared: false,
            },
            ServiceVip {
                vip: "10.96.0.1".parse().unwrap(),
                port: 81,
                endpoints: Vec::new(),
                shared: false,
            },
            at_node(30080, &["10.244.0.2:8080"]),
            at_node(30081, &[]),
        ]);
        assert_eq!(
            nat.table().to_string(),
            "table inet remora-services {
\tchain vip-10.96.0.1-80 {
\t\tnumgen random mod 2 0 dnat ip to 10.244.0.2:8080
\t\tdnat ip to 10.244.0.3:8080
\t}

\tchain vip-10.244.0.1-30080 {
\t\tdnat ip to 10.244.0.2:8080
\t}

\tchain services {
\t\tip daddr 10.96.0.1/32 meta l4proto tcp tcp dport 80 jump vip-10.96.0.1-80
\t\tip daddr 10.244.0.1/32 meta l4proto tcp tcp dport 30080 jump vip-10.244.0.1-30080
\t}

\tchain refused {
\t\tip daddr 10.96.0.1/32 meta l4proto tcp reject with tcp reset
\t\tip daddr 10.244.0.1/32 meta l4proto tcp tcp dport 30081 reject with tcp reset
\t}

\tchain prerouting {
\t\ttype nat hook prerouting priority -100; policy accept;
\t\tjump services
\t}

\tchain output {
\t\ttype nat hook output priority -100; policy accept;
\t\tjump services
\t}

\tchain arriving {
\t\ttype filter hook prerouting priority -50; policy accept;
\t\tjump refused
\t}

\tchain leaving {
\t\ttype filter hook output priority -50; policy accept;
\t\tjump refused
\t}

\tchain hairpin {
\t\ttype nat hook postrouting priority 100; policy accept;
\t\tip saddr 10.244.0.2/32 ip daddr 10.244.0.2/32 masquerade
\t\tip saddr 10.244.0.3/32 ip daddr 10.244.0.3/32 masquerade
\t}
}
"
        );
    }
}
