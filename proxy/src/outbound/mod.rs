//! The way out: connections that the pod's application opens.
//!
//! Accept → original destination → what is it (discovery) → what does it speak (hint, or the first
//! bytes) → [`http`]: per request pick, send, classify, retry; [`tcp`]: per connection.

mod attempt;
mod books;
mod call;
pub mod deadline;
mod dial;
mod done;
mod h1;
mod h2;
pub mod http;
mod learned;
mod mirror;
mod passage;
mod places;
mod record;
mod routed;
mod snapshot;
pub mod tcp;
#[cfg(test)]
mod testing;
mod verdict;

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use bytes::BytesMut;
use parking_lot::Mutex;
use remora_core::{authority::Authority, drain, settings::HeaderSize};
use tokio::net::TcpStream;

use self::snapshot::{By, Snapshot};
use crate::{
    balance::{
        affinity,
        pick::{NoEndpoint, Wish},
        policy::{Affinity, Algorithm},
    },
    discovery::{
        Discovery, DiscoveryError, PodTarget, Protocol, Resolution, Service, Target,
        traffic::Traffic,
    },
    error::{Error, Reason},
    fields::Fields,
    http::{Version, h1 as http1, h2 as http2, told},
    metrics::{Direction, Metrics, Tls, bodies::Bodies, connections::Connections},
    net::{
        admission::{Admission, Admitted},
        client_hello::ClientHello,
        connect::{Connector, Reset, reset_on_drop},
        copy,
        detect::{self, Detected},
        listener::{self, original_destination},
        prefixed::Prefixed,
    },
    shared::Shared,
    sight::{Sight, finished::Connection, story::Story},
    tls::identity::Identity,
};

/// Idle HTTP/1.1 connections to endpoints close after this time.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// The outbound side of one worker.
#[derive(Debug)]
pub struct Outbound {
    discovery: Discovery,
    identity: Identity,
    connector: Connector,
    /// HTTP/1 connections that wait for their next request.
    idle: http1::pool::Pool<dial::Key, dial::Connected>,
    /// HTTP/2 connections, shared by all streams.
    shared: http2::pool::Pool<dial::Key>,
    learned: learned::Learned,
    metrics: Arc<Metrics>,
    sight: Arc<Sight>,
    rng: Mutex<fastrand::Rng>,
    mirrors: mirror::Mirrors,
    admission: Arc<Admission>,
    max_header_size: HeaderSize,
    drain: drain::Watch,
    /// Our own listeners: a connection to one of them would come back for ever.
    own: Arc<[SocketAddr]>,
    /// Addresses of this pod: a dial to them stays inside it and never meets a proxy.
    pod_ips: Arc<[IpAddr]>,
}

/// Where a connection is headed.
#[derive(Debug, Clone)]
pub enum Source {
    /// The redirect rules know.
    Redirected,
    /// The listener is for one authority.
    Explicit(Arc<str>),
}

/// Whom requests of a connection go to.
#[derive(Debug, Clone)]
pub(crate) enum Upstream {
    Service(Arc<Service>),
    Pod(Arc<PodTarget>),
}

impl Outbound {
    /// A side with nothing pooled yet.
    #[must_use]
    pub fn new(shared: &Shared, rng: fastrand::Rng, own: Arc<[SocketAddr]>) -> Self {
        Self {
            discovery: shared.discovery.clone(),
            identity: shared.identity.clone(),
            connector: shared.connector,
            idle: http1::pool::Pool::new(POOL_IDLE),
            shared: http2::pool::Pool::default(),
            learned: learned::Learned::default(),
            metrics: Arc::clone(&shared.metrics),
            rng: Mutex::new(rng),
            mirrors: mirror::Mirrors::default(),
            admission: Arc::clone(&shared.admission),
            max_header_size: shared.max_header_size,
            drain: shared.drain.clone(),
            own,
            pod_ips: Arc::clone(&shared.pod_ips),
            sight: Arc::clone(&shared.sight),
        }
    }

    /// Closes pooled connections that were idle too long; called now and then.
    pub fn sweep(&self, now: tokio::time::Instant) {
        self.idle.sweep(now);
        self.shared.sweep();
        if self.idle.is_empty() && self.shared.is_empty() {
            return;
        }
        // Nothing goes to endpoints that left, so their connections are of no use.
        let mut live = HashSet::new();
        for (_, resolution) in self.discovery.all() {
            match resolution {
                Some(Resolution::Service(service)) => {
                    live.extend(service.state().endpoints.iter().map(Arc::as_ptr));
                }
                Some(Resolution::Pod(pod)) => drop(live.insert(Arc::as_ptr(&pod.endpoint))),
                _ => {}
            }
        }
        let gone = |key: &dial::Key| !live.contains(&Arc::as_ptr(&key.0));
        self.idle.forget(gone);
        self.shared.forget(gone);
    }

    /// Takes one accepted connection to its end.
    pub async fn serve(self: Arc<Self>, client: TcpStream, admitted: Admitted, source: Source) {
        let _place = match admitted {
            Admitted::Yes(place) => place,
            Admitted::No(_place) => {
                return self.tell(client, Error::Overloaded(listener::FULL)).await;
            }
        };
        let target = match &source {
            Source::Explicit(authority) => match authority.parse() {
                Ok(Authority::Address(addr)) => Target::Address(addr),
                _ => Target::Authority(authority.to_string()),
            },
            Source::Redirected => match original_destination(&client) {
                Ok(addr) if listener::is_own(&client, addr, &self.own) => {
                    return self.refuse(&client, &Error::Loop(addr));
                }
                Ok(addr) => Target::Address(addr),
                Err(_) => return,
            },
        };
        match self.resolve(&target).await {
            Ok(Resolution::Service(service)) => {
                let protocol = service.state().protocol;
                self.speak(client, target, Upstream::Service(service), protocol).await;
            }
            Ok(Resolution::Pod(pod)) => {
                let protocol = pod.protocol;
                self.speak(client, target, Upstream::Pod(pod), protocol).await;
            }
            Ok(Resolution::NotOurs) => match target {
                Target::Address(addr) => tcp::pass_through(&self, client, addr).await,
                Target::Authority(name) => self.refuse(&client, &Error::NoRoute(name)),
            },
            Ok(Resolution::Refused(why)) => {
                self.refuse(&client, &Error::NoRoute(why.to_string()));
            }
            Err(error) => {
                tracing::warn!(%error, "destination is unknown");
                self.tell(client, error).await;
            }
        }
    }

    async fn resolve(&self, target: &Target) -> Result<Resolution, Error> {
        let now = tokio::time::Instant::now().into_std();
        if let Some(known) = self.discovery.cached(target, now) {
            return Ok(known);
        }
        self.discovery.resolve(target, now).await.map_err(|error| match error {
            DiscoveryError::Timeout { target, waited, .. } => {
                Error::DiscoveryTimeout { target: target.to_string(), after: waited }
            }
            DiscoveryError::TooMany { .. } => Error::Overloaded("too many different destinations"),
        })
    }

    /// Finds out what is spoken and hands over.
    async fn speak(
        self: Arc<Self>,
        mut client: TcpStream,
        target: Target,
        upstream: Upstream,
        protocol: Protocol,
    ) {
        let mut seen = BytesMut::new();
        let ways = upstream.stream_ways();
        let found = match protocol {
            Protocol::Http1 => Detected::Http1,
            Protocol::Http2 => Detected::Http2,
            Protocol::Opaque if !ways.by_name => Detected::Opaque,
            Protocol::Tls if !ways.by_name => Detected::Tls(ClientHello::default()),
            Protocol::Detect if self.learned.is_opaque(&target) => Detected::Opaque,
            Protocol::Detect | Protocol::Tls | Protocol::Opaque => {
                let (metrics, outbound) = (&self.metrics, Direction::Outbound);
                match detect::timed(&mut client, &mut seen, metrics, outbound).await {
                    Ok(found) => {
                        self.metrics.detected(Direction::Outbound, found.as_str());
                        found
                    }
                    Err(_) => return reset_on_drop(&client),
                }
            }
        };
        let found = match found {
            // Only a name says where such a connection goes, so the client has to speak first.
            Detected::Silent if ways.only_by_name => {
                match detect::detect(&mut client, &mut seen, routed::NAME_WITHIN).await {
                    Ok(found) => found,
                    Err(_) => return reset_on_drop(&client),
                }
            }
            found => found,
        };
        let bytes = ways.only_bytes || matches!(protocol, Protocol::Tls | Protocol::Opaque);
        match found {
            Detected::Silent if !ways.only_by_name => {
                match self.stream_upstream(&upstream, None).await {
                    Ok(via) => tcp::first_word(&self, client, target, (upstream, via)).await,
                    Err(error) => self.refuse(&client, &error),
                }
            }
            Detected::Http1 if !bytes => {
                self.http(client, seen, Version::H1, target, upstream).await;
            }
            Detected::Http2 if !bytes => {
                self.http(client, seen, Version::H2, target, upstream).await;
            }
            found => {
                let name = match &found {
                    Detected::Tls(hello) => hello.sni.as_deref(),
                    _ => None,
                };
                match self.stream_upstream(&upstream, name).await {
                    Ok(via) => {
                        let client = Prefixed::new(seen.freeze(), client);
                        tcp::carry(&self, client, (&upstream, &via)).await;
                    }
                    Err(error) => self.refuse(&client, &error),
                }
            }
        }
    }

    async fn http(
        self: Arc<Self>,
        client: TcpStream,
        seen: BytesMut,
        version: Version,
        target: Target,
        upstream: Upstream,
    ) {
        let _open = self.metrics.connection(Direction::Outbound, Tls::None);
        let (drain, limit) = (self.drain.clone(), self.max_header_size);
        let requests = http::Requests::new(self, address_of(&client), target, upstream);
        match version {
            Version::H1 => {
                let client = http1::wire::Wire::new(client, seen.into());
                http1::server::serve(client, &requests, limit, &drain).await;
            }
            Version::H2 => {
                let requests = Arc::new(requests);
                // Boxed: hyper moves it about.
                let handler = |request| Box::pin(h2::handle(Arc::clone(&requests), request));
                let io = Prefixed::new(seen.freeze(), client);
                let budget = http2::guard::Budget::KNOWN;
                if let Err(error) = http2::server::serve(io, (budget, limit), handler, &drain).await
                {
                    tracing::debug!(%error, "client connection ended");
                }
            }
        }
    }

    /// Ends a connection that cannot be served, as a refused dial would end.
    fn refuse(&self, client: &TcpStream, error: &Error) {
        self.refused(client, error);
        tracing::debug!(%error, "connection refused");
        client.reset();
    }

    /// Counts and records a connection that is not carried.
    fn refused(&self, client: &TcpStream, error: &Error) {
        self.metrics.error(Direction::Outbound, error.reason());
        let to = original_destination(client).or_else(|_| client.local_addr());
        let to = to.map_or("a connection that is gone".to_owned(), |to| to.to_string());
        let now = tokio::time::Instant::now();
        let refused = Connection {
            direction: Direction::Outbound,
            target: &to,
            service: None,
            client: Some(address_of(client)),
            peer: None,
            policy: None,
            story: &Story::of_connection(now),
            carried: None,
            error: Some(error),
        };
        self.sight.connection(refused, now);
    }

    /// Counts a connection that is not carried, and tells its client why, where it can be told.
    async fn tell(&self, client: TcpStream, error: Error) {
        self.refused(&client, &error);
        told::tell(client, error, &self.drain).await;
    }

    fn error(&self, reason: Reason) {
        self.metrics.error(Direction::Outbound, reason);
    }

    /// Counts a connection of bytes that did not end in order, and says why, where the end was our doing.
    fn cut(&self, broken: &copy::Broken) -> Option<Error> {
        let error = match *broken {
            copy::Broken::Idle { after, owing: copy::Side::A } => Error::ClientIdle(after),
            copy::Broken::Idle { after, owing: copy::Side::B } => Error::UpstreamIdle(after),
            copy::Broken::Io { .. } => {
                tracing::debug!(%broken, "connection broke");
                return None;
            }
        };
        self.error(error.reason());
        tracing::debug!(%error, "connection cut");
        Some(error)
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => service.id.fmt(f),
            Self::Pod(pod) => pod.endpoint.addr.fmt(f),
        }
    }
}

/// Where a connection comes from; it may be gone already, and then nobody minds.
fn address_of(client: &TcpStream) -> IpAddr {
    client.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip())
}

impl Upstream {
    /// For error texts.
    fn name(&self) -> String {
        self.to_string()
    }

    /// Policy and endpoints of one moment.
    fn snapshot(&self) -> Snapshot {
        match self {
            Self::Service(service) => {
                let state = service.state();
                Snapshot {
                    policy: Arc::clone(&state.policy),
                    endpoints: Arc::clone(&state.endpoints),
                    routes: (!state.routes.is_empty()).then(|| Arc::clone(&state.routes)),
                    by: By::Dialled,
                }
            }
            Self::Pod(pod) => Snapshot {
                policy: Arc::clone(&pod.policy),
                endpoints: Arc::clone(&pod.endpoints),
                routes: None,
                by: By::Dialled,
            },
        }
    }

    fn traffic(&self) -> &Traffic {
        match self {
            Self::Service(service) => &service.traffic,
            Self::Pod(pod) => &pod.traffic,
        }
    }

    fn bodies(&self) -> &Arc<Bodies> {
        &self.traffic().bodies
    }

    fn connections(&self) -> &Arc<Connections> {
        &self.traffic().connections
    }

    fn cursor(&self) -> &AtomicUsize {
        &self.traffic().cursor
    }

    /// What a request, or a connection without `fields`, asks of the choice of its endpoint.
    fn wish(
        &self,
        snapshot: &Snapshot,
        fields: Option<&impl Fields>,
        client: IpAddr,
        now: std::time::Instant,
    ) -> Wish {
        let Snapshot { policy, endpoints, .. } = snapshot;
        let token = match snapshot.affinity() {
            None => None,
            Some(Affinity::Cookie { name, .. }) => fields.and_then(|f| affinity::named(f, name)),
            Some(Affinity::Header { name }) => fields.and_then(|f| affinity::in_field(f, name)),
            Some(Affinity::ClientAddress { timeout }) => {
                self.traffic().clients.find(client, *timeout, now)
            }
        };
        let hashes = policy.balancer.algorithm == Algorithm::RingHash;
        Wish {
            prefer: token.and_then(|token| endpoints.find(token)),
            key: hashes.then(|| policy.balancer.hash_on.key(fields, client)).flatten(),
        }
    }

    /// What it means that there is no choice.
    fn nobody(&self, none: NoEndpoint) -> Error {
        match none {
            NoEndpoint::AllEjected { retry_after } => {
                Error::AllEjected { service: self.name(), retry_after }
            }
            NoEndpoint::Empty | NoEndpoint::AllExcluded => {
                Error::NoEndpoints { service: self.name() }
            }
        }
    }
}
