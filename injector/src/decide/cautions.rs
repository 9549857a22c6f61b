//! What a pod's owner should know before it runs with a sidecar.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::{Container, PodSpec};
use remora_core::names::{PROXY_UID, annotations, ports};

use super::{Form, all_containers};

/// What Kubernetes takes where a pod says nothing, seconds.
const TERMINATION_GRACE: i64 = 30;
/// The proxy ends this long before the kubelet would end it.
const SPARE: Duration = Duration::from_secs(2);

/// How long a draining proxy may wait in this pod; and a warning where that is less than an
/// annotation asked for.
pub(super) fn grace(
    spec: &PodSpec,
    asked: Duration,
    annotated: bool,
) -> (Duration, Option<String>) {
    let pod = spec.termination_grace_period_seconds.unwrap_or(TERMINATION_GRACE);
    let pod = Duration::from_secs(u64::try_from(pod).unwrap_or_default());
    let most = pod.saturating_sub(SPARE).max(Duration::from_secs(1));
    if asked <= most {
        return (asked, None);
    }
    let warning = format!(
        "{} is cut to {most:?}: the pod ends after terminationGracePeriodSeconds {}; raise it to {}",
        annotations::SHUTDOWN_GRACE_PERIOD,
        pod.as_secs(),
        asked.saturating_add(SPARE).as_secs(),
    );
    (most, annotated.then_some(warning))
}

/// What will surprise, one line each.
pub(super) fn of_pod(spec: &PodSpec, form: Form) -> Vec<String> {
    let mut warnings = Vec::new();
    for container in all_containers(spec) {
        warnings.extend(same_user(spec, container));
        warnings.extend(same_port(container));
    }
    if form == Form::Ordinary {
        warnings.extend(without_native_sidecars(spec));
    }
    warnings
}

/// The rules exempt the proxy's user, and so whoever has the same.
fn same_user(spec: &PodSpec, container: &Container) -> Option<String> {
    let of_container = container.security_context.as_ref().and_then(|c| c.run_as_user);
    let of_pod = || spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let user = of_container.or_else(of_pod)?;
    (user == i64::from(PROXY_UID)).then(|| {
        format!(
            "container {} runs as user {PROXY_UID}, the proxy's: its connections bypass the \
             mesh; give it another runAsUser",
            container.name
        )
    })
}

fn same_port(container: &Container) -> Option<String> {
    let ours = [ports::OUTBOUND, ports::INBOUND, ports::PROXY_ADMIN].map(i32::from);
    let port = container.ports.iter().flatten().find(|p| ours.contains(&p.container_port))?;
    Some(format!(
        "container {} declares port {}, which the proxy listens on: use another",
        container.name, port.container_port
    ))
}

fn without_native_sidecars(spec: &PodSpec) -> Vec<String> {
    let mend = format!("use native sidecars ({}: enabled)", annotations::NATIVE_SIDECAR);
    let mut warnings = Vec::new();
    if spec.init_containers.as_ref().is_some_and(|list| !list.is_empty()) {
        warnings.push(format!(
            "init containers run before the proxy, outside the mesh; if they call meshed pods \
             {mend}"
        ));
    }
    if let Some(policy @ ("Never" | "OnFailure")) = spec.restart_policy.as_deref() {
        warnings.push(format!(
            "restartPolicy {policy}: the proxy keeps the pod from ending; {mend} or POST \
             http://127.0.0.1:{}/shutdown at the end of the work",
            ports::PROXY_ADMIN
        ));
    }
    warnings
}

/// Keys that look like ours and are not.
pub(super) fn unknown_keys(map: &BTreeMap<String, String>) -> Vec<String> {
    map.keys()
        .filter(|key| !annotations::CONFIG.contains(&key.as_str()))
        .map(|key| {
            let known = annotations::CONFIG.map(|k| &k[annotations::CONFIG_PREFIX.len()..]);
            format!("annotation {key} is unknown and has no effect; known are {}", known.join(", "))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_proxy_ends_before_the_pod_is_ended() {
        let secs = Duration::from_secs;
        for (pod, asked, granted) in [
            (json!(null), 28, 28),
            (json!(null), 30, 28),
            (json!(60), 30, 30),
            (json!(10), 30, 8),
            (json!(1), 30, 1),
            (json!(0), 30, 1),
        ] {
            let spec = spec(json!({ "containers": [], "terminationGracePeriodSeconds": pod }));
            let (grace_period, warning) = grace(&spec, secs(asked), true);
            assert_eq!(grace_period, secs(granted), "{pod}");
            assert_eq!(warning.is_some(), granted < asked, "{pod}");
            assert_eq!(grace(&spec, secs(asked), false), (secs(granted), None));
        }
    }

    #[test]
    fn the_proxys_user_is_warned_of_where_it_is_in_force() {
        let warned = |pod: i64, container: serde_json::Value| {
            of_pod(
                &spec(json!({
                    "securityContext": { "runAsUser": pod },
                    "containers": [{ "name": "app", "securityContext": { "runAsUser": container } }]
                })),
                Form::Native,
            )
            .len()
        };
        assert_eq!(warned(2102, json!(null)), 1);
        assert_eq!(warned(1, json!(2102)), 1);
        assert_eq!(warned(2102, json!(1)), 0);
    }

    #[test]
    fn an_ordinary_proxy_is_warned_of_where_it_shows() {
        let warned = |value| of_pod(&spec(value), Form::Ordinary).len();
        let init = json!([{ "name": "migrate" }]);
        assert_eq!(warned(json!({ "containers": [], "restartPolicy": "Always" })), 0);
        assert_eq!(warned(json!({ "containers": [], "restartPolicy": "OnFailure" })), 1);
        let both = json!({ "containers": [], "restartPolicy": "Never", "initContainers": init });
        assert_eq!(warned(both.clone()), 2);
        assert_eq!(of_pod(&spec(both), Form::Native), Vec::<String>::new());
    }
}
