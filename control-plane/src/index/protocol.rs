//! What a port speaks, as far as manifests say it.

use remora_core::{names::DEFAULT_OPAQUE_PORTS, settings::PortSet};

/// What the proxy is told about a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Find out by looking.
    Detect,
    /// Bytes; do not look.
    Opaque,
    /// HTTP/1.
    Http1,
    /// HTTP/2 with prior knowledge, gRPC included.
    Http2,
    /// The application's own TLS.
    Tls,
}

/// A parsed `appProtocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppProtocol(Protocol);

impl AppProtocol {
    /// Kubernetes' own names (KEP-3726), IANA service names and Istio's short ones. Any other name
    /// is a protocol that we do not speak, hence bytes.
    #[must_use]
    pub fn parse(name: &str) -> Self {
        Self(match name {
            "http" | "kubernetes.io/ws" => Protocol::Http1,
            "kubernetes.io/h2c" | "http2" | "h2c" | "grpc" => Protocol::Http2,
            "https" | "tls" | "kubernetes.io/wss" | "grpcs" => Protocol::Tls,
            "" => Protocol::Detect,
            _ => Protocol::Opaque,
        })
    }
}

/// Decides for one port. An annotation wins over `appProtocol`, which wins over the list of ports
/// that are opaque by default; an annotation takes the place of that list.
#[must_use]
pub fn decide(port: u16, explicit: Option<&PortSet>, app: Option<AppProtocol>) -> Protocol {
    match (explicit, app) {
        (Some(set), _) if set.contains(port) => Protocol::Opaque,
        (_, Some(AppProtocol(protocol))) => protocol,
        (None, None) if DEFAULT_OPAQUE_PORTS.contains(&port) => Protocol::Opaque,
        _ => Protocol::Detect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_protocol_decides_and_unknown_ones_are_bytes() {
        let of = |name| decide(8080, None, Some(AppProtocol::parse(name)));
        assert_eq!(of("http"), Protocol::Http1);
        assert_eq!(of("kubernetes.io/ws"), Protocol::Http1);
        assert_eq!(of("kubernetes.io/h2c"), Protocol::Http2);
        assert_eq!(of("grpc"), Protocol::Http2);
        assert_eq!(of("https"), Protocol::Tls);
        assert_eq!(of("kubernetes.io/wss"), Protocol::Tls);
        assert_eq!(of("tcp"), Protocol::Opaque);
        assert_eq!(of("mysql"), Protocol::Opaque);
    }

    #[test]
    fn an_annotation_wins_and_replaces_the_default_list() {
        let set: PortSet = "9000".parse().unwrap();
        assert_eq!(decide(9000, Some(&set), Some(AppProtocol::parse("http"))), Protocol::Opaque);
        assert_eq!(decide(3306, Some(&set), None), Protocol::Detect);
        assert_eq!(decide(3306, None, None), Protocol::Opaque);
        assert_eq!(decide(3306, None, Some(AppProtocol::parse("http"))), Protocol::Http1);
        assert_eq!(decide(80, None, None), Protocol::Detect);
    }
}
