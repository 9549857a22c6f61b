//! The way in: connections to the pod's own ports.
//!
//! Accept → original destination → TLS with one of our ALPN tokens, or not → the caller's identity
//! → policy → [`http`] or bytes → the application, on the very address that was dialled.

mod authorize;
mod h1;
mod h2;
pub mod http;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use remora_core::{drain, settings::HeaderSize, spiffe::SpiffeId};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::{
    discovery::{Discovery, InboundPolicy, Protocol},
    error::Error,
    http::{MAX_ADDED, Version, h1 as http1, h2 as http2, told},
    metrics::{Direction, Metrics, Tls, inbound::Verdict},
    net::{
        admission::{Admission, Admitted},
        connect::{Connector, Reset},
        copy::{self, Carried},
        detect::{self, Detected},
        listener::{self, original_destination},
        prefixed::Prefixed,
    },
    shared::Shared,
    sight::{
        Sight,
        finished::{self, Connection},
        story::Story,
    },
    tls::{self, Alpn, identity::Identity},
};
use authorize::Caller;

/// A caller's TLS handshake must be done within this time.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A proxy that just started waits this long for its first configuration.
const CONFIGURED: Duration = Duration::from_secs(3);
/// The application is on this machine: a connection that takes longer will not come.
const CONNECT: Duration = Duration::from_secs(1);
/// Idle connections to the application close after this time, before most servers close them.
const POOL_IDLE: Duration = Duration::from_secs(3);

/// The inbound side of one worker.
#[derive(Debug)]
pub struct Inbound {
    discovery: Discovery,
    identity: Identity,
    connector: Connector,
    /// HTTP/1 connections to the application that wait for their next request.
    idle: http1::pool::Pool<SocketAddr, TcpStream>,
    /// HTTP/2 connections to it, shared by all streams.
    shared: http2::pool::Pool<SocketAddr>,
    metrics: Arc<Metrics>,
    sight: Arc<Sight>,
    admission: Arc<Admission>,
    max_header_size: HeaderSize,
    drain: drain::Watch,
    own: Arc<[SocketAddr]>,
}

/// Where a connection is headed.
#[derive(Debug, Clone, Copy)]
pub enum Source {
    /// The redirect rules know.
    Redirected,
    /// The listener is for one application.
    Explicit(SocketAddr),
}

/// One accepted connection: where it goes and who is calling.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    /// Where the application listens.
    app: SocketAddr,
    /// The port that policy speaks of.
    port: u16,
    caller: Caller,
    tls: Tls,
}

impl Inbound {
    /// A side with nothing pooled yet.
    #[must_use]
    pub fn new(shared: &Shared, own: Arc<[SocketAddr]>) -> Self {
        Self {
            discovery: shared.discovery.clone(),
            identity: shared.identity.clone(),
            connector: shared.connector,
            idle: http1::pool::Pool::new(POOL_IDLE),
            shared: http2::pool::Pool::default(),
            metrics: Arc::clone(&shared.metrics),
            admission: Arc::clone(&shared.admission),
            max_header_size: shared.max_header_size,
            drain: shared.drain.clone(),
            sight: Arc::clone(&shared.sight),
            own,
        }
    }

    /// Closes pooled connections that were idle too long; called now and then.
    pub fn sweep(&self, now: Instant) {
        self.idle.sweep(now);
        self.shared.sweep();
    }

    /// Takes one accepted connection to its end.
    pub async fn serve(
        self: Arc<Self>,
        mut client: TcpStream,
        peer: SocketAddr,
        admitted: Admitted,
        source: Source,
    ) {
        let _place = match admitted {
            Admitted::Yes(place) => place,
            Admitted::No(_place) => {
                let error = Error::Overloaded(listener::FULL);
                self.metrics.error(Direction::Inbound, error.reason());
                return told::tell(client, error, &self.drain).await;
            }
        };
        let (app, port) = match source {
            Source::Explicit(app) => (app, client.local_addr().map_or(app.port(), |a| a.port())),
            Source::Redirected => match original_destination(&client) {
                Ok(addr) if listener::is_own(&client, addr, &self.own) => {
                    return self.refuse(&client, &Error::Loop(addr));
                }
                Ok(addr) if listener::is_foreign(&client, addr) => {
                    let why = format!("{addr} is no address of this pod");
                    return self.refuse(&client, &Error::NoRoute(why));
                }
                Ok(addr) => (addr, addr.port()),
                Err(_) => return,
            },
        };
        // Until policy is known nobody is let in: the first answer may be "deny".
        let Ok(()) = timeout(CONFIGURED, self.discovery.wait_configured()).await else {
            let what = format!("policy of port {port}");
            return self
                .refuse(&client, &Error::DiscoveryTimeout { target: what, after: CONFIGURED });
        };
        let policy = self.discovery.inbound_policy();
        let mut seen = BytesMut::new();
        // Even an opaque port is looked at: the caller may be a proxy of ours.
        let (metrics, inbound) = (&self.metrics, Direction::Inbound);
        let Ok(found) = detect::timed(&mut client, &mut seen, metrics, inbound).await else {
            return;
        };
        if matches!(&found, Detected::Tls(hello) if hello.mesh) {
            return self.mutual(Prefixed::new(seen.freeze(), client), app, port, &policy).await;
        }
        let arrival = Arrival { app, port, caller: Caller::Unknown(peer.ip()), tls: Tls::None };
        self.plain(client, seen, found, arrival, &policy).await;
    }

    /// A caller whose proxy is one of ours.
    async fn mutual(
        self: Arc<Self>,
        client: Prefixed<TcpStream>,
        app: SocketAddr,
        port: u16,
        policy: &InboundPolicy,
    ) {
        let addr = client.get_ref().peer_addr().unwrap_or(app);
        let Some(material) = self.identity.current() else {
            return self.refuse(client.get_ref(), &Error::NoCertificate { addr });
        };
        let accepted = timeout(HANDSHAKE, tls::server::accept(&material, client)).await;
        let (client, caller, alpn) = match accepted {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(source)) => {
                let error = Error::Tls { addr, source };
                self.metrics.error(Direction::Inbound, error.reason());
                tracing::warn!(%error, "caller's handshake failed");
                return;
            }
            Err(_) => {
                let error = Error::ConnectTimeout { addr, after: HANDSHAKE };
                self.metrics.error(Direction::Inbound, error.reason());
                return;
            }
        };
        let arrival =
            Arrival { app, port, caller: Caller::Mesh(Arc::new(caller)), tls: Tls::Mutual };
        match alpn {
            Alpn::H1 => self.http(client, BytesMut::new(), Version::H1, arrival).await,
            Alpn::H2 => self.http(client, BytesMut::new(), Version::H2, arrival).await,
            Alpn::Tcp => self.carry(client, arrival, policy).await,
        }
    }

    /// A caller outside the mesh.
    async fn plain(
        self: Arc<Self>,
        client: TcpStream,
        seen: BytesMut,
        found: Detected,
        arrival: Arrival,
        policy: &InboundPolicy,
    ) {
        let found = match policy.protocol(arrival.port) {
            Protocol::Detect => {
                self.metrics.detected(Direction::Inbound, found.as_str());
                found
            }
            Protocol::Opaque | Protocol::Tls => Detected::Opaque,
            Protocol::Http1 => Detected::Http1,
            Protocol::Http2 => Detected::Http2,
        };
        match found {
            Detected::Silent => self.first_word(client, arrival, policy).await,
            Detected::Http1 => self.http(client, seen, Version::H1, arrival).await,
            Detected::Http2 => self.http(client, seen, Version::H2, arrival).await,
            Detected::Opaque | Detected::Tls(_) => {
                self.carry(Prefixed::new(seen.freeze(), client), arrival, policy).await;
            }
        }
    }

    async fn http<IO>(self: Arc<Self>, io: IO, seen: BytesMut, version: Version, arrival: Arrival)
    where
        IO: AsyncRead + AsyncWrite + Reset + Send + Unpin + 'static,
    {
        let _open = self.metrics.connection(Direction::Inbound, arrival.tls);
        let (drain, limit) = (self.drain.clone(), self.max_head(&arrival));
        let mesh = arrival.tls == Tls::Mutual;
        let requests = http::Requests::new(self, arrival);
        match version {
            Version::H1 => {
                let client = http1::wire::Wire::new(io, seen.into());
                let client = if mesh { client.without_half_close() } else { client };
                http1::server::serve(client, &requests, limit, &drain).await;
            }
            Version::H2 => {
                let requests = Arc::new(requests);
                // Boxed: hyper moves it about.
                let handler = |request| Box::pin(h2::handle(Arc::clone(&requests), request));
                let io = Prefixed::new(seen.freeze(), io);
                let known = http2::guard::Budget::KNOWN;
                let budget = if mesh { known } else { http2::guard::Budget::STRANGER };
                if let Err(error) = http2::server::serve(io, (budget, limit), handler, &drain).await
                {
                    tracing::debug!(%error, "caller's connection ended");
                }
            }
        }
    }

    /// Longest head of a request: what a proxy of ours lets pass, it may have added to.
    fn max_head(&self, arrival: &Arrival) -> HeaderSize {
        let added = if arrival.tls == Tls::Mutual { MAX_ADDED } else { 0 };
        self.max_header_size.with_room_for(added)
    }

    /// Bytes, once policy allows it.
    async fn carry<IO>(&self, mut client: IO, arrival: Arrival, policy: &InboundPolicy)
    where
        IO: AsyncRead + AsyncWrite + Reset + Unpin,
    {
        let story = Story::of_connection(tokio::time::Instant::now());
        let mut app = match self.allowed(&arrival, policy).await {
            Ok(app) => app,
            Err(error) => return self.turn_away(&client, &arrival, &error),
        };
        let sides = (&mut client, &mut app);
        self.relay(sides, (&arrival, &story), Carried::default()).await;
    }

    /// A silent caller: connect, and see who speaks.
    async fn first_word(
        self: Arc<Self>,
        mut client: TcpStream,
        arrival: Arrival,
        policy: &InboundPolicy,
    ) {
        let story = Story::of_connection(tokio::time::Instant::now());
        let mut app = match self.allowed(&arrival, policy).await {
            Ok(app) => app,
            Err(error) => return self.turn_away(&client, &arrival, &error),
        };
        let (mut question, mut greeting) =
            (BytesMut::with_capacity(2048), BytesMut::with_capacity(4096));
        let app_spoke = tokio::select! {
            read = client.read_buf(&mut question) => match read {
                Ok(_) => false,
                Err(_) => return app.reset(),
            },
            read = app.read_buf(&mut greeting) => match read {
                Ok(_) => true,
                Err(_) => return client.reset(),
            },
        };
        if app_spoke {
            if client.write_all(&greeting).await.is_err() {
                return app.reset();
            }
            let carried = Carried { b_to_a: greeting.len() as u64, ..Carried::default() };
            return self.relay((&mut client, &mut app), (&arrival, &story), carried).await;
        }
        let found = if question.is_empty() {
            Detected::Opaque
        } else {
            match detect::detect(&mut client, &mut question, detect::FIRST_BYTE).await {
                Ok(found) => found,
                Err(_) => return app.reset(),
            }
        };
        if matches!(&found, Detected::Tls(hello) if hello.mesh) {
            drop(app);
            let client = Prefixed::new(question.freeze(), client);
            return self.mutual(client, arrival.app, arrival.port, policy).await;
        }
        match found {
            Detected::Http1 => self.http(client, question, Version::H1, arrival).await,
            Detected::Http2 => self.http(client, question, Version::H2, arrival).await,
            _ => {
                let mut client = Prefixed::new(question.freeze(), client);
                let sides = (&mut client, &mut app);
                self.relay(sides, (&arrival, &story), Carried::default()).await;
            }
        }
    }

    /// Connects to the application, if policy lets the caller.
    async fn allowed(&self, arrival: &Arrival, policy: &InboundPolicy) -> Result<TcpStream, Error> {
        let trust_domain = self.trust_domain();
        let verdict = authorize::connection(policy, arrival, trust_domain.as_deref());
        let port = self.metrics.inbound.port(arrival.port, Instant::now().into_std());
        port.decided(*verdict.as_ref().unwrap_or(&Verdict::Denied));
        verdict?;
        self.connector.connect(arrival.app, CONNECT).await
    }

    fn trust_domain(&self) -> Option<Arc<str>> {
        self.identity.current().map(|m| Arc::from(m.id().trust_domain()))
    }

    /// Carries what there is after what was `carried` already.
    async fn relay<C>(
        &self,
        (client, app): (&mut C, &mut TcpStream),
        (arrival, story): (&Arrival, &Story),
        mut carried: Carried,
    ) where
        C: AsyncRead + AsyncWrite + Reset + Unpin,
    {
        let _open = self.metrics.connection(Direction::Inbound, arrival.tls);
        if let Err(error) = copy::bidirectional(client, app, &mut carried, None).await {
            tracing::debug!(%error, "connection broke");
        }
        let Carried { a_to_b: sent, b_to_a: received } = carried;
        self.metrics.carried(Direction::Inbound, sent, received);
        let carried = Some(finished::Carried { sent, received, host: None });
        self.tell((arrival, story), carried, None);
    }

    /// Records a connection that is over, or not carried.
    fn tell(
        &self,
        (arrival, story): (&Arrival, &Story),
        carried: Option<finished::Carried<'_>>,
        error: Option<&Error>,
    ) {
        let policy = self.discovery.inbound_policy();
        let over = Connection {
            direction: Direction::Inbound,
            target: &arrival.app,
            service: None,
            client: arrival.address(),
            peer: arrival.identity(),
            policy: Some(&*policy),
            story,
            carried,
            error,
        };
        self.sight.connection(over, tokio::time::Instant::now());
    }

    /// Ends a connection whose caller is known; it is recorded.
    fn turn_away(&self, client: &impl Reset, arrival: &Arrival, error: &Error) {
        let story = Story::of_connection(tokio::time::Instant::now());
        self.tell((arrival, &story), None, Some(error));
        self.refuse(client, error);
    }

    fn refuse(&self, client: &impl Reset, error: &Error) {
        self.metrics.error(Direction::Inbound, error.reason());
        tracing::debug!(%error, "connection refused");
        client.reset();
    }
}

impl Arrival {
    /// Where it comes from, where that says anything.
    fn address(&self) -> Option<IpAddr> {
        match self.caller {
            Caller::Unknown(ip) => Some(ip),
            Caller::Mesh(_) => None,
        }
    }

    fn identity(&self) -> Option<&SpiffeId> {
        match &self.caller {
            Caller::Mesh(id) => Some(id),
            Caller::Unknown(_) => None,
        }
    }
}
