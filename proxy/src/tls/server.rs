//! The inbound side of a mesh connection.

use remora_core::spiffe::SpiffeId;
use rustls::HandshakeKind;
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    Alpn, TlsError,
    material::Material,
    verify::{check_not_expired, spiffe_id},
};

/// Handshakes with a caller and says who it is and what it will speak. Bound the time from
/// outside (handshake time-out).
///
/// # Errors
/// `tls-failed`, with what was wrong with the caller.
pub async fn accept<IO>(
    material: &Material,
    io: IO,
) -> Result<(TlsStream<IO>, SpiffeId, Alpn), TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let acceptor = TlsAcceptor::from(material.server_config().clone());
    let stream = acceptor.accept(io).await?;
    let (_, session) = stream.get_ref();
    let alpn = session.alpn_protocol().and_then(Alpn::from_token).ok_or(TlsError::NoAlpn)?;
    let leaf = session
        .peer_certificates()
        .and_then(<[_]>::first)
        .ok_or_else(|| TlsError::NoIdentity { problem: "it showed no certificate".to_owned() })?;
    if session.handshake_kind() == Some(HandshakeKind::Resumed) {
        check_not_expired(leaf, UnixTime::now())?;
    }
    let caller = spiffe_id(leaf)?;
    Ok((stream, caller, alpn))
}
