//! Things that change under load: certificates, the control plane, replicas, proxies that end.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Request;
use hyper::client::conn::{http1, http2};
use remora_tests::{
    mesh::{Mesh, Pair},
    origin::{Answer, Body, Origin, Speaks, empty, full, get, h1, h2},
    wait::{eventually, within},
    wire::{App, Wire},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

/// A few clients that ask without a break until told to stop.
pub(crate) struct Load {
    done: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// Two clients keep their connection, two make a new one for each request.
    pub(crate) fn start(entry: SocketAddr) -> Self {
        Self::of(entry, Speaks::H1)
    }

    fn of(entry: SocketAddr, speaks: Speaks) -> Self {
        let (done, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let client = |kept: bool| {
            let (done, stop) = (Arc::clone(&done), Arc::clone(&stop));
            tokio::spawn(async move {
                let (mut bad, mut one, mut two) = (Vec::new(), None, None);
                while !stop.load(Ordering::Relaxed) {
                    let result = match speaks {
                        Speaks::H1 => ask(entry, &mut one).await,
                        Speaks::H2 => ask_h2(entry, &mut two).await,
                    };
                    match result {
                        Ok(answer) if answer.status == 200 => {}
                        other => bad.push(format!("{other:?}")),
                    }
                    if !kept {
                        (one, two) = (None, None);
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                    // Leaves the machine to the others as well.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                bad
            })
        };
        let clients = [true, true, false, false].map(client).into();
        Self { done, stop, clients }
    }

    /// Waits for so many more requests.
    pub(crate) async fn passes(&self, more: usize) {
        let target = self.done.load(Ordering::Relaxed) + more;
        eventually("requests to be answered", || async {
            (self.done.load(Ordering::Relaxed) >= target).then_some(())
        })
        .await;
    }

    /// Ends it; not one request may have failed.
    pub(crate) async fn without_failures(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            let bad = within("a client's end", client).await.unwrap();
            assert!(bad.is_empty(), "{} failed, first {}", bad.len(), bad[0]);
        }
        assert!(self.done.load(Ordering::Relaxed) > 0);
    }
}

/// One request over the connection at hand, or over a new one where that was closed in order.
async fn ask(
    entry: SocketAddr,
    sender: &mut Option<http1::SendRequest<Body>>,
) -> Result<Answer, hyper::Error> {
    let mut kept = sender.take();
    if let Some(known) = &mut kept
        && known.ready().await.is_err()
    {
        kept = None;
    }
    let mut usable = match kept {
        Some(known) => known,
        None => h1(entry).await,
    };
    let request = Request::get("/").header("host", "orders").body(empty()).unwrap();
    let answer = Answer::read(within("an answer", usable.send_request(request)).await?).await?;
    *sender = Some(usable);
    Ok(answer)
}

/// The same over HTTP/2.
async fn ask_h2(
    entry: SocketAddr,
    sender: &mut Option<http2::SendRequest<Body>>,
) -> Result<Answer, hyper::Error> {
    let sender = match sender {
        Some(sender) => sender,
        none => none.insert(h2(entry).await),
    };
    let request = Request::post("http://orders/").body(full("order")).unwrap();
    Answer::read(within("an answer", sender.send_request(request)).await?).await
}

#[tokio::test]
async fn certificates_rotate_under_load_without_a_failure() {
    let mut mesh = Mesh::new();
    mesh.leaf_lifetime = Duration::from_secs(10);
    let pair = Pair::in_mesh(mesh, &[]).await;
    let _origin = Origin::saying(pair.server.pod.app(), "hello").await;
    let load = Load::start(pair.entry());
    load.passes(50).await;
    let serials =
        [pair.client.certs().await["serial"].clone(), pair.server.certs().await["serial"].clone()];
    for (sidecar, old) in [&pair.client, &pair.server].into_iter().zip(serials) {
        eventually("a new certificate", || async {
            (sidecar.certs().await["serial"] != old).then_some(())
        })
        .await;
    }
    load.passes(100).await;
    load.without_failures().await;
    assert!(pair.client.metric("remora_identity_cert_refreshes_total", &[]).await >= 2);
}

#[tokio::test]
async fn traffic_goes_on_without_the_control_plane_and_its_return_brings_what_changed() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[]);
    mesh.service("stock", &[]);
    let (web, orders) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
    mesh.start_plane().await;
    let (client, _server) =
        tokio::join!(mesh.sidecar(&web, &["orders", "stock"]), mesh.sidecar(&orders, &[]));
    let _origin = Origin::saying(orders.app(), "hello").await;
    let load = Load::start(client.entry("orders"));
    load.passes(50).await;
    mesh.kill_plane().await;
    eventually("the proxy to notice", || async {
        (client.metric("remora_discovery_connected", &[]).await == 0).then_some(())
    })
    .await;
    load.passes(100).await;
    assert_eq!(client.get("/ready").await.0, 200, "what is known stays in force");
    // What nobody asked for before is not known; it is answered, not left to hang.
    let unknown = get(client.entry("stock")).await.unwrap();
    assert_eq!((unknown.status, unknown.reason()), (504, Some("discovery-timeout")));
    // Meanwhile the world moves on.
    let second = mesh.plain_pod("orders-2", "orders");
    let second_origin = Origin::saying(second.app(), "second").await;
    mesh.start_plane().await;
    client.until("remora_discovery_connected", &[], 1).await;
    client.until_endpoints("orders", 2).await;
    eventually("traffic for the new endpoint", || async {
        (second_origin.requests() > 0).then_some(())
    })
    .await;
    load.without_failures().await;
}

/// One of two replicas is told to end before anybody else knows, which is the hard order.
async fn a_replica_leaves(speaks: Speaks) {
    let mut mesh = Mesh::new();
    mesh.grace = Duration::from_secs(10);
    mesh.service("orders", &[]);
    let web = mesh.pod("web", "web");
    let pods = [mesh.pod("orders-1", "orders"), mesh.pod("orders-2", "orders")];
    mesh.start_plane().await;
    let (client, _stays, leaves) = tokio::join!(
        mesh.sidecar(&web, &["orders"]),
        mesh.sidecar(&pods[0], &[]),
        mesh.sidecar(&pods[1], &[])
    );
    // Long enough that requests are under way at any moment.
    let busy = |_| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        http::Response::new(full("hello"))
    };
    let _origins = [
        Origin::serve(pods[0].app(), speaks, busy).await,
        Origin::serve(pods[1].app(), speaks, busy).await,
    ];
    let load = Load::of(client.entry("orders"), speaks);
    leaves.until("remora_inbound_http_requests_total", &[("tls", "mtls")], 10).await;
    leaves.terminate();
    load.passes(60).await;
    mesh.remove_pod(&pods[1]);
    client.until_endpoints("orders", 1).await;
    leaves.ended().await;
    load.passes(60).await;
    load.without_failures().await;
}

#[tokio::test]
async fn a_replica_that_drains_and_leaves_loses_no_request() {
    a_replica_leaves(Speaks::H1).await;
}

#[tokio::test]
async fn a_replica_that_drains_and_leaves_loses_no_stream() {
    a_replica_leaves(Speaks::H2).await;
}

#[tokio::test]
async fn a_sidecar_that_is_cut_off_costs_nothing_that_may_be_retried() {
    let mut mesh = Mesh::new();
    mesh.grace = Duration::ZERO;
    mesh.service("orders", &[("retry.remora.io/http", "502-504"), ("retry.remora.io/limit", "3")]);
    let web = mesh.pod("web", "web");
    let pods = [mesh.pod("orders-1", "orders"), mesh.pod("orders-2", "orders")];
    mesh.start_plane().await;
    let (client, _stays, dies) = tokio::join!(
        mesh.sidecar(&web, &["orders"]),
        mesh.sidecar(&pods[0], &[]),
        mesh.sidecar(&pods[1], &[])
    );
    let slow = |_| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        http::Response::new(full("hello"))
    };
    let _origins = [
        Origin::serve(pods[0].app(), Speaks::H1, slow).await,
        Origin::serve(pods[1].app(), Speaks::H1, slow).await,
    ];
    let load = Load::start(client.entry("orders"));
    dies.until("remora_inbound_http_requests_total", &[("tls", "mtls")], 10).await;
    dies.terminate();
    dies.ended().await;
    load.passes(100).await;
    load.without_failures().await;
}

#[tokio::test]
async fn a_proxy_that_ends_finishes_what_is_in_flight_and_says_so() {
    let mut mesh = Mesh::new();
    mesh.grace = Duration::from_secs(10);
    let pair = Pair::in_mesh(mesh, &[]).await;
    let app = App::listen(pair.server.pod.app()).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut server = app.accept().await;
    server.head().await;
    pair.client.terminate();
    eventually("new connections to be refused", || async {
        tokio::net::TcpStream::connect(pair.entry()).await.is_err().then_some(())
    })
    .await;
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast").await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("connection")), (200, Some("close")));
    client.expect("last").await;
    assert!(client.rest().await.unwrap().is_empty());
    let Pair { client, .. } = pair;
    client.ended().await;
}

#[tokio::test]
async fn a_proxy_that_ends_says_goaway_and_finishes_its_streams() {
    let mut mesh = Mesh::new();
    mesh.grace = Duration::from_secs(10);
    let pair = Pair::in_mesh(mesh, &[]).await;
    let go = Arc::new(tokio::sync::Notify::new());
    let gate = Arc::clone(&go);
    let origin = Origin::serve(pair.server.pod.app(), Speaks::H2, move |_| {
        let gate = Arc::clone(&gate);
        async move {
            gate.notified().await;
            http::Response::new(full("last"))
        }
    })
    .await;
    let stream = Wire::dial(pair.entry()).await.into_stream();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut sender = within("room for a stream", sender.ready()).await.unwrap();
    let request = Request::get("http://orders/").body(()).unwrap();
    let (answer, _) = sender.send_request(request, true).unwrap();
    eventually("the call", || async { (origin.requests() == 1).then_some(()) }).await;
    pair.client.drain().await;
    // A connection that was told to go away takes no further stream.
    eventually("GOAWAY", || {
        let sender = sender.clone();
        async move { sender.ready().await.err().filter(h2::Error::is_go_away) }
    })
    .await;
    go.notify_one();
    let mut body = within("the answer", answer).await.unwrap().into_body();
    assert_eq!(&within("its body", body.data()).await.unwrap().unwrap()[..], b"last");
}

#[tokio::test]
async fn an_open_connection_of_bytes_is_cut_when_the_grace_period_is_over() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("\x01hello").await;
    let mut server = app.accept().await;
    server.expect("\x01hello").await;
    pair.client.terminate();
    let _ = client.rest().await;
    let _ = server.rest().await;
    let Pair { client, .. } = pair;
    client.ended().await;
}

#[tokio::test]
async fn a_draining_proxy_is_not_ready_but_alive() {
    let pair = Pair::start(&[]).await;
    assert_eq!(pair.client.get("/ready").await.0, 200);
    pair.client.drain().await;
    assert_eq!(pair.client.get("/ready").await.0, 503);
    assert_eq!(pair.client.get("/live").await.0, 200);
}

#[tokio::test]
async fn a_service_that_is_deleted_and_made_anew_is_found_again() {
    let (pair, app) = Pair::with_app(&[]).await;
    drop(app);
    let _origin = Origin::saying(pair.server.pod.app(), "hello").await;
    let mut sender = None;
    assert_eq!(ask(pair.entry(), &mut sender).await.unwrap().status, 200);
    pair.mesh.remove_service("orders");
    eventually("new connections to be reset", || async {
        let Ok(mut stream) = TcpStream::connect(pair.entry()).await else { return Some(()) };
        let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
        (asked.is_err() || stream.read_u8().await.is_err()).then_some(())
    })
    .await;
    let gone = ask(pair.entry(), &mut sender).await.unwrap();
    let reason = gone.reason().map(str::to_owned);
    assert_eq!((gone.status, reason.as_deref()), (404, Some("no-route")));
    pair.mesh.service("orders", &[]);
    eventually("the kept connection to work again", async || {
        let answer = ask(pair.entry(), &mut sender).await;
        answer.is_ok_and(|answer| answer.status == 200).then_some(())
    })
    .await;
}
