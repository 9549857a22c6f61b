//! A mesh in a cluster: pods that have the annotation of a sidecar, and the control plane's.

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use remora_core::names::{SYSTEM_NAMESPACE, annotations, ports};

use super::{Member, Way};
use crate::check::{
    api::{Listed, Read, Reader},
    connect::{self, Error},
    now,
};

/// Pods that are looked at.
const MAX_PODS: usize = 20_000;
/// Label of the mesh's own pods, and its value on the control plane's.
const COMPONENT: &str = "app.kubernetes.io/component";
const CONTROL_PLANE: &str = "control-plane";
/// User-Agent.
const AGENT: &str = concat!("remora-observe/", env!("CARGO_PKG_VERSION"));

/// A cluster, as one person sees it.
pub(crate) struct Kubernetes {
    /// Of the kubeconfig.
    pub(crate) context: String,
    /// Its API server.
    pub(crate) url: String,
    pub(crate) reader: Reader,
    pub(super) client: Client,
}

impl Kubernetes {
    /// The cluster of the kubeconfig.
    ///
    /// # Errors
    /// Where there is none, or it cannot be used.
    pub(super) async fn open(
        kubeconfig: Option<&Path>,
        context: Option<&str>,
    ) -> Result<Self, Error> {
        let cluster = connect::cluster(kubeconfig, context, AGENT).await?;
        let reader = Reader::new(cluster.client.clone(), now);
        let (context, url) = (cluster.context, cluster.url);
        Ok(Self { context, url, reader, client: cluster.client })
    }

    /// Running pods that have a sidecar, of one namespace or all.
    ///
    /// # Errors
    /// Where pods may not be listed.
    pub(super) async fn proxies(&self, namespace: Option<&str>) -> Read<Listed<Member>> {
        self.pods(namespace, "", |pod| {
            let annotations = pod.metadata.annotations.as_ref()?;
            annotations.contains_key(annotations::INJECTED).then_some(ports::PROXY_ADMIN)
        })
        .await
    }

    /// The control plane's replicas.
    ///
    /// # Errors
    /// Where they may not be listed.
    pub(super) async fn control_planes(&self) -> Read<Vec<Member>> {
        let selector = format!("?labelSelector={COMPONENT}%3D{CONTROL_PLANE}");
        let ours = |pod: &Pod| {
            let labels = pod.metadata.labels.as_ref()?;
            (labels.get(COMPONENT)? == CONTROL_PLANE).then_some(ports::CONTROL_PLANE_ADMIN)
        };
        Ok(self.pods(Some(SYSTEM_NAMESPACE), &selector, ours).await?.items)
    }

    /// Running pods for which there is a port to ask.
    async fn pods(
        &self,
        namespace: Option<&str>,
        query: &str,
        port: impl Fn(&Pod) -> Option<u16>,
    ) -> Read<Listed<Member>> {
        let (path, need) = match namespace {
            None => ("/api/v1/pods".to_owned(), "list pods".to_owned()),
            Some(name) => {
                (format!("/api/v1/namespaces/{name}/pods"), format!("list pods in {name}"))
            }
        };
        let member = |pod: Pod| {
            let running = pod.status.as_ref()?.phase.as_deref() == Some("Running");
            let way = Way::Forward { port: port(&pod).filter(|_| running)? };
            Some(Member { namespace: pod.metadata.namespace?, pod: pod.metadata.name?, way })
        };
        self.reader.list(&format!("{path}{query}"), &need, MAX_PODS, member).await
    }
}
