//! The gRPC server: accepts TCP, shakes hands, and hands connections with their peer's identity to
//! tonic.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use remora_core::{drain, spiffe::SpiffeId};
use remora_proto::v1::{discovery_server::DiscoveryServer, identity_server::IdentityServer};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Server, server::Connected};

use crate::{discovery::Discovery, identity::Identity};

pub mod tls;

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at a time; they cost CPU, and more would only make all of them late.
const MAX_HANDSHAKES: usize = 64;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 10_000;
/// A peer that is silent for this long is asked, and given up when it does not answer.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// What its certificate proves; `None` without a client certificate.
    pub identity: Option<SpiffeId>,
}

/// Serves until draining begins and the last stream has ended.
///
/// # Errors
/// Where tonic's server fails as a whole; single connections that fail do not end it.
pub async fn run(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    discovery: Discovery,
    identity: Identity,
    drain: drain::Watch,
) -> Result<(), tonic::transport::Error> {
    let (accepted, connections) = mpsc::channel(16);
    let accepting = accept(listener, tls, accepted, drain.clone());
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(64)
        .add_service(DiscoveryServer::new(discovery))
        .add_service(IdentityServer::new(identity).max_decoding_message_size(32 << 10))
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), async move {
            drain.draining().await;
        });
    let ((), served) = tokio::join!(accepting, serving);
    served
}

async fn accept(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    accepted: mpsc::Sender<io::Result<Connection>>,
    drain: drain::Watch,
) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // What is not accepted waits in the kernel's queue, which has a bound of its own.
        let next = async {
            let connection = Arc::clone(&connections).acquire_owned().await;
            let handshake = Arc::clone(&handshakes).acquire_owned().await;
            (listener.accept().await, connection, handshake)
        };
        let next = tokio::select! {
            () = drain.draining() => return,
            next = next => next,
        };
        let (Ok((socket, _)), Ok(connection), Ok(handshake)) = next else {
            // Out of file descriptors, most likely: waiting is all that helps.
            tracing::warn!("cannot accept connections; raise the limit of open files");
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let acceptor = TlsAcceptor::from(tls.load_full());
        let accepted = accepted.clone();
        tokio::spawn(drain.track(async move {
            let peer = socket.peer_addr().ok();
            let _ = socket.set_nodelay(true);
            let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(socket)).await;
            drop(handshake);
            match shaken {
                Ok(Ok(stream)) => {
                    let _ = accepted.send(Ok(Connection { stream, _permit: connection })).await;
                }
                Ok(Err(error)) => tracing::debug!(?peer, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(?peer, "TLS handshake timed out"),
            }
        }));
    }
}

/// A TLS connection that counts against the limit as long as it lives.
#[derive(Debug)]
struct Connection {
    stream: TlsStream<TcpStream>,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let certificates = self.stream.get_ref().1.peer_certificates();
        Peer { identity: certificates.and_then(|chain| tls::spiffe_id(chain.first()?)) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
