//! Both ends of a connection, byte for byte. A test plays client and application in turn, so what
//! happens in which order is written down in the test.

use std::{io, net::SocketAddr, time::Duration};

use bytes::{Buf, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::wait::within;

/// One end of a TCP connection.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    seen: BytesMut,
}

/// The application's listener.
#[derive(Debug)]
pub struct App(TcpListener);

impl App {
    /// Listens.
    ///
    /// # Panics
    /// Where the address is taken.
    pub async fn listen(addr: SocketAddr) -> Self {
        let listener = TcpListener::bind(addr).await;
        Self(listener.unwrap_or_else(|error| panic!("{addr}: {error}")))
    }

    /// The next connection.
    ///
    /// # Panics
    /// Where none comes.
    pub async fn accept(&self) -> Wire {
        let (stream, _) = within("a connection", self.0.accept()).await.expect("accept");
        Wire::new(stream)
    }

    /// Whether a connection is waiting to be accepted, now.
    pub async fn has_caller(&self) -> bool {
        tokio::time::timeout(Duration::from_millis(1), self.0.accept()).await.is_ok()
    }
}

impl Wire {
    /// Connects.
    ///
    /// # Panics
    /// Where that fails.
    pub async fn dial(addr: SocketAddr) -> Self {
        let stream = within("a dial", TcpStream::connect(addr)).await;
        Self::new(stream.unwrap_or_else(|error| panic!("{addr}: {error}")))
    }

    /// Around a connection that is there.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        Self { stream, seen: BytesMut::new() }
    }

    /// The connection itself; what was read ahead is lost.
    #[must_use]
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// The connection itself, to write to.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Writes all of it.
    ///
    /// # Panics
    /// Where the other side does not take it.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("room to write", self.stream.write_all(bytes.as_ref())).await.expect("write");
    }

    /// A message head, up to its empty line.
    ///
    /// # Panics
    /// Where the connection ends before.
    pub async fn head(&mut self) -> Head {
        Head(self.until("\r\n\r\n").await)
    }

    /// Everything up to and with a marker.
    ///
    /// # Panics
    /// Where the connection ends before.
    pub async fn until(&mut self, marker: &str) -> String {
        let mut from = 0;
        loop {
            let found =
                self.seen[from..].windows(marker.len()).position(|w| w == marker.as_bytes());
            if let Some(at) = found {
                let bytes = self.seen.split_to(from + at + marker.len());
                return String::from_utf8_lossy(&bytes).into_owned();
            }
            from = self.seen.len().saturating_sub(marker.len() - 1);
            assert!(
                self.more(marker).await.expect("read") > 0,
                "ended before {marker:?}: {:?}",
                String::from_utf8_lossy(&self.seen)
            );
        }
    }

    /// So many bytes.
    ///
    /// # Panics
    /// Where the connection ends before.
    pub async fn exactly(&mut self, n: usize) -> Vec<u8> {
        let got = self.try_exactly(n).await;
        got.unwrap_or_else(|error| panic!("{error} after {} of {n} bytes", self.seen.len()))
    }

    /// So many bytes.
    ///
    /// # Errors
    /// Where the connection ends before.
    pub async fn try_exactly(&mut self, n: usize) -> io::Result<Vec<u8>> {
        while self.seen.len() < n {
            if self.more("bytes").await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.seen.split_to(n).to_vec())
    }

    /// Exactly this text.
    ///
    /// # Panics
    /// Where something else comes.
    pub async fn expect(&mut self, text: &str) {
        let got = self.exactly(text.len()).await;
        assert_eq!(String::from_utf8_lossy(&got), text);
    }

    /// Everything until the other side ends.
    ///
    /// # Errors
    /// Where it ends by force.
    pub async fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.more("the end").await? > 0 {}
        let all = self.seen.to_vec();
        self.seen.advance(all.len());
        Ok(all)
    }

    /// Whether nothing comes for a moment. Only for what must never come: a test that waits for
    /// something waits for that.
    pub async fn is_silent(&mut self) -> bool {
        self.seen.is_empty()
            && tokio::time::timeout(Duration::from_millis(50), self.stream.read_buf(&mut self.seen))
                .await
                .is_err()
    }

    /// Whether a connection ends in a reset, with nothing said on it. Where the other side ends it at once,
    /// that may come as early as in the answer to the dial.
    ///
    /// # Panics
    /// Where it is silent.
    pub async fn is_refused(addr: SocketAddr, first_word: &[u8]) -> bool {
        let Ok(mut stream) = within("a dial", TcpStream::connect(addr)).await else { return true };
        if stream.write_all(first_word).await.is_err() {
            return true;
        }
        let mut said = Vec::new();
        within("a reset", stream.read_to_end(&mut said)).await.is_err() && said.is_empty()
    }

    /// Ends this direction.
    ///
    /// # Panics
    /// Where the connection is gone.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.expect("shutdown");
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    async fn more(&mut self, what: &str) -> io::Result<usize> {
        self.seen.reserve(16 * 1024);
        within(what, self.stream.read_buf(&mut self.seen)).await
    }
}

/// The head of an HTTP/1 message, as it was on the wire.
#[derive(Debug, Clone)]
pub struct Head(pub String);

impl Head {
    /// Of a response.
    ///
    /// # Panics
    /// Where there is none.
    #[must_use]
    pub fn status(&self) -> u16 {
        let word = self.0.split(' ').nth(1).and_then(|word| word.get(..3));
        word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no status: {self:?}"))
    }

    /// Request or status line.
    #[must_use]
    pub fn line(&self) -> &str {
        self.0.lines().next().unwrap_or_default()
    }

    /// All values of a field, in order.
    #[must_use]
    pub fn all(&self, name: &str) -> Vec<&str> {
        let fields = self.0.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).collect()
    }

    /// The first value of a field.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }
}
