//! What the control plane itself knows when a round begins: the Services, and whom to ask.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use remora_core::names::ports;
use tokio::time::Instant;

use crate::{
    discovery::State,
    index::{Name, Sidecar, answer::Snapshot},
};

/// Most proxies that are asked in a round.
pub(super) const MAX_ASKED: usize = 200;

/// One moment of the index.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    /// The ports of each Service.
    pub(super) services: BTreeMap<Name, Vec<Arc<Snapshot>>>,
    /// Whom to ask.
    pub(super) asked: Vec<Asked>,
    /// Pods with a sidecar.
    pub(super) sidecars: usize,
    /// Proxies with a stream to this replica.
    pub(super) connected: usize,
    /// How many pods with a sidecar each workload has.
    pub(super) pods: HashMap<Name, usize>,
    /// The same by identity, with the workloads that have it.
    pub(super) identities: BTreeMap<String, Identified>,
}

/// A proxy that is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Its pod.
    pub(super) pod: Name,
    /// Whose pod it is.
    pub(super) workload: Name,
    /// What it proves to be.
    pub(super) identity: String,
    /// Its admin endpoint.
    pub(super) admin: SocketAddr,
}

/// Who has an identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Identified {
    pub(super) pods: usize,
    /// At most [`MAX_WORKLOADS`].
    pub(super) workloads: Vec<Name>,
}

/// Most workloads that are named of one identity.
const MAX_WORKLOADS: usize = 20;

/// The workload that a pod belongs to: its owner, `Deployment/orders`, else the pod itself.
pub(super) fn workload(owner: &str, pod: &Name) -> Name {
    let name = if owner.is_empty() { format!("Pod/{}", pod.name).into() } else { owner.into() };
    Name { namespace: Arc::clone(&pod.namespace), name }
}

impl Cluster {
    pub(super) fn read(state: &State, now: Instant) -> Self {
        let connected = state.proxies(now);
        let (snapshots, sidecars) = state.read(|index| {
            let snapshots: Vec<_> = index.snapshots().map(Arc::clone).collect();
            (snapshots, index.sidecars().collect())
        });
        let connected = connected.iter().map(|proxy| Name::new(&proxy.namespace, &proxy.pod));
        Self::of(snapshots, sidecars, &connected.collect())
    }

    /// Of more proxies than can be asked those are asked that are connected to this replica, then
    /// the first by name: always the same, so that figures do not jump.
    pub(super) fn of(
        snapshots: Vec<Arc<Snapshot>>,
        mut sidecars: Vec<Sidecar>,
        connected: &HashSet<Name>,
    ) -> Self {
        let mut cluster =
            Self { sidecars: sidecars.len(), connected: connected.len(), ..Self::default() };
        for snapshot in snapshots {
            let ports = cluster.services.entry(snapshot.head.service.clone()).or_default();
            ports.push(snapshot);
        }
        cluster.services.values_mut().for_each(|ports| ports.sort_by_key(|port| port.head.port));
        for sidecar in &sidecars {
            let workload = workload(&sidecar.owner, &sidecar.pod);
            let by = cluster.identities.entry(sidecar.identity.to_string()).or_default();
            by.pods += 1;
            if by.workloads.len() < MAX_WORKLOADS && !by.workloads.contains(&workload) {
                by.workloads.push(workload.clone());
            }
            *cluster.pods.entry(workload).or_default() += 1;
        }
        // Stable: by name among those and among the others.
        sidecars.sort_by_key(|sidecar| !connected.contains(&sidecar.pod));
        let asked = sidecars.into_iter().take(MAX_ASKED).map(|sidecar| Asked {
            workload: workload(&sidecar.owner, &sidecar.pod),
            identity: sidecar.identity.to_string(),
            admin: SocketAddr::new(sidecar.ip, ports::PROXY_ADMIN),
            pod: sidecar.pod,
        });
        cluster.asked = asked.collect();
        cluster
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sidecar(n: u8, owner: &str) -> Sidecar {
        Sidecar {
            pod: Name::new("shop", &format!("pod-{n:03}")),
            owner: owner.into(),
            identity: Arc::new("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()),
            ip: [10, 0, 0, n].into(),
        }
    }

    #[test]
    fn of_too_many_proxies_those_of_this_replica_are_asked_first() {
        let sidecars = (0..=250).map(|n| sidecar(n, "Deployment/web")).collect();
        let connected = [Name::new("shop", "pod-249"), Name::new("shop", "gone")];
        let cluster = Cluster::of(Vec::new(), sidecars, &connected.into());
        assert_eq!((cluster.sidecars, cluster.asked.len()), (251, MAX_ASKED));
        assert_eq!(&*cluster.asked[0].pod.name, "pod-249");
        assert_eq!(cluster.asked[0].admin, "10.0.0.249:4191".parse().unwrap());
        assert_eq!(&*cluster.asked[199].pod.name, "pod-198");
    }

    #[test]
    fn a_pod_without_an_owner_is_a_workload_of_its_own() {
        let sidecars =
            vec![sidecar(1, "Deployment/web"), sidecar(2, "Deployment/web"), sidecar(3, "")];
        let cluster = Cluster::of(Vec::new(), sidecars, &HashSet::new());
        let pods = |name| cluster.pods[&Name::new("shop", name)];
        assert_eq!((pods("Deployment/web"), pods("Pod/pod-003")), (2, 1));
        let web = &cluster.identities["spiffe://cluster.local/ns/shop/sa/web"];
        assert_eq!((web.pods, web.workloads.len()), (3, 2));
    }
}
