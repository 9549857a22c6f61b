//! The outbound side of a mesh connection.

use std::net::IpAddr;

use remora_core::spiffe::SpiffeId;
use rustls::HandshakeKind;
use rustls_pki_types::{ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Alpn, TlsError, material::Material, verify::check_not_expired};

/// Handshakes with an endpoint that must prove `peer`, offering one token.
///
/// `endpoint` is the address that was dialled: no SNI is sent for an address, and sessions are
/// remembered by it. Bound the time from outside (connect time-out).
///
/// # Errors
/// `identity-mismatch` where the peer is someone else, `tls-failed` for everything else.
pub async fn connect<IO>(
    material: &Material,
    peer: &SpiffeId,
    alpn: Alpn,
    endpoint: IpAddr,
    io: IO,
) -> Result<TlsStream<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let connector = TlsConnector::from(material.client_config(peer, alpn)?);
    let stream = connector.connect(ServerName::IpAddress(endpoint.into()), io).await?;
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(alpn.token()) {
        return Err(TlsError::NoAlpn);
    }
    if session.handshake_kind() == Some(HandshakeKind::Resumed)
        && let Some(leaf) = session.peer_certificates().and_then(<[_]>::first)
    {
        check_not_expired(leaf, UnixTime::now())?;
    }
    Ok(stream)
}
