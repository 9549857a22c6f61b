//! The sidecar, written into a pod.

use std::{collections::BTreeMap, time::Duration};

use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, jsonptr::PointerBuf};
use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource,
        HTTPGetAction, ObjectFieldSelector, Pod, Probe, ProjectedVolumeSource,
        ResourceRequirements, SeccompProfile, SecurityContext, ServiceAccountTokenProjection,
        Volume, VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use remora_core::{
    names::{
        CONTROL_PLANE_SERVICE_ACCOUNT, PROXY_UID, SYSTEM_NAMESPACE, TOKEN_AUDIENCE,
        TRUST_BUNDLE_CONFIG_MAP, TRUST_BUNDLE_KEY, annotations, env, ports,
    },
    settings::PortSet,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    decide::{Plan, Settings},
    proxy_settings::{AccessLog, ProxySettings, Resources},
};

/// Name of the init container that writes the interception rules.
pub const INIT_CONTAINER: &str = "remora-init";
/// Name of the proxy's container.
pub const PROXY_CONTAINER: &str = "remora-proxy";

/// The image holds all programs of the mesh.
const PROGRAM: &str = "/remora-proxy";
const TOKEN_VOLUME: &str = "remora-identity-token";
const TOKEN_DIR: &str = "/var/run/remora/identity";
const TOKEN_FILE: &str = "token";
/// The kubelet replaces a token at 80 % of its life.
const TOKEN_SECONDS: i64 = 86_400;
const TRUST_VOLUME: &str = TRUST_BUNDLE_CONFIG_MAP;
const TRUST_DIR: &str = "/var/run/remora/trust";

/// The pod with its sidecar. A sidecar that it had is replaced.
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
/// The value must be one that reads as a [`Pod`].
pub(crate) fn inject_value(template: &mut Value, plan: &Plan, settings: &Settings) {
    let patch = patch_value(template, plan, settings);
    json_patch::patch(template, &patch)
        .expect("invariant: every operation's path was made by the patch or seen in the pod");
}

fn patch_value(template: &Value, plan: &Plan, settings: &Settings) -> Patch {
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
        ("initContainers", [INIT_CONTAINER, PROXY_CONTAINER]),
        ("volumes", [TOKEN_VOLUME, TRUST_VOLUME]),
    ] {
        operations.extend(remove_named(template, list, &ours));
    }
    let version = json!(settings.proxy_version);
    operations.push(add(&["metadata", "annotations", annotations::INJECTED], version));
    // The rules first, then the proxy, so that the application's own init containers have network.
    let init = json_of(&init_container(&plan.proxy, settings));
    let proxy = json_of(&proxy_container(&plan.proxy, settings));
    operations.push(add(&["spec", "initContainers", "0"], init));
    operations.push(add(&["spec", "initContainers", "1"], proxy));
    for volume in [token_volume(), trust_volume()] {
        operations.push(add(&["spec", "volumes", "-"], json_of(&volume)));
    }
    Patch(operations)
}

/// Removals from the back, so that the indices before stay true.
fn remove_named(template: &Value, list: &str, names: &[&str]) -> Vec<PatchOperation> {
    let items = template.get("spec").and_then(|spec| spec.get(list)).and_then(Value::as_array);
    items
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, item)| {
            item.get("name").and_then(Value::as_str).is_some_and(|name| names.contains(&name))
        })
        .map(|(index, _)| {
            let path = PointerBuf::from_tokens(["spec", list, &index.to_string()]);
            PatchOperation::Remove(RemoveOperation { path })
        })
        .collect()
}

fn add(path: &[&str], value: Value) -> PatchOperation {
    let path = PointerBuf::from_tokens(path.iter().copied());
    PatchOperation::Add(AddOperation { path, value })
}

fn json_of<T: Serialize>(object: &T) -> Value {
    serde_json::to_value(object).expect("invariant: Kubernetes objects have string keys")
}

fn init_container(proxy: &ProxySettings, settings: &Settings) -> Container {
    let mut args = vec![
        "redirect".to_owned(),
        "apply".to_owned(),
        format!("--outbound-port={}", ports::OUTBOUND),
        format!("--inbound-port={}", ports::INBOUND),
        format!("--proxy-uid={PROXY_UID}"),
    ];
    let mut skip = |flag: &str, ports: &PortSet| {
        if !ports.is_empty() {
            args.push(format!("{flag}={ports}"));
        }
    };
    skip("--skip-inbound-ports", &proxy.skip_inbound_ports);
    skip("--skip-outbound-ports", &proxy.skip_outbound_ports);
    if !proxy.skip_subnets.is_empty() {
        let subnets: Vec<String> = proxy.skip_subnets.iter().map(ToString::to_string).collect();
        args.push(format!("--skip-subnets={}", subnets.join(",")));
    }
    Container {
        name: INIT_CONTAINER.to_owned(),
        image: Some(settings.proxy_image.clone()),
        command: Some(vec![PROGRAM.to_owned()]),
        args: Some(args),
        resources: resources(&proxy.resources),
        // nf_tables asks for this one capability, and for it to be effective: hence root.
        security_context: Some(SecurityContext {
            run_as_user: Some(0),
            run_as_group: Some(0),
            run_as_non_root: Some(false),
            ..restricted(Some(vec!["NET_ADMIN".to_owned()]))
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

fn proxy_container(proxy: &ProxySettings, settings: &Settings) -> Container {
    Container {
        name: PROXY_CONTAINER.to_owned(),
        image: Some(settings.proxy_image.clone()),
        command: Some(vec![PROGRAM.to_owned()]),
        args: Some(vec![
            format!("--workers={}", proxy.resources.workers()),
            format!("--shutdown-grace-period={}", duration(proxy.shutdown_grace_period)),
        ]),
        env: Some(environment(proxy, settings)),
        ports: Some(vec![
            port("remora-in", ports::INBOUND),
            port("remora-admin", ports::PROXY_ADMIN),
        ]),
        resources: resources(&proxy.resources),
        // A native sidecar: started before what follows, running until after the application.
        restart_policy: Some("Always".to_owned()),
        security_context: Some(SecurityContext {
            run_as_user: Some(PROXY_UID.into()),
            run_as_group: Some(PROXY_UID.into()),
            run_as_non_root: Some(true),
            ..restricted(None)
        }),
        startup_probe: Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some("/ready".to_owned()),
                port: IntOrString::Int(ports::PROXY_ADMIN.into()),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(1),
            failure_threshold: Some(120),
            ..Probe::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![mount(TOKEN_VOLUME, TOKEN_DIR), mount(TRUST_VOLUME, TRUST_DIR)]),
        ..Container::default()
    }
}

fn environment(proxy: &ProxySettings, settings: &Settings) -> Vec<EnvVar> {
    let value = |name: &str, value: String| EnvVar {
        name: name.to_owned(),
        value: Some(value),
        value_from: None,
    };
    let field = |name: &str, path: &str| EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { api_version: None, field_path: path.to_owned() }),
            ..EnvVarSource::default()
        }),
    };
    let control_plane_id = format!(
        "spiffe://{}/ns/{SYSTEM_NAMESPACE}/sa/{CONTROL_PLANE_SERVICE_ACCOUNT}",
        settings.trust_domain
    );
    let mut variables = vec![
        field(env::POD_NAMESPACE, "metadata.namespace"),
        field(env::POD_NAME, "metadata.name"),
        field(env::POD_IPS, "status.podIPs"),
        field(env::NODE_NAME, "spec.nodeName"),
        value(env::CONTROL_PLANE, settings.control_plane.clone()),
        value(env::CONTROL_PLANE_ID, control_plane_id),
        value(env::TRUST_BUNDLE, format!("{TRUST_DIR}/{TRUST_BUNDLE_KEY}")),
        value(env::TOKEN_FILE, format!("{TOKEN_DIR}/{TOKEN_FILE}")),
        value(env::LOG, proxy.log_level.clone()),
    ];
    if proxy.access_log != AccessLog::Off {
        variables.push(value(env::ACCESS_LOG, proxy.access_log.to_string()));
    }
    variables
}

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

/// The init container asks for no more than the proxy, so that it does not add to what the
/// scheduler must find.
fn resources(resources: &Resources) -> Option<ResourceRequirements> {
    let quantities = |cpu: &Option<_>, memory: &Option<_>| {
        let map: BTreeMap<String, Quantity> = [("cpu", cpu), ("memory", memory)]
            .into_iter()
            .filter_map(|(name, quantity): (_, &Option<crate::proxy_settings::Quantity>)| {
                quantity.as_ref().map(|q| (name.to_owned(), Quantity(q.to_string())))
            })
            .collect();
        (!map.is_empty()).then_some(map)
    };
    let requests = quantities(&resources.cpu_request, &resources.memory_request);
    let limits = quantities(&resources.cpu_limit, &resources.memory_limit);
    (requests.is_some() || limits.is_some()).then(|| ResourceRequirements {
        requests,
        limits,
        ..ResourceRequirements::default()
    })
}

/// In the form of Gateway API (GEP-2257), whose units have five digits at most.
fn duration(d: Duration) -> String {
    let (secs, millis) = (d.as_secs(), d.subsec_millis());
    let units =
        [(secs / 3600, "h"), (secs / 60 % 60, "m"), (secs % 60, "s"), (millis.into(), "ms")];
    let text: String =
        units.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

fn port(name: &str, port: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: port.into(),
        ..ContainerPort::default()
    }
}

fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

fn token_volume() -> Volume {
    Volume {
        name: TOKEN_VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![VolumeProjection {
                service_account_token: Some(ServiceAccountTokenProjection {
                    audience: Some(TOKEN_AUDIENCE.to_owned()),
                    expiration_seconds: Some(TOKEN_SECONDS),
                    path: TOKEN_FILE.to_owned(),
                }),
                ..VolumeProjection::default()
            }]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn trust_volume() -> Volume {
    Volume {
        name: TRUST_VOLUME.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: TRUST_BUNDLE_CONFIG_MAP.to_owned(),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "web" }, "spec": spec })).unwrap()
    }

    fn plan() -> Plan {
        Plan { proxy: ProxySettings::default(), warnings: Vec::new() }
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
    fn durations_come_back_as_given() {
        for text in ["0s", "30s", "1m30s", "250ms", "99999h59m", "2h5ms"] {
            let parsed = remora_core::settings::parse_duration(text).unwrap();
            assert_eq!(duration(parsed), text);
        }
    }

    #[test]
    fn injecting_twice_is_injecting_once() {
        let settings = Settings::default();
        let once = inject(&pod(json!({ "containers": [{ "name": "app" }] })), &plan(), &settings);
        assert_eq!(inject(&once, &plan(), &settings), once);
    }
}
