//! One error type for everything that can end a request or connection in the proxy.
//!
//! An error answers four questions: which side caused it, whether the request may have reached an
//! application, which status a client sees and which reason word labels it.

use std::{io, net::SocketAddr, time::Duration};

use http::StatusCode;

pub use crate::balance::retry::Sent;
use crate::{http::h1::request::Refusal, tls::TlsError};

/// Who is at the root of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that called us.
    Downstream,
    /// The one we call.
    Upstream,
    /// The proxy itself: policy, limits.
    Proxy,
}

/// Why the proxy answers instead of the application.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The destination is the proxy's own listener.
    #[error("{0} is this proxy's own listener; dial the application's port instead")]
    Loop(SocketAddr),
    /// The Service has no endpoint that can take traffic.
    #[error(
        "{service} has no endpoints; check that its selector matches ready pods that have its target port"
    )]
    NoEndpoints {
        /// `namespace/name:port`.
        service: String,
    },
    /// All endpoints were tried or are ejected.
    #[error("every endpoint of {service} is ejected; the next probe is due in {retry_after:?}")]
    AllEjected {
        /// `namespace/name:port`.
        service: String,
        /// When the first breaker lets a probe through.
        retry_after: Duration,
    },
    /// No connection could be made.
    #[error("cannot connect to {addr}: {source}")]
    Connect {
        /// Who was dialled.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A connection, TLS included, took too long.
    #[error("no connection to {addr} within {after:?}")]
    ConnectTimeout {
        /// Who was dialled.
        addr: SocketAddr,
        /// The bound that passed.
        after: Duration,
    },
    /// mTLS failed.
    #[error("{addr}: {source}")]
    Tls {
        /// Who was dialled.
        addr: SocketAddr,
        /// What failed.
        source: TlsError,
    },
    /// An endpoint has an identity and this proxy has no certificate to prove its own.
    #[error(
        "no certificate yet, so {addr} cannot be dialled over mTLS; see /certs on the admin port"
    )]
    NoCertificate {
        /// Who was to be dialled.
        addr: SocketAddr,
    },
    /// The whole request took too long.
    #[error("no complete response within {0:?} (timeout.remora.io/request)")]
    RequestTimeout(Duration),
    /// The response's head took too long.
    #[error("no response head within {0:?} (timeout.remora.io/response)")]
    ResponseTimeout(Duration),
    /// A body, or a connection of bytes, paused for too long, and it was the client's turn.
    #[error("the client sent or took nothing for {0:?} (timeout.remora.io/idle)")]
    ClientIdle(Duration),
    /// The same, and it was the upstream's turn.
    #[error("the upstream sent or took nothing for {0:?} (timeout.remora.io/idle)")]
    UpstreamIdle(Duration),
    /// The upstream connection broke after the request was sent.
    #[error("{addr} broke the connection before it answered: {detail}")]
    UpstreamReset {
        /// Who was called.
        addr: SocketAddr,
        /// What the connection said.
        detail: String,
        /// Whether an application may have seen the request.
        sent: Sent,
    },
    /// The upstream answered by resetting the request's stream (HTTP/2), which says something of its
    /// own; the client's stream ends in the same way.
    #[error("{addr} reset the stream before it answered: {code}")]
    StreamReset {
        /// Who was called.
        addr: SocketAddr,
        /// The code.
        code: h2::Reason,
    },
    /// The inbound proxy of the endpoint says that its application did not get the request.
    #[error("the proxy at {addr} could not hand the request to its application ({})", reason.as_str())]
    NotDelivered {
        /// Who was called.
        addr: SocketAddr,
        /// Why not.
        reason: Reason,
    },
    /// The control plane did not say in time what the destination is.
    #[error("the control plane did not say within {after:?} what {target} is")]
    DiscoveryTimeout {
        /// What was asked.
        target: String,
        /// The bound that passed.
        after: Duration,
    },
    /// A limit of this proxy is reached.
    #[error("overloaded: {0}")]
    Overloaded(&'static str),
    /// Policy refuses the caller.
    #[error("denied: {0}")]
    Denied(String),
    /// The upstream answered with something that cannot be forwarded.
    #[error("{addr}: its response {problem}")]
    BadResponse {
        /// Who was called.
        addr: SocketAddr,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The body of the client's request breaks a rule, or off; its head has left by then.
    #[error("bad request: {0}")]
    BadRequest(&'static str),
    /// The head of the client's request is not one that is forwarded.
    #[error(transparent)]
    Refused(Refusal),
    /// Nothing serves this destination.
    #[error("no route: {0}")]
    NoRoute(String),
    /// A route has nobody to send a request to.
    #[error("route {route}: {why}; see the status of the route")]
    NoBackend {
        /// `namespace/name/rule`.
        route: String,
        /// Which backend, and why not.
        why: String,
    },
}

impl Error {
    /// Who is at the root of it.
    #[must_use]
    pub fn side(&self) -> Side {
        match self {
            Self::Loop(_) | Self::BadRequest(_) | Self::Refused(_) | Self::ClientIdle(_) => {
                Side::Downstream
            }
            Self::Denied(_) | Self::Overloaded(_) | Self::NoCertificate { .. } => Side::Proxy,
            Self::DiscoveryTimeout { .. } | Self::NoRoute(_) | Self::NoBackend { .. } => {
                Side::Proxy
            }
            _ => Side::Upstream,
        }
    }

    /// Whether an application may have seen the request.
    #[must_use]
    pub fn sent(&self) -> Sent {
        match self {
            Self::UpstreamReset { sent, .. } => *sent,
            Self::RequestTimeout(_) | Self::ResponseTimeout(_) => Sent::Maybe,
            Self::StreamReset { .. } => Sent::Maybe,
            Self::ClientIdle(_) | Self::UpstreamIdle(_) | Self::BadRequest(_) => Sent::Maybe,
            Self::BadResponse { .. } => Sent::Yes,
            _ => Sent::No,
        }
    }

    /// Status for an HTTP client.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Loop(_) => StatusCode::LOOP_DETECTED,
            Self::NoEndpoints { .. }
            | Self::AllEjected { .. }
            | Self::Connect { .. }
            | Self::NoCertificate { .. }
            | Self::Overloaded(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotDelivered { reason: Reason::ConnectTimeout, .. } => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::NotDelivered { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::ConnectTimeout { .. }
            | Self::RequestTimeout(_)
            | Self::ResponseTimeout(_)
            | Self::UpstreamIdle(_)
            | Self::DiscoveryTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::ClientIdle(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Tls { .. }
            | Self::UpstreamReset { .. }
            | Self::StreamReset { .. }
            | Self::BadResponse { .. } => StatusCode::BAD_GATEWAY,
            Self::Denied(_) => StatusCode::FORBIDDEN,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Refused(refusal) => refusal.status(),
            Self::NoRoute(_) => StatusCode::NOT_FOUND,
            Self::NoBackend { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// gRPC status code of the same meaning (`UNAVAILABLE`, `DEADLINE_EXCEEDED`, …).
    #[must_use]
    pub fn grpc_status(&self) -> u32 {
        match self.status() {
            StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => 4,
            StatusCode::FORBIDDEN => 7,
            StatusCode::NOT_FOUND => 12,
            StatusCode::BAD_REQUEST => 13,
            StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => 8,
            _ => 14,
        }
    }

    /// Seconds a client should wait before it tries again, where that makes sense.
    #[must_use]
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::AllEjected { retry_after, .. } => Some(retry_after.as_secs().clamp(1, 60)),
            _ if self.status() == StatusCode::SERVICE_UNAVAILABLE => Some(1),
            _ => None,
        }
    }

    /// The reason word: header `remora-proxy-error` and label `reason`.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Loop(_) => Reason::Loop,
            Self::NoEndpoints { .. } => Reason::NoEndpoints,
            Self::AllEjected { .. } => Reason::AllEjected,
            Self::Connect { .. } => Reason::ConnectFailed,
            Self::ConnectTimeout { .. } => Reason::ConnectTimeout,
            Self::Tls { source, .. } if source.reason() == "identity-mismatch" => {
                Reason::IdentityMismatch
            }
            Self::Tls { .. } | Self::NoCertificate { .. } => Reason::TlsFailed,
            Self::RequestTimeout(_) | Self::ClientIdle(_) => Reason::RequestTimeout,
            Self::ResponseTimeout(_) | Self::UpstreamIdle(_) => Reason::ResponseTimeout,
            Self::UpstreamReset { .. } | Self::StreamReset { .. } | Self::BadResponse { .. } => {
                Reason::UpstreamReset
            }
            Self::NotDelivered { reason, .. } => *reason,
            Self::DiscoveryTimeout { .. } => Reason::DiscoveryTimeout,
            Self::Overloaded(_) => Reason::Overloaded,
            Self::Denied(_) => Reason::Denied,
            Self::BadRequest(_) => Reason::BadRequest,
            Self::Refused(refusal) => refusal.reason(),
            Self::NoRoute(_) | Self::NoBackend { .. } => Reason::NoRoute,
        }
    }
}

macro_rules! reasons {
    ($($variant:ident = $word:literal, $what:literal;)+) => {
        /// The closed set of reason words.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $(#[doc = $what] $variant),+
        }

        impl Reason {
            /// All of them, for tables that are indexed by reason.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The reason that a word names.
            #[must_use]
            pub fn from_word(word: &[u8]) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.as_str().as_bytes() == word)
            }
        }
    };
}

reasons! {
    NoRoute = "no-route", "Nothing serves this destination.";
    NoEndpoints = "no-endpoints", "The Service has no endpoint that can take traffic.";
    AllEjected = "all-ejected", "Every endpoint was tried or is ejected.";
    ConnectFailed = "connect-failed", "No connection could be made; the request never left.";
    ConnectTimeout = "connect-timeout", "Connecting took too long; the request never left.";
    TlsFailed = "tls-failed", "mTLS could not be established.";
    IdentityMismatch = "identity-mismatch", "The peer proved another identity than promised.";
    RequestTimeout = "request-timeout", "The whole request took too long.";
    ResponseTimeout = "response-timeout", "The response's head took too long.";
    RetryLimit = "retry-limit", "The last allowed retry failed too.";
    RetryBudget = "retry-budget", "The budget allows no further retry.";
    Overloaded = "overloaded", "A limit of the proxy is reached.";
    Denied = "denied", "Policy refuses the caller.";
    BadRequest = "bad-request", "The request cannot be forwarded.";
    HeaderTooLarge = "header-too-large", "The request's head is over the limit.";
    DiscoveryTimeout = "discovery-timeout", "The control plane did not answer in time.";
    UpstreamReset = "upstream-reset", "The upstream broke the connection after the request was sent.";
    Loop = "loop", "The destination is the proxy itself.";
}

#[cfg(test)]
#[path = "error_page_tests.rs"]
mod page_tests;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_found_by_its_word() {
        for &reason in Reason::ALL {
            assert_eq!(Reason::from_word(reason.as_str().as_bytes()), Some(reason));
            assert_eq!(Reason::ALL[reason as usize], reason);
        }
        assert_eq!(Reason::ALL.len(), 18);
        assert_eq!(Reason::from_word(b"other"), None);
    }

    #[test]
    fn only_503_promises_that_a_later_try_may_work() {
        let addr = SocketAddr::from(([10, 0, 0, 1], 80));
        let reset = Error::UpstreamReset { addr, detail: "eof".into(), sent: Sent::Maybe };
        assert_eq!((reset.status().as_u16(), reset.retry_after()), (502, None));
        let none = Error::NoEndpoints { service: "a/b:1".into() };
        assert_eq!((none.status().as_u16(), none.retry_after()), (503, Some(1)));
    }
}
