//! One pod, as the manifests have it and as callers find it.

use std::net::{Ipv4Addr, SocketAddr};

use remora_core::names::annotations::INJECTED;
use serde_json::{Value, json};

use super::{NAMESPACE, POD_PORT};

/// How far above a port of a pod with a sidecar its application listens, behind it.
const BEHIND: u16 = 1000;

/// One pod.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name, and that of its ServiceAccount; no two pods share one, whatever their namespaces.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The Service that selects it, by the label `app`.
    pub service: String,
    /// Its other labels.
    pub labels: Vec<(String, String)>,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Where callers dial; behind each a sidecar forwards to the application.
    pub ports: Vec<u16>,
    /// Whether it has a sidecar, as the manifests say.
    pub meshed: bool,
    /// Its annotations.
    pub annotations: Vec<(String, String)>,
    /// Path of its readiness probe.
    pub probe: Option<String>,
    /// Its node and its zone; empty where the manifest does not say.
    pub place: (String, String),
    /// Whether its probes hold.
    pub ready: bool,
}

impl Pod {
    /// A ready one with a sidecar, in [`NAMESPACE`] and at [`POD_PORT`].
    #[must_use]
    pub fn at(ip: Ipv4Addr, name: &str, service: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: NAMESPACE.to_owned(),
            service: service.to_owned(),
            labels: Vec::new(),
            ip,
            ports: vec![POD_PORT],
            meshed: true,
            annotations: Vec::new(),
            probe: None,
            place: Default::default(),
            ready: true,
        }
    }

    /// Where callers dial, at the usual port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.ip, POD_PORT))
    }

    /// Where the application listens.
    #[must_use]
    pub fn app(&self) -> SocketAddr {
        self.app_at(POD_PORT)
    }

    /// Where it listens for those who dial this port.
    #[must_use]
    pub fn app_at(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.ip, if self.meshed { port + BEHIND } else { port }))
    }

    /// Its SPIFFE id.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.namespace, self.name)
    }

    /// The object.
    pub(super) fn manifest(&self) -> Value {
        let own = |(name, value): &(String, String)| (name.clone(), json!(value));
        let mut annotations: serde_json::Map<String, Value> =
            self.annotations.iter().map(own).collect();
        if self.meshed {
            annotations.insert(INJECTED.to_owned(), json!("test"));
        }
        let mut labels: serde_json::Map<String, Value> = self.labels.iter().map(own).collect();
        labels.insert("app".to_owned(), json!(self.service));
        let (node, zone) = &self.place;
        if !zone.is_empty() {
            labels.insert("topology.kubernetes.io/zone".to_owned(), json!(zone));
        }
        let ports: Vec<Value> =
            self.ports.iter().map(|port| json!({"containerPort": port})).collect();
        let probe =
            self.probe.as_ref().map(|path| json!({"httpGet": {"path": path, "port": POD_PORT}}));
        let ready = if self.ready { "True" } else { "False" };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace,
                         "labels": labels, "annotations": annotations},
            "spec": {"serviceAccountName": self.name, "nodeName": node, "containers": [
                {"name": "app", "ports": ports, "readinessProbe": probe}]},
            "status": {"phase": "Running", "podIP": self.ip, "podIPs": [{"ip": self.ip}],
                       "conditions": [{"type": "Ready", "status": ready}]},
        })
    }
}
