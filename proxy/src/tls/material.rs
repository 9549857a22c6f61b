//! One certificate with its key and roots, and the TLS configurations made from them.

use std::{collections::HashMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use remora_core::spiffe::SpiffeId;
use rustls::{
    ClientConfig, ServerConfig,
    client::{ClientSessionMemoryCache, ResolvesClientCert, Resumption},
    crypto::aws_lc_rs::Ticketer,
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::{
    Alpn, TlsError, provider,
    verify::{CallerVerifier, PeerVerifier, TrustBundle, serial},
};

/// Peers whose configurations are kept; three tokens each, so at most 1024 configurations.
const MAX_PEERS: usize = 341;
/// TLS 1.3 tickets kept for resumption, over all peers; eight for one address.
const MAX_SESSIONS: usize = 8 * 256;

/// What the control plane issued: a chain for our key, and its validity.
#[derive(Clone)]
pub struct Certificate {
    /// Identity in the leaf.
    pub id: SpiffeId,
    /// Validity of the leaf.
    pub not_before: UnixTime,
    /// Validity of the leaf.
    pub not_after: UnixTime,
    /// Serial number in hex.
    pub serial: String,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// Checks that key and chain belong together and reads the leaf's identity.
    ///
    /// # Errors
    /// Names the part that cannot be used.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        not_before: UnixTime,
        not_after: UnixTime,
    ) -> Result<Self, TlsError> {
        let fail = |what, problem: String| TlsError::Material { what, problem };
        let leaf = chain.first().ok_or_else(|| fail("certificate chain", "is empty".to_owned()))?;
        let id = super::verify::spiffe_id(leaf)?;
        let serial = serial(leaf)?;
        let key = CertifiedKey::from_der(chain, key, &provider())
            .map_err(|error| fail("certificate chain", format!("not for our key: {error}")))?;
        Ok(Self { id, not_before, not_after, serial, key: Arc::new(key) })
    }

    /// The chain, leaf first, DER.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("id", &self.id)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after.as_secs())
            .finish_non_exhaustive()
    }
}

/// A certificate and the roots in force, with everything that handshakes need made beforehand.
pub struct Material {
    certificate: Certificate,
    bundle: TrustBundle,
    server: Arc<ServerConfig>,
    client_key: Arc<dyn ResolvesClientCert>,
    sessions: Arc<ClientSessionMemoryCache>,
    clients: ArcSwap<HashMap<SpiffeId, [Arc<ClientConfig>; Alpn::ALL.len()]>>,
}

impl Material {
    /// Prepares both sides' configurations.
    ///
    /// # Errors
    /// Where the parts cannot be used together.
    pub fn new(certificate: Certificate, bundle: TrustBundle) -> Result<Self, TlsError> {
        let key = Arc::new(SingleCertAndKey::from(certificate.key.clone()));
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Protocol)?
            .with_client_cert_verifier(Arc::new(CallerVerifier::new(&bundle)?))
            .with_cert_resolver(key.clone());
        server.alpn_protocols = Alpn::ALL.iter().map(|alpn| alpn.token().to_vec()).collect();
        // A ticketer of its own: tickets end with the material that they were issued under.
        server.ticketer = Ticketer::new().map_err(TlsError::Protocol)?;
        Ok(Self {
            certificate,
            bundle,
            server: Arc::new(server),
            client_key: key,
            sessions: Arc::new(ClientSessionMemoryCache::new(MAX_SESSIONS)),
            clients: ArcSwap::default(),
        })
    }

    /// The workload's identity.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.certificate.id
    }

    /// The certificate in use.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The roots in force.
    #[must_use]
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// Whether the leaf's validity is over.
    #[must_use]
    pub fn is_expired(&self, now: UnixTime) -> bool {
        now > self.certificate.not_after
    }

    /// Configuration of the inbound side: client certificate required, our ALPN tokens, tickets.
    #[must_use]
    pub fn server_config(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// Configuration towards one peer, offering one token. Lock-free and free of allocation once
    /// the peer is known.
    ///
    /// # Errors
    /// Where rustls cannot use the provider; never in practice.
    pub fn client_config(
        &self,
        peer: &SpiffeId,
        alpn: Alpn,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        if let Some(configs) = self.clients.load().get(peer) {
            return Ok(configs[alpn as usize].clone());
        }
        let made = self.configs_for(peer)?;
        let config = made[alpn as usize].clone();
        self.clients.rcu(|known| {
            // A full cache starts anew: cheaper than order of use, and 341 identities are rare.
            let mut next =
                if known.len() < MAX_PEERS { HashMap::clone(known) } else { HashMap::new() };
            next.entry(peer.clone()).or_insert_with(|| made.clone());
            next
        });
        Ok(config)
    }

    /// Configuration for gRPC to the control plane, showing our certificate.
    ///
    /// # Errors
    /// Where rustls cannot use the provider; never in practice.
    pub fn grpc_config(&self, control_plane: &SpiffeId) -> Result<ClientConfig, TlsError> {
        let verifier = Arc::new(PeerVerifier::new(self.bundle.clone(), control_plane.clone()));
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Protocol)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(self.client_key.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    #[cfg(test)]
    pub(super) fn cached_peers(&self) -> usize {
        self.clients.load().len()
    }

    /// The three configurations share verifier, key and sessions, so that a session made for one
    /// token resumes another.
    fn configs_for(
        &self,
        peer: &SpiffeId,
    ) -> Result<[Arc<ClientConfig>; Alpn::ALL.len()], TlsError> {
        let verifier = Arc::new(PeerVerifier::new(self.bundle.clone(), peer.clone()));
        let mut base = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Protocol)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(self.client_key.clone());
        base.resumption = Resumption::store(self.sessions.clone());
        Ok(Alpn::ALL.map(|alpn| {
            let mut config = base.clone();
            config.alpn_protocols = vec![alpn.token().to_vec()];
            Arc::new(config)
        }))
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Configuration for gRPC to the control plane without a certificate of ours, for Certify.
///
/// # Errors
/// Where rustls cannot use the provider; never in practice.
pub fn server_auth_config(
    bundle: &TrustBundle,
    control_plane: &SpiffeId,
) -> Result<ClientConfig, TlsError> {
    let verifier = Arc::new(PeerVerifier::new(bundle.clone(), control_plane.clone()));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Protocol)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}
