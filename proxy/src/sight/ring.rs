//! A bounded queue of records: the oldest goes first.

use std::{collections::VecDeque, sync::Arc};

use tokio::time::Instant;

use super::record::Decision;

#[derive(Debug)]
pub(super) struct Ring {
    records: VecDeque<(Instant, Arc<Decision>)>,
    max: usize,
}

impl Ring {
    pub(super) fn new(max: usize) -> Self {
        Self { records: VecDeque::new(), max }
    }

    pub(super) fn push(&mut self, at: Instant, decision: Arc<Decision>) {
        if self.records.len() >= self.max {
            self.records.pop_front();
        }
        self.records.push_back((at, decision));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(Instant, Arc<Decision>)> {
        self.records.iter()
    }
}
