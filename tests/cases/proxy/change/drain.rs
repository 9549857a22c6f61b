//! A proxy that ends: what is under way is finished, what is idle is told, and all is over in time.

use std::{io::ErrorKind, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use http::Request;
use remora_tests::{
    mesh::{Mesh, Pair},
    origin::{Origin, Speaks, full},
    sidecar::Sidecar,
    wait::{eventually, within},
    wire::{App, Wire},
};
use tokio::{net::TcpStream, sync::Notify, time::Instant};

/// Longer than anything here takes: what waits for its end has not ended by itself.
const LONG: Duration = Duration::from_secs(60);
/// Idle connections are over after this time.
const LINGER: Duration = Duration::from_secs(1);
/// Busy machines are late.
const LATE: Duration = Duration::from_secs(4);

/// Who drains, and who calls.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// The caller's own proxy.
    Out,
    /// The server's, while a caller without a proxy calls.
    In,
    /// The server's, while one with a proxy calls.
    Mesh,
}

const ALL: [Way; 3] = [Way::Out, Way::In, Way::Mesh];

struct Drain {
    way: Way,
    pair: Pair,
}

impl Drain {
    async fn of(way: Way, grace: Duration) -> Self {
        let mut mesh = Mesh::new();
        mesh.grace = grace;
        Self { way, pair: Pair::in_mesh(mesh, &[]).await }
    }

    async fn with_app(way: Way, grace: Duration) -> (Self, App) {
        let drain = Self::of(way, grace).await;
        let app = App::listen(drain.pair.server.pod.app()).await;
        (drain, app)
    }

    /// Where the client dials.
    fn entry(&self) -> SocketAddr {
        if self.way == Way::In { self.pair.server.pod.address() } else { self.pair.entry() }
    }

    fn sidecar(&self) -> &Sidecar {
        if self.way == Way::Out { &self.pair.client } else { &self.pair.server }
    }

    /// SIGTERM, and its effect.
    async fn terminate(&self) -> Instant {
        let at = Instant::now();
        self.sidecar().terminate();
        eventually("the proxy to drain", async || {
            let (status, why) = self.sidecar().get("/ready").await;
            (status == 503 && why.contains("draining")).then_some(())
        })
        .await;
        at
    }

    /// Waits for the process's end.
    async fn ended(self) {
        let Pair { client, server, mesh: _mesh } = self.pair;
        let (ends, _other) = if self.way == Way::Out { (client, server) } else { (server, client) };
        ends.ended().await;
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: orders\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";

fn ask() -> Request<()> {
    Request::get("http://orders/").body(()).unwrap()
}

#[tokio::test]
async fn it_is_not_ready_at_once_and_nobody_listens() {
    join_all([Way::Out, Way::In].map(async |way| {
        let (drain, app) = Drain::with_app(way, LONG).await;
        let mut client = Wire::dial(drain.entry()).await;
        client.send(GET).await;
        let _held = app.accept().await;
        drain.terminate().await;
        assert_eq!(drain.sidecar().get("/live").await.0, 200);
        eventually("new connections to be refused", async || {
            let dialled = TcpStream::connect(drain.entry()).await;
            dialled.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused).then_some(())
        })
        .await;
    }))
    .await;
}

#[tokio::test]
async fn requests_in_flight_are_answered_and_told_that_it_was_the_last() {
    join_all(ALL.map(async |way| {
        let (drain, app) = Drain::with_app(way, LONG).await;
        let mut client = Wire::dial(drain.entry()).await;
        client.send(GET).await;
        let mut server = app.accept().await;
        server.head().await;
        let began = drain.terminate().await;
        tokio::time::sleep_until(began + LINGER * 2).await;
        server.send(OK).await;
        server.send("last").await;
        let head = client.head().await;
        let told = (way != Way::Mesh).then_some("close");
        assert_eq!((head.status(), head.get("connection")), (200, told), "{way:?}");
        client.expect("last").await;
        if told.is_some() {
            assert!(client.rest().await.unwrap().is_empty());
        }
        within("its end", drain.ended()).await;
    }))
    .await;
}

#[tokio::test]
async fn streams_in_flight_are_answered_after_goaway() {
    join_all(ALL.map(async |way| {
        let drain = Drain::of(way, LONG).await;
        let go = Arc::new(Notify::new());
        let gate = Arc::clone(&go);
        let origin = Origin::serve(drain.pair.server.pod.app(), Speaks::H2, move |_| {
            let gate = Arc::clone(&gate);
            async move {
                gate.notified().await;
                http::Response::new(full("last"))
            }
        })
        .await;
        let stream = Wire::dial(drain.entry()).await.into_stream();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut sender = within("room for a stream", sender.ready()).await.unwrap();
        let (answer, _) = sender.send_request(ask(), true).unwrap();
        eventually("the call", async || (origin.requests() == 1).then_some(())).await;
        drain.terminate().await;
        if way != Way::Mesh {
            // A connection that was told to go away takes no further stream.
            eventually("GOAWAY", async || {
                sender.clone().ready().await.err().filter(h2::Error::is_go_away)
            })
            .await;
        }
        go.notify_one();
        let mut body = within("the answer", answer).await.unwrap().into_body();
        assert_eq!(&within("its body", body.data()).await.unwrap().unwrap()[..], b"last");
        within("its end", drain.ended()).await;
        connection.abort();
    }))
    .await;
}

#[tokio::test]
async fn idle_connections_that_nobody_closes_hold_up_the_end_for_a_moment_only() {
    join_all(ALL.map(async |way| {
        let drain = Drain::of(way, LONG).await;
        let _origin = Origin::serve(drain.pair.server.pod.app(), Speaks::Any, async |_| {
            http::Response::new(full("done"))
        })
        .await;
        let mut http1 = Wire::dial(drain.entry()).await;
        http1.send(GET).await;
        http1.until("done").await;
        let stream = Wire::dial(drain.entry()).await.into_stream();
        let (mut http2, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let (answer, _) = http2.send_request(ask(), true).unwrap();
        assert_eq!(within("an answer", answer).await.unwrap().status(), 200);
        let began = drain.terminate().await;
        drain.ended().await;
        let took = began.elapsed();
        assert!(took >= LINGER && took < LINGER + LATE, "{way:?}: {took:?}");
        connection.abort();
    }))
    .await;
}

#[tokio::test]
async fn a_request_that_was_on_its_way_to_an_idle_connection_is_answered() {
    join_all([Way::Out, Way::In].map(async |way| {
        let (drain, app) = Drain::with_app(way, LONG).await;
        let mut client = Wire::dial(drain.entry()).await;
        client.send(GET).await;
        let mut server = app.accept().await;
        server.head().await;
        server.send(OK).await;
        server.send("once").await;
        client.until("once").await;
        drain.terminate().await;
        client.send(GET).await;
        server.head().await;
        server.send(OK).await;
        server.send("more").await;
        assert_eq!(client.head().await.get("connection"), Some("close"));
        client.expect("more").await;
    }))
    .await;
}

/// Its head left before anything was known, so the client could not be told.
#[tokio::test]
async fn the_request_after_an_answer_that_took_long_is_answered() {
    join_all([Way::Out, Way::In].map(async |way| {
        let (drain, app) = Drain::with_app(way, LONG).await;
        let mut client = Wire::dial(drain.entry()).await;
        client.send(GET).await;
        let mut server = app.accept().await;
        server.head().await;
        server.send(OK).await;
        assert_eq!(client.head().await.get("connection"), None);
        let began = drain.terminate().await;
        tokio::time::sleep_until(began + LINGER * 2).await;
        server.send("long").await;
        client.expect("long").await;
        // It takes a moment to think of the next one.
        tokio::time::sleep(LINGER / 5).await;
        client.send(GET).await;
        let mut server = within("the next request", next(server, &app)).await;
        server.send(OK).await;
        server.send("next").await;
        assert_eq!(client.head().await.get("connection"), Some("close"), "{way:?}");
        client.expect("next").await;
    }))
    .await;
}

/// The connection on which the next request comes, its head read.
async fn next(mut known: Wire, app: &App) -> Wire {
    tokio::select! {
        biased;
        _ = known.head() => known,
        mut other = app.accept() => { other.head().await; other }
    }
}

#[tokio::test]
async fn what_left_http_and_what_never_was_goes_on_until_the_deadline_and_then_breaks() {
    let grace = LINGER * 2;
    let upgrade = "GET / HTTP/1.1\r\nHost: orders\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";
    let switch = "HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";
    let each = |upgraded: bool| {
        move |way: Way| async move {
            let (drain, app) = Drain::with_app(way, grace).await;
            let mut client = Wire::dial(drain.entry()).await;
            client.send(if upgraded { upgrade } else { "\x01hello" }).await;
            let mut server = app.accept().await;
            if upgraded {
                server.head().await;
                server.send(switch).await;
                assert_eq!(client.head().await.status(), 101);
            } else {
                server.expect("\x01hello").await;
            }
            let began = drain.terminate().await;
            let mut tick = tokio::time::interval(Duration::from_millis(50));
            while began.elapsed() < grace - Duration::from_millis(300) {
                client.send("up").await;
                server.expect("up").await;
                server.send("down").await;
                client.expect("down").await;
                tick.tick().await;
            }
            // Neither side may take it for an orderly end.
            for end in [client.rest().await, server.rest().await] {
                let error = end.expect_err("a reset").kind();
                assert_eq!(error, ErrorKind::ConnectionReset, "{way:?}, upgraded: {upgraded}");
            }
            drain.ended().await;
            let took = began.elapsed();
            assert!(took >= grace && took < grace + LATE, "{way:?}: {took:?}");
        }
    };
    tokio::join!(join_all(ALL.map(each(false))), join_all(ALL.map(each(true))));
}

/// Its length is told by its end, so that an orderly end would pass the part for the whole.
#[tokio::test]
async fn an_answer_that_is_cut_at_the_deadline_does_not_look_whole() {
    join_all(ALL.map(async |way| {
        let (drain, app) = Drain::with_app(way, LINGER / 2).await;
        let mut client = Wire::dial(drain.entry()).await;
        client.send("GET / HTTP/1.0\r\n\r\n").await;
        let mut server = app.accept().await;
        server.head().await;
        server.send("HTTP/1.1 200 OK\r\n\r\nthe first part").await;
        client.until("the first part").await;
        drain.terminate().await;
        let error = client.rest().await.expect_err("a reset").kind();
        assert_eq!(error, ErrorKind::ConnectionReset, "{way:?}");
        drain.ended().await;
    }))
    .await;
}

#[tokio::test]
async fn streams_that_are_cut_at_the_deadline_do_not_hold_up_the_end() {
    let grace = LINGER / 2;
    join_all(ALL.map(async |way| {
        let drain = Drain::of(way, grace).await;
        let origin =
            Origin::serve(drain.pair.server.pod.app(), Speaks::H2, |_| std::future::pending())
                .await;
        let stream = Wire::dial(drain.entry()).await.into_stream();
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let (answer, _) = sender.send_request(ask(), true).unwrap();
        eventually("the call", async || (origin.requests() == 1).then_some(())).await;
        let began = drain.terminate().await;
        match within("an answer or none", answer).await {
            // What the proxy that stays says of the one that was cut.
            Ok(answer) => assert_eq!((way, answer.status().as_u16()), (Way::Mesh, 502)),
            Err(_) => assert_ne!(way, Way::Mesh),
        }
        drain.ended().await;
        let took = began.elapsed();
        assert!(took >= grace && took < grace + LATE, "{way:?}: {took:?}");
    }))
    .await;
}
