//! Two control planes over real sockets and real TLS: one asks to go, or dies, and discovery goes on
//! with the other.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use remora_core::spiffe::SpiffeId;
use remora_proto::v1::{
    self as pb, discovery_server, update::Answer, watch_request::Kind as Request,
    watch_response::Kind as Response,
};
use tokio::{
    io::DuplexStream,
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::JoinSet,
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use super::{Discovery, Limits, Resolution, Target, client};
use crate::tls::{
    channel::{ChannelError, ControlPlane},
    identity::Identity,
    testing::{TestCa, id},
};

type Responses = mpsc::Sender<Result<pb::WatchResponse, Status>>;

/// Answers every subscription with a Service whose one endpoint is named after the replica.
struct Replica {
    name: &'static str,
    streams: mpsc::Sender<Responses>,
}

#[tonic::async_trait]
impl discovery_server::Discovery for Replica {
    type WatchStream = ReceiverStream<Result<pb::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: tonic::Request<Streaming<pb::WatchRequest>>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let (responses, stream) = mpsc::channel(16);
        let (name, answers) = (self.name, responses.clone());
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                if let Some(Request::Subscribe(subscribe)) = request.kind {
                    let update = answer(name, &subscribe);
                    let _ = answers.send(Ok(update)).await;
                }
            }
        });
        self.streams.send(responses).await.map_err(|_| Status::unavailable("test is over"))?;
        Ok(tonic::Response::new(ReceiverStream::new(stream)))
    }
}

fn answer(name: &str, subscribe: &pb::Subscribe) -> pb::WatchResponse {
    let answer = match subscribe.target {
        Some(pb::subscribe::Target::Inbound(_)) => Answer::Inbound(pb::InboundPolicy::default()),
        _ => Answer::Service(pb::Service {
            namespace: "shop".to_owned(),
            name: "orders".to_owned(),
            port: 80,
            endpoints: vec![pb::Endpoint {
                address: Some(pb::SocketAddress { ip: vec![10, 244, 0, 7], port: 8080 }),
                pod: name.to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        }),
    };
    let update = pb::Update { id: subscribe.id, version: 1, answer: Some(answer) };
    pb::WatchResponse { kind: Some(Response::Update(update)) }
}

/// A replica: its address, and its streams as they come. Dropping the tasks kills it.
struct Running {
    address: SocketAddr,
    streams: mpsc::Receiver<Responses>,
    tasks: JoinSet<()>,
    close: Arc<Notify>,
}

fn control_plane_id() -> SpiffeId {
    SpiffeId::control_plane("cluster.local").unwrap()
}

async fn start(ca: &TestCa, name: &'static str) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = rustls::ServerConfig::clone(ca.material(&control_plane_id()).server_config());
    server.alpn_protocols = vec![b"h2".to_vec()];
    let (accepted, streams) = mpsc::channel(4);
    let (incoming, connections) = mpsc::channel::<std::io::Result<DuplexStream>>(4);
    let service = discovery_server::DiscoveryServer::new(Replica { name, streams: accepted });
    let grpc = tonic::transport::Server::builder().add_service(service);
    let (close, mut tasks) = (Arc::new(Notify::new()), JoinSet::new());
    let closing = Arc::clone(&close);
    tasks.spawn(async move {
        grpc.serve_with_incoming(ReceiverStream::new(connections)).await.unwrap();
    });
    tasks.spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        // Owned here: a killed replica cuts its connections.
        let mut pumps = JoinSet::new();
        loop {
            let tcp = tokio::select! {
                accepted = listener.accept() => accepted.unwrap().0,
                () = closing.notified() => break,
            };
            let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
            let (near, mut far) = tokio::io::duplex(64 << 10);
            incoming.send(Ok(near)).await.unwrap();
            pumps.spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut tls, &mut far).await;
            });
        }
        drop(listener);
        while pumps.join_next().await.is_some() {}
    });
    Running { address, streams, tasks, close }
}

impl Running {
    /// Takes no more connections; those that are there go on.
    async fn close(&self) {
        self.close.notify_one();
        while TcpStream::connect(self.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    async fn stream(&mut self) -> Responses {
        within(self.streams.recv()).await.unwrap()
    }
}

async fn within<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("nothing came")
}

/// A name with the addresses of both.
struct Both {
    control_plane: ControlPlane,
    addresses: Vec<SocketAddr>,
    identity: Identity,
}

impl client::Dial for Both {
    async fn dial(&self, rng: &mut fastrand::Rng) -> Result<Channel, ChannelError> {
        let material = self.identity.wait_ready().await;
        let config = material.grpc_config(&self.control_plane.id).unwrap();
        self.control_plane.dial_any(self.addresses.clone(), Arc::new(config), rng).await
    }
}

/// Counts warnings and errors of this thread.
struct Warnings(Arc<AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        if *event.metadata().level() <= tracing::Level::WARN {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

struct Harness {
    one: Running,
    two: Running,
    discovery: Discovery,
    warnings: Arc<AtomicUsize>,
    _client: JoinSet<()>,
    _log: tracing::subscriber::DefaultGuard,
}

impl Harness {
    async fn start() -> Self {
        let warnings = Arc::new(AtomicUsize::new(0));
        let log = tracing::subscriber::set_default(Warnings(Arc::clone(&warnings)));
        let ca = TestCa::new();
        let (one, two) = (start(&ca, "one").await, start(&ca, "two").await);
        let identity = Identity::new();
        identity.install(ca.certificate(&id("web")), ca.bundle()).unwrap();
        let dial = Both {
            control_plane: ControlPlane {
                authority: "control-plane:8086".into(),
                id: control_plane_id(),
                mark: None,
            },
            addresses: vec![one.address, two.address],
            identity: identity.clone(),
        };
        let discovery = Discovery::new(Limits::default(), Instant::now().into_std());
        let mut client = JoinSet::new();
        client.spawn(client::run(
            discovery.clone(),
            identity,
            dial,
            pb::Hello::default(),
            None,
            fastrand::Rng::with_seed(1),
        ));
        Self { one, two, discovery, warnings, _client: client, _log: log }
    }

    /// The first stream and whether it is at replica `one`.
    async fn stream(&mut self) -> (Responses, bool) {
        tokio::select! {
            stream = within(self.one.streams.recv()) => (stream.unwrap(), true),
            stream = within(self.two.streams.recv()) => (stream.unwrap(), false),
        }
    }

    /// Which replica's answer is in force; it must always be one.
    fn told(&self) -> String {
        let target = Target::Address(([10, 96, 0, 1], 80).into());
        match self.discovery.cached(&target, Instant::now().into_std()) {
            Some(Resolution::Service(service)) => {
                service.state().endpoints.iter().map(|endpoint| endpoint.pod.to_string()).collect()
            }
            other => panic!("{other:?} instead of the Service"),
        }
    }

    async fn resolved(&self) {
        let target = Target::Address(([10, 96, 0, 1], 80).into());
        self.discovery.resolve(&target, Instant::now().into_std()).await.unwrap();
    }

    /// Looks all the time, as requests do, until the other replica's answer is in force.
    async fn moved_to(&self, name: &str) {
        within(async {
            while self.told() != name {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(self.discovery.configured());
        assert_eq!(self.warnings.load(Ordering::SeqCst), 0, "warnings");
    }
}

#[tokio::test]
async fn discovery_moves_without_a_gap_when_a_replica_shuts_down() {
    let mut harness = Harness::start().await;
    let (stream, at_one) = harness.stream().await;
    harness.resolved().await;
    let (gone, stays, name) = match at_one {
        true => (&mut harness.one, &mut harness.two, "two"),
        false => (&mut harness.two, &mut harness.one, "one"),
    };
    gone.close().await;
    stream.send(Err(Status::aborted("come again"))).await.unwrap();
    stays.stream().await;
    harness.moved_to(name).await;
    let status = harness.discovery.status();
    assert_eq!((status.connected, status.asked, status.lost), (true, 1, 0));
}

#[tokio::test]
async fn discovery_moves_without_a_gap_when_a_replica_dies() {
    let mut harness = Harness::start().await;
    let (_stream, at_one) = harness.stream().await;
    harness.resolved().await;
    let (dies, stays, name) = match at_one {
        true => (&mut harness.one, &mut harness.two, "two"),
        false => (&mut harness.two, &mut harness.one, "one"),
    };
    dies.tasks.shutdown().await;
    stays.stream().await;
    harness.moved_to(name).await;
    let status = harness.discovery.status();
    assert_eq!((status.connected, status.asked, status.lost), (true, 0, 1));
}
