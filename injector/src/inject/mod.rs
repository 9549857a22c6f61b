//! The sidecar, written into a pod.

mod init;
mod proxy;
mod volumes;

use std::collections::BTreeMap;

use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, jsonptr::PointerBuf};
use k8s_openapi::api::core::v1::{Capabilities, Pod, SeccompProfile, SecurityContext};
pub use remora_core::names::PROXY_CONTAINER;
use remora_core::names::{annotations, env, ports};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::decide::{Form, Plan, ProxiedProbe, Scope, Settings};

/// Name of the init container that writes the interception rules.
pub const INIT_CONTAINER: &str = "remora-init";

/// The image holds all programs of the mesh.
const PROGRAM: &str = "/remora-proxy";

/// The pod with its sidecar. A sidecar that it had is replaced, unless the plan is about probes only.
#[must_use]
pub fn inject(pod: &Pod, plan: &Plan, settings: &Settings) -> Pod {
    let mut value = json_of(pod);
    inject_value(&mut value, plan, settings);
    serde_json::from_value(value).expect("invariant: a pod with a sidecar is a pod")
}

/// The same as a JSON Patch (RFC 6902), as an admission webhook answers it.
#[must_use]
pub fn patch(pod: &Pod, plan: &Plan, settings: &Settings) -> Patch {
    patch_value(&json_of(pod), plan, settings)
}

/// Writes the sidecar into a pod or pod template, whose other fields stay as they are.
///
/// The value must be one that reads as a [`Pod`], and the one that the plan was made for.
pub(crate) fn inject_value(template: &mut Value, plan: &Plan, settings: &Settings) {
    let patch = patch_value(template, plan, settings);
    json_patch::patch(template, &patch)
        .expect("invariant: every operation's path was made by the patch or seen in the pod");
}

/// The patch for a pod as it was sent, fields that nobody here knows included.
pub(crate) fn patch_value(template: &Value, plan: &Plan, settings: &Settings) -> Patch {
    // First of all, because their places are those before anything is added.
    let mut operations: Vec<PatchOperation> = plan.probes.iter().flat_map(point_at_proxy).collect();
    match plan.scope {
        Scope::Probes => operations.extend(announce(template, &plan.probes)),
        Scope::Sidecar => operations.extend(sidecar(template, plan, settings)),
    }
    Patch(operations)
}

/// The kubelet asks the proxy instead; how often and how long stays as it is.
fn point_at_proxy(probe: &ProxiedProbe) -> Vec<PatchOperation> {
    let index = probe.index.to_string();
    let path = ["spec", probe.list, &index, probe.field];
    let field = |name| [path[0], path[1], path[2], path[3], name];
    let mut operations = Vec::new();
    if probe.tcp {
        let path = PointerBuf::from_tokens(field("tcpSocket"));
        operations.push(PatchOperation::Remove(RemoveOperation { path }));
    }
    let action = json!({ "path": probe.path, "port": ports::PROXY_ADMIN });
    operations.push(add(&field("httpGet"), action));
    operations
}

/// Tells the proxy that is there of probes that came later.
fn announce(template: &Value, probes: &[ProxiedProbe]) -> Vec<PatchOperation> {
    let place = ["initContainers", "containers"].into_iter().find_map(|list| {
        let index =
            items(template, list).iter().position(|item| is_named(item, PROXY_CONTAINER))?;
        Some((list, index))
    });
    let Some((list, index)) = place else { return Vec::new() };
    let variables = items(template, list)[index].get("env").and_then(Value::as_array);
    let index = index.to_string();
    let Some(variables) = variables else {
        let variable = json!([{ "name": env::PROBES, "value": handlers(None, probes) }]);
        return vec![add(&["spec", list, &index, "env"], variable)];
    };
    match variables.iter().position(|variable| is_named(variable, env::PROBES)) {
        Some(at) => {
            let known = variables[at].get("value").and_then(Value::as_str);
            let value = handlers(known, probes);
            vec![add(&["spec", list, &index, "env", &at.to_string(), "value"], value.into())]
        }
        None => {
            let variable = json!({ "name": env::PROBES, "value": handlers(None, probes) });
            vec![add(&["spec", list, &index, "env", "-"], variable)]
        }
    }
}

/// The value of [`env::PROBES`]. A dollar is written as JSON's escape: in a variable's value,
/// Kubernetes takes `$(NAME)` for a reference.
fn handlers(known: Option<&str>, probes: &[ProxiedProbe]) -> String {
    let known = known.and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
    let mut all: BTreeMap<String, Value> = known.into_iter().flatten().collect();
    all.extend(probes.iter().map(|probe| (probe.path.clone(), probe.handler.clone())));
    json!(all).to_string().replace('$', "\\u0024")
}

fn sidecar(template: &Value, plan: &Plan, settings: &Settings) -> Vec<PatchOperation> {
    let mut operations = Vec::new();
    let mut ensure = |path: &[&str], empty: Value| {
        let present = path.iter().try_fold(template, |at, key| at.get(key));
        if present.is_none_or(Value::is_null) {
            operations.push(add(path, empty));
        }
    };
    ensure(&["metadata"], json!({}));
    ensure(&["metadata", "annotations"], json!({}));
    ensure(&["spec"], json!({ "containers": [] }));
    ensure(&["spec", "initContainers"], json!([]));
    ensure(&["spec", "volumes"], json!([]));
    for (list, ours) in [
        ("initContainers", &[INIT_CONTAINER, PROXY_CONTAINER][..]),
        ("containers", &[PROXY_CONTAINER]),
        ("volumes", &volumes::NAMES),
    ] {
        operations.extend(remove_named(template, list, ours));
    }
    let version = (annotations::INJECTED, &settings.proxy_version);
    let others = plan.annotations.iter().map(|(key, value)| (key.as_str(), value));
    for (key, value) in others.chain([version]) {
        operations.push(add(&["metadata", "annotations", key], json!(value)));
    }
    let init = json_of(&init::container(&plan.proxy, settings));
    let proxy = json_of(&proxy::container(plan, settings));
    match plan.form {
        // The rules, then the proxy, so that the application's own init containers have network.
        Form::Native => {
            operations.push(add(&["spec", "initContainers", "0"], init));
            operations.push(add(&["spec", "initContainers", "1"], proxy));
        }
        // Without a proxy that runs beside them, the application's init containers would dial into
        // the void: the rules come after them.
        Form::Ordinary => {
            operations.push(add(&["spec", "initContainers", "-"], init));
            operations.push(add(&["spec", "containers", "0"], proxy));
        }
    }
    for volume in volumes::all() {
        operations.push(add(&["spec", "volumes", "-"], json_of(&volume)));
    }
    operations
}

/// Removals from the back, so that the indices before stay true.
fn remove_named(template: &Value, list: &str, names: &[&str]) -> Vec<PatchOperation> {
    let items = items(template, list).iter().enumerate().rev();
    items
        .filter(|(_, item)| names.iter().any(|name| is_named(item, name)))
        .map(|(index, _)| {
            let path = PointerBuf::from_tokens(["spec", list, &index.to_string()]);
            PatchOperation::Remove(RemoveOperation { path })
        })
        .collect()
}

fn items<'a>(template: &'a Value, list: &str) -> &'a [Value] {
    let items = template.get("spec").and_then(|spec| spec.get(list)).and_then(Value::as_array);
    items.map_or(&[][..], Vec::as_slice)
}

fn is_named(item: &Value, name: &str) -> bool {
    item.get("name").and_then(Value::as_str) == Some(name)
}

fn add(path: &[&str], value: Value) -> PatchOperation {
    let path = PointerBuf::from_tokens(path.iter().copied());
    PatchOperation::Add(AddOperation { path, value })
}

fn json_of<T: Serialize>(object: &T) -> Value {
    serde_json::to_value(object).expect("invariant: Kubernetes objects have string keys")
}

/// What Pod Security's level `restricted` asks for, but for the capabilities.
fn restricted(capabilities: Option<Vec<String>>) -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { add: capabilities, drop: Some(vec!["ALL".to_owned()]) }),
        read_only_root_filesystem: Some(true),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        }),
        ..SecurityContext::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Decision, NamespaceInfo, decide};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "web" }, "spec": spec })).unwrap()
    }

    fn plan() -> Plan {
        plan_for(&pod(json!({ "containers": [] })), &[])
    }

    fn plan_for(pod: &Pod, on_namespace: &[(&str, &str)]) -> Plan {
        let on_namespace = on_namespace.iter().chain(&[(annotations::INJECT, "enabled")]);
        let namespace = NamespaceInfo {
            name: "shop".to_owned(),
            annotations: on_namespace.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        match decide(pod, &namespace, &Settings::default()) {
            Decision::Inject(plan) => *plan,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_patch_makes_the_injected_pod_of_the_pod() {
        for spec in [
            json!({ "containers": [{ "name": "app" }] }),
            json!({
                "containers": [{ "name": "app" }],
                "initContainers": [{ "name": "migrate" }],
                "volumes": [{ "name": "data", "emptyDir": {} }]
            }),
        ] {
            let before = pod(spec);
            let mut after = json_of(&before);
            json_patch::patch(&mut after, &patch(&before, &plan(), &Settings::default())).unwrap();
            let injected = inject(&before, &plan(), &Settings::default());
            assert_eq!(serde_json::from_value::<Pod>(after).unwrap(), injected);
        }
    }

    #[test]
    fn rules_then_proxy_then_the_applications_init_containers() {
        let before = pod(json!({
            "containers": [{ "name": "app" }], "initContainers": [{ "name": "migrate" }]
        }));
        let after = inject(&before, &plan(), &Settings::default());
        let names: Vec<String> =
            after.spec.unwrap().init_containers.unwrap().into_iter().map(|c| c.name).collect();
        assert_eq!(names, [INIT_CONTAINER, PROXY_CONTAINER, "migrate"]);
    }

    #[test]
    fn injecting_twice_is_injecting_once() {
        let settings = Settings::default();
        let once = inject(&pod(json!({ "containers": [{ "name": "app" }] })), &plan(), &settings);
        assert_eq!(inject(&once, &plan(), &settings), once);
    }

    #[test]
    fn probes_keep_their_times_and_ask_the_proxy() {
        let probe = json!({
            "tcpSocket": { "port": 5432 }, "periodSeconds": 7, "failureThreshold": 9,
            "terminationGracePeriodSeconds": 5
        });
        let before = pod(json!({ "containers": [{ "name": "db", "livenessProbe": probe }] }));
        let after = json_of(&inject(&before, &plan_for(&before, &[]), &Settings::default()));
        assert_eq!(
            after["spec"]["containers"][0]["livenessProbe"],
            json!({
                "httpGet": { "path": "/probe/db/liveness", "port": 4191 }, "periodSeconds": 7,
                "failureThreshold": 9, "terminationGracePeriodSeconds": 5
            })
        );
        assert_eq!(
            probes_of(&after["spec"]["initContainers"][1]),
            json!({ "/probe/db/liveness": { "tcpSocket": { "port": 5432 } } })
        );
    }

    #[test]
    fn what_looks_like_a_reference_stays_as_it_is() {
        let headers = json!([{ "name": "X", "value": "$(REMORA_LOG)$$" }]);
        let get = json!({ "port": 1, "scheme": "HTTPS", "httpHeaders": headers });
        let probe = json!({ "httpGet": get });
        let before = pod(json!({ "containers": [{ "name": "app", "livenessProbe": probe }] }));
        let after = json_of(&inject(&before, &plan_for(&before, &[]), &Settings::default()));
        let proxy = &after["spec"]["initContainers"][1];
        assert!(!proxy["env"].to_string().contains('$'));
        assert_eq!(probes_of(proxy)["/probe/app/liveness"], probe);
    }

    fn probes_of(container: &Value) -> Value {
        let variables = container["env"].as_array().unwrap();
        let probes = variables.iter().find(|variable| is_named(variable, env::PROBES)).unwrap();
        serde_json::from_str(probes["value"].as_str().unwrap()).unwrap()
    }

    #[test]
    fn a_container_that_comes_later_has_its_probes_pointed_at_the_proxy() {
        let probe = json!({ "tcpSocket": { "port": 1 } });
        for first in [json!(null), probe.clone()] {
            for form in ["enabled", "disabled"] {
                let before =
                    pod(json!({ "containers": [{ "name": "app", "livenessProbe": first }] }));
                let plan = plan_for(&before, &[(annotations::NATIVE_SIDECAR, form)]);
                let mut once = json_of(&inject(&before, &plan, &Settings::default()));
                once["metadata"]["annotations"][annotations::INJECT] = json!("enabled");
                let added = json!({ "name": "agent", "startupProbe": probe });
                once["spec"]["containers"].as_array_mut().unwrap().insert(0, added);
                let once: Pod = serde_json::from_value(once).unwrap();
                let plan = plan_for(&once, &[]);
                assert_eq!(plan.scope, Scope::Probes);
                let twice = inject(&once, &plan, &Settings::default());
                let spec = json_of(&twice)["spec"].clone();
                assert_eq!(spec["containers"][0]["startupProbe"]["httpGet"]["port"], 4191);
                let list = if form == "enabled" { "initContainers" } else { "containers" };
                let proxy = spec[list].as_array().unwrap().iter();
                let proxy = proxy.clone().find(|item| is_named(item, PROXY_CONTAINER)).unwrap();
                let mut expected = json!({ "/probe/agent/startup": probe });
                if !first.is_null() {
                    expected["/probe/app/liveness"] = first.clone();
                }
                assert_eq!(probes_of(proxy), expected);
                let namespace = NamespaceInfo::default();
                let third = decide(&twice, &namespace, &Settings::default());
                assert!(matches!(third, Decision::Skip(_)), "{third:?}");
            }
        }
    }

    #[test]
    fn the_ordinary_form_starts_first_and_redirects_last() {
        let before = pod(json!({
            "containers": [{ "name": "app" }], "initContainers": [{ "name": "migrate" }]
        }));
        let plan = plan_for(&before, &[(annotations::NATIVE_SIDECAR, "disabled")]);
        let spec = inject(&before, &plan, &Settings::default()).spec.unwrap();
        let names = |list: &[k8s_openapi::api::core::v1::Container]| -> Vec<String> {
            list.iter().map(|container| container.name.clone()).collect()
        };
        assert_eq!(names(&spec.init_containers.unwrap()), ["migrate", INIT_CONTAINER]);
        assert_eq!(names(&spec.containers), [PROXY_CONTAINER, "app"]);
        assert_eq!(plan.annotations["kubectl.kubernetes.io/default-container"], "app");
        assert_eq!(plan.warnings.len(), 1);
    }

    #[test]
    fn another_versions_sidecar_is_left_alone() {
        let before = pod(json!({ "containers": [{ "name": "app" }] }));
        let mut once = json_of(&inject(&before, &plan(), &Settings::default()));
        once["spec"]["containers"][0]["livenessProbe"] = json!({ "tcpSocket": { "port": 1 } });
        once["metadata"]["annotations"][annotations::INJECT] = json!("enabled");
        once["metadata"]["annotations"][annotations::INJECTED] = json!("0.0.1");
        let once: Pod = serde_json::from_value(once).unwrap();
        let decision = decide(&once, &NamespaceInfo::default(), &Settings::default());
        assert!(matches!(decision, Decision::Skip(_)), "{decision:?}");
    }
}
