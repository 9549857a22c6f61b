//! The objects, one counter of versions for all kinds, and a bounded history of what changed.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::kinds::Kind;

/// What identifies an object; objects sort as lists give them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) kind: &'static Kind,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// What happened to an object.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) id: Id,
    /// Its state after it; of a deleted object the last, with the deletion's version.
    pub(super) object: Value,
    /// Its state before it.
    pub(super) previous: Option<Value>,
    pub(super) deleted: bool,
    /// When.
    pub(super) at: Instant,
}

/// Everything stored.
#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    objects: BTreeMap<Id, Value>,
    history: VecDeque<Change>,
    /// Every change after this version is in the history.
    oldest: u64,
    capacity: usize,
}

/// Changes remembered where nothing else is said.
const HISTORY: usize = 10_000;

impl Store {
    pub(super) fn new() -> Self {
        Self {
            version: 100,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            oldest: 100,
            capacity: HISTORY,
        }
    }

    /// The newest version.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// The version that a watch must at least have.
    pub(super) fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Remembers so many changes from now on.
    pub(super) fn keep(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.trim();
    }

    /// Forgets all history.
    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.oldest = self.version;
    }

    /// Counts on without a change, as other kinds' writes do.
    pub(super) fn skip_versions(&mut self, count: u64) {
        self.version += count;
    }

    pub(super) fn object(&self, id: &Id) -> Option<&Value> {
        self.objects.get(id)
    }

    /// Objects of a kind, of one namespace or all, in the order of lists.
    pub(super) fn objects<'a>(
        &'a self,
        kind: &'static Kind,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Id, &'a Value)> {
        self.objects
            .iter()
            .filter(move |(id, _)| id.kind == kind && namespace.is_none_or(|ns| ns == id.namespace))
    }

    /// Objects of a kind as they were at a version; nothing where that is forgotten.
    pub(super) fn objects_at<'a>(
        &'a self,
        kind: &'static Kind,
        namespace: Option<&'a str>,
        version: u64,
    ) -> Option<BTreeMap<&'a Id, &'a Value>> {
        if version < self.oldest {
            return None;
        }
        let mut then: BTreeMap<&Id, &Value> = self.objects(kind, namespace).collect();
        let undone = self.history.iter().rev().take_while(|change| change.version > version);
        let own = |id: &Id| id.kind == kind && namespace.is_none_or(|ns| ns == id.namespace);
        for change in undone.filter(|change| own(&change.id)) {
            match &change.previous {
                Some(previous) => then.insert(&change.id, previous),
                None => then.remove(&change.id),
            };
        }
        Some(then)
    }

    /// The version that was the newest one at a time.
    pub(super) fn version_at(&self, time: Instant) -> u64 {
        let later = self.history.partition_point(|change| change.at <= time);
        later.checked_sub(1).map_or(self.oldest, |at| self.history[at].version)
    }

    /// Changes of a kind after a version; nothing where some of them are forgotten.
    pub(super) fn changes_after(
        &self,
        kind: &'static Kind,
        version: u64,
    ) -> Option<impl Iterator<Item = &Change>> {
        if version < self.oldest {
            return None;
        }
        let start = self.history.partition_point(|change| change.version <= version);
        Some(self.history.range(start..).filter(move |change| change.id.kind == kind))
    }

    /// Stores an object under the next version, and gives it.
    pub(super) fn insert(&mut self, id: Id, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let previous = self.objects.insert(id.clone(), object.clone());
        self.remember(Change {
            version: self.version,
            id,
            object: object.clone(),
            previous,
            deleted: false,
            at: Instant::now(),
        });
        object
    }

    /// Takes an object out, and gives its last state.
    pub(super) fn remove(&mut self, id: &Id) -> Option<Value> {
        let previous = self.objects.remove(id)?;
        self.version += 1;
        let mut object = previous.clone();
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.remember(Change {
            version: self.version,
            id: id.clone(),
            object: object.clone(),
            previous: Some(previous),
            deleted: true,
            at: Instant::now(),
        });
        Some(object)
    }

    fn remember(&mut self, change: Change) {
        self.history.push_back(change);
        self.trim();
    }

    fn trim(&mut self) {
        while self.history.len() > self.capacity {
            if let Some(change) = self.history.pop_front() {
                self.oldest = change.version;
            }
        }
    }
}
