//! Serving HTTP/2 on an accepted connection.

use std::{future::Future, pin::pin, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use remora_core::{drain, settings::HeaderSize};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    MAX_HEADER_LIST,
    guard::{Budget, Guarded},
    replay::BodyError,
};

/// Bytes of one stream, and of one connection, that may be in flight unread.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Streams one connection may have open.
const MAX_STREAMS: u32 = 1000;
/// Unread response bytes kept per stream.
const SEND_BUFFER: usize = 64 * 1024;
/// Clients are asked for a sign of life this often, and given this long for it.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_WITHIN: Duration = Duration::from_secs(10);

/// A request is answered by a reset of its stream, with this code.
#[derive(Debug, thiserror::Error)]
#[error("stream is reset: {0}")]
pub struct StreamReset(#[source] h2::Error);

impl From<h2::Reason> for StreamReset {
    fn from(code: h2::Reason) -> Self {
        // hyper looks for the code among an error's sources.
        Self(h2::Error::from(code))
    }
}

/// Serves one connection until it ends, or until it has used up its budget of frames without content;
/// when draining begins it says GOAWAY and its open streams
/// finish first.
///
/// # Errors
/// What the connection ended with; that it was cut short by the peer is normal life.
pub async fn serve<IO, F, Fut, B>(
    io: IO,
    (budget, max_head): (Budget, HeaderSize),
    handler: F,
    drain: &drain::Watch,
) -> Result<(), hyper::Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Fn(Request<Incoming>) -> Fut,
    Fut: Future<Output = Result<Response<B>, StreamReset>> + Send + 'static,
    B: Body<Data = Bytes, Error = BodyError> + Send + 'static,
{
    let service = service_fn(handler);
    let mut connection = pin!(
        conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_STREAMS)
            // A head that is too long is answered by us, with the reason, unless it is far too long.
            .max_header_list_size(MAX_HEADER_LIST.max(max_head.bytes().saturating_mul(2)))
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WITHIN)
            .serve_connection(TokioIo::new(Guarded::new(io, true, budget)), service)
    );
    tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = drain.draining() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}
