//! Upstream connections of one worker: one per endpoint, shared by all of the worker's streams.
//!
//! Only its own worker uses a pool, so its locks are free; they are never held across an await.

use std::{collections::HashMap, future::Future, hash::Hash, pin::Pin, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    MAX_HEADER_LIST,
    body::RequestBody,
    guard::{Budget, Guarded},
};
use crate::error::Error;

/// Bytes of one response stream, and of one connection, that may be in flight unread.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
const SEND_BUFFER: usize = 64 * 1024;
/// Connections are asked for a sign of life this often while in use.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_WITHIN: Duration = Duration::from_secs(10);

/// Connections by endpoint.
#[derive(Debug)]
pub struct Pool<K>(Mutex<HashMap<K, Arc<Shared>>>);

impl<K> Default for Pool<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// The connection to one endpoint, and the turnstile for those who open it.
#[derive(Debug, Default)]
struct Shared {
    ready: Mutex<Option<SendRequest<RequestBody>>>,
    opening: tokio::sync::Mutex<()>,
}

/// A connection that can take a request.
#[derive(Debug)]
pub struct Connection(SendRequest<RequestBody>);

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
    /// above the last one that a GOAWAY names, whatever its code (RFC 9113 §6.8, §8.7). Streams up to
    /// that one end with their connection, or by themselves, and never with the GOAWAY's error.
    #[must_use]
    pub fn refused(&self) -> bool {
        let said = cause(&self.error).filter(|cause| cause.is_remote());
        said.is_some_and(|cause| {
            cause.is_go_away() || cause.reason() == Some(h2::Reason::REFUSED_STREAM)
        })
    }

    /// The code with which the server reset the request's stream.
    #[must_use]
    pub fn reset(&self) -> Option<h2::Reason> {
        cause(&self.error).filter(|cause| cause.is_remote() && cause.is_reset())?.reason()
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
        let result = self.0.try_send_request(request).await;
        result.map_err(|mut failed| SendError {
            unsent: failed.take_message(),
            error: failed.into_error(),
        })
    }
}

impl<K: Hash + Eq + Clone> Pool<K> {
    /// The shared connection, if there is one.
    pub fn get(&self, key: &K) -> Option<Connection> {
        self.0.lock().get(key)?.usable().map(Connection)
    }

    /// A new connection over what `dial` opens, or one that somebody else opened meanwhile. The
    /// future is large and rarely needed, so it is boxed, and kept out of those that every request
    /// has.
    ///
    /// # Errors
    /// Those of `dial`; nothing was sent.
    pub fn open<'a, IO, D>(
        &'a self,
        key: &'a K,
        dial: impl FnOnce() -> D + Send + 'a,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, Error>> + Send + 'a>>
    where
        K: Send + Sync,
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        D: Future<Output = Result<IO, Error>> + Send + 'a,
    {
        Box::pin(async move {
            let shared = Arc::clone(self.0.lock().entry(key.clone()).or_default());
            // One opens, the others wait for it and look again.
            let _turn = shared.opening.lock().await;
            if let Some(sender) = shared.usable() {
                return Ok(Connection(sender));
            }
            let sender = handshake(dial().await?).await?;
            *shared.ready.lock() = Some(sender.clone());
            Ok(Connection(sender))
        })
    }

    /// Forgets connections that have ended; called now and then by the worker.
    pub fn sweep(&self) {
        self.0.lock().retain(|_, shared| {
            // Somebody else holds it while it is being opened.
            Arc::strong_count(shared) > 1 || shared.usable().is_some()
        });
    }

    /// Whether there is no connection at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Closes the connections of endpoints for which `gone` holds, once their streams have ended.
    pub fn forget(&self, gone: impl Fn(&K) -> bool) {
        self.0.lock().retain(|key, _| !gone(key));
    }
}

impl Shared {
    fn usable(&self) -> Option<SendRequest<RequestBody>> {
        let mut ready = self.ready.lock();
        if ready.as_ref().is_some_and(SendRequest::is_closed) {
            *ready = None;
        }
        ready.clone()
    }
}

/// What the HTTP/2 codec said.
fn cause(error: &hyper::Error) -> Option<&h2::Error> {
    let first = std::error::Error::source(error);
    std::iter::successors(first, |cause| cause.source()).find_map(|cause| cause.downcast_ref())
}

/// The task of the connection ends by itself: when the last handle is dropped, or with its worker's
/// runtime.
async fn handshake<IO>(io: IO) -> Result<SendRequest<RequestBody>, Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WITHIN)
        .handshake(TokioIo::new(Guarded::new(io, false, Budget::KNOWN)))
        .await
        .map_err(|_| Error::Overloaded("HTTP/2 connection could not be set up"))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    Ok(sender)
}
