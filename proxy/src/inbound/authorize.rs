//! May this caller talk to this port? Decided from the default policy of the pod.

use std::{fmt, net::IpAddr, sync::Arc};

use remora_core::{settings::DefaultPolicy, spiffe::SpiffeId};

use super::Arrival;
use crate::{discovery::InboundPolicy, error::Error, metrics::inbound::Verdict};

/// Who is calling.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    /// Proved by its certificate.
    Mesh(Arc<SpiffeId>),
    /// Not in the mesh; all that is known is where it comes from.
    Unknown(IpAddr),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh(id) => write!(f, "{id}"),
            Self::Unknown(ip) => write!(f, "a caller without identity ({ip})"),
        }
    }
}

/// Decides on a connection of bytes; gives what to count of one that may pass.
pub(super) fn connection(
    policy: &InboundPolicy,
    arrival: &Arrival,
    trust_domain: Option<&str>,
) -> Result<Verdict, Error> {
    if allows(policy.default, &arrival.caller, trust_domain) {
        return Ok(Verdict::Allowed);
    }
    if policy.default == DefaultPolicy::Audit {
        tracing::info!(port = arrival.port, caller = ?arrival.caller, "audit: would be denied");
        return Ok(Verdict::Audit);
    }
    Err(Error::Denied(format!(
        "default-inbound-policy {} does not let {} call port {}",
        policy.default, arrival.caller, arrival.port
    )))
}

/// Decides on one request: as [`connection`], except that the paths that kubelet probes are open.
pub(super) fn request(
    policy: &InboundPolicy,
    arrival: &Arrival,
    path: &str,
    trust_domain: Option<&str>,
) -> Result<Verdict, Error> {
    connection(policy, arrival, trust_domain).or_else(|denied| {
        if policy.is_probe(arrival.port, path) { Ok(Verdict::Allowed) } else { Err(denied) }
    })
}

fn allows(policy: DefaultPolicy, caller: &Caller, trust_domain: Option<&str>) -> bool {
    match (policy, caller) {
        (DefaultPolicy::AllUnauthenticated, _)
        | (DefaultPolicy::AllAuthenticated, Caller::Mesh(_)) => true,
        (
            DefaultPolicy::ClusterAuthenticated | DefaultPolicy::ClusterUnauthenticated,
            Caller::Mesh(id),
        ) => Some(id.trust_domain()) == trust_domain,
        (DefaultPolicy::ClusterUnauthenticated, Caller::Unknown(ip)) => is_private(*ip),
        _ => false,
    }
}

/// Cluster networks are private ones (RFC 1918, RFC 4193, RFC 6598) and this pod itself.
fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || (v4.octets()[0] == 100 && (64..128).contains(&v4.octets()[1]))
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_loopback() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh(id: &str) -> Caller {
        Caller::Mesh(Arc::new(id.parse().unwrap()))
    }

    #[test]
    fn each_policy_lets_in_whom_its_name_says() {
        let ours = mesh("spiffe://cluster.local/ns/shop/sa/web");
        let foreign = mesh("spiffe://other.example/ns/shop/sa/web");
        let near = Caller::Unknown([10, 1, 2, 3].into());
        let far = Caller::Unknown([198, 51, 100, 1].into());
        for (policy, expected) in [
            (DefaultPolicy::AllUnauthenticated, [true, true, true, true]),
            (DefaultPolicy::AllAuthenticated, [true, true, false, false]),
            (DefaultPolicy::ClusterAuthenticated, [true, false, false, false]),
            (DefaultPolicy::ClusterUnauthenticated, [true, false, true, false]),
            (DefaultPolicy::Deny, [false; 4]),
            (DefaultPolicy::Audit, [false; 4]),
        ] {
            let got =
                [&ours, &foreign, &near, &far].map(|c| allows(policy, c, Some("cluster.local")));
            assert_eq!(got, expected, "{policy}");
        }
    }
}
