//! The subscriptions: sharded maps for readers, and one list of what the stream still has to say.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::cache::Entry;

/// What can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// An address and port as the application dialled it.
    Address(SocketAddr),
    /// `host:port` as the application named it.
    Authority(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Authority(authority) => f.write_str(authority),
        }
    }
}

const SHARDS: usize = 64;

/// Entries by target. Readers never wait; a writer copies one shard, so that a bounded cache costs
/// a bounded copy. Writers hold the registry's lock.
#[derive(Debug)]
pub(super) struct Shards {
    hasher: RandomState,
    maps: [ArcSwap<HashMap<Target, Arc<Entry>>>; SHARDS],
}

impl Default for Shards {
    fn default() -> Self {
        Self { hasher: RandomState::new(), maps: std::array::from_fn(|_| ArcSwap::default()) }
    }
}

impl Shards {
    pub(super) fn get(&self, target: &Target) -> Option<Arc<Entry>> {
        self.shard(target).load().get(target).cloned()
    }

    /// A look at an entry that costs no reference count.
    pub(super) fn with<R>(&self, target: &Target, look: impl FnOnce(&Entry) -> R) -> Option<R> {
        self.shard(target).load().get(target).map(|entry| look(entry))
    }

    pub(super) fn insert(&self, entry: &Arc<Entry>) {
        let shard = self.shard(&entry.target);
        let mut map = HashMap::clone(&shard.load());
        map.insert(entry.target.clone(), entry.clone());
        shard.store(Arc::new(map));
    }

    pub(super) fn remove(&self, target: &Target) {
        let shard = self.shard(target);
        let mut map = HashMap::clone(&shard.load());
        map.remove(target);
        shard.store(Arc::new(map));
    }

    fn shard(&self, target: &Target) -> &ArcSwap<HashMap<Target, Arc<Entry>>> {
        let hash = self.hasher.hash_one(target);
        // The remainder is below SHARDS.
        &self.maps[usize::try_from(hash % SHARDS as u64).unwrap_or(0)]
    }
}

/// Subscription of the pod's own inbound policy; dialled targets follow.
pub(super) const INBOUND_ID: u64 = 1;

/// Every subscription by id, and what the current stream has not been told yet.
///
/// Both lists of untold changes are bounded by the number of subscriptions: a target that goes
/// before the stream heard of it leaves no trace.
#[derive(Debug, Default)]
pub(super) struct Registry {
    last_id: u64,
    entries: HashMap<u64, Arc<Entry>>,
    to_subscribe: HashSet<u64>,
    to_unsubscribe: HashSet<u64>,
}

/// One thing to tell the control plane.
#[derive(Debug)]
pub(super) enum Untold {
    Subscribe(u64, Target),
    Unsubscribe(u64),
}

impl Registry {
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id = self.last_id.max(INBOUND_ID) + 1;
        self.last_id
    }

    pub(super) fn add(&mut self, entry: Arc<Entry>) {
        self.to_subscribe.insert(entry.id);
        self.entries.insert(entry.id, entry);
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.entries.remove(&id);
        if !self.to_subscribe.remove(&id) {
            self.to_unsubscribe.insert(id);
        }
    }

    pub(super) fn get(&self, id: u64) -> Option<&Arc<Entry>> {
        self.entries.get(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }

    /// A new stream knows nothing: everything is to be told again.
    pub(super) fn begin_stream(&mut self) {
        self.to_unsubscribe.clear();
        self.to_subscribe = self.entries.keys().copied().collect();
    }

    /// Takes one untold change.
    pub(super) fn next_untold(&mut self) -> Option<Untold> {
        if let Some(&id) = self.to_unsubscribe.iter().next() {
            self.to_unsubscribe.remove(&id);
            return Some(Untold::Unsubscribe(id));
        }
        let id = *self.to_subscribe.iter().next()?;
        self.to_subscribe.remove(&id);
        let target = self.entries.get(&id)?.target.clone();
        Some(Untold::Subscribe(id, target))
    }
}
