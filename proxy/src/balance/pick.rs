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
//! **A key.** With [`Algorithm::RingHash`] a request with a key goes to the key's owner on the
//! [`Ring`]; where that is ejected or tried, to the next endpoint clockwise that is
//! not. So an ejection moves the keys of the ejected one only, and they come back. A request
//! without a key is balanced by peak EWMA.
//!
//! **A preferred endpoint** is taken before all of that while it is neither ejected nor tried;
//! otherwise the choice is made as if there were none.
//!
//! **Near and far.** Where some endpoints are near ([`Endpoints::with_near`]) the choice is among
//! those while any of them can be chosen. It then looks at a random one of all: where the near one
//! costs more than [`FAR`] times as much, the other is taken, so that what near endpoints are too
//! few or too slow for spills over. An endpoint is not trusted to be faster than
//! [`BalancerPolicy::default_rtt`] here, so that one that was not heard of for long does not
//! attract requests for that reason. Round robin and random do not spill: near ones only,
//! while there are any. Keys and preferences do not look at nearness.
//!
//! [`BalancerPolicy::default_rtt`]: super::policy::BalancerPolicy::default_rtt
//!
//! **Slow start.** While an endpoint is warming up ([`BalancerPolicy::slow_start`]) it is drawn by its
//! warmth only, from 0.1 to 1, and is then compared with a warm one: so its share is that part of
//! an even one, and less where it costs more. Where no endpoint is warm, none is held back.
//! Keys and preferences do not look at it.
//!
//! [`BalancerPolicy::slow_start`]: super::policy::BalancerPolicy::slow_start
//!
//! **Probes.** A request that comes upon an ejected endpoint whose penalty is over becomes its
//! probe, if it is the first to ask; the probe is one ordinary request and goes to that endpoint
//! whatever it costs. A request that already failed once is a probe only where it would otherwise
//! have to go back to where it failed. A request with a key or a preferred endpoint is a probe only of
//! what it comes upon on its way, so that it is not led away from where it belongs.
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

mod closely;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    breaker::Ticket,
    choice::{By, Choice},
    endpoints::Endpoints,
    policy::{Algorithm, Policy},
    ring::Ring,
    stats::{EndpointStats, InFlight},
};

/// See the module's documentation.
const DOUBT_ODDS: u32 = 32;

/// What a request asks of the choice, beside a good endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wish {
    /// Position of the endpoint that its client had ([`Endpoints::find`]).
    pub prefer: Option<usize>,
    /// What [`Algorithm::RingHash`] goes by ([`super::policy::HashOn::key`]); other algorithms do
    /// not look at it.
    pub key: Option<u64>,
}

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
    /// Why this one.
    pub choice: Choice,
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
/// `cursor` is the Service's place for [`Algorithm::RoundRobin`]. While nobody in sight is ejected,
/// tried or warming up this looks at two endpoints (for a key or a preference at one) and allocates
/// nothing; otherwise it looks at all of them.
///
/// # Errors
/// See [`NoEndpoint`].
pub fn pick<E: AsRef<EndpointStats>>(
    endpoints: &Endpoints<E>,
    policy: &Policy,
    cursor: &AtomicUsize,
    wish: Wish,
    tried: impl Fn(&E) -> Tried,
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Result<Picked<E>, NoEndpoint> {
    if endpoints.is_empty() {
        return Err(NoEndpoint::Empty);
    }
    let ctx = Context::new(endpoints, policy, cursor, now);
    let plain = |index: usize| {
        let endpoint = &endpoints[index];
        tried(endpoint) == Tried::No && !ctx.ejected(endpoint)
    };
    let preferred = ctx.preferred(wish).map(|index| (index, By::Affinity));
    let wanted = preferred.or_else(|| {
        let (ring, key) = ctx.ring(wish)?;
        Some((ring.owner(key)?, By::Hash))
    });
    if let Some((index, by)) = wanted {
        if plain(index) {
            return Ok(ctx.begin((index, Choice::plain(by)), None));
        }
    } else if let Some(chosen) = ctx.pick_quickly(plain, rng) {
        return Ok(ctx.begin(chosen, None));
    }
    ctx.pick_among_all(wish, tried, rng)
}

/// Estimates (in seconds) up to this one are all the same: scheduling, not service.
const NOISE_FLOOR: f64 = 0.001;
/// Estimates within this share of the larger one are the same.
const NOISE_SHARE: f64 = 0.2;
/// How often an endpoint is drawn until one is warm enough; then the choice is among the warm ones.
/// Only where nearly all are cold is that noticed.
const WARM_DRAWS: usize = 16;
/// What a near endpoint may cost, in what a far one costs.
const FAR: f64 = 3.0;

/// A position, and why it is this one.
type Chosen = (usize, Choice);

struct Context<'a, E> {
    endpoints: &'a Endpoints<E>,
    policy: &'a Policy,
    /// What an ordinary choice goes by.
    algorithm: Algorithm,
    /// While somebody is warming up.
    slow_start: Option<Duration>,
    cursor: &'a AtomicUsize,
    now: Instant,
}

impl<'a, E: AsRef<EndpointStats>> Context<'a, E> {
    fn new(
        endpoints: &'a Endpoints<E>,
        policy: &'a Policy,
        cursor: &'a AtomicUsize,
        now: Instant,
    ) -> Self {
        let window = policy.balancer.slow_start;
        let (algorithm, slow) = match policy.balancer.algorithm {
            Algorithm::RingHash => (Algorithm::PeakEwma, false),
            other => (other, !window.is_zero() && endpoints.warming(now, window)),
        };
        Self { endpoints, policy, algorithm, slow_start: slow.then_some(window), cursor, now }
    }

    /// The ordinary choice while nobody in sight needs a closer look.
    fn pick_quickly(
        &self,
        plain: impl Fn(usize) -> bool,
        rng: &mut fastrand::Rng,
    ) -> Option<Chosen> {
        let all = self.endpoints.len();
        let Some(near) = self.endpoints.near() else {
            let pair = self.sample(all, rng);
            let pair = self.warmed(pair, all, |index| index, rng)?;
            return pair.iter().all(|i| plain(*i)).then(|| self.cheaper(pair, rng));
        };
        let pair = self.sample(near.len(), rng).map(|at| near[at]);
        let pair = self.warmed(pair, near.len(), |at| near[at], rng)?;
        let chosen = pair.iter().all(|i| plain(*i)).then(|| self.cheaper(pair, rng))?;
        let other = rng.usize(..all);
        Some(if plain(other) { self.nearer(chosen, other) } else { chosen })
    }

    /// The near one, unless it costs too much more.
    fn nearer(&self, chosen: Chosen, other: usize) -> Chosen {
        let near = chosen.0;
        let costs_more = match self.algorithm {
            Algorithm::RoundRobin | Algorithm::Random => false,
            Algorithm::LeastRequest => self.pending(near) > FAR * (self.pending(other) + 1.0),
            Algorithm::PeakEwma | Algorithm::RingHash => {
                let rtt = self.rtt(other).max(self.policy.balancer.default_rtt.as_secs_f64());
                let near = self.rtt(near) * (self.pending(near) + 1.0);
                near > FAR * rtt * (self.pending(other) + 1.0)
            }
        };
        if !costs_more {
            return chosen;
        }
        (other, Choice::of_two(By::SpillOver, near, [self.pending(other), self.pending(near)]))
    }

    fn preferred(&self, wish: Wish) -> Option<usize> {
        wish.prefer.filter(|index| *index < self.endpoints.len())
    }

    fn ring(&self, wish: Wish) -> Option<(&Ring, u64)> {
        self.endpoints.ring().zip(wish.key)
    }

    /// Two different ones of `n`, or the same twice where one is enough.
    fn sample(&self, n: usize, rng: &mut fastrand::Rng) -> [usize; 2] {
        match self.algorithm {
            Algorithm::RoundRobin => [self.cursor.fetch_add(1, Ordering::Relaxed) % n; 2],
            Algorithm::Random => [rng.usize(..n); 2],
            _ if n > 1 => {
                let a = rng.usize(..n);
                let b = rng.usize(..n - 1);
                [a, if b >= a { b + 1 } else { b }]
            }
            _ => [0; 2],
        }
    }

    fn cheaper(&self, [a, b]: [usize; 2], rng: &mut fastrand::Rng) -> Chosen {
        if a == b {
            let by = match self.algorithm {
                Algorithm::RoundRobin => By::RoundRobin,
                Algorithm::Random => By::Random,
                _ => By::OnlyOne,
            };
            return (a, Choice::plain(by));
        }
        // `a` is a random one of the two, so an equal cost is a fair coin.
        let (by, first, second) = if self.alike(a, b) {
            (By::FewerInFlight, self.pending(a), self.pending(b))
        } else {
            (By::LowerCost, self.cost(a, rng), self.cost(b, rng))
        };
        if first <= second {
            (a, Choice::of_two(by, b, [first, second]))
        } else {
            (b, Choice::of_two(by, a, [second, first]))
        }
    }

    /// Whether the estimates of two endpoints differ by no more than noise. The faster of two
    /// equals would otherwise take all of a sequential client's requests, and only its estimate
    /// would ever be refreshed.
    fn alike(&self, a: usize, b: usize) -> bool {
        if self.algorithm != Algorithm::PeakEwma {
            return false;
        }
        let (a, b) = (self.rtt(a), self.rtt(b));
        a.max(b) <= NOISE_FLOOR || (a - b).abs() <= NOISE_SHARE * a.max(b)
    }

    fn cost(&self, index: usize, rng: &mut fastrand::Rng) -> f64 {
        match self.algorithm {
            Algorithm::PeakEwma if self.doubts(index) && rng.u32(..DOUBT_ODDS) == 0 => 0.0,
            Algorithm::PeakEwma => self.rtt(index) * (self.pending(index) + 1.0),
            _ => self.pending(index),
        }
    }

    /// The estimate for one request, in seconds.
    fn rtt(&self, index: usize) -> f64 {
        let stats = self.stats(index);
        stats.load(self.now, &self.policy.balancer) / (f64::from(stats.in_flight()) + 1.0)
    }

    fn pending(&self, index: usize) -> f64 {
        f64::from(self.stats(index).in_flight())
    }

    fn warmth(&self, index: usize) -> f64 {
        self.slow_start.map_or(1.0, |window| self.stats(index).warmth(self.now, window))
    }

    /// The pair as it is, while nobody warms up. Otherwise its first one counts by its warmth, or
    /// another of the `n` is drawn in its place; the second is a warm one. `None` where none of
    /// the draws counted.
    fn warmed(
        &self,
        [mut a, b]: [usize; 2],
        n: usize,
        at: impl Fn(usize) -> usize,
        rng: &mut fastrand::Rng,
    ) -> Option<[usize; 2]> {
        if self.slow_start.is_none() {
            return Some([a, b]);
        }
        let one_is_enough = a == b;
        for _ in 0..WARM_DRAWS {
            let warmth = self.warmth(a);
            if warmth >= 1.0 || rng.f64() < warmth {
                let draws = if one_is_enough { 0 } else { WARM_DRAWS };
                let mut others = (0..draws).map(|_| at(rng.usize(..n)));
                let b = others.find(|b| *b != a && self.warmth(*b) >= 1.0);
                return Some([a, b.unwrap_or(a)]);
            }
            a = at(rng.usize(..n));
        }
        None
    }

    fn doubts(&self, index: usize) -> bool {
        let rule = self.policy.breaker.as_ref().map_or(0, |breaker| breaker.consecutive_failures);
        rule > 0 && self.stats(index).breaker().doubts()
    }

    fn stats(&self, index: usize) -> &EndpointStats {
        (*self.endpoints[index]).as_ref()
    }

    fn ejected(&self, endpoint: &E) -> bool {
        self.policy.breaker.is_some() && !endpoint.as_ref().breaker().is_closed()
    }

    fn begin(&self, (index, choice): Chosen, probe: Option<Ticket>) -> Picked<E> {
        let endpoint = Arc::clone(&self.endpoints[index]);
        let guard = match probe {
            Some(ticket) => InFlight::with_ticket(endpoint, ticket, self.now),
            None => InFlight::begin(endpoint, self.now),
        };
        Picked { index, guard, choice }
    }
}

#[cfg(test)]
#[path = "pick_near_tests.rs"]
mod near_tests;
#[cfg(test)]
#[path = "pick_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "pick_wish_tests.rs"]
mod wish_tests;
