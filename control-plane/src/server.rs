//! The gRPC server: accepts TCP, shakes hands, and hands connections with their peer's identity to
//! tonic.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use remora_core::{drain, spiffe::SpiffeId};
use remora_proto::v1::{discovery_server::DiscoveryServer, identity_server::IdentityServer};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;
use tower::Service;

use crate::{discovery::Discovery, identity::Identity};

pub mod tls;

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at a time; they cost CPU, and more would only make all of them late.
const MAX_HANDSHAKES: usize = 64;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 10_000;
/// Streams of one connection at a time; a proxy needs two.
const MAX_STREAMS: u32 = 64;
/// Bytes of a stream that HTTP/2 holds for a peer that reads slowly; what changes meanwhile is merged
/// before it gets here.
const SEND_BUFFER: usize = 64 << 10;
/// A peer that is silent for this long is asked, and given up when it does not answer.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that the streams of a connection have for ending once it was asked to go.
const LEAVE: Duration = Duration::from_secs(10);

/// Who is at the other end of a connection, in the extensions of every request on it.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// What its certificate proves; `None` without a client certificate.
    pub identity: Option<SpiffeId>,
    /// Cancelled when the connection is asked to go: long-lived streams must end, with the status
    /// that [`leave`] makes.
    pub leaving: CancellationToken,
}

/// How a stream ends whose connection is asked to go: the proxy comes again at once, to whichever
/// replica it finds, and calls it no failure.
#[must_use]
pub fn leave() -> tonic::Status {
    tonic::Status::aborted("connection asked to go; come again")
}

/// How old connections become, each by chance, so that proxies spread over replicas that came
/// later, and never all at the same moment.
#[derive(Debug, Clone)]
pub struct Ages {
    /// Youngest at which one is asked to go.
    pub shortest: Duration,
    /// Oldest at which one is asked to go.
    pub longest: Duration,
    /// Chance.
    pub rng: fastrand::Rng,
}

impl Ages {
    /// 15 to 25 minutes.
    #[must_use]
    pub fn new(rng: fastrand::Rng) -> Self {
        let minute = Duration::from_secs(60);
        Self { shortest: 15 * minute, longest: 25 * minute, rng }
    }

    fn next(&mut self) -> Duration {
        self.shortest + self.longest.saturating_sub(self.shortest).mul_f64(self.rng.f64())
    }
}

/// Serves until draining begins and the last stream has ended.
pub async fn run(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    discovery: Discovery,
    identity: Identity,
    ages: Ages,
    drain: drain::Watch,
) {
    let identity = IdentityServer::new(identity).max_decoding_message_size(32 << 10);
    let routes = Routes::new(DiscoveryServer::new(discovery)).add_service(identity).prepare();
    serve(listener, tls, routes, ages, drain).await;
}

/// The same for any services.
async fn serve(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    routes: Routes,
    mut ages: Ages,
    drain: drain::Watch,
) {
    let connections = TaskTracker::new();
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // What is not accepted waits in the kernel's queue, which has a bound of its own.
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            let handshake = Arc::clone(&handshakes).acquire_owned().await;
            (listener.accept().await, place, handshake)
        };
        let next = tokio::select! {
            () = drain.draining() => break,
            next = next => next,
        };
        let (Ok((socket, _)), Ok(place), Ok(handshake)) = next else {
            // Out of file descriptors, most likely: waiting is all that helps.
            tracing::warn!("cannot accept connections; raise the limit of open files");
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let acceptor = TlsAcceptor::from(tls.load_full());
        let (routes, age, draining) = (routes.clone(), ages.next(), drain.clone());
        connections.spawn(drain.track(async move {
            let peer = socket.peer_addr().ok();
            let _ = socket.set_nodelay(true);
            let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(socket)).await;
            drop(handshake);
            match shaken {
                Ok(Ok(stream)) => connection(Box::new(stream), routes, age, draining).await,
                Ok(Err(error)) => tracing::debug!(?peer, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(?peer, "TLS handshake timed out"),
            }
            drop(place);
        }));
    }
    // Whoever comes now is refused at once and tries another replica.
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// One connection from its handshake to its end. In boxes what is large: moved as a value, it would
/// be several times in the state of a task that lives for long.
async fn connection(
    stream: Box<TlsStream<TcpStream>>,
    routes: Routes,
    age: Duration,
    drain: drain::Watch,
) {
    let leaving = CancellationToken::new();
    let certificates = stream.get_ref().1.peer_certificates();
    let identity = certificates.and_then(|chain| tls::spiffe_id(chain.first()?));
    let peer = Peer { identity, leaving: leaving.clone() };
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        routes.clone().call(request)
    });
    let serving = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = Box::pin(serving);
    let ended = tokio::select! {
        ended = &mut serving => Some(ended),
        () = tokio::time::sleep(age) => None,
        () = drain.draining() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            // GOAWAY, then the streams: nobody begins a new one here.
            serving.as_mut().graceful_shutdown();
            leaving.cancel();
            match tokio::time::timeout(LEAVE, serving).await {
                Ok(ended) => ended,
                Err(_) => return tracing::debug!("connection did not go; it was cut"),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests;
