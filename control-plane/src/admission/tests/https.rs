//! Reviews over real sockets and real TLS, as an API server sends them.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use remora_core::{
    drain::{Drain, Drained},
    names::LINT_PATH,
};
use remora_proto::v1::TrustBundle;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{super::server, *};
use crate::{
    identity::{
        bundle::Roots,
        ca::{Authority, NewRoot},
        rotation::Signer,
    },
    server::tls::TlsError,
};

const HOST: &str = "remora-control-plane.remora-system.svc";

#[expect(clippy::disallowed_methods, reason = "certificates are verified by wall time")]
fn clock() -> SystemTime {
    SystemTime::now()
}

fn authority(name: &str) -> Arc<Authority> {
    let root = NewRoot::generate(name, clock()).unwrap();
    let roots = vec![root.certificate];
    Arc::new(Authority::new(&roots.clone(), root.key, roots, Duration::from_secs(3600)).unwrap())
}

fn signer(authority: &Arc<Authority>) -> Arc<Signer> {
    Arc::new(Signer { authority: Arc::clone(authority), signs_from: UNIX_EPOCH })
}

struct Server {
    address: SocketAddr,
    signer: watch::Sender<Arc<Signer>>,
    _bundle: watch::Sender<Arc<TrustBundle>>,
    drain: Drain,
    task: JoinHandle<Result<(), TlsError>>,
}

impl Server {
    async fn start(authority: &Arc<Authority>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (signer, signs) = watch::channel(signer(authority));
        let (bundle, roots) = watch::channel(Roots::default().streamed("cluster.local"));
        let (drain, watch) = Drain::new();
        let reviewer = Arc::new(reviewer());
        let run = async move {
            server::run(listener, (signs, roots), HOST, reviewer, clock, watch).await
        };
        Self { address, signer, _bundle: bundle, drain, task: tokio::spawn(run) }
    }

    async fn connect(
        &self,
        root: &CertificateDer<'static>,
        alpn: &[u8],
        host: &'static str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).unwrap();
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let socket = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from(host).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, socket).await
    }
}

fn post(path: &str, body: Vec<u8>) -> http::Request<Full<axum::body::Bytes>> {
    http::Request::post(format!("https://{HOST}:443{path}?timeout=2s"))
        .header("host", HOST)
        .header("content-type", "application/json")
        .body(Full::from(body))
        .unwrap()
}

async fn exchange(
    stream: TlsStream<TcpStream>,
    request: http::Request<Full<axum::body::Bytes>>,
) -> (u16, String) {
    let io = TokioIo::new(stream);
    let h2 = io.inner().get_ref().1.alpn_protocol() == Some(b"h2");
    let response = if h2 {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    };
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn reviews_are_answered_over_both_versions_of_http_under_the_services_name() {
    let authority = authority("mesh");
    let root = &authority.roots()[0];
    let server = Server::start(&authority).await;
    for alpn in [&b"h2"[..], b"http/1.1"] {
        let bad = body("CREATE", HTTP, route("r", json!([impossible("/b")])), Value::Null);
        let stream = server.connect(root, alpn, HOST).await.unwrap();
        let (status, text) = exchange(stream, post(LINT_PATH, bad)).await;
        assert_eq!(status, 200, "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["response"]["allowed"], false, "{text}");
    }
    let other = server.connect(root, b"h2", "remora-injector.remora-system.svc").await;
    assert!(other.is_err(), "the certificate is for one name");
    let unknown = NewRoot::generate("other", clock()).unwrap().certificate;
    assert!(server.connect(&unknown, b"h2", HOST).await.is_err());
}

#[tokio::test]
async fn what_is_no_review_is_an_error_that_names_it() {
    let authority = authority("mesh");
    let root = &authority.roots()[0];
    let server = Server::start(&authority).await;
    let connect = || server.connect(root, b"http/1.1", HOST);
    let (status, text) = exchange(connect().await.unwrap(), post(LINT_PATH, b"pod".into())).await;
    assert_eq!((status, text.contains("no AdmissionReview")), (400, true), "{text}");
    let (status, _) = exchange(connect().await.unwrap(), post("/mutate", b"{}".into())).await;
    assert_eq!(status, 404);
    let huge = vec![b' '; 7 << 20];
    let (status, _) = exchange(connect().await.unwrap(), post(LINT_PATH, huge)).await;
    assert_eq!(status, 413);
}

#[tokio::test]
async fn another_issuer_gives_another_certificate_while_the_server_runs() {
    let (one, two) = (authority("one"), authority("two"));
    let server = Server::start(&one).await;
    let (old, new) = (&one.roots()[0], &two.roots()[0]);
    assert!(server.connect(old, b"h2", HOST).await.is_ok());
    server.signer.send_replace(signer(&two));
    let renewed = async {
        while server.connect(new, b"h2", HOST).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), renewed).await.expect("a new certificate");
    assert!(server.connect(old, b"h2", HOST).await.is_err());
}

#[tokio::test]
async fn draining_ends_connections_and_the_server() {
    let authority = authority("mesh");
    let server = Server::start(&authority).await;
    let stream = server.connect(&authority.roots()[0], b"h2", HOST).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let ended = tokio::spawn(connection);
    let fine = body("CREATE", HTTP, sound(), Value::Null);
    assert_eq!(sender.send_request(post(LINT_PATH, fine)).await.unwrap().status(), 200);
    drop(sender);
    assert_eq!(server.drain.drain(Duration::from_secs(20)).await, Drained::Clean);
    server.task.await.unwrap().unwrap();
    let _ = ended.await.unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}
