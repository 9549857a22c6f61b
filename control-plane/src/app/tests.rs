//! The whole program over real sockets and real TLS on loopback.

use std::{fs, path::Path, sync::Arc};

use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use remora_core::drain::{Drain, Drained};
use remora_proto::v1::{
    self as pb, CertifyRequest, CertifyResponse, WatchRequest, WatchResponse,
    discovery_client::DiscoveryClient, identity_client::IdentityClient, subscribe, update,
    watch_request, watch_response,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject,
    },
};
use tempfile::TempDir;
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Streaming,
    transport::{Channel, Endpoint},
};

use super::*;
use crate::identity::store;

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {clusterIP: 10.96.0.5, selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: orders-0, namespace: shop, labels: {app: orders}, annotations: {remora.io/proxy-version: "1"}}
spec: {containers: [{name: c}]}
status: {podIP: 10.244.0.7, conditions: [{type: Ready, status: "True"}]}
"#;

/// A control plane of its own for one test.
struct Plane {
    dir: TempDir,
    grpc: SocketAddr,
    admin: SocketAddr,
    drain: Drain,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Plane {
    async fn start(manifests: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["manifests", "tokens"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("manifests/shop.yaml"), manifests).unwrap();
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(local).await.unwrap();
        let admin_listener = TcpListener::bind(local).await.unwrap();
        let (grpc, admin) = (listener.local_addr().unwrap(), admin_listener.local_addr().unwrap());
        let listeners = Listeners { grpc: listener, admin: admin_listener, admission: None };
        let manifests = vec![dir.path().join("manifests")];
        let args = Args {
            ca_dir: Some(dir.path().join("ca")),
            listen: grpc,
            admin_listen: admin,
            trust_bundle_out: Some(dir.path().join("bundle.pem")),
            leaf_lifetime: Duration::from_secs(3600),
            rotation_overlap: Duration::from_secs(1),
            ..Args::local(manifests, dir.path().join("tokens"))
        };
        let (drain, watch) = Drain::new();
        let task = tokio::spawn(serve(args, listeners, None, watch));
        let plane = Self { dir, grpc, admin, drain, task };
        // Answered as soon as it serves.
        plane.get("/live").await;
        plane
    }

    fn register(&self, token: &str, namespace: &str) {
        let digest = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, token.as_bytes());
        let name: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        let workload = format!("{{\"namespace\":\"{namespace}\",\"serviceAccount\":\"web\"}}");
        fs::write(self.dir.path().join(format!("tokens/{name}.json")), workload).unwrap();
    }

    async fn channel(&self, client: Option<(Vec<CertificateDer<'static>>, &KeyPair)>) -> Channel {
        let config = client_config(&self.dir.path().join("bundle.pem"), client);
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let address = self.grpc;
        Endpoint::from_static("http://control-plane")
            .connect_with_connector(tower::service_fn(move |_| {
                let connector = connector.clone();
                async move {
                    let socket = TcpStream::connect(address).await?;
                    let name = ServerName::try_from("control-plane").unwrap();
                    connector.connect(name, socket).await.map(TokioIo::new)
                }
            }))
            .await
            .unwrap()
    }

    /// A certificate for a workload of a namespace, got the way a proxy gets it.
    async fn certify(&self, namespace: &str) -> (CertifyResponse, KeyPair) {
        self.register("secret", namespace);
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let request = CertifyRequest { token: b"secret".to_vec(), csr };
        let mut client = IdentityClient::new(self.channel(None).await);
        (client.certify(request).await.unwrap().into_inner(), key)
    }

    async fn watch(&self, namespace: &str, hello: pb::Hello) -> Result<Watching, tonic::Status> {
        let (certificate, key) = self.certify(namespace).await;
        let chain = certificate.chain.into_iter().map(Into::into).collect();
        let channel = self.channel(Some((chain, &key))).await;
        let (requests, outgoing) = tokio::sync::mpsc::channel(16);
        let watching = Watching::send(&requests, watch_request::Kind::Hello(hello));
        watching.await;
        let answers = DiscoveryClient::new(channel).watch(ReceiverStream::new(outgoing)).await?;
        Ok(Watching { requests, answers: answers.into_inner() })
    }

    async fn get(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut socket = TcpStream::connect(self.admin).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

struct Watching {
    requests: tokio::sync::mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl Watching {
    async fn send(requests: &tokio::sync::mpsc::Sender<WatchRequest>, kind: watch_request::Kind) {
        requests.send(WatchRequest { kind: Some(kind) }).await.unwrap();
    }

    async fn subscribe(&self, id: u64, authority: &str) {
        let target = Some(subscribe::Target::Authority(authority.to_owned()));
        let subscribe = watch_request::Kind::Subscribe(pb::Subscribe { id, target });
        Self::send(&self.requests, subscribe).await;
    }

    async fn ack(&self, id: u64, version: u64) {
        Self::send(&self.requests, watch_request::Kind::Ack(pb::Ack { id, version })).await;
    }

    async fn next(&mut self) -> watch_response::Kind {
        let next = tokio::time::timeout(Duration::from_secs(20), self.answers.message());
        next.await.expect("an answer in time").unwrap().unwrap().kind.unwrap()
    }
}

fn hello(namespace: &str) -> pb::Hello {
    pb::Hello {
        namespace: namespace.to_owned(),
        pod: "web-0".to_owned(),
        version: "test".to_owned(),
        ..pb::Hello::default()
    }
}

fn client_config(
    bundle: &Path,
    client: Option<(Vec<CertificateDer<'static>>, &KeyPair)>,
) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(bundle).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(VerifyControlPlane(roots)));
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Checks chain and SPIFFE id, as a proxy does.
#[derive(Debug)]
struct VerifyControlPlane(RootCertStore);

impl ServerCertVerifier for VerifyControlPlane {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = rustls::server::ParsedCertificate::try_from(leaf)?;
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.0,
            intermediates,
            now,
            algorithms,
        )?;
        let expected = SpiffeId::control_plane("cluster.local").unwrap();
        assert_eq!(tls::spiffe_id(leaf), Some(expected));
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn a_proxy_gets_its_certificate_a_snapshot_and_then_deltas() {
    let plane = Plane::start(MANIFESTS).await;
    let mut watching = plane.watch("shop", hello("shop")).await.unwrap();
    let watch_response::Kind::TrustBundle(bundle) = watching.next().await else { panic!() };
    assert_eq!((bundle.trust_domain.as_str(), bundle.roots.len()), ("cluster.local", 1));

    watching.subscribe(7, "orders:80").await;
    let watch_response::Kind::Update(update) = watching.next().await else { panic!() };
    assert_eq!(update.id, 7);
    watching.ack(7, update.version).await;
    let Some(update::Answer::Service(service)) = update.answer else { panic!() };
    assert_eq!(service.breaker.unwrap().consecutive_failures, 7);
    assert_eq!(service.endpoints.len(), 1);
    assert_eq!(service.endpoints[0].identity, "spiffe://cluster.local/ns/shop/sa/default");

    let second = MANIFESTS.split("---").nth(1).unwrap().replace("orders-0", "orders-1");
    let second = second.replace("10.244.0.7", "10.244.0.8");
    fs::write(plane.dir.path().join("manifests/more.yaml"), second).unwrap();
    let watch_response::Kind::Endpoints(delta) = watching.next().await else { panic!() };
    assert_eq!((delta.upsert.len(), delta.remove.len()), (1, 0));
    assert_eq!(delta.upsert[0].pod, "orders-1");
    assert!(plane.get("/proxies").await.contains("\"behind\":1"));
    watching.ack(7, delta.version).await;

    fs::remove_file(plane.dir.path().join("manifests/more.yaml")).unwrap();
    let watch_response::Kind::Endpoints(delta) = watching.next().await else { panic!() };
    assert_eq!((delta.upsert.len(), delta.remove.len()), (0, 1));
    assert_eq!(delta.remove[0].ip, [10, 244, 0, 8]);
    assert!(plane.get("/ready").await.starts_with("HTTP/1.1 200"));
    let metrics = plane.get("/metrics").await;
    assert!(metrics.contains("remora_control_plane_proxies_connected 1"), "{metrics}");
    assert!(metrics.contains("certificates_total{result=\"issued\"} 1"), "{metrics}");

    assert_eq!(plane.drain.drain(Duration::from_secs(10)).await, Drained::Clean);
    plane.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn nothing_is_answered_before_there_is_a_first_good_state() {
    let plane = Plane::start("kind: [").await;
    assert!(plane.get("/ready").await.starts_with("HTTP/1.1 503"));
    let mut watching = plane.watch("shop", hello("shop")).await.unwrap();
    assert!(matches!(watching.next().await, watch_response::Kind::TrustBundle(_)));
    watching.subscribe(1, "orders:80").await;
    watching.subscribe(2, "elsewhere:80").await;
    fs::write(plane.dir.path().join("manifests/shop.yaml"), MANIFESTS).unwrap();
    for _ in 0..2 {
        let watch_response::Kind::Update(update) = watching.next().await else { panic!() };
        match (update.id, update.answer) {
            (1, Some(update::Answer::Service(_))) | (2, Some(update::Answer::NotOurs(_))) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn discovery_needs_a_certificate_of_the_namespace_that_hello_names() {
    let plane = Plane::start(MANIFESTS).await;
    let refused = |result: Result<Watching, tonic::Status>| async {
        match result {
            Err(status) => status.code(),
            Ok(mut watching) => watching.answers.message().await.unwrap_err().code(),
        }
    };
    let foreign = plane.watch("other", hello("shop")).await;
    assert_eq!(refused(foreign).await, Code::PermissionDenied);

    let (requests, outgoing) = tokio::sync::mpsc::channel(1);
    Watching::send(&requests, watch_request::Kind::Hello(hello("shop"))).await;
    let mut anonymous = DiscoveryClient::new(plane.channel(None).await);
    let status = anonymous.watch(ReceiverStream::new(outgoing)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_new_ca_in_the_directory_takes_over_without_a_failed_handshake() {
    let plane = Plane::start(MANIFESTS).await;
    let mut watching = plane.watch("shop", hello("shop")).await.unwrap();
    let watch_response::Kind::TrustBundle(before) = watching.next().await else { panic!() };
    let other = plane.dir.path().join("other");
    let life = Duration::from_secs(3600);
    let new = store::open(Some(&other), "cluster.local", life, wall_clock()).unwrap();
    for name in ["ca.crt", "tls.crt", "tls.key"] {
        fs::copy(other.join(name), plane.dir.path().join("ca").join(name)).unwrap();
    }
    let watch_response::Kind::TrustBundle(both) = watching.next().await else { panic!() };
    assert!(both.roots.contains(&before.roots[0]) && both.roots.contains(&new.roots()[0].to_vec()));
    // The server's certificate changes in between; whoever has the bundle connects throughout.
    let signed_by_new = |certificate: &CertifyResponse| {
        let (_, leaf) = x509_parser::parse_x509_certificate(&certificate.chain[0]).unwrap();
        let (_, root) = x509_parser::parse_x509_certificate(&new.roots()[0]).unwrap();
        leaf.verify_signature(Some(root.public_key())).is_ok()
    };
    assert!(!signed_by_new(&plane.certify("shop").await.0));
    let switched = async { while !signed_by_new(&plane.certify("shop").await.0) {} };
    tokio::time::timeout(Duration::from_secs(30), switched).await.unwrap();
    let mut watching = plane.watch("shop", hello("shop")).await.unwrap();
    let watch_response::Kind::TrustBundle(still) = watching.next().await else { panic!() };
    assert_eq!(still, both, "old leaves are alive");
}

#[tokio::test]
async fn a_port_in_use_is_one_line_with_the_mend() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = bind(address, "--listen").await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("port in use: {address}; end the other process or choose another --listen")
    );
}
