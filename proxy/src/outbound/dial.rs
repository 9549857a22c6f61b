//! Opening a connection to an endpoint: mTLS wherever it has an identity, never anything less.

use std::{
    hash::{Hash, Hasher},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::client::TlsStream;

use super::{Outbound, Snapshot, places::Places};
use crate::{
    balance::{EndpointStats, bulkhead::Berth},
    discovery::Endpoint,
    error::Error,
    metrics::{
        Direction, Metrics, OpenConnection, Tls,
        connections::{Connections, Open},
    },
    net::{connect::Reset, copy::Carried},
    tls::{self, Alpn},
};

/// An endpoint as the pool's key: this very object, so that an address that now belongs to another
/// workload never finds an old connection.
#[derive(Debug, Clone)]
pub(crate) struct Key(pub(super) Arc<Endpoint>);

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl AsRef<EndpointStats> for Endpoint {
    fn as_ref(&self) -> &EndpointStats {
        &self.stats
    }
}

/// A connection to an endpoint.
#[derive(Debug)]
pub(super) struct Connected {
    io: Io,
    _open: OpenConnection,
    /// The same for its Service.
    of: Open,
    /// Its place in the Service's bulkhead.
    _berth: Option<Berth>,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Mutual(Box<TlsStream<TcpStream>>),
}

impl Outbound {
    /// Dials an endpoint and, where it has an identity, proves ours and checks its own. Only a
    /// connection that never leaves the pod goes without.
    pub(super) async fn dial(
        &self,
        endpoint: &Endpoint,
        alpn: Alpn,
        (places, snapshot, connections): (&Places, &Snapshot, &Arc<Connections>),
        bound: Duration,
    ) -> Result<Connected, Error> {
        let addr = endpoint.addr;
        let _berth = self.berth(places, snapshot, bound).await?;
        endpoint.stats.dialled(Instant::now().into_std());
        // The pod's own application (its Service chose this very pod) is on the loopback path.
        let outside = |_: &&_| !self.pod_ips.contains(&addr.ip());
        let Some(peer) = endpoint.identity.as_ref().filter(outside) else {
            let io = Io::Plain(self.connector.connect(addr, bound).await?);
            let _open = self.metrics.connection(Direction::Outbound, Tls::None);
            return Ok(Connected { io, _open, of: connections.open(Tls::None), _berth });
        };
        let material = match self.identity.current() {
            Some(material) => material,
            // Just started: the certificate is on its way.
            None => timeout(bound, self.identity.wait_ready())
                .await
                .map_err(|_| Error::NoCertificate { addr })?,
        };
        let handshake = async {
            let tcp = self.connector.connect(addr, bound).await?;
            tls::client::connect(&material, peer, alpn, addr.ip(), tcp)
                .await
                .map_err(|source| Error::Tls { addr, source })
        };
        let io = timeout(bound, handshake)
            .await
            .map_err(|_| Error::ConnectTimeout { addr, after: bound })??;
        let _open = self.metrics.connection(Direction::Outbound, Tls::Mutual);
        let of = connections.open(Tls::Mutual);
        Ok(Connected { io: Io::Mutual(Box::new(io)), _open, of, _berth })
    }
}

impl Connected {
    /// Counts the bytes of a connection that carried nothing else.
    pub(super) fn carried(&self, metrics: &Metrics, carried: &Carried) {
        metrics.carried(Direction::Outbound, carried.a_to_b, carried.b_to_a);
        self.of.carried(carried.a_to_b, carried.b_to_a);
    }
}

impl Reset for Connected {
    fn reset(&self) {
        match &self.io {
            Io::Plain(io) => io.reset(),
            Io::Mutual(io) => io.reset(),
        }
    }
}

macro_rules! delegate {
    ($self:ident, $io:ident => $call:expr) => {
        match &mut $self.get_mut().io {
            Io::Plain($io) => {
                let $io = Pin::new($io);
                $call
            }
            Io::Mutual($io) => {
                let $io = Pin::new($io.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Connected {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Connected {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, io => io.poll_shutdown(cx))
    }
}
