//! Who the peer is: the chain is verified by webpki against the mesh's roots, the SPIFFE id is the
//! leaf's one URI name (X.509-SVID §2).

use std::sync::Arc;

use remora_core::spiffe::SpiffeId;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::EndEntityCert;

use super::{
    error::{IdentityError, TlsError},
    provider,
};

/// Roots and the trust domain that they vouch for.
#[derive(Debug, Clone)]
pub struct TrustBundle {
    trust_domain: Box<str>,
    roots: Arc<RootCertStore>,
    /// DER, sorted, so that bundles can be compared.
    der: Arc<[CertificateDer<'static>]>,
}

/// Most roots a bundle may have.
pub const MAX_ROOTS: usize = 16;

impl TrustBundle {
    /// A bundle of one or more roots.
    ///
    /// # Errors
    /// Where there is none, too many, or one cannot be read.
    pub fn new(
        trust_domain: &str,
        mut roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, TlsError> {
        let fail = |problem: String| TlsError::Material { what: "trust bundle", problem };
        if roots.is_empty() {
            return Err(fail("has no root certificate".to_owned()));
        }
        if roots.len() > MAX_ROOTS {
            return Err(fail(format!("has {} roots; at most {MAX_ROOTS}", roots.len())));
        }
        roots.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        roots.dedup();
        let mut store = RootCertStore::empty();
        for root in &roots {
            store
                .add(root.clone())
                .map_err(|error| fail(format!("has a root that cannot be read: {error}")))?;
        }
        Ok(Self { trust_domain: trust_domain.into(), roots: Arc::new(store), der: roots.into() })
    }

    /// For example `cluster.local`.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The root certificates, DER, sorted.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.der
    }

    /// Whether a chain of ours (leaf first) is vouched for by this bundle.
    ///
    /// # Errors
    /// Says what is wrong with the chain.
    pub fn vouches_for(
        &self,
        chain: &[CertificateDer<'static>],
        now: UnixTime,
    ) -> Result<SpiffeId, TlsError> {
        let (leaf, intermediates) = chain.split_first().ok_or_else(|| TlsError::Material {
            what: "certificate chain",
            problem: "is empty".to_owned(),
        })?;
        Ok(self.verify(leaf, intermediates, now)?)
    }

    /// Verifies as a TLS server's chain and returns the leaf's identity.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<SpiffeId, Error> {
        let parsed = rustls::server::ParsedCertificate::try_from(leaf)?;
        let algorithms = provider().signature_verification_algorithms;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms.all,
        )?;
        Ok(spiffe_id(leaf)?)
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain && self.der == other.der
    }
}

impl Eq for TrustBundle {}

/// The identity in a leaf: its only URI name. Who signed it is not looked at here.
///
/// # Errors
/// Where it cannot be read, or has no name of this kind, or several.
pub fn spiffe_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, IdentityError> {
    let cert = EndEntityCert::try_from(leaf)
        .map_err(|error| IdentityError::None(format!("certificate cannot be read: {error}")))?;
    let mut uris = cert.valid_uri_names();
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(|error| IdentityError::None(format!("{error}"))),
        (None, _) => Err(IdentityError::None("it has no URI name".to_owned())),
        (Some(_), Some(_)) => Err(IdentityError::None("it has more than one URI name".to_owned())),
    }
}

/// Refuses a leaf that is outside its validity. Full handshakes check this with the chain; a
/// resumed one skips the chain, so the data path asks here.
pub(super) fn check_not_expired(leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), TlsError> {
    let not_after = not_after(leaf)?;
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    Ok(())
}

fn not_after(leaf: &CertificateDer<'_>) -> Result<UnixTime, TlsError> {
    let (_, cert) = x509_parser::parse_x509_certificate(leaf).map_err(|error| {
        TlsError::Material { what: "peer's certificate", problem: error.to_string() }
    })?;
    let secs = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
    Ok(UnixTime::since_unix_epoch(std::time::Duration::from_secs(secs)))
}

/// Serial number of a leaf in hex.
pub(super) fn serial(leaf: &CertificateDer<'_>) -> Result<String, TlsError> {
    use std::fmt::Write as _;
    let cert = EndEntityCert::try_from(leaf).map_err(|error| TlsError::Material {
        what: "certificate chain",
        problem: format!("leaf cannot be read: {error}"),
    })?;
    let mut hex = String::new();
    for byte in cert.serial() {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(hex)
}

/// Accepts exactly one identity, whatever the server's name.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    bundle: TrustBundle,
    expected: SpiffeId,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    pub(super) fn new(bundle: TrustBundle, expected: SpiffeId) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self { bundle, expected, algorithms }
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = self.bundle.verify(end_entity, intermediates, now)?;
        if found != self.expected {
            let expected = self.expected.clone();
            return Err(IdentityError::Mismatch { expected, found: found.to_string() }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Accepts every identity of the bundle's trust domain.
#[derive(Debug)]
pub(super) struct CallerVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: Box<str>,
}

impl CallerVerifier {
    pub(super) fn new(bundle: &TrustBundle) -> Result<Self, TlsError> {
        let chain = WebPkiClientVerifier::builder_with_provider(bundle.roots.clone(), provider())
            // Callers have one certificate; naming our roots to them only costs bytes.
            .clear_root_hint_subjects()
            .build()
            .map_err(|error| TlsError::Material {
                what: "trust bundle",
                problem: error.to_string(),
            })?;
        Ok(Self { chain, trust_domain: bundle.trust_domain.clone() })
    }
}

impl ClientCertVerifier for CallerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let id = spiffe_id(end_entity)?;
        if id.trust_domain() != &*self.trust_domain {
            return Err(IdentityError::None(format!(
                "{id} is not of trust domain {}",
                self.trust_domain
            ))
            .into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn tls12() -> Error {
    Error::General("TLS 1.2 is not offered by the mesh".to_owned())
}
