//! A cluster of any size in the double of the API server, with its objects as large as real ones,
//! and rollouts as controllers and kubelets write them: seven writes for each pod that is replaced.

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::Context;
use remora_core::names::{TOKEN_AUDIENCE, TRUST_BUNDLE_CONFIG_MAP, TRUST_BUNDLE_KEY};
use remora_tests::apiserver::ApiServer;
use tokio::time::Instant;

use super::{
    changes::{Changes, Way},
    objects,
};

/// Services of one namespace.
const SERVICES_PER_NAMESPACE: usize = 20;
/// Nodes, in three zones.
const NODES: usize = 100;
/// What every Service is dialled at.
pub(super) const SERVICE_PORT: u16 = 80;

/// Services and pods, and the API server that has them.
pub(super) struct Cluster {
    pub(super) api: ApiServer,
    pub(super) services: Vec<Service>,
    changes: Arc<Changes>,
    /// Pods made so far.
    pods: u32,
}

/// A Service, its Deployment and its one EndpointSlice.
pub(super) struct Service {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) cluster_ip: Ipv4Addr,
    pub(super) pods: Vec<Pod>,
}

/// A pod of a Service.
#[derive(Debug, Clone)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) ip: Ipv4Addr,
    pub(super) node: String,
    pub(super) zone: String,
    pub(super) state: State,
}

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Made; without an address, and in no slice.
    Pending,
    Ready,
    /// Being deleted; in its slice as terminating.
    Leaving,
}

impl Cluster {
    /// A double without Services.
    pub(super) async fn empty(changes: Arc<Changes>) -> Self {
        let api = ApiServer::start().await;
        Self { api, services: Vec::new(), changes, pods: 0 }
    }

    /// Writes so many Services with so many ready pods each.
    pub(super) fn fill(&mut self, services: usize, pods: usize) {
        for node in 0..NODES {
            self.api.put(objects::node(&node_name(node), &zone(node)));
        }
        for number in 0..services {
            let namespace = format!("team-{:02}", number / SERVICES_PER_NAMESPACE);
            if number.is_multiple_of(SERVICES_PER_NAMESPACE) {
                self.api.namespace(&namespace, &[("remora.io/inject", "enabled")]);
            }
            let [_, _, high, low] =
                Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(0)).octets();
            let cluster_ip = Ipv4Addr::new(10, 96, high, low);
            let name = format!("checkout-{number:04}");
            let mut service = Service { name, namespace, cluster_ip, pods: Vec::new() };
            for _ in 0..pods {
                let pod = self.next_pod(&service.name, State::Ready);
                self.api.put(objects::pod(&service, &pod));
                service.pods.push(pod);
            }
            self.api.put(objects::service(&service));
            self.api.put(objects::slice(&service));
            self.services.push(service);
        }
    }

    /// A new pod of a Service is made.
    pub(super) fn make(&mut self, service: usize) {
        let name = self.services[service].name.clone();
        let pod = self.next_pod(&name, State::Pending);
        self.api.put(objects::pod(&self.services[service], &pod));
        self.services[service].pods.push(pod);
    }

    /// The oldest pod that is not ready yet becomes ready.
    pub(super) fn ready(&mut self, service: usize) -> anyhow::Result<()> {
        let pod = self.turn(service, State::Pending, State::Ready)?;
        self.api.put(objects::pod(&self.services[service], &pod));
        self.write_slice(service, Some((pod.ip, Way::Added)));
        Ok(())
    }

    /// The oldest ready pod is deleted and has time to end.
    pub(super) fn leave(&mut self, service: usize) -> anyhow::Result<()> {
        let pod = self.turn(service, State::Ready, State::Leaving)?;
        self.api.put(objects::pod(&self.services[service], &pod));
        self.write_slice(service, Some((pod.ip, Way::Removed)));
        Ok(())
    }

    /// The oldest pod that was deleted is gone.
    pub(super) fn gone(&mut self, service: usize) -> anyhow::Result<()> {
        let at = self.oldest(service, State::Leaving)?;
        let pod = self.services[service].pods.remove(at);
        self.api.remove("pods", &self.services[service].namespace, &pod.name);
        self.write_slice(service, None);
        Ok(())
    }

    /// A token of a Service's first pod, as the kubelet mounts it.
    pub(super) fn token(&self, service: usize) -> anyhow::Result<(&Service, &Pod, String)> {
        let service = self.services.get(service).context("no such Service")?;
        let pod = service.pods.first().context("a Service without pods")?;
        let (namespace, account) = (&service.namespace, &service.name);
        let token = self.api.issue_token(namespace, account, Some(&pod.name), &[TOKEN_AUDIENCE]);
        Ok((service, pod, token))
    }

    /// The roots (PEM) as they are published in a namespace; `None` where they are not yet.
    pub(super) fn roots(&self, namespace: &str) -> Option<String> {
        let map = self.api.object("configmaps", namespace, TRUST_BUNDLE_CONFIG_MAP)?;
        Some(map["data"][TRUST_BUNDLE_KEY].as_str()?.to_owned())
    }

    /// Writes the slice, and first when: what follows is the API server's and the control plane's.
    fn write_slice(&self, service: usize, change: Option<(Ipv4Addr, Way)>) {
        let slice = objects::slice(&self.services[service]);
        if let Some((ip, way)) = change {
            self.changes.written(ip, way, Instant::now());
        }
        self.api.put(slice);
    }

    fn oldest(&self, service: usize, state: State) -> anyhow::Result<usize> {
        let service = &self.services[service];
        let found = service.pods.iter().position(|pod| pod.state == state);
        found.with_context(|| format!("{} has no pod that is {state:?}", service.name))
    }

    fn turn(&mut self, service: usize, from: State, to: State) -> anyhow::Result<Pod> {
        let at = self.oldest(service, from)?;
        let pod = &mut self.services[service].pods[at];
        pod.state = to;
        Ok(pod.clone())
    }

    fn next_pod(&mut self, service: &str, state: State) -> Pod {
        self.pods += 1;
        let [_, high, middle, low] = Ipv4Addr::from_bits(self.pods).octets();
        let node = usize::try_from(self.pods).unwrap_or(0) % NODES;
        Pod {
            name: format!("{service}-{}-{}", objects::TEMPLATE_HASH, letters(self.pods)),
            ip: Ipv4Addr::new(10, 128 + high, middle, low),
            node: node_name(node),
            zone: zone(node),
            state,
        }
    }
}

fn node_name(number: usize) -> String {
    format!("ip-10-0-{number}-17.eu-central-1.compute.internal")
}

fn zone(node: usize) -> String {
    format!("eu-central-1{}", ["a", "b", "c"][node % 3])
}

/// A pod's last five letters.
fn letters(mut number: u32) -> String {
    let letter = |_| {
        let at = usize::try_from(number % 27).unwrap_or(0);
        number /= 27;
        char::from(b"bcdfghjklmnpqrstvwxz2456789"[at])
    };
    (0..5).map(letter).collect()
}
