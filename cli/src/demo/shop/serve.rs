//! The accept loop of the shop's HTTP servers.

use std::{convert::Infallible, future::Future, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use remora_core::drain::Watch;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// Connections served at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;
/// Pause after an accept that failed (out of file descriptors), so that it is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Body of an answer, possibly with trailers.
pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// What the server speaks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Version {
    Http1,
    /// With prior knowledge.
    Http2,
}

/// An answer with a text body.
pub(crate) fn text(status: http::StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).boxed());
    *response.status_mut() = status;
    response
}

/// Serves until draining begins; connections then finish what they are doing.
pub(crate) async fn run<H, F>(listener: TcpListener, version: Version, drain: Watch, handle: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = drain.draining() => return,
        };
        let connection = connection(stream, version, drain.clone(), handle.clone());
        tokio::spawn(drain.track(async move {
            connection.await;
            drop(permit);
        }));
    }
}

async fn connection<H, F>(stream: TcpStream, version: Version, drain: Watch, handle: H)
where
    H: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    // Without it a small answer can wait for the peer's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(stream);
    let service = service_fn(move |request| {
        let answer = handle(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let ended = match version {
        Version::Http1 => {
            let mut builder = http1::Builder::new();
            let connection = builder.timer(TokioTimer::new()).serve_connection(io, service);
            let mut connection = pin!(connection);
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = drain.draining() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
        Version::Http2 => {
            let builder = http2::Builder::new(TokioExecutor::new());
            let mut connection = pin!(builder.serve_connection(io, service));
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = drain.draining() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}
