//! SPIFFE ids of Kubernetes workloads.

use std::{fmt, str::FromStr};

use crate::names::{CONTROL_PLANE_SERVICE_ACCOUNT, SYSTEM_NAMESPACE};

/// `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`, at most 2048 bytes
/// (SPIFFE-ID §2.3).
///
/// Kept as one string with two offsets, so that comparing, hashing and printing cost no assembly.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Box<str>,
    /// End of the trust domain, and start and end of the namespace, in `uri`.
    domain_end: u16,
    namespace_end: u16,
}

/// Why a string is no workload identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{uri:?} is no workload identity: {problem}; expected spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>"
)]
pub struct InvalidSpiffeId {
    uri: String,
    problem: &'static str,
}

const SCHEME: &str = "spiffe://";
const MAX_LEN: usize = 2048;

impl SpiffeId {
    /// The identity of a ServiceAccount.
    ///
    /// # Errors
    /// Where a part is empty, too long or has characters that SPIFFE forbids.
    pub fn new(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, InvalidSpiffeId> {
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The control plane's identity in a trust domain.
    ///
    /// # Errors
    /// Where the trust domain is not valid.
    pub fn control_plane(trust_domain: &str) -> Result<Self, InvalidSpiffeId> {
        Self::new(trust_domain, SYSTEM_NAMESPACE, CONTROL_PLANE_SERVICE_ACCOUNT)
    }

    /// The whole URI.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// For example `cluster.local`.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..usize::from(self.domain_end)]
    }

    /// The Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.uri[usize::from(self.domain_end) + "/ns/".len()..usize::from(self.namespace_end)]
    }

    /// The Kubernetes ServiceAccount.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.uri[usize::from(self.namespace_end) + "/sa/".len()..]
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(uri: &str) -> Result<Self, InvalidSpiffeId> {
        let fail = |problem| InvalidSpiffeId { uri: uri.chars().take(256).collect(), problem };
        if uri.len() > MAX_LEN {
            return Err(fail("longer than 2048 bytes"));
        }
        let rest = uri.strip_prefix(SCHEME).ok_or_else(|| fail("scheme is not spiffe"))?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| fail("no path"))?;
        let domain_char =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
        if domain.is_empty() || domain.len() > 255 || !domain.bytes().all(domain_char) {
            return Err(fail("bad trust domain"));
        }
        let mut parts = path.split('/');
        let (Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(fail("path is not /ns/<namespace>/sa/<service-account>"));
        };
        let segment_ok = |segment: &str| {
            !matches!(segment, "" | "." | "..")
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        };
        if !segment_ok(namespace) || !segment_ok(account) {
            return Err(fail("bad namespace or service account"));
        }
        let offset = |n: usize| u16::try_from(n).map_err(|_| fail("longer than 2048 bytes"));
        let domain_end = SCHEME.len() + domain.len();
        Ok(Self {
            uri: uri.into(),
            domain_end: offset(domain_end)?,
            namespace_end: offset(domain_end + "/ns/".len() + namespace.len())?,
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_come_back_as_given() {
        let id = SpiffeId::new("cluster.local", "shop", "orders").unwrap();
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/orders");
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("cluster.local", "shop", "orders")
        );
    }

    #[test]
    fn look_alikes_are_refused() {
        for bad in [
            "",
            "http://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local",
            "spiffe:///ns/a/sa/b",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a/sa/b?x",
            "spiffe://u@cluster.local/ns/a/sa/b",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics_and_accepted_ones_round_trip(s in "\\PC{0,80}|spiffe://[a-z./]{0,40}") {
            if let Ok(id) = s.parse::<SpiffeId>() {
                prop_assert_eq!(SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account()).unwrap(), id);
            }
        }
    }
}
