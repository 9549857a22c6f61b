//! An outbound side with what discovery would have told it, and applications on loopback, without
//! mTLS.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use remora_core::{
    drain::{Drain, Watch},
    settings::HeaderSize,
};
use remora_proto::v1 as pb;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};

use super::{Outbound, Source};
use crate::{
    discovery::{Discovery, Limits, Resolution, Service, Target, traffic::RouteTraffic},
    metrics::Metrics,
    net::{admission::Admission, connect::Connector},
    shared::Shared,
    tls::identity::Identity,
};

/// Longest wait in a test for what must come.
pub(super) const SOON: Duration = Duration::from_secs(10);

/// The outbound side of a pod that calls `orders.shop:80`.
pub(super) struct World {
    pub(super) outbound: Arc<Outbound>,
    discovery: Discovery,
    version: std::cell::Cell<u64>,
    _drain: Drain,
}

/// An application of one pod.
pub(super) struct App {
    pub(super) address: SocketAddr,
    /// The requests that it got.
    pub(super) got: mpsc::Receiver<Got>,
    pub(super) says: watch::Sender<Says>,
}

/// A request as an application saw it.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) head: http::request::Parts,
    pub(super) body: Bytes,
}

impl Got {
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// Answers of an application.
#[derive(Debug, Clone, Copy)]
pub(super) enum Says {
    /// This status, with the field `x-app` and the body `<name>`.
    Status(u16),
    /// Nothing at all.
    Nothing,
    /// A head that promises ten bytes, and half of them.
    Half,
}

/// An application that speaks HTTP/1 and HTTP/2.
pub(super) async fn app(name: &'static str, says: Says) -> App {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, got) = mpsc::channel(64);
    let (speaker, saying) = watch::channel(says);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (told, saying) = (told.clone(), saying.clone());
            tokio::spawn(async move {
                if matches!(says, Says::Half) {
                    let mut seen = [0; 1024];
                    let _ = socket.read(&mut seen).await;
                    let half = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf.";
                    socket.write_all(half).await.unwrap();
                    return std::future::pending().await;
                }
                let service = service_fn(|request: Request<Incoming>| {
                    let (told, says) = (told.clone(), *saying.borrow());
                    async move { answer(name, says, &told, request).await }
                });
                let io = TokioIo::new(socket);
                let mut server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                server.http1().preserve_header_case(true);
                let _ = server.serve_connection(io, service).await;
            });
        }
    });
    App { address, got, says: speaker }
}

async fn answer(
    name: &'static str,
    says: Says,
    told: &mpsc::Sender<Got>,
    request: Request<Incoming>,
) -> hyper::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let _ = told.send(Got { head, body }).await;
    let Says::Status(status) = says else { return std::future::pending().await };
    let mut response = Response::new(Full::new(Bytes::from_static(name.as_bytes())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert("x-app", name.parse().unwrap());
    Ok(response)
}

impl World {
    pub(super) fn new() -> Self {
        let (drain, watch) = Drain::new();
        let discovery = Discovery::new(Limits::default(), now());
        let shared = shared(&discovery, watch);
        let rng = fastrand::Rng::with_seed(7);
        let outbound = Arc::new(Outbound::new(&shared, rng, [].into()));
        Self { outbound, discovery, version: 0.into(), _drain: drain }
    }

    /// What discovery says of `orders.shop:80`.
    pub(super) fn orders(&self, apps: &[&App], routes: Vec<pb::Route>) {
        let service = pb::Service { routes, ..service("orders", apps) };
        self.tell("orders.shop:80", service);
    }

    /// What discovery says of `<name>.shop.svc:80`.
    pub(super) fn backend(&self, name: &str, apps: &[&App]) {
        self.tell(&format!("{name}.shop.svc:80"), service(name, apps));
    }

    pub(super) fn tell(&self, authority: &str, service: pb::Service) {
        self.version.set(self.version.get() + 1);
        let answer = Some(pb::update::Answer::Service(service));
        let update = pb::Update { id: 0, version: self.version.get(), answer };
        let target = Target::Authority(authority.to_owned());
        self.discovery.restore(&target, &update, now()).unwrap();
    }

    /// A connection of the application to `orders.shop:80`.
    pub(super) async fn connect(&self) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let place = self.outbound.admission.admit(None).unwrap();
        let source = Source::Explicit("orders.shop:80".into());
        tokio::spawn(Arc::clone(&self.outbound).serve(accepted.unwrap().0, place, source));
        client.unwrap()
    }

    /// Sends a request over HTTP/1, and gives what comes back until the connection ends.
    pub(super) async fn h1(&self, request: &str) -> String {
        let mut client = self.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = client.read_to_end(&mut answer);
        // A reset is an end as well.
        let _ = tokio::time::timeout(SOON, read).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// `GET` with some more lines, over HTTP/1.
    pub(super) async fn get(&self, target: &str, lines: &str) -> String {
        self.h1(&format!(
            "GET {target} HTTP/1.1\r\nHost: orders\r\n{lines}Connection: close\r\n\r\n"
        ))
        .await
    }

    /// Sends a request over HTTP/2.
    pub(super) async fn h2(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        let io = TokioIo::new(self.connect().await);
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
        let (mut client, connection) = handshake.unwrap();
        tokio::spawn(connection);
        let answer = tokio::time::timeout(SOON, client.send_request(request)).await.unwrap();
        let (head, body) = answer.unwrap().into_parts();
        Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    }

    /// What is known by a name.
    pub(super) fn service(&self, authority: &str) -> Arc<Service> {
        match self.discovery.cached(&Target::Authority(authority.to_owned()), now()) {
            Some(Resolution::Service(service)) => service,
            other => panic!("{other:?}"),
        }
    }

    /// What the first route of `orders` has seen.
    pub(super) fn route_traffic(&self) -> Arc<RouteTraffic> {
        Arc::clone(&self.service("orders.shop:80").state().routes[0].traffic)
    }

    /// Waits until so many copies had one of the fates of `Mirrored`.
    pub(super) async fn mirrored(&self, what: usize, least: u64) {
        let traffic = self.route_traffic();
        let wait = async {
            while traffic.mirrored[what].load(Ordering::Relaxed) < least {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, wait).await.unwrap();
    }
}

impl App {
    /// It answers otherwise from now on.
    pub(super) fn now_says(&self, says: Says) {
        self.says.send_replace(says);
    }

    pub(super) async fn next(&mut self) -> Got {
        tokio::time::timeout(SOON, self.got.recv()).await.unwrap().unwrap()
    }
}

fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

pub(super) fn service(name: &str, apps: &[&App]) -> pb::Service {
    let endpoint = |app: &&App| pb::Endpoint {
        address: Some(pb::SocketAddress {
            ip: vec![127, 0, 0, 1],
            port: app.address.port().into(),
        }),
        ..Default::default()
    };
    pb::Service {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        port: 80,
        endpoints: apps.iter().map(endpoint).collect(),
        ..Default::default()
    }
}

fn shared(discovery: &Discovery, drain: Watch) -> Shared {
    Shared {
        discovery: discovery.clone(),
        identity: Identity::new(),
        connector: Connector::default(),
        admission: Admission::new(100, 100),
        max_header_size: HeaderSize::default(),
        metrics: Arc::new(Metrics::new(now())),
        sight: Arc::new(crate::sight::testing::sight()),
        drain,
        pod_ips: [].into(),
    }
}
