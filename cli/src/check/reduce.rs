//! Of namespaces and pods, only what counts is kept: a cluster may have thousands. Whether a pod
//! should have a sidecar is decided by the injector's own function.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStatus, Namespace, Node, Pod};
use remora_core::names::{annotations, labels};
use remora_injector::{
    Decision, NamespaceInfo, Settings, SkipReason, decide, inject::PROXY_CONTAINER, owner,
};

use super::facts::{self, NamespaceFacts, PodFacts, ProxyState};

const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
/// On pods that a node runs from its own files; admission cannot change them.
const STATIC_POD: &str = "kubernetes.io/config.mirror";

/// A node.
pub(crate) fn node(node: Node) -> facts::Node {
    let info = node.status.and_then(|status| status.node_info);
    let (kubelet, os) =
        info.map(|info| (info.kubelet_version, info.operating_system)).unwrap_or_default();
    facts::Node { name: node.metadata.name.unwrap_or_default(), kubelet, os }
}

/// What the injector knows of a namespace.
pub(crate) fn info(namespace: &Namespace) -> NamespaceInfo {
    NamespaceInfo {
        name: namespace.metadata.name.clone().unwrap_or_default(),
        annotations: namespace.metadata.annotations.clone().unwrap_or_default(),
    }
}

/// A namespace.
pub(crate) fn namespace(namespace: &Namespace, settings: &Settings) -> NamespaceFacts {
    let info = info(namespace);
    let label =
        |key| namespace.metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
    let (mut opted_in, mut invalid, mut warnings) = (false, None, Vec::new());
    match decide(&Pod::default(), &info, settings) {
        Decision::Inject(plan) => {
            opted_in = true;
            // Of the empty pod's own shape nothing is to be said.
            warnings =
                plan.warnings.into_iter().filter(|said| said.starts_with("annotation ")).collect();
        }
        Decision::Refuse(refusal) => {
            opted_in = refusal.invalid.key != annotations::INJECT;
            invalid = Some(refusal.to_string());
        }
        Decision::Skip(_) => {}
    }
    NamespaceFacts {
        inject: info.annotations.get(annotations::INJECT).cloned(),
        name: info.name,
        opted_in,
        invalid,
        warnings,
        label: label(labels::INJECT),
        enforces: label(ENFORCE),
        terminating: namespace.metadata.deletion_timestamp.is_some(),
    }
}

/// A pod that has, or should have, a sidecar; `None` for all others and those that are done.
pub(crate) fn pod(
    pod: &Pod,
    namespaces: &BTreeMap<String, NamespaceInfo>,
    settings: &Settings,
) -> Option<PodFacts> {
    let metadata = &pod.metadata;
    let namespace = namespaces.get(metadata.namespace.as_deref()?)?;
    let annotated = |key| metadata.annotations.as_ref().and_then(|map| map.get(key));
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if metadata.deletion_timestamp.is_some()
        || matches!(phase, "Succeeded" | "Failed")
        || annotated(STATIC_POD).is_some()
    {
        return None;
    }
    let proxy = match decide(pod, namespace, settings) {
        // A pod whose sidecar is there keeps it, whatever the annotations say since.
        _ if has_proxy(pod) => meshed(pod, annotated(annotations::INJECTED).cloned()),
        Decision::Inject(_) => ProxyState::Missing,
        Decision::Refuse(refusal) => ProxyState::Refused(refusal.to_string()),
        Decision::Skip(
            reason @ (SkipReason::HostNetwork
            | SkipReason::Windows
            | SkipReason::OtherSidecar { .. }),
        ) => ProxyState::Unsuitable(reason.to_string()),
        // Said to be injected and without a proxy.
        Decision::Skip(SkipReason::AlreadyInjected { .. }) => ProxyState::Missing,
        Decision::Skip(_) => return None,
    };
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    Some(PodFacts {
        namespace: namespace.name.clone(),
        name: metadata.name.clone()?,
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        owner: owner(pod),
        ready: conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"),
        proxy,
    })
}

fn has_proxy(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        spec.init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
            .any(|c| c.name == PROXY_CONTAINER)
    })
}

fn meshed(pod: &Pod, version: Option<String>) -> ProxyState {
    let status = statuses(pod).find(|status| status.name == PROXY_CONTAINER);
    let ready = status.is_some_and(|status| status.ready);
    let trouble = if ready { None } else { status.and_then(waiting).or_else(|| init_trouble(pod)) };
    ProxyState::Meshed { version, ready, trouble }
}

/// A container before the proxy that does not get on holds it up.
fn init_trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    status.init_container_statuses.iter().flatten().find_map(waiting)
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let of = |list: &'static str| {
        status
            .and_then(|status| match list {
                "init" => status.init_container_statuses.as_deref(),
                _ => status.container_statuses.as_deref(),
            })
            .unwrap_or_default()
    };
    of("init").iter().chain(of("main"))
}

/// Why a container does not run, in the kubelet's words.
pub(crate) fn waiting(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        if matches!(reason, "PodInitializing" | "ContainerCreating") {
            return None;
        }
        let message = waiting.message.as_deref().unwrap_or_default();
        return Some(
            format!("container {}: {reason} {message}", status.name).trim_end().to_owned(),
        );
    }
    let ended = state.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
    let reason = ended.reason.as_deref().unwrap_or("ended");
    let said = ended.message.as_deref().unwrap_or_default();
    let text = format!("container {}: {reason}, exit code {} {said}", status.name, ended.exit_code);
    Some(super::api::shortened(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn namespace_of(value: serde_json::Value) -> Namespace {
        serde_json::from_value(json!({ "metadata": value })).unwrap()
    }

    fn shop() -> Namespace {
        namespace_of(json!({ "name": "shop", "annotations": { annotations::INJECT: "enabled" },
            "labels": { labels::INJECT: "enabled", ENFORCE: "baseline" } }))
    }

    fn reduced(value: serde_json::Value) -> Option<PodFacts> {
        let known = BTreeMap::from([("shop".to_owned(), info(&shop()))]);
        pod(&serde_json::from_value(value).unwrap(), &known, &Settings::default())
    }

    fn web(spec: serde_json::Value, status: serde_json::Value) -> serde_json::Value {
        json!({ "metadata": { "name": "web-0", "namespace": "shop" }, "spec": spec,
                "status": status })
    }

    #[test]
    fn an_opted_in_namespace_is_known_with_label_and_level() {
        let facts = namespace(&shop(), &Settings::default());
        assert!(facts.opted_in);
        assert_eq!(facts.label.as_deref(), Some("enabled"));
        assert_eq!(facts.enforces.as_deref(), Some("baseline"));
    }

    #[test]
    fn a_bad_value_is_told_and_a_bad_opt_in_is_none() {
        let bad = |key: &str, value: &str| {
            let mut all = json!({ annotations::INJECT: "enabled" });
            all[key] = json!(value);
            namespace(
                &namespace_of(json!({ "name": "shop", "annotations": all })),
                &Settings::default(),
            )
        };
        let facts = bad(annotations::ACCESS_LOG, "some");
        assert!(facts.opted_in && facts.invalid.unwrap().contains("access-log"));
        let facts = bad(annotations::INJECT, "true");
        assert!(!facts.opted_in && facts.invalid.unwrap().contains("neither enabled nor disabled"));
        let facts = bad("config.remora.io/skip-ports", "1");
        assert_eq!((facts.opted_in, facts.warnings.len()), (true, 1));
    }

    #[test]
    fn a_pod_without_its_proxy_is_missing_one() {
        let facts = reduced(web(json!({ "containers": [{ "name": "app" }] }), json!({}))).unwrap();
        assert_eq!(facts.proxy, ProxyState::Missing);
        let host = json!({ "hostNetwork": true, "containers": [{ "name": "app" }] });
        let facts = reduced(web(host, json!({}))).unwrap();
        assert!(matches!(facts.proxy, ProxyState::Unsuitable(_)));
    }

    #[test]
    fn pods_that_are_done_and_those_nobody_asked_for_do_not_count() {
        let spec = json!({ "containers": [{ "name": "app" }] });
        assert_eq!(reduced(web(spec.clone(), json!({ "phase": "Succeeded" }))), None);
        let mut pod = web(spec, json!({}));
        pod["metadata"]["annotations"] = json!({ annotations::INJECT: "disabled" });
        assert_eq!(reduced(pod), None);
    }

    #[test]
    fn a_proxy_is_known_in_both_forms_with_its_trouble() {
        let proxy = json!({ "name": PROXY_CONTAINER });
        let crash = json!({ "name": PROXY_CONTAINER, "ready": false, "restartCount": 3, "image": "",
            "imageID": "", "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } } });
        let native = json!({ "initContainers": [proxy], "containers": [{ "name": "app" }] });
        let facts = reduced(web(native, json!({ "initContainerStatuses": [crash] }))).unwrap();
        let ProxyState::Meshed { ready: false, trouble: Some(trouble), .. } = facts.proxy else {
            panic!("{facts:?}")
        };
        assert_eq!(trouble, "container remora-proxy: CrashLoopBackOff back-off");
        let well = json!({ "name": PROXY_CONTAINER, "ready": true, "restartCount": 0, "image": "",
            "imageID": "", "state": { "running": {} } });
        let ordinary = json!({ "containers": [proxy, { "name": "app" }] });
        let facts = reduced(web(ordinary, json!({ "containerStatuses": [well] }))).unwrap();
        assert!(matches!(facts.proxy, ProxyState::Meshed { ready: true, .. }));
    }
}
