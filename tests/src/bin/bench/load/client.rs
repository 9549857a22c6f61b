//! One connection's protocol.

use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::Kind;
use crate::backend::ANSWER;

/// An open connection.
#[derive(Debug)]
pub(crate) enum Client {
    /// Written and read by hand: a client library would cost more than the proxies.
    Http1 {
        stream: TcpStream,
        request: String,
        seen: BytesMut,
    },
    Http2 {
        sender: SendRequest<Empty<Bytes>>,
        uri: http::Uri,
    },
    Echo {
        stream: TcpStream,
        seen: Box<[u8; ANSWER]>,
    },
}

impl Client {
    /// Connects.
    pub(crate) async fn open(kind: Kind, to: SocketAddr) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect(to).await.with_context(|| format!("cannot connect to {to}"))?;
        stream.set_nodelay(true)?;
        match kind {
            Kind::Http1 => {
                let request = format!("GET /1k HTTP/1.1\r\nHost: {to}\r\n\r\n");
                Ok(Self::Http1 { stream, request, seen: BytesMut::with_capacity(8 * 1024) })
            }
            Kind::Http2 => {
                let io = TokioIo::new(stream);
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                // Its end shows in the requests.
                tokio::spawn(connection);
                Ok(Self::Http2 { sender, uri: format!("http://{to}/1k").parse()? })
            }
            Kind::Echo => Ok(Self::Echo { stream, seen: Box::new([0; ANSWER]) }),
            Kind::Bulk => bail!("bulk bytes are no requests"),
        }
    }

    /// Another user of the same connection, where the protocol has that.
    pub(crate) fn share(&self) -> Option<Self> {
        match self {
            Self::Http2 { sender, uri } => {
                Some(Self::Http2 { sender: sender.clone(), uri: uri.clone() })
            }
            Self::Http1 { .. } | Self::Echo { .. } => None,
        }
    }

    /// One request and its whole answer; returns the answer's bytes.
    pub(crate) async fn ask(&mut self) -> anyhow::Result<usize> {
        match self {
            Self::Http1 { stream, request, seen } => {
                stream.write_all(request.as_bytes()).await?;
                http1_answer(stream, seen).await
            }
            Self::Http2 { sender, uri } => {
                let request = http::Request::get(uri.clone()).body(Empty::new())?;
                let answer = sender.send_request(request).await?;
                ensure!(answer.status() == 200, "status {}", answer.status());
                Ok(answer.into_body().collect().await?.to_bytes().len())
            }
            Self::Echo { stream, seen } => {
                stream.write_all(&seen[..]).await?;
                stream.read_exact(&mut seen[..]).await?;
                Ok(ANSWER)
            }
        }
    }
}

async fn http1_answer(stream: &mut TcpStream, seen: &mut BytesMut) -> anyhow::Result<usize> {
    loop {
        if let Some(end) = seen.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let length = content_length(&seen[..end])?;
            while seen.len() < end + 4 + length {
                ensure!(stream.read_buf(seen).await? > 0, "the answer is cut");
            }
            seen.advance(end + 4 + length);
            return Ok(length);
        }
        ensure!(seen.len() < 16 * 1024, "no end of the answer's head");
        ensure!(stream.read_buf(seen).await? > 0, "closed before an answer");
    }
}

/// The body's length, of an answer that is the back end's.
fn content_length(head: &[u8]) -> anyhow::Result<usize> {
    let head = std::str::from_utf8(head)?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "answer {head:?}");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    length.context("an answer without a length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_good_answers_with_a_length_count() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\nX: y";
        assert_eq!(content_length(head).unwrap(), 1024);
        assert!(content_length(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3").is_err());
        assert!(content_length(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked").is_err());
    }
}
