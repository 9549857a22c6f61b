//! Mesh TLS: who this workload is, who the peer must be, and the two handshakes.
//!
//! TLS 1.3 only, both sides authenticated, aws-lc-rs always named as the provider. The ALPN token
//! says what is inside ([`Alpn`]). [`identity::Identity`] holds the current [`material::Material`]
//! and is read without a lock; [`certify`] keeps it fresh; [`client::connect`] and
//! [`server::accept`] are the handshakes of the data path; [`channel`] carries gRPC to the control
//! plane.
//!
//! **Server name.** A mesh client names the endpoint by its IP address. TLS sends no SNI for an
//! address, so nothing leaks on the wire, and rustls keys its session cache by it, so that a
//! ticket is offered to the one proxy that can decrypt it.
//!
//! **Resumption** binds to both sides' current material: tickets and sessions are dropped whenever
//! a certificate is renewed or the roots change, so a resumed connection never rests on a
//! certificate or root that is no longer in force. Expiry is checked on every handshake, resumed
//! or not.

pub(crate) mod backoff;
pub mod certify;
pub mod channel;
pub mod client;
#[cfg(test)]
mod control_plane_tests;
pub mod error;
pub mod identity;
pub mod material;
pub mod server;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod verify;

use std::sync::{Arc, LazyLock};

use remora_core::names::alpn;
use rustls::crypto::CryptoProvider;

pub use error::TlsError;

/// What a mesh connection carries, told by its ALPN token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// HTTP/1.1.
    H1,
    /// HTTP/2, gRPC included.
    H2,
    /// Bytes.
    Tcp,
}

impl Alpn {
    /// Every token, in the order the inbound side prefers them. A client offers exactly one.
    pub const ALL: [Self; 3] = [Self::H1, Self::H2, Self::Tcp];

    /// The token on the wire.
    #[must_use]
    pub fn token(self) -> &'static [u8] {
        match self {
            Self::H1 => alpn::H1,
            Self::H2 => alpn::H2,
            Self::Tcp => alpn::TCP,
        }
    }

    /// The meaning of a token; `None` where it is not one of ours.
    #[must_use]
    pub fn from_token(token: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.token() == token)
    }
}

/// The one crypto provider of this program; never the process default, which other code could
/// have set to something else.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}
