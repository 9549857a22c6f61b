//! A port-forward: bytes to a pod's port by way of the API server and the kubelet, over one
//! WebSocket (`v4.channel.k8s.io`). They arrive at the pod's own loopback, so that who may do this
//! is what RBAC says of `pods/portforward`.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::rand;
use bytes::BytesMut;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use kube::{Client, client::Body};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_util::task::AbortOnDropHandle;

use super::websocket::{self, Kind};
use crate::check::api::shortened;

/// Kubernetes' name of the protocol: two channels for each port, data and error.
const PROTOCOL: &str = "v4.channel.k8s.io";
/// Channel of the port's bytes; the next one says what went wrong.
const DATA: u8 = 0;
const ERROR: u8 = 1;
/// Bytes on their way.
const BUFFER: usize = 64 << 10;
/// Largest refusal that is read.
const MAX_REFUSAL: usize = 16 << 10;

/// A connection to a pod's port; dropped, it is closed.
#[derive(Debug)]
pub(super) struct Forward {
    /// The bytes.
    pub(super) stream: DuplexStream,
    /// What keeps it going.
    pub(super) carrier: Carrier,
}

/// The task that carries the bytes, and what the kubelet said.
#[derive(Debug)]
pub(super) struct Carrier {
    _task: AbortOnDropHandle<()>,
    said: Arc<OnceLock<String>>,
}

impl Carrier {
    /// Why it ended, where the other side said so.
    pub(super) fn said(&self) -> Option<&str> {
        self.said.get().map(String::as_str)
    }
}

/// Connects to a port of a pod.
///
/// # Errors
/// Says why not.
pub(super) async fn open(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
) -> Result<Forward, String> {
    let mut random = [0; 16];
    rand::fill(&mut random).map_err(|_| "no random numbers".to_owned())?;
    let key = websocket::key(random);
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/portforward?ports={port}");
    let request = Request::get(path)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
        .body(Body::empty())
        .map_err(|error| error.to_string())?;
    let response = client.send(request).await.map_err(|error| shortened(&error.to_string()))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(namespace, response).await);
    }
    agreed(response.headers(), &key)?;
    let upgraded = hyper::upgrade::on(response).await.map_err(|error| error.to_string())?;
    let (stream, ours) = tokio::io::duplex(BUFFER);
    let said = Arc::new(OnceLock::new());
    let (socket, told) = (TokioIo::new(upgraded), Arc::clone(&said));
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(why) = Box::pin(carry(socket, ours, port)).await {
            // The first one told is the cause.
            let _ = told.set(why);
        }
    }));
    Ok(Forward { stream, carrier: Carrier { _task: task, said } })
}

/// What an answer other than an upgrade says.
async fn refusal(namespace: &str, response: http::Response<Body>) -> String {
    let status = response.status();
    if status == StatusCode::FORBIDDEN {
        return format!(
            "that needs the permission to get and create pods/portforward in {namespace}"
        );
    }
    let body = Limited::new(response.into_body(), MAX_REFUSAL).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let object: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = String::from_utf8_lossy(&body);
    let said = shortened(object["message"].as_str().unwrap_or(&text));
    format!("no port-forward: {said} (HTTP {})", status.as_u16())
}

fn agreed(headers: &HeaderMap, key: &str) -> Result<(), String> {
    let value = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if value(header::SEC_WEBSOCKET_ACCEPT) != websocket::accept(key) {
        return Err("no port-forward: the answer is not a WebSocket's".to_owned());
    }
    match value(header::SEC_WEBSOCKET_PROTOCOL) {
        PROTOCOL => Ok(()),
        other => Err(format!("no port-forward: the server speaks {other:?}, not {PROTOCOL}")),
    }
}

/// Carries bytes until either side ends.
async fn carry(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    mut ours: DuplexStream,
    port: u16,
) -> Result<(), String> {
    let mut channels = Channels::new(port);
    let (mut arrived, mut out) = (BytesMut::new(), BytesMut::new());
    let mut chunk = vec![0; 16 << 10];
    loop {
        while let Some(frame) = websocket::decode(&mut arrived).map_err(|why| why.to_string())? {
            match frame.kind {
                Kind::Close => return Ok(()),
                Kind::Ping => websocket::encode(Kind::Pong, &[&frame.payload], mask()?, &mut out),
                Kind::Pong => {}
                Kind::Text | Kind::Binary | Kind::Continuation => {
                    let data = channels.take(frame.kind, &frame.payload)?;
                    ours.write_all(data).await.map_err(|error| error.to_string())?;
                }
            }
        }
        socket.write_all_buf(&mut out).await.map_err(|error| error.to_string())?;
        tokio::select! {
            read = socket.read_buf(&mut arrived) => match read {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            },
            read = ours.read(&mut chunk) => match read {
                Ok(0) | Err(_) => {
                    websocket::encode(Kind::Close, &[], mask()?, &mut out);
                    let _ = socket.write_all_buf(&mut out).await;
                    return Ok(());
                }
                Ok(n) => {
                    websocket::encode(Kind::Binary, &[&[DATA], &chunk[..n]], mask()?, &mut out);
                }
            },
        }
    }
}

fn mask() -> Result<[u8; 4], String> {
    let mut mask = [0; 4];
    rand::fill(&mut mask).map_err(|_| "no random numbers".to_owned())?;
    Ok(mask)
}

/// What has come on the two channels.
#[derive(Debug)]
struct Channels {
    port: u16,
    /// The channel of the message under way.
    current: u8,
    /// Whether each has named its port, which is its first message.
    named: [bool; 2],
}

impl Channels {
    fn new(port: u16) -> Self {
        Self { port, current: DATA, named: [false; 2] }
    }

    /// The bytes of the port in this piece of a message.
    ///
    /// # Errors
    /// What the error channel says.
    fn take<'a>(&mut self, kind: Kind, piece: &'a [u8]) -> Result<&'a [u8], String> {
        let content = match (kind, piece.split_first()) {
            (Kind::Continuation, _) => piece,
            // A keep-alive.
            (_, None) => return Ok(&[]),
            (_, Some((&channel, rest))) => {
                self.current = channel;
                rest
            }
        };
        let Some(named) = self.named.get_mut(usize::from(self.current)) else {
            return Err(format!("no port-forward has a channel {}", self.current));
        };
        if !*named {
            *named = true;
            return match content {
                [low, high] if u16::from_le_bytes([*low, *high]) == self.port => Ok(&[]),
                _ => Err("the server forwards another port".to_owned()),
            };
        }
        if self.current == ERROR {
            return Err(shortened(&String::from_utf8_lossy(content)));
        }
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_names_its_port_first_then_bytes_and_errors_follow() {
        let mut channels = Channels::new(4191);
        let [low, high] = 4191_u16.to_le_bytes();
        assert_eq!(channels.take(Kind::Binary, &[DATA, low, high]), Ok(&[][..]));
        assert_eq!(channels.take(Kind::Binary, &[ERROR, low, high]), Ok(&[][..]));
        assert_eq!(channels.take(Kind::Binary, b"\x00HTTP"), Ok(&b"HTTP"[..]));
        assert_eq!(channels.take(Kind::Continuation, b"/1.1"), Ok(&b"/1.1"[..]));
        assert_eq!(channels.take(Kind::Binary, b""), Ok(&[][..]));
        let said = channels.take(Kind::Binary, b"\x01connection refused\n");
        assert_eq!(said, Err("connection refused".to_owned()));
    }

    #[test]
    fn another_port_or_channel_ends_it() {
        assert!(Channels::new(4191).take(Kind::Binary, &[DATA, 1, 0]).is_err());
        assert!(Channels::new(4191).take(Kind::Binary, &[7, 1, 0]).is_err());
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_the_end_is_told() {
        let (mut server, client) = tokio::io::duplex(1 << 16);
        let (mut stream, ours) = tokio::io::duplex(1 << 16);
        let carrier = tokio::spawn(carry(client, ours, 80));
        server.write_all(b"\x82\x03\x00\x50\x00\x82\x03\x00hi\x89\x00").await.unwrap();
        let mut hello = [0; 2];
        stream.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hi");
        let mut pong = [0; 6];
        server.read_exact(&mut pong).await.unwrap();
        assert_eq!(pong[..2], [0x8a, 0x80]);
        stream.write_all(b"GET").await.unwrap();
        let mut frame = [0; 10];
        server.read_exact(&mut frame).await.unwrap();
        let unmasked: Vec<u8> =
            frame[6..].iter().zip(frame[2..6].iter().cycle()).map(|(b, m)| b ^ m).collect();
        assert_eq!((frame[0], frame[1], &unmasked[..]), (0x82, 0x84, &b"\x00GET"[..]));
        drop(stream);
        let mut close = [0; 6];
        server.read_exact(&mut close).await.unwrap();
        assert_eq!(close[0], 0x88);
        assert_eq!(carrier.await.unwrap(), Ok(()));
    }
}
