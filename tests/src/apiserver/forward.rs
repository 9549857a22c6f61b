//! Port-forwards: bytes to a pod's port over a WebSocket (`v4.channel.k8s.io`), as the kubelet
//! behind a real server carries them.

use std::net::SocketAddr;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use k8s_openapi::ByteString;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use super::status::{self, Refusal};
use crate::origin::{Body, empty};

const PROTOCOL: &str = "v4.channel.k8s.io";
/// RFC 6455 §1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Opcodes with the bit of a final frame.
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
/// Channels of the one port.
const DATA: u8 = 0;
const ERROR: u8 = 1;

/// A port-forward that was asked for.
#[derive(Debug)]
pub(super) struct Forward {
    accept: String,
    port: u16,
    /// Where the pod's port is; nobody listens where this is `None`.
    to: Option<SocketAddr>,
}

impl Forward {
    /// From the request's headers.
    pub(super) fn new(
        headers: &HeaderMap,
        port: Option<u64>,
        to: impl FnOnce(u16) -> Option<SocketAddr>,
    ) -> Result<Self, Refusal> {
        let value = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let port = port.and_then(|port| u16::try_from(port).ok());
        let (Some(key), Some(PROTOCOL), Some(port)) =
            (value(header::SEC_WEBSOCKET_KEY), value(header::SEC_WEBSOCKET_PROTOCOL), port)
        else {
            return Err(status::bad_request(
                "unable to upgrade: no such protocol or port".to_owned(),
            ));
        };
        let accept = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
        let accept = serde_json::to_value(ByteString(accept.as_ref().to_vec())).unwrap_or_default();
        let accept = accept.as_str().unwrap_or_default().to_owned();
        Ok(Self { accept, port, to: to(port) })
    }

    /// The answer that begins it.
    pub(super) fn response(&self) -> Response<Body> {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        response
    }

    /// Carries bytes until either side ends.
    pub(super) async fn carry(self, upgrade: OnUpgrade) {
        let Ok(upgraded) = upgrade.await else { return };
        let mut socket = TokioIo::new(upgraded);
        // A connection that breaks is the client's or the test's doing.
        let _ = self.exchange(&mut socket).await;
    }

    async fn exchange(
        &self,
        socket: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> std::io::Result<()> {
        let [low, high] = self.port.to_le_bytes();
        send(socket, BINARY, &[&[DATA, low, high]]).await?;
        send(socket, BINARY, &[&[ERROR, low, high]]).await?;
        let stream = match self.to {
            Some(to) => TcpStream::connect(to).await,
            None => Err(std::io::ErrorKind::ConnectionRefused.into()),
        };
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                let said = format!("error forwarding port {} to pod: {error}", self.port);
                send(socket, BINARY, &[&[ERROR], said.as_bytes()]).await?;
                return send(socket, CLOSE, &[]).await;
            }
        };
        let (mut arrived, mut chunk) = (Vec::new(), vec![0; 8192]);
        loop {
            while let Some((opcode, payload, rest)) = frame(&arrived) {
                match (opcode, payload.split_first()) {
                    (0x2, Some((&DATA, bytes))) => stream.write_all(bytes).await?,
                    (0x8, _) => return Ok(()),
                    _ => {}
                }
                arrived.drain(..rest);
            }
            tokio::select! {
                read = socket.read_buf(&mut arrived) => if read? == 0 {
                    return Ok(());
                },
                read = stream.read(&mut chunk) => match read? {
                    0 => return send(socket, CLOSE, &[]).await,
                    n => send(socket, BINARY, &[&[DATA], &chunk[..n]]).await?,
                },
            }
        }
    }
}

async fn send(
    socket: &mut (impl AsyncWrite + Unpin),
    opcode: u8,
    payload: &[&[u8]],
) -> std::io::Result<()> {
    let payload = payload.concat();
    let mut frame = vec![opcode];
    match u16::try_from(payload.len()) {
        Ok(short @ 0..126) => frame.push(short as u8),
        length => {
            frame.push(126);
            frame.extend(length.expect("invariant: chunks are small").to_be_bytes());
        }
    }
    frame.extend(payload);
    socket.write_all(&frame).await
}

/// Opcode and unmasked payload of a client's frame that is all there, and its length.
fn frame(arrived: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let [first, second, rest @ ..] = arrived else { return None };
    assert!(second & 0x80 != 0, "a client's frames are masked");
    let (length, rest) = match second & 0x7f {
        126 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        127 => panic!("nobody sends so much at once"),
        short => (usize::from(short), rest),
    };
    let (mask, rest) = rest.split_first_chunk::<4>()?;
    let payload = rest.get(..length)?.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m);
    Some((first & 0xf, payload.collect(), arrived.len() - rest.len() + length))
}
