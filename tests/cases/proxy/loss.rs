//! Connections that die at every byte: nothing runs twice without permission, and what provably did not
//! run is not given up. The application counts.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{Method, Request, Response};
use parking_lot::Mutex;
use remora_tests::{
    frames::{END_HEADERS, END_STREAM, Frames, kind},
    mesh::{Mesh, Pair},
    origin::{Answer, Origin, Speaks, full, h1, h2},
    sidecar::Sidecar,
    wait::{eventually, within},
    wire::{App, Wire},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

const ORDER: &str = "an order of five books";
const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Order: 1\r\nConnection: close\r\n\r\nhello";
/// Permission to retry once what is safe to retry, however often the test asks for it.
const PERMISSION: [(&str, &str); 3] = [
    ("retry.remora.io/http", "502"),
    ("retry.remora.io/backoff", "0s"),
    ("retry.remora.io/budget-min-per-second", "100000"),
];

/// One request over a connection of its own: its status, where the whole answer came.
async fn ask(entry: SocketAddr, speaks: Speaks, method: &Method) -> Option<u16> {
    ask_for(entry, speaks, method, "/order").await
}

async fn ask_for(entry: SocketAddr, speaks: Speaks, method: &Method, path: &str) -> Option<u16> {
    let origin = if speaks == Speaks::H1 { "" } else { "http://orders" };
    let request = Request::builder().method(method).uri(format!("{origin}{path}"));
    let mut request = request.body(full(ORDER)).unwrap();
    let response = match speaks {
        Speaks::H1 => {
            request.headers_mut().insert("host", "orders".parse().unwrap());
            h1(entry).await.send_request(request).await
        }
        Speaks::H2 | Speaks::Any => h2(entry).await.send_request(request).await,
    };
    let answer = Answer::read(response.ok()?).await.ok()?;
    if answer.status == 200 {
        assert_eq!(answer.text, "hello", "a part was passed off as whole");
    }
    Some(answer.status)
}

/// Where the first connection dies.
#[derive(Debug, Clone, Copy)]
enum Death {
    /// So much of the request was read.
    Reading(usize),
    /// All of it, and so much of the answer was written.
    Answering(usize),
}

/// Reads one HTTP/1 request.
async fn read(wire: &mut Wire) -> usize {
    let head = wire.head().await.0;
    wire.expect(ORDER).await;
    head.len() + ORDER.len()
}

/// Takes connections: the first one dies as it is told, the others are served. Counts those on which
/// there was a request.
async fn doomed(app: &App, death: Death, begun: &AtomicUsize) -> Infallible {
    let mut wire = app.accept().await;
    begun.fetch_add(1, Ordering::SeqCst);
    match death {
        // What is left unread makes a reset of the end; else it is an orderly one.
        Death::Reading(n) if n % 2 == 0 => {
            let mut some = vec![0; n];
            within("bytes", wire.stream().read_exact(&mut some)).await.unwrap();
            drop(wire);
        }
        Death::Reading(_) => {
            read(&mut wire).await;
            drop(wire);
        }
        Death::Answering(n) => {
            read(&mut wire).await;
            wire.send(&ANSWER[..n]).await;
            if n % 2 == 0 { wire.reset() } else { drop(wire) }
        }
    }
    loop {
        let mut wire = app.accept().await;
        begun.fetch_add(1, Ordering::SeqCst);
        read(&mut wire).await;
        wire.send(ANSWER).await;
    }
}

/// What came of one request whose connection died: the answer, and how often it was begun.
async fn trial(
    entry: SocketAddr,
    app: &App,
    method: &Method,
    death: Death,
) -> (Option<u16>, usize) {
    let (begun, what) = (AtomicUsize::new(0), format!("an answer, {death:?}"));
    let status = tokio::select! {
        status = within(&what, ask(entry, Speaks::H1, method)) => status,
        never = doomed(app, death, &begun) => match never {},
    };
    (status, begun.load(Ordering::SeqCst))
}

/// Length of the request as the application sees it.
async fn length(entry: SocketAddr, app: &App, method: &Method) -> usize {
    let serve = async {
        let mut wire = app.accept().await;
        let length = read(&mut wire).await;
        wire.send(ANSWER).await;
        length
    };
    let (length, status) = tokio::join!(serve, ask(entry, Speaks::H1, method));
    assert_eq!(status, Some(200));
    length
}

/// The usual picture. That it is HTTP is said: a proxy that had to look would dial on for a client that
/// takes its time, and the application would count that.
async fn pair(annotations: &[(&str, &str)]) -> (Pair, App) {
    let mut mesh = Mesh::new();
    mesh.write_service("orders", annotations, Some("http"));
    let (web, orders) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
    mesh.start_plane().await;
    let (client, server) =
        tokio::join!(mesh.sidecar(&web, &["orders"]), mesh.sidecar(&orders, &[]));
    let app = App::listen(orders.app()).await;
    (Pair { mesh, client, server }, app)
}

fn deaths(length: usize) -> impl Iterator<Item = Death> {
    (0..=length).map(Death::Reading).chain((0..ANSWER.len()).map(Death::Answering))
}

/// Every position, each method: it runs once, and the client learns that something is wrong.
async fn nothing_runs_twice(entry: SocketAddr, app: &App) {
    for method in [Method::POST, Method::GET] {
        for death in deaths(length(entry, app, &method).await) {
            let (status, begun) = trial(entry, app, &method, death).await;
            assert_eq!(begun, 1, "{method} {death:?}: {status:?}");
            assert!(matches!(status, None | Some(502)), "{method} {death:?}: {status:?}");
        }
    }
}

#[tokio::test]
async fn nothing_is_sent_again_wherever_the_application_dies() {
    let (pair, app) = pair(&[]).await;
    nothing_runs_twice(pair.entry(), &app).await;
}

#[tokio::test]
async fn nor_where_it_has_no_sidecar() {
    let mut mesh = Mesh::new();
    mesh.service_speaking("orders", "http");
    let (web, orders) = (mesh.pod("web", "web"), mesh.plain_pod("orders-1", "orders"));
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    nothing_runs_twice(client.entry("orders"), &App::listen(orders.app()).await).await;
}

/// Up to the head of the answer a retry hides the loss; from then on the answer may be the client's.
#[tokio::test]
async fn with_permission_a_get_is_sent_once_more_at_most_and_a_post_never() {
    let (pair, app) = pair(&PERMISSION).await;
    let head = ANSWER.len() - "hello".len();
    for death in deaths(length(pair.entry(), &app, &Method::GET).await) {
        let given = matches!(death, Death::Answering(n) if n >= head);
        let (status, begun) = trial(pair.entry(), &app, &Method::GET, death).await;
        let repeated = (status, begun) == (Some(200), 2);
        let broken = given && status != Some(200) && begun == 1;
        assert!(repeated || broken, "GET {death:?}: {status:?}, begun {begun} times");
        let (status, begun) = trial(pair.entry(), &app, &Method::POST, death).await;
        assert_eq!(begun, 1, "POST {death:?}: {status:?}");
        assert!(matches!(status, None | Some(502)), "POST {death:?}: {status:?}");
    }
}

/// The client is slow: the application has read some of its body when it dies.
#[tokio::test]
async fn an_upload_whose_application_dies_on_the_way_is_begun_once() {
    let (pair, app) = pair(&[]).await;
    for n in 0..=ORDER.len() {
        let mut client = Wire::dial(pair.entry()).await;
        let length = ORDER.len();
        client
            .send(format!("PUT / HTTP/1.1\r\nHost: orders\r\nContent-Length: {length}\r\n\r\n"))
            .await;
        client.send(&ORDER[..n]).await;
        let mut server = app.accept().await;
        server.head().await;
        server.expect(&ORDER[..n]).await;
        if n % 2 == 0 {
            drop(server)
        } else {
            server.reset()
        }
        // It may have been told of it before it has said all.
        let _ = client.stream().write_all(&ORDER.as_bytes()[n..]).await;
        assert_eq!(client.head().await.status(), 502, "{n}");
        assert!(!app.has_caller().await, "{n}: it was sent again");
    }
}

/// Bytes of a connection up to where its first request begins, and up to where it ends.
async fn read_h2(wire: &mut Wire) -> (usize, usize) {
    let (mut begin, mut length) = (None, wire.exactly(24).await.len());
    loop {
        let head = wire.exactly(9).await;
        let payload = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        wire.exactly(payload).await;
        if head[3] == kind::HEADERS {
            begin = Some(length);
        }
        length += 9 + payload;
        if let Some(begin) = begin.filter(|_| head[4] & END_STREAM != 0 && head[3] <= kind::HEADERS)
        {
            return (begin, length);
        }
    }
}

/// Serves one request on each connection, as a server that is about to go.
async fn serve_h2(app: &App, served: &AtomicUsize) -> Infallible {
    loop {
        let mut frames = Frames::accept(app).await;
        let Ok(mut frame) = frames.next().await else { continue };
        while frame.flags & END_STREAM == 0 || frame.kind > kind::HEADERS {
            frame = frames.next().await.unwrap();
        }
        served.fetch_add(1, Ordering::SeqCst);
        let last = [frame.stream.to_be_bytes(), [0; 4]].concat();
        frames.send(kind::GOAWAY, 0, 0, &last).await;
        // HPACK for `:status: 200`.
        frames.send(kind::HEADERS, END_HEADERS, frame.stream, &[0x88]).await;
        frames.send(kind::DATA, END_STREAM, frame.stream, b"hello").await;
    }
}

/// What was written of a request is not written again. That there is no request yet on a connection
/// that breaks can be known, and then the request runs on the next.
#[tokio::test]
async fn over_http_2_nothing_is_sent_again_either() {
    for sidecar in [true, false] {
        let mut mesh = Mesh::new();
        mesh.service_speaking("orders", "kubernetes.io/h2c");
        let (web, orders) = (mesh.pod("web", "web"), mesh.pod_with("one", "orders", sidecar, &[]));
        mesh.start_plane().await;
        let _server = if sidecar { Some(mesh.sidecar(&orders, &[]).await) } else { None };
        let client = mesh.sidecar(&web, &["orders"]).await;
        let (entry, app) = (client.entry("orders"), App::listen(orders.app()).await);
        let (mut n, mut begin, mut length) = (0, 0, usize::MAX);
        while n <= length {
            let served = AtomicUsize::new(0);
            let play = async {
                let mut wire = app.accept().await;
                if length == usize::MAX {
                    (begin, length) = read_h2(&mut wire).await;
                } else {
                    let mut some = vec![0; n];
                    within("bytes", wire.stream().read_exact(&mut some)).await.unwrap();
                }
                if n % 2 == 0 {
                    drop(wire)
                } else {
                    wire.reset()
                }
                serve_h2(&app, &served).await
            };
            let status = tokio::select! {
                status = within("an answer", ask(entry, Speaks::H2, &Method::POST)) => status,
                never = play => match never {},
            };
            let served = served.load(Ordering::SeqCst);
            let what = format!("{n} of {begin}..{length}, sidecar {sidecar}: {status:?}, {served}");
            assert!(matches!((status, served), (Some(502), 0) | (Some(200), 1)), "{what}");
            assert!(served == 0 || (1..=begin).contains(&n), "{what}");
            n += 1;
        }
    }
}

/// Stands between two proxies and lets so many bytes of the next connection through, there and back.
#[derive(Default)]
struct Relay {
    limits: [AtomicUsize; 2],
    carried: [AtomicUsize; 2],
    connections: Mutex<JoinSet<()>>,
}

impl Relay {
    async fn serve(self: Arc<Self>, listener: TcpListener, to: SocketAddr) {
        loop {
            let (from, _) = listener.accept().await.unwrap();
            let to = TcpStream::connect(to).await.unwrap();
            let left = self.limits.each_ref().map(|left| left.swap(usize::MAX, Ordering::SeqCst));
            self.connections.lock().spawn(Arc::clone(&self).carry(from, to, left));
        }
    }

    async fn carry(self: Arc<Self>, mut from: TcpStream, mut to: TcpStream, mut left: [usize; 2]) {
        let (mut question, mut answer) = (vec![0; 16 << 10], vec![0; 16 << 10]);
        loop {
            let (way, read, bytes, sink) = tokio::select! {
                read = from.read(&mut question) => (0, read, &question, &mut to),
                read = to.read(&mut answer) => (1, read, &answer, &mut from),
            };
            let Ok(n @ 1..) = read else { return };
            let n = n.min(left[way]);
            left[way] -= n;
            self.carried[way].fetch_add(n, Ordering::SeqCst);
            if sink.write_all(&bytes[..n]).await.is_err() || left[way] == 0 {
                return;
            }
        }
    }
}

/// A server with a sidecar whose callers come through a [`Relay`], and who calls it.
struct Relayed {
    client: Sidecar,
    server: Sidecar,
    /// How often each path was asked for.
    ran: Arc<Mutex<HashMap<String, usize>>>,
    relay: Arc<Relay>,
    _origin: Origin,
    _mesh: Mesh,
}

impl Relayed {
    async fn start() -> Self {
        const PORT: u16 = 7070;
        let mut mesh = Mesh::new();
        mesh.service_speaking("orders", "http");
        let (web, orders) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
        mesh.start_plane().await;
        let server = mesh.sidecar_behind(&orders, PORT).await;
        let client = mesh.sidecar(&web, &["orders"]).await;
        let ran = Arc::new(Mutex::new(HashMap::new()));
        let count = Arc::clone(&ran);
        let origin = Origin::serve(orders.app(), Speaks::H1, move |request: Request<_>| {
            *count.lock().entry(request.uri().path().to_owned()).or_default() += 1;
            async { Response::new(full("hello")) }
        });
        let origin = origin.await;
        let relay = Arc::new(Relay::default());
        let listener = TcpListener::bind(orders.address()).await.unwrap();
        tokio::spawn(Arc::clone(&relay).serve(listener, SocketAddr::from((orders.ip, PORT))));
        Self { client, server, ran, relay, _origin: origin, _mesh: mesh }
    }

    /// What came of one request whose hop dies after so many bytes there and back, and how often it ran.
    async fn trial(&self, limits: [usize; 2]) -> (Option<u16>, usize) {
        // Each needs a hop of its own.
        self.relay.connections.lock().abort_all();
        let open = [("direction", "inbound"), ("tls", "mtls")];
        eventually("no hop", async || {
            let open = self.server.metric("remora_tcp_open_connections", &open).await;
            (open == 0).then_some(())
        })
        .await;
        for way in [0, 1] {
            self.relay.limits[way].store(limits[way], Ordering::SeqCst);
            self.relay.carried[way].store(0, Ordering::SeqCst);
        }
        let entry = self.client.entry("orders");
        let path = format!("/{}/{}", limits[0], limits[1]);
        let asking = ask_for(entry, Speaks::H1, &Method::POST, &path);
        let status = within("an answer", asking).await;
        let ran = self.ran.lock().get(&path).copied().unwrap_or_default();
        (status, ran)
    }
}

/// In steps through the handshake, and byte by byte where the request and its answer are.
#[tokio::test]
async fn a_hop_between_proxies_that_dies_at_any_byte_runs_nothing_twice_and_loses_no_handshake() {
    /// More than the request takes, or the answer; less than a handshake.
    const MESSAGE: usize = 300;
    let relayed = Relayed::start().await;
    assert_eq!(relayed.trial([usize::MAX; 2]).await, (Some(200), 1));
    let whole = relayed.relay.carried.each_ref().map(|carried| carried.load(Ordering::SeqCst));
    for way in [0, 1] {
        let (begin, end) = (whole[way] - MESSAGE, whole[way]);
        for bytes in (1..begin).step_by(31).chain(begin..end) {
            let mut limits = [usize::MAX; 2];
            limits[way] = bytes;
            let (status, ran) = relayed.trial(limits).await;
            let what = format!("way {way}, {bytes} of {end} bytes: {status:?}, ran {ran} times");
            assert!(ran <= 1, "{what}");
            assert!(matches!(status, None | Some(200 | 502)), "{what}");
            assert!(status != Some(200) || ran == 1, "{what}");
            // No request is written before the server's part of the handshake is there.
            assert!(bytes > MESSAGE || status == Some(200), "{what}");
        }
    }
    // Some may have run after their client was told.
    let ran = relayed.ran.lock();
    assert!(ran.values().all(|times| *times == 1), "{ran:?}");
}

/// The connection is refused, or its stream is: none of these ran there, all of them run elsewhere.
#[tokio::test]
async fn what_provably_did_not_run_is_sent_elsewhere_whatever_the_method() {
    for (speaks, sidecars) in [(Speaks::H1, false), (Speaks::H1, true), (Speaks::H2, true)] {
        let mut mesh = Mesh::new();
        let policy = [
            ("balancer.remora.io/algorithm", "round-robin"),
            ("balancer.remora.io/failure-accrual", "none"),
        ];
        let protocol = if speaks == Speaks::H1 { "http" } else { "kubernetes.io/h2c" };
        mesh.write_service("orders", &policy, Some(protocol));
        let web = mesh.pod("web", "web");
        let pods = ["down", "works"].map(|name| mesh.pod_with(name, "orders", sidecars, &[]));
        mesh.start_plane().await;
        let mut servers = Vec::new();
        for pod in pods.iter().filter(|pod| pod.meshed) {
            servers.push(mesh.sidecar(pod, &[]).await);
        }
        let client = mesh.sidecar(&web, &["orders"]).await;
        let works =
            Origin::serve(pods[1].app(), speaks, |_| async { Response::new(full("hello")) }).await;
        for n in 1..=20 {
            assert_eq!(ask(client.entry("orders"), speaks, &Method::POST).await, Some(200));
            assert_eq!(works.requests(), n, "each ran once");
        }
        let rows = client.endpoints("orders").await;
        let down = rows.iter().find(|row| row["pod"] == "down").unwrap();
        assert!(down["failures"].as_u64() > Some(5), "{speaks:?}: it was tried: {down}");
    }
}

#[tokio::test]
async fn a_stream_that_is_refused_runs_at_the_next_try() {
    for sidecar in [true, false] {
        let mut mesh = Mesh::new();
        mesh.service_speaking("orders", "kubernetes.io/h2c");
        let (web, orders) = (mesh.pod("web", "web"), mesh.pod_with("one", "orders", sidecar, &[]));
        mesh.start_plane().await;
        let _server = if sidecar { Some(mesh.sidecar(&orders, &[]).await) } else { None };
        let client = mesh.sidecar(&web, &["orders"]).await;
        let app = App::listen(orders.app()).await;
        let entry = client.entry("orders");
        let call = tokio::spawn(async move { ask(entry, Speaks::H2, &Method::POST).await });
        let mut frames = Frames::accept(&app).await;
        let mut seen = 0;
        while seen < 2 {
            let frame = frames.next().await.unwrap();
            if frame.kind != kind::HEADERS {
                continue;
            }
            seen += 1;
            if seen == 1 {
                let refused = 7_u32.to_be_bytes();
                frames.send(kind::RST_STREAM, 0, frame.stream, &refused).await;
            } else {
                // HPACK for `:status: 200`.
                frames.send(kind::HEADERS, END_HEADERS, frame.stream, &[0x88]).await;
                frames.send(kind::DATA, END_STREAM, frame.stream, b"hello").await;
            }
        }
        assert_eq!(within("an answer", call).await.unwrap(), Some(200), "sidecar: {sidecar}");
    }
}
