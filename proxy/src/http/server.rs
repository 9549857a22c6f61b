//! Serving HTTP on an accepted connection.

use std::{convert::Infallible, future::Future, pin::pin, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use remora_core::drain;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{MAX_HEAD, MAX_HEADERS, Version, replay::BodyError};
use crate::error::Reason;

/// Bytes of one stream, and of one connection, that may be in flight unread.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Streams one connection may have open.
const MAX_STREAMS: u32 = 1000;
/// Unread response bytes kept per stream.
const SEND_BUFFER: usize = 64 * 1024;
/// HTTP/2 connections are asked for a sign of life this often, and given this long for it.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_WITHIN: Duration = Duration::from_secs(10);
/// Idle HTTP/1.1 connections stay this long after draining has begun.
const LINGER: Duration = Duration::from_secs(1);

/// Serves one connection until it ends; when draining begins, its open requests finish first
/// (`Connection: close`, GOAWAY).
///
/// With `half_close`, an HTTP/1 peer that ends its direction still gets its answer; without, that
/// is taken for the end of its patience and what it asked for is cancelled.
///
/// # Errors
/// What the connection ended with; that it was cut short by the peer is normal life.
pub async fn serve<IO, F, Fut, B>(
    io: IO,
    version: Version,
    half_close: bool,
    handler: F,
    drain: &drain::Watch,
) -> Result<(), hyper::Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Fn(Request<Incoming>) -> Fut,
    Fut: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error = BodyError> + Send + 'static,
{
    let service = service_fn(|request| {
        let response = handler(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let io = TokioIo::new(io);
    match version {
        Version::H1 => {
            let mut connection = pin!(
                conn::http1::Builder::new()
                    .half_close(half_close)
                    .preserve_header_case(true)
                    .auto_date_header(false)
                    .max_headers(MAX_HEADERS)
                    .max_buf_size(MAX_HEAD)
                    .serve_connection(io, service)
                    .with_upgrades()
            );
            tokio::select! {
                biased;
                ended = connection.as_mut() => ended,
                () = linger(drain) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
        Version::H2 => {
            let mut connection = pin!(
                conn::http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .auto_date_header(false)
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .max_concurrent_streams(MAX_STREAMS)
                    .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
                    .max_send_buf_size(SEND_BUFFER)
                    .keep_alive_interval(PING_EVERY)
                    .keep_alive_timeout(PING_WITHIN)
                    .serve_connection(io, service)
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
    }
}

/// HTTP/1.1 cannot say in advance that an idle connection will close, and a request may be on its
/// way. So when draining begins the handlers answer with `Connection: close` ([`mark_last`]), and
/// idle connections close only once those who use them had time to learn it.
async fn linger(drain: &drain::Watch) {
    drain.draining().await;
    tokio::time::sleep(LINGER).await;
}

/// The reason of an answer that hyper made itself before it ended the connection: 431, 414, 400.
#[must_use]
pub fn refused(ended: &hyper::Error) -> Option<Reason> {
    if ended.is_parse_too_large() {
        return Some(Reason::HeaderTooLarge);
    }
    ended.is_parse().then_some(Reason::BadRequest)
}

/// While draining, tells an HTTP/1.1 client that this is the last response on its connection.
pub fn mark_last<B>(response: &mut Response<B>, version: Version, drain: &drain::Watch) {
    if version == Version::H1 && drain.is_draining() {
        let close = http::HeaderValue::from_static("close");
        response.headers_mut().insert(http::header::CONNECTION, close);
    }
}
