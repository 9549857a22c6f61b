//! Consistent hashing: which endpoint a key belongs to, so that a change of endpoints moves few.

use super::token::Token;

/// Points of each endpoint where there are up to [`MAX_POINTS`] in all.
const POINTS_EACH: usize = 256;
/// Points of a ring. At 8 bytes each that is 2 MiB.
const MAX_POINTS: usize = POINTS_EACH << 10;

/// A ring of endpoints, each at many points; a key belongs to the endpoint of the first point at or
/// after it (Karger et al., "Consistent hashing and random trees", 1997).
///
/// * Where the points are depends on the endpoints' tokens alone: not on their order, the process
///   or the version. So all proxies agree, and an endpoint that comes or goes takes or leaves only
///   its own keys, about one in `n`.
/// * 256 points each keep the shares even: up to 1000 endpoints each owns 0.7 to 1.35 times its
///   `n`-th of the keys.
/// * From 1025 endpoints on each has half as many, from 2049 on a quarter, and so on down to one,
///   so that a ring has at most 262,144 points and takes 2 MiB. When a Service crosses one of
///   these numbers, about half of its keys move once.
#[derive(Debug)]
pub struct Ring {
    /// In order; the upper half is the place, the lower the endpoint's index.
    points: Box<[u64]>,
}

impl Ring {
    /// The ring of some endpoints, by index. Takes `n log n` for `n` points.
    #[must_use]
    pub fn new(tokens: &[Token]) -> Self {
        let each = (MAX_POINTS / tokens.len().next_power_of_two()).clamp(1, POINTS_EACH);
        let of = |(index, token): (usize, &Token)| {
            // No snapshot has 2^32 endpoints, so the cast is exact.
            let index = index as u32;
            token.sequence().take(each).map(move |number| pack(place(number), index))
        };
        let mut points: Vec<u64> = tokens.iter().enumerate().flat_map(of).collect();
        points.sort_unstable();
        // Of several endpoints at the same place the smallest token has it, whatever their order.
        points.dedup_by(|point, kept| {
            if place(*point) != place(*kept) {
                return false;
            }
            if tokens[index(*point)] < tokens[index(*kept)] {
                *kept = *point;
            }
            true
        });
        Self { points: points.into() }
    }

    /// The endpoint that a key belongs to; `None` on an empty ring. Takes `log n`.
    #[must_use]
    pub fn owner(&self, key: u64) -> Option<usize> {
        self.walk(key).next()
    }

    /// The endpoints from a key's owner on, clockwise once around; each is met many times.
    pub fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        let from = self.points.partition_point(|point| place(*point) < place(key));
        let (before, after) = self.points.split_at(from);
        after.iter().chain(before).map(|point| index(*point))
    }
}

/// Where a number is on the ring.
fn place(number: u64) -> u32 {
    // What is left after the shift fits.
    (number >> 32) as u32
}

fn index(point: u64) -> usize {
    // The lower half is what is wanted.
    point as u32 as usize
}

fn pack(place: u32, index: u32) -> u64 {
    u64::from(place) << 32 | u64::from(index)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{HashMap, HashSet},
        net::SocketAddr,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::balance::token::hash;

    fn token(n: usize) -> Token {
        let [.., a, b, c] = n.to_be_bytes();
        Token::of(SocketAddr::from(([10, a, b, c], 8080)), &format!("orders-{n}"))
    }

    fn tokens(n: usize) -> Vec<Token> {
        (0..n).map(token).collect()
    }

    /// The share of the whole circle that each endpoint owns, in multiples of an even share.
    fn shares(ring: &Ring, n: usize) -> Vec<f64> {
        let mut shares = vec![0.0; n];
        let last = ring.points.last().copied().unwrap();
        let mut before = i64::from(place(last)) - (1i64 << 32);
        for point in &ring.points {
            let here = i64::from(place(*point));
            shares[index(*point)] += (here - before) as f64 / (1u64 << 32) as f64 * n as f64;
            before = here;
        }
        shares
    }

    #[test]
    fn up_to_a_thousand_endpoints_own_an_even_share_within_the_stated_factor() {
        for n in [2, 3, 5, 10, 30, 100, 300, 1000] {
            let shares = shares(&Ring::new(&tokens(n)), n);
            let (low, high) =
                shares.iter().fold((f64::MAX, 0f64), |(l, h), s| (s.min(l), s.max(h)));
            assert!(low > 0.7 && high < 1.35, "{n} endpoints: {low} to {high}");
            assert!((shares.iter().sum::<f64>() - n as f64).abs() < 1e-6);
        }
    }

    #[test]
    fn keys_are_spread_as_the_circle_is() {
        let ring = Ring::new(&tokens(10));
        let mut counts = [0u32; 10];
        for n in 0..100_000 {
            counts[ring.owner(hash(format!("user-{n}").bytes())).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (7000..13_500).contains(count)), "{counts:?}");
    }

    /// Two processes, or two versions, that disagree would send a key two ways.
    #[test]
    fn owners_are_the_same_for_ever() {
        let ring = Ring::new(&tokens(7));
        let owners =
            ["alice", "bob", "carol", "dave", ""].map(|key| ring.owner(hash(key.bytes())).unwrap());
        assert_eq!(owners, [1, 1, 5, 3, 5]);
    }

    #[test]
    fn a_ring_is_bounded_and_an_empty_one_owns_nothing() {
        for (n, points) in [(1, 256), (1024, 262_144), (1025, 131_200)] {
            let length = Ring::new(&tokens(n)).points.len();
            // A few places are taken twice.
            assert!(length <= points && length > points - points / 1000 - 1, "{n}: {length}");
        }
        assert_eq!(Ring::new(&[]).owner(7), None);
    }

    #[test]
    fn a_key_belongs_to_the_first_point_at_or_after_it_and_those_after_the_last_to_the_first() {
        let ring = Ring::new(&tokens(3));
        let key = |place: u32| u64::from(place) << 32;
        for pair in ring.points.windows(2) {
            let (here, next) = (place(pair[0]), index(pair[1]));
            assert_eq!(ring.owner(key(here)), Some(index(pair[0])));
            assert_eq!(ring.owner(key(here) | u64::from(u32::MAX)), Some(index(pair[0])));
            assert_eq!(ring.owner(key(here + 1)), Some(next));
        }
        let (first, last) = (ring.points[0], ring.points[ring.points.len() - 1]);
        assert_eq!(ring.owner(key(place(last))), Some(index(last)));
        assert_eq!(ring.owner(key(place(last) + 1)), Some(index(first)));
        assert_eq!(ring.owner(0), Some(index(first)));
    }

    #[test]
    fn a_walk_meets_every_endpoint_and_begins_with_the_owner() {
        let ring = Ring::new(&tokens(20));
        for key in [0, 1, u64::MAX / 2, u64::MAX] {
            let met: Vec<_> = ring.walk(key).collect();
            assert_eq!(met.first().copied(), ring.owner(key));
            assert_eq!(met.iter().collect::<HashSet<_>>().len(), 20);
        }
    }

    #[test]
    fn of_two_at_the_same_place_the_smaller_token_has_it_in_any_order() {
        let mut at = HashMap::new();
        let points =
            tokens(1000).into_iter().flat_map(|t| t.sequence().take(256).map(move |n| (n, t)));
        // Among 256,000 points a few places are taken twice.
        let (key, one, other) = points
            .filter_map(|(n, token)| Some((n, at.insert(place(n), token)?, token)))
            .find(|(_, one, other)| one != other)
            .unwrap();
        for pair in [[one, other], [other, one]] {
            assert_eq!(pair[Ring::new(&pair).owner(key).unwrap()], one.min(other));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The bound on what moves: an endpoint's own share, which the stated factor bounds by
        /// 1.35 of an `n`-th.
        #[test]
        fn an_endpoint_that_comes_or_goes_moves_its_own_keys_only(
            all in prop::collection::btree_set(0usize..100_000, 2..40),
            gone in any::<prop::sample::Index>(),
            seed in any::<u64>(),
        ) {
            let with: Vec<Token> = all.iter().copied().map(token).collect();
            let gone = with[gone.index(with.len())];
            // In another order too: a snapshot's order carries no meaning.
            let mut without: Vec<Token> = with.iter().copied().filter(|t| *t != gone).collect();
            without.reverse();
            let (before, after) = (Ring::new(&with), Ring::new(&without));
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut moved = 0u32;
            for _ in 0..2000 {
                let key = rng.u64(..);
                let (old, new) = (with[before.owner(key).unwrap()], without[after.owner(key).unwrap()]);
                if old == gone {
                    moved += 1;
                } else {
                    prop_assert_eq!(old, new, "a key of an endpoint that stayed has moved");
                }
            }
            let even = 2000.0 / with.len() as f64;
            // Five standard deviations of the draw on top.
            let bound = 1.35 * even + 5.0 * (1.35 * even).sqrt();
            prop_assert!(f64::from(moved) <= bound, "{moved} moved, {even} is even");
        }

        #[test]
        fn the_order_of_the_endpoints_does_not_matter(
            all in prop::collection::btree_set(0usize..1000, 1..20),
            key in any::<u64>(),
        ) {
            let forward: Vec<Token> = all.iter().copied().map(token).collect();
            let backward: Vec<Token> = forward.iter().copied().rev().collect();
            let owner = |tokens: &[Token]| tokens[Ring::new(tokens).owner(key).unwrap()];
            prop_assert_eq!(owner(&forward), owner(&backward));
        }
    }
}
