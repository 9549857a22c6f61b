//! As much of nf_tables as Remora needs: a table as a value, printable in nft's own language and
//! written to the kernel over netlink, so that no `nft` binary is needed.
//!
//! Tables are of the family `inet` (IPv4 and IPv6 together; NAT in it since Linux 5.2).

mod encode;
mod netlink;

use std::{fmt, net::SocketAddr, ops::RangeInclusive};

use ipnet::IpNet;
pub use netlink::{NftError, create, remove, replace};

/// A table of the family `inet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Name, unique in a network namespace.
    pub name: &'static str,
    /// Chains in order; a chain that others jump to stands before them.
    pub chains: Vec<Chain>,
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name, unique in the table.
    pub name: String,
    /// Where packets enter it; `None` where only other chains jump to it.
    pub base: Option<Base>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// Where packets enter a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// `nat` chains see the first packet of a connection only, `filter` chains every packet.
    pub kind: Kind,
    /// Point in the packet's way.
    pub hook: Hook,
    /// Order among the chains of one hook; smaller is earlier.
    pub priority: i32,
}

/// Type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Address translation.
    Nat,
    /// Accepting and rejecting.
    Filter,
}

/// Point in a packet's way through the network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Arrived, not routed yet.
    Prerouting,
    /// Made here.
    Output,
    /// Routed, about to leave.
    Postrouting,
}

/// What happens to packets that match everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub matches: Vec<Match>,
    /// What then happens.
    pub action: Action,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// The transport is TCP.
    Tcp,
    /// The packet came in over the loopback device.
    FromLoopback,
    /// The packet goes out over the loopback device.
    ToLoopback,
    /// The sending socket belongs to this user.
    Uid(u32),
    /// The sending socket carries this mark.
    Mark(u32),
    /// Source address.
    Source(IpNet),
    /// Destination address.
    Destination(IpNet),
    /// Destination port of TCP; [`Match::Tcp`] stands before it.
    DestinationPort(RangeInclusive<u16>),
    /// One time in so many, at random.
    OneIn(u32),
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Leave it as it is and look at no further rule of this hook's chain.
    Accept,
    /// Go through another chain, then on with the next rule.
    Jump(String),
    /// To this port of the machine itself: of the loopback address where it was made here, of the
    /// incoming device's address where it arrived.
    Redirect(u16),
    /// To this address and port.
    Dnat(SocketAddr),
    /// Take the outgoing device's address as the source.
    Masquerade,
    /// Answer with a TCP reset.
    Reset,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.name)?;
        for (i, chain) in self.chains.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            writeln!(f, "\tchain {} {{", chain.name)?;
            if let Some(base) = chain.base {
                writeln!(f, "\t\t{base}")?;
            }
            for rule in &chain.rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Nat => "nat",
            Kind::Filter => "filter",
        };
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        };
        write!(f, "type {kind} hook {hook} priority {}; policy accept;", self.priority)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        write!(f, "{}", self.action)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("meta l4proto tcp"),
            Self::FromLoopback => f.write_str("iifname \"lo\""),
            Self::ToLoopback => f.write_str("oifname \"lo\""),
            Self::Uid(uid) => write!(f, "meta skuid {uid}"),
            Self::Mark(mark) => write!(f, "meta mark {mark:#x}"),
            Self::Source(net) => write!(f, "{} saddr {net}", family_word(net)),
            Self::Destination(net) => write!(f, "{} daddr {net}", family_word(net)),
            Self::DestinationPort(ports) if ports.start() == ports.end() => {
                write!(f, "tcp dport {}", ports.start())
            }
            Self::DestinationPort(ports) => {
                write!(f, "tcp dport {}-{}", ports.start(), ports.end())
            }
            Self::OneIn(n) => write!(f, "numgen random mod {n} 0"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Redirect(port) => write!(f, "redirect to :{port}"),
            Self::Dnat(to @ SocketAddr::V4(_)) => write!(f, "dnat ip to {to}"),
            Self::Dnat(to @ SocketAddr::V6(_)) => write!(f, "dnat ip6 to {to}"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::Reset => f.write_str("reject with tcp reset"),
        }
    }
}

fn family_word(net: &IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    }
}
