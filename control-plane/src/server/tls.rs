//! The server's own certificate, from the issuer in force, and the roots that clients' certificates
//! are verified with; both renewed while it runs.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use remora_core::{drain, spiffe::SpiffeId};
use remora_proto::v1::TrustBundle;
use rustls::{
    ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;
use x509_parser::extensions::GeneralName;

use crate::identity::{
    ca::{Authority, Leaf, SignError},
    rotation::Signer,
};

/// Wait after a failed renewal.
const RETRY: Duration = Duration::from_secs(5);

/// Why there is no server certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA did not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The library did not take it.
    #[error("TLS set-up: {0}")]
    Config(String),
}

/// A server configuration with a fresh certificate, and when to renew it.
///
/// # Errors
/// See [`TlsError`].
pub fn issue(
    authority: &Authority,
    bundle: &TrustBundle,
    identity: &SpiffeId,
    now: SystemTime,
) -> Result<(ServerConfig, Duration), TlsError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SignError::from)?;
    let leaf = authority.sign(&key, identity, now)?;
    let mut roots = RootCertStore::empty();
    for root in &bundle.roots {
        roots.add(CertificateDer::from(root.as_slice())).map_err(|e| config_error(&e))?;
    }
    // Certify is called by those who have no certificate yet; discovery checks for one.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| config_error(&e))?;
    let renew_in = renewal(&leaf, now);
    let mut server = tls13()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(leaf.chain, private(&key))
        .map_err(|e| config_error(&e))?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would carry a client certificate past its end.
    without_sessions(&mut server);
    Ok((server, renew_in))
}

/// The same for those who know the server by a DNS name and are not asked who they are: API servers.
///
/// # Errors
/// See [`TlsError`].
pub fn issue_for_host(
    authority: &Authority,
    host: &str,
    now: SystemTime,
) -> Result<(ServerConfig, Duration), TlsError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SignError::from)?;
    let leaf = authority.sign_host(&key, host, now)?;
    let renew_in = renewal(&leaf, now);
    let mut server = tls13()?
        .with_no_client_auth()
        .with_single_cert(leaf.chain, private(&key))
        .map_err(|e| config_error(&e))?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    without_sessions(&mut server);
    Ok((server, renew_in))
}

fn config_error(error: &dyn std::fmt::Display) -> TlsError {
    TlsError::Config(error.to_string())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn tls13() -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, TlsError> {
    ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| config_error(&e))
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

fn without_sessions(server: &mut ServerConfig) {
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
}

/// At two thirds of its life.
fn renewal(leaf: &Leaf, now: SystemTime) -> Duration {
    leaf.not_after.duration_since(now).unwrap_or_default() * 2 / 3
}

/// Renews a certificate when its time has come, and whenever another issuer or other roots are in
/// force, until draining begins. `issue` makes a configuration, and says when to renew it.
pub async fn renew(
    (mut signer, mut bundle): (watch::Receiver<Arc<Signer>>, watch::Receiver<Arc<TrustBundle>>),
    issue: impl Fn(&Authority, &TrustBundle) -> Result<(ServerConfig, Duration), TlsError>,
    slot: Arc<ArcSwap<ServerConfig>>,
    mut wait: Duration,
    drain: drain::Watch,
) {
    loop {
        tokio::select! {
            () = drain.draining() => return,
            () = tokio::time::sleep(wait) => {}
            Ok(()) = signer.changed() => {}
            Ok(()) = bundle.changed() => {}
        }
        let authority = Arc::clone(&signer.borrow_and_update().authority);
        let roots = Arc::clone(&bundle.borrow_and_update());
        wait = match issue(&authority, &roots) {
            Ok((config, wait)) => {
                slot.store(Arc::new(config));
                tracing::info!("server certificate renewed");
                wait.max(Duration::from_secs(1))
            }
            Err(error) => {
                tracing::error!(%error, "server certificate not renewed");
                RETRY
            }
        };
    }
}

/// The SPIFFE id of a certificate: its only URI name (SPIFFE X.509-SVID §2).
#[must_use]
pub fn spiffe_id(certificate: &CertificateDer<'_>) -> Option<SpiffeId> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let id = uris.next()?.parse().ok()?;
    uris.next().is_none().then_some(id)
}
