//! The control plane's CA is replaced while proxies run: real TLS, one port for both services as in
//! the control plane.

use std::path::Path;

use remora_proto::v1::{discovery_server, watch_response};
use rustls::server::WebPkiClientVerifier;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Streaming;

use super::*;
use crate::{
    discovery::{Discovery, Limits, client},
    tls::{certify::roots_of_control_plane, material::server_auth_config},
};

type Responses = mpsc::Sender<Result<pb::WatchResponse, Status>>;

/// What the control plane goes by at one moment.
struct Shown {
    /// Signs its own certificate and those of others.
    signs: Arc<TestCa>,
    /// Roots that it trusts and sends.
    roots: Vec<Arc<TestCa>>,
    /// Life of what it issues.
    life: Duration,
}

impl Shown {
    fn bundle(&self) -> pb::TrustBundle {
        let roots = self.roots.iter().map(|ca| ca.root().to_vec()).collect();
        pb::TrustBundle { trust_domain: "cluster.local".to_owned(), roots }
    }

    /// Who has no certificate may come too.
    fn server_config(&self) -> Arc<rustls::ServerConfig> {
        let mut roots = rustls::RootCertStore::empty();
        for ca in &self.roots {
            roots.add(ca.root()).unwrap();
        }
        let provider = crate::tls::provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let material = self.signs.material(&control_plane_id());
        let mut config = rustls::ServerConfig::builder_with_provider(crate::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
            .with_cert_resolver(material.server_config().cert_resolver.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

/// A control plane whose CA can be replaced.
#[derive(Clone)]
struct Plane {
    shown: Arc<Mutex<Arc<Shown>>>,
    /// Discovery streams that began; they stay open.
    streams: Arc<watch::Sender<Vec<Responses>>>,
}

impl Plane {
    fn now(&self) -> Arc<Shown> {
        self.shown.lock().unwrap().clone()
    }

    fn show(&self, signs: &Arc<TestCa>, roots: &[&Arc<TestCa>], life: Duration) {
        let roots = roots.iter().map(|ca| Arc::clone(ca)).collect();
        *self.shown.lock().unwrap() = Arc::new(Shown { signs: signs.clone(), roots, life });
    }

    async fn serve(self, listener: TcpListener) {
        let (incoming, connections) = mpsc::channel::<std::io::Result<_>>(4);
        let grpc = tonic::transport::Server::builder()
            .add_service(identity_server::IdentityServer::new(self.clone()))
            .add_service(discovery_server::DiscoveryServer::new(self.clone()))
            .serve_with_incoming(ReceiverStream::new(connections));
        let accept = async move {
            let mut sockets = TcpListenerStream::new(listener);
            let mut pumps = tokio::task::JoinSet::new();
            while let Some(Ok(tcp)) = tokio_stream::StreamExt::next(&mut sockets).await {
                let acceptor = tokio_rustls::TlsAcceptor::from(self.now().server_config());
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

    async fn streamed(&self) {
        let mut streams = self.streams.subscribe();
        in_time(streams.wait_for(|streams| !streams.is_empty())).await.unwrap();
    }
}

#[tonic::async_trait]
impl identity_server::Identity for Plane {
    async fn certify(
        &self,
        request: tonic::Request<pb::CertifyRequest>,
    ) -> Result<tonic::Response<pb::CertifyResponse>, Status> {
        let (shown, request) = (self.now(), request.into_inner());
        let (_, csr) = X509CertificationRequest::from_der(&request.csr).unwrap();
        let key = csr.certification_request_info.subject_pki.subject_public_key.data.to_vec();
        let (id, validity) = (id("web"), (now() - HOUR, now() + shown.life));
        let leaf = shown.signs.sign(&RequestKey(key), &[id.as_str()], validity);
        Ok(tonic::Response::new(pb::CertifyResponse {
            chain: vec![leaf.to_vec()],
            spiffe_id: id.to_string(),
            not_before: i64::try_from(validity.0.as_secs()).unwrap(),
            not_after: i64::try_from(validity.1.as_secs()).unwrap(),
            trust_bundle: Some(shown.bundle()),
        }))
    }
}

#[tonic::async_trait]
impl discovery_server::Discovery for Plane {
    type WatchStream = ReceiverStream<Result<pb::WatchResponse, Status>>;

    async fn watch(
        &self,
        _: tonic::Request<Streaming<pb::WatchRequest>>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let (responses, stream) = mpsc::channel(4);
        let bundle = watch_response::Kind::TrustBundle(self.now().bundle());
        responses.try_send(Ok(pb::WatchResponse { kind: Some(bundle) })).unwrap();
        self.streams.send_modify(|streams| streams.push(responses));
        Ok(tonic::Response::new(ReceiverStream::new(stream)))
    }
}

struct Rotation {
    plane: Plane,
    control_plane: ControlPlane,
    harness: Harness,
    old: Arc<TestCa>,
    new: Arc<TestCa>,
    tasks: tokio::task::JoinSet<()>,
}

impl Rotation {
    /// Before it: the old CA signs leaves that live for `life`, and the file has its root.
    async fn new(life: Duration) -> Self {
        let (old, new) = (Arc::new(TestCa::new()), Arc::new(TestCa::new()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control_plane = control_plane_at(&listener);
        let shown = Shown { signs: old.clone(), roots: vec![old.clone()], life };
        let plane = Plane { shown: Arc::new(Mutex::new(Arc::new(shown))), streams: Arc::default() };
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(plane.clone().serve(listener));
        let rotation = Self { plane, control_plane, harness: Harness::new(), old, new, tasks };
        rotation.write_file(&rotation.old);
        rotation
    }

    fn identity(&self) -> &Identity {
        &self.harness.identity
    }

    fn file(&self) -> &Path {
        &self.harness.settings.trust_bundle
    }

    fn write_file(&self, ca: &TestCa) {
        std::fs::write(self.file(), ca.pem()).unwrap();
    }

    fn both(&self) -> TrustBundle {
        let roots = vec![self.old.root(), self.new.root()];
        TrustBundle::new("cluster.local", roots).unwrap()
    }

    /// The first certificate is there, and the task waits.
    async fn certify(&mut self) {
        self.tasks.spawn(certify::run(
            self.identity().clone(),
            self.harness.settings.clone(),
            self.control_plane.clone(),
            rng(),
            certify::wall_clock,
        ));
        in_time(self.harness.installed(1)).await;
    }

    fn discover(&mut self) {
        let discovery = Discovery::new(Limits::default(), Instant::now().into_std());
        let mesh = client::Mesh {
            control_plane: self.control_plane.clone(),
            identity: self.identity().clone(),
            trust_bundle: self.file().to_owned(),
        };
        let identity = self.identity().clone();
        self.tasks.spawn(client::run(discovery, identity, mesh, pb::Hello::default(), None, rng()));
    }

    async fn dial(&self) -> Result<Channel, ChannelError> {
        let in_force = self.identity().trust_bundle().unwrap();
        let (roots, _) = roots_of_control_plane(&in_force, self.file()).await;
        let config = server_auth_config(&roots, &self.control_plane.id).unwrap();
        self.control_plane.connect(config, &mut rng()).await
    }
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("not in time")
}

#[tokio::test]
async fn a_renewal_takes_the_root_that_was_streamed_while_the_file_is_stale() {
    let mut rotation = Rotation::new(Duration::from_secs(4)).await;
    rotation.certify().await;
    rotation.identity().set_trust_bundle(rotation.both()).unwrap();
    rotation.identity().stream_ended();
    rotation.plane.show(&rotation.new, &[&rotation.new], HOUR);
    in_time(rotation.harness.installed(2)).await;
    // The file's root is there for the control plane, not for peers.
    assert_eq!(rotation.identity().trust_bundle().unwrap(), rotation.new.bundle());
    assert!(rotation.identity().ready());
}

#[tokio::test]
async fn a_file_that_is_gone_or_bad_does_not_stop_renewals() {
    for content in [None, Some("no PEM")] {
        let mut rotation = Rotation::new(Duration::from_secs(4)).await;
        rotation.certify().await;
        match content {
            None => std::fs::remove_file(rotation.file()).unwrap(),
            Some(content) => std::fs::write(rotation.file(), content).unwrap(),
        }
        in_time(rotation.harness.installed(2)).await;
    }
}

#[tokio::test]
async fn a_root_proves_the_control_plane_for_as_long_as_stream_or_file_has_it() {
    let rotation = Rotation::new(HOUR).await;
    rotation.plane.show(&rotation.new, &[&rotation.new], HOUR);
    let identity = rotation.identity();
    identity.set_trust_bundle(rotation.both()).unwrap();
    rotation.dial().await.unwrap();
    identity.set_trust_bundle(rotation.old.bundle()).unwrap();
    let error = rotation.dial().await.unwrap_err();
    assert!(matches!(error, ChannelError::Tls { problem: TlsError::UnknownIssuer, .. }), "{error}");
    rotation.write_file(&rotation.new);
    rotation.dial().await.unwrap();
}

#[tokio::test]
async fn who_was_cut_off_during_the_rotation_comes_back_with_the_new_file() {
    let mut rotation = Rotation::new(HOUR).await;
    let certificate = rotation.old.certificate(&id("web"));
    rotation.identity().install(certificate, rotation.old.bundle()).unwrap();
    rotation.plane.show(&rotation.new, &[&rotation.old, &rotation.new], HOUR);
    rotation.write_file(&rotation.new);
    // Nobody certifies here: the old certificate is good for another while.
    rotation.discover();
    rotation.plane.streamed().await;
    let mut changed = rotation.identity().changed();
    while rotation.identity().trust_bundle().unwrap() != rotation.both() {
        in_time(changed.changed()).await.unwrap();
    }
}

#[tokio::test]
async fn who_was_cut_off_for_so_long_that_its_issuer_is_refused_gets_a_new_certificate_and_comes_back()
 {
    let mut rotation = Rotation::new(HOUR).await;
    rotation.certify().await;
    // The certificate is old enough to be renewed when asked for.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    rotation.plane.show(&rotation.new, &[&rotation.new], HOUR);
    rotation.write_file(&rotation.new);
    rotation.discover();
    rotation.plane.streamed().await;
    assert_eq!(rotation.identity().trust_bundle().unwrap(), rotation.new.bundle());
    assert_eq!(rotation.identity().refreshes(), 2);
}

#[tokio::test]
async fn a_control_plane_that_refuses_our_certificate_is_told_when_connecting() {
    let rotation = Rotation::new(HOUR).await;
    rotation.plane.show(&rotation.new, &[&rotation.new], HOUR);
    let material =
        crate::tls::material::Material::new(rotation.old.certificate(&id("web")), rotation.both());
    let config = material.unwrap().grpc_config(&rotation.control_plane.id).unwrap();
    let error = rotation.control_plane.connect(config, &mut rng()).await.unwrap_err();
    assert!(
        matches!(error, ChannelError::Tls { problem: TlsError::Refused { .. }, .. }),
        "{error}"
    );
    assert!(error.is_trust());
}

#[tokio::test]
async fn no_more_roots_than_a_bundle_holds_are_taken_and_the_files_come_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("roots.pem");
    let cas: Vec<_> = (0..18).map(|_| TestCa::new()).collect();
    let pem: String = cas[..10].iter().map(TestCa::pem).collect();
    std::fs::write(&path, pem).unwrap();
    // Two of them are in both.
    let streamed = cas[8..].iter().map(TestCa::root).collect();
    let streamed = TrustBundle::new("cluster.local", streamed).unwrap();
    let (roots, problem) = roots_of_control_plane(&streamed, &path).await;
    assert_eq!(roots.roots().len(), 16);
    assert!(cas[..10].iter().all(|ca| roots.roots().contains(&ca.root())));
    assert!(problem.unwrap().starts_with("2 streamed roots"));
}

#[tokio::test]
async fn a_replica_that_is_behind_does_not_take_back_the_root_that_was_streamed() {
    let rotation = Rotation::new(HOUR).await;
    let (identity, old) = (rotation.identity(), &rotation.old);
    identity.install(old.certificate(&id("web")), old.bundle()).unwrap();
    identity.set_trust_bundle(rotation.both()).unwrap();
    identity.install(old.certificate(&id("web")), old.bundle()).unwrap();
    assert_eq!(identity.trust_bundle().unwrap(), rotation.both());
    assert_eq!(identity.current().unwrap().bundle(), &rotation.both());
    // Roots that do not vouch for it are of no use, and a stream that has ended is older.
    identity.set_trust_bundle(old.bundle()).unwrap();
    identity.install(rotation.new.certificate(&id("web")), rotation.both()).unwrap();
    assert_eq!(identity.trust_bundle().unwrap(), rotation.both());
    identity.stream_ended();
    identity.install(rotation.new.certificate(&id("web")), rotation.new.bundle()).unwrap();
    assert_eq!(identity.trust_bundle().unwrap(), rotation.new.bundle());
}
