//! The certificate authority: a root key, and leaves signed with it.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SignatureAlgorithm,
};
use remora_core::spiffe::SpiffeId;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::{
    certification_request::X509CertificationRequest, oid_registry, prelude::FromDer,
};

/// Lifetime of a root made here.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How far notBefore lies in the past, for peers whose clocks are behind.
pub const CLOCK_SKEW: Duration = Duration::from_secs(20);
/// Shortest leaf that can be asked for.
pub const MIN_LEAF_LIFETIME: Duration = Duration::from_secs(10);

/// Signs leaves.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The issuer's certificates below the root, sent along with each leaf.
    intermediates: Vec<CertificateDer<'static>>,
    /// The trust anchors.
    roots: Vec<CertificateDer<'static>>,
    /// Those of the roots that the issuer's chain leads to.
    anchors: Vec<Fingerprint>,
    fingerprint: Fingerprint,
    expires: SystemTime,
    leaf_lifetime: Duration,
}

/// A signed leaf.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Leaf first, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// Start of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request is not a good one.
    #[error("certification request: {0}")]
    Request(&'static str),
    /// The issuer's own certificate has run out.
    #[error(
        "the issuer's certificate has expired; put a new one into the CA directory or the Secret"
    )]
    Expired,
    /// The library failed.
    #[error("signing failed: {0}")]
    Sign(#[from] rcgen::Error),
}

/// SHA-256 of a certificate's DER, as `openssl x509 -fingerprint -sha256` prints it but for the
/// colons and in lower case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, certificate).as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A root made here, with its key in PEM for the disk.
pub struct NewRoot {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// The key pair.
    pub key: KeyPair,
}

impl NewRoot {
    /// A fresh P-256 root for a trust domain.
    ///
    /// # Errors
    /// Where the library cannot make one.
    pub fn generate(trust_domain: &str, now: SystemTime) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("root.{trust_domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = at(now - CLOCK_SKEW);
        params.not_after = at(now + ROOT_LIFETIME);
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { certificate, key })
    }
}

impl Authority {
    /// An authority that issues with a key whose certificate chain is `issuers` (its own first) up
    /// to, but possibly without, one of `roots`.
    ///
    /// # Errors
    /// Where the issuer's certificate cannot be read.
    pub fn new(
        issuers: &[CertificateDer<'static>],
        key: KeyPair,
        roots: Vec<CertificateDer<'static>>,
        leaf_lifetime: Duration,
    ) -> Result<Self, rcgen::Error> {
        let own = issuers.first().ok_or(rcgen::Error::CouldNotParseCertificate)?;
        let expires = issuers
            .iter()
            .map(expiry)
            .min()
            .flatten()
            .ok_or(rcgen::Error::CouldNotParseCertificate)?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(own, key)?,
            anchors: anchors(issuers, &roots).map(Fingerprint::of).collect(),
            fingerprint: Fingerprint::of(own),
            intermediates: issuers.iter().filter(|c| !roots.contains(c)).cloned().collect(),
            roots,
            expires,
            leaf_lifetime,
        })
    }

    /// The trust anchors.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Those of the roots that the issuer's chain leads to: who trusts one of them takes its leaves.
    #[must_use]
    pub fn anchors(&self) -> &[Fingerprint] {
        &self.anchors
    }

    /// Of the issuer's own certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Whether another signs in the same way and brings the same roots.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
            && self.intermediates == other.intermediates
            && self.roots == other.roots
            && self.leaf_lifetime == other.leaf_lifetime
    }

    /// When the issuer runs out; no leaf outlives it.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// Signs the public key of a PKCS #10 request for an identity. Names inside the request are
    /// ignored; its signature proves that the caller has the key.
    ///
    /// # Errors
    /// Where the request is not good or the issuer has expired.
    pub fn sign_request(
        &self,
        request: &[u8],
        identity: &SpiffeId,
        now: SystemTime,
    ) -> Result<Leaf, SignError> {
        let (rest, request) = X509CertificationRequest::from_der(request)
            .map_err(|_| SignError::Request("not PKCS #10 in DER"))?;
        if !rest.is_empty() {
            return Err(SignError::Request("followed by other bytes"));
        }
        let spki = &request.certification_request_info.subject_pki;
        let curve = spki.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
        if spki.algorithm.algorithm != oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY
            || curve != Some(oid_registry::OID_EC_P256)
        {
            return Err(SignError::Request("its key is not P-256"));
        }
        request.verify_signature().map_err(|_| SignError::Request("its signature is wrong"))?;
        self.sign(&P256Key(spki.subject_public_key.data.to_vec()), identity, now)
    }

    /// Signs a public key for an identity.
    ///
    /// # Errors
    /// Where the issuer has expired or the library fails.
    pub fn sign(
        &self,
        key: &impl PublicKeyData,
        identity: &SpiffeId,
        now: SystemTime,
    ) -> Result<Leaf, SignError> {
        let name = SanType::URI(identity.as_str().try_into().map_err(SignError::Sign)?);
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.leaf(key, name, usages, now)
    }

    /// Signs a public key for a server of this DNS name. It is no identity: no workload takes it for
    /// one, since it has no SPIFFE id.
    ///
    /// # Errors
    /// Where the issuer has expired or the library fails.
    pub fn sign_host(
        &self,
        key: &impl PublicKeyData,
        host: &str,
        now: SystemTime,
    ) -> Result<Leaf, SignError> {
        let name = SanType::DnsName(host.try_into().map_err(SignError::Sign)?);
        self.leaf(key, name, vec![ExtendedKeyUsagePurpose::ServerAuth], now)
    }

    fn leaf(
        &self,
        key: &impl PublicKeyData,
        name: SanType,
        usages: Vec<ExtendedKeyUsagePurpose>,
        now: SystemTime,
    ) -> Result<Leaf, SignError> {
        if now >= self.expires {
            return Err(SignError::Expired);
        }
        let not_before = now - CLOCK_SKEW;
        let not_after = (now + self.leaf_lifetime).min(self.expires);
        let mut serial = [0; 16];
        aws_lc_rs::rand::fill(&mut serial).map_err(|_| rcgen::Error::RingUnspecified)?;
        // RFC 5280 §4.1.2.2: positive, and not zero.
        serial[0] = (serial[0] & 0x7f) | 0x40;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = at(not_before);
        params.not_after = at(not_after);
        params.subject_alt_names = vec![name];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &self.issuer)?.der().clone();
        let mut chain = vec![leaf];
        chain.extend(self.intermediates.iter().cloned());
        Ok(Leaf { chain, not_before, not_after })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

/// The roots that a chain leads to: that its last certificate is, or is signed by. None where the
/// chain itself is broken.
pub(super) fn anchors<'a>(
    issuers: &'a [CertificateDer<'static>],
    roots: &'a [CertificateDer<'static>],
) -> impl Iterator<Item = &'a CertificateDer<'static>> {
    let whole = issuers.windows(2).all(|pair| is_signed(&pair[0], &pair[1]));
    let last = issuers.last().filter(|_| whole);
    roots.iter().filter(move |root| last.is_some_and(|last| *root == last || is_signed(last, root)))
}

fn is_signed(child: &CertificateDer<'_>, parent: &CertificateDer<'_>) -> bool {
    let (Ok((_, child)), Ok((_, parent))) =
        (x509_parser::parse_x509_certificate(child), x509_parser::parse_x509_certificate(parent))
    else {
        return false;
    };
    child.issuer() == parent.subject() && child.verify_signature(Some(parent.public_key())).is_ok()
}

/// When a certificate runs out.
pub(super) fn expiry(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

fn at(time: SystemTime) -> OffsetDateTime {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap_or(i64::MAX))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// An uncompressed point, as the request brought it.
struct P256Key(Vec<u8>);

impl PublicKeyData for P256Key {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}
