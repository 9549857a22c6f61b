//! Serves the index to proxies.
//!
//! Nothing is queued per change: a stream keeps the set of its subscriptions that may have changed
//! and, whenever its proxy can take another message, works out the difference between what it sent
//! last and what holds now. A slow proxy thus gets the newest state in few steps, costs no more
//! memory than its subscriptions, and holds nobody up.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use remora_core::{drain, settings::InvalidAnnotation, spiffe::SpiffeId};
use remora_proto::v1::{self as pb, TrustBundle, WatchRequest, WatchResponse, discovery_server};
use serde::Serialize;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    index::{
        Index, Name, Warning,
        answer::{Caller, Head, Snapshot},
        policy::Policy,
        protocol::Protocol,
        routes::RouteId,
    },
    metrics::Metrics,
    server::{self, Peer},
    source::{Distribution, Event},
};

mod stream;
pub mod wire;

use stream::{Shared, Stream};
use wire::Place;

/// Messages that wait in a stream beyond what HTTP/2 holds. Small, so that what waits is new.
const OUTGOING: usize = 4;
/// A message on its way out. In a box, since a channel keeps room for 32 or 64 messages, however few
/// of them there may be: that would be 35 KiB for every proxy.
type Outgoing = Box<Result<WatchResponse, Status>>;
/// Longest wait until a stream that ends takes the reason.
const LAST_WORD: Duration = Duration::from_secs(5);

/// The index and all who watch it.
#[derive(Debug)]
pub struct State {
    index: RwLock<Index>,
    streams: Mutex<HashMap<u64, Arc<Shared>>>,
    next_stream: AtomicU64,
    /// Whether a first state is there. Until then nothing is answered: "not ours" would be wrong.
    loaded: AtomicBool,
    /// Changed whenever the status of a route may have to say something else.
    route_changes: watch::Sender<()>,
    /// Counters; also of the rest of the program.
    pub metrics: Arc<Metrics>,
}

/// A connected proxy, for `/proxies`.
#[derive(Debug, Clone, Serialize)]
pub struct Proxy {
    /// Namespace of its pod.
    pub namespace: String,
    /// Its pod.
    pub pod: String,
    /// Its node; empty if unknown.
    pub node: String,
    /// Its zone, that of its node where it says none itself; empty if unknown.
    pub zone: String,
    /// What it proved to be.
    pub identity: String,
    /// Its version.
    pub version: String,
    /// Open subscriptions.
    pub subscriptions: usize,
    /// Answers sent and not confirmed, or due and not sent.
    pub behind: usize,
    /// Age of the oldest of them in seconds.
    pub behind_seconds: f64,
}

/// What proxies are told of a Service with these annotations and no endpoints, and what of the
/// annotations cannot be used: for those who want to know a policy without a mesh.
#[must_use]
pub fn told(annotations: &BTreeMap<String, String>) -> (pb::Service, Vec<InvalidAnnotation>) {
    let mut bad = Vec::new();
    let head = Head {
        service: Name::new("", ""),
        port: 0,
        port_name: String::new(),
        protocol: Protocol::Detect,
        policy: Policy::parse(annotations, None, None, &mut bad),
        node_local: false,
        distribution: Distribution::Any,
        routes: None,
    };
    let snapshot = Snapshot { head: Arc::new(head), endpoints: [].into() };
    (wire::service(&snapshot, &Place::default()), bad)
}

impl State {
    /// Serves an index.
    #[must_use]
    pub fn new(index: Index, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            index: RwLock::new(index),
            streams: Mutex::new(HashMap::new()),
            next_stream: AtomicU64::new(0),
            loaded: AtomicBool::new(false),
            route_changes: watch::channel(()).0,
            metrics,
        })
    }

    /// Applies a batch of events and wakes those whom it concerns.
    pub fn apply(&self, events: impl IntoIterator<Item = Event>, now: Instant) -> Vec<Warning> {
        let applied = self.index.write().apply(events);
        self.metrics.events.inc_by(applied.objects as u64);
        if applied.routes_due {
            self.route_changes.send_replace(());
        }
        let streams = self.streams.lock();
        if !self.loaded.swap(true, Ordering::Release) {
            streams.values().for_each(|stream| stream.wake());
        }
        for id in applied.touched {
            if let Some(stream) = streams.get(&id.stream) {
                stream.touch(id.id, now);
            }
        }
        applied.warnings
    }

    /// Whether a first state is there.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// Reads the index.
    pub fn read<T>(&self, read: impl FnOnce(&Index) -> T) -> T {
        read(&self.index.read())
    }

    /// Changes whenever [`State::take_routes_due`] has something.
    #[must_use]
    pub fn route_changes(&self) -> watch::Receiver<()> {
        self.route_changes.subscribe()
    }

    /// See [`Index::take_routes_due`].
    #[must_use]
    pub fn take_routes_due(&self) -> Vec<RouteId> {
        self.index.write().take_routes_due()
    }

    /// The connected proxies, by namespace and pod.
    #[must_use]
    pub fn proxies(&self, now: Instant) -> Vec<Proxy> {
        let mut all: Vec<Proxy> =
            self.streams.lock().values().map(|stream| stream.describe(now)).collect();
        let index = self.index.read();
        for proxy in &mut all {
            let (namespace, pod) = (proxy.namespace.clone(), proxy.pod.clone());
            let (node, zone) = (proxy.node.clone(), std::mem::take(&mut proxy.zone));
            proxy.zone = index.zone_of(&Caller { namespace, pod, node, zone }).to_string();
        }
        all.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
        all
    }

    fn open(self: &Arc<Self>, shared: Shared) -> (u64, Arc<Shared>) {
        let number = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(shared);
        self.streams.lock().insert(number, Arc::clone(&shared));
        self.metrics.proxies.inc();
        (number, shared)
    }

    fn close(&self, number: u64) {
        if self.streams.lock().remove(&number).is_some() {
            self.metrics.proxies.dec();
        }
    }
}

/// The gRPC service.
#[derive(Debug)]
pub struct Discovery {
    /// What is served.
    pub state: Arc<State>,
    /// The roots, as they are now.
    pub bundle: watch::Receiver<Arc<TrustBundle>>,
    /// Waits for the streams.
    pub drain: drain::Watch,
}

#[tonic::async_trait]
impl discovery_server::Discovery for Discovery {
    type WatchStream = Answers;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let Peer { identity, leaving } =
            request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let identity = identity.ok_or_else(|| {
            Status::unauthenticated("discovery needs a client certificate; call Certify first")
        })?;
        let (outgoing, answers) = mpsc::channel(OUTGOING);
        let run = serve(
            Arc::clone(&self.state),
            self.bundle.clone(),
            leaving,
            identity,
            request.into_inner(),
            outgoing,
        );
        // The task ends with its stream: a gone client ends both of its halves.
        tokio::spawn(self.drain.track(run));
        Ok(Response::new(Answers(answers)))
    }
}

/// What a proxy is told, as gRPC takes it.
#[derive(Debug)]
pub struct Answers(mpsc::Receiver<Outgoing>);

impl futures_util::Stream for Answers {
    type Item = Result<WatchResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.poll_recv(context).map(|message| message.map(|message| *message))
    }
}

async fn serve(
    state: Arc<State>,
    bundle: watch::Receiver<Arc<TrustBundle>>,
    leaving: CancellationToken,
    identity: SpiffeId,
    mut requests: Streaming<WatchRequest>,
    outgoing: mpsc::Sender<Outgoing>,
) {
    let hello = tokio::select! {
        () = leaving.cancelled() => Err(server::leave()),
        () = outgoing.closed() => return,
        hello = hello(&mut requests, &identity) => hello,
    };
    let result = match hello {
        Ok(hello) => {
            let caller = Caller {
                namespace: hello.namespace,
                pod: hello.pod,
                node: hello.node,
                zone: hello.zone,
            };
            let shared = Shared::new(&caller, &identity, hello.version);
            let (number, shared) = state.open(shared);
            tracing::info!(namespace = caller.namespace, pod = caller.pod, %identity, "proxy connected");
            let mut stream = Stream::new(Arc::clone(&state), number, shared, caller.clone());
            let result = stream.run(&mut requests, &outgoing, bundle, &leaving).await;
            tracing::info!(namespace = caller.namespace, pod = caller.pod, "proxy disconnected");
            result
        }
        Err(status) => Err(status),
    };
    if let Err(status) = result {
        // Nobody listens any more where this fails.
        let _ = tokio::time::timeout(LAST_WORD, outgoing.send(Box::new(Err(status)))).await;
    }
}

async fn hello(
    requests: &mut Streaming<WatchRequest>,
    identity: &SpiffeId,
) -> Result<pb::Hello, Status> {
    let first = requests.message().await?.and_then(|request| request.kind);
    let Some(pb::watch_request::Kind::Hello(hello)) = first else {
        return Err(Status::invalid_argument("the first request must be Hello"));
    };
    if hello.namespace != identity.namespace() {
        return Err(Status::permission_denied(format!(
            "Hello says namespace {:?}, the certificate {identity}",
            hello.namespace
        )));
    }
    Ok(hello)
}

#[cfg(test)]
mod tests;
