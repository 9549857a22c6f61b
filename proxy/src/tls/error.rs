//! Why a TLS handshake failed, in words that name the mend.

use std::{io, sync::Arc};

use remora_core::spiffe::SpiffeId;
use rustls::{AlertDescription, CertificateError};

/// A failed handshake, or material that cannot be used for one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// The peer proved an identity, but not the expected one.
    #[error(
        "peer proved {found} where {expected} was expected; its address may have been given to \
         another pod"
    )]
    IdentityMismatch {
        /// Identity that the endpoint must have.
        expected: SpiffeId,
        /// What its certificate says; a sentence where it has no usable identity.
        found: String,
    },
    /// The peer's certificate is outside its validity, or this machine's clock is.
    #[error("peer's certificate {problem}; if it looks right, compare the clocks of both machines")]
    Validity {
        /// `expired at … (now …)`.
        problem: String,
    },
    /// The peer's certificate does not chain to our roots.
    #[error(
        "peer's certificate is from an issuer that the trust bundle does not contain; is it from \
         another mesh, or from a CA that was replaced?"
    )]
    UnknownIssuer,
    /// The peer's certificate is good, but names no workload of our trust domain.
    #[error("peer's certificate names no acceptable workload: {problem}")]
    NoIdentity {
        /// What is wrong with its names.
        problem: String,
    },
    /// The peer refused us.
    #[error("peer refused the handshake: {alert:?}; its log says why")]
    Refused {
        /// TLS alert.
        alert: AlertDescription,
    },
    /// What the peer sent is not TLS.
    #[error("peer does not speak TLS; is its proxy running?")]
    NotTls,
    /// The handshake ended without one of our ALPN tokens.
    #[error("peer agreed on no ALPN token of the mesh (remora/h1, remora/h2, remora/tcp)")]
    NoAlpn,
    /// The connection broke during the handshake.
    #[error("connection broke during the TLS handshake: {0}")]
    Io(#[source] Arc<io::Error>),
    /// Any other failure of the protocol.
    #[error("TLS handshake: {0}")]
    Protocol(#[source] rustls::Error),
    /// Roots, chain or key cannot be used.
    #[error("{what}: {problem}")]
    Material {
        /// Which part.
        what: &'static str,
        /// What is wrong with it, and the mend.
        problem: String,
    },
}

impl TlsError {
    /// Metric label and answer header.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::IdentityMismatch { .. } => "identity-mismatch",
            _ => "tls-failed",
        }
    }
}

/// What our verifiers find beyond webpki's own checks; travels inside [`rustls::Error`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityError {
    /// The peer is somebody else.
    #[error("peer proved {found}, expected {expected}")]
    Mismatch {
        /// Who it had to be.
        expected: SpiffeId,
        /// Who it is.
        found: String,
    },
    /// It has no identity; says why.
    #[error("{0}")]
    None(String),
}

impl From<IdentityError> for rustls::Error {
    fn from(error: IdentityError) -> Self {
        CertificateError::Other(rustls::OtherError(Arc::new(error))).into()
    }
}

impl From<IdentityError> for TlsError {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::Mismatch { expected, found } => {
                Self::IdentityMismatch { expected, found }
            }
            IdentityError::None(problem) => Self::NoIdentity { problem },
        }
    }
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
        match error {
            InvalidCertificate(certificate) => certificate.into(),
            AlertReceived(AlertDescription::NoApplicationProtocol)
            | rustls::Error::NoApplicationProtocol => Self::NoAlpn,
            AlertReceived(alert) => Self::Refused { alert },
            InvalidMessage(_) => Self::NotTls,
            other => Self::Protocol(other),
        }
    }
}

impl From<CertificateError> for TlsError {
    fn from(error: CertificateError) -> Self {
        match error {
            CertificateError::Other(other) => match other.0.downcast_ref::<IdentityError>() {
                Some(identity) => identity.clone().into(),
                None => Self::Protocol(CertificateError::Other(other).into()),
            },
            CertificateError::ExpiredContext { time, not_after } => Self::Validity {
                problem: format!(
                    "expired {} s ago (at {} s since 1970)",
                    time.as_secs().saturating_sub(not_after.as_secs()),
                    not_after.as_secs()
                ),
            },
            CertificateError::NotValidYetContext { time, not_before } => Self::Validity {
                problem: format!(
                    "is valid only in {} s (from {} s since 1970)",
                    not_before.as_secs().saturating_sub(time.as_secs()),
                    not_before.as_secs()
                ),
            },
            CertificateError::Expired => Self::Validity { problem: "has expired".to_owned() },
            CertificateError::NotValidYet => {
                Self::Validity { problem: "is not valid yet".to_owned() }
            }
            // A root of the same name but another key: the CA was made anew.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownIssuer,
            other => Self::Protocol(other.into()),
        }
    }
}

impl From<io::Error> for TlsError {
    /// tokio-rustls reports the protocol's errors as the source of an [`io::Error`].
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => tls.clone().into(),
            None => Self::Io(Arc::new(error)),
        }
    }
}
