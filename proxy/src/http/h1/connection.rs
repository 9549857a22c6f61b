//! What a head says about its connection, and what it may not take beyond it (RFC 9110 §7.6.1).

use super::head::{Head, Name};

/// The options of all `Connection` fields together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Connection {
    /// This message is the last one.
    pub(super) close: bool,
    /// HTTP/1.0: it is not.
    pub(super) keep_alive: bool,
    /// The protocol of the `Upgrade` field is asked for, or granted.
    pub(super) upgrade: bool,
    /// Other fields are named as belonging to this connection.
    nominates: bool,
}

impl Connection {
    /// Adds one field's options.
    pub(super) fn read(&mut self, value: &[u8]) {
        for option in options(value) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else {
                self.nominates = true;
            }
        }
    }

    /// Whether the connection can carry another message after this one (RFC 9112 §9.3).
    pub(super) fn persists(self, minor: u8) -> bool {
        !self.close && (minor > 0 || self.keep_alive)
    }

    /// Removes what belongs to this connection alone: the fields that HTTP names and those that the
    /// message does. `Upgrade` and `Transfer-Encoding` are left to the caller.
    pub(super) fn strip(self, head: &mut Head) {
        if self.nominates {
            remove_nominated(head);
        }
        head.remove_all(|name| {
            use Name::{Connection, Http2Settings, KeepAlive, ProxyConnection};
            matches!(name, Connection | Http2Settings | KeepAlive | ProxyConnection)
        });
        // The only value that means something beyond the next hop is the wish for trailers.
        let te: Vec<_> = head
            .iter()
            .filter(|(_, name, value)| *name == Name::Te && *value != b"trailers")
            .map(|(at, _, value)| (at, options(value).any(|te| te == b"trailers")))
            .collect();
        for (at, _) in &te {
            head.remove_at(*at);
        }
        if te.iter().any(|(_, trailers)| *trailers) {
            head.add("TE", b"trailers");
        }
    }
}

fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|option| !option.is_empty())
}

fn remove_nominated(head: &mut Head) {
    let nominated: Vec<Vec<u8>> = head
        .iter()
        .filter(|(_, name, _)| *name == Name::Connection)
        .flat_map(|(_, _, value)| options(value).map(<[u8]>::to_vec))
        .collect();
    let gone: Vec<usize> = head
        .iter()
        .map(|(at, ..)| at)
        .filter(|at| {
            let name = head.name_at(*at);
            !is_end_to_end(name) && nominated.iter().any(|n| n.eq_ignore_ascii_case(name))
        })
        .collect();
    for at in gone {
        head.remove_at(at);
    }
}

/// Fields that a sender cannot make hop-by-hop by nominating them, because routing, framing or
/// access depends on them.
fn is_end_to_end(name: &[u8]) -> bool {
    const KEPT: [&[u8]; 8] = [
        b"authorization",
        b"content-length",
        b"content-type",
        b"cookie",
        b"host",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    ];
    KEPT.iter().any(|kept| kept.eq_ignore_ascii_case(name))
}
