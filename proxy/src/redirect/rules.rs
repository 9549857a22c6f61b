//! Which of a pod's connections go to its proxy.

use std::ops::RangeInclusive;

use ipnet::IpNet;
use remora_core::{
    names::{PROXY_UID, ports},
    settings::PortSet,
};

use super::{
    TABLE,
    nft::{Action, Base, Chain, Hook, Kind, Match, Rule, Table},
};

/// What to intercept and what to leave alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectConfig {
    /// The proxy's listener for what the application dials, on the loopback addresses.
    pub outbound_port: u16,
    /// The proxy's listener for what others dial.
    pub inbound_port: u16,
    /// The proxy's admin port; reached directly.
    pub admin_port: u16,
    /// How the proxy's own connections are told from the application's.
    pub exempt: Exempt,
    /// Ports on which the application is reached directly.
    pub skip_inbound: PortSet,
    /// Ports that the application dials directly.
    pub skip_outbound: PortSet,
    /// Networks that the application dials directly and that reach it directly.
    pub skip_subnets: Vec<IpNet>,
}

/// How the proxy's own connections are told from the application's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exempt {
    /// By the user the proxy runs as.
    Uid(u32),
    /// By the mark (`SO_MARK`) on its sockets, where a user namespace knows only one user.
    Mark(u32),
}

/// The priority at which destinations are translated (`dstnat`).
const DSTNAT: i32 = -100;

impl Default for RedirectConfig {
    fn default() -> Self {
        Self {
            outbound_port: ports::OUTBOUND,
            inbound_port: ports::INBOUND,
            admin_port: ports::PROXY_ADMIN,
            exempt: Exempt::Uid(PROXY_UID),
            skip_inbound: PortSet::default(),
            skip_outbound: PortSet::default(),
            skip_subnets: Vec::new(),
        }
    }
}

impl RedirectConfig {
    /// The rules. UDP and ICMP are never touched.
    #[must_use]
    pub fn table(&self) -> Table {
        let chain = |name: &str, hook, rules| Chain {
            name: name.to_owned(),
            base: Some(Base { kind: Kind::Nat, hook, priority: DSTNAT }),
            rules,
        };
        Table {
            name: TABLE,
            chains: vec![
                chain("output", Hook::Output, self.output()),
                chain("prerouting", Hook::Prerouting, self.prerouting()),
            ],
        }
    }

    /// What leaves the pod. A connection over the loopback device stays within the pod, be it to
    /// 127.0.0.1 or to the pod's own address: left alone, so that a pod that dials itself reaches
    /// itself, and the proxy reaches its application.
    fn output(&self) -> Vec<Rule> {
        let exempt = match self.exempt {
            Exempt::Uid(uid) => Match::Uid(uid),
            Exempt::Mark(mark) => Match::Mark(mark),
        };
        let mut rules = vec![accept(vec![exempt]), accept(vec![Match::ToLoopback])];
        rules.extend(self.skip_subnets.iter().map(|&net| accept(vec![Match::Destination(net)])));
        rules.extend(self.skip_outbound.ranges().map(accept_port));
        rules.push(redirect(self.outbound_port));
        rules
    }

    /// What arrives from outside the pod.
    fn prerouting(&self) -> Vec<Rule> {
        let mut rules = vec![accept(vec![Match::FromLoopback])];
        rules.extend(self.skip_subnets.iter().map(|&net| accept(vec![Match::Source(net)])));
        rules.extend([self.inbound_port, self.admin_port].map(|port| accept_port(&(port..=port))));
        rules.extend(self.skip_inbound.ranges().map(accept_port));
        rules.push(redirect(self.inbound_port));
        rules
    }
}

fn accept(matches: Vec<Match>) -> Rule {
    Rule { matches, action: Action::Accept }
}

fn accept_port(ports: &RangeInclusive<u16>) -> Rule {
    accept(vec![Match::Tcp, Match::DestinationPort(ports.clone())])
}

fn redirect(port: u16) -> Rule {
    Rule { matches: vec![Match::Tcp], action: Action::Redirect(port) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_intercept_all_tcp_but_the_proxys() {
        assert_eq!(
            RedirectConfig::default().table().to_string(),
            "table inet remora {
\tchain output {
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta skuid 2102 accept
\t\toifname \"lo\" accept
\t\tmeta l4proto tcp redirect to :4140
\t}

\tchain prerouting {
\t\ttype nat hook prerouting priority -100; policy accept;
\t\tiifname \"lo\" accept
\t\tmeta l4proto tcp tcp dport 4143 accept
\t\tmeta l4proto tcp tcp dport 4191 accept
\t\tmeta l4proto tcp redirect to :4143
\t}
}
"
        );
    }

    #[test]
    fn skipped_ports_and_subnets_stand_before_the_redirect() {
        let config = RedirectConfig {
            exempt: Exempt::Mark(0x2102),
            skip_inbound: "22,8000-8010".parse().unwrap(),
            skip_outbound: "5432".parse().unwrap(),
            skip_subnets: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            ..RedirectConfig::default()
        };
        assert_eq!(
            config.table().to_string(),
            "table inet remora {
\tchain output {
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta mark 0x2102 accept
\t\toifname \"lo\" accept
\t\tip daddr 10.0.0.0/8 accept
\t\tip6 daddr fd00::/8 accept
\t\tmeta l4proto tcp tcp dport 5432 accept
\t\tmeta l4proto tcp redirect to :4140
\t}

\tchain prerouting {
\t\ttype nat hook prerouting priority -100; policy accept;
\t\tiifname \"lo\" accept
\t\tip saddr 10.0.0.0/8 accept
\t\tip6 saddr fd00::/8 accept
\t\tmeta l4proto tcp tcp dport 4143 accept
\t\tmeta l4proto tcp tcp dport 4191 accept
\t\tmeta l4proto tcp tcp dport 22 accept
\t\tmeta l4proto tcp tcp dport 8000-8010 accept
\t\tmeta l4proto tcp redirect to :4143
\t}
}
"
        );
    }
}
