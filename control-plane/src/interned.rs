//! Values that thousands of objects repeat, each kept once.

use std::{collections::HashSet, hash::Hash, sync::Arc};

/// Values held until then, whether anybody uses them or not.
const LEAST: usize = 1024;

/// A pool of shared values. Those that nobody uses any more leave it in time: it holds at most
/// twice as many as are used, or 1024.
#[derive(Debug)]
pub(crate) struct Interned<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// The size at which unused ones are looked for.
    sweep_at: usize,
}

impl<T: ?Sized> Default for Interned<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: LEAST }
    }
}

impl<T: ?Sized + Hash + Eq> Interned<T> {
    /// Puts the value that is known already in the place of one that equals it.
    pub(crate) fn share(&mut self, value: &mut Arc<T>) {
        if let Some(known) = self.known.get(&**value) {
            *value = Arc::clone(known);
            return;
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|one| Arc::strong_count(one) > 1);
            self.sweep_at = LEAST.max(2 * self.known.len());
        }
        self.known.insert(Arc::clone(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one() {
        let mut strings = Interned::<str>::default();
        let [mut a, mut b, mut c]: [Arc<str>; 3] = ["shop".into(), "shop".into(), "web".into()];
        [&mut a, &mut b, &mut c].into_iter().for_each(|one| strings.share(one));
        assert!(Arc::ptr_eq(&a, &b));
        assert_eq!((&*b, &*c), ("shop", "web"));
    }

    #[test]
    fn what_nobody_uses_any_more_leaves_and_what_is_used_stays() {
        let mut strings = Interned::<str>::default();
        let mut kept: Arc<str> = "kept".into();
        strings.share(&mut kept);
        for number in 0..100_000 {
            strings.share(&mut number.to_string().into());
            assert!(strings.known.len() <= LEAST);
        }
        let mut again: Arc<str> = "kept".into();
        strings.share(&mut again);
        assert!(Arc::ptr_eq(&kept, &again));
    }
}
