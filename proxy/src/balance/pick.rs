//! Takes one endpoint of a snapshot.
//!
//! **Who can be chosen.** An endpoint is *ejected* while its breaker is not closed. Of `n`
//! endpoints at most `n / 2` (rounded down) are treated so; where more are ejected, those whose
//! next probe is nearest are balanced over as if they were not. So at least half of the endpoints,
//! and at least one, can always be chosen, a Service with one endpoint never loses it, and a fault
//! that hits all of them does not crush the last one standing. A Service without breaker policy
//! ejects nobody.
//!
//! **Which one.** Peak EWMA takes the cheaper of two, where their estimates differ by more than
//! noise (a fifth, and a millisecond); otherwise the one with fewer requests in flight, or a coin.
//!
//! **Probes.** A request that comes upon an ejected endpoint whose penalty is over becomes its
//! probe, if it is the first to ask; the probe is one ordinary request and goes to that endpoint
//! whatever it costs. A request that already failed once is a probe only where it would otherwise
//! have to go back to where it failed.
//!
//! **Doubt.** A failure costs so much latency that an endpoint that fails every call would be
//! shunned for minutes before it has failed often enough to be ejected. So one look in 32
//! at an endpoint whose last request failed ignores its cost: the breaker gets its
//! verdict after a bounded number of requests, of which few fail.
//!
//! **Earlier attempts.** The caller says what it tried: an endpoint to avoid is chosen only where
//! no other can be, an excluded one never. Ejected endpoints are no substitute for tried ones.
//! So [`NoEndpoint::AllEjected`] means: every endpoint that could be chosen is excluded by this
//! request, and the rest is ejected.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    breaker::Ticket,
    policy::{Algorithm, Policy},
    stats::{EndpointStats, InFlight},
};

/// See the module's documentation.
const DOUBT_ODDS: u32 = 32;

/// What this request's earlier attempts say of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// Not tried.
    No,
    /// Tried: another one is better.
    Avoid,
    /// Must not be chosen.
    Exclude,
}

/// The choice. Dropping the guard gives it back.
#[derive(Debug)]
pub struct Picked<E: AsRef<EndpointStats>> {
    /// Position in the snapshot.
    pub index: usize,
    /// The endpoint, with the request counted.
    pub guard: InFlight<E>,
}

/// Why there is no choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    /// The snapshot is empty.
    #[error("the service has no endpoint")]
    Empty,
    /// This request may not go to any endpoint that is left, and the others are ejected.
    #[error("all endpoints are ejected or excluded; the next probe is due in {retry_after:?}")]
    AllEjected {
        /// Until the next probe is due; zero while one is under way.
        retry_after: Duration,
    },
    /// This request may not go to any endpoint.
    #[error("every endpoint is excluded by an earlier attempt of the request")]
    AllExcluded,
}

/// Chooses one of `endpoints` and begins a request to it.
///
/// `cursor` is the Service's place for [`Algorithm::RoundRobin`]. While nobody in sight is ejected
/// or tried this looks at two endpoints and allocates nothing; otherwise it looks at all of them.
///
/// # Errors
/// See [`NoEndpoint`].
pub fn pick<E: AsRef<EndpointStats>>(
    endpoints: &[Arc<E>],
    policy: &Policy,
    cursor: &AtomicUsize,
    tried: impl Fn(&E) -> Tried,
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Result<Picked<E>, NoEndpoint> {
    let ctx = Context { endpoints, policy, cursor, now };
    if endpoints.is_empty() {
        return Err(NoEndpoint::Empty);
    }
    let first = ctx.sample(endpoints.len(), rng);
    let plain = |index: usize| {
        let endpoint = &endpoints[index];
        tried(endpoint) == Tried::No && !ctx.ejected(endpoint)
    };
    if first.iter().all(|index| plain(*index)) {
        return Ok(ctx.begin(ctx.cheaper(first, rng), None));
    }
    ctx.pick_among_all(tried, rng)
}

/// Estimates (in seconds) up to this one are all the same: scheduling, not service.
const NOISE_FLOOR: f64 = 0.001;
/// Estimates within this share of the larger one are the same.
const NOISE_SHARE: f64 = 0.2;

struct Context<'a, E> {
    endpoints: &'a [Arc<E>],
    policy: &'a Policy,
    cursor: &'a AtomicUsize,
    now: Instant,
}

/// An endpoint as it was when the request looked.
#[derive(Clone, Copy)]
struct Candidate {
    index: usize,
    tried: Tried,
    /// While ejected: when its next probe is due.
    ejected_until: Option<Instant>,
}

impl<E: AsRef<EndpointStats>> Context<'_, E> {
    /// Two different ones of `n`, or the same twice where one is enough.
    fn sample(&self, n: usize, rng: &mut fastrand::Rng) -> [usize; 2] {
        match self.policy.balancer.algorithm {
            Algorithm::PeakEwma | Algorithm::LeastRequest if n > 1 => {
                let a = rng.usize(..n);
                let b = rng.usize(..n - 1);
                [a, if b >= a { b + 1 } else { b }]
            }
            Algorithm::PeakEwma | Algorithm::LeastRequest => [0; 2],
            Algorithm::RoundRobin => [self.cursor.fetch_add(1, Ordering::Relaxed) % n; 2],
            Algorithm::Random => [rng.usize(..n); 2],
        }
    }

    fn cheaper(&self, [a, b]: [usize; 2], rng: &mut fastrand::Rng) -> usize {
        // `a` is a random one of the two, so an equal cost is a fair coin.
        let alike = a == b || self.alike(a, b);
        let (first, second) = if alike {
            (f64::from(self.stats(a).in_flight()), f64::from(self.stats(b).in_flight()))
        } else {
            (self.cost(a, rng), self.cost(b, rng))
        };
        if first <= second { a } else { b }
    }

    /// Whether the estimates of two endpoints differ by no more than noise. The faster of two
    /// equals would otherwise take all of a sequential client's requests, and only its estimate
    /// would ever be refreshed.
    fn alike(&self, a: usize, b: usize) -> bool {
        if self.policy.balancer.algorithm != Algorithm::PeakEwma {
            return false;
        }
        let rtt = |index: usize| {
            let stats = self.stats(index);
            stats.load(self.now, &self.policy.balancer) / (f64::from(stats.in_flight()) + 1.0)
        };
        let (a, b) = (rtt(a), rtt(b));
        a.max(b) <= NOISE_FLOOR || (a - b).abs() <= NOISE_SHARE * a.max(b)
    }

    fn cost(&self, index: usize, rng: &mut fastrand::Rng) -> f64 {
        let stats = self.stats(index);
        match self.policy.balancer.algorithm {
            Algorithm::PeakEwma if self.doubts(stats) && rng.u32(..DOUBT_ODDS) == 0 => 0.0,
            Algorithm::PeakEwma => stats.load(self.now, &self.policy.balancer),
            _ => f64::from(stats.in_flight()),
        }
    }

    fn doubts(&self, stats: &EndpointStats) -> bool {
        let rule = self.policy.breaker.as_ref().map_or(0, |breaker| breaker.consecutive_failures);
        rule > 0 && stats.breaker().doubts()
    }

    fn stats(&self, index: usize) -> &EndpointStats {
        (*self.endpoints[index]).as_ref()
    }

    fn ejected(&self, endpoint: &E) -> bool {
        self.policy.breaker.is_some() && !endpoint.as_ref().breaker().is_closed()
    }

    fn begin(&self, index: usize, probe: Option<Ticket>) -> Picked<E> {
        let endpoint = Arc::clone(&self.endpoints[index]);
        let guard = match probe {
            Some(ticket) => InFlight::with_ticket(endpoint, ticket, self.now),
            None => InFlight::begin(endpoint, self.now),
        };
        Picked { index, guard }
    }

    fn pick_among_all(
        &self,
        tried: impl Fn(&E) -> Tried,
        rng: &mut fastrand::Rng,
    ) -> Result<Picked<E>, NoEndpoint> {
        let seen = self.look(tried);
        let probe = || {
            let due = seen.iter().filter(|c| c.tried == Tried::No && c.ejected_until.is_some());
            due.map(|c| c.index).find_map(|index| {
                let ticket = self.stats(index).breaker().try_probe(self.now)?;
                Some(self.begin(index, Some(ticket)))
            })
        };
        let reprieve = reprieve(&seen);
        let mut ordinary = |tried: Tried| {
            let free = |until: Instant, index| Some((until, index)) <= reprieve;
            let some: Vec<usize> = seen
                .iter()
                .filter(|c| c.tried == tried && c.ejected_until.is_none_or(|u| free(u, c.index)))
                .map(|c| c.index)
                .collect();
            (!some.is_empty()).then(|| self.begin(self.choose(&some, rng), None))
        };
        let fresh = seen.iter().all(|c| c.tried == Tried::No);
        let picked = if fresh {
            probe().or_else(|| ordinary(Tried::No))
        } else {
            ordinary(Tried::No).or_else(probe).or_else(|| ordinary(Tried::Avoid))
        };
        if let Some(picked) = picked {
            return Ok(picked);
        }
        let left = seen.iter().filter(|c| c.tried != Tried::Exclude);
        // All that are left are ejected, otherwise one of them would have been picked.
        Err(match left.filter_map(|c| c.ejected_until).min() {
            Some(until) => {
                NoEndpoint::AllEjected { retry_after: until.saturating_duration_since(self.now) }
            }
            None => NoEndpoint::AllExcluded,
        })
    }

    fn look(&self, tried: impl Fn(&E) -> Tried) -> Vec<Candidate> {
        let look = |(index, endpoint): (usize, &Arc<E>)| Candidate {
            index,
            tried: tried(endpoint),
            ejected_until: self
                .policy
                .breaker
                .as_ref()
                .and_then(|_| self.stats(index).breaker().ejected_until()),
        };
        self.endpoints.iter().enumerate().map(look).collect()
    }

    /// One of `some`, which is not empty. Where round robin cannot go in turn, it draws: what would
    /// have gone to an ejected endpoint is spread over all others instead of doubling its
    /// neighbour's load.
    fn choose(&self, some: &[usize], rng: &mut fastrand::Rng) -> usize {
        if self.policy.balancer.algorithm == Algorithm::RoundRobin {
            return some[rng.usize(..some.len())];
        }
        let [a, b] = self.sample(some.len(), rng);
        self.cheaper([some[a], some[b]], rng)
    }
}

/// The floor: where more than half are ejected, the last one, in the order of their next probes,
/// that is treated as if it were not.
fn reprieve(seen: &[Candidate]) -> Option<(Instant, usize)> {
    let mut ejected: Vec<_> =
        seen.iter().filter_map(|c| c.ejected_until.map(|until| (until, c.index))).collect();
    let kept = ejected.len().saturating_sub(seen.len() / 2);
    let last = kept.checked_sub(1)?;
    Some(*ejected.select_nth_unstable(last).1)
}

#[cfg(test)]
#[path = "pick_tests.rs"]
mod tests;
