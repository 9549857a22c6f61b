//! Whom a request goes to, by weight.

use std::sync::Arc;

use super::Filter;
use crate::discovery::{
    ServiceId, Target,
    traffic::{BackendTraffic, RouteTraffic},
};

/// Whom the requests of a route go to.
#[derive(Debug)]
pub enum Backends {
    /// The Service that the route belongs to.
    Own,
    /// One of these.
    Weighted(Weighted),
}

/// Backends with the parts that they get.
#[derive(Debug)]
pub struct Weighted {
    list: Box<[Backend]>,
    sum: u64,
}

/// A Service that gets a part of the requests.
#[derive(Debug)]
pub struct Backend {
    /// Which one.
    pub id: ServiceId,
    /// What discovery is asked for.
    pub target: Target,
    /// Its part of the sum; 0: none but for clients that had one of its endpoints.
    pub weight: u32,
    /// For requests that go to it, after those of the route.
    pub filters: Box<[Filter]>,
    /// Why it cannot be reached; what falls to it is answered 500.
    pub invalid: Option<Box<str>>,
    /// What it has seen by way of the route.
    pub traffic: Arc<BackendTraffic>,
}

impl Backends {
    /// The same with what they have seen already by way of a route.
    #[must_use]
    pub(super) fn known_to(mut self, route: &RouteTraffic) -> Self {
        if let Self::Weighted(weighted) = &mut self {
            for backend in &mut weighted.list {
                backend.traffic = route.backend(&backend.id);
            }
        }
        self
    }
}

/// There is nobody to send a request to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoBackend {
    /// No backend, or none that has a part.
    #[error("it has no backend that gets requests")]
    None,
    /// It fell to one that cannot be reached.
    #[error("{backend}: {why}")]
    Invalid {
        /// Which one.
        backend: ServiceId,
        /// Why.
        why: Box<str>,
    },
}

impl Weighted {
    /// Backends; those whose weights add up to nothing, or none at all, get no request.
    #[must_use]
    pub fn new(list: Vec<Backend>) -> Self {
        let sum = list.iter().map(|backend| u64::from(backend.weight)).sum();
        Self { list: list.into(), sum }
    }

    /// Those that can be reached, whatever their weights: a client keeps the endpoint that it had
    /// (GEP-1619, "Traffic Splitting").
    pub fn reachable(&self) -> impl Iterator<Item = (usize, &Backend)> {
        self.list.iter().enumerate().filter(|(_, backend)| backend.invalid.is_none())
    }

    /// The backend at a position that [`Self::pick`] or [`Self::reachable`] gave.
    #[must_use]
    pub fn at(&self, position: usize) -> Option<&Backend> {
        self.list.get(position)
    }

    /// Chooses one, each with its part of the probability; gives its position.
    ///
    /// # Errors
    /// Where there is none to choose, or the chosen one cannot be reached.
    pub fn pick(&self, rng: &mut fastrand::Rng) -> Result<usize, NoBackend> {
        if self.sum == 0 {
            return Err(NoBackend::None);
        }
        let mut point = rng.u64(..self.sum);
        for (position, backend) in self.list.iter().enumerate() {
            let weight = u64::from(backend.weight);
            if point < weight {
                return match &backend.invalid {
                    None => Ok(position),
                    Some(why) => {
                        Err(NoBackend::Invalid { backend: backend.id.clone(), why: why.clone() })
                    }
                };
            }
            point -= weight;
        }
        Err(NoBackend::None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::route::testing::backend;

    #[test]
    fn nobody_gets_requests_where_all_weights_are_zero() {
        let mut rng = fastrand::Rng::with_seed(1);
        for list in [vec![], vec![backend("a", 0), backend("b", 0)]] {
            assert_eq!(Weighted::new(list).pick(&mut rng), Err(NoBackend::None));
        }
    }

    #[test]
    fn an_invalid_backend_keeps_its_part_and_says_why() {
        let mut invalid = backend("gone", 1);
        invalid.invalid = Some("no such Service".into());
        let weighted = Weighted::new(vec![backend("a", 1), invalid]);
        let mut rng = fastrand::Rng::with_seed(7);
        let failed = (0..1000).filter(|_| weighted.pick(&mut rng).is_err()).count();
        assert!((400..600).contains(&failed), "{failed}");
        let mut rng = fastrand::Rng::with_seed(7);
        let error = (0..1000).find_map(|_| weighted.pick(&mut rng).err()).unwrap();
        assert_eq!(error.to_string(), "shop/gone:80: no such Service");
    }

    proptest! {
        /// Within five standard deviations of a binomial distribution.
        #[test]
        fn each_gets_its_part_and_zero_gets_nothing(
            weights in prop::collection::vec(0u32..=1000, 1..6),
            seed in any::<u64>(),
        ) {
            const DRAWS: u32 = 4000;
            let sum: u32 = weights.iter().sum();
            prop_assume!(sum > 0);
            let list = weights.iter().map(|weight| backend("a", *weight)).collect();
            let weighted = Weighted::new(list);
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut drawn = vec![0u32; weights.len()];
            for _ in 0..DRAWS {
                drawn[weighted.pick(&mut rng).unwrap()] += 1;
            }
            for (weight, drawn) in weights.iter().zip(drawn) {
                let share = f64::from(*weight) / f64::from(sum);
                let mean = share * f64::from(DRAWS);
                let off = (f64::from(drawn) - mean).abs();
                let bound = 5.0 * (mean * (1.0 - share)).sqrt() + 1e-9;
                prop_assert!(off <= bound, "{weight} of {sum}: {drawn}");
            }
        }
    }
}
