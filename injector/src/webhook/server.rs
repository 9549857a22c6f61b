//! TLS and HTTP: accepts the API server's connections and hands their requests to the review.

use std::{sync::Arc, time::Duration};

use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use remora_core::drain;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::review::{Reviewer, http};

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Longest wait for a request's head; the API server keeps idle connections for 90 s.
const IDLE: Duration = Duration::from_secs(120);
/// Longest request, body and answer included; the API server waits 5 s.
const EXCHANGE: Duration = Duration::from_secs(10);
/// Connections at a time; API servers hold a few each.
const MAX_CONNECTIONS: usize = 512;
/// Requests of one HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 100;

/// Serves until draining has begun and `linger` has passed, in which the API server learns that
/// this replica goes; requests in flight are then answered.
pub(crate) async fn run(
    listener: TcpListener,
    mut tls: watch::Receiver<Option<Arc<ServerConfig>>>,
    reviewer: Arc<Reviewer>,
    linger: Duration,
    drain: drain::Watch,
) {
    // Until there is a certificate, connections wait in the kernel's queue.
    tokio::select! {
        () = drain.draining() => return,
        there = tls.wait_for(Option::is_some) => if there.is_err() { return },
    }
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut closing = std::pin::pin!(async {
        drain.draining().await;
        tokio::time::sleep(linger).await;
    });
    let (last_call, ended) = watch::channel(());
    loop {
        let next = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let next = tokio::select! {
            () = &mut closing => break,
            next = next => next,
        };
        let (Ok((socket, _)), Ok(permit)) = next else {
            // Out of file descriptors, most likely: waiting is all that helps.
            tracing::warn!("cannot accept connections; raise the limit of open files");
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(config) = tls.borrow().clone() else { continue };
        let connection = Connection {
            reviewer: Arc::clone(&reviewer),
            drain: drain.clone(),
            ended: ended.clone(),
            _permit: permit,
        };
        tokio::spawn(drain.track(connection.serve(socket, TlsAcceptor::from(config))));
    }
    drop(last_call);
}

/// One connection; counts against the limit as long as it lives.
struct Connection {
    reviewer: Arc<Reviewer>,
    drain: drain::Watch,
    /// Breaks when no more connections are accepted.
    ended: watch::Receiver<()>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, socket: TcpStream, acceptor: TlsAcceptor) {
        let peer = socket.peer_addr().ok();
        let _ = socket.set_nodelay(true);
        match tokio::time::timeout(HANDSHAKE, acceptor.accept(socket)).await {
            Ok(Ok(stream)) => {
                if let Err(error) = self.exchange(stream).await {
                    tracing::debug!(?peer, %error, "connection ended");
                }
            }
            Ok(Err(error)) => tracing::debug!(?peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(?peer, "TLS handshake timed out"),
        }
    }

    async fn exchange(mut self, stream: TlsStream<TcpStream>) -> hyper::Result<()> {
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let (reviewer, drain) = (&self.reviewer, &self.drain);
        let service = service_fn(move |request: ::http::Request<Incoming>| {
            let (reviewer, drain) = (Arc::clone(reviewer), drain.clone());
            async move {
                let answer = http::answer(&reviewer, request, drain.is_draining());
                tokio::time::timeout(EXCHANGE, answer).await
            }
        });
        let io = TokioIo::new(stream);
        if h2 {
            let connection = conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .keep_alive_interval(IDLE)
                .serve_connection(io, service);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                result = &mut connection => return result,
                _ = self.ended.changed() => connection.as_mut().graceful_shutdown(),
            }
            connection.await
        } else {
            let connection = conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE)
                .serve_connection(io, service);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                result = &mut connection => return result,
                _ = self.ended.changed() => connection.as_mut().graceful_shutdown(),
            }
            connection.await
        }
    }
}
