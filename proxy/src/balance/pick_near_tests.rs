//! Near endpoints, and what spills over from them.

use super::{
    tests::{Fixture, MS, SECOND, token},
    *,
};
use crate::balance::stats::Outcome;

/// Ten endpoints of which the first `near` are near.
fn fixture(near: usize, algorithm: Algorithm) -> Fixture {
    let mut f = Fixture::new(10, algorithm);
    let is_near = |e: &EndpointStats| (0..near).any(|n| e.token() == token(n));
    f.endpoints = Endpoints::with_near(f.endpoints.to_vec(), &f.policy, is_near);
    f
}

impl Fixture {
    /// How many of a thousand requests, each over before the next, go to far endpoints.
    fn far(&mut self, near: usize) -> usize {
        (0..1000).filter(|_| self.pick().unwrap().index >= near).count()
    }
}

#[test]
fn near_endpoints_get_all_while_they_do_and_far_ones_are_not_even_tried() {
    for algorithm in
        [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random]
    {
        let mut f = fixture(3, algorithm);
        (0..3).for_each(|index| f.end(index, 20 * MS, Outcome::Success));
        assert_eq!(f.far(3), 0, "{algorithm:?}");
        let mut seen: Vec<usize> = (0..100).map(|_| f.pick().unwrap().index).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [0, 1, 2], "{algorithm:?}");
    }
}

#[test]
fn what_near_endpoints_are_too_few_for_spills_over() {
    for algorithm in [Algorithm::PeakEwma, Algorithm::LeastRequest] {
        let mut f = fixture(1, algorithm);
        (0..10).for_each(|index| f.end(index, 20 * MS, Outcome::Success));
        let open: Vec<_> = (0..60).map(|_| f.pick().unwrap()).collect();
        let of_near = open.iter().filter(|picked| picked.index == 0).count();
        assert!((5..40).contains(&of_near), "{algorithm:?}: {of_near}");
        let far = (1..10).map(|n| f.endpoints[n].in_flight()).max().unwrap();
        assert!(u32::try_from(of_near).unwrap() > far, "{algorithm:?}: near ones carry the most");
        drop(open);
        assert_eq!(f.far(1), 0, "{algorithm:?}: it is enough again");
    }
}

#[test]
fn what_near_endpoints_are_too_slow_for_spills_over() {
    let mut f = fixture(2, Algorithm::PeakEwma);
    (0..2).for_each(|index| f.end(index, 80 * MS, Outcome::Success));
    assert_eq!(f.far(2), 0, "a far one counts as 30 ms at least, and three times that");
    (0..2).for_each(|index| f.end(index, SECOND, Outcome::Success));
    let far = f.far(2);
    assert!((600..900).contains(&far), "{far}: as often as a far one is looked at");
    // A far one that is known to be slow as well does not help.
    (2..10).for_each(|index| f.end(index, SECOND, Outcome::Success));
    assert_eq!(f.far(2), 0);
}

#[test]
fn where_no_near_endpoint_can_be_chosen_far_ones_are() {
    for algorithm in [Algorithm::PeakEwma, Algorithm::RoundRobin, Algorithm::Random] {
        let mut f = fixture(2, algorithm);
        // A failure costs 5 s otherwise, which is more than three far answers.
        f.policy.balancer.failure_penalty = Duration::ZERO;
        (0..2).for_each(|index| f.eject(index));
        assert_eq!(f.far(2), 1000, "{algorithm:?}");
        f.now += SECOND;
        // Requests come upon them and probe them.
        let mut probes = 0;
        for _ in 0..100 {
            let picked = f.pick().unwrap();
            probes += usize::from(picked.guard.is_probe() && picked.index < 2);
            picked.guard.finish(f.now, MS, Outcome::Success, &f.policy, &mut f.rng);
        }
        assert_eq!(probes, 2, "{algorithm:?}");
        assert_eq!(f.far(2), 0, "{algorithm:?}");
    }
}

#[test]
fn a_retry_goes_to_another_near_endpoint_before_a_far_one() {
    let mut f = fixture(2, Algorithm::PeakEwma);
    let mut far = 0;
    for _ in 0..100 {
        let avoid = |index| if index == 0 { Tried::Avoid } else { Tried::No };
        far += usize::from(f.pick_wishing(Wish::default(), avoid).unwrap().index != 1);
    }
    assert_eq!(far, 0);
    let avoid = |index| if index < 2 { Tried::Avoid } else { Tried::No };
    assert!(f.pick_wishing(Wish::default(), avoid).unwrap().index >= 2);
}

#[test]
fn keys_and_preferences_do_not_look_at_nearness() {
    let mut f = fixture(1, Algorithm::RingHash);
    let by_key = |f: &mut Fixture, key| {
        f.pick_wishing(Wish { key: Some(key), ..Wish::default() }, |_| Tried::No).unwrap().index
    };
    let owners = (0..100).map(|n: u64| by_key(&mut f, n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    assert!(owners.filter(|index| *index > 0).count() > 50);
    let prefer = Wish { prefer: Some(7), ..Wish::default() };
    assert_eq!(f.pick_wishing(prefer, |_| Tried::No).unwrap().index, 7);
}
