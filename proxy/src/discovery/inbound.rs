//! Who may call the pod's own ports, and what they speak.

use std::{collections::BTreeMap, fmt};

use remora_core::{names::DEFAULT_OPAQUE_PORTS, settings::DefaultPolicy};
use remora_proto::v1 as pb;

use super::{
    service::Protocol,
    wire::{self, WireError},
};

/// Policy for the pod's own ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundPolicy {
    /// For every port.
    pub default: DefaultPolicy,
    ports: BTreeMap<u16, InboundPort>,
}

/// What is known of one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundPort {
    /// What it speaks.
    pub protocol: Protocol,
    /// HTTP paths that kubelet probes; allowed without identity.
    pub probe_paths: Vec<Box<str>>,
}

impl fmt::Display for InboundPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "default-inbound-policy {}", self.default)
    }
}

impl InboundPolicy {
    /// What a port speaks, where the caller's ALPN does not tell.
    #[must_use]
    pub fn protocol(&self, port: u16) -> Protocol {
        self.ports.get(&port).map_or(Protocol::Detect, |port| port.protocol)
    }

    /// Whether a path is probed on a port, so that it is allowed without identity.
    #[must_use]
    pub fn is_probe(&self, port: u16, path: &str) -> bool {
        self.ports
            .get(&port)
            .is_some_and(|port| port.probe_paths.iter().any(|probe| &**probe == path))
    }

    /// The ports that something is known of, in order.
    pub fn ports(&self) -> impl Iterator<Item = (u16, &InboundPort)> {
        self.ports.iter().map(|(port, known)| (*port, known))
    }
}

impl Default for InboundPolicy {
    /// Until told: anyone may call; the well-known server-first ports are opaque.
    fn default() -> Self {
        let opaque = InboundPort { protocol: Protocol::Opaque, probe_paths: Vec::new() };
        Self {
            default: DefaultPolicy::AllUnauthenticated,
            ports: DEFAULT_OPAQUE_PORTS.iter().map(|port| (*port, opaque.clone())).collect(),
        }
    }
}

impl TryFrom<&pb::InboundPolicy> for InboundPolicy {
    type Error = WireError;

    fn try_from(wire: &pb::InboundPolicy) -> Result<Self, WireError> {
        use pb::DefaultPolicy as Wire;
        let default = match Wire::try_from(wire.default_policy) {
            Ok(Wire::AllUnauthenticated) => DefaultPolicy::AllUnauthenticated,
            Ok(Wire::AllAuthenticated) => DefaultPolicy::AllAuthenticated,
            Ok(Wire::ClusterAuthenticated) => DefaultPolicy::ClusterAuthenticated,
            Ok(Wire::ClusterUnauthenticated) => DefaultPolicy::ClusterUnauthenticated,
            Ok(Wire::Deny) => DefaultPolicy::Deny,
            Ok(Wire::Audit) => DefaultPolicy::Audit,
            // Never guess who may call: the policy that was in force stays.
            Err(_) => {
                let problem =
                    format!("{} is unknown to this version; update it", wire.default_policy);
                return Err(WireError::new("inbound.default_policy", problem));
            }
        };
        let port = |port: &pb::InboundPort| {
            let known = InboundPort {
                protocol: Protocol::from_wire(port.protocol),
                probe_paths: port.probe_paths.iter().map(|path| path.as_str().into()).collect(),
            };
            Ok((wire::port("inbound.ports.port", port.port)?, known))
        };
        let ports = wire.ports.iter().map(port).collect::<Result<_, WireError>>()?;
        Ok(Self { default, ports })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until_told_everyone_may_call_and_mysql_is_opaque() {
        let policy = InboundPolicy::default();
        assert_eq!(policy.default, DefaultPolicy::AllUnauthenticated);
        assert_eq!(policy.protocol(3306), Protocol::Opaque);
        assert_eq!(policy.protocol(8080), Protocol::Detect);
    }

    #[test]
    fn a_policy_word_from_the_future_is_refused() {
        let wire = pb::InboundPolicy { default_policy: 99, ports: Vec::new() };
        assert!(InboundPolicy::try_from(&wire).is_err());
    }

    #[test]
    fn probes_are_known_by_port_and_path() {
        let wire = pb::InboundPolicy {
            default_policy: pb::DefaultPolicy::Deny.into(),
            ports: vec![pb::InboundPort {
                port: 8080,
                protocol: pb::Protocol::Http1.into(),
                probe_paths: vec!["/healthz".to_owned()],
            }],
        };
        let policy = InboundPolicy::try_from(&wire).unwrap();
        assert!(policy.is_probe(8080, "/healthz"));
        assert!(!policy.is_probe(8081, "/healthz") && !policy.is_probe(8080, "/"));
    }
}
