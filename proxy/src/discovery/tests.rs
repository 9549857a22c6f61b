//! The stream task against a scripted control plane: real gRPC over in-memory pipes, paused time.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use remora_proto::v1::{
    self as pb, discovery_server, update::Answer, watch_request::Kind as Request,
    watch_response::Kind as Response,
};
use tokio::{io::DuplexStream, sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use super::{
    Discovery, DiscoveryError, Limits, Resolution, Service, Target, client, registry::INBOUND_ID,
    snapshot::Snapshot,
};
use crate::tls::{
    channel::{ChannelError, channel_over},
    identity::Identity,
    testing::{TestCa, id},
};

type Responses = mpsc::Sender<Result<pb::WatchResponse, Status>>;

/// One stream as the control plane sees it. Dropping it ends the stream.
struct Session {
    requests: Streaming<pb::WatchRequest>,
    responses: Responses,
}

struct Scripted(mpsc::Sender<Session>);

#[tonic::async_trait]
impl discovery_server::Discovery for Scripted {
    type WatchStream = ReceiverStream<Result<pb::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: tonic::Request<Streaming<pb::WatchRequest>>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let (responses, stream) = mpsc::channel(16);
        let session = Session { requests: request.into_inner(), responses };
        self.0.send(session).await.map_err(|_| Status::unavailable("test is over"))?;
        Ok(tonic::Response::new(ReceiverStream::new(stream)))
    }
}

#[derive(Clone)]
struct InMemory {
    up: Arc<AtomicBool>,
    incoming: mpsc::Sender<io::Result<DuplexStream>>,
}

impl client::Dial for InMemory {
    async fn dial(&self, _: &mut fastrand::Rng) -> Result<Channel, ChannelError> {
        let down = || ChannelError::Timeout { authority: "10.0.0.9:8086".into() };
        if !self.up.load(Ordering::SeqCst) {
            return Err(down());
        }
        let (near, far) = tokio::io::duplex(64 << 10);
        self.incoming.send(Ok(far)).await.map_err(|_| down())?;
        channel_over(near).await.map_err(|_| down())
    }
}

struct Harness {
    discovery: Discovery,
    identity: Identity,
    sessions: mpsc::Receiver<Session>,
    up: Arc<AtomicBool>,
    _tasks: tokio::task::JoinSet<()>,
}

impl Harness {
    fn new() -> Self {
        Self::with(Limits::default(), |_| None)
    }

    fn with(limits: Limits, snapshot: impl FnOnce(&Discovery) -> Option<Snapshot>) -> Self {
        let discovery = Discovery::new(limits, Instant::now().into_std());
        let identity = Identity::new();
        let (accepted, sessions) = mpsc::channel(4);
        let (incoming, connections) = mpsc::channel(4);
        let up = Arc::new(AtomicBool::new(true));
        let mut tasks = tokio::task::JoinSet::new();
        let server = tonic::transport::Server::builder()
            .add_service(discovery_server::DiscoveryServer::new(Scripted(accepted)));
        tasks.spawn(async move {
            server.serve_with_incoming(ReceiverStream::new(connections)).await.unwrap();
        });
        let hello = pb::Hello { pod: "web-1".to_owned(), ..Default::default() };
        tasks.spawn(client::run(
            discovery.clone(),
            identity.clone(),
            InMemory { up: up.clone(), incoming },
            hello,
            snapshot(&discovery),
            fastrand::Rng::with_seed(7),
        ));
        Self { discovery, identity, sessions, up, _tasks: tasks }
    }

    /// The next stream, past its Hello and inbound subscription.
    async fn session(&mut self) -> Session {
        let mut session = in_time(self.sessions.recv()).await.unwrap();
        assert!(matches!(session.next().await, Request::Hello(hello) if hello.pod == "web-1"));
        let Request::Subscribe(inbound) = session.next().await else { panic!("no subscription") };
        assert_eq!(inbound.id, INBOUND_ID);
        assert!(matches!(inbound.target, Some(pb::subscribe::Target::Inbound(_))));
        session
    }

    fn resolving(
        &self,
        target: &Target,
    ) -> tokio::task::JoinHandle<Result<Resolution, DiscoveryError>> {
        let (discovery, target) = (self.discovery.clone(), target.clone());
        tokio::spawn(async move { discovery.resolve(&target, Instant::now().into_std()).await })
    }

    fn cached(&self, target: &Target) -> Option<Resolution> {
        self.discovery.cached(target, Instant::now().into_std())
    }

    /// Resolves `target` to a Service with the given endpoints on `session`.
    async fn known(
        &self,
        session: &mut Session,
        target: &Target,
        endpoints: &[u8],
    ) -> Arc<Service> {
        let resolving = self.resolving(target);
        let subscription = session.subscription().await;
        session.update(subscription, 1, service(endpoints)).await;
        session.acked(subscription, 1).await;
        a_service(resolving.await.unwrap().unwrap())
    }
}

impl Session {
    async fn next(&mut self) -> Request {
        in_time(self.requests.message()).await.unwrap().unwrap().kind.unwrap()
    }

    async fn subscription(&mut self) -> u64 {
        match self.next().await {
            Request::Subscribe(subscribe) => subscribe.id,
            other => panic!("{other:?} instead of a subscription"),
        }
    }

    async fn acked(&mut self, id: u64, version: u64) {
        match self.next().await {
            Request::Ack(ack) => assert_eq!((ack.id, ack.version), (id, version)),
            other => panic!("{other:?} instead of an ack"),
        }
    }

    async fn send(&self, kind: Response) {
        self.responses.send(Ok(pb::WatchResponse { kind: Some(kind) })).await.unwrap();
    }

    async fn update(&self, id: u64, version: u64, answer: Answer) {
        self.send(Response::Update(pb::Update { id, version, answer: Some(answer) })).await;
    }
}

/// Longer than anything here waits, so that a lost message fails the test instead of hanging it.
async fn in_time<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(3600), work).await.expect("nothing came")
}

fn target(n: u8) -> Target {
    Target::Address(([10, 96, 0, n], 80).into())
}

fn endpoint(n: u8) -> pb::Endpoint {
    pb::Endpoint {
        address: Some(pb::SocketAddress { ip: vec![10, 244, 0, n], port: 8080 }),
        pod: format!("orders-{n}"),
        ..Default::default()
    }
}

fn service(endpoints: &[u8]) -> Answer {
    Answer::Service(pb::Service {
        namespace: "shop".to_owned(),
        name: "orders".to_owned(),
        port: 80,
        endpoints: endpoints.iter().copied().map(endpoint).collect(),
        ..Default::default()
    })
}

fn a_service(resolution: Resolution) -> Arc<Service> {
    match resolution {
        Resolution::Service(service) => service,
        other => panic!("{other:?} is no service"),
    }
}

fn pods(service: &Service) -> Vec<String> {
    let mut pods: Vec<_> = service.state().endpoints.iter().map(|e| e.pod.to_string()).collect();
    pods.sort();
    pods
}

#[tokio::test(start_paused = true)]
async fn a_miss_subscribes_waits_and_is_cached_from_then_on() {
    let mut harness = Harness::new();
    let mut session = harness.session().await;
    assert!(harness.cached(&target(1)).is_none());
    let service = harness.known(&mut session, &target(1), &[1, 2]).await;
    assert_eq!(pods(&service), ["orders-1", "orders-2"]);
    let cached = a_service(harness.cached(&target(1)).unwrap());
    assert!(Arc::ptr_eq(&service, &cached));
}

#[tokio::test(start_paused = true)]
async fn two_misses_at_once_subscribe_once_and_both_are_answered() {
    let mut harness = Harness::new();
    let mut session = harness.session().await;
    let (one, two) = (harness.resolving(&target(1)), harness.resolving(&target(1)));
    let id = session.subscription().await;
    session.update(id, 1, Answer::NotOurs(pb::NotOurs {})).await;
    session.acked(id, 1).await;
    for answer in [one, two] {
        assert!(matches!(answer.await.unwrap(), Ok(Resolution::NotOurs)));
    }
}

#[tokio::test(start_paused = true)]
async fn silence_ends_in_a_timeout_that_says_why() {
    let harness = Harness::new();
    harness.up.store(false, Ordering::SeqCst);
    let began = Instant::now();
    let error = harness.resolving(&target(1)).await.unwrap().unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_secs(3));
    assert_eq!(error.reason(), "discovery-timeout");
    let text = error.to_string();
    assert!(text.contains("10.96.0.1:80") && text.contains("10.0.0.9:8086"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_starts_later_is_found() {
    let mut harness = Harness::new();
    harness.up.store(false, Ordering::SeqCst);
    harness.resolving(&target(1)).await.unwrap().unwrap_err();
    assert!(!harness.discovery.status().connected);
    harness.up.store(true, Ordering::SeqCst);
    let mut session = harness.session().await;
    let id = session.subscription().await;
    session.update(id, 1, Answer::Refused(pb::Refused { message: "no port 80".into() })).await;
    session.acked(id, 1).await;
    assert!(matches!(harness.cached(&target(1)), Some(Resolution::Refused(_))));
    assert!(harness.discovery.status().connected);
}

#[tokio::test(start_paused = true)]
async fn deltas_are_applied_and_acknowledged() {
    let mut harness = Harness::new();
    let mut session = harness.session().await;
    let service = harness.known(&mut session, &target(1), &[1, 2]).await;
    let id = INBOUND_ID + 1;
    let delta = pb::EndpointsDelta {
        id,
        version: 2,
        upsert: vec![endpoint(3)],
        remove: vec![endpoint(1).address.unwrap()],
    };
    session.send(Response::Endpoints(delta)).await;
    session.acked(id, 2).await;
    assert_eq!(pods(&service), ["orders-2", "orders-3"]);
}

#[tokio::test(start_paused = true)]
async fn a_stale_delta_changes_nothing() {
    let mut harness = Harness::new();
    let mut session = harness.session().await;
    let service = harness.known(&mut session, &target(1), &[1]).await;
    let id = INBOUND_ID + 1;
    let stale = pb::EndpointsDelta {
        id,
        version: 1,
        remove: vec![endpoint(1).address.unwrap()],
        ..Default::default()
    };
    session.send(Response::Endpoints(stale)).await;
    // Messages are applied in order: once this one is in force, so would the delta be.
    session.update(INBOUND_ID, 1, Answer::Inbound(pb::InboundPolicy::default())).await;
    session.acked(INBOUND_ID, 1).await;
    assert_eq!(pods(&service), ["orders-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_empties_nothing_and_statistics_survive_the_next_one() {
    let mut harness = Harness::new();
    let mut session = harness.session().await;
    let service = harness.known(&mut session, &target(1), &[1, 2]).await;
    let before = service.state_full();
    drop(session);

    let mut session = harness.session().await;
    assert_eq!(pods(&service), ["orders-1", "orders-2"], "known while nothing is told");
    assert!(!service.is_gone());
    let id = session.subscription().await;
    session.update(id, 1, self::service(&[2, 3])).await;
    session.acked(id, 1).await;
    assert_eq!(pods(&service), ["orders-2", "orders-3"]);
    let after = service.state_full();
    let second = |state: &super::ServiceState| {
        state.endpoints.iter().find(|e| &*e.pod == "orders-2").unwrap().clone()
    };
    assert!(Arc::ptr_eq(&second(&before), &second(&after)));
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_asks_gets_a_new_stream_at_once_and_all_subscriptions() {
    let mut harness = Harness::new();
    let mut session = harness.session().await;
    let _held = harness.known(&mut session, &target(1), &[1, 2]).await;
    for round in 1..=20 {
        tokio::time::sleep(Duration::from_secs(900)).await;
        session.responses.send(Err(Status::aborted("come again"))).await.unwrap();
        let asked = Instant::now();
        session = harness.session().await;
        assert!(asked.elapsed() <= Duration::from_millis(100), "{:?}", asked.elapsed());
        session.subscription().await;
        let status = harness.discovery.status();
        assert_eq!((status.connected, status.asked, status.lost), (true, round, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_asks_at_once_every_time_is_not_run_down() {
    let mut harness = Harness::new();
    let began = Instant::now();
    for _ in 0..20 {
        harness.session().await.responses.send(Err(Status::aborted(""))).await.unwrap();
    }
    assert!(began.elapsed() > Duration::from_secs(30), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_no_longer_ours_tells_its_holders() {
    let mut harness = Harness::new();
    let mut session = harness.session().await;
    let service = harness.known(&mut session, &target(1), &[1]).await;
    let id = INBOUND_ID + 1;
    session.update(id, 2, Answer::NotOurs(pb::NotOurs {})).await;
    session.acked(id, 2).await;
    assert!(service.is_gone());
    assert!(matches!(harness.cached(&target(1)), Some(Resolution::NotOurs)));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_cannot_be_read_leaves_the_last_good_one() {
    let mut harness = Harness::new();
    let mut session = harness.session().await;
    let service = harness.known(&mut session, &target(1), &[1]).await;
    let id = INBOUND_ID + 1;
    session.send(Response::Update(pb::Update { id, version: 2, answer: None })).await;
    let delta =
        pb::EndpointsDelta { id, version: 3, upsert: vec![endpoint(9)], ..Default::default() };
    session.send(Response::Endpoints(delta)).await;
    // Neither is acknowledged, and messages are applied in order.
    session.update(INBOUND_ID, 1, Answer::Inbound(pb::InboundPolicy::default())).await;
    session.acked(INBOUND_ID, 1).await;
    assert_eq!(pods(&service), ["orders-1"]);
    session.update(id, 4, self::service(&[1, 5])).await;
    session.acked(id, 4).await;
    assert_eq!(pods(&service), ["orders-1", "orders-5"]);
}

#[tokio::test(start_paused = true)]
async fn endpoints_follow_though_the_policy_cannot_be_read() {
    let mut harness = Harness::new();
    let mut session = harness.session().await;
    let service = harness.known(&mut session, &target(1), &[1]).await;
    let id = INBOUND_ID + 1;
    let timeouts = |connect| pb::TimeoutPolicy { connect: Some(connect), ..Default::default() };
    let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
    for (version, connect, pod) in [(2, seconds(7), 2), (3, seconds(-7), 3)] {
        let Answer::Service(mut wire) = self::service(&[pod]) else { unreachable!() };
        wire.timeouts = Some(timeouts(connect));
        session.update(id, version, Answer::Service(wire)).await;
        session.acked(id, version).await;
    }
    assert_eq!(pods(&service), ["orders-3"]);
    assert_eq!(service.state().policy.timeouts.connect, Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn one_target_too_many_is_refused_and_counted() {
    let harness = Harness::with(Limits { max_targets: 1, ..Limits::default() }, |_| None);
    let first = harness.resolving(&target(1));
    let error = loop {
        // Whichever comes first takes the place.
        tokio::task::yield_now().await;
        if let Err(error @ DiscoveryError::TooMany { .. }) =
            harness.resolving(&target(2)).await.unwrap()
        {
            break error;
        }
    };
    assert_eq!(error.reason(), "overloaded");
    assert_eq!(harness.discovery.refused_targets(), 1);
    first.abort();
}

#[tokio::test(start_paused = true)]
async fn idle_targets_are_unsubscribed_but_held_services_are_not() {
    let mut harness = Harness::new();
    let mut session = harness.session().await;
    let held = harness.known(&mut session, &target(1), &[1]).await;
    drop(harness.known(&mut session, &target(2), &[1]).await);
    // Time passes by itself while the test waits.
    let Request::Unsubscribe(gone) = session.next().await else { panic!("no unsubscription") };
    assert_eq!(gone.id, INBOUND_ID + 2);
    assert!(harness.cached(&target(2)).is_none());
    assert!(harness.cached(&target(1)).is_some() && !held.is_gone());
}

#[tokio::test(start_paused = true)]
async fn inbound_policy_is_the_default_until_told() {
    let mut harness = Harness::new();
    let mut session = harness.session().await;
    assert_eq!(*harness.discovery.inbound_policy(), super::InboundPolicy::default());
    assert!(!harness.discovery.configured());
    let policy = pb::InboundPolicy {
        default_policy: pb::DefaultPolicy::AllAuthenticated.into(),
        ports: Vec::new(),
    };
    session.update(INBOUND_ID, 1, Answer::Inbound(policy)).await;
    session.acked(INBOUND_ID, 1).await;
    let told = harness.discovery.inbound_policy();
    assert_eq!(told.default, remora_core::settings::DefaultPolicy::AllAuthenticated);
    assert!(harness.discovery.configured());
}

#[tokio::test(start_paused = true)]
async fn new_roots_reach_the_identity() {
    let (ca, next) = (TestCa::new(), TestCa::new());
    let mut harness = Harness::new();
    harness.identity.install(ca.certificate(&id("web")), ca.bundle()).unwrap();
    let session = harness.session().await;
    let mut changed = harness.identity.changed();
    let roots = vec![ca.root().to_vec(), next.root().to_vec()];
    let bundle = pb::TrustBundle { trust_domain: "cluster.local".to_owned(), roots };
    session.send(Response::TrustBundle(bundle)).await;
    changed.changed().await.unwrap();
    assert_eq!(harness.identity.current().unwrap().bundle().roots().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_lets_a_fresh_proxy_start_without_a_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("discovery");
    let mut harness = Harness::with(Limits::default(), |_| Some(Snapshot::empty(&path)));
    let mut session = harness.session().await;
    harness.known(&mut session, &target(1), &[1, 2]).await;
    let delta = pb::EndpointsDelta {
        id: INBOUND_ID + 1,
        version: 2,
        upsert: vec![endpoint(3)],
        remove: vec![endpoint(1).address.unwrap()],
    };
    session.send(Response::Endpoints(delta)).await;
    session.acked(INBOUND_ID + 1, 2).await;
    drop(session);
    // A stream that ends is followed by a save before the next one begins.
    harness.session().await;
    drop(harness);

    let load = |discovery: &Discovery| {
        Some(Snapshot::load(&path, discovery, Instant::now().into_std()).unwrap())
    };
    let harness = Harness::with(Limits::default(), load);
    harness.up.store(false, Ordering::SeqCst);
    let service = a_service(harness.cached(&target(1)).unwrap());
    assert_eq!(pods(&service), ["orders-2", "orders-3"]);
}

#[tokio::test(start_paused = true)]
async fn a_corrupt_snapshot_is_an_error_not_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("discovery");
    std::fs::write(&path, [0xff; 64]).unwrap();
    let now = Instant::now().into_std();
    let discovery = Discovery::new(Limits::default(), now);
    let error = Snapshot::load(&path, &discovery, now).unwrap_err();
    assert!(error.to_string().contains("discovery"), "{error}");
}
