//! Copies of requests for somebody else.

use super::backend::Backend;

/// Who gets a copy of which share of requests.
#[derive(Debug)]
pub struct Mirror {
    /// Whom it goes to.
    pub backend: Backend,
    /// That many...
    pub numerator: u32,
    /// ...of so many; not zero.
    pub denominator: u32,
}

impl Mirror {
    /// Whether a request is one of them.
    #[must_use]
    pub fn wants(&self, rng: &mut fastrand::Rng) -> bool {
        rng.u32(..self.denominator.max(1)) < self.numerator
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::testing::backend;

    #[test]
    fn the_share_is_a_fraction() {
        let mut rng = fastrand::Rng::with_seed(9);
        for (numerator, denominator, wanted) in
            [(1, 1, 2000..=2000), (0, 100, 0..=0), (7, 5, 2000..=2000), (1, 4, 420..=580)]
        {
            let mirror = Mirror { backend: backend("copy", 1), numerator, denominator };
            let count = (0..2000).filter(|_| mirror.wants(&mut rng)).count();
            assert!(wanted.contains(&count), "{numerator}/{denominator}: {count}");
        }
    }
}
