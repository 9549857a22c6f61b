//! A fixed hash, and the name of an endpoint that is made with it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// 64-bit hash of some bytes: FNV-1a, mixed by the finaliser of SplitMix64. It is the same in every
/// process and every version, because cookies and rings are made with it. It keeps no secret:
/// whoever chooses the bytes can choose the hash.
#[must_use]
pub fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    mix(fnv1a(bytes))
}

/// [`hash`] of an IP address; one of IPv4 is the same when it is written as one of IPv6.
#[must_use]
pub fn hash_address(address: IpAddr) -> u64 {
    hash(octets(address))
}

/// Names an endpoint by its address and pod, in 64 bits: what a cookie carries, and where the
/// endpoint's points on a ring begin. Printed as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Token(u64);

impl Token {
    /// The token of an endpoint; the pod's name is empty if unknown. An address that is handed on
    /// to another pod gets another token.
    #[must_use]
    pub fn of(address: SocketAddr, pod: &str) -> Self {
        let address = octets(address.ip()).into_iter().chain(address.port().to_be_bytes());
        Self(hash(address.chain(pod.bytes())))
    }

    /// An endless sequence of numbers that are as good as random (SplitMix64).
    pub(super) fn sequence(self) -> impl Iterator<Item = u64> {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let step = |state: &u64| Some(state.wrapping_add(GOLDEN));
        std::iter::successors(step(&self.0), step).map(mix)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// No token: it has 16 digits in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an endpoint's token, which has 16 hexadecimal digits in lower case")]
pub struct NotAToken;

impl FromStr for Token {
    type Err = NotAToken;

    fn from_str(s: &str) -> Result<Self, NotAToken> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if s.len() != 16 || !s.bytes().all(digit) {
            return Err(NotAToken);
        }
        u64::from_str_radix(s, 16).map(Self).map_err(|_| NotAToken)
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// FNV-1a of 64 bits (RFC 9923).
fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// SplitMix64's finaliser: each bit of the input changes half of the output's. FNV-1a alone leaves
/// short inputs close together.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_the_hash_are_the_published_functions() {
        let published = [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c)];
        for (text, hash) in published.into_iter().chain([("foobar", 0x8594_4171_f739_67e8)]) {
            assert_eq!(fnv1a(text.bytes()), hash, "{text}");
        }
        // The first numbers of SplitMix64 with seed 1234567.
        let numbers: Vec<_> = Token(1_234_567).sequence().take(3).collect();
        assert_eq!(
            numbers,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    /// Cookies outlive processes and versions, so these never change.
    #[test]
    fn tokens_are_the_same_for_ever() {
        let token = |address: &str, pod| Token::of(address.parse().unwrap(), pod).to_string();
        assert_eq!(token("10.244.0.7:8080", "orders-1"), "fdbdc538992419f3");
        assert_eq!(token("[::ffff:10.244.0.7]:8080", "orders-1"), "fdbdc538992419f3");
        assert_eq!(token("[fd00::7]:8080", ""), "1f4b714dc8c7d316");
    }

    #[test]
    fn address_port_and_pod_all_count() {
        let token = |address: &str, pod| Token::of(address.parse().unwrap(), pod);
        let first = token("10.0.0.1:80", "a");
        for other in
            [token("10.0.0.2:80", "a"), token("10.0.0.1:81", "a"), token("10.0.0.1:80", "b")]
        {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn a_token_is_read_back_and_nothing_else_is_taken_for_one() {
        let token = Token(0x00ab_0000_0000_0001);
        assert_eq!(token.to_string(), "00ab000000000001");
        assert_eq!(token.to_string().parse(), Ok(token));
        for bad in ["", "ab", "00AB000000000001", "+0ab000000000001", "00ab0000000000011", "ä"] {
            assert_eq!(bad.parse::<Token>(), Err(NotAToken), "{bad}");
        }
    }
}
