//! Who asked for what.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Name,
    answer::{Caller, Target},
    in_namespace,
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
    by_caller: BTreeMap<Name, HashSet<SubscriberId>>,
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
        self.by_caller.entry(pod_of(&caller)).or_default().insert(id);
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
        let pod = pod_of(&subscription.caller);
        if let Some(ids) = self.by_caller.get_mut(&pod) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_caller.remove(&pod);
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

    /// All of a pod.
    pub(super) fn of_caller(&self, pod: &Name) -> impl Iterator<Item = SubscriberId> + '_ {
        self.by_caller.get(pod).into_iter().flatten().copied()
    }

    /// All of a namespace's pods.
    pub(super) fn of_callers_in<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = SubscriberId> + 'a {
        in_namespace(&self.by_caller, namespace).flat_map(|(_, ids)| ids).copied()
    }

    fn of(&self, interest: &Interest) -> impl Iterator<Item = SubscriberId> + use<'_> {
        self.by_interest.get(interest).into_iter().flatten().copied()
    }
}

fn pod_of(caller: &Caller) -> Name {
    Name::new(&caller.namespace, &caller.pod)
}
