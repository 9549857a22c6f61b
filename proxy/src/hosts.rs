//! Connections to what is outside the mesh, by the name that they are for.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Names that are kept apart.
const MAX: usize = 100;
/// What came after those.
const OTHER: &str = "other";
/// What says no name.
const UNNAMED: &str = "unnamed";

/// Counts by name: the first [`MAX`] names, and the others together.
#[derive(Debug, Default)]
pub struct Hosts(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    named: BTreeMap<Box<str>, u64>,
    unnamed: u64,
    other: u64,
}

impl Hosts {
    /// A connection was for that name, or for none that could be told.
    pub fn count(&self, name: Option<&str>) {
        let mut counts = self.0.lock();
        let Some(name) = name else {
            counts.unnamed += 1;
            return;
        };
        if let Some(count) = counts.named.get_mut(name) {
            *count += 1;
        } else if counts.named.len() < MAX {
            counts.named.insert(name.into(), 1);
        } else {
            counts.other += 1;
        }
    }

    /// All counts, with their labels.
    #[must_use]
    pub fn all(&self) -> Vec<(Box<str>, u64)> {
        let counts = self.0.lock();
        let rest = [(UNNAMED.into(), counts.unnamed), (OTHER.into(), counts.other)];
        counts.named.iter().map(|(name, count)| (name.clone(), *count)).chain(rest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_cannot_make_more_series_than_the_bound() {
        let hosts = Hosts::default();
        for n in 0..1000 {
            hosts.count(Some(&format!("{n}.example")));
        }
        hosts.count(Some("0.example"));
        hosts.count(None);
        let all: BTreeMap<_, _> = hosts.all().into_iter().collect();
        assert_eq!(all.len(), MAX + 2);
        assert_eq!((all["0.example"], all[OTHER], all[UNNAMED]), (2, 900, 1));
    }
}
