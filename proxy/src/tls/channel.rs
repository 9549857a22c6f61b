//! gRPC to the control plane: TCP with keep-alive and our own TLS, beneath tonic.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use remora_core::spiffe::SpiffeId;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::AsyncBufReadExt,
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use super::TlsError;

/// Longest time for name look-up, TCP and TLS together, of all addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for one address where there is another.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(1);
/// Pings tell a dead control plane from a quiet one.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// Where the control plane is and who it must be.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// `host:port`; looked up anew for every connection, so that it may move.
    pub authority: Arc<str>,
    /// Identity that it must prove.
    pub id: SpiffeId,
    /// Socket mark that exempts the connection from redirection, where one is used.
    pub mark: Option<u32>,
}

/// The control plane cannot be reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChannelError {
    /// The name has no address.
    #[error("control plane {authority}: name look-up failed: {problem}")]
    Lookup {
        /// `host:port`.
        authority: Arc<str>,
        /// What the resolver said.
        problem: Arc<io::Error>,
    },
    /// No address took the connection.
    #[error("control plane at {authority} unreachable: {problem}")]
    Connect {
        /// `host:port`.
        authority: Arc<str>,
        /// What the last address said.
        problem: Arc<io::Error>,
    },
    /// No answer in time.
    #[error("control plane at {authority} unreachable: no connection within {CONNECT_TIMEOUT:?}")]
    Timeout {
        /// `host:port`.
        authority: Arc<str>,
    },
    /// It is there, but not who it must be, or it does not accept us.
    #[error("control plane at {authority}: {problem}")]
    Tls {
        /// `host:port`.
        authority: Arc<str>,
        /// What was wrong.
        #[source]
        problem: TlsError,
    },
    /// HTTP/2 could not begin.
    #[error("control plane at {authority}: {problem}")]
    Http2 {
        /// `host:port`.
        authority: Arc<str>,
        /// What tonic said.
        problem: Arc<str>,
    },
}

impl ChannelError {
    /// Whether roots or certificates stand between us, so that new ones may help.
    #[must_use]
    pub fn is_trust(&self) -> bool {
        matches!(
            self,
            Self::Tls {
                problem: TlsError::UnknownIssuer
                    | TlsError::Refused { .. }
                    | TlsError::Validity { .. },
                ..
            }
        )
    }
}

impl ControlPlane {
    /// Connects, so that a failure is known at once and by its cause. The channel does not
    /// reconnect: its owner decides when to try again.
    ///
    /// Where the name has several addresses, one is taken at random, so that proxies spread over
    /// them, and the others are tried when it fails.
    ///
    /// # Errors
    /// Says what stands between us and the control plane.
    pub async fn connect(
        &self,
        config: ClientConfig,
        rng: &mut fastrand::Rng,
    ) -> Result<Channel, ChannelError> {
        tokio::time::timeout(CONNECT_TIMEOUT, self.dial(Arc::new(config), rng))
            .await
            .map_err(|_| ChannelError::Timeout { authority: self.authority.clone() })?
    }

    async fn dial(
        &self,
        config: Arc<ClientConfig>,
        rng: &mut fastrand::Rng,
    ) -> Result<Channel, ChannelError> {
        let lookup = |problem: io::Error| ChannelError::Lookup {
            authority: self.authority.clone(),
            problem: Arc::new(problem),
        };
        let addresses = tokio::net::lookup_host(&*self.authority).await.map_err(lookup)?;
        self.dial_any(addresses.collect(), config, rng).await
    }

    /// The first of `addresses` that takes the connection, in an order by chance.
    pub(crate) async fn dial_any(
        &self,
        mut addresses: Vec<SocketAddr>,
        config: Arc<ClientConfig>,
        rng: &mut fastrand::Rng,
    ) -> Result<Channel, ChannelError> {
        rng.shuffle(&mut addresses);
        let problem = Arc::new(io::Error::new(io::ErrorKind::NotFound, "name has no address"));
        let mut failed = ChannelError::Connect { authority: self.authority.clone(), problem };
        for (n, address) in addresses.iter().enumerate() {
            let another = n + 1 < addresses.len();
            match self.dial_one(config.clone(), *address, another).await {
                Ok(channel) => return Ok(channel),
                // What one holds against us tells more than that the next is not there.
                Err(_) if failed.is_trust() => {}
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// One address; `bounded` where there is another to try.
    async fn dial_one(
        &self,
        config: Arc<ClientConfig>,
        address: SocketAddr,
        bounded: bool,
    ) -> Result<Channel, ChannelError> {
        let authority = || self.authority.clone();
        let connect = async {
            let tcp = tcp(address, self.mark).await.map_err(|problem| ChannelError::Connect {
                authority: authority(),
                problem: Arc::new(problem),
            })?;
            let stream = self.handshake(config, address, tcp).await?;
            channel_over(stream).await.map_err(|error| ChannelError::Http2 {
                authority: authority(),
                problem: error_chain(&error).into(),
            })
        };
        let within = if bounded { ADDRESS_TIMEOUT } else { CONNECT_TIMEOUT };
        tokio::time::timeout(within, connect)
            .await
            .map_err(|_| ChannelError::Timeout { authority: authority() })?
    }

    async fn handshake(
        &self,
        config: Arc<ClientConfig>,
        address: SocketAddr,
        tcp: TcpStream,
    ) -> Result<TlsStream<TcpStream>, ChannelError> {
        // Whom we talk to is decided by the SPIFFE id; the address as a name sends no SNI.
        let name = ServerName::IpAddress(address.ip().into());
        let failed = |error: io::Error| ChannelError::Tls {
            authority: self.authority.clone(),
            problem: error.into(),
        };
        let mut stream = TlsConnector::from(config).connect(name, tcp).await.map_err(failed)?;
        // In TLS 1.3 the server judges our certificate when we are done already. It begins to speak,
        // with HTTP/2's SETTINGS, once it has taken us.
        stream.fill_buf().await.map_err(failed)?;
        Ok(stream)
    }
}

/// A connection with keep-alive; `mark` exempts it from redirection, where one is used.
pub(crate) async fn tcp(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    let options = SockRef::from(&socket);
    if let Some(mark) = mark {
        options.set_mark(mark)?;
    }
    options.set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE))?;
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

/// HTTP/2 over one connection that is there already; it is not replaced when it ends.
pub(crate) async fn channel_over<IO>(io: IO) -> Result<Channel, tonic::transport::Error>
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let mut io = Some(io);
    let connector = tower::service_fn(move |_: http::Uri| {
        let io = io.take().ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotConnected, "connection to the control plane ended")
        });
        std::future::ready(io.map(TokioIo::new))
    });
    // TLS is below; the scheme only fills `:scheme`.
    Endpoint::from_static("http://control-plane")
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
}

/// An error with its sources in one line; tonic's Display leaves the cause out.
pub(crate) fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
