//! The name that a connection is for, heard as its first bytes pass: nothing is waited for, held back
//! or changed, and a connection without a name is as good as another.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    client_hello::MAX_LEN,
    connect::Reset,
    detect::{Detected, classify},
};

/// Looks at the growing first bytes, so that bytes that come one by one cost no more than that.
const MAX_LOOKS: u8 = 32;
/// Longest name (RFC 1035 §2.3.4, with the dots).
const MAX_NAME: usize = 253;

/// A connection that is listened in on until its name is known. `tell` is called once: with the server
/// name of a ClientHello or the host of a request, or with `None` where there is neither.
#[derive(Debug)]
pub struct Overheard<IO, F: FnOnce(Option<&str>)> {
    io: IO,
    listening: Option<(Listening, F)>,
}

#[derive(Debug, Default)]
struct Listening {
    seen: BytesMut,
    looks: u8,
}

impl<IO, F: FnOnce(Option<&str>)> Overheard<IO, F> {
    /// Listens in on what is read from `io`.
    pub fn new(io: IO, tell: F) -> Self {
        Self { io, listening: Some((Listening::default(), tell)) }
    }

    /// The stream below.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    fn heard(&mut self, bytes: &[u8]) {
        let Some((listening, _)) = &mut self.listening else { return };
        let room = MAX_LEN - listening.seen.len().min(MAX_LEN);
        listening.seen.extend_from_slice(&bytes[..bytes.len().min(room)]);
        listening.looks += 1;
        let over =
            bytes.is_empty() || listening.looks >= MAX_LOOKS || listening.seen.len() >= MAX_LEN;
        match name(&listening.seen) {
            Heard::Name(name) => self.tell(Some(&name)),
            Heard::None => self.tell(None),
            Heard::NotYet if over => self.tell(None),
            Heard::NotYet => {}
        }
    }

    fn tell(&mut self, name: Option<&str>) {
        if let Some((_, tell)) = self.listening.take() {
            tell(name);
        }
    }
}

impl<IO, F: FnOnce(Option<&str>)> Drop for Overheard<IO, F> {
    fn drop(&mut self) {
        self.tell(None);
    }
}

impl<IO: Reset, F: FnOnce(Option<&str>)> Reset for Overheard<IO, F> {
    fn reset(&self) {
        self.io.reset();
    }
}

impl<IO: AsyncRead + Unpin, F: FnOnce(Option<&str>) + Unpin> AsyncRead for Overheard<IO, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if self.listening.is_some() && matches!(read, Poll::Ready(Ok(()))) {
            self.heard(&buf.filled()[before..]);
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin, F: FnOnce(Option<&str>) + Unpin> AsyncWrite for Overheard<IO, F> {
    /// What is answered ends the listening: the server has heard enough, or speaks first.
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.tell(None);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Name(String),
    NotYet,
    None,
}

/// HTTP/2's heads are compressed and not looked into.
fn name(bytes: &[u8]) -> Heard {
    match classify(bytes) {
        None => Heard::NotYet,
        Some(Detected::Http1) => host(bytes),
        Some(Detected::Tls(hello)) => hello.sni.map_or(Heard::None, Heard::Name),
        Some(Detected::Http2 | Detected::Opaque | Detected::Silent) => Heard::None,
    }
}

/// The host of a request's head, lower case and without its port.
fn host(head: &[u8]) -> Heard {
    let mut lines = head.split_inclusive(|b| *b == b'\n').skip_while(|line| line.len() <= 2);
    let Some(_request_line) = lines.next().filter(|line| line.ends_with(b"\n")) else {
        return Heard::NotYet;
    };
    for line in lines {
        let Some(line) = line.strip_suffix(b"\n") else { return Heard::NotYet };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return Heard::None;
        }
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        if line[..colon].eq_ignore_ascii_case(b"host") {
            return host_name(&line[colon + 1..]).map_or(Heard::None, Heard::Name);
        }
    }
    Heard::NotYet
}

/// What is not made of the letters of a host name or an address is none: it becomes a label.
fn host_name(value: &[u8]) -> Option<String> {
    let value = std::str::from_utf8(value).ok()?.trim().to_ascii_lowercase();
    let name = match value.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        None => value.rsplit_once(':').map_or(&*value, |(name, _port)| name),
    };
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
    (!name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(ok)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What is told of a client that writes these pieces and ends, and what is read of them.
    async fn told(pieces: &[&[u8]]) -> (Vec<Option<String>>, Vec<u8>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&told);
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut server = Overheard::new(server, move |name: Option<&str>| {
            to.lock().unwrap().push(name.map(str::to_owned));
        });
        let mut read = Vec::new();
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            client.write_all(piece).await.unwrap();
            let from = read.len();
            read.resize(from + piece.len(), 0);
            server.read_exact(&mut read[from..]).await.unwrap();
        }
        drop(client);
        server.read_to_end(&mut read).await.unwrap();
        drop(server);
        let told = told.lock().unwrap().clone();
        (told, read)
    }

    #[tokio::test]
    async fn a_request_is_for_its_host_without_the_port() {
        for (value, expected) in [
            ("example.com", Some("example.com")),
            ("Example.COM:8080", Some("example.com")),
            ("[fd00::1]:80", Some("fd00::1")),
            ("192.0.2.1:80", Some("192.0.2.1")),
            ("a\"} 1", None),
            ("", None),
        ] {
            let head = format!("GET / HTTP/1.1\r\nAccept: */*\r\nhOST:  {value} \r\n\r\n");
            let (names, read) = told(&[head.as_bytes()]).await;
            assert_eq!((names, read), (vec![expected.map(str::to_owned)], head.into_bytes()));
        }
    }

    #[tokio::test]
    async fn what_has_no_name_is_told_once_without_one() {
        let many = [&b"x"[..]; 100];
        let cases: [&[&[u8]]; 5] = [
            &[],
            &[b"\x00\x01binary"],
            &[b"GET / HTTP/1.0\r\n\r\n"],
            &[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
            &many,
        ];
        for pieces in cases {
            let (names, read) = told(pieces).await;
            assert_eq!((names, read), (vec![None], pieces.concat()));
        }
    }

    #[tokio::test]
    async fn a_server_that_speaks_first_is_not_waited_for() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&told);
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = Overheard::new(server, move |name: Option<&str>| {
            to.lock().unwrap().push(name.is_some())
        });
        server.write_all(b"220").await.unwrap();
        assert_eq!(*told.lock().unwrap(), [false]);
        assert_eq!(client.read_u8().await.unwrap(), b'2');
    }

    proptest! {
        #[test]
        fn the_pieces_that_a_head_comes_in_make_no_difference(
            cuts in prop::collection::btree_set(1usize..48, 0..8),
        ) {
            let head = &b"GET / HTTP/1.1\r\nA: b\r\nHost: example.com:80\r\n\r\n"[..];
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().filter(|cut| *cut < head.len()) {
                pieces.push(&head[from..cut]);
                from = cut;
            }
            pieces.push(&head[from..]);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (names, read) = runtime.block_on(told(&pieces));
            prop_assert_eq!(names, vec![Some("example.com".to_owned())]);
            prop_assert_eq!(read, head);
        }
    }
}
