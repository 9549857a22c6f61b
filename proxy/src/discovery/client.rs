//! The one task that talks to the control plane.
//!
//! It connects, says who it is, subscribes to everything that is known to be wanted, applies what
//! comes and acknowledges it. When the stream breaks, what is known stays in force, and the task
//! comes back with jittered back-off; at once where the control plane asked it to come again, as
//! it does with every connection after a while, so that proxies spread over its replicas. The first
//! answer on a new stream replaces content, not objects: endpoint statistics survive.

use std::{collections::HashMap, future::Future, path::PathBuf, time::Duration};

use remora_core::telemetry;
use remora_proto::v1::{
    self as pb, discovery_client::DiscoveryClient, watch_request, watch_response,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};
use tracing::Instrument;

use super::{
    cache::Discovery,
    inbound::InboundPolicy,
    registry::{INBOUND_ID, Target, Untold},
    snapshot::{self, Snapshot},
    wire::{self, WireError},
};
use crate::tls::{
    backoff::Backoff,
    certify::{parse_trust_bundle, roots_of_control_plane},
    channel::{ChannelError, ControlPlane, error_chain},
    identity::Identity,
    material::Material,
};

/// First and longest pause before connecting again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Longest wait for the stream to be accepted.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests on their way to the control plane.
const SEND_QUEUE: usize = 64;
/// Largest message: about 100 000 endpoints.
const MAX_MESSAGE: usize = 32 << 20;
/// How often idle targets are looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// How often the same failure is reported.
const REPORT: Duration = Duration::from_secs(30);
/// A gap between two streams that is no longer than this is the life of a control plane with
/// several replicas, and no warning.
const GAP: Duration = Duration::from_secs(2);
/// Longest pause before coming again where we were asked to; many may have been asked at once.
const ASKED: Duration = Duration::from_millis(100);

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The control plane was not reached.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// It ended the stream with an error.
    #[error("control plane ended the stream: {0}")]
    Status(String),
    /// It wants us to come again, to whichever replica we find.
    #[error("control plane asked for a new connection")]
    Asked,
    /// It ended the stream without one.
    #[error("control plane ended the stream")]
    Ended,
    /// It did not accept the stream.
    #[error("control plane did not accept the stream within {OPEN_TIMEOUT:?}")]
    Timeout,
}

/// Where streams come from; over the network [`Mesh`], in tests anything.
pub trait Dial: Send + Sync {
    /// Connects, once there is what it takes.
    fn dial(
        &self,
        rng: &mut fastrand::Rng,
    ) -> impl Future<Output = Result<Channel, ChannelError>> + Send;
}

/// mTLS with the current certificate; waits until there is one.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// Where to connect to.
    pub control_plane: ControlPlane,
    /// Whom we show.
    pub identity: Identity,
    /// PEM file with roots that prove the control plane too; read again for each connection. Without
    /// it a proxy that was cut off during a whole rotation would not come back.
    pub trust_bundle: PathBuf,
}

impl Dial for Mesh {
    async fn dial(&self, rng: &mut fastrand::Rng) -> Result<Channel, ChannelError> {
        let material = self.identity.wait_ready().await;
        let authority = || self.control_plane.authority.clone();
        let (roots, problem) = roots_of_control_plane(material.bundle(), &self.trust_bundle).await;
        if let Some(problem) = problem {
            tracing::debug!(problem, "not all roots are known; connecting with the others");
        }
        let config = Material::new(material.certificate().clone(), roots)
            .and_then(|material| material.grpc_config(&self.control_plane.id))
            .map_err(|problem| ChannelError::Tls { authority: authority(), problem })?;
        self.control_plane.connect(config, rng).await
    }
}

/// Keeps the stream up for as long as the task is not dropped.
pub async fn run(
    discovery: Discovery,
    identity: Identity,
    dial: impl Dial,
    hello: pb::Hello,
    mut snapshot: Option<Snapshot>,
    mut rng: fastrand::Rng,
) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut reporter = Reporter::default();
    loop {
        let began = Instant::now();
        let span = remora_core::span!("client", "discovery connect");
        let opened = open(&dial, &hello, &mut rng).instrument(span.clone()).await;
        if let Err(error) = &opened {
            telemetry::failed(&span, error);
        }
        drop(span);
        let (error, lived) = match opened {
            Err(error) => (error, None),
            Ok((inbound, outbound)) => {
                let mut stream = Stream {
                    discovery: &discovery,
                    identity: &identity,
                    snapshot: snapshot.as_mut(),
                    inbound,
                    outbound,
                    versions: HashMap::new(),
                    acks: HashMap::new(),
                };
                let opened = Instant::now();
                discovery.connected();
                tracing::info!("connected to the control plane");
                let error = stream.run().await;
                (error, Some(opened.elapsed()))
            }
        };
        identity.stream_ended();
        discovery.disconnected(&error, lived.is_some());
        reporter.report(&error, lived.is_some());
        if let StreamError::Channel(channel) = &error
            && channel.is_trust()
        {
            // Roots or certificate may be from before the control plane's CA changed.
            identity.renew();
        }
        save(snapshot.as_mut()).await;
        // A control plane that accepts and ends at once is as bad as none.
        let lived = lived.is_some_and(|lived| lived >= RETRY.1);
        if lived {
            backoff.reset();
        }
        let pause = match error {
            StreamError::Asked if lived => ASKED.mul_f64(rng.f64()),
            // An attempt that took long was a pause of its own.
            StreamError::Channel(_) => backoff.next(&mut rng).saturating_sub(began.elapsed()),
            _ => backoff.next(&mut rng),
        };
        tokio::time::sleep(pause).await;
    }
}

type Open = (Streaming<pb::WatchResponse>, mpsc::Sender<pb::WatchRequest>);

async fn open(
    dial: &impl Dial,
    hello: &pb::Hello,
    rng: &mut fastrand::Rng,
) -> Result<Open, StreamError> {
    let channel = dial.dial(rng).await?;
    let mut client = DiscoveryClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let (outbound, requests) = mpsc::channel(SEND_QUEUE);
    let inbound_target = pb::Subscribe {
        id: INBOUND_ID,
        target: Some(pb::subscribe::Target::Inbound(pb::InboundTarget {})),
    };
    for kind in
        [watch_request::Kind::Hello(hello.clone()), watch_request::Kind::Subscribe(inbound_target)]
    {
        let request = pb::WatchRequest { kind: Some(kind) };
        outbound.try_send(request).expect("invariant: the queue is new and holds more than two");
    }
    let answer = tokio::time::timeout(OPEN_TIMEOUT, client.watch(ReceiverStream::new(requests)))
        .await
        .map_err(|_| StreamError::Timeout)?
        .map_err(|status| ended_by(&status))?;
    Ok((answer.into_inner(), outbound))
}

fn ended_by(status: &tonic::Status) -> StreamError {
    // Nothing below gRPC is told as this code.
    if status.code() == tonic::Code::Aborted {
        return StreamError::Asked;
    }
    let cause = std::error::Error::source(status).map(error_chain);
    let cause = cause.filter(|cause| !status.message().contains(cause.as_str()));
    let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
    StreamError::Status(format!("{:?}: {}{cause}", status.code(), status.message()))
}

/// One stream from its Hello to its end.
struct Stream<'a> {
    discovery: &'a Discovery,
    identity: &'a Identity,
    snapshot: Option<&'a mut Snapshot>,
    inbound: Streaming<pb::WatchResponse>,
    outbound: mpsc::Sender<pb::WatchRequest>,
    /// Last version applied, by subscription; a delta counts only after an update on this stream.
    versions: HashMap<u64, u64>,
    /// Versions to acknowledge; a newer one replaces an older one that has not been sent.
    acks: HashMap<u64, u64>,
}

impl Stream<'_> {
    async fn run(&mut self) -> StreamError {
        self.discovery.0.registry.lock().begin_stream();
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut save_tick = tokio::time::interval(snapshot::INTERVAL);
        save_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Reading goes on while the peer does not read: neither side can block the other.
            tokio::select! {
                message = self.inbound.message() => match message {
                    Ok(Some(message)) => self.apply(message),
                    Ok(None) => return StreamError::Ended,
                    Err(status) => return ended_by(&status),
                },
                sent = send_next(self.discovery, &mut self.acks, &self.outbound) => {
                    if sent.is_err() {
                        return StreamError::Ended;
                    }
                }
                now = sweep.tick() => self.sweep(now),
                _ = save_tick.tick(), if self.snapshot.is_some() => {
                    save(self.snapshot.as_deref_mut()).await;
                }
            }
        }
    }

    fn apply(&mut self, message: pb::WatchResponse) {
        let span = remora_core::span!("internal", "discovery update");
        let _entered = span.enter();
        let result = match message.kind {
            Some(watch_response::Kind::Update(update)) => self.update(&update),
            Some(watch_response::Kind::Endpoints(delta)) => self.delta(&delta),
            Some(watch_response::Kind::TrustBundle(bundle)) => self.trust_bundle(&bundle),
            // A kind from the future; the contract only ever grows.
            None => Ok(Vec::new()),
        };
        match result {
            Ok(skipped) => {
                if let Some(first) = skipped.first() {
                    tracing::warn!(%first, parts = skipped.len(), "parts of an answer left out");
                }
                self.discovery.applied();
            }
            Err(error) => {
                telemetry::failed(&span, &error);
                tracing::warn!(%error, "answer not applied; the last good one stays");
            }
        }
    }

    fn update(&mut self, update: &pb::Update) -> Result<Vec<WireError>, WireError> {
        if update.id == INBOUND_ID {
            let Some(pb::update::Answer::Inbound(wire)) = &update.answer else {
                return Err(WireError::new("update.answer", "no inbound policy where one is due"));
            };
            self.discovery.set_inbound(InboundPolicy::try_from(wire)?);
            if let Some(snapshot) = self.snapshot.as_deref_mut() {
                snapshot.put_inbound(wire);
            }
            self.applied(update.id, update.version);
            return Ok(Vec::new());
        }
        let Some(entry) = self.discovery.0.registry.lock().get(update.id).cloned() else {
            // Crossed with our Unsubscribe.
            return Ok(Vec::new());
        };
        // Where it cannot be applied, the deltas that follow would build on something else.
        self.versions.remove(&update.id);
        let skipped = entry.apply(update, Instant::now().into_std())?;
        if let Some(snapshot) = self.snapshot.as_deref_mut() {
            snapshot.put(&entry.target, update);
        }
        self.applied(update.id, update.version);
        Ok(skipped)
    }

    fn delta(&mut self, delta: &pb::EndpointsDelta) -> Result<Vec<WireError>, WireError> {
        let Some(entry) = self.discovery.0.registry.lock().get(delta.id).cloned() else {
            return Ok(Vec::new());
        };
        match self.versions.get(&delta.id) {
            None => return Err(WireError::new("endpoints", "a delta before the first update")),
            Some(known) if delta.version <= *known => {
                let problem = format!("version {} after {known}", delta.version);
                return Err(WireError::new("endpoints.version", problem));
            }
            Some(_) => {}
        }
        let skipped = entry.apply_delta(delta, Instant::now().into_std())?;
        if let Some(snapshot) = self.snapshot.as_deref_mut() {
            snapshot.change(&entry.target, delta);
        }
        self.applied(delta.id, delta.version);
        Ok(skipped)
    }

    fn trust_bundle(&self, bundle: &pb::TrustBundle) -> Result<Vec<WireError>, WireError> {
        parse_trust_bundle(bundle)
            .and_then(|bundle| self.identity.set_trust_bundle(bundle))
            .map(|()| Vec::new())
            .map_err(|error| WireError::new("trust_bundle", error.to_string()))
    }

    fn applied(&mut self, id: u64, version: u64) {
        self.versions.insert(id, version);
        self.acks.insert(id, version);
    }

    fn sweep(&mut self, now: Instant) {
        for target in self.discovery.sweep(now.into_std()) {
            if let Some(snapshot) = self.snapshot.as_deref_mut() {
                snapshot.forget(&target);
            }
        }
        let registry = self.discovery.0.registry.lock();
        self.versions.retain(|id, _| *id == INBOUND_ID || registry.get(*id).is_some());
    }
}

/// Sends one request once there is one and the queue has room. Nothing is taken before there is
/// room, so that being dropped in between loses nothing.
async fn send_next(
    discovery: &Discovery,
    acks: &mut HashMap<u64, u64>,
    outbound: &mpsc::Sender<pb::WatchRequest>,
) -> Result<(), mpsc::error::SendError<()>> {
    loop {
        let woken = discovery.0.wake.notified();
        let permit = outbound.reserve().await?;
        let untold = discovery.0.registry.lock().next_untold();
        if let Some(untold) = untold {
            permit.send(untold_request(untold));
            return Ok(());
        }
        if let Some(&id) = acks.keys().next() {
            let version = acks.remove(&id).unwrap_or_default();
            let kind = watch_request::Kind::Ack(pb::Ack { id, version });
            permit.send(pb::WatchRequest { kind: Some(kind) });
            return Ok(());
        }
        drop(permit);
        woken.await;
    }
}

fn untold_request(untold: Untold) -> pb::WatchRequest {
    let kind = match untold {
        Untold::Unsubscribe(id) => watch_request::Kind::Unsubscribe(pb::Unsubscribe { id }),
        Untold::Subscribe(id, target) => {
            let target = match target {
                Target::Address(address) => pb::subscribe::Target::Address(wire::to_wire(address)),
                Target::Authority(authority) => pb::subscribe::Target::Authority(authority),
            };
            watch_request::Kind::Subscribe(pb::Subscribe { id, target: Some(target) })
        }
    };
    pb::WatchRequest { kind: Some(kind) }
}

async fn save(snapshot: Option<&mut Snapshot>) {
    if let Some(snapshot) = snapshot
        && let Err(error) = snapshot.save().await
    {
        tracing::warn!(%error, "snapshot not written; a restart without the control plane would start empty");
    }
}

impl Discovery {
    fn connected(&self) {
        let mut status = self.0.status.lock();
        status.connected = true;
        status.since = Instant::now().into_std();
        status.error = None;
    }

    /// `streamed`: a stream was up.
    pub(crate) fn disconnected(&self, error: &StreamError, streamed: bool) {
        let mut status = self.0.status.lock();
        match (streamed, error) {
            (true, StreamError::Asked) => status.asked += 1,
            (true, _) => status.lost += 1,
            (false, _) => {}
        }
        if status.connected {
            status.connected = false;
            status.since = Instant::now().into_std();
        }
        status.error = Some(error.to_string().into());
    }

    pub(crate) fn applied(&self) {
        self.0.status.lock().last_update = Some(Instant::now().into_std());
    }
}

/// One line for a failure when it begins or changes, then one every [`REPORT`]; a warning once the
/// gap since the last stream is longer than [`GAP`], or where there has been none.
#[derive(Default)]
struct Reporter {
    last: Option<(String, Instant)>,
    /// When the last stream ended.
    ended: Option<Instant>,
}

impl Reporter {
    /// `streamed`: a stream was up and has ended.
    fn report(&mut self, error: &StreamError, streamed: bool) {
        let (text, now) = (error.to_string(), Instant::now());
        if streamed {
            self.ended = Some(now);
            self.last = None;
            return tracing::info!("stream to the control plane ended: {text}; coming again");
        }
        let gap = self.ended.is_some_and(|ended| now.duration_since(ended) <= GAP);
        if let Some((last, at)) = &self.last
            && *last == text
            && now.duration_since(*at) < REPORT
        {
            return;
        }
        if gap {
            return tracing::debug!("no discovery: {text}; what is known stays in force");
        }
        tracing::warn!("no discovery: {text}; what is known stays in force");
        self.last = Some((text, now));
    }
}
