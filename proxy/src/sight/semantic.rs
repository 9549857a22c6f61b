//! OpenTelemetry's semantic conventions of HTTP and RPC, as far as lines and spans share them.

use std::borrow::Cow;

use http::{Method, StatusCode};

use super::finished::{Answered, Finished};
use crate::metrics::{Direction, grpc};

/// `http.request.method` of what is none of the well-known ones.
pub(super) const OTHER: &str = "_OTHER";

/// `rpc.response.status_code`.
pub(super) fn grpc_code(code: u32) -> &'static str {
    usize::try_from(code).ok().and_then(|code| grpc::NAMES.get(code)).copied().unwrap_or("UNKNOWN")
}

/// `network.protocol.version` of what records call the protocol.
pub(super) fn version(protocol: &str) -> &'static str {
    if protocol == "http/2" { "2" } else { "1.1" }
}

/// `http.request.method`: those of RFC 9110 and RFC 5789, so that it has few values.
pub(super) fn method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "CONNECT" => "CONNECT",
        "OPTIONS" => "OPTIONS",
        "TRACE" => "TRACE",
        "PATCH" => "PATCH",
        "QUERY" => "QUERY",
        _ => OTHER,
    }
}

/// `server.address` and `server.port`, as the request names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Host<'a> {
    /// A name or an address, that of IPv6 without its brackets.
    pub(super) name: &'a str,
    /// Where it is said.
    pub(super) port: Option<u16>,
}

impl<'a> Host<'a> {
    /// Reads `host[:port]`, `None` where it has no host.
    pub(super) fn of(authority: &'a str) -> Option<Self> {
        let (name, port) = match authority.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()),
            _ => (authority, None),
        };
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let name = bare.unwrap_or(name);
        (!name.is_empty()).then_some(Self { name, port })
    }
}

/// How a request or an attempt ended.
#[derive(Debug, Clone)]
pub(super) enum Ending<'a> {
    /// With a response of the server's.
    Answered {
        /// Its status.
        status: StatusCode,
        /// gRPC's.
        grpc: Option<u32>,
    },
    /// By the proxy.
    Failed {
        /// The reason word.
        reason: &'static str,
        /// The whole sentence.
        error: Cow<'a, str>,
    },
    /// The client did not wait.
    GivenUp,
}

impl Ending<'_> {
    /// `error.type`, where it is an error for a span of this direction: a server's own fault inbound,
    /// everything that a caller would not want outbound.
    pub(super) fn error_type(&self, direction: Direction) -> Option<Cow<'static, str>> {
        let caller = direction == Direction::Outbound;
        match *self {
            Self::Failed { reason, .. } => Some(reason.into()),
            Self::GivenUp => None,
            Self::Answered { grpc: Some(code), .. } if is_grpc_error(code, caller) => {
                Some(grpc_code(code).into())
            }
            Self::Answered { status, .. } => {
                let error = status.is_server_error() || (caller && status.is_client_error());
                error.then(|| status.as_u16().to_string().into())
            }
        }
    }
}

fn is_grpc_error(code: u32, caller: bool) -> bool {
    // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
    code != 0 && (caller || matches!(code, 2 | 4 | 12 | 13 | 14 | 15))
}

impl Finished<'_> {
    /// How the request ended.
    pub(super) fn ending(&self) -> Ending<'_> {
        match self.result {
            Ok(Answered { status: Some(status), grpc, left: false, .. }) => {
                Ending::Answered { status, grpc }
            }
            Ok(_) => Ending::GivenUp,
            Err(error) => Ending::Failed {
                reason: error.reason().as_str(),
                error: Cow::Owned(error.to_string()),
            },
        }
    }

    /// The status that its client got, or was about to.
    pub(super) fn status(&self) -> Option<StatusCode> {
        self.result.map_or_else(|error| Some(error.status()), |answered| answered.status)
    }

    /// Whether the client left before it had a whole response.
    pub(super) fn client_left(&self) -> bool {
        self.result.is_ok_and(|answered| answered.left)
    }

    /// gRPC's, where it was gRPC.
    pub(super) fn grpc_status(&self) -> Option<u32> {
        match self.result {
            Ok(answered) => answered.grpc,
            Err(error) => self.grpc.then(|| error.grpc_status()),
        }
    }

    /// `error.type`.
    pub(super) fn error_type(&self) -> Option<Cow<'static, str>> {
        match self.result {
            Ok(_) => self.ending().error_type(self.direction),
            Err(error) => Some(error.reason().as_str().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_and_perhaps_a_port() {
        let host = |text| Host::of(text).map(|host| (host.name, host.port));
        assert_eq!(host("orders"), Some(("orders", None)));
        assert_eq!(host("orders.shop:8080"), Some(("orders.shop", Some(8080))));
        assert_eq!(host("[fd00::1]:80"), Some(("fd00::1", Some(80))));
        assert_eq!(host("[fd00::1]"), Some(("fd00::1", None)));
        assert_eq!((host(""), host(":80")), (None, None));
    }

    #[test]
    fn codes_have_their_names() {
        assert_eq!((grpc_code(0), grpc_code(14), grpc_code(99)), ("OK", "UNAVAILABLE", "UNKNOWN"));
    }
}
