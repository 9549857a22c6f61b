//! Keys, preferred endpoints and slow start.

use proptest::prelude::*;

use super::{
    tests::{Fixture, MS, SECOND, token},
    *,
};
use crate::balance::{
    stats::{FailureKind, Outcome},
    token::{Token, hash},
};

fn key(key: u64) -> Wish {
    Wish { key: Some(key), ..Wish::default() }
}

fn keys() -> impl Iterator<Item = u64> {
    (0u32..300).map(|n| hash(n.to_be_bytes()))
}

fn prefer(index: usize) -> Wish {
    Wish { prefer: Some(index), ..Wish::default() }
}

impl Fixture {
    /// Where a request with this wish goes; it is over at once.
    fn goes(&mut self, wish: Wish) -> Token {
        let picked = self.pick_wishing(wish, |_| Tried::No).unwrap();
        self.endpoints[picked.index].token()
    }

    /// Where requests with many different keys go.
    fn owners(&mut self) -> Vec<Token> {
        keys().map(|k| self.goes(key(k))).collect()
    }

    fn succeed(&mut self, probe: Picked<EndpointStats>) {
        assert!(probe.guard.is_probe());
        probe.guard.finish(self.now, MS, Outcome::Success, &self.policy, &mut self.rng);
    }
}

#[test]
fn a_key_has_one_owner_and_all_endpoints_own_some() {
    let mut f = Fixture::new(5, Algorithm::RingHash);
    let owners = f.owners();
    assert_eq!(owners, f.owners());
    assert!((0..5).all(|n| owners.contains(&token(n))));
    // Cost is not looked at.
    let slow = keys().zip(&owners).find(|(_, owner)| **owner == token(0)).unwrap().0;
    f.end(0, 60 * SECOND, Outcome::Success);
    assert_eq!(f.goes(key(slow)), token(0));
}

#[test]
fn an_ejection_moves_the_keys_of_the_ejected_only_and_they_come_back() {
    let mut f = Fixture::new(5, Algorithm::RingHash);
    let before = f.owners();
    f.eject(2);
    let during = f.owners();
    let mut heirs = Vec::new();
    for (before, during) in before.iter().zip(&during) {
        if *before == token(2) {
            assert_ne!(*during, token(2));
            heirs.push(*during);
        } else {
            assert_eq!(before, during);
        }
    }
    heirs.sort_unstable();
    heirs.dedup();
    assert_eq!(heirs.len(), 4, "its keys are spread over all others");
    f.now += SECOND;
    let own = keys().zip(&before).find(|(_, owner)| **owner == token(2)).unwrap().0;
    let probe = f.pick_wishing(key(own), |_| Tried::No).unwrap();
    f.succeed(probe);
    assert_eq!(f.owners(), before);
}

#[test]
fn only_a_key_that_comes_upon_an_ejected_endpoint_is_its_probe() {
    let mut f = Fixture::new(5, Algorithm::RingHash);
    let before = f.owners();
    f.eject(2);
    f.now += SECOND;
    for (k, owner) in keys().zip(&before).filter(|(_, owner)| **owner != token(2)) {
        assert_eq!(f.goes(key(k)), *owner);
    }
    let own = keys().zip(&before).find(|(_, owner)| **owner == token(2)).unwrap().0;
    let probe = f.pick_wishing(key(own), |_| Tried::No).unwrap();
    assert_eq!(probe.index, 2);
    // While it is out, the others with that key go on.
    assert_ne!(f.goes(key(own)), token(2));
    f.succeed(probe);
}

#[test]
fn a_retry_with_a_key_goes_clockwise_and_to_a_tried_one_last() {
    let mut f = Fixture::new(4, Algorithm::RingHash);
    let mut tried = Vec::new();
    for _ in 0..4 {
        let avoid = |i: usize| if tried.contains(&i) { Tried::Avoid } else { Tried::No };
        let picked = f.pick_wishing(key(7), avoid).unwrap().index;
        assert!(!tried.contains(&picked));
        tried.push(picked);
    }
    let owner = f.pick_wishing(key(7), |_| Tried::Avoid).unwrap().index;
    assert_eq!(owner, tried[0], "all were tried: the owner again");
    // Where the owner is gone, the second is the owner.
    let second = f.endpoints[tried[1]].token();
    let first = f.endpoints[tried[0]].token();
    f.update(|t| t != first, &[]);
    assert_eq!(f.goes(key(7)), second);
}

#[test]
fn a_request_without_a_key_is_balanced_by_cost() {
    let mut f = Fixture::new(2, Algorithm::RingHash);
    f.end(0, 10 * MS, Outcome::Success);
    f.end(1, 900 * MS, Outcome::Success);
    for _ in 0..50 {
        assert_eq!(f.goes(Wish::default()), token(0));
    }
}

#[test]
fn other_algorithms_do_not_look_at_a_key() {
    let mut f = Fixture::new(5, Algorithm::Random);
    let owners: Vec<_> = (0..100).map(|_| f.goes(key(7))).collect();
    assert!((0..5).all(|n| owners.contains(&token(n))));
}

#[test]
fn a_preferred_endpoint_is_taken_whatever_the_algorithm_and_the_cost() {
    for algorithm in [Algorithm::PeakEwma, Algorithm::RoundRobin, Algorithm::RingHash] {
        let mut f = Fixture::new(5, algorithm);
        f.end(3, 60 * SECOND, Outcome::Success);
        for k in keys() {
            assert_eq!(f.goes(Wish { prefer: Some(3), key: Some(k) }), token(3));
        }
        // A position of another snapshot is no crash.
        let _ = f.goes(prefer(5));
    }
}

#[test]
fn a_preferred_endpoint_that_is_ejected_or_tried_is_replaced_and_preferred_again() {
    for algorithm in [Algorithm::PeakEwma, Algorithm::RingHash] {
        let mut f = Fixture::new(4, algorithm);
        let avoid = |i| if i == 1 { Tried::Avoid } else { Tried::No };
        assert_ne!(f.pick_wishing(prefer(1), avoid).unwrap().index, 1);
        f.eject(1);
        for _ in 0..50 {
            assert_ne!(f.goes(prefer(1)), token(1));
        }
        // A key is what is left to go by.
        let owner = f.goes(key(7));
        let wish = Wish { prefer: Some(1), key: Some(7) };
        assert!(algorithm != Algorithm::RingHash || f.goes(wish) == owner);
        f.now += SECOND;
        let probe = f.pick_wishing(prefer(1), |_| Tried::No).unwrap();
        assert_eq!(probe.index, 1);
        f.succeed(probe);
        assert_eq!(f.goes(prefer(1)), token(1));
    }
}

#[test]
fn a_preference_is_led_away_by_no_other_endpoints_probe() {
    let mut f = Fixture::new(4, Algorithm::PeakEwma);
    f.eject(1);
    f.now += SECOND;
    for _ in 0..50 {
        assert_eq!(f.goes(prefer(2)), token(2));
    }
}

#[test]
fn a_preference_is_the_probe_of_its_own_endpoint_of_several_that_are_due() {
    for index in [1, 3] {
        let mut f = Fixture::new(5, Algorithm::PeakEwma);
        f.eject(1);
        f.eject(3);
        f.now += SECOND;
        let probe = f.pick_wishing(prefer(index), |_| Tried::No).unwrap();
        assert!(probe.guard.is_probe() && probe.index == index);
    }
}

#[test]
fn a_retry_is_no_probe_of_the_preferred_endpoint() {
    let mut f = Fixture::new(4, Algorithm::PeakEwma);
    f.eject(1);
    f.now += SECOND;
    let avoid = |i| if i == 0 { Tried::Avoid } else { Tried::No };
    for _ in 0..50 {
        let picked = f.pick_wishing(prefer(1), avoid).unwrap();
        assert!(!picked.guard.is_probe() && [2, 3].contains(&picked.index));
    }
}

#[test]
fn a_preferred_endpoint_that_the_floor_spares_is_taken() {
    let mut f = Fixture::new(2, Algorithm::PeakEwma);
    f.eject(0);
    f.now += MS;
    f.eject(1);
    assert_eq!(f.goes(prefer(0)), token(0), "its probe is the nearest");
    assert_eq!(f.goes(prefer(1)), token(0));
}

/// Which share of many choices falls on the endpoint with a token; each is over before the next.
fn share(f: &mut Fixture, wanted: Token) -> f64 {
    let hits = (0..20_000).filter(|_| f.goes(Wish::default()) == wanted).count();
    hits as f64 / 20_000.0
}

/// Four warm endpoints, and a fifth that joined `age` seconds ago, of 10.
fn warming(algorithm: Algorithm, age: u32) -> Fixture {
    let mut f = Fixture::new(4, algorithm);
    f.policy.balancer.slow_start = 10 * SECOND;
    f.update(|_| true, &[4]);
    for index in 0..5 {
        f.end(index, 10 * MS, Outcome::Success);
    }
    f.now += age * SECOND;
    f
}

const ORDINARY: [Algorithm; 4] =
    [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random];

#[test]
fn the_share_of_an_endpoint_that_joined_grows_from_a_tenth_to_all_of_it() {
    for algorithm in ORDINARY {
        for (age, warmth) in [(0, 0.1), (2, 0.28), (5, 0.55), (9, 0.91), (10, 1.0), (60, 1.0)] {
            let mut f = warming(algorithm, age);
            let (share, expected) = (share(&mut f, token(4)), warmth / (4.0 + warmth));
            let off = (share - expected).abs();
            // Four standard deviations.
            let bound = 4.0 * (expected * (1.0 - expected) / 20_000.0).sqrt();
            assert!(off < bound, "{algorithm:?} {age} s: {share} for {expected}");
        }
    }
}

#[test]
fn slow_start_is_off_unless_asked_for_and_with_a_ring() {
    let mut f = warming(Algorithm::Random, 0);
    f.policy.balancer.slow_start = Duration::ZERO;
    assert!((share(&mut f, token(4)) - 0.2).abs() < 0.02);
    let mut f = warming(Algorithm::RingHash, 0);
    assert!((share(&mut f, token(4)) - 0.2).abs() < 0.02, "without keys");
    let own = keys().find(|k| f.endpoints.ring().unwrap().owner(*k) == Some(4)).unwrap();
    assert_eq!(f.goes(key(own)), token(4));
    assert_eq!(warming(Algorithm::PeakEwma, 0).goes(prefer(4)), token(4));
}

#[test]
fn where_nobody_is_warm_all_share_normally() {
    for algorithm in ORDINARY {
        let mut f = Fixture::new(1, algorithm);
        f.policy.balancer.slow_start = 10 * SECOND;
        f.update(|_| false, &[1, 2]);
        f.now += 5 * SECOND;
        f.update(|_| true, &[3]);
        for index in 0..3 {
            f.end(index, 10 * MS, Outcome::Success);
        }
        for n in 1..4 {
            let share = share(&mut f, token(n));
            assert!((share - 1.0 / 3.0).abs() < 0.02, "{algorithm:?}: {share}");
        }
    }
}

#[test]
fn cold_endpoints_take_everything_where_the_warm_ones_cannot() {
    for algorithm in ORDINARY {
        let mut f = warming(algorithm, 0);
        f.update(|t| t == token(0) || t == token(4), &[5]);
        f.end(2, 10 * MS, Outcome::Success);
        f.eject(0);
        assert!((share(&mut f, token(4)) - 0.5).abs() < 0.02, "{algorithm:?}");
        let exclude = |i| if i == 2 { Tried::No } else { Tried::Exclude };
        assert_eq!(f.pick_wishing(Wish::default(), exclude).unwrap().index, 2);
    }
}

#[test]
fn a_cold_endpoint_that_costs_more_gets_less_than_its_ramp() {
    let mut f = warming(Algorithm::PeakEwma, 5);
    f.end(4, 900 * MS, Outcome::Success);
    assert!(share(&mut f, token(4)) < 0.01);
    let mut f = warming(Algorithm::PeakEwma, 5);
    f.policy.breaker = None;
    f.end(4, MS, Outcome::Failure(FailureKind::Transport));
    assert!(share(&mut f, token(4)) < 0.01);
}

#[test]
fn many_cold_endpoints_share_by_their_warmth() {
    for algorithm in ORDINARY {
        let mut f = Fixture::new(1, algorithm);
        f.policy.balancer.slow_start = 10 * SECOND;
        f.update(|_| true, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        for index in 0..10 {
            f.end(index, 10 * MS, Outcome::Success);
        }
        let warm = share(&mut f, token(0));
        // One in ten and nine tenths; what 16 draws leave over goes to the warm one.
        assert!((warm - 1.0 / 1.9).abs() < 0.06, "{algorithm:?}: {warm}");
    }
}

proptest! {
    /// Sessions by token, as the table and the cookie keep them, through any updates.
    #[test]
    fn endpoints_that_come_and_go_disturb_no_session_but_those_of_the_gone(
        updates in prop::collection::vec(
            (prop::collection::vec(any::<prop::sample::Index>(), 0..3), 0usize..3), 1..8
        ),
        algorithm in 0usize..4,
    ) {
        let mut f = Fixture::new(4, ORDINARY[algorithm]);
        let mut next = 4;
        let mut sessions: Vec<Token> = (0..20).map(|_| f.goes(Wish::default())).collect();
        for (gone, new) in updates {
            let present: Vec<Token> = f.endpoints.iter().map(|e| e.token()).collect();
            let gone: Vec<Token> = match present.len() {
                0 => Vec::new(),
                n => gone.iter().map(|index| present[index.index(n)]).collect(),
            };
            let new: Vec<usize> = (next..next + new).collect();
            next += new.len();
            f.update(|t| !gone.contains(&t), &new);
            f.now += SECOND;
            if f.endpoints.is_empty() {
                continue;
            }
            for session in &mut sessions {
                let wish = Wish { prefer: f.endpoints.find(*session), ..Wish::default() };
                let went = f.goes(wish);
                let stays = f.endpoints.iter().any(|e| e.token() == *session);
                prop_assert!(!stays || went == *session, "a session was disturbed");
                *session = went;
            }
        }
    }

    #[test]
    fn a_key_goes_to_the_first_clockwise_that_can_be_chosen(
        states in prop::collection::vec((any::<bool>(), 0u8..3), 1..10),
        k in any::<u64>(),
    ) {
        let mut f = Fixture::new(states.len(), Algorithm::RingHash);
        // In order, so that of too many ejected the first are spared.
        for index in (0..states.len()).filter(|i| states[*i].0) {
            f.eject(index);
            f.now += MS;
        }
        let ejected: Vec<usize> = (0..states.len()).filter(|i| states[*i].0).collect();
        let spared = &ejected[..ejected.len().saturating_sub(states.len() / 2)];
        let open = |i: usize| !states[i].0 || spared.contains(&i);
        let tried = |i: usize| [Tried::No, Tried::Avoid, Tried::Exclude][usize::from(states[i].1)];
        let first = |f: &Fixture, wanted| {
            f.endpoints.ring().unwrap().walk(k).find(|i| open(*i) && tried(*i) == wanted)
        };
        let expected = first(&f, Tried::No).or_else(|| first(&f, Tried::Avoid));
        let picked = f.pick_wishing(key(k), tried).ok().map(|p| p.index);
        prop_assert_eq!(picked, expected);
    }
}
