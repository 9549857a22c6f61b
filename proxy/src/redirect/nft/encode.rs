//! A table as netlink messages (`linux/netfilter/nf_tables.h`, `nfnetlink.h`).

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{Action, Base, Hook, Kind, Match, Rule, Table};

/// One request of a transaction, without its netlink header.
#[derive(Debug)]
pub(super) struct Request {
    /// Message type within nf_tables.
    pub(super) kind: u8,
    /// Flags beyond `NLM_F_REQUEST`.
    pub(super) flags: u16,
    /// Attributes.
    pub(super) body: Vec<u8>,
    /// What this asks for, for error texts.
    pub(super) what: String,
}

const NEWTABLE: u8 = 0;
const DELTABLE: u8 = 2;
const NEWCHAIN: u8 = 3;
const NEWRULE: u8 = 6;

const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;

const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
const REG_2: u32 = 2;

const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_SKUID: u32 = 10;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

const CMP_EQ: u32 = 0;
const CMP_LTE: u32 = 3;
const CMP_GTE: u32 = 5;

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// Requests that leave the kernel without this table, whether or not it is there: it is made (a
/// no-op where it exists) so that deleting it cannot fail.
pub(super) fn delete(table: &str) -> Vec<Request> {
    let body = |a: &mut Attributes| {
        a.text(1, table);
    };
    let what = || format!("table inet {table}");
    vec![
        Request { kind: NEWTABLE, flags: NLM_F_CREATE, body: attributes(body), what: what() },
        Request { kind: DELTABLE, flags: 0, body: attributes(body), what: what() },
    ]
}

/// Requests that create the table with all its chains and rules.
pub(super) fn create(table: &Table) -> Vec<Request> {
    let mut requests = vec![Request {
        kind: NEWTABLE,
        flags: NLM_F_CREATE,
        body: attributes(|a| a.text(1, table.name)),
        what: format!("table inet {}", table.name),
    }];
    for chain in &table.chains {
        requests.push(Request {
            kind: NEWCHAIN,
            flags: NLM_F_CREATE,
            body: attributes(|a| {
                a.text(1, table.name);
                a.text(3, &chain.name);
                if let Some(base) = chain.base {
                    encode_base(a, base);
                }
            }),
            what: match chain.base {
                Some(base) => format!("chain {} ({base})", chain.name),
                None => format!("chain {}", chain.name),
            },
        });
    }
    for chain in &table.chains {
        for rule in &chain.rules {
            requests.push(Request {
                kind: NEWRULE,
                flags: NLM_F_CREATE | NLM_F_APPEND,
                body: attributes(|a| {
                    a.text(1, table.name);
                    a.text(2, &chain.name);
                    a.nest(4, |a| encode_rule(a, rule));
                }),
                what: format!("rule \"{rule}\""),
            });
        }
    }
    requests
}

fn encode_base(a: &mut Attributes, base: Base) {
    a.nest(4, |a| {
        a.u32(
            1,
            match base.hook {
                Hook::Prerouting => 0,
                Hook::Output => 3,
                Hook::Postrouting => 4,
            },
        );
        a.u32(2, base.priority.cast_unsigned());
    });
    a.text(
        7,
        match base.kind {
            Kind::Nat => "nat",
            Kind::Filter => "filter",
        },
    );
}

fn encode_rule(a: &mut Attributes, rule: &Rule) {
    for condition in &rule.matches {
        encode_match(a, condition);
    }
    encode_action(a, &rule.action);
}

fn encode_match(a: &mut Attributes, condition: &Match) {
    match condition {
        Match::Tcp => meta_is(a, META_L4PROTO, &[IPPROTO_TCP]),
        Match::FromLoopback => meta_is(a, META_IIFNAME, &device_name()),
        Match::ToLoopback => meta_is(a, META_OIFNAME, &device_name()),
        Match::Uid(uid) => meta_is(a, META_SKUID, &uid.to_ne_bytes()),
        Match::Mark(mark) => meta_is(a, META_MARK, &mark.to_ne_bytes()),
        Match::Source(net) => address_in(a, net, 12, 8),
        Match::Destination(net) => address_in(a, net, 16, 24),
        Match::DestinationPort(ports) => {
            payload(a, TRANSPORT_HEADER, 2, 2);
            if ports.start() == ports.end() {
                compare(a, CMP_EQ, &ports.start().to_be_bytes());
            } else {
                compare(a, CMP_GTE, &ports.start().to_be_bytes());
                compare(a, CMP_LTE, &ports.end().to_be_bytes());
            }
        }
        Match::OneIn(n) => {
            a.expression("numgen", |a| {
                a.u32(1, REG_1);
                a.u32(2, *n);
                a.u32(3, 1); // NFT_NG_RANDOM
            });
            compare(a, CMP_EQ, &0u32.to_ne_bytes());
        }
    }
}

fn encode_action(a: &mut Attributes, action: &Action) {
    match action {
        Action::Accept => verdict(a, 1, None),
        Action::Jump(chain) => verdict(a, -3, Some(chain)),
        Action::Redirect(port) => {
            load(a, REG_1, &port.to_be_bytes());
            a.expression("redir", |a| {
                a.u32(1, REG_1);
                a.u32(3, 2); // NF_NAT_RANGE_PROTO_SPECIFIED
            });
        }
        Action::Dnat(to) => {
            match to.ip() {
                IpAddr::V4(ip) => load(a, REG_1, &ip.octets()),
                IpAddr::V6(ip) => load(a, REG_1, &ip.octets()),
            }
            load(a, REG_2, &to.port().to_be_bytes());
            let family = if matches!(to, SocketAddr::V4(_)) { NFPROTO_IPV4 } else { NFPROTO_IPV6 };
            a.expression("nat", |a| {
                a.u32(1, 1); // NFT_NAT_DNAT
                a.u32(2, family.into());
                a.u32(3, REG_1);
                a.u32(5, REG_2);
            });
        }
        Action::Masquerade => a.expression("masq", |_| {}),
        Action::Reset => a.expression("reject", |a| {
            a.u32(1, 1); // NFT_REJECT_TCP_RST
            a.bytes(2, &[0]);
        }),
    }
}

fn meta_is(a: &mut Attributes, key: u32, value: &[u8]) {
    a.expression("meta", |a| {
        a.u32(2, key);
        a.u32(1, REG_1);
    });
    compare(a, CMP_EQ, value);
}

/// An interface name is compared with all its 16 bytes.
fn device_name() -> [u8; 16] {
    let mut name = [0; 16];
    name[..2].copy_from_slice(b"lo");
    name
}

fn address_in(a: &mut Attributes, net: &IpNet, offset_v4: u32, offset_v6: u32) {
    match net {
        IpNet::V4(net) => {
            meta_is(a, META_NFPROTO, &[NFPROTO_IPV4]);
            payload(a, NETWORK_HEADER, offset_v4, 4);
            masked(a, net.prefix_len() < 32, &net.netmask().octets());
            compare(a, CMP_EQ, &net.network().octets());
        }
        IpNet::V6(net) => {
            meta_is(a, META_NFPROTO, &[NFPROTO_IPV6]);
            payload(a, NETWORK_HEADER, offset_v6, 16);
            masked(a, net.prefix_len() < 128, &net.netmask().octets());
            compare(a, CMP_EQ, &net.network().octets());
        }
    }
}

fn masked(a: &mut Attributes, needed: bool, mask: &[u8]) {
    if !needed {
        return;
    }
    a.expression("bitwise", |a| {
        a.u32(1, REG_1);
        a.u32(2, REG_1);
        a.u32(3, u32::try_from(mask.len()).expect("invariant: a netmask has 4 or 16 bytes"));
        a.nest(4, |a| a.bytes(1, mask));
        a.nest(5, |a| a.bytes(1, &vec![0; mask.len()]));
    });
}

fn payload(a: &mut Attributes, base: u32, offset: u32, len: u32) {
    a.expression("payload", |a| {
        a.u32(1, REG_1);
        a.u32(2, base);
        a.u32(3, offset);
        a.u32(4, len);
    });
}

fn compare(a: &mut Attributes, op: u32, value: &[u8]) {
    a.expression("cmp", |a| {
        a.u32(1, REG_1);
        a.u32(2, op);
        a.nest(3, |a| a.bytes(1, value));
    });
}

fn load(a: &mut Attributes, register: u32, value: &[u8]) {
    a.expression("immediate", |a| {
        a.u32(1, register);
        a.nest(2, |a| a.bytes(1, value));
    });
}

fn verdict(a: &mut Attributes, code: i32, chain: Option<&str>) {
    a.expression("immediate", |a| {
        a.u32(1, REG_VERDICT);
        a.nest(2, |a| {
            a.nest(2, |a| {
                a.u32(1, code.cast_unsigned());
                if let Some(chain) = chain {
                    a.text(2, chain);
                }
            });
        });
    });
}

fn attributes(fill: impl FnOnce(&mut Attributes)) -> Vec<u8> {
    let mut a = Attributes(Vec::new());
    fill(&mut a);
    a.0
}

/// Netlink attributes: length, type, value, padded to four bytes; numbers in network order.
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(&mut self, kind: u16, value: &[u8]) {
        let start = self.begin(kind);
        self.0.extend_from_slice(value);
        self.end(start);
    }

    fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn text(&mut self, kind: u16, value: &str) {
        let start = self.begin(kind);
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        self.end(start);
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.begin(kind | NLA_F_NESTED);
        fill(self);
        self.end(start);
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.nest(1, |a| {
            a.text(1, name);
            a.nest(2, fill);
        });
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn end(&mut self, start: usize) {
        let len = u16::try_from(self.0.len() - start)
            .expect("invariant: a rule has a handful of expressions, far below 64 KiB");
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
