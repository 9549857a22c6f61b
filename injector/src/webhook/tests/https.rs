//! The webhook through TLS on a real socket.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use remora_core::drain::{Drain, Drained};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion, crypto::aws_lc_rs,
    time_provider::TimeProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsConnector;

use super::{
    START,
    api::Api,
    recorded, reviewer,
    reviews::{BATCH, judge, on_cpu, twenty_containers},
    schema, time,
};
use crate::webhook::{certs::material::Material, server};

pub(super) const NAME: &str = "remora-injector.remora-system.svc";
type Sender = SendRequest<Full<Bytes>>;

/// Certificates are judged at this moment.
#[derive(Debug)]
pub(super) struct At(pub(super) u64);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
    }
}

/// A connection as an API server makes one that trusts these roots; and the server's certificate.
pub(super) async fn connect(
    port: u16,
    roots: &[CertificateDer<'static>],
    now: u64,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<(Sender, CertificateDer<'static>), std::io::Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).unwrap();
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_details(provider, Arc::new(At(now)))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    let socket = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from(NAME).unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    Ok((sender, leaf))
}

pub(super) fn post(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("/mutate?timeout=5s")
        .header(header::HOST, NAME)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

struct Server {
    port: u16,
    roots: Vec<CertificateDer<'static>>,
    drain: Drain,
    api: Api,
}

async fn serve(linger: Duration) -> Server {
    let material = Material::make(&[NAME.to_owned()], &[], time(START)).unwrap();
    let roots = material.roots().to_vec();
    let (config, serving) = watch::channel(Some(Arc::new(material.server_config().unwrap())));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (drain, watch) = Drain::new();
    let api = Api::new();
    let (reviewer, queue) = reviewer(&api);
    let running = server::run(listener, serving, reviewer, linger, watch.clone());
    tokio::spawn(watch.track(async move {
        running.await;
        drop((config, queue));
    }));
    Server { port, roots, drain, api }
}

impl Server {
    async fn connect(&self) -> Sender {
        connect(self.port, &self.roots, START, rustls::ALL_VERSIONS).await.unwrap().0
    }
}

async fn send(sender: &mut Sender, request: Request<Full<Bytes>>) -> (StatusCode, Bytes) {
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    (status, response.into_body().collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn a_review_is_answered_over_tls_1_2_and_1_3() {
    let server = serve(Duration::ZERO).await;
    let review = recorded("deployment.create");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let connected = connect(server.port, &server.roots, START, &[version]).await;
        let (mut sender, _) = connected.unwrap();
        let (status, body) = send(&mut sender, post(review.to_string())).await;
        assert_eq!(status, StatusCode::OK);
        let uid = review["request"]["uid"].as_str().unwrap();
        assert!(schema::check(uid, &body).patch.is_some());
    }
}

#[tokio::test]
async fn what_is_no_review_is_refused_and_the_connection_lives_on() {
    let server = serve(Duration::ZERO).await;
    let mut sender = server.connect().await;
    let with = |change: fn(&mut Request<Full<Bytes>>)| {
        let mut request = post("{}");
        change(&mut request);
        request
    };
    for (request, expected) in [
        (with(|r| *r.method_mut() = Method::GET), StatusCode::METHOD_NOT_ALLOWED),
        (with(|r| *r.uri_mut() = "/other".parse().unwrap()), StatusCode::NOT_FOUND),
        (
            with(|r| drop(r.headers_mut().remove(header::CONTENT_TYPE))),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ),
        (post("not JSON"), StatusCode::BAD_REQUEST),
        (post("{}"), StatusCode::BAD_REQUEST),
    ] {
        let (status, body) = send(&mut sender, request).await;
        assert_eq!(status, expected);
        assert!(body.ends_with(b"\n"));
    }
    let (status, _) = send(&mut sender, post(recorded("job.create").to_string())).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn a_huge_body_is_refused() {
    let server = serve(Duration::ZERO).await;
    let mut sender = server.connect().await;
    let (status, _) = send(&mut sender, post(vec![b' '; (3 << 20) + 1])).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let mut sender = server.connect().await;
    let mut body = recorded("job.create").to_string();
    body.push_str(&" ".repeat((3 << 20) - body.len()));
    assert_eq!(send(&mut sender, post(body)).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_drain_answers_for_a_while_and_then_ends() {
    let server = serve(Duration::from_secs(1)).await;
    let review = recorded("statefulset.create").to_string();
    let mut old = server.connect().await;
    assert_eq!(send(&mut old, post(review.clone())).await.0, StatusCode::OK);
    let (port, roots) = (server.port, server.roots.clone());
    let drained = tokio::spawn(server.drain.drain(Duration::from_secs(20)));
    tokio::task::yield_now().await;
    // The caller of a connection that is open is told to make a new one, and new ones are taken.
    let response = old.send_request(post(review.clone())).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[header::CONNECTION], "close");
    let (mut new, _) = connect(port, &roots, START, rustls::ALL_VERSIONS).await.unwrap();
    assert_eq!(send(&mut new, post(review)).await.0, StatusCode::OK);
    assert_eq!(drained.await.unwrap(), Drained::Clean);
    assert!(connect(port, &roots, START, rustls::ALL_VERSIONS).await.is_err());
    drop(server.api);
}

#[tokio::test]
async fn twenty_containers_through_tls_cost_less_than_ten_milliseconds() {
    let server = serve(Duration::ZERO).await;
    let mut sender = server.connect().await;
    let review = Bytes::from(twenty_containers().to_string());
    let mut batches = Vec::new();
    for _ in 0..5 {
        let started = on_cpu();
        for _ in 0..BATCH {
            assert_eq!(send(&mut sender, post(review.clone())).await.0, StatusCode::OK);
        }
        batches.push(on_cpu() - started);
    }
    judge("twenty containers over TLS", &batches);
}
