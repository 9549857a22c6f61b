//! What a proxy takes of its machine: memory while much goes through it, and file descriptors when there
//! are no more.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use remora_tests::{
    mesh::{Mesh, Pod},
    origin::{Body, Origin, Speaks, full, get, h1, h2},
    process::Process,
    wait::{eventually, within},
    wire::{App, Wire},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_remora-under-test");
const MIB: u64 = 1 << 20;
/// Carried each way; of HTTP/2 less, which takes a proxy that is not optimised long.
const MUCH: u64 = 1024 * MIB;
const MUCH_H2: u64 = 64 * MIB;
/// What memory may grow by meanwhile.
const MORE: u64 = MIB;
/// For all of it.
const LONG: Duration = Duration::from_secs(240);

/// The usual picture, in processes of their own.
struct Pair {
    client: Process,
    server: Process,
    pod: Pod,
    _mesh: Mesh,
}

impl Pair {
    async fn start(descriptors: Option<u32>) -> Self {
        let mut mesh = Mesh::new();
        mesh.service("orders", &[]);
        // So that descriptors run out first: who finds no place is told so, which is another test.
        mesh.max_connections = descriptors.map(|_| 1000);
        let (web, pod) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
        mesh.start_plane().await;
        let client = mesh.process(PROGRAM, &web, &["orders"], descriptors);
        let server = mesh.process(PROGRAM, &pod, &[], None);
        tokio::join!(client.ready(), server.ready());
        Self { client, server, pod, _mesh: mesh }
    }

    /// Carries so many bytes, some at a time and some before, and looks at the memory of both proxies
    /// meanwhile.
    async fn stays_small(&self, what: &str, bytes: u64, mut carry: impl AsyncFnMut(u64)) {
        carry(16 * MIB).await;
        let proxies = [&self.client, &self.server];
        let before = proxies.map(Process::memory);
        let mut most = before;
        for _ in 0..8 {
            timeout(LONG, carry(bytes / 8)).await.expect("in time");
            for (most, proxy) in most.iter_mut().zip(proxies) {
                *most = (*most).max(proxy.memory());
            }
        }
        for (before, most) in before.iter().zip(most) {
            assert!(most <= before + MORE, "{what}: {before} bytes, and then {most}");
        }
    }
}

async fn pour(mut to: impl AsyncWrite + Unpin, bytes: u64) {
    let chunk = vec![0x55; 64 << 10];
    let mut left = bytes;
    while left > 0 {
        let n = left.min(chunk.len() as u64);
        to.write_all(&chunk[..usize::try_from(n).unwrap()]).await.unwrap();
        left -= n;
    }
}

async fn take(mut from: impl AsyncRead + Unpin, bytes: u64) {
    let mut sink = vec![0; 64 << 10];
    let mut left = bytes;
    while left > 0 {
        let n = from.read(&mut sink).await.unwrap() as u64;
        assert!(n > 0, "it ended early");
        left -= n;
    }
}

/// One connection for all of it.
#[tokio::test]
async fn bytes_both_ways_at_once_leave_memory_as_it_is() {
    let pair = Pair::start(None).await;
    let app = App::listen(pair.pod.app()).await;
    let mut client = Wire::dial(pair.client.entry()).await;
    client.send("\x01").await;
    let mut server = app.accept().await;
    server.expect("\x01").await;
    let (mut client, mut server) = (client.into_stream(), server.into_stream());
    pair.stays_small("bytes", MUCH, async |bytes| {
        let ((from_server, to_server), (from_client, to_client)) = (client.split(), server.split());
        tokio::join!(
            pour(to_server, bytes),
            take(from_client, bytes),
            pour(to_client, bytes),
            take(from_server, bytes)
        );
    })
    .await;
}

/// A body of so many bytes that is made as it is sent.
fn long(bytes: u64) -> Body {
    let chunk = Bytes::from(vec![0x55; 64 << 10]);
    let chunks = bytes / chunk.len() as u64;
    let frames = (0..chunks).map(move |_| Ok(http_body::Frame::data(chunk.clone())));
    http_body_util::StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

async fn length(body: impl http_body::Body<Data = Bytes, Error = hyper::Error>) -> u64 {
    let mut body = std::pin::pin!(body);
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame.unwrap().into_data().map_or(0, |data| data.len() as u64);
    }
    bytes
}

/// Uploads and downloads of any length, on one connection.
async fn bodies_leave_memory_as_it_is(speaks: Speaks) {
    let pair = Pair::start(None).await;
    let _origin = Origin::serve(pair.pod.app(), speaks, |request: Request<_>| async move {
        let wanted = request.uri().path().trim_start_matches('/').parse().unwrap();
        let body = request.into_body();
        match wanted {
            0 => Response::new(full(length(body).await.to_string())),
            wanted => Response::new(long(wanted)),
        }
    })
    .await;
    let sender = match speaks {
        Speaks::H1 => (Some(h1(pair.client.entry()).await), None),
        Speaks::H2 | Speaks::Any => (None, Some(h2(pair.client.entry()).await)),
    };
    let (mut one, mut two) = sender;
    let mut send = async |path: u64, body: Body| {
        let origin = if speaks == Speaks::H1 { "" } else { "http://orders" };
        let request = Request::post(format!("{origin}/{path}")).header("host", "orders");
        let request = request.body(body).unwrap();
        match (&mut one, &mut two) {
            (Some(sender), _) => {
                within("readiness", sender.ready()).await.unwrap();
                sender.send_request(request).await.unwrap()
            }
            (_, Some(sender)) => sender.send_request(request).await.unwrap(),
            _ => unreachable!(),
        }
    };
    let much = if speaks == Speaks::H1 { MUCH } else { MUCH_H2 };
    pair.stays_small(&format!("{speaks:?}"), much, async |bytes| {
        let up = send(0, long(bytes)).await.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(up, bytes.to_string());
        let down = send(bytes, full("")).await;
        assert_eq!(length(down.into_body()).await, bytes);
    })
    .await;
}

#[tokio::test]
async fn bodies_of_http_1_leave_memory_as_it_is() {
    bodies_leave_memory_as_it_is(Speaks::H1).await;
}

#[tokio::test]
async fn bodies_of_http_2_leave_memory_as_it_is() {
    bodies_leave_memory_as_it_is(Speaks::H2).await;
}

/// A client that has begun a request, and takes a descriptor of the proxy for that.
async fn begin(entry: SocketAddr) -> Wire {
    let mut client = Wire::dial(entry).await;
    client.send("GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n").await;
    client
}

#[tokio::test]
async fn without_descriptors_a_proxy_waits_without_a_fuss_and_serves_whoever_is_still_there() {
    const MOST: u32 = 96;
    let pair = Pair::start(Some(MOST)).await;
    let _origin = Origin::saying(pair.pod.app(), "hello").await;
    assert_eq!(get(pair.client.entry()).await.unwrap().status, 200);
    let mut held = Vec::new();
    while pair.client.descriptors() < MOST as usize {
        held.push(begin(pair.client.entry()).await);
        assert!(held.len() < 4 * MOST as usize, "{} open", pair.client.descriptors());
    }
    // These wait to be accepted.
    let mut waiting = Vec::new();
    for _ in 0..5 {
        waiting.push(begin(pair.client.entry()).await);
    }
    let before = pair.client.ticks();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = pair.client.ticks() - before;
    assert!(spent <= 10, "{spent} hundredths of a second for nothing");
    drop(held);
    for client in &mut waiting {
        client.send("\r\n").await;
        let head = client.head().await;
        assert_eq!(head.status(), 200, "{head:?}");
    }
    eventually("all descriptors back", async || {
        (pair.client.descriptors() < MOST as usize / 2).then_some(())
    })
    .await;
}
