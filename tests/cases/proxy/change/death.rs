//! Proxies that end without a word, and proxies that get a signal.

use std::{
    io::ErrorKind,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use remora_tests::{
    load::{Calls, Failure, Load},
    mesh::{Mesh, Pod},
    origin::{Origin, Speaks, empty, get, h2},
    sidecar::Sidecar,
    wait::{eventually, within},
    wire::{App, Wire},
};
use tokio::{net::TcpStream, time::Instant};

use super::{Replica, Shop, program, serve};

const GET: &str = "GET / HTTP/1.1\r\nHost: orders\r\n\r\n";
/// The end of the answer is its length, so that an orderly one would pass a part for the whole.
const OLD: &str = "GET / HTTP/1.0\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 0\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";
const UPGRADE: &str =
    "GET / HTTP/1.1\r\nHost: orders\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";
const BYTES: &str = "\x01hello";

/// `web` and `orders-1`, one of which is a process of its own.
struct Mortal {
    client: Sidecar,
    server: Sidecar,
    pod: Pod,
    _mesh: Mesh,
}

#[derive(Clone, Copy, PartialEq)]
enum Dies {
    Client,
    Server,
}

impl Mortal {
    async fn start(dies: Dies) -> Self {
        let mut mesh = Mesh::new();
        mesh.grace = Duration::from_secs(10);
        mesh.service("orders", &[]);
        let (web, pod) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
        mesh.start_plane().await;
        let (client, server) = match dies {
            Dies::Client => tokio::join!(
                mesh.sidecar_process(program(), &web, &["orders"]),
                mesh.sidecar(&pod, &[])
            ),
            Dies::Server => tokio::join!(
                mesh.sidecar(&web, &["orders"]),
                mesh.sidecar_process(program(), &pod, &[])
            ),
        };
        Self { client, server, pod, _mesh: mesh }
    }

    /// One exchange that has begun.
    async fn begin(&self, app: &App, request: &str) -> (Wire, Wire) {
        let mut client = Wire::dial(self.client.entry("orders")).await;
        client.send(request).await;
        let mut server = app.accept().await;
        if request == BYTES {
            server.expect(BYTES).await;
        } else {
            server.head().await;
        }
        if request == UPGRADE {
            server.send(SWITCHED).await;
            assert_eq!(client.head().await.status(), 101);
        }
        (client, server)
    }
}

#[tokio::test]
async fn a_replica_whose_proxy_is_killed_costs_what_was_in_flight_there_and_nothing_after() {
    let shop = Shop::open(Mesh::new(), 2, 2).await;
    let pod = shop.mesh.pod("orders-dies", "orders");
    let app = serve(&pod).await;
    let dies = shop.mesh.sidecar_process(program(), &pod, &[]).await;
    let load = shop.load();
    shop.until_endpoints(3).await;
    load.passes(200).await;
    eventually("its part of the load", async || (app.requests() > 20).then_some(())).await;
    dies.kill().await;
    let dead = Instant::now();
    load.passes(400).await;
    for caller in &shop.callers {
        eventually("the breaker to open", async || {
            let all = caller.endpoints("orders").await;
            let dead = all.iter().find(|e| e["pod"] == "orders-dies")?;
            (dead["state"] != "ready").then_some(())
        })
        .await;
    }
    load.passes(200).await;
    // It comes back to the same address, and is found by a probe.
    let before = app.requests();
    let _again = shop.mesh.sidecar_process(program(), &pod, &[]).await;
    eventually("a probe", async || (app.requests() > before).then_some(())).await;
    let report = load.report().await;
    let after = report.failed.iter().filter(|failure| failure.began > dead);
    assert_eq!(after.count(), 0, "{report}");
    assert!(report.failed.iter().all(is_told), "{report}");
    // Of each caller: what its clients can have under way at a time.
    assert!(report.failed.len() <= 2 * 7, "{report}");
}

/// What a request that may have been carried out is answered.
fn is_told(Failure { kind, problem, .. }: &Failure) -> bool {
    let reason = problem.contains("\"remora-proxy-error\": \"upstream-reset\"");
    match kind {
        Calls::Bytes => problem.contains("reset"),
        Calls::Grpc => reason && problem.contains("\"grpc-status\": \"14\""),
        _ => reason && problem.contains("status: 502"),
    }
}

/// What its owner says may be repeated is, on another endpoint.
#[tokio::test]
async fn a_replica_whose_proxy_is_killed_costs_nothing_that_may_be_repeated() {
    let mesh = Mesh::new();
    mesh.service("orders", &[("retry.remora.io/http", "502-504"), ("retry.remora.io/limit", "3")]);
    let pod = mesh.pod("orders-dies", "orders");
    let shop = Shop::stock(mesh, 2, 1).await;
    let app = serve(&pod).await;
    let dies = shop.mesh.sidecar_process(program(), &pod, &[]).await;
    let (entry, dead) = (shop.entries()[0], AtomicBool::new(false));
    let client = async || {
        let mut after = 0;
        while after < 20 {
            assert_eq!(get(entry).await.unwrap().status, 200);
            after += usize::from(dead.load(Ordering::Relaxed));
        }
    };
    let kill = async {
        eventually("its part of the load", async || (app.requests() > 20).then_some(())).await;
        dies.kill().await;
        dead.store(true, Ordering::Relaxed);
    };
    tokio::join!(kill, join_all((0..8).map(|_| client())));
}

#[tokio::test]
async fn an_application_that_dies_behind_its_proxy_costs_what_was_in_flight_and_nothing_after() {
    let mut shop = Shop::open(Mesh::new(), 3, 1).await;
    let kinds = [Calls::Kept, Calls::Fresh, Calls::Streams, Calls::Grpc];
    let load = Load::of(&shop.entries(), &kinds);
    let Replica { pod, app, sidecar: _stays } = shop.replicas.remove(0);
    eventually("its part of the load", async || (app.requests() > 20).then_some(())).await;
    drop(app);
    eventually("its end", async || TcpStream::connect(pod.app()).await.err()).await;
    let dead = Instant::now();
    load.passes(300).await;
    let report = load.report().await;
    let after = report.failed.iter().filter(|failure| failure.began > dead);
    assert_eq!(after.count(), 0, "{report}");
    assert!(report.failed.iter().all(is_told), "{report}");
}

#[tokio::test]
async fn callers_of_a_proxy_that_is_killed_are_told_at_once() {
    let mortal = Mortal::start(Dies::Server).await;
    let app = App::listen(mortal.pod.app()).await;
    let mut held = Vec::new();
    for request in [GET, POST] {
        held.push(mortal.begin(&app, request).await);
    }
    let mut broken = Vec::new();
    for request in [OLD, UPGRADE, BYTES] {
        let (mut client, mut server) = mortal.begin(&app, request).await;
        if request == OLD {
            server.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf").await;
            client.until("half").await;
        }
        broken.push((request, client, server));
    }
    let Mortal { server, client: proxy, _mesh, .. } = mortal;
    server.kill().await;
    for (client, _) in &mut held {
        let head = client.head().await;
        assert_eq!((head.status(), head.get("remora-proxy-error")), (502, Some("upstream-reset")));
    }
    for (request, client, _) in &mut broken {
        let end = client.rest().await.map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "{request}");
    }
    // Nobody else is there: nothing was sent, and that is said.
    let answer = get(proxy.entry("orders")).await.unwrap();
    assert_eq!((answer.status, answer.reason()), (503, Some("connect-failed")));
}

#[tokio::test]
async fn an_application_whose_caller_s_proxy_is_killed_sees_its_streams_reset() {
    let mortal = Mortal::start(Dies::Client).await;
    let app = App::listen(mortal.pod.app()).await;
    let mut all = Vec::new();
    for request in [GET, UPGRADE, BYTES] {
        all.push(mortal.begin(&app, request).await);
    }
    let Mortal { client, server: _stays, _mesh, .. } = mortal;
    client.kill().await;
    for (_client, server) in &mut all {
        let error = within("the end", server.rest()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn sigterm_and_ctrl_c_let_streams_end_and_the_status_is_zero() {
    join_all([Signal::SIGTERM, Signal::SIGINT].map(async |signal| {
        let mortal = Mortal::start(Dies::Client).await;
        let app = App::listen(mortal.pod.app()).await;
        let (mut client, mut server) = mortal.begin(&app, GET).await;
        let mut streams = Vec::new();
        for request in [UPGRADE, BYTES] {
            streams.push(mortal.begin(&app, request).await);
        }
        mortal.client.signal(signal);
        eventually("the proxy to drain", async || {
            (mortal.client.get("/ready").await.0 == 503).then_some(())
        })
        .await;
        server.send(OK).await;
        server.send("last").await;
        assert_eq!(client.head().await.get("connection"), Some("close"));
        client.expect("last").await;
        for (client, server) in &mut streams {
            client.send("up").await;
            server.expect("up").await;
            // Half-closed, and still answered.
            client.finish().await;
            assert_eq!(server.rest().await.unwrap(), b"");
            server.send("down").await;
            client.expect("down").await;
            server.finish().await;
            assert_eq!(client.rest().await.unwrap(), b"");
        }
        mortal.client.ended().await;
    }))
    .await;
}

#[tokio::test]
async fn streams_of_http2_that_a_dead_proxy_had_are_told_and_the_next_ones_go_elsewhere() {
    let mut shop = Shop::open(Mesh::new(), 0, 1).await;
    let pod = shop.mesh.pod("orders-dies", "orders");
    let held = Origin::serve(pod.app(), Speaks::H2, |_| std::future::pending()).await;
    let dies = shop.mesh.sidecar_process(program(), &pod, &[]).await;
    let mut sender = h2(shop.entries()[0]).await;
    let mut ask = || {
        let request = http::Request::get("http://orders/").body(empty()).unwrap();
        sender.send_request(request)
    };
    let both = join_all([ask(), ask()]);
    let both = tokio::spawn(both);
    eventually("both", async || (held.requests() == 2).then_some(())).await;
    let other = shop.mesh.pod("orders-2", "orders");
    shop.replicas.push(Replica::of(&shop.mesh, other).await);
    shop.until_endpoints(2).await;
    dies.kill().await;
    for answer in within("both answers", both).await.unwrap() {
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 502);
        assert_eq!(answer.headers()["remora-proxy-error"], "upstream-reset");
    }
    for _ in 0..20 {
        assert_eq!(within("an answer", ask()).await.unwrap().status(), 200);
    }
}
