//! What connected proxies were told of a Service, and when.

use std::collections::{BTreeMap, btree_map::Entry};

use tokio::time::Instant;

use super::{State, stream::Pushed};
use crate::index::Name;

/// The last message about a Service's port to one proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Namespace of the proxy's pod.
    pub namespace: String,
    /// The proxy's pod.
    pub pod: String,
    /// When it was handed to the proxy's stream.
    pub sent: Instant,
    /// When the proxy confirmed it; `None`: it has not.
    pub acked: Option<Instant>,
}

impl State {
    /// The last message about a port of a Service to each proxy that is connected here and asked for
    /// it, by namespace and pod. One that asked by several names counts once, by what was sent last.
    #[must_use]
    pub fn pushes(&self, service: &Name, port: u16) -> Vec<Push> {
        let asked: Vec<_> = self.read(|index| {
            let asked = index.subscribers(service, port);
            asked.map(|(id, caller)| (id, caller.namespace.clone(), caller.pod.clone())).collect()
        });
        let mut last: BTreeMap<(String, String), Pushed> = BTreeMap::new();
        let streams = self.streams.lock();
        for (id, namespace, pod) in asked {
            let Some(pushed) = streams.get(&id.stream).and_then(|s| s.pushed(id.id)) else {
                continue;
            };
            match last.entry((namespace, pod)) {
                Entry::Vacant(entry) => {
                    entry.insert(pushed);
                }
                Entry::Occupied(mut entry) if entry.get().sent < pushed.sent => {
                    entry.insert(pushed);
                }
                Entry::Occupied(_) => {}
            }
        }
        drop(streams);
        let push =
            |((namespace, pod), Pushed { sent, acked, .. })| Push { namespace, pod, sent, acked };
        last.into_iter().map(push).collect()
    }
}
