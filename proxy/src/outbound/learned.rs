//! Destinations whose server was heard to speak first.

use std::collections::HashSet;

use parking_lot::Mutex;

use crate::discovery::Target;

/// Destinations remembered; when full, it starts anew, which costs 50 ms per forgotten one.
const MAX: usize = 1024;

/// What this worker learned. Only asked where nothing tells the protocol.
#[derive(Debug, Default)]
pub(super) struct Learned(Mutex<HashSet<Target>>);

impl Learned {
    pub(super) fn is_opaque(&self, target: &Target) -> bool {
        let learned = self.0.lock();
        !learned.is_empty() && learned.contains(target)
    }

    pub(super) fn server_first(&self, target: &Target) {
        let mut learned = self.0.lock();
        if learned.len() >= MAX {
            learned.clear();
        }
        learned.insert(target.clone());
    }
}
