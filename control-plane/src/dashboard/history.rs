//! The last minutes of each Service.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;

use super::load::Figures;
use crate::index::Name;

/// How long a sample is kept.
pub(super) const KEPT: Duration = Duration::from_secs(5 * 60);

/// Samples of the Services that were shown last, oldest first.
#[derive(Debug, Default)]
pub(super) struct History(BTreeMap<Name, VecDeque<(Instant, Sample)>>);

/// The figures of one round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Sample {
    /// When, in Unix milliseconds.
    pub(super) at_ms: u64,
    #[serde(flatten)]
    pub(super) figures: Figures,
}

impl History {
    /// Adds the samples of a round. A Service that is not among them is forgotten, so that there are
    /// never more than a round has; what is older than five minutes goes.
    pub(super) fn add<'a>(
        &mut self,
        now: Instant,
        at_ms: u64,
        round: impl Iterator<Item = (&'a Name, Figures)>,
    ) {
        let mut kept = BTreeMap::new();
        for (name, figures) in round {
            let mut samples = self.0.remove(name).unwrap_or_default();
            while samples.front().is_some_and(|(at, _)| now.duration_since(*at) > KEPT) {
                samples.pop_front();
            }
            samples.push_back((now, Sample { at_ms, figures }));
            kept.insert(name.clone(), samples);
        }
        self.0 = kept;
    }

    /// The samples of a Service, oldest first.
    pub(super) fn of(&self, name: &Name) -> Vec<Sample> {
        self.0.get(name).into_iter().flatten().map(|(_, sample)| *sample).collect()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_minutes_are_kept_of_those_that_are_shown() {
        let mut history = History::default();
        let (start, web, orders) =
            (Instant::now(), Name::new("shop", "web"), Name::new("shop", "orders"));
        let figures = Figures { rps: 1.0, ..Figures::default() };
        for second in (0..=400).step_by(2) {
            let now = start + Duration::from_secs(second);
            history.add(now, second * 1000, [(&web, figures), (&orders, figures)].into_iter());
        }
        let samples = history.of(&web);
        assert_eq!((samples.len(), samples[0].at_ms), (151, 100_000));
        history.add(start + KEPT, 0, [(&web, figures)].into_iter());
        assert_eq!(history.of(&orders), []);
    }
}
