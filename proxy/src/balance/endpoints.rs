//! What a choice is made from.

use std::{
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    policy::{Algorithm, Policy},
    ring::Ring,
    stats::EndpointStats,
    token::Token,
};

/// A Service's endpoints at one moment, with whatever its policy wants to find them by. Made anew
/// at each change of either, so that choosing allocates nothing. Positions in it mean nothing
/// in another one; tokens do.
#[derive(Debug)]
pub struct Endpoints<E> {
    list: Box<[Arc<E>]>,
    /// Where the algorithm asks for it.
    ring: Option<Ring>,
    /// In order, where the policy asks for affinity.
    by_token: Box<[(Token, u32)]>,
    /// Positions of those that are near, in order; empty where that makes no difference.
    near: Box<[usize]>,
    joined: Joined,
}

/// When the endpoints joined; [`None`] is from the start.
#[derive(Debug)]
struct Joined {
    first: Option<Instant>,
    last: Option<Instant>,
}

impl<E: AsRef<EndpointStats>> Endpoints<E> {
    /// Endpoints, one for each address, and what the policy needs. None is nearer than another.
    #[must_use]
    pub fn new(list: Vec<Arc<E>>, policy: &Policy) -> Self {
        Self::with_near(list, policy, |_| true)
    }

    /// The same, where some are nearer than others ([`super::pick`] says what comes of that).
    #[must_use]
    pub fn with_near(list: Vec<Arc<E>>, policy: &Policy, near: impl Fn(&E) -> bool) -> Self {
        let near: Vec<usize> = (0..list.len()).filter(|index| near(&list[*index])).collect();
        let near = if near.len() == list.len() { Vec::new() } else { near };
        let tokens = || list.iter().map(|e| stats(e).token());
        let ring = policy.balancer.algorithm == Algorithm::RingHash;
        let ring = ring.then(|| Ring::new(&tokens().collect::<Vec<_>>()));
        // No snapshot has 2^32 endpoints.
        let mut by_token: Vec<_> = match policy.affinity {
            Some(_) => tokens().zip(0..).collect(),
            None => Vec::new(),
        };
        by_token.sort_unstable();
        let joined = || list.iter().map(|e| stats(e).joined());
        let joined = Joined { first: joined().min().flatten(), last: joined().max().flatten() };
        Self { list: list.into(), ring, by_token: by_token.into(), near: near.into(), joined }
    }

    /// The position of the endpoint with a token, for [`super::pick::Wish::prefer`]; `None` where it
    /// is gone. Takes `log n` where the policy has affinity, and `n` where only a route has it.
    #[must_use]
    pub fn find(&self, token: Token) -> Option<usize> {
        if self.by_token.is_empty() {
            return self.list.iter().position(|endpoint| stats(endpoint).token() == token);
        }
        let at = self.by_token.binary_search_by_key(&token, |(known, _)| *known).ok()?;
        usize::try_from(self.by_token[at].1).ok()
    }

    /// The ring, where the algorithm asks for one.
    #[must_use]
    pub fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }

    /// Positions of the near ones, in order; `None` where all are, or none is.
    #[must_use]
    pub fn near(&self) -> Option<&[usize]> {
        (!self.near.is_empty()).then_some(&self.near)
    }

    /// Whether an endpoint is still being warmed up while another one is warm: only then is
    /// there anybody who can take what the former does not get.
    pub(super) fn warming(&self, now: Instant, slow_start: Duration) -> bool {
        let warm = |joined: Instant| now.saturating_duration_since(joined) >= slow_start;
        self.joined.first.is_none_or(warm) && self.joined.last.is_some_and(|last| !warm(last))
    }
}

impl<E> Deref for Endpoints<E> {
    type Target = [Arc<E>];

    fn deref(&self) -> &[Arc<E>] {
        &self.list
    }
}

fn stats<E: AsRef<EndpointStats>>(endpoint: &Arc<E>) -> &EndpointStats {
    (**endpoint).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::{
        policy::{Affinity, BalancerPolicy},
        testing::epoch,
    };

    const WINDOW: Duration = Duration::from_secs(10);

    fn token(n: u16) -> Token {
        Token::of(([10, 0, 0, 1], n).into(), "")
    }

    #[test]
    fn a_token_finds_its_endpoint_wherever_it_stands() {
        let affinity = Some(Affinity::ClientAddress { timeout: WINDOW });
        let policy = Policy { affinity, ..Policy::default() };
        let endpoint = |n| Arc::new(EndpointStats::new(epoch()).named(token(n)));
        let all: Vec<_> = (0..50).map(endpoint).collect();
        let endpoints = Endpoints::new(all, &policy);
        for n in 0..50 {
            assert_eq!(endpoints.find(token(n)), Some(usize::from(n)));
        }
        assert_eq!(endpoints.find(token(50)), None);
        assert!(endpoints.ring().is_none(), "nobody asked for one");
        assert_eq!(Endpoints::<EndpointStats>::new(Vec::new(), &policy).find(token(0)), None);
    }

    #[test]
    fn a_ring_is_made_where_the_algorithm_asks_for_it() {
        let algorithm = Algorithm::RingHash;
        let balancer = BalancerPolicy { algorithm, ..BalancerPolicy::default() };
        let policy = Policy { balancer, ..Policy::default() };
        let endpoint = Arc::new(EndpointStats::new(epoch()).named(token(1)));
        let endpoints = Endpoints::new(vec![endpoint], &policy);
        assert_eq!(endpoints.ring().unwrap().owner(7), Some(0));
        assert_eq!(endpoints.find(token(1)), Some(0), "a route may ask for affinity");
        assert_eq!(endpoints.find(token(2)), None);
    }

    #[test]
    fn near_ones_are_told_only_where_others_are_far() {
        let list =
            || (0..3).map(|n| Arc::new(EndpointStats::new(epoch()).named(token(n)))).collect();
        let policy = Policy::default();
        let near = |wanted: &[u16]| {
            let is_near = |e: &EndpointStats| wanted.iter().any(|n| e.token() == token(*n));
            Endpoints::with_near(list(), &policy, is_near).near().map(<[usize]>::to_vec)
        };
        assert_eq!(near(&[0, 2]), Some(vec![0, 2]));
        assert_eq!((near(&[0, 1, 2]), near(&[])), (None, None));
        assert!(Endpoints::<EndpointStats>::new(list(), &policy).near().is_none());
    }

    #[test]
    fn somebody_warms_up_only_while_somebody_is_warm() {
        let start = epoch();
        let at = |seconds| start + Duration::from_secs(seconds);
        let old = || Arc::new(EndpointStats::new(start));
        let new = |seconds| Arc::new(EndpointStats::new(at(seconds)).joining(at(seconds)));
        let warming = |list: Vec<_>, seconds| {
            Endpoints::new(list, &Policy::default()).warming(at(seconds), WINDOW)
        };
        assert!(!warming(vec![], 0));
        assert!(!warming(vec![old(), old()], 0));
        assert!(warming(vec![old(), new(5)], 5));
        assert!(warming(vec![old(), new(5)], 14));
        assert!(!warming(vec![old(), new(5)], 15));
        assert!(!warming(vec![new(5), new(8)], 9), "nobody is warm");
        assert!(warming(vec![new(5), new(8)], 16), "the first is");
    }
}
