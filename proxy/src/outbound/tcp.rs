//! Connections carried as bytes: opaque services, the application's own TLS, and everything that
//! is not ours.

use std::{
    future::pending,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use http::HeaderMap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use super::{
    Outbound, Upstream, address_of,
    dial::Connected,
    places::{NoPlace, Places},
    verdict,
};
use crate::{
    balance::{
        bulkhead::Permit,
        pick::{Tried, pick},
        policy::Affinity,
        stats::{InFlight, Outcome},
    },
    discovery::{Endpoint, Target},
    error::Error,
    http::Version,
    metrics::{Direction, Tls},
    net::{
        connect::Reset,
        copy::{self, Carried},
        detect::{self, Detected},
        overheard::Overheard,
        prefixed::Prefixed,
    },
    tls::Alpn,
};

/// Endpoints tried for one connection: nothing was sent to those that could not be dialled.
const MAX_DIALS: usize = 3;
/// Bytes of a server's first word that are carried at once.
const FIRST_WORD: usize = 4096;

/// Not in the mesh's world: on to where it was going, untouched.
pub(super) async fn pass_through(outbound: &Outbound, client: TcpStream, addr: SocketAddr) {
    let metrics = &outbound.metrics;
    let mut client = Overheard::new(client, |name| metrics.passed_through.count(name));
    let _open = outbound.metrics.connection(Direction::Outbound, Tls::Passthrough);
    // The application's own patience is the bound here, as it would be without us.
    let bound = Duration::from_secs(120);
    match outbound.connector.connect(addr, bound).await {
        Ok(mut server) => {
            let mut carried = Carried::default();
            let _ = copy::bidirectional(&mut client, &mut server, &mut carried, None).await;
            outbound.metrics.carried(Direction::Outbound, carried.a_to_b, carried.b_to_a);
        }
        Err(error) => outbound.refuse(client.get_ref(), &error),
    }
}

/// Picks an endpoint, connects and carries to the end.
pub(super) async fn carry(
    outbound: &Outbound,
    mut client: Prefixed<TcpStream>,
    upstream: &Upstream,
) {
    match connect(outbound, upstream, address_of(client.get_ref())).await {
        Ok((mut server, carrying)) => {
            relay(outbound, &mut client, &mut server, &carrying).await;
        }
        Err(error) => outbound.refuse(client.get_ref(), &error),
    }
}

/// The client is silent: connect, to `via`, and see who speaks.
///
/// A server that does is remembered, so that the next client does not wait. A client that speaks
/// after all may still turn out to be HTTP; then the connection that was opened carries nothing
/// and closes, and requests are balanced as ever.
pub(super) async fn first_word(
    outbound: &Arc<Outbound>,
    mut client: TcpStream,
    target: Target,
    (upstream, via): (Upstream, Upstream),
) {
    let (mut server, carrying) = match connect(outbound, &via, address_of(&client)).await {
        Ok(connected) => connected,
        Err(error) => return outbound.refuse(&client, &error),
    };
    let (mut question, mut greeting) =
        (BytesMut::with_capacity(2048), BytesMut::with_capacity(FIRST_WORD));
    let server_spoke = tokio::select! {
        read = client.read_buf(&mut question) => match read {
            Ok(_) => false,
            Err(_) => return server.reset(),
        },
        read = server.read_buf(&mut greeting) => match read {
            Ok(_) => true,
            Err(_) => return client.reset(),
        },
        broken = silence(carrying.idle) => {
            outbound.cut(&broken);
            client.reset();
            return server.reset();
        }
    };
    if server_spoke {
        if !greeting.is_empty() {
            outbound.learned.server_first(&target);
            if client.write_all(&greeting).await.is_err() {
                return server.reset();
            }
        }
        drop(greeting);
        // An end without a word is found again by the copy.
        return relay(outbound, &mut client, &mut server, &carrying).await;
    }
    let found = if question.is_empty() {
        Ok(Detected::Opaque)
    } else {
        detect::detect(&mut client, &mut question, detect::FIRST_BYTE).await
    };
    let version = match found {
        Ok(Detected::Http1) => Version::H1,
        Ok(Detected::Http2) => Version::H2,
        Ok(_) => {
            let mut client = Prefixed::new(question.freeze(), client);
            return relay(outbound, &mut client, &mut server, &carrying).await;
        }
        Err(_) => return server.reset(),
    };
    // An orderly end: the application should not take it for a client that crashed.
    let _ = server.shutdown().await;
    drop((server, carrying));
    Arc::clone(outbound).http(client, question, version, target, upstream).await;
}

async fn relay<C>(outbound: &Outbound, client: &mut C, server: &mut Connected, carrying: &Carrying)
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Reset + Unpin,
{
    let mut carried = Carried::default();
    let copied = copy::bidirectional(client, server, &mut carried, carrying.idle);
    if let Err(broken) = copied.await {
        outbound.cut(&broken);
    }
    server.carried(&outbound.metrics, &carried);
}

/// Resolves where nobody says a first word within the bound on pauses.
async fn silence(bound: Option<Duration>) -> copy::Broken {
    let Some(after) = bound else { return pending().await };
    sleep(after).await;
    copy::Broken::Idle { after, owing: copy::Side::A }
}

/// What counts a connection as in flight, for as long as it lives.
struct Carrying {
    /// Longest pause.
    idle: Option<Duration>,
    _guard: InFlight<Endpoint>,
    _permit: Option<Permit>,
}

/// One connection to one endpoint; another endpoint where the dial fails.
async fn connect(
    outbound: &Outbound,
    upstream: &Upstream,
    client: IpAddr,
) -> Result<(Connected, Carrying), Error> {
    let snapshot = upstream.snapshot();
    let policy = &snapshot.policy;
    let places = Places::of(upstream, &snapshot);
    let permit = match places.enter(true, None).await {
        Ok(permit) => permit,
        Err(NoPlace::Overloaded(error)) => return Err(error),
        Err(NoPlace::OutOfTime) => unreachable!("invariant: a connection has no deadline"),
    };
    let mut tried: Vec<Arc<Endpoint>> = Vec::new();
    loop {
        let started = tokio::time::Instant::now();
        let seen = |endpoint: &Endpoint| {
            let known = tried.iter().any(|t| std::ptr::eq(Arc::as_ptr(t), endpoint));
            if known { Tried::Exclude } else { Tried::No }
        };
        let now = started.into_std();
        let wish = upstream.wish(&snapshot, None::<&HeaderMap>, client, now);
        let picked = {
            let mut rng = outbound.rng.lock();
            let cursor = upstream.cursor();
            pick(&snapshot.endpoints, policy, cursor, wish, seen, now, &mut rng)
        };
        let mut guard = picked.map_err(|none| upstream.nobody(none))?.guard;
        let endpoint = Arc::clone(guard.endpoint());
        let place = (&places, &snapshot, upstream.connections());
        let dialled = outbound.dial(&endpoint, Alpn::Tcp, place, policy.timeouts.connect).await;
        let now = tokio::time::Instant::now();
        let outcome = dialled.as_ref().map_or_else(verdict::failure, |_| Outcome::Success);
        let ejected =
            guard.report(now.into_std(), now - started, outcome, policy, &mut outbound.rng.lock());
        outbound.ejected(upstream, &endpoint, ejected);
        if dialled.is_ok() && guard.is_probe() && endpoint.stats.breaker().is_closed() {
            outbound.recovered(upstream, &endpoint);
        }
        match dialled {
            Ok(server) => {
                if let Some(Affinity::ClientAddress { timeout }) = &policy.affinity {
                    let token = endpoint.stats.token();
                    upstream.traffic().clients.keep(client, token, *timeout, now.into_std());
                }
                let idle = policy.timeouts.idle;
                return Ok((server, Carrying { idle, _guard: guard, _permit: permit }));
            }
            Err(error) => {
                tried.push(endpoint);
                if tried.len() >= MAX_DIALS.min(snapshot.endpoints.len()) {
                    return Err(error);
                }
                tracing::debug!(%error, "trying another endpoint");
            }
        }
    }
}
