//! Where an application says that it wants to go: a host and a port.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// Longest host, in bytes (RFC 1035 §2.3.4, with the dots).
const MAX_HOST: usize = 255;

/// `host[:port]` (RFC 3986 §3.2, without user information); without a port it is 80.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// A literal address; that of IPv6 stands in brackets.
    Address(SocketAddr),
    /// A name in lower case, without the dot that may end it.
    Name(Box<str>, u16),
}

/// Why a text is no authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}; use host:port as in orders.shop:80 or [fd00::1]:80")]
pub struct InvalidAuthority(&'static str);

impl FromStr for Authority {
    type Err = InvalidAuthority;

    fn from_str(text: &str) -> Result<Self, InvalidAuthority> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, digits)) if !digits.ends_with(']') => (host, port(digits)?),
            _ => (text, 80),
        };
        let bad_address = InvalidAuthority("not an address of IPv6 between the brackets");
        if let Some(rest) = host.strip_prefix('[') {
            let inner = rest.strip_suffix(']').ok_or(bad_address)?;
            let ip: Ipv6Addr = inner.parse().map_err(|_| bad_address)?;
            return Ok(Self::Address(SocketAddr::new(ip.into(), port)));
        }
        let name = host.strip_suffix('.').unwrap_or(host);
        if let Ok(ip) = name.parse::<Ipv4Addr>() {
            return Ok(Self::Address(SocketAddr::new(IpAddr::V4(ip), port)));
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        let labels = name.split('.').all(|label| !label.is_empty());
        if !labels || name.len() > MAX_HOST || !name.bytes().all(allowed) {
            return Err(InvalidAuthority("not a host"));
        }
        Ok(Self::Name(name.to_ascii_lowercase().into(), port))
    }
}

/// Digits alone: the library's parser takes a sign too.
fn port(digits: &str) -> Result<u16, InvalidAuthority> {
    let port = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    port.filter(|port| *port > 0).ok_or(InvalidAuthority("not a port from 1 to 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_told_apart() {
        let name = |host: &str, port| Ok(Authority::Name(host.into(), port));
        let address = |text: &str| Ok(Authority::Address(text.parse().unwrap()));
        assert_eq!("Orders.shop.:8080".parse(), name("orders.shop", 8080));
        assert_eq!("orders".parse(), name("orders", 80));
        assert_eq!("10.0.0.9".parse(), address("10.0.0.9:80"));
        assert_eq!("10.0.0.9.".parse(), address("10.0.0.9:80"));
        assert_eq!("10.0.0.9:443".parse(), address("10.0.0.9:443"));
        assert_eq!("[fd00::1]".parse(), address("[fd00::1]:80"));
        assert_eq!("[fd00::1]:443".parse(), address("[fd00::1]:443"));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for bad in [
            "",
            ":80",
            ".",
            "a..",
            "a..b",
            "a:0",
            "a:+80",
            "a:65536",
            "a:",
            "a:b:80",
            "u@a:80",
            "a b",
            "fd00::1",
            "fd00::1:80",
            "[[fd00::1]]",
            "[fd00::1",
            "fd00::1]",
            "[fd00::1%1]:80",
            "[10.0.0.9]",
            "[a]",
        ] {
            assert!(bad.parse::<Authority>().is_err(), "{bad}");
        }
    }
}
