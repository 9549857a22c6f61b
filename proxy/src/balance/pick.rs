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

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    breaker::Ticket,
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
    let wanted = ctx.preferred(wish).or_else(|| {
        let (ring, key) = ctx.ring(wish)?;
        ring.owner(key)
    });
    if let Some(index) = wanted {
        if plain(index) {
            return Ok(ctx.begin(index, None));
        }
    } else if let Some(index) = ctx.pick_quickly(plain, rng) {
        return Ok(ctx.begin(index, None));
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

/// An endpoint as it was when the request looked.
#[derive(Clone, Copy)]
struct Candidate {
    index: usize,
    tried: Tried,
    /// While ejected: when its next probe is due.
    ejected_until: Option<Instant>,
    /// Whether it can be chosen although it may be ejected.
    open: bool,
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
    ) -> Option<usize> {
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
    fn nearer(&self, near: usize, other: usize) -> usize {
        let costs_more = match self.algorithm {
            Algorithm::RoundRobin | Algorithm::Random => false,
            Algorithm::LeastRequest => self.pending(near) > FAR * (self.pending(other) + 1.0),
            Algorithm::PeakEwma | Algorithm::RingHash => {
                let rtt = self.rtt(other).max(self.policy.balancer.default_rtt.as_secs_f64());
                let near = self.rtt(near) * (self.pending(near) + 1.0);
                near > FAR * rtt * (self.pending(other) + 1.0)
            }
        };
        if costs_more { other } else { near }
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

    fn cheaper(&self, [a, b]: [usize; 2], rng: &mut fastrand::Rng) -> usize {
        // `a` is a random one of the two, so an equal cost is a fair coin.
        let alike = a == b || self.alike(a, b);
        let (first, second) = if alike {
            (self.pending(a), self.pending(b))
        } else {
            (self.cost(a, rng), self.cost(b, rng))
        };
        if first <= second { a } else { b }
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
        wish: Wish,
        tried: impl Fn(&E) -> Tried,
        rng: &mut fastrand::Rng,
    ) -> Result<Picked<E>, NoEndpoint> {
        let seen = self.look(tried);
        let fresh = seen.iter().all(|c| c.tried == Tried::No);
        let preferred = self.preferred(wish).map(|index| &seen[index]);
        let its_own = |c: &Candidate| {
            let probe = if fresh { self.probe(c) } else { None };
            probe.or_else(|| self.take(c, Tried::No))
        };
        let picked = preferred.and_then(its_own).or_else(|| match self.ring(wish) {
            Some((ring, key)) => self.pick_on_ring(ring, key, &seen, fresh),
            None => self.pick_ordinary(&seen, fresh, rng),
        });
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

    fn pick_ordinary(
        &self,
        seen: &[Candidate],
        fresh: bool,
        rng: &mut fastrand::Rng,
    ) -> Option<Picked<E>> {
        let probe = || seen.iter().find_map(|c| self.probe(c));
        let mut ordinary = |tried: Tried| {
            let some: Vec<usize> =
                seen.iter().filter(|c| c.tried == tried && c.open).map(|c| c.index).collect();
            (!some.is_empty()).then(|| self.begin(self.choose(&some, rng), None))
        };
        if fresh {
            return probe().or_else(|| ordinary(Tried::No));
        }
        ordinary(Tried::No).or_else(probe).or_else(|| ordinary(Tried::Avoid))
    }

    /// The first clockwise that will do.
    fn pick_on_ring(
        &self,
        ring: &Ring,
        key: u64,
        seen: &[Candidate],
        fresh: bool,
    ) -> Option<Picked<E>> {
        let walk = || ring.walk(key).map(|index| &seen[index]);
        if fresh {
            return walk().find_map(|c| self.probe(c).or_else(|| self.take(c, Tried::No)));
        }
        let ordinary = |tried| walk().find_map(|c| self.take(c, tried));
        let probe = || walk().find_map(|c| self.probe(c));
        ordinary(Tried::No).or_else(probe).or_else(|| ordinary(Tried::Avoid))
    }

    fn take(&self, candidate: &Candidate, tried: Tried) -> Option<Picked<E>> {
        (candidate.tried == tried && candidate.open).then(|| self.begin(candidate.index, None))
    }

    fn probe(&self, candidate: &Candidate) -> Option<Picked<E>> {
        candidate.ejected_until.filter(|_| candidate.tried == Tried::No)?;
        let ticket = self.stats(candidate.index).breaker().try_probe(self.now)?;
        Some(self.begin(candidate.index, Some(ticket)))
    }

    fn look(&self, tried: impl Fn(&E) -> Tried) -> Vec<Candidate> {
        let until = |index| {
            self.policy.breaker.as_ref().and_then(|_| self.stats(index).breaker().ejected_until())
        };
        let look = |(index, endpoint): (usize, &Arc<E>)| {
            let ejected_until = until(index);
            Candidate { index, tried: tried(endpoint), ejected_until, open: false }
        };
        let mut seen: Vec<Candidate> = self.endpoints.iter().enumerate().map(look).collect();
        let reprieve = reprieve(&seen);
        for c in &mut seen {
            c.open = c.ejected_until.is_none_or(|until| Some((until, c.index)) <= reprieve);
        }
        seen
    }

    /// One of `some`, which is not empty: of the near ones, where there are any, unless it costs too
    /// much more than another.
    fn choose(&self, some: &[usize], rng: &mut fastrand::Rng) -> usize {
        let near = self.endpoints.near().unwrap_or_default();
        let near: Vec<usize> =
            some.iter().copied().filter(|index| near.binary_search(index).is_ok()).collect();
        if near.is_empty() {
            return self.choose_among(some, rng);
        }
        let chosen = self.choose_among(&near, rng);
        self.nearer(chosen, some[rng.usize(..some.len())])
    }

    /// Where round robin cannot go in turn, it draws: what would
    /// have gone to an ejected endpoint is spread over all others instead of doubling its
    /// neighbour's load.
    fn choose_among(&self, some: &[usize], rng: &mut fastrand::Rng) -> usize {
        let sample = |some: &[usize], rng: &mut fastrand::Rng| match self.algorithm {
            Algorithm::RoundRobin => [some[rng.usize(..some.len())]; 2],
            _ => self.sample(some.len(), rng).map(|at| some[at]),
        };
        let pair = sample(some, rng);
        let warm = |index: &usize| self.warmth(*index) >= 1.0;
        let pair = if some.iter().any(warm) {
            let warmed = self.warmed(pair, some.len(), |at| some[at], rng);
            warmed.unwrap_or_else(|| {
                let warm: Vec<usize> = some.iter().copied().filter(warm).collect();
                sample(&warm, rng)
            })
        } else {
            pair
        };
        self.cheaper(pair, rng)
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
#[path = "pick_near_tests.rs"]
mod near_tests;
#[cfg(test)]
#[path = "pick_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "pick_wish_tests.rs"]
mod wish_tests;
