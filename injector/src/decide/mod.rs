//! Whether a pod gets a sidecar.

mod cautions;
mod probes;

use std::{collections::BTreeMap, fmt, time::Duration};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use remora_core::{
    names::{CLUSTER_DOMAIN, SYSTEM_NAMESPACE, TRUST_DOMAIN, annotations, ports},
    settings::{Inject, InvalidAnnotation, RedirectBackend, in_force, read},
};

use crate::{
    inject::{INIT_CONTAINER, PROXY_CONTAINER},
    pod::owner,
    proxy_settings::{NativeSidecar, ProxySettings, Resources},
};

pub use probes::ProxiedProbe;

/// What holds for the whole mesh.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Image of the proxy and of the init container.
    pub proxy_image: String,
    /// Written to the pod's annotation, so that outdated proxies can be found.
    pub proxy_version: String,
    /// `host:port` of the control plane's gRPC.
    pub control_plane: String,
    /// Trust domain of the SPIFFE ids.
    pub trust_domain: String,
    /// Whether the cluster has native sidecars (Kubernetes 1.29); what `auto` means.
    pub native_sidecar: bool,
    /// Whether an agent on each node writes the interception rules, so that pods need no
    /// capability for it.
    pub redirect_agent: bool,
    /// What writes the rules where the pods do it themselves.
    pub redirect_backend: RedirectBackend,
    /// What pods get whose annotations do not say otherwise.
    pub defaults: ProxySettings,
}

impl Default for Settings {
    fn default() -> Self {
        let version = env!("CARGO_PKG_VERSION");
        Self {
            proxy_image: format!("ghcr.io/remora-io/remora:{version}"),
            proxy_version: version.to_owned(),
            control_plane: format!(
                "remora-control-plane.{SYSTEM_NAMESPACE}.svc.{CLUSTER_DOMAIN}:{}",
                ports::CONTROL_PLANE
            ),
            trust_domain: TRUST_DOMAIN.to_owned(),
            native_sidecar: true,
            redirect_agent: false,
            redirect_backend: RedirectBackend::default(),
            defaults: ProxySettings::default(),
        }
    }
}

/// What counts of a pod's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Its name.
    pub name: String,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// The pod gets a sidecar.
    Inject(Box<Plan>),
    /// It gets none, and that is as it should be.
    Skip(SkipReason),
    /// It was meant to get one, but an annotation cannot be used.
    Refuse(Refusal),
}

/// How a pod gets its sidecar.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Settings of its proxy.
    pub proxy: ProxySettings,
    /// How much of the sidecar is still to be written.
    pub scope: Scope,
    /// As what the proxy runs.
    pub form: Form,
    /// How long the draining proxy may wait: its setting, as far as the pod's own grace period lets it.
    pub grace: Duration,
    /// What the pod belongs to, by name, where that is known.
    pub workload: Option<String>,
    /// Probes that the proxy carries out, and that are still to be pointed at it.
    pub probes: Vec<ProxiedProbe>,
    /// Annotations that the pod gets: the namespace's configuration as far as it is in force, so
    /// that everybody sees the same on the pod itself.
    pub annotations: BTreeMap<String, String>,
    /// What its owner should know, one line each.
    pub warnings: Vec<String>,
}

/// How much is written into a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The whole sidecar.
    Sidecar,
    /// Only probes: the pod has this version's sidecar, and a container or probe came later, for
    /// example by another webhook.
    Probes,
}

/// As what the proxy runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An init container that stays: up before the application, there until it has ended.
    Native,
    /// The first of the containers, for clusters without native sidecars.
    Ordinary,
}

/// Why a pod gets no sidecar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// Nobody asked.
    #[error(
        "no sidecar: neither the pod nor namespace {namespace} has the annotation {}: enabled",
        annotations::INJECT
    )]
    NotOptedIn {
        /// The pod's namespace.
        namespace: String,
    },
    /// The pod says no.
    #[error("no sidecar: the pod has the annotation {}: disabled", annotations::INJECT)]
    DisabledOnPod,
    /// The namespace says no and the pod nothing.
    #[error(
        "no sidecar: namespace {namespace} has the annotation {}: disabled",
        annotations::INJECT
    )]
    DisabledOnNamespace {
        /// The pod's namespace.
        namespace: String,
    },
    /// It has one.
    #[error("the pod has a sidecar already{}", .version.as_ref().map(|v| format!(", version {v}")).unwrap_or_default())]
    AlreadyInjected {
        /// Version of the proxy, where the annotation says it.
        version: Option<String>,
    },
    /// Rules in the host's network namespace would hit every pod of the node.
    #[error("no sidecar: the pod uses the host's network (hostNetwork: true)")]
    HostNetwork,
    /// There is no proxy for it.
    #[error("no sidecar: the pod runs on Windows")]
    Windows,
    /// What the cluster and the mesh themselves need must not depend on the mesh.
    #[error("no sidecar: namespace {namespace} is never injected")]
    SystemNamespace {
        /// The pod's namespace.
        namespace: String,
    },
    /// Two meshes in one pod intercept each other.
    #[error("no sidecar: the pod has another mesh's sidecar ({container}); remove it first")]
    OtherSidecar {
        /// Name of its container.
        container: String,
    },
}

/// Where an annotation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On the pod, or the template it is made from.
    Pod,
    /// On this namespace.
    Namespace(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod => f.write_str("the pod"),
            Self::Namespace(name) => write!(f, "namespace {name}"),
        }
    }
}

/// An annotation that cannot be used, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invalid} (on {place})")]
pub struct Refusal {
    /// Where it stands.
    pub place: Place,
    /// Which one, and what is wrong with it.
    pub invalid: InvalidAnnotation,
}

/// Which container kubectl means.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
const NEVER_INJECTED: [&str; 3] = ["kube-system", "kube-node-lease", SYSTEM_NAMESPACE];
const OTHER_SIDECARS: [&str; 2] = ["istio-proxy", "linkerd-proxy"];

/// Decides. A pod's annotation wins over its namespace's.
#[must_use]
pub fn decide(pod: &Pod, namespace: &NamespaceInfo, settings: &Settings) -> Decision {
    let empty = BTreeMap::new();
    let on_pod = pod.metadata.annotations.as_ref().unwrap_or(&empty);
    let (probes, mut warnings) = pod.spec.as_ref().map(probes::find).unwrap_or_default();
    let scope = match obstacle(pod, on_pod, namespace) {
        Err(refusal) => return Decision::Refuse(refusal),
        Ok(None) => Scope::Sidecar,
        Ok(Some(SkipReason::AlreadyInjected { version: Some(version) }))
            if version == settings.proxy_version && !probes.is_empty() && has_proxy(pod) =>
        {
            Scope::Probes
        }
        Ok(Some(reason)) => return Decision::Skip(reason),
    };
    let merged = config(on_pod, &namespace.annotations);
    let proxy = match ProxySettings::read(&merged, &defaults_for(pod, settings)) {
        Ok(proxy) => proxy,
        Err(invalid) => {
            let place = if on_pod.contains_key(&invalid.key) {
                Place::Pod
            } else {
                Place::Namespace(namespace.name.clone())
            };
            return Decision::Refuse(Refusal { place, invalid });
        }
    };
    let form = match proxy.native_sidecar {
        NativeSidecar::Auto if !settings.native_sidecar => Form::Ordinary,
        NativeSidecar::Disabled => Form::Ordinary,
        NativeSidecar::Auto | NativeSidecar::Enabled => Form::Native,
    };
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let annotated = merged.contains_key(annotations::SHUTDOWN_GRACE_PERIOD);
    let (grace, cut) = cautions::grace(spec, proxy.shutdown_grace_period, annotated);
    if scope == Scope::Sidecar {
        warnings.extend(cautions::of_pod(spec, form));
        warnings.extend(cut);
        warnings.extend(cautions::unknown_keys(&merged));
    }
    let annotations = annotations_for(spec, on_pod, &merged, form);
    let workload = Some(owner(pod).name).filter(|name| !name.is_empty());
    Decision::Inject(Box::new(Plan {
        proxy,
        scope,
        form,
        grace,
        workload,
        probes,
        annotations,
        warnings,
    }))
}

/// A pod that shares out its own resources has room for what its owner counted; only what an
/// annotation says comes on top.
fn defaults_for(pod: &Pod, settings: &Settings) -> ProxySettings {
    let mut defaults = settings.defaults.clone();
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    if of_pod.is_some_and(|r| r.requests.is_some() || r.limits.is_some()) {
        defaults.resources = Resources::default();
    }
    defaults
}

fn has_proxy(pod: &Pod) -> bool {
    let containers = pod.spec.as_ref().into_iter().flat_map(all_containers);
    containers.into_iter().any(|container| container.name == PROXY_CONTAINER)
}

fn annotations_for(
    spec: &PodSpec,
    on_pod: &BTreeMap<String, String>,
    merged: &BTreeMap<String, String>,
    form: Form,
) -> BTreeMap<String, String> {
    let known = |key: &str| annotations::CONFIG.contains(&key) && !annotations::LIVE.contains(&key);
    let inherited = merged.iter().filter(|(key, _)| known(key) && !on_pod.contains_key(*key));
    let mut all: BTreeMap<String, String> =
        inherited.map(|(key, value)| (key.clone(), value.clone())).collect();
    // kubectl logs and exec mean the first container where nobody tells them: not our proxy.
    if form == Form::Ordinary
        && !on_pod.contains_key(DEFAULT_CONTAINER)
        && let Some(first) = spec.containers.first()
    {
        all.insert(DEFAULT_CONTAINER.to_owned(), first.name.clone());
    }
    all
}

/// What stands against a sidecar.
fn obstacle(
    pod: &Pod,
    on_pod: &BTreeMap<String, String>,
    namespace: &NamespaceInfo,
) -> Result<Option<SkipReason>, Refusal> {
    let asked = |map, place| {
        read(map, annotations::INJECT, str::parse::<Inject>)
            .map_err(|invalid| Refusal { place, invalid })
    };
    let name = || namespace.name.clone();
    if NEVER_INJECTED.contains(&namespace.name.as_str()) {
        return Ok(Some(SkipReason::SystemNamespace { namespace: name() }));
    }
    match asked(on_pod, Place::Pod)? {
        Some(Inject::Disabled) => return Ok(Some(SkipReason::DisabledOnPod)),
        Some(Inject::Enabled) => {}
        None => match asked(&namespace.annotations, Place::Namespace(name()))? {
            Some(Inject::Enabled) => {}
            Some(Inject::Disabled) => {
                return Ok(Some(SkipReason::DisabledOnNamespace { namespace: name() }));
            }
            None => return Ok(Some(SkipReason::NotOptedIn { namespace: name() })),
        },
    }
    let version = on_pod.get(annotations::INJECTED).cloned();
    if version.is_some() {
        return Ok(Some(SkipReason::AlreadyInjected { version }));
    }
    Ok(pod.spec.as_ref().and_then(unsuitable))
}

fn unsuitable(spec: &PodSpec) -> Option<SkipReason> {
    if spec.host_network == Some(true) {
        return Some(SkipReason::HostNetwork);
    }
    let node_os = spec.node_selector.as_ref().and_then(|s| s.get("kubernetes.io/os"));
    let os = spec.os.as_ref().map(|os| &os.name).or(node_os);
    if os.is_some_and(|os| os == "windows") {
        return Some(SkipReason::Windows);
    }
    let names = || all_containers(spec).map(|container| container.name.as_str());
    if names().any(|name| name == PROXY_CONTAINER || name == INIT_CONTAINER) {
        return Some(SkipReason::AlreadyInjected { version: None });
    }
    names()
        .find(|name| OTHER_SIDECARS.contains(name))
        .map(|container| SkipReason::OtherSidecar { container: container.to_owned() })
}

fn all_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// The configuration annotations that hold for a pod, key by key.
fn config(
    on_pod: &BTreeMap<String, String>,
    on_namespace: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    on_pod
        .keys()
        .chain(on_namespace.keys())
        .filter(|key| key.starts_with(annotations::CONFIG_PREFIX))
        .filter_map(|key| {
            Some((key.clone(), in_force(on_pod.get(key), on_namespace.get(key))?.clone()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn annotated(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn decision(on_namespace: &[(&str, &str)], on_pod: &[(&str, &str)]) -> Decision {
        decision_on(json!({ "containers": [{ "name": "app" }] }), on_namespace, on_pod)
    }

    fn decision_on(
        spec: serde_json::Value,
        on_namespace: &[(&str, &str)],
        on_pod: &[(&str, &str)],
    ) -> Decision {
        let pod = json!({ "metadata": { "annotations": annotated(on_pod) }, "spec": spec });
        let namespace =
            NamespaceInfo { name: "shop".to_owned(), annotations: annotated(on_namespace) };
        decide(&serde_json::from_value(pod).unwrap(), &namespace, &Settings::default())
    }

    const ON: (&str, &str) = (annotations::INJECT, "enabled");
    const OFF: (&str, &str) = (annotations::INJECT, "disabled");

    #[test]
    fn the_pod_wins_over_its_namespace() {
        assert!(matches!(decision(&[ON], &[]), Decision::Inject(_)));
        assert!(matches!(decision(&[OFF], &[ON]), Decision::Inject(_)));
        assert_eq!(decision(&[ON], &[OFF]), Decision::Skip(SkipReason::DisabledOnPod));
        assert_eq!(
            decision(&[], &[]),
            Decision::Skip(SkipReason::NotOptedIn { namespace: "shop".to_owned() })
        );
        let Decision::Inject(plan) = decision(
            &[ON, (annotations::ACCESS_LOG, "all"), (annotations::SKIP_INBOUND_PORTS, "bad")],
            &[(annotations::SKIP_INBOUND_PORTS, "22")],
        ) else {
            panic!("not injected")
        };
        assert_eq!(plan.proxy.access_log, crate::AccessLog::All);
        assert_eq!(plan.proxy.skip_inbound_ports.to_string(), "22");
    }

    #[test]
    fn a_bad_value_is_refused_and_located() {
        let text = |decision| match decision {
            Decision::Refuse(refusal) => refusal.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            text(decision(&[(annotations::INJECT, "true")], &[])),
            "annotation remora.io/inject: \"true\" is neither enabled nor disabled (on namespace shop)"
        );
        assert_eq!(
            text(decision(&[ON], &[(annotations::ACCESS_LOG, "some")])),
            "annotation config.remora.io/access-log: \"some\" is no access log; use off, errors, \
             sampled or all (on the pod)"
        );
    }

    #[test]
    fn an_unknown_key_is_a_warning() {
        let Decision::Inject(plan) = decision(&[ON], &[("config.remora.io/skip-ports", "1")])
        else {
            panic!("not injected")
        };
        assert_eq!(plan.warnings.len(), 1);
        assert!(plan.warnings[0].starts_with("annotation config.remora.io/skip-ports is unknown"));
    }

    #[test]
    fn unsuitable_pods_are_left_alone() {
        let reason = |spec| match decision_on(spec, &[ON], &[]) {
            Decision::Skip(reason) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            reason(json!({ "hostNetwork": true, "containers": [] })),
            SkipReason::HostNetwork
        );
        for windows in [
            json!({ "os": { "name": "windows" }, "containers": [] }),
            json!({ "nodeSelector": { "kubernetes.io/os": "windows" }, "containers": [] }),
        ] {
            assert_eq!(reason(windows), SkipReason::Windows);
        }
        assert_eq!(
            reason(json!({ "containers": [{ "name": "istio-proxy" }] })),
            SkipReason::OtherSidecar { container: "istio-proxy".to_owned() }
        );
        assert_eq!(
            reason(json!({ "initContainers": [{ "name": PROXY_CONTAINER }], "containers": [] })),
            SkipReason::AlreadyInjected { version: None }
        );
    }

    #[test]
    fn system_namespaces_are_never_injected() {
        for name in NEVER_INJECTED {
            let namespace = NamespaceInfo { name: name.to_owned(), annotations: annotated(&[ON]) };
            let decision = decide(&Pod::default(), &namespace, &Settings::default());
            assert!(matches!(decision, Decision::Skip(SkipReason::SystemNamespace { .. })));
        }
    }
}
