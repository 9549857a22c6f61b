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

/// What is intercepted, as a value: each backend writes this, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// What leaves the pod.
    pub outbound: Way,
    /// What arrives from outside it.
    pub inbound: Way,
}

/// One direction: TCP connections go to the proxy, but for exceptions. UDP and ICMP are never touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// Left alone where any of these holds.
    pub except: Vec<Except>,
    /// Port of the proxy's listener.
    pub to: u16,
}

/// Why a connection is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Except {
    /// This user's socket.
    Uid(u32),
    /// A socket that carries this mark.
    Mark(u32),
    /// It goes out over the loopback device.
    ToLoopback,
    /// It came in over the loopback device.
    FromLoopback,
    /// From this network.
    Source(IpNet),
    /// To this network.
    Destination(IpNet),
    /// To one of these ports.
    Ports(RangeInclusive<u16>),
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
    /// The rules.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules { outbound: self.outbound(), inbound: self.inbound() }
    }

    /// A connection over the loopback device stays within the pod, be it to 127.0.0.1 or to the
    /// pod's own address: left alone, so that a pod that dials itself reaches itself, and the proxy
    /// reaches its application.
    fn outbound(&self) -> Way {
        let exempt = match self.exempt {
            Exempt::Uid(uid) => Except::Uid(uid),
            Exempt::Mark(mark) => Except::Mark(mark),
        };
        let mut except = vec![exempt, Except::ToLoopback];
        except.extend(self.skip_subnets.iter().map(|&net| Except::Destination(net)));
        except.extend(self.skip_outbound.ranges().cloned().map(Except::Ports));
        Way { except, to: self.outbound_port }
    }

    fn inbound(&self) -> Way {
        let mut except = vec![Except::FromLoopback];
        except.extend(self.skip_subnets.iter().map(|&net| Except::Source(net)));
        except.extend([self.inbound_port, self.admin_port].map(|port| Except::Ports(port..=port)));
        except.extend(self.skip_inbound.ranges().cloned().map(Except::Ports));
        Way { except, to: self.inbound_port }
    }
}

impl Rules {
    /// As nf_tables has them.
    #[must_use]
    pub fn table(&self) -> Table {
        let chain = |name: &str, hook, way: &Way| Chain {
            name: name.to_owned(),
            base: Some(Base { kind: Kind::Nat, hook, priority: DSTNAT }),
            rules: way.nft(),
        };
        Table {
            name: TABLE,
            chains: vec![
                chain("output", Hook::Output, &self.outbound),
                chain("prerouting", Hook::Prerouting, &self.inbound),
            ],
        }
    }
}

impl Way {
    fn nft(&self) -> Vec<Rule> {
        let matches = |except: &Except| match except {
            Except::Uid(uid) => vec![Match::Uid(*uid)],
            Except::Mark(mark) => vec![Match::Mark(*mark)],
            Except::ToLoopback => vec![Match::ToLoopback],
            Except::FromLoopback => vec![Match::FromLoopback],
            Except::Source(net) => vec![Match::Source(*net)],
            Except::Destination(net) => vec![Match::Destination(*net)],
            Except::Ports(ports) => vec![Match::Tcp, Match::DestinationPort(ports.clone())],
        };
        let accept = |except| Rule { matches: matches(except), action: Action::Accept };
        let redirect = Rule { matches: vec![Match::Tcp], action: Action::Redirect(self.to) };
        self.except.iter().map(accept).chain([redirect]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_intercept_all_tcp_but_the_proxys() {
        assert_eq!(
            RedirectConfig::default().rules().table().to_string(),
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
            config.rules().table().to_string(),
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
