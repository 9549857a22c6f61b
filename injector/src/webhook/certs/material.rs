//! The serving certificate with the CAs that prove it, in memory and in its Secret.
//!
//! Each renewal makes a CA of its own for one leaf and drops the CA's key at once. So no key that
//! could sign anything is kept anywhere, and turning over the CA is what happens every time, not a
//! special case that is seen once a year.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::api::ObjectMeta;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use remora_core::names::{INJECTOR_TLS_SECRET, labels};
use rustls::{
    RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, ResolvesServerCert},
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject,
};
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// Lifetime of a leaf and of its CA.
pub(super) const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// How far notBefore lies in the past, for API servers whose clocks are behind.
pub(super) const SKEW: Duration = Duration::from_secs(300);
/// CAs kept beside the newest, for replicas that still serve what they proved.
const MAX_PREVIOUS: usize = 3;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOTS: &str = "ca.crt";

/// A key with its certificate, and the roots that a caller must trust, the newest first.
pub(crate) struct Material {
    certified: Arc<CertifiedKey>,
    /// PKCS #8 in PEM, for the Secret.
    key: Zeroizing<String>,
    roots: Vec<CertificateDer<'static>>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Why there is no usable certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MaterialError {
    /// A key of the Secret is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A key of the Secret holds something else.
    #[error("{0} cannot be read: {1}")]
    Unreadable(&'static str, String),
    /// They are good, but not for each other, for us, or for now.
    #[error("the certificate cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    /// The library failed.
    #[error("no certificate can be made: {0}")]
    Make(#[from] rcgen::Error),
}

impl Material {
    /// A fresh key, leaf and CA for DNS names, trusted beside the roots of what was before.
    ///
    /// # Errors
    /// Where the library fails.
    pub(crate) fn make(
        names: &[String],
        previous: &[CertificateDer<'static>],
        now: SystemTime,
    ) -> Result<Self, MaterialError> {
        let (not_before, not_after) = (now - SKEW, now + LIFETIME);
        let authority_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut authority = CertificateParams::default();
        authority.distinguished_name = DistinguishedName::new();
        // Distinct, so that a verifier that goes by subject finds the right one of several.
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let subject = format!("remora-injector CA {seconds}-{:08x}", fastrand::Rng::new().u32(..));
        authority.distinguished_name.push(DnType::CommonName, subject);
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (authority.not_before, authority.not_after) = (at(not_before), at(not_after));
        let root = authority.self_signed(&authority_key)?.der().clone();
        let issuer = Issuer::new(authority, authority_key);

        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name = DistinguishedName::new();
        for name in names {
            leaf.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        (leaf.not_before, leaf.not_after) = (at(not_before), at(not_after));
        let chain = vec![leaf.signed_by(&key, &issuer)?.der().clone()];

        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let certified = CertifiedKey::from_der(chain, der, &provider())?;
        let previous = previous.iter().filter(|c| expiry(c).is_some_and(|end| end > now));
        let roots = [root].into_iter().chain(previous.take(MAX_PREVIOUS).cloned()).collect();
        Ok(Self {
            certified: Arc::new(certified),
            key: Zeroizing::new(key.serialize_pem()),
            roots,
            not_before,
            not_after,
        })
    }

    /// What a Secret holds, if an API server that trusts its roots would take it now.
    ///
    /// # Errors
    /// Names what is missing or wrong.
    pub(crate) fn read(
        secret: &Secret,
        names: &[String],
        now: SystemTime,
    ) -> Result<Self, MaterialError> {
        let chain = certificates(secret, CERTIFICATE)?;
        let roots = certificates(secret, ROOTS)?;
        let key = Zeroizing::new(
            String::from_utf8(field(secret, KEY)?.to_vec())
                .map_err(|_| MaterialError::Unreadable(KEY, "not PEM".to_owned()))?,
        );
        let der = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| MaterialError::Unreadable(KEY, error.to_string()))?;
        let provider = provider();
        // Also checks that key and certificate belong together.
        let certified = CertifiedKey::from_der(chain, der, &provider)?;
        let (leaf, intermediates) = certified.cert.split_first().ok_or(NO_CERTIFICATE)?;
        let mut store = RootCertStore::empty();
        for root in &roots {
            store.add(root.clone())?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider)
            .build()
            .map_err(|error| MaterialError::Unreadable(ROOTS, error.to_string()))?;
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        for name in names {
            let name = ServerName::try_from(name.as_str())
                .map_err(|error| rustls::Error::General(error.to_string()))?;
            let time = UnixTime::since_unix_epoch(since);
            verifier.verify_server_cert(leaf, intermediates, &name, &[], time)?;
        }
        let (not_before, not_after) = validity(leaf).ok_or(NO_CERTIFICATE)?;
        Ok(Self { certified: Arc::new(certified), key, roots, not_before, not_after })
    }

    /// The Secret that holds it.
    pub(crate) fn secret(&self, namespace: &str, resource_version: Option<String>) -> Secret {
        let chain = pem(&self.certified.cert);
        let data = BTreeMap::from([
            (CERTIFICATE.to_owned(), ByteString(chain.into_bytes())),
            (KEY.to_owned(), ByteString(self.key.as_bytes().to_vec())),
            (ROOTS.to_owned(), ByteString(pem(&self.roots).into_bytes())),
        ]);
        Secret {
            metadata: ObjectMeta {
                name: Some(INJECTOR_TLS_SECRET.to_owned()),
                namespace: Some(namespace.to_owned()),
                labels: Some(BTreeMap::from([
                    (labels::PART_OF.to_owned(), labels::REMORA.to_owned()),
                    (labels::COMPONENT.to_owned(), "injector".to_owned()),
                ])),
                resource_version,
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(data),
            ..Secret::default()
        }
    }

    /// A server with this certificate.
    ///
    /// # Errors
    /// Where the library does not take it.
    pub(crate) fn server_config(&self) -> Result<ServerConfig, MaterialError> {
        let resolver: Arc<dyn ResolvesServerCert> =
            Arc::new(SingleCertAndKey::from(Arc::clone(&self.certified)));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A resumed session would not see a new certificate; API servers keep connections anyway.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// The roots that callers must trust, the newest first.
    pub(crate) fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The root that proves the leaf.
    pub(crate) fn root(&self) -> Option<&CertificateDer<'static>> {
        self.roots.first()
    }

    /// When it was made.
    pub(crate) fn made(&self) -> SystemTime {
        self.not_before + SKEW
    }

    /// End of its validity.
    pub(crate) fn expires(&self) -> SystemTime {
        self.not_after
    }

    /// When to make the next: at two thirds of its life, and also where the clock has gone back to
    /// before its beginning.
    pub(crate) fn is_due(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.made()).unwrap_or_default();
        now >= self.made() + life * 2 / 3 || now < self.not_before
    }

    /// Whether both hold the same leaf.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert && self.roots == other.roots
    }
}

const NO_CERTIFICATE: rustls::Error = rustls::Error::NoCertificatesPresented;

/// The roots that a damaged Secret still names; callers may trust what they proved.
pub(super) fn roots_of(secret: &Secret) -> Vec<CertificateDer<'static>> {
    certificates(secret, ROOTS).unwrap_or_default()
}

/// One or several certificates in PEM, as `ca.crt` and `caBundle` hold them.
pub(super) fn pem(certificates: &[CertificateDer<'_>]) -> String {
    let blocks = certificates.iter().map(|der| ::pem::Pem::new("CERTIFICATE", der.as_ref()));
    let config = ::pem::EncodeConfig::new().set_line_ending(::pem::LineEnding::LF);
    ::pem::encode_many_config(&blocks.collect::<Vec<_>>(), config)
}

/// End of a certificate's validity.
pub(super) fn expiry(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    validity(certificate).map(|(_, end)| end)
}

fn validity(certificate: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let time = |t: x509_parser::time::ASN1Time| {
        Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(t.timestamp()).ok()?))
    };
    Some((time(parsed.validity().not_before)?, time(parsed.validity().not_after)?))
}

fn field<'a>(secret: &'a Secret, key: &'static str) -> Result<&'a [u8], MaterialError> {
    let data = secret.data.as_ref().and_then(|data| data.get(key));
    data.map(|bytes| bytes.0.as_slice()).ok_or(MaterialError::Missing(key))
}

fn certificates(
    secret: &Secret,
    key: &'static str,
) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(field(secret, key)?).collect();
    match read {
        Ok(certificates) if certificates.is_empty() => Err(MaterialError::Missing(key)),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(MaterialError::Unreadable(key, error.to_string())),
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn at(time: SystemTime) -> OffsetDateTime {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap_or(i64::MAX))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
