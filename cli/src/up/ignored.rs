//! What manifests ask for that local processes do not get.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

/// Whether a pod asks for something.
type Asks = fn(&PodSpec) -> bool;

/// What pods may ask for, and what is said where one does.
const IGNORED: [(Asks, &str); 6] = [
    (
        |spec| containers(spec).any(|c| c.image.is_some()),
        "container images are not used: `command` and `args` run as local processes",
    ),
    (
        |spec| spec.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty()),
        "volumes are ignored: containers see this machine's files",
    ),
    (
        |spec| {
            let of_container = containers(spec).any(|c| c.security_context.is_some());
            spec.security_context.is_some() || of_container
        },
        "securityContext is ignored: containers run with the rights that `up` has",
    ),
    (
        |spec| containers(spec).any(|c| c.env_from.as_ref().is_some_and(|from| !from.is_empty())),
        "envFrom is ignored: give each variable in `env`",
    ),
    (
        |spec| containers(spec).any(|c| c.liveness_probe.is_some() || c.startup_probe.is_some()),
        "livenessProbe and startupProbe are ignored: a container is started again when it ends",
    ),
    (
        |spec| containers(spec).any(|c| c.lifecycle.is_some()),
        "lifecycle hooks are ignored: a container that goes gets SIGTERM only",
    ),
];

/// One line for each kind of thing that some pod asks for in vain.
pub fn ignored(pods: &[Pod]) -> impl Iterator<Item = &'static str> {
    let asked = |asks: Asks| pods.iter().filter_map(|p| p.spec.as_ref()).any(asks);
    IGNORED.iter().filter(move |(asks, _)| asked(*asks)).map(|(_, line)| *line)
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_kind_of_thing_is_said_once_for_all_pods() {
        let pod = |spec| -> Pod { serde_json::from_value(json!({"spec": spec})).unwrap() };
        let asking = || {
            pod(json!({
                "volumes": [{"name": "v", "emptyDir": {}}],
                "initContainers": [{"name": "i", "image": "i"}],
                "containers": [
                    {"name": "a", "envFrom": [{"configMapRef": {"name": "m"}}]},
                    {"name": "b", "securityContext": {"runAsUser": 1}, "lifecycle": {},
                        "livenessProbe": {"tcpSocket": {"port": 1}}},
                ],
            }))
        };
        assert_eq!(ignored(&[asking(), asking()]).count(), IGNORED.len());
        let plain = json!({"containers": [{"name": "a", "command": ["true"]}]});
        assert_eq!(ignored(&[pod(plain)]).next(), None);
    }
}
