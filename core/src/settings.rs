//! What annotation values mean. Every parser here answers with an error that repeats the value and
//! says what is accepted; the caller adds the annotation's name ([`read`] does).

mod sight;

use std::{collections::BTreeMap, fmt, ops::RangeInclusive, str::FromStr, time::Duration};

pub use sight::{AccessLog, SampleRate, TraceCollector};

/// An annotation whose value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key}: {problem}")]
pub struct InvalidAnnotation {
    /// The annotation's name.
    pub key: String,
    /// The value, what is wrong with it and what is accepted.
    pub problem: String,
}

/// Reads one annotation; absent is `None`.
///
/// # Errors
/// Where the value does not parse, with the annotation's name.
pub fn read<T>(
    annotations: &BTreeMap<String, String>,
    key: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, InvalidAnnotation> {
    annotations
        .get(key)
        .map(|value| {
            parse(value.trim())
                .map_err(|problem| InvalidAnnotation { key: key.to_owned(), problem })
        })
        .transpose()
}

/// What holds for a pod of what it and its namespace say: its own word, else the namespace's. The
/// injector writes the sidecar by this rule and the control plane describes it by the same.
pub fn in_force<T>(on_pod: Option<T>, on_namespace: Option<T>) -> Option<T> {
    on_pod.or(on_namespace)
}

/// Value of `remora.io/inject`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inject {
    /// Pods get a sidecar.
    Enabled,
    /// Pods get none, whatever the namespace says.
    Disabled,
}

/// What writes the interception rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RedirectBackend {
    /// nf_tables, over netlink.
    #[default]
    Nft,
    /// `iptables-legacy-restore`, else `iptables-restore`, and the same for IPv6.
    Iptables,
    /// nf_tables, where the kernel has it; else iptables.
    Auto,
}

impl RedirectBackend {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Iptables => "iptables",
            Self::Auto => "auto",
        }
    }
}

impl fmt::Display for RedirectBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for RedirectBackend {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let mut all = [Self::Nft, Self::Iptables, Self::Auto].into_iter();
        all.find(|backend| backend.as_str() == s)
            .ok_or_else(|| format!("{s:?} is none of nft, iptables, auto"))
    }
}

impl FromStr for Inject {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "enabled" => Ok(Self::Enabled),
            "disabled" => Ok(Self::Disabled),
            other => Err(format!("{other:?} is neither enabled nor disabled")),
        }
    }
}

/// Value of `config.remora.io/default-outbound-policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutboundPolicy {
    /// What the mesh does not know is dialled untouched.
    #[default]
    Allow,
    /// It is refused.
    Deny,
}

impl FromStr for OutboundPolicy {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            other => Err(format!("{other:?} is neither allow nor deny")),
        }
    }
}

/// Value of `config.remora.io/ingress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ingress {
    /// Who dials a pod's address means the Service whose endpoint it is.
    Enabled,
    /// Who dials a pod's address means that pod.
    #[default]
    Disabled,
}

impl FromStr for Ingress {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "enabled" => Ok(Self::Enabled),
            "disabled" => Ok(Self::Disabled),
            other => Err(format!("{other:?} is neither enabled nor disabled")),
        }
    }
}

/// Largest head of a request, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderSize(u32);

impl HeaderSize {
    /// Bytes.
    #[must_use]
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// So many bytes more, for what is added on the way.
    #[must_use]
    pub fn with_room_for(self, bytes: u32) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}

impl Default for HeaderSize {
    /// 64 KiB.
    fn default() -> Self {
        Self(64 * 1024)
    }
}

impl fmt::Display for HeaderSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes % 1024 == 0 => write!(f, "{}Ki", bytes / 1024),
            bytes => bytes.fmt(f),
        }
    }
}

impl FromStr for HeaderSize {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (digits, unit) = match (s.strip_suffix("Ki"), s.strip_suffix("Mi")) {
            (Some(digits), _) => (digits, 1024),
            (_, Some(digits)) => (digits, 1024 * 1024),
            _ => (s, 1),
        };
        let bytes = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit));
        bytes
            .filter(|bytes| (4 * 1024..=1024 * 1024).contains(bytes))
            .map(Self)
            .ok_or_else(|| format!("{s:?}: use a size from 4Ki to 1Mi, as in 64Ki"))
    }
}

/// The six default policies for a pod's own ports (the words that Linkerd's users know).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DefaultPolicy {
    /// Anyone.
    #[default]
    AllUnauthenticated,
    /// Anyone with a mesh identity.
    AllAuthenticated,
    /// Anyone with a mesh identity of this trust domain.
    ClusterAuthenticated,
    /// Anyone from this cluster's networks.
    ClusterUnauthenticated,
    /// Nobody but probes.
    Deny,
    /// Anyone, but what `deny` would refuse is counted.
    Audit,
}

impl DefaultPolicy {
    /// All of them, with their words.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::AllUnauthenticated, "all-unauthenticated"),
        (Self::AllAuthenticated, "all-authenticated"),
        (Self::ClusterAuthenticated, "cluster-authenticated"),
        (Self::ClusterUnauthenticated, "cluster-unauthenticated"),
        (Self::Deny, "deny"),
        (Self::Audit, "audit"),
    ];
}

impl FromStr for DefaultPolicy {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.iter().find(|(_, word)| *word == s).map(|(policy, _)| *policy).ok_or_else(|| {
            format!("{s:?} is no policy; use one of {}", Self::ALL.map(|(_, word)| word).join(", "))
        })
    }
}

impl fmt::Display for DefaultPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::ALL.iter().find(|(policy, _)| policy == self).map_or("", |(_, word)| word);
        f.write_str(word)
    }
}

/// A set of TCP ports: `22,8000-8010`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortSet(Vec<RangeInclusive<u16>>);

impl PortSet {
    /// A set of single ports.
    #[must_use]
    pub fn of(ports: &[u16]) -> Self {
        Self(ports.iter().map(|&port| port..=port).collect())
    }

    /// Whether a port is in it.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// The ranges, in the order given.
    pub fn ranges(&self) -> impl Iterator<Item = &RangeInclusive<u16>> {
        self.0.iter()
    }

    /// Whether no port is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for PortSet {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let port = |text: &str| {
            // The library's parser takes a sign too.
            let digits = text.trim().bytes().all(|b| b.is_ascii_digit());
            match text.trim().parse::<u16>() {
                Ok(n) if n > 0 && digits => Ok(n),
                _ => Err(format!(
                    "{text:?} is no port; use numbers from 1 to 65535 and ranges, as in 22,8000-8010"
                )),
            }
        };
        s.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| match part.split_once('-') {
                None => port(part).map(|n| n..=n),
                Some((from, to)) => {
                    let (from, to) = (port(from)?, port(to)?);
                    if from > to {
                        return Err(format!(
                            "range {part:?} ends before it begins; did you mean {to}-{from}?"
                        ));
                    }
                    Ok(from..=to)
                }
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if range.start() == range.end() {
                write!(f, "{comma}{}", range.start())?;
            } else {
                write!(f, "{comma}{}-{}", range.start(), range.end())?;
            }
        }
        Ok(())
    }
}

/// Subnets: `10.0.0.0/8,fd00::/8,192.0.2.7`.
///
/// # Errors
/// Names the part that is neither an address nor a CIDR.
pub fn parse_subnets(s: &str) -> Result<Vec<ipnet::IpNet>, String> {
    s.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.parse::<ipnet::IpNet>()
                .or_else(|_| part.parse::<std::net::IpAddr>().map(ipnet::IpNet::from))
                .map_err(|_| format!("{part:?} is no subnet; use CIDR as in 10.0.0.0/8"))
        })
        .collect()
}

/// A duration in the form of Gateway API (GEP-2257): `1h`, `90s`, `1m30s`, `250ms`; each unit at
/// most once, at most five digits.
///
/// # Errors
/// Repeats the value and the form.
pub fn parse_duration(s: &str) -> Result<Duration, String> {
    let fail = || format!("{s:?} is no duration; use for example 250ms, 10s, 1m30s or 24h");
    let mut rest = s;
    let mut total = Duration::ZERO;
    let mut units = [("h", 3_600_000u64), ("m", 60_000), ("s", 1000), ("ms", 1)].iter();
    if rest.is_empty() {
        return Err(fail());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest
            .get(..digits)
            .filter(|d| (1..=5).contains(&d.len()))
            .and_then(|d| d.parse().ok())
            .ok_or_else(fail)?;
        rest = &rest[digits..];
        let unit_len = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (_, millis) = units.find(|(unit, _)| *unit == &rest[..unit_len]).ok_or_else(fail)?;
        total += Duration::from_millis(number * millis);
        rest = &rest[unit_len..];
    }
    Ok(total)
}

/// A share between 0 and 1.
///
/// # Errors
/// Repeats the value and the bounds.
pub fn parse_ratio(s: &str) -> Result<f64, String> {
    match s.parse::<f64>() {
        Ok(v) if (0.0..=1.0).contains(&v) => Ok(v),
        _ => Err(format!("{s:?} is no share; use a number from 0.0 to 1.0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_follow_gep_2257() {
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        for bad in ["", "1", "s", "1.5s", "-1s", "1s1m", "1s1s", "100000s", "1 s", "1d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn port_sets_name_the_bad_part() {
        let set: PortSet = "22, 8000-8010".parse().unwrap();
        assert!(set.contains(22) && set.contains(8010) && !set.contains(8011));
        assert_eq!(set.to_string(), "22,8000-8010");
        for bad in ["0", "70000", "9-1", "a", "1-", "-1", "+1", "1-+2"] {
            assert!(bad.parse::<PortSet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_annotation_is_named() {
        let map = BTreeMap::from([("k".to_owned(), "maybe".to_owned())]);
        let error = read(&map, "k", str::parse::<Inject>).unwrap_err();
        assert_eq!(error.to_string(), "annotation k: \"maybe\" is neither enabled nor disabled");
    }

    proptest! {
        #[test]
        fn parsers_never_panic(s in "\\PC{0,24}|[0-9hms,.-]{0,16}") {
            let _ = parse_duration(&s);
            let _ = s.parse::<PortSet>();
            let _ = parse_subnets(&s);
            let _ = parse_ratio(&s);
        }
    }

    #[test]
    fn header_sizes_are_written_as_quantities() {
        for (text, bytes) in [("64Ki", 65_536), ("1Mi", 1 << 20), ("4096", 4096), ("5000", 5000)] {
            let size: HeaderSize = text.parse().unwrap();
            assert_eq!(size.bytes(), bytes);
            assert_eq!(size.to_string().parse::<HeaderSize>().unwrap(), size);
        }
        for bad in ["", "64K", "64KiB", "1Ki", "2Mi", "-1", "9999999999Ki", "Ki"] {
            let error = bad.parse::<HeaderSize>().unwrap_err();
            assert!(error.contains("64Ki"), "{error}");
        }
    }
}
