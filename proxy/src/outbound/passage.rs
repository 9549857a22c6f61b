//! A connection of bytes on its way to an endpoint: chosen, dialled, carried, told of.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::HeaderMap;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};

use super::{
    Outbound, Upstream,
    dial::Connected,
    places::{NoPlace, Places},
    verdict,
};
use crate::{
    balance::{
        bulkhead::Permit,
        pick::{Picked, Tried, pick},
        policy::Affinity,
        retry::{StopReason, Verdict},
        stats::{InFlight, Outcome},
    },
    discovery::Endpoint,
    error::{Error, Sent},
    metrics::Direction,
    net::{
        connect::Reset,
        copy::{self, Carried},
    },
    sight::{
        finished::{self as sight, Connection},
        story::{Attempt, Outcome as Told, Story},
    },
    tls::Alpn,
};

/// Endpoints tried for one connection: nothing was sent to those that could not be dialled.
const MAX_DIALS: usize = 3;

/// What was carried, as it is recorded; `host`: for whom, where the first bytes said so.
pub(super) fn told<'a>(carried: &Carried, host: Option<&'a str>) -> sight::Carried<'a> {
    sight::Carried { sent: carried.a_to_b, received: carried.b_to_a, host }
}

/// What counts a connection as in flight, for as long as it lives.
pub(super) struct Carrying {
    /// Longest pause.
    pub(super) idle: Option<Duration>,
    _guard: InFlight<Endpoint>,
    _permit: Option<Permit>,
}

/// One connection on its way to an endpoint, and what is told of it.
pub(super) struct Passage<'a> {
    outbound: &'a Outbound,
    upstream: &'a Upstream,
    via: &'a Upstream,
    client: IpAddr,
    story: Story,
}

impl<'a> Passage<'a> {
    /// `via`: whom a route of `upstream` leads to.
    pub(super) fn new(
        outbound: &'a Outbound,
        (upstream, via): (&'a Upstream, &'a Upstream),
        client: IpAddr,
    ) -> Self {
        let story = Story::of_connection(Instant::now());
        Self { outbound, upstream, via, client, story }
    }

    /// Carries what there is after what was `carried` already.
    pub(super) async fn relay<C>(
        &self,
        client: &mut C,
        (server, carrying): (&mut Connected, &Carrying),
        mut carried: Carried,
    ) where
        C: AsyncRead + AsyncWrite + Reset + Unpin,
    {
        let copied = copy::bidirectional(client, server, &mut carried, carrying.idle).await;
        server.carried(&self.outbound.metrics, &carried);
        self.over(&carried, copied.err());
    }

    /// It is over; `broken`: before both sides had ended.
    pub(super) fn over(&self, carried: &Carried, broken: Option<copy::Broken>) {
        let error = broken.and_then(|broken| {
            self.outbound.cut(&broken).or_else(|| self.turned_away(broken, carried))
        });
        self.tell(Some(told(carried, None)), error.as_ref());
    }

    /// An endpoint that breaks the connection before it has said a word has not served it; later that may
    /// be its way to end one.
    fn turned_away(&self, broken: copy::Broken, carried: &Carried) -> Option<Error> {
        let addr = self.story.attempts().last()?.endpoint.addr;
        match broken {
            copy::Broken::Io { side: copy::Side::B, error } if carried.b_to_a == 0 => {
                let detail = error.to_string();
                Some(Error::UpstreamReset { addr, detail, sent: Sent::Maybe })
            }
            _ => None,
        }
    }

    /// Ends a connection that finds no endpoint.
    pub(super) fn refuse(&self, client: &TcpStream, error: &Error) {
        self.outbound.error(error.reason());
        tracing::debug!(%error, "connection refused");
        client.reset();
        self.tell(None, Some(error));
    }

    fn tell(&self, carried: Option<sight::Carried<'_>>, error: Option<&Error>) {
        let over = Connection {
            direction: Direction::Outbound,
            target: self.upstream,
            service: Some(self.via),
            client: Some(self.client),
            peer: None,
            policy: None,
            story: &self.story,
            carried,
            error,
        };
        self.outbound.sight.connection(over, Instant::now());
    }

    /// One connection to one endpoint; another endpoint where the dial fails.
    pub(super) async fn connect(&mut self) -> Result<(Connected, Carrying), Error> {
        let (outbound, upstream, client) = (self.outbound, self.via, self.client);
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
            let began = Instant::now();
            let seen = |endpoint: &Endpoint| {
                let known = tried.iter().any(|t| std::ptr::eq(Arc::as_ptr(t), endpoint));
                if known { Tried::Exclude } else { Tried::No }
            };
            let now = began.into_std();
            let wish = upstream.wish(&snapshot, None::<&HeaderMap>, client, now);
            let picked = {
                let mut rng = outbound.rng.lock();
                let cursor = upstream.cursor();
                pick(&snapshot.endpoints, policy, cursor, wish, seen, now, &mut rng)
            };
            let picked = picked.map_err(|none| upstream.nobody(none))?;
            let Picked { mut guard, choice, .. } = picked;
            let endpoint = Arc::clone(guard.endpoint());
            let place = (&places, &snapshot, upstream.connections());
            let dialled = outbound.dial(&endpoint, Alpn::Tcp, place, policy.timeouts.connect).await;
            let now = Instant::now();
            let outcome = dialled.as_ref().map_or_else(verdict::failure, |_| Outcome::Success);
            let ejected = {
                let rng = &mut outbound.rng.lock();
                guard.report(now.into_std(), now - began, outcome, policy, rng)
            };
            outbound.ejected(upstream, &endpoint, ejected);
            if dialled.is_ok() && guard.is_probe() && endpoint.stats.breaker().is_closed() {
                outbound.recovered(upstream, &endpoint);
            }
            let last = tried.len() + 1 >= MAX_DIALS.min(snapshot.endpoints.len());
            self.story.tell(Attempt {
                endpoint: Arc::clone(&endpoint),
                choice,
                other: choice.other.map(|other| snapshot.endpoints[other].addr),
                began,
                verdict: match dialled {
                    Ok(_) => Verdict::Stop(StopReason::NotRetryable),
                    Err(_) if last => Verdict::Stop(StopReason::Limit),
                    Err(_) => Verdict::Retry { backoff: Duration::ZERO },
                },
                result: match &dialled {
                    Ok(_) => Told::Connected(now),
                    Err(error) => Told::failed(error, now),
                },
            });
            match dialled {
                Ok(server) => {
                    if let Some(Affinity::ClientAddress { timeout }) = &policy.affinity {
                        let token = endpoint.stats.token();
                        upstream.traffic().clients.keep(client, token, *timeout, now.into_std());
                    }
                    let idle = policy.timeouts.idle;
                    return Ok((server, Carrying { idle, _guard: guard, _permit: permit }));
                }
                Err(error) if last => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "trying another endpoint");
                    tried.push(endpoint);
                }
            }
        }
    }
}
