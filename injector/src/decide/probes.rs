//! Which of a pod's probes cannot pass through the proxy, and what stands in their place.
//!
//! To a `tcpSocket` probe the proxy would answer for an application that is not there, and an
//! `httpGet` probe with scheme HTTPS is a caller without identity whose path nobody sees. The proxy
//! carries these out itself; the kubelet asks it on the admin port. `httpGet` with scheme HTTP and
//! `grpc` pass through the proxy, `exec` never meets it, and a probe with a `host` of its own is
//! not about this pod.

use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, PodSpec, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};

use crate::inject::{INIT_CONTAINER, PROXY_CONTAINER};

/// A probe that the proxy carries out.
#[derive(Debug, Clone, PartialEq)]
pub struct ProxiedProbe {
    /// The list that its container is in: `containers` or `initContainers`.
    pub list: &'static str,
    /// The container's place in the list.
    pub index: usize,
    /// The probe's field in the container, for example `livenessProbe`.
    pub field: &'static str,
    /// Path on the proxy's admin port: `/probe/CONTAINER/KIND`.
    pub path: String,
    /// The handler with the number of its port, and the probe's time-out.
    pub handler: Value,
    /// Whether the handler is `tcpSocket`, which has to go when `httpGet` takes its place.
    pub tcp: bool,
}

/// The probes that the proxy must carry out; and those that it cannot, one line each.
pub(super) fn find(spec: &PodSpec) -> (Vec<ProxiedProbe>, Vec<String>) {
    let (mut probes, mut warnings) = (Vec::new(), Vec::new());
    let init = spec.init_containers.iter().flatten().enumerate();
    // Only those that stay are probed.
    let init = init
        .filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"))
        .map(|(index, container)| ("initContainers", index, container));
    let containers = spec.containers.iter().enumerate();
    let containers = containers.map(|(index, container)| ("containers", index, container));
    for (list, index, container) in init.chain(containers) {
        if [INIT_CONTAINER, PROXY_CONTAINER].contains(&container.name.as_str()) {
            continue;
        }
        for (field, kind, probe) in [
            ("livenessProbe", "liveness", &container.liveness_probe),
            ("readinessProbe", "readiness", &container.readiness_probe),
            ("startupProbe", "startup", &container.startup_probe),
        ] {
            let Some(handler) = probe.as_ref().and_then(|probe| handler(probe, container)) else {
                continue;
            };
            match handler {
                Ok((handler, tcp)) => probes.push(ProxiedProbe {
                    list,
                    index,
                    field,
                    path: format!("/probe/{}/{kind}", container.name),
                    handler,
                    tcp,
                }),
                Err(port) => warnings.push(format!(
                    "container {}: {field} names port {port:?}, which the container does not \
                     declare: it fails; add the port or its number",
                    container.name
                )),
            }
        }
    }
    (probes, warnings)
}

/// `None` where the probe can stay; an error is a port name that the container does not know.
fn handler(probe: &Probe, container: &Container) -> Option<Result<(Value, bool), String>> {
    let mut handler = if let Some(tcp) = &probe.tcp_socket {
        if has_host(tcp.host.as_deref()) {
            return None;
        }
        match number(&tcp.port, container) {
            Ok(port) => json!({ "tcpSocket": { "port": port } }),
            Err(name) => return Some(Err(name)),
        }
    } else {
        let get = probe.http_get.as_ref()?;
        if get.scheme.as_deref() != Some("HTTPS") || has_host(get.host.as_deref()) {
            return None;
        }
        match number(&get.port, container) {
            Ok(port) => json!({ "httpGet": https(get, port) }),
            Err(name) => return Some(Err(name)),
        }
    };
    if let Some(seconds) = probe.timeout_seconds.filter(|seconds| *seconds > 0) {
        handler["timeoutSeconds"] = seconds.into();
    }
    Some(Ok((handler, probe.tcp_socket.is_some())))
}

fn has_host(host: Option<&str>) -> bool {
    host.is_some_and(|host| !host.is_empty())
}

fn https(get: &HTTPGetAction, port: u16) -> Value {
    let mut action = json!({ "port": port, "scheme": "HTTPS" });
    if let Some(path) = &get.path {
        action["path"] = path.as_str().into();
    }
    let headers = get.http_headers.iter().flatten();
    let headers: Vec<Value> =
        headers.map(|header| json!({ "name": header.name, "value": header.value })).collect();
    if !headers.is_empty() {
        action["httpHeaders"] = headers.into();
    }
    action
}

/// As the kubelet resolves it: the name of a port of the same container, else a number in words.
fn number(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let mut declared = container.ports.iter().flatten();
            declared
                .find(|port| port.name.as_ref() == Some(name))
                .map(|port| port.container_port)
                .or_else(|| name.parse().ok())
        }
    };
    number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0).ok_or_else(
        || match port {
            IntOrString::Int(number) => number.to_string(),
            IntOrString::String(name) => name.clone(),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(probe: Value) -> (Vec<ProxiedProbe>, Vec<String>) {
        let container = json!({
            "name": "app", "ports": [{ "name": "web", "containerPort": 8080 }],
            "readinessProbe": probe
        });
        find(&serde_json::from_value(json!({ "containers": [container] })).unwrap())
    }

    #[test]
    fn what_passes_through_the_proxy_stays() {
        for probe in [
            json!({ "httpGet": { "port": "web", "path": "/" } }),
            json!({ "httpGet": { "port": "web", "scheme": "HTTP" } }),
            json!({ "httpGet": { "port": 443, "scheme": "HTTPS", "host": "example.com" } }),
            json!({ "tcpSocket": { "port": 53, "host": "10.0.0.1" } }),
            json!({ "grpc": { "port": 9000 } }),
            json!({ "exec": { "command": ["true"] } }),
        ] {
            assert_eq!(found(probe.clone()), (vec![], vec![]), "{probe}");
        }
    }

    #[test]
    fn ports_become_numbers() {
        for (port, number) in [(json!("web"), 8080), (json!("81"), 81), (json!(82), 82)] {
            let (probes, _) = found(json!({ "tcpSocket": { "port": port } }));
            assert_eq!(probes[0].handler, json!({ "tcpSocket": { "port": number } }));
            assert_eq!(probes[0].path, "/probe/app/readiness");
        }
        for port in [json!("admin"), json!(0), json!(70000)] {
            let (probes, warnings) = found(json!({ "tcpSocket": { "port": port } }));
            assert!(probes.is_empty());
            assert!(warnings[0].starts_with("container app: readinessProbe names port"));
        }
    }

    #[test]
    fn headers_and_time_out_go_with_the_handler() {
        let headers = json!([{ "name": "Host", "value": "a" }, { "name": "X", "value": "" }]);
        let get =
            json!({ "port": "web", "scheme": "HTTPS", "path": "/h?x=1", "httpHeaders": headers });
        let (probes, _) = found(json!({ "httpGet": get, "timeoutSeconds": 7, "periodSeconds": 3 }));
        let get =
            json!({ "port": 8080, "scheme": "HTTPS", "path": "/h?x=1", "httpHeaders": headers });
        assert_eq!(probes[0].handler, json!({ "httpGet": get, "timeoutSeconds": 7 }));
    }

    #[test]
    fn sidecars_are_probed_and_other_init_containers_are_not() {
        let probe = json!({ "tcpSocket": { "port": 1 } });
        let spec = json!({ "containers": [], "initContainers": [
            { "name": "migrate", "startupProbe": probe },
            { "name": "cache", "restartPolicy": "Always", "startupProbe": probe },
            { "name": PROXY_CONTAINER, "restartPolicy": "Always", "startupProbe": probe },
        ]});
        let (probes, _) = find(&serde_json::from_value(spec).unwrap());
        let places: Vec<_> = probes.iter().map(|p| (p.list, p.index, p.path.as_str())).collect();
        assert_eq!(places, [("initContainers", 1, "/probe/cache/startup")]);
    }
}
