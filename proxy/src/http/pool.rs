//! Upstream HTTP connections of one worker, kept for reuse.
//!
//! HTTP/1.1: a stack of idle connections per endpoint, newest first, so that the surplus ages out.
//! HTTP/2: one connection per endpoint, shared by all streams of the worker.
//!
//! Only its own worker uses a pool, so its locks are free; they are never held across an await.

use std::{collections::HashMap, future::Future, hash::Hash, pin::Pin, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use super::{MAX_HEAD, MAX_HEADERS, Version, body::RequestBody};
use crate::error::Error;

/// Idle HTTP/1.1 connections kept per endpoint.
const MAX_IDLE: usize = 1024;
/// Bytes of one response stream, and of one connection, that may be in flight unread.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
const SEND_BUFFER: usize = 64 * 1024;
/// Shared connections are asked for a sign of life this often while in use.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_WITHIN: Duration = Duration::from_secs(10);

/// Connections by endpoint.
#[derive(Debug)]
pub struct Pool<K> {
    idle_timeout: Duration,
    h1: Mutex<HashMap<K, Vec<Idle>>>,
    h2: Mutex<HashMap<K, Arc<Shared>>>,
}

#[derive(Debug)]
struct Idle {
    sender: conn::http1::SendRequest<RequestBody>,
    since: Instant,
}

/// The shared connection to one endpoint, and the turnstile for those who open it.
#[derive(Debug, Default)]
struct Shared {
    ready: Mutex<Option<conn::http2::SendRequest<RequestBody>>>,
    opening: tokio::sync::Mutex<()>,
}

/// A connection that can take a request.
#[derive(Debug)]
pub enum Connection {
    /// Ours alone until it is given back.
    H1 {
        /// hyper's handle.
        sender: conn::http1::SendRequest<RequestBody>,
        /// Whether it has carried a request before.
        reused: bool,
    },
    /// Shared.
    H2(conn::http2::SendRequest<RequestBody>),
}

/// What became of a request that got no response.
#[derive(Debug)]
pub struct SendError {
    /// hyper's account.
    pub error: hyper::Error,
    /// The request, where not one byte of it was written.
    pub unsent: Option<Request<RequestBody>>,
}

impl SendError {
    /// Whether the server says that it did not look at the request: REFUSED_STREAM, or a stream
    /// above the last one that a graceful GOAWAY names (RFC 9113 §8.7).
    #[must_use]
    pub fn refused(&self) -> bool {
        let mut source = std::error::Error::source(&self.error);
        while let Some(cause) = source {
            if let Some(h2) = cause.downcast_ref::<h2::Error>() {
                return match h2.reason() {
                    Some(h2::Reason::REFUSED_STREAM) => h2.is_remote(),
                    Some(h2::Reason::NO_ERROR) => h2.is_go_away() && h2.is_remote(),
                    _ => false,
                };
            }
            source = cause.source();
        }
        false
    }
}

impl Connection {
    /// Sends a request and waits for the response's head.
    ///
    /// # Errors
    /// With the request itself where it provably was not written.
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, SendError> {
        let result = match self {
            Self::H1 { sender, .. } => sender.try_send_request(request).await,
            Self::H2(sender) => sender.try_send_request(request).await,
        };
        result.map_err(|mut failed| SendError {
            unsent: failed.take_message(),
            error: failed.into_error(),
        })
    }
}

impl<K: Hash + Eq + Clone> Pool<K> {
    /// An empty pool whose HTTP/1.1 connections close after `idle_timeout` without use.
    #[must_use]
    pub fn new(idle_timeout: Duration) -> Self {
        Self { idle_timeout, h1: Mutex::default(), h2: Mutex::default() }
    }

    /// An idle or shared connection, if there is one.
    pub fn get(&self, key: &K, version: Version) -> Option<Connection> {
        match version {
            Version::H1 => {
                let sender = self.take_idle(key)?;
                Some(Connection::H1 { sender, reused: true })
            }
            Version::H2 => self.h2.lock().get(key)?.usable().map(Connection::H2),
        }
    }

    /// A new connection over what `dial` opens; for HTTP/2 perhaps one that somebody else opened
    /// meanwhile. The future is large and rarely needed, so it is boxed, and kept out of those
    /// that every request has.
    ///
    /// # Errors
    /// Those of `dial`; nothing was sent.
    pub fn open<'a, IO, D>(
        &'a self,
        key: &'a K,
        version: Version,
        dial: impl FnOnce() -> D + Send + 'a,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, Error>> + Send + 'a>>
    where
        K: Send + Sync,
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        D: Future<Output = Result<IO, Error>> + Send + 'a,
    {
        match version {
            Version::H1 => Box::pin(async move {
                let sender = handshake_h1(dial().await?).await?;
                Ok(Connection::H1 { sender, reused: false })
            }),
            Version::H2 => Box::pin(async move {
                let shared = Arc::clone(self.h2.lock().entry(key.clone()).or_default());
                // One opens, the others wait for it and look again.
                let _turn = shared.opening.lock().await;
                if let Some(sender) = shared.usable() {
                    return Ok(Connection::H2(sender));
                }
                let sender = handshake_h2(dial().await?).await?;
                *shared.ready.lock() = Some(sender.clone());
                Ok(Connection::H2(sender))
            }),
        }
    }

    /// Takes a connection back whose response is complete.
    pub fn give_back(&self, key: &K, connection: Connection, now: Instant) {
        let Connection::H1 { sender, .. } = connection else { return };
        if sender.is_closed() {
            return;
        }
        let mut h1 = self.h1.lock();
        let idle = match h1.get_mut(key) {
            Some(idle) => idle,
            None => h1.entry(key.clone()).or_default(),
        };
        if idle.len() < MAX_IDLE {
            idle.push(Idle { sender, since: now });
        }
    }

    fn take_idle(&self, key: &K) -> Option<conn::http1::SendRequest<RequestBody>> {
        let mut h1 = self.h1.lock();
        let idle = h1.get_mut(key)?;
        // Newest first. One that is not ready is still finishing its last exchange: leave it.
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            if idle[at].sender.is_closed() {
                idle.remove(at);
            } else if idle[at].sender.is_ready() {
                return Some(idle.remove(at).sender);
            }
        }
        None
    }

    /// Closes what was idle too long; called now and then by the worker.
    pub fn sweep(&self, now: Instant) {
        self.h1.lock().retain(|_, idle| {
            idle.retain(|i| {
                !i.sender.is_closed() && now.duration_since(i.since) < self.idle_timeout
            });
            !idle.is_empty()
        });
        self.h2.lock().retain(|_, shared| {
            // Somebody else holds it while it is being opened.
            Arc::strong_count(shared) > 1 || shared.usable().is_some()
        });
    }

    /// Whether there is no connection at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.h1.lock().is_empty() && self.h2.lock().is_empty()
    }

    /// Closes the connections of endpoints for which `gone` holds.
    pub fn forget(&self, gone: impl Fn(&K) -> bool) {
        self.h1.lock().retain(|key, _| !gone(key));
        self.h2.lock().retain(|key, _| !gone(key));
    }
}

impl Shared {
    fn usable(&self) -> Option<conn::http2::SendRequest<RequestBody>> {
        let mut ready = self.ready.lock();
        if ready.as_ref().is_some_and(conn::http2::SendRequest::is_closed) {
            *ready = None;
        }
        ready.clone()
    }
}

// The connection tasks below end by themselves: when the last handle is dropped, or with their
// worker's runtime.

async fn handshake_h1<IO>(io: IO) -> Result<conn::http1::SendRequest<RequestBody>, Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = conn::http1::Builder::new()
        .preserve_header_case(true)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|_| Error::Overloaded("HTTP/1 connection could not be set up"))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    Ok(sender)
}

async fn handshake_h2<IO>(io: IO) -> Result<conn::http2::SendRequest<RequestBody>, Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WITHIN)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|_| Error::Overloaded("HTTP/2 connection could not be set up"))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    Ok(sender)
}
