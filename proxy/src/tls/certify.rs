//! Getting a certificate and keeping it fresh: a new key each time, made here and kept in memory.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use remora_core::telemetry;
use remora_proto::v1::{self as pb, identity_client::IdentityClient};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime, pem::PemObject,
};
use tonic::transport::Channel;
use tracing::Instrument;
use zeroize::Zeroizing;

use super::{
    TlsError,
    backoff::Backoff,
    channel::{ChannelError, ControlPlane},
    identity::Identity,
    material::{Certificate, server_auth_config},
    verify::{MAX_ROOTS, TrustBundle},
};

/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Longest time for the call itself.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Shortest pause until a renewal, however short certificates live.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// A renewal that is asked for waits until the certificate in force is this old, and twice as long
/// each time, so that a peer that refuses every certificate does not make us ask without end.
const ASKED_INTERVAL: Duration = Duration::from_secs(10);
/// Longest such wait; where one renewal after the other is asked for, they do not help.
const ASKED_LONGEST: Duration = Duration::from_secs(300);
/// The wall clock is looked at again at least this often: it may jump, or the machine may sleep.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How often a lasting failure is reported.
const REPORT: Duration = Duration::from_secs(30);
/// As the contract says.
const MAX_TOKEN: usize = 16 << 10;

/// What the task works with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Trust domain of the roots in the file.
    pub trust_domain: String,
    /// PEM file with the roots that prove the control plane, beside those in force; read again each
    /// time.
    pub trust_bundle: PathBuf,
    /// File with the proof of who we are; read again each time.
    pub token: PathBuf,
    /// Name for log lines while the identity is not known: `pod shop/orders-1`.
    pub workload: String,
}

/// No certificate this time.
#[derive(Debug, thiserror::Error)]
pub enum CertifyError {
    /// A file that is needed cannot be read.
    #[error("{what} {}: {problem}", path.display())]
    File {
        /// `trust bundle` or `token file`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: io::Error,
    },
    /// The control plane was not reached.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// It refused.
    #[error(
        "control plane refused: {} ({:?}); the token is from {}",
        .status.message(), .status.code(), token.display()
    )]
    Refused {
        /// Its answer.
        status: Box<tonic::Status>,
        /// Where the token came from.
        token: PathBuf,
    },
    /// It did not answer.
    #[error("control plane did not answer within {CALL_TIMEOUT:?}")]
    Timeout,
    /// What was issued cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Key or request could not be made.
    #[error("key or certification request: {0}")]
    Key(#[from] rcgen::Error),
}

/// Where certificates come from; over the network [`ControlPlane`], in tests anything.
pub trait Dial: Send + Sync {
    /// Connects with the server proved by `roots`.
    fn dial(
        &self,
        roots: &TrustBundle,
        rng: &mut fastrand::Rng,
    ) -> impl Future<Output = Result<Channel, ChannelError>> + Send;
}

impl Dial for ControlPlane {
    async fn dial(
        &self,
        roots: &TrustBundle,
        rng: &mut fastrand::Rng,
    ) -> Result<Channel, ChannelError> {
        let config = server_auth_config(roots, &self.id)
            .map_err(|problem| ChannelError::Tls { authority: self.authority.clone(), problem })?;
        self.connect(config, rng).await
    }
}

/// Obtains the first certificate and renews it at a random point between 50 and 70 % of what is
/// left of its life, for as long as the task is not dropped. A certificate in force is only ever
/// replaced by a newer one.
///
/// `clock` is the wall time that validity is measured by.
pub async fn run(
    identity: Identity,
    settings: Settings,
    control_plane: impl Dial,
    mut rng: fastrand::Rng,
    clock: impl Fn() -> UnixTime,
) {
    let mut patience = ASKED_INTERVAL;
    loop {
        let certificate =
            obtain_patiently(&identity, &settings, &control_plane, &mut rng, &clock).await;
        let pause = renew_after(clock(), certificate.not_after, rng.f64());
        tracing::info!(
            identity = %certificate.id,
            serial = certificate.serial,
            not_after = certificate.not_after.as_secs(),
            renewal_s = pause.as_secs(),
            "certificate installed"
        );
        let due = clock().as_secs() + pause.as_secs();
        let asked = async {
            tokio::time::sleep(patience).await;
            identity.renewal_asked().await;
        };
        patience = tokio::select! {
            () = wall_time_reaches(due, &clock) => ASKED_INTERVAL,
            () = asked => (patience * 2).min(ASKED_LONGEST),
        };
    }
}

/// Pause until the renewal of a certificate that ends at `not_after`; `share` is from 0 to 1.
fn renew_after(now: UnixTime, not_after: UnixTime, share: f64) -> Duration {
    let left = not_after.as_secs().saturating_sub(now.as_secs());
    Duration::from_secs(left).mul_f64(0.5 + 0.2 * share).max(MIN_INTERVAL)
}

async fn wall_time_reaches(due: u64, clock: &impl Fn() -> UnixTime) {
    loop {
        let left = Duration::from_secs(due.saturating_sub(clock().as_secs()));
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK_AGAIN)).await;
    }
}

/// Tries until it has one.
async fn obtain_patiently(
    identity: &Identity,
    settings: &Settings,
    control_plane: &impl Dial,
    rng: &mut fastrand::Rng,
    clock: &impl Fn() -> UnixTime,
) -> Certificate {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let began = tokio::time::Instant::now();
    let mut reported: Option<tokio::time::Instant> = None;
    let mut noted = false;
    loop {
        // What was asked for until now, this attempt answers.
        identity.forget_renewal().await;
        let span = remora_core::span!("client", "identity certify");
        let obtained = obtain(identity, settings, control_plane, rng, &mut noted);
        let error = match obtained.instrument(span.clone()).await {
            Ok((certificate, bundle)) => match identity.install(certificate.clone(), bundle) {
                Ok(()) => return certificate,
                Err(error) => error.into(),
            },
            Err(error) => error,
        };
        telemetry::failed(&span, &error);
        drop(span);
        let now = tokio::time::Instant::now();
        if reported.is_none_or(|last| now.duration_since(last) >= REPORT) {
            reported = Some(now);
            report(identity, settings, &error, now.duration_since(began), clock());
        }
        tokio::time::sleep(backoff.next(rng)).await;
    }
}

fn report(
    identity: &Identity,
    settings: &Settings,
    error: &CertifyError,
    since: Duration,
    now: UnixTime,
) {
    let seconds = since.as_secs();
    match &*identity.peek() {
        None => tracing::warn!(
            "no certificate for {} yet: {error}; trying for {seconds} s",
            settings.workload
        ),
        Some(material) if material.is_expired(now) => tracing::error!(
            "certificate of {} has expired, peers refuse it: {error}; trying for {seconds} s",
            material.id()
        ),
        Some(material) => tracing::warn!(
            "certificate of {} not renewed yet, valid for {} s more: {error}; trying for {seconds} s",
            material.id(),
            material.certificate().not_after.as_secs().saturating_sub(now.as_secs())
        ),
    }
}

/// One attempt. What is wrong with the file of roots, but does not stop it, is told unless `noted`.
async fn obtain(
    identity: &Identity,
    settings: &Settings,
    control_plane: &impl Dial,
    rng: &mut fastrand::Rng,
    noted: &mut bool,
) -> Result<(Certificate, TrustBundle), CertifyError> {
    let roots = match identity.trust_bundle() {
        None => read_trust_bundle(&settings.trust_bundle, &settings.trust_domain).await?,
        Some(in_force) => {
            let (roots, problem) = roots_of_control_plane(&in_force, &settings.trust_bundle).await;
            if let Some(problem) = problem.filter(|_| !std::mem::replace(noted, true)) {
                tracing::warn!(problem, "not all roots are known; renewing with the others");
            }
            roots
        }
    };
    let token = read_token(&settings.token).await?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let csr = CertificateParams::default().serialize_request(&key)?;
    let mut client = IdentityClient::new(control_plane.dial(&roots, rng).await?);
    let request = pb::CertifyRequest { token: token.to_vec(), csr: csr.der().to_vec() };
    let answer = tokio::time::timeout(CALL_TIMEOUT, client.certify(request))
        .await
        .map_err(|_| CertifyError::Timeout)?
        .map_err(|status| CertifyError::Refused {
            status: Box::new(status),
            token: settings.token.clone(),
        })?
        .into_inner();
    let bundle = match &answer.trust_bundle {
        Some(bundle) => parse_trust_bundle(bundle)?,
        // Those that are there to reach the control plane are not for peers.
        None => identity.trust_bundle().unwrap_or(roots),
    };
    let certificate = Certificate::new(
        answer.chain.into_iter().map(CertificateDer::from).collect(),
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        seconds(answer.not_before),
        seconds(answer.not_after),
    )?;
    Ok((certificate, bundle))
}

fn seconds(since_epoch: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(since_epoch).unwrap_or(0)))
}

/// Reads a PEM file of roots.
///
/// # Errors
/// Where it is not there, has no certificate or one that cannot be read.
pub async fn read_trust_bundle(
    path: &Path,
    trust_domain: &str,
) -> Result<TrustBundle, CertifyError> {
    let fail =
        |problem| CertifyError::File { what: "trust bundle", path: path.to_owned(), problem };
    let pem = tokio::fs::read(path).await.map_err(fail)?;
    let roots = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| fail(io::Error::new(io::ErrorKind::InvalidData, error.to_string())))?;
    TrustBundle::new(trust_domain, roots)
        .map_err(|error| fail(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// The roots that may prove the control plane: those of the file beside those in force. In a
/// rotation either may know the new root before the other: the stream is faster than the file, and
/// the file goes on where the stream is cut. Ask anew for each connection: a root is good only for as
/// long as one of the two has it.
///
/// The file is allowed to be bad, and is told second; of more than [`MAX_ROOTS`] those of the file
/// come first, since what is streamed may be as old as the last stream.
pub async fn roots_of_control_plane(
    in_force: &TrustBundle,
    file: &Path,
) -> (TrustBundle, Option<String>) {
    let domain = in_force.trust_domain();
    let mut roots = match read_trust_bundle(file, domain).await {
        Ok(file) => file.roots().to_vec(),
        Err(error) => return (in_force.clone(), Some(error.to_string())),
    };
    let more = in_force.roots().iter().filter(|root| !roots.contains(root));
    let more: Vec<_> = more.cloned().collect();
    let room = MAX_ROOTS.saturating_sub(roots.len());
    let problem = more.len().checked_sub(room).filter(|left| *left > 0).map(|left| {
        format!("{left} streamed roots beside those of {}; at most {MAX_ROOTS}", file.display())
    });
    roots.extend(more.into_iter().take(room));
    match TrustBundle::new(domain, roots) {
        Ok(roots) => (roots, problem),
        Err(error) => (in_force.clone(), Some(error.to_string())),
    }
}

/// The roots as the control plane sends them.
///
/// # Errors
/// Where one cannot be read.
pub fn parse_trust_bundle(bundle: &pb::TrustBundle) -> Result<TrustBundle, TlsError> {
    let roots = bundle.roots.iter().cloned().map(CertificateDer::from).collect();
    TrustBundle::new(&bundle.trust_domain, roots)
}

async fn read_token(path: &Path) -> Result<Zeroizing<Vec<u8>>, CertifyError> {
    let fail = |problem| CertifyError::File { what: "token file", path: path.to_owned(), problem };
    let bytes = Zeroizing::new(tokio::fs::read(path).await.map_err(fail)?);
    let token = bytes.trim_ascii();
    let invalid = |problem: String| fail(io::Error::new(io::ErrorKind::InvalidData, problem));
    if token.is_empty() {
        return Err(invalid("is empty".to_owned()));
    }
    if token.len() > MAX_TOKEN {
        return Err(invalid(format!("has {} bytes; at most {MAX_TOKEN}", token.len())));
    }
    Ok(Zeroizing::new(token.to_vec()))
}

/// The system's wall clock.
#[must_use]
pub fn wall_clock() -> UnixTime {
    UnixTime::now()
}
