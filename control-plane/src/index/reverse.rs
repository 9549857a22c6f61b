//! Who names whom.

use std::{collections::HashMap, hash::Hash};

/// Many to many, looked up from one side. Mostly one to one, in which a set of one element must
/// cost no more than that: there is one for every pod and address.
#[derive(Debug)]
pub(super) struct Reverse<K, V>(HashMap<K, Vec<V>>);

impl<K, V> Default for Reverse<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V: Ord> Reverse<K, V> {
    pub(super) fn insert(&mut self, key: K, value: V) {
        let values = self.0.entry(key).or_default();
        if let Err(at) = values.binary_search(&value) {
            if values.is_empty() {
                values.reserve_exact(1);
            }
            values.insert(at, value);
        }
    }

    pub(super) fn remove(&mut self, key: &K, value: &V) {
        if let Some(values) = self.0.get_mut(key) {
            if let Ok(at) = values.binary_search(value) {
                values.remove(at);
            }
            if values.is_empty() {
                self.0.remove(key);
            }
        }
    }

    /// In order.
    pub(super) fn of(&self, key: &K) -> impl Iterator<Item = &V> {
        self.0.get(key).into_iter().flatten()
    }
}
