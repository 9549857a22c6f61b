//! Certify and the gRPC channel against a control plane made here.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rcgen::PublicKeyData;
use remora_core::spiffe::SpiffeId;
use remora_proto::v1::{self as pb, identity_server};
use rustls_pki_types::UnixTime;
use tokio::{
    io::{AsyncWriteExt, DuplexStream},
    net::TcpListener,
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

use super::{
    TlsError,
    certify::{self, Dial, Settings},
    channel::{ChannelError, ControlPlane, channel_over},
    identity::Identity,
    testing::{HOUR, TestCa, id, now},
    verify::TrustBundle,
};

mod rotation;

const LIFETIME: Duration = Duration::from_secs(1000);
const TOKEN: &str = "0123abcd";

/// Signs whatever key comes with the right token.
struct Issuer {
    ca: TestCa,
    down: AtomicBool,
    /// Counts calls, refused ones too.
    calls: AtomicUsize,
    issued: watch::Sender<usize>,
    keys: Mutex<Vec<Vec<u8>>>,
}

struct RequestKey(Vec<u8>);

impl PublicKeyData for RequestKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl Issuer {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            ca: TestCa::new(),
            down: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            issued: watch::Sender::new(0),
            keys: Mutex::default(),
        })
    }
}

#[tonic::async_trait]
impl identity_server::Identity for Issuer {
    async fn certify(
        &self,
        request: tonic::Request<pb::CertifyRequest>,
    ) -> Result<tonic::Response<pb::CertifyResponse>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.down.load(Ordering::SeqCst) {
            return Err(Status::unavailable("issuer is not ready"));
        }
        let request = request.into_inner();
        if request.token != TOKEN.as_bytes() {
            return Err(Status::unauthenticated("token is not known"));
        }
        let (_, csr) = X509CertificationRequest::from_der(&request.csr).unwrap();
        verify_signature(&csr);
        let key = csr.certification_request_info.subject_pki.subject_public_key.data.to_vec();
        self.keys.lock().unwrap().push(key.clone());
        let id = id("web");
        let validity = (now() - HOUR, now() + HOUR);
        let leaf = self.ca.sign(&RequestKey(key), &[id.as_str()], validity);
        self.issued.send_modify(|n| *n += 1);
        Ok(tonic::Response::new(pb::CertifyResponse {
            chain: vec![leaf.to_vec()],
            spiffe_id: id.to_string(),
            not_before: i64::try_from(validity.0.as_secs()).unwrap(),
            not_after: i64::try_from(test_clock().as_secs() + LIFETIME.as_secs()).unwrap(),
            trust_bundle: Some(pb::TrustBundle {
                trust_domain: "cluster.local".to_owned(),
                roots: vec![self.ca.root().to_vec()],
            }),
        }))
    }
}

/// The request must prove that the caller has the key.
fn verify_signature(csr: &X509CertificationRequest<'_>) {
    let info = &csr.certification_request_info;
    aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1,
        &info.subject_pki.subject_public_key.data,
    )
    .verify(info.raw, &csr.signature_value.data)
    .unwrap();
}

thread_local! {
    static START: std::cell::Cell<Option<(Instant, Duration)>> = const { std::cell::Cell::new(None) };
}

/// A wall clock that follows paused time.
fn test_clock() -> UnixTime {
    let (start, wall) = START.get().unwrap_or_else(|| {
        let start = (Instant::now(), now());
        START.set(Some(start));
        start
    });
    UnixTime::since_unix_epoch(wall + start.elapsed())
}

/// Plain gRPC over pipes: what is tested here is the task, not TLS.
struct InMemory(mpsc::Sender<std::io::Result<DuplexStream>>);

impl Dial for InMemory {
    async fn dial(&self, _: &TrustBundle, _: &mut fastrand::Rng) -> Result<Channel, ChannelError> {
        let down = || ChannelError::Timeout { authority: "10.0.0.9:8086".into() };
        let (near, far) = tokio::io::duplex(64 << 10);
        self.0.send(Ok(far)).await.map_err(|_| down())?;
        channel_over(near).await.map_err(|_| down())
    }
}

struct Harness {
    identity: Identity,
    issuer: Arc<Issuer>,
    settings: Settings,
    _dir: tempfile::TempDir,
    tasks: tokio::task::JoinSet<()>,
}

impl Harness {
    fn new() -> Self {
        test_clock();
        let issuer = Issuer::new();
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            trust_domain: "cluster.local".to_owned(),
            trust_bundle: dir.path().join("roots.pem"),
            token: dir.path().join("token"),
            workload: "pod shop/web-1".to_owned(),
        };
        std::fs::write(&settings.trust_bundle, issuer.ca.pem()).unwrap();
        std::fs::write(&settings.token, format!("{TOKEN}\n")).unwrap();
        let identity = Identity::new();
        Self { identity, issuer, settings, _dir: dir, tasks: tokio::task::JoinSet::new() }
    }

    fn start(mut self) -> Self {
        let (incoming, connections) = mpsc::channel(4);
        let server = tonic::transport::Server::builder()
            .add_service(identity_server::IdentityServer::from_arc(self.issuer.clone()));
        self.tasks.spawn(async move {
            server.serve_with_incoming(ReceiverStream::new(connections)).await.unwrap();
        });
        self.tasks.spawn(certify::run(
            self.identity.clone(),
            self.settings.clone(),
            InMemory(incoming),
            fastrand::Rng::with_seed(3),
            test_clock,
        ));
        self
    }

    async fn installed(&self, n: u64) {
        let mut changed = self.identity.changed();
        while self.identity.refreshes() < n {
            let change = tokio::time::timeout(LIFETIME * 2, changed.changed()).await;
            change.expect("no new certificate").unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_certificate_comes_with_identity_and_roots() {
    let harness = Harness::new().start();
    let material = harness.identity.wait_ready().await;
    assert_eq!(material.id(), &id("web"));
    assert_eq!(material.bundle(), &harness.issuer.ca.bundle());
    assert!(harness.identity.ready());
}

#[tokio::test(start_paused = true)]
async fn renewal_comes_between_half_and_seven_tenths_of_life_with_a_new_key() {
    let harness = Harness::new().start();
    harness.installed(1).await;
    let began = Instant::now();
    harness.installed(2).await;
    let passed = began.elapsed();
    assert!(passed >= LIFETIME * 5 / 10 && passed <= LIFETIME * 7 / 10, "{passed:?}");
    let keys = harness.issuer.keys.lock().unwrap();
    assert_ne!(keys[0], keys[1]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_at_renewal_keeps_the_certificate_and_ends_by_itself() {
    let harness = Harness::new().start();
    harness.installed(1).await;
    let before = harness.identity.current().unwrap();
    harness.issuer.down.store(true, Ordering::SeqCst);
    tokio::time::advance(LIFETIME * 7 / 10).await;
    while harness.issuer.calls.load(Ordering::SeqCst) < 8 {
        assert!(Arc::ptr_eq(&before, &harness.identity.current().unwrap()));
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    harness.issuer.down.store(false, Ordering::SeqCst);
    harness.installed(2).await;
}

#[tokio::test(start_paused = true)]
async fn the_token_is_read_again_for_every_attempt() {
    let harness = Harness::new();
    std::fs::write(&harness.settings.token, "stale").unwrap();
    let harness = harness.start();
    while harness.issuer.calls.load(Ordering::SeqCst) < 3 {
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    assert!(harness.identity.current().is_none());
    std::fs::write(&harness.settings.token, TOKEN).unwrap();
    harness.installed(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_asked_for_comes_soon_but_not_at_once() {
    let harness = Harness::new().start();
    harness.installed(1).await;
    let began = Instant::now();
    harness.identity.renew();
    harness.installed(2).await;
    let passed = began.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(12)).contains(&passed), "{passed:?}");
}

#[tokio::test]
async fn a_bad_trust_bundle_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("roots.pem");
    for content in
        [None, Some(""), Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")]
    {
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let error = certify::read_trust_bundle(&path, "cluster.local").await.unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("trust bundle") && text.contains("roots.pem"), "{text}");
    }
}

fn rng() -> fastrand::Rng {
    fastrand::Rng::with_seed(1)
}

fn control_plane_id() -> SpiffeId {
    SpiffeId::control_plane("cluster.local").unwrap()
}

fn control_plane_at(listener: &TcpListener) -> ControlPlane {
    ControlPlane {
        authority: listener.local_addr().unwrap().to_string().into(),
        id: control_plane_id(),
        mark: None,
    }
}

/// Takes TLS connections as the control plane does and hands the plaintext to a gRPC server.
async fn serve_tls(listener: TcpListener, issuer: Arc<Issuer>, server: Arc<rustls::ServerConfig>) {
    let (incoming, connections) = mpsc::channel::<std::io::Result<DuplexStream>>(4);
    let grpc = tonic::transport::Server::builder()
        .add_service(identity_server::IdentityServer::from_arc(issuer))
        .serve_with_incoming(ReceiverStream::new(connections));
    let accept = async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(server);
        let mut pumps = tokio::task::JoinSet::new();
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
            let (near, mut far) = tokio::io::duplex(64 << 10);
            incoming.send(Ok(near)).await.unwrap();
            pumps.spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut tls, &mut far).await;
            });
        }
    };
    let _ = tokio::join!(grpc, accept);
}

/// What the control plane presents; `mutual` asks callers for a certificate.
fn server_config(ca: &TestCa, mutual: bool) -> Arc<rustls::ServerConfig> {
    let material = ca.material(&control_plane_id());
    let mut config = rustls::ServerConfig::clone(material.server_config());
    if !mutual {
        let resolver = config.cert_resolver.clone();
        config = rustls::ServerConfig::builder_with_provider(super::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(resolver);
    }
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

#[tokio::test]
async fn certify_runs_over_real_tls_and_the_result_opens_the_mutual_channel() {
    let issuer = Issuer::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mutual_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (plain, mutual) = (control_plane_at(&listener), control_plane_at(&mutual_listener));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(serve_tls(listener, issuer.clone(), server_config(&issuer.ca, false)));
    tasks.spawn(serve_tls(mutual_listener, issuer.clone(), server_config(&issuer.ca, true)));
    let harness = Harness::new();
    std::fs::write(&harness.settings.trust_bundle, issuer.ca.pem()).unwrap();
    tasks.spawn(certify::run(
        harness.identity.clone(),
        harness.settings.clone(),
        plain,
        fastrand::Rng::with_seed(1),
        certify::wall_clock,
    ));
    let material = harness.identity.wait_ready().await;
    let config = material.grpc_config(&mutual.id).unwrap();
    let channel = mutual.connect(config, &mut rng()).await.unwrap();
    let status = pb::identity_client::IdentityClient::new(channel)
        .certify(pb::CertifyRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated, "the call arrived");
}

#[tokio::test]
async fn a_control_plane_of_a_foreign_ca_is_named_and_its_roots_worth_reading_again() {
    let (ca, issuer) = (TestCa::new(), Issuer::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control_plane = control_plane_at(&listener);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(serve_tls(listener, issuer.clone(), server_config(&issuer.ca, true)));
    let config = ca.material(&id("web")).grpc_config(&control_plane.id).unwrap();
    let error = control_plane.connect(config, &mut rng()).await.unwrap_err();
    assert!(
        matches!(&error, ChannelError::Tls { problem: TlsError::UnknownIssuer, .. }),
        "{error}"
    );
    assert!(error.is_trust() && error.to_string().contains(&*control_plane.authority));
}

#[tokio::test]
async fn a_workload_that_poses_as_the_control_plane_is_refused() {
    let issuer = Issuer::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control_plane = control_plane_at(&listener);
    let mut config = rustls::ServerConfig::clone(issuer.ca.material(&id("thief")).server_config());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(serve_tls(listener, issuer.clone(), Arc::new(config)));
    let config =
        super::material::server_auth_config(&issuer.ca.bundle(), &control_plane.id).unwrap();
    let error = control_plane.connect(config, &mut rng()).await.unwrap_err();
    assert!(error.to_string().contains("/sa/thief"), "{error}");
}

#[tokio::test]
async fn a_closed_port_and_a_plaintext_server_are_told_apart() {
    let ca = TestCa::new();
    let config = || ca.material(&id("web")).grpc_config(&control_plane_id()).unwrap();
    let rng = &mut rng();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control_plane = control_plane_at(&listener);
    let serve = async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        tcp
    };
    let (error, _tcp) = tokio::join!(control_plane.connect(config(), rng), serve);
    assert!(
        matches!(error.unwrap_err(), ChannelError::Tls { problem: TlsError::NotTls, .. }),
        "plaintext"
    );
    drop(listener);
    let error = control_plane.connect(config(), rng).await.unwrap_err();
    assert!(error.to_string().contains("unreachable"), "{error}");
}

#[tokio::test]
async fn connections_spread_over_the_addresses_and_go_to_the_other_where_one_is_dead() {
    let (alive, dead) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await);
    let dead = dead.unwrap();
    let addresses = vec![alive.local_addr().unwrap(), dead.local_addr().unwrap()];
    let control_plane = control_plane_at(&alive);
    let issuer = Issuer::new();
    let config = || issuer.ca.material(&id("web")).grpc_config(&control_plane.id).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(serve_tls(alive, issuer.clone(), server_config(&issuer.ca, true)));
    // Takes connections and says nothing: a replica that hangs.
    let silent = Arc::new(AtomicUsize::new(0));
    let taken = silent.clone();
    let hanging = tasks.spawn(async move {
        let mut open = Vec::new();
        while let Ok((tcp, _)) = dead.accept().await {
            taken.fetch_add(1, Ordering::SeqCst);
            open.push(tcp);
        }
    });
    let (mut rng, rounds) = (rng(), 6);
    for _ in 0..rounds {
        let any = control_plane.dial_any(addresses.clone(), Arc::new(config()), &mut rng);
        any.await.unwrap();
    }
    let dead_first = silent.load(Ordering::SeqCst);
    assert!((1..rounds).contains(&dead_first), "{dead_first} of {rounds} began with the dead one");
    // One that is gone costs nothing.
    hanging.abort();
    for _ in 0..rounds {
        let any = control_plane.dial_any(addresses.clone(), Arc::new(config()), &mut rng);
        any.await.unwrap();
    }
}

#[tokio::test]
async fn what_one_address_holds_against_us_is_told_rather_than_that_another_is_gone() {
    let (ca, issuer) = (TestCa::new(), Issuer::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let control_plane = control_plane_at(&listener);
    let addresses = vec![listener.local_addr().unwrap(), gone];
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(serve_tls(listener, issuer.clone(), server_config(&issuer.ca, true)));
    for seed in 0..4 {
        let config = Arc::new(ca.material(&id("web")).grpc_config(&control_plane.id).unwrap());
        let mut rng = fastrand::Rng::with_seed(seed);
        let error = control_plane.dial_any(addresses.clone(), config, &mut rng).await.unwrap_err();
        assert!(error.is_trust(), "{error}");
    }
}
