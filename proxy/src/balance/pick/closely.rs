//! The choice where somebody in sight is ejected, tried or warming up: it looks at all endpoints.

use std::{sync::Arc, time::Instant};

use super::{Chosen, Context, NoEndpoint, Picked, Tried, Wish};
use crate::balance::{
    choice::{By, Choice},
    policy::Algorithm,
    ring::Ring,
    stats::EndpointStats,
};

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

impl<E: AsRef<EndpointStats>> Context<'_, E> {
    pub(super) fn pick_among_all(
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
            probe.or_else(|| self.take(c, Tried::No, By::Affinity))
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
            return walk()
                .find_map(|c| self.probe(c).or_else(|| self.take(c, Tried::No, By::Hash)));
        }
        let ordinary = |tried| walk().find_map(|c| self.take(c, tried, By::Hash));
        let probe = || walk().find_map(|c| self.probe(c));
        ordinary(Tried::No).or_else(probe).or_else(|| ordinary(Tried::Avoid))
    }

    fn take(&self, candidate: &Candidate, tried: Tried, by: By) -> Option<Picked<E>> {
        let chosen = (candidate.index, Choice::plain(by));
        (candidate.tried == tried && candidate.open).then(|| self.begin(chosen, None))
    }

    fn probe(&self, candidate: &Candidate) -> Option<Picked<E>> {
        candidate.ejected_until.filter(|_| candidate.tried == Tried::No)?;
        let ticket = self.stats(candidate.index).breaker().try_probe(self.now)?;
        Some(self.begin((candidate.index, Choice::plain(By::Probe)), Some(ticket)))
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
    fn choose(&self, some: &[usize], rng: &mut fastrand::Rng) -> Chosen {
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
    fn choose_among(&self, some: &[usize], rng: &mut fastrand::Rng) -> Chosen {
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
