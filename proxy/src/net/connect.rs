//! Dialling.

use std::{
    io,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::listener::prepare;
use crate::error::Error;

/// Opens TCP connections that the redirect rules leave alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Connector {
    /// Socket mark that exempts our connections, where the user id cannot (`SO_MARK`).
    pub mark: Option<u32>,
}

impl Connector {
    /// Dials within a bound.
    ///
    /// # Errors
    /// [`Error::Connect`] or [`Error::ConnectTimeout`]; nothing was sent in either case.
    pub async fn connect(&self, addr: SocketAddr, bound: Duration) -> Result<TcpStream, Error> {
        let dial = async {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            if let Some(mark) = self.mark {
                SockRef::from(&socket).set_mark(mark)?;
            }
            socket.connect(addr).await
        };
        match timeout(bound, dial).await {
            Ok(Ok(stream)) => {
                prepare(&stream);
                Ok(stream)
            }
            Ok(Err(source)) => Err(Error::Connect { addr, source }),
            Err(_) => Err(Error::ConnectTimeout { addr, after: bound }),
        }
    }
}

/// Makes the kernel answer with a reset instead of an orderly end when `stream` is dropped.
pub fn reset_on_drop(stream: &TcpStream) {
    // The socket may be gone already; then there is nobody to tell.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Streams over TCP that can end in a reset.
pub trait Reset {
    /// See [`reset_on_drop`].
    fn reset(&self);
}

/// A stream in the middle of something: dropped there, it ends in a reset, so that its peer does not
/// take the part for the whole.
#[derive(Debug)]
pub struct Unfinished<'a, IO: Reset>(&'a mut IO, bool);

impl<'a, IO: Reset> Unfinished<'a, IO> {
    /// Something begins.
    pub fn new(io: &'a mut IO) -> Self {
        Self(io, true)
    }

    /// It has come to its end, whichever that was.
    pub fn finish(mut self) {
        self.1 = false;
    }
}

impl<IO: Reset> Deref for Unfinished<'_, IO> {
    type Target = IO;

    fn deref(&self) -> &IO {
        self.0
    }
}

impl<IO: Reset> DerefMut for Unfinished<'_, IO> {
    fn deref_mut(&mut self) -> &mut IO {
        self.0
    }
}

impl<IO: Reset> Drop for Unfinished<'_, IO> {
    fn drop(&mut self) {
        if self.1 {
            self.0.reset();
        }
    }
}

impl Reset for TcpStream {
    fn reset(&self) {
        reset_on_drop(self);
    }
}

impl<IO: Reset> Reset for super::prefixed::Prefixed<IO> {
    fn reset(&self) {
        self.get_ref().reset();
    }
}

impl<IO: Reset> Reset for tokio_rustls::client::TlsStream<IO> {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

impl<IO: Reset> Reset for tokio_rustls::server::TlsStream<IO> {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

/// Whether an error means that the peer ended the connection by force.
#[must_use]
pub fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof)
}
