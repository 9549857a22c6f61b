//! More than a proxy has room for, and callers that mean harm: bounded, answered, and no matter to
//! the others.

use std::{net::SocketAddr, time::Duration};

use remora_tests::{
    mesh::{Mesh, Pair},
    origin::{Origin, Speaks, full, get},
    wait::{PATIENCE, eventually, within},
    wire::{App, Wire},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

/// The usual picture, with so many places in the caller's proxy or in the other one.
async fn small(caller: Option<u16>, other: Option<u16>) -> Pair {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[]);
    let (web, orders) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
    mesh.start_plane().await;
    mesh.max_connections = other;
    let server = mesh.sidecar(&orders, &[]).await;
    mesh.max_connections = caller;
    let client = mesh.sidecar(&web, &["orders"]).await;
    Pair { mesh, client, server }
}

async fn dial_from(source: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((source, 0))).unwrap();
    within("a dial", socket.connect(to)).await.unwrap()
}

#[tokio::test]
async fn a_connection_for_which_there_is_no_place_is_told_so() {
    let pair = small(Some(3), None).await;
    let app = App::listen(pair.server.pod.app()).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut client = Wire::dial(pair.entry()).await;
        client.send("\x01hello").await;
        let mut server = app.accept().await;
        server.expect("\x01hello").await;
        held.push((client, server));
    }
    let answer = get(pair.entry()).await.unwrap();
    assert_eq!((answer.status, answer.reason()), (503, Some("overloaded")), "{answer:?}");
    assert_eq!(answer.headers["retry-after"], "1");
    let mut bytes = Wire::dial(pair.entry()).await;
    bytes.send("\x01hello").await;
    assert!(bytes.rest().await.is_err(), "a reset: bytes cannot be told");
    let counted = [("direction", "outbound"), ("reason", "overloaded")];
    pair.client.until("remora_proxy_errors_total", &counted, 2).await;
    // And as soon as there is a place again, all is well.
    held.pop();
    eventually("a place", async || {
        let mut client = Wire::dial(pair.entry()).await;
        client.send("\x01again").await;
        let mut byte = [0; 1];
        let refused = client.stream().read(&mut byte);
        tokio::select! {
            _ = refused => None,
            mut server = app.accept() => { server.expect("\x01again").await; Some(()) }
        }
    })
    .await;
}

#[tokio::test]
async fn one_address_that_takes_all_it_gets_keeps_nobody_else_out() {
    let pair = small(None, Some(40)).await;
    let _origin = Origin::saying(pair.server.pod.app(), "hello").await;
    let to = pair.server.pod.address();
    let mut greedy = Vec::new();
    for _ in 0..40 {
        greedy.push(dial_from([127, 1, 1, 1], to).await);
    }
    let refused = [("direction", "inbound"), ("reason", "overloaded")];
    pair.server.until("remora_proxy_errors_total", &refused, 20).await;
    for n in 2..6 {
        let mut other = Wire::new(dial_from([127, 1, 1, n], to).await);
        other.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(other.head().await.status(), 200);
    }
    // Callers in the mesh included.
    assert_eq!(get(pair.entry()).await.unwrap().status, 200);
}

/// Slow loris: many connections that begin a request and never end it.
#[tokio::test]
async fn heads_that_never_end_hold_nobody_up() {
    let pair = Pair::start(&[]).await;
    let _origin = Origin::saying(pair.server.pod.app(), "hello").await;
    let mut loris = Vec::new();
    for n in 0..200 {
        let mut client = Wire::dial(pair.server.pod.address()).await;
        client.send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\nX: ")).await;
        loris.push(client);
    }
    for _ in 0..20 {
        for client in &mut loris {
            client.send("x").await;
        }
        assert_eq!(get(pair.entry()).await.unwrap().status, 200);
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// HEADERS of `GET / http a`, from the static table and one literal (RFC 7541 §6).
fn headers(stream: u32, flags: u8) -> Vec<u8> {
    frame(1, flags, stream, b"\x82\x84\x86\x41\x01a")
}

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Most bytes that the kernel holds between two sockets: Linux's `tcp_wmem` and `tcp_rmem`.
const SOCKET_BUFFERS: usize = 10 << 20;

/// Sends the same again and again until the proxy has had enough, while somebody else is served.
async fn is_cut_off(name: &str, begin: Vec<u8>, again: impl Fn(u32) -> Vec<u8>) {
    let pair = Pair::start(&[]).await;
    // Slow enough that streams which are cancelled at once have something to cancel.
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |_| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        http::Response::new(full("hello"))
    })
    .await;
    let stream = within("a dial", TcpStream::connect(pair.server.pod.address())).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let frame_len = again(0).len();
    let reading = tokio::spawn(async move {
        let mut sink = vec![0; 64 * 1024];
        while matches!(read.read(&mut sink).await, Ok(1..)) {}
    });
    let flood = async {
        write.write_all(&[PREFACE, &frame(4, 0, 0, &[]), &begin].concat()).await.unwrap();
        let mut sent = 0;
        loop {
            let batch: Vec<u8> = (0..500).flat_map(|n| again(sent + n)).collect();
            sent += 500;
            if write.write_all(&batch).await.is_err() {
                return sent;
            }
        }
    };
    let other = async {
        let mut sender = remora_tests::origin::h2(pair.entry()).await;
        loop {
            let request = http::Request::get("http://orders/").body(full("")).unwrap();
            let answer = within("an answer", sender.send_request(request)).await.unwrap();
            assert_eq!(answer.status(), 200, "{name}: the other caller");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let sent = tokio::time::timeout(PATIENCE, async {
        tokio::select! {
            sent = flood => sent,
            never = other => never,
        }
    });
    let sent = sent.await.unwrap_or_else(|_| panic!("{name} goes on without end"));
    // What waits in the kernel when the connection is cut was sent and never read.
    let most = 200_000 + SOCKET_BUFFERS / frame_len;
    assert!(usize::try_from(sent).unwrap() <= most, "{name}: {sent} frames of {most}");
    reading.await.unwrap();
}

#[tokio::test]
async fn a_flood_of_pings_is_cut_off() {
    is_cut_off("PING", Vec::new(), |_| frame(6, 0, 0, &[0; 8])).await;
}

#[tokio::test]
async fn a_flood_of_settings_is_cut_off() {
    is_cut_off("SETTINGS", Vec::new(), |_| frame(4, 0, 0, &[0, 4, 0, 1, 0, 0])).await;
}

#[tokio::test]
async fn a_flood_of_priorities_is_cut_off() {
    is_cut_off("PRIORITY", Vec::new(), |n| frame(2, 0, 2 * n + 1, &[0, 0, 0, 0, 9])).await;
}

/// No window counts them, and each is queued for the application.
#[tokio::test]
async fn a_flood_of_empty_data_is_cut_off() {
    let open = headers(1, END_HEADERS);
    is_cut_off("empty DATA", open.clone(), |_| frame(0, 0, 1, &[])).await;
    is_cut_off("padding only", open, |_| frame(0, 8, 1, &[3, 0, 0, 0])).await;
}

#[tokio::test]
async fn a_flood_of_window_updates_is_cut_off() {
    let open = headers(1, END_HEADERS);
    is_cut_off("WINDOW_UPDATE", open, |_| frame(8, 0, 1, &[0, 0, 0, 1])).await;
}

/// Streams that are begun and cancelled at once (CVE-2023-44487).
#[tokio::test]
async fn rapid_reset_is_cut_off() {
    is_cut_off("rapid reset", Vec::new(), |n| {
        let stream = 2 * n + 1;
        let cancel = frame(3, 0, stream, &[0, 0, 0, 8]);
        [headers(stream, END_HEADERS | END_STREAM), cancel].concat()
    })
    .await;
}

/// A head that never ends (VU#421644).
#[tokio::test]
async fn a_flood_of_continuations_is_cut_off() {
    let open = headers(1, 0);
    is_cut_off("CONTINUATION", open, |_| frame(9, 0, 1, b"\x00\x01x\x01y")).await;
}

#[tokio::test]
async fn a_flood_of_frames_that_nobody_knows_is_cut_off() {
    is_cut_off("unknown", Vec::new(), |_| frame(0xfa, 0, 0, &[])).await;
}
