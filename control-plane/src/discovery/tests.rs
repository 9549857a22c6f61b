//! Proxies over gRPC in memory: who is sent what, and what waits for one that does not read.

use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as slices};
use remora_core::drain::Drain;
use remora_proto::v1::{
    discovery_client::DiscoveryClient, discovery_server::DiscoveryServer, subscribe, update,
    watch_request::Kind as Asked, watch_response::Kind as Told,
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    service::Routes,
    transport::{Channel, Endpoint},
};
use tower::Service;

use super::*;
use crate::source::Object;

/// Longest wait; time is paused, so that it costs nothing.
const PATIENCE: Duration = Duration::from_secs(60);

struct Plane {
    state: Arc<State>,
    bundle: watch::Sender<Arc<TrustBundle>>,
    /// Begins to drain where it is dropped.
    _drain: Drain,
    watch: drain::Watch,
}

impl Plane {
    /// With Services `orders` and `cart` of one endpoint each.
    fn new() -> Self {
        let index = Index::new("cluster.local", "cluster.local");
        let (drain, watch) = Drain::new();
        let bundle = watch::channel(Arc::default()).0;
        let plane = Self { state: State::new(index, Arc::default()), bundle, _drain: drain, watch };
        plane.apply(["orders", "cart"].map(service));
        plane.apply([slice("orders", 1, 0), slice("cart", 1, 0)]);
        plane
    }

    fn apply(&self, events: impl IntoIterator<Item = Event>) {
        self.state.apply(events, Instant::now());
    }

    fn sent(&self) -> u64 {
        self.state.metrics.updates.get()
    }

    /// A proxy that asked for a Service and has its first answer. It takes so many bytes unread.
    async fn proxy(&self, service: &str, window: Option<u32>) -> Proxy {
        let discovery = Discovery {
            state: Arc::clone(&self.state),
            bundle: self.bundle.subscribe(),
            drain: self.watch.clone(),
        };
        let channel = connected(discovery, window).await;
        let (requests, queue) = mpsc::channel(16);
        let hello = pb::Hello { namespace: "shop".to_owned(), ..pb::Hello::default() };
        let target = Some(subscribe::Target::Authority(format!("{service}.shop:80")));
        for kind in [Asked::Hello(hello), Asked::Subscribe(pb::Subscribe { id: 1, target })] {
            requests.send(WatchRequest { kind: Some(kind) }).await.unwrap();
        }
        let answers = DiscoveryClient::new(channel).watch(ReceiverStream::new(queue)).await;
        let mut proxy =
            Proxy { requests, answers: answers.unwrap().into_inner(), endpoints: 0, version: 0 };
        assert_eq!(proxy.next().await, 1);
        proxy
    }
}

/// A channel to a server of its own; there is no network between.
async fn connected(discovery: Discovery, window: Option<u32>) -> Channel {
    let (near, far) = tokio::io::duplex(16 << 10);
    let routes = Routes::new(DiscoveryServer::new(discovery)).prepare();
    let identity = "spiffe://cluster.local/ns/shop/sa/web".parse().ok();
    let peer = Peer { identity, ..Peer::default() };
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        routes.clone().call(request)
    });
    tokio::spawn(
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(far), service),
    );
    let mut near = Some(TokioIo::new(near));
    let connector = tower::service_fn(move |_: http::Uri| {
        std::future::ready(near.take().ok_or_else(|| std::io::Error::other("it was used")))
    });
    let endpoint = Endpoint::from_static("http://control-plane").initial_stream_window_size(window);
    endpoint.connect_with_connector(connector).await.unwrap()
}

struct Proxy {
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
    endpoints: usize,
    version: u64,
}

impl Proxy {
    /// Applies and confirms the next message, and gives the number of endpoints then.
    async fn next(&mut self) -> usize {
        loop {
            let message = timeout(PATIENCE, self.answers.message()).await.expect("a message");
            let message = message.unwrap().expect("an open stream");
            self.version = match message.kind.unwrap() {
                Told::TrustBundle(_) => continue,
                Told::Update(whole) => {
                    let Some(update::Answer::Service(service)) = whole.answer else { panic!() };
                    self.endpoints = service.endpoints.len();
                    whole.version
                }
                Told::Endpoints(delta) => {
                    self.endpoints = self.endpoints + delta.upsert.len() - delta.remove.len();
                    delta.version
                }
            };
            let ack = pb::Ack { id: 1, version: self.version };
            self.requests.send(WatchRequest { kind: Some(Asked::Ack(ack)) }).await.unwrap();
            return self.endpoints;
        }
    }
}

fn service(name: &str) -> Event {
    let object = json!({"metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}});
    let object: core::Service = serde_json::from_value(object).unwrap();
    Event::Apply(Object::Service(Arc::new((&object).into())))
}

/// So many ready endpoints, and others on their way out.
fn slice(service: &str, ready: usize, leaving: usize) -> Event {
    let endpoint = |number: usize| -> Value {
        let conditions = json!({"ready": number < ready, "terminating": number >= ready,
            "serving": true});
        json!({"addresses": [format!("10.244.0.{number}")], "conditions": conditions})
    };
    let endpoints: Vec<Value> = (0..ready + leaving).map(endpoint).collect();
    let object = json!({
        "metadata": {"name": service, "namespace": "shop",
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "", "port": 8080}]});
    let object: slices::EndpointSlice = serde_json::from_value(object).unwrap();
    Event::Apply(Object::EndpointSlice(Arc::new((&object).into())))
}

#[tokio::test(start_paused = true)]
async fn a_change_is_one_message_to_each_who_asked_and_none_to_others() {
    let plane = Plane::new();
    let mut concerned = Vec::new();
    for _ in 0..5 {
        concerned.push(plane.proxy("orders", None).await);
    }
    let mut others = [plane.proxy("cart", None).await, plane.proxy("cart", None).await];
    let before = plane.sent();
    plane.apply([slice("orders", 2, 0)]);
    for proxy in &mut concerned {
        assert_eq!((proxy.next().await, proxy.version), (2, 2));
    }
    plane.apply([slice("cart", 3, 0)]);
    for proxy in &mut others {
        assert_eq!((proxy.next().await, proxy.version), (3, 2), "the first it hears since");
    }
    assert_eq!(plane.sent() - before, 5 + 2);
}

#[tokio::test(start_paused = true)]
async fn what_proxies_are_not_told_of_costs_no_message() {
    let plane = Plane::new();
    let mut proxy = plane.proxy("orders", None).await;
    let before = plane.sent();
    for leaving in 1..20 {
        plane.apply([slice("orders", 1, leaving)]);
    }
    plane.apply([slice("orders", 2, 0)]);
    assert_eq!(proxy.next().await, 2);
    assert_eq!(plane.sent() - before, 1);
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_does_not_read_holds_nobody_up_and_little_waits_for_it() {
    const CHANGES: usize = 500;
    let plane = Plane::new();
    let mut stuck = plane.proxy("orders", Some(1024)).await;
    let mut steady = plane.proxy("orders", None).await;
    let before = plane.sent();
    for change in 0..CHANGES {
        let ready = 2 + change % 100;
        plane.apply([slice("orders", ready, 0)]);
        assert_eq!(steady.next().await, ready, "each change, without waiting for the other");
    }
    let waiting = plane.sent() - before - CHANGES as u64;
    assert!(waiting < 50, "{waiting} messages for a proxy that reads none of them");
    let behind: Vec<usize> =
        plane.state.proxies(Instant::now()).iter().map(|proxy| proxy.behind).collect();
    assert_eq!(behind.iter().max(), Some(&1), "one subscription, however many changes");
    // Once it reads, it gets what waited and then all the rest at once.
    let newest = 2 + (CHANGES - 1) % 100;
    let mut messages = 0;
    while stuck.next().await != newest {
        messages += 1;
        assert!(messages <= waiting, "the rest is one message");
    }
}
