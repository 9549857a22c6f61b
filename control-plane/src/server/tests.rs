//! Connections over real sockets and real TLS, with a service that only knows who is there.

use remora_core::drain::{Drain, Drained};
use remora_proto::v1::{
    CertifyRequest, CertifyResponse, WatchRequest, WatchResponse,
    discovery_client::DiscoveryClient, discovery_server, identity_client::IdentityClient,
    identity_server,
};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use super::*;

/// Streams that say nothing and end when they must.
struct Silent;

#[tonic::async_trait]
impl discovery_server::Discovery for Silent {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap();
        let (answers, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            peer.leaving.cancelled().await;
            let _ = answers.send(Err(leave())).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl identity_server::Identity for Silent {
    async fn certify(
        &self,
        request: Request<CertifyRequest>,
    ) -> Result<Response<CertifyResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap();
        let spiffe_id = peer.identity.map(|id| id.to_string()).unwrap_or_default();
        Ok(Response::new(CertifyResponse { spiffe_id, ..CertifyResponse::default() }))
    }
}

struct Server {
    address: std::net::SocketAddr,
    client: Arc<ClientConfig>,
    drain: Drain,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(shortest: Duration, longest: Duration) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["control-plane".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], der)
            .unwrap();
        server.alpn_protocols = vec![b"h2".to_vec()];
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"h2".to_vec()];

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Routes::new(discovery_server::DiscoveryServer::new(Silent))
            .add_service(identity_server::IdentityServer::new(Silent))
            .prepare();
        let ages = Ages { shortest, longest, rng: fastrand::Rng::with_seed(1) };
        let (drain, watch) = Drain::new();
        let tls = Arc::new(ArcSwap::from_pointee(server));
        let task = tokio::spawn(serve(listener, tls, routes, ages, watch));
        Self { address, client: Arc::new(client), drain, task }
    }

    async fn channel(&self) -> Channel {
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.client));
        let mut stream = Some({
            let socket = TcpStream::connect(self.address).await.unwrap();
            let name = ServerName::try_from("control-plane").unwrap();
            TokioIo::new(connector.connect(name, socket).await.unwrap())
        });
        // One connection, not replaced when it ends.
        Endpoint::from_static("http://control-plane")
            .connect_with_connector(tower::service_fn(move |_| {
                std::future::ready(stream.take().ok_or(std::io::Error::other("connection ended")))
            }))
            .await
            .unwrap()
    }
}

/// A stream and the end of its requests, which must live as long.
async fn watch(channel: &Channel) -> (Streaming<WatchResponse>, mpsc::Sender<WatchRequest>) {
    let (requests, outgoing) = mpsc::channel(1);
    let mut client = DiscoveryClient::new(channel.clone());
    let stream = client.watch(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    (stream, requests)
}

async fn end(stream: &mut Streaming<WatchResponse>) -> Code {
    let end = tokio::time::timeout(Duration::from_secs(20), stream.message()).await;
    end.expect("an end in time").unwrap_err().code()
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn an_old_connection_is_asked_to_go_and_takes_no_new_request() {
    let age = Duration::from_millis(100);
    let server = Server::start(age, age).await;
    let channel = server.channel().await;
    let (mut stream, _requests) = watch(&channel).await;
    assert_eq!(end(&mut stream).await, Code::Aborted);
    let status = IdentityClient::new(channel).certify(CertifyRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}: the connection is gone");
    let again = server.channel().await;
    IdentityClient::new(again).certify(CertifyRequest::default()).await.unwrap();
}

#[tokio::test]
async fn draining_asks_every_connection_to_go_refuses_new_ones_and_waits_for_the_last() {
    let server = Server::start(HOUR, HOUR).await;
    let (one, two) = (server.channel().await, server.channel().await);
    let (mut first, _first) = watch(&one).await;
    let (mut second, _second) = watch(&two).await;
    let address = server.address;
    let drained = tokio::spawn(server.drain.drain(Duration::from_secs(20)));
    assert_eq!((end(&mut first).await, end(&mut second).await), (Code::Aborted, Code::Aborted));
    // The clients close what they were asked to close.
    drop((one, two, first, second));
    assert_eq!(drained.await.unwrap(), Drained::Clean);
    server.task.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[test]
fn ages_are_spread_between_fifteen_and_twenty_five_minutes() {
    let mut ages = Ages::new(fastrand::Rng::with_seed(7));
    let minutes: Vec<u64> = (0..1000).map(|_| ages.next().as_secs() / 60).collect();
    for minute in 15..25 {
        let share = minutes.iter().filter(|m| **m == minute).count();
        assert!((50..200).contains(&share), "{share} of 1000 after {minute} minutes");
    }
    assert!(minutes.iter().all(|minute| (15..25).contains(minute)));
}
