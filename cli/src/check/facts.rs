//! What was read of the cluster. Gathered first, judged afterwards, so that judging needs no cluster.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        apps::v1::{DaemonSet, Deployment},
        coordination::v1::Lease,
        core::v1::{Namespace, Pod, Service},
        discovery::v1::EndpointSlice,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::version::Info,
};
use remora_injector::Owner;
use serde::Deserialize;

use super::{
    api::{Clock, Listed, Read},
    certificate::Certificate,
    exposition::Exposition,
    permissions::Permission,
};

/// Everything.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Context of the kubeconfig.
    pub(crate) context: String,
    /// Of the API server.
    pub(crate) url: String,
    /// Of the API server.
    pub(crate) version: Read<Info>,
    /// Unix time by the API server's clock, else by this machine's.
    pub(crate) now: i64,
    /// The API server's, where it said.
    pub(crate) clock: Option<Clock>,
    /// Before or after the install.
    pub(crate) stage: Stage,
}

/// Before or after the install.
#[derive(Debug)]
pub(crate) enum Stage {
    /// The API server does not answer.
    Unreachable,
    /// Nothing is installed, or only the cluster was to be looked at.
    Before(Box<Before>),
    /// The mesh is there.
    After(Box<After>),
}

/// What counts before an install.
#[derive(Debug)]
pub(crate) struct Before {
    /// Asked for by `--pre`, not found out.
    pub(crate) asked: bool,
    pub(crate) nodes: Read<Listed<Node>>,
    /// Whether the person who asks may do what an install does.
    pub(crate) may_install: Vec<(Permission, Read<bool>)>,
    /// Whether our namespace is there.
    pub(crate) namespace: Read<Namespace>,
    /// A webhook of an earlier install.
    pub(crate) webhook: Read<MutatingWebhookConfiguration>,
}

/// What counts after an install.
#[derive(Debug)]
pub(crate) struct After {
    pub(crate) nodes: Read<Listed<Node>>,
    pub(crate) namespace: Read<Namespace>,
    pub(crate) control_plane: Program,
    pub(crate) injector: Program,
    /// The redirect agents, where the installation has them.
    pub(crate) agents: Option<Read<DaemonSet>>,
    /// Events of our pods that are not well: pod → the last warning.
    pub(crate) warnings: BTreeMap<String, String>,
    pub(crate) webhook: Webhook,
    /// What the API server asks the control plane at admission, where the installation has that.
    pub(crate) lint: Option<Read<ValidatingWebhookConfiguration>>,
    pub(crate) certificates: Certificates,
    pub(crate) lease: Read<Lease>,
    /// What each control-plane replica says.
    pub(crate) replicas: Vec<Replica>,
    pub(crate) mesh: Mesh,
}

/// A node, as far as it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) kubelet: String,
    pub(crate) os: String,
}

/// One of our two Deployments and what belongs to it.
#[derive(Debug)]
pub(crate) struct Program {
    /// Name of Deployment, Service and ServiceAccount.
    pub(crate) name: &'static str,
    pub(crate) deployment: Read<Deployment>,
    pub(crate) budget: Read<PodDisruptionBudget>,
    pub(crate) service: Read<Service>,
    pub(crate) slices: Read<Listed<EndpointSlice>>,
    pub(crate) pods: Read<Listed<Pod>>,
    /// Whether its ServiceAccount may do what it needs.
    pub(crate) may: Vec<(Permission, Read<bool>)>,
    /// Versions of the running processes, by pod.
    pub(crate) versions: BTreeMap<String, String>,
}

impl Program {
    /// Whether a container of it is given this flag.
    pub(crate) fn has_flag(&self, flag: &str) -> bool {
        self.arguments().any(|arg| {
            arg.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest == "=true")
        })
    }

    /// Whether it is the control plane and answers at admission.
    pub(crate) fn answers_at_admission(&self) -> bool {
        self.arguments().any(|arg| arg.starts_with("--admission-listen="))
    }

    fn arguments(&self) -> impl Iterator<Item = &String> {
        let deployment = self.deployment.as_ref().ok().and_then(|d| d.spec.as_ref());
        let spec = deployment.and_then(|spec| spec.template.spec.as_ref());
        let containers = spec.map_or(&[][..], |spec| &spec.containers);
        containers.iter().flat_map(|container| container.args.iter().flatten())
    }
}

/// The webhook's objects, and what it does.
#[derive(Debug)]
pub(crate) struct Webhook {
    pub(crate) configuration: Read<MutatingWebhookConfiguration>,
    /// The serving certificate's chain.
    pub(crate) serving: Read<Vec<Certificate>>,
    pub(crate) trials: Vec<Trial>,
}

/// A pod created for trial (`dryRun=All`).
#[derive(Debug)]
pub(crate) struct Trial {
    pub(crate) namespace: String,
    /// Asked for by the pod's annotation, else by its namespace's.
    pub(crate) by_pod: bool,
    pub(crate) outcome: Read<TrialOutcome>,
    pub(crate) took: Duration,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TrialOutcome {
    /// It has a sidecar.
    Injected,
    /// It has none.
    Plain,
    /// It was refused, in these words.
    Refused(String),
}

/// What vouches for what.
#[derive(Debug)]
pub(crate) struct Certificates {
    /// The issuer's chain, from its Secret.
    pub(crate) issuer: Read<Vec<Certificate>>,
    /// The trust bundle's ConfigMap in our namespace, in PEM.
    pub(crate) bundle: Read<String>,
    /// The same in each opted-in namespace.
    pub(crate) copies: Vec<(String, Read<String>)>,
}

/// What one of our pods says of itself.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) pod: String,
    pub(crate) node: String,
    /// `Ok(None)`: ready, else what is missing.
    pub(crate) ready: Read<Option<String>>,
    pub(crate) clock: Option<Clock>,
    pub(crate) metrics: Read<Exposition>,
    pub(crate) proxies: Read<Vec<ConnectedProxy>>,
}

/// A row of the control plane's `/proxies`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct ConnectedProxy {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) behind_seconds: f64,
}

/// Namespaces and their pods.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) namespaces: Read<Listed<NamespaceFacts>>,
    /// Named on the command line and not there.
    pub(crate) absent: Vec<String>,
    pub(crate) pods: Read<Listed<PodFacts>>,
    /// Deployments of opted-in namespaces whose pods are refused: namespace, name, in which words.
    pub(crate) refused: Vec<(String, String, String)>,
    /// A few of the proxies.
    pub(crate) sample: Vec<Sampled>,
}

/// A namespace, as far as it counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NamespaceFacts {
    pub(crate) name: String,
    /// Value of the annotation.
    pub(crate) inject: Option<String>,
    /// Whether its pods are to have sidecars.
    pub(crate) opted_in: bool,
    /// An annotation that cannot be used, and the mend.
    pub(crate) invalid: Option<String>,
    /// Annotations without effect, and why.
    pub(crate) warnings: Vec<String>,
    /// The label that mirrors the annotation.
    pub(crate) label: Option<String>,
    /// Pod Security level that is enforced.
    pub(crate) enforces: Option<String>,
    pub(crate) terminating: bool,
}

/// A pod that runs or is to run, as far as it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodFacts {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) owner: Owner,
    /// The pod's condition.
    pub(crate) ready: bool,
    pub(crate) proxy: ProxyState,
}

/// Its proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProxyState {
    /// It has one.
    Meshed {
        /// Of the annotation.
        version: Option<String>,
        /// The container's.
        ready: bool,
        /// What the kubelet says of it where it is not.
        trouble: Option<String>,
    },
    /// It should have one.
    Missing,
    /// It should have one, but an annotation cannot be used.
    Refused(String),
    /// It should have one, but cannot; with the reason.
    Unsuitable(String),
}

/// What one proxy says of itself.
#[derive(Debug)]
pub(crate) struct Sampled {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) node: String,
    /// `Ok(None)`: ready, else what is missing.
    pub(crate) ready: Read<Option<String>>,
    pub(crate) clock: Option<Clock>,
    pub(crate) metrics: Read<Exposition>,
}
