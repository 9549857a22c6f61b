//! What each address is to a Service's port, and since when: for those who ask why an endpoint is
//! used, or is not.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use tokio::time::Instant;

use super::{
    Index, Name,
    answer::{Endpoint, Snapshot},
    resolve::PortSnapshots,
};

/// Most addresses that have gone which are remembered, of all Services together.
const MAX_GONE: usize = 1024;
/// Most ports of Services that are told of one address.
const MAX_KNOWN: usize = 100;

/// What an address is to a Service's port. Of several slices that name it, the first here counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// It takes traffic.
    Ready,
    /// It is going and still serves: proxies are told of it where nothing is ready.
    Terminating,
    /// It takes none.
    NotReady,
    /// It would, but its pod is not known yet, has ended, or has another address by now.
    PodUnknown,
    /// No slice names it any more.
    Gone,
}

impl Condition {
    /// `ready`, `terminating`, `not-ready`, `pod-unknown` or `gone`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Terminating => "terminating",
            Self::NotReady => "not-ready",
            Self::PodUnknown => "pod-unknown",
            Self::Gone => "gone",
        }
    }
}

/// An address of a Service's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    address: SocketAddr,
    condition: Condition,
    /// When the batch came that made it so; `None` where batches came without a time.
    since: Option<Instant>,
}

/// What an address is to one port of one Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The Service.
    pub service: Name,
    /// Its port.
    pub port: u16,
    /// What the address is to it.
    pub condition: Condition,
    /// Since when; `None` where it is not known.
    pub since: Option<Instant>,
}

/// The addresses of a port as they are now. One that is what it was keeps its time; another pod at
/// the same address is another endpoint.
pub(super) fn follow(
    conditions: BTreeMap<SocketAddr, Condition>,
    new: &Snapshot,
    old: Option<(&[Standing], &Snapshot)>,
    now: Option<Instant>,
) -> Box<[Standing]> {
    let same = |address, condition| {
        let (standings, snapshot) = old?;
        let at = standings.binary_search_by_key(&address, |standing| standing.address).ok()?;
        let before = &standings[at];
        let same = before.condition == condition
            && endpoint(snapshot, address).map(Arc::as_ptr)
                == endpoint(new, address).map(Arc::as_ptr);
        same.then_some(before.since)
    };
    let follow = |(address, condition)| Standing {
        address,
        condition,
        since: same(address, condition).unwrap_or(now),
    };
    conditions.into_iter().map(follow).collect()
}

fn endpoint(snapshot: &Snapshot, address: SocketAddr) -> Option<&Arc<Endpoint>> {
    let at = snapshot.endpoints.binary_search_by_key(&address, |endpoint| endpoint.address);
    at.ok().map(|at| &snapshot.endpoints[at])
}

/// The last addresses that were named and are no more, oldest first.
#[derive(Debug, Default)]
pub(super) struct Gone(VecDeque<(SocketAddr, Known)>);

impl Gone {
    /// Notes what a change of a Service leaves out; without `new` the Service itself is gone.
    pub(super) fn note(
        &mut self,
        service: &Name,
        old: &BTreeMap<u16, PortSnapshots>,
        new: Option<&BTreeMap<u16, PortSnapshots>>,
        now: Option<Instant>,
    ) {
        for (port, old) in old {
            let new = new.and_then(|new| new.get(port)).map_or(&[][..], |new| &new.standings);
            for Standing { address, .. } in &*old.standings {
                if new.binary_search_by_key(address, |standing| standing.address).is_err() {
                    let known = Known {
                        service: service.clone(),
                        port: *port,
                        condition: Condition::Gone,
                        since: now,
                    };
                    if self.0.len() == MAX_GONE {
                        self.0.pop_front();
                    }
                    self.0.push_back((*address, known));
                }
            }
        }
    }
}

impl Index {
    /// What an address is to each Service that names it, or did so lately (the last 1024 that have
    /// gone), by Service and port; at most 100.
    #[must_use]
    pub fn standings(&self, address: SocketAddr) -> Vec<Known> {
        let mut all: BTreeMap<(&Name, u16), Known> = BTreeMap::new();
        // The newest last, in the place of those before.
        for (_, known) in self.gone.0.iter().filter(|(gone, _)| *gone == address) {
            all.insert((&known.service, known.port), known.clone());
        }
        for (service, ports) in &self.snapshots {
            for (port, snapshots) in ports {
                let standings = &snapshots.standings;
                if let Ok(at) = standings.binary_search_by_key(&address, |known| known.address) {
                    let Standing { condition, since, .. } = standings[at];
                    let (service, port) = (service.clone(), *port);
                    let known = Known { service, port, condition, since };
                    all.insert((&snapshots.producer.head.service, port), known);
                }
            }
        }
        all.into_values().take(MAX_KNOWN).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::tests::{meshed, orders, slice},
        *,
    };
    use crate::source::{Event, Key, Kind};

    const A: &str = "10.0.0.1:8080";

    /// What A is to the ports of `orders`, and the second since when.
    fn is(index: &Index, start: Instant) -> Vec<(u16, &'static str, u64)> {
        let known = index.standings(A.parse().unwrap()).into_iter();
        let since = |at: Option<Instant>| at.unwrap().duration_since(start).as_secs();
        known.map(|k| (k.port, k.condition.as_str(), since(k.since))).collect()
    }

    fn gone(kind: Kind, name: &str) -> Event {
        Event::Delete(Key { kind, namespace: "shop".to_owned(), name: name.to_owned() })
    }

    #[test]
    fn an_address_keeps_its_time_until_something_about_it_changes() {
        let mut index = Index::new("cluster.local", "cluster.local");
        let start = Instant::now();
        let mut second = 0;
        let mut apply = |events: Vec<Event>| {
            second += 1;
            index.apply_at(events, Some(start + Duration::from_secs(second)));
            is(&index, start)
        };
        let one = |ready, serving, terminating| {
            slice("orders-a", &[("a", "10.0.0.1", ready, serving, terminating)])
        };
        assert_eq!(apply(vec![orders(), one(true, true, false)]), [(80, "pod-unknown", 1)]);
        assert_eq!(apply(vec![meshed("a", "10.0.0.1")]), [(80, "ready", 2)]);
        let two = slice(
            "orders-a",
            &[("a", "10.0.0.1", true, true, false), ("b", "10.0.0.2", true, true, false)],
        );
        assert_eq!(apply(vec![two]), [(80, "ready", 2)], "another endpoint is no change of this");
        assert_eq!(apply(vec![one(false, true, true)]), [(80, "terminating", 4)]);
        assert_eq!(apply(vec![one(false, false, false)]), [(80, "not-ready", 5)]);
        let empty = gone(Kind::EndpointSlice, "orders-a");
        assert_eq!(apply(vec![empty]), [(80, "gone", 6)]);
        assert_eq!(apply(vec![one(true, true, false)]), [(80, "ready", 7)]);
        assert_eq!(apply(vec![gone(Kind::Service, "orders")]), [(80, "gone", 8)]);
    }

    #[test]
    fn another_pod_at_an_address_is_a_change() {
        let mut index = Index::new("cluster.local", "cluster.local");
        let start = Instant::now();
        let at = |second| Some(start + Duration::from_secs(second));
        let named = |pod| slice("orders-a", &[(pod, "10.0.0.1", true, true, false)]);
        index.apply_at([orders(), meshed("a", "10.0.0.1"), named("a")], at(1));
        index.apply_at([gone(Kind::Pod, "a"), meshed("b", "10.0.0.1"), named("b")], at(2));
        assert_eq!(is(&index, start), [(80, "ready", 2)]);
    }

    #[test]
    fn what_has_gone_is_remembered_within_a_bound() {
        let mut index = Index::new("cluster.local", "cluster.local");
        let start = Instant::now();
        let name = |n: usize| (format!("p{n}"), format!("10.1.{}.{}", n / 250, n % 250 + 1));
        let all: Vec<_> = (0..=MAX_GONE).map(name).collect();
        let named: Vec<_> =
            all.iter().map(|(pod, ip)| (pod.as_str(), ip.as_str(), false, false, false)).collect();
        index.apply_at([orders(), slice("orders-a", &named)], Some(start));
        index.apply_at([gone(Kind::EndpointSlice, "orders-a")], Some(start));
        assert_eq!(index.gone.0.len(), MAX_GONE);
        let known = |n: usize| index.standings(format!("{}:9090", all[n].1).parse().unwrap());
        assert_eq!((known(0).len(), known(MAX_GONE).len()), (0, 1), "the oldest is forgotten");
    }
}
