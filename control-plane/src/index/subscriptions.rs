//! Who asked for what.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Name,
    answer::{Caller, Target},
};

/// A subscription: the stream's number and the id that the proxy chose on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriberId {
    /// The stream.
    pub stream: u64,
    /// The subscription on the stream.
    pub id: u64,
}

/// The one thing whose change can change an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Interest {
    Service(Name),
    Pod(Name),
    Address(IpAddr),
    /// Nothing in the index can change it.
    None,
}

#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    by_id: HashMap<SubscriberId, Subscription>,
    by_interest: HashMap<Interest, HashSet<SubscriberId>>,
}

#[derive(Debug)]
struct Subscription {
    target: Target,
    caller: Arc<Caller>,
    interest: Interest,
}

impl Subscriptions {
    pub(super) fn insert(
        &mut self,
        id: SubscriberId,
        target: Target,
        caller: Arc<Caller>,
        interest: Interest,
    ) {
        self.remove(id);
        self.by_interest.entry(interest.clone()).or_default().insert(id);
        self.by_id.insert(id, Subscription { target, caller, interest });
    }

    pub(super) fn remove(&mut self, id: SubscriberId) {
        let Some(subscription) = self.by_id.remove(&id) else { return };
        if let Some(ids) = self.by_interest.get_mut(&subscription.interest) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_interest.remove(&subscription.interest);
            }
        }
    }

    pub(super) fn target(&self, id: SubscriberId) -> Option<(&Target, &Caller)> {
        self.by_id.get(&id).map(|subscription| (&subscription.target, &*subscription.caller))
    }

    pub(super) fn of_service(&self, name: &Name) -> impl Iterator<Item = SubscriberId> + '_ {
        self.of(&Interest::Service(name.clone()))
    }

    pub(super) fn of_pod(&self, name: &Name) -> impl Iterator<Item = SubscriberId> + '_ {
        self.of(&Interest::Pod(name.clone()))
    }

    pub(super) fn of_address(&self, ip: IpAddr) -> impl Iterator<Item = SubscriberId> + '_ {
        self.of(&Interest::Address(ip))
    }

    /// All of these callers. Looks at every subscription: for what changes seldom.
    pub(super) fn of_callers(
        &self,
        wanted: impl Fn(&Caller) -> bool,
    ) -> impl Iterator<Item = SubscriberId> {
        self.by_id.iter().filter(move |(_, s)| wanted(&s.caller)).map(|(id, _)| *id)
    }

    fn of(&self, interest: &Interest) -> impl Iterator<Item = SubscriberId> + use<'_> {
        self.by_interest.get(interest).into_iter().flatten().copied()
    }
}
