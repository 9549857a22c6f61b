//! A container's environment and command line, by Kubernetes' rules.

use std::{collections::BTreeMap, net::Ipv4Addr};

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, Service};

use super::manifests::key;

/// Variables taken over from the environment of `up`, as an image would set them.
const FROM_HOST: [&str; 5] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ"];

/// The environment of a container. What cannot be given is reported by `warn`.
pub fn of_container(
    container: &Container,
    pod: &Pod,
    pod_ip: Ipv4Addr,
    services: &BTreeMap<String, String>,
    mut warn: impl FnMut(String),
) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> = FROM_HOST
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
        .collect();
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    if links {
        env.extend(services.clone());
    }
    let hostname = pod.spec.as_ref().and_then(|spec| spec.hostname.clone());
    env.insert("HOSTNAME".into(), hostname.unwrap_or_else(|| key(&pod.metadata).1));
    for variable in container.env.iter().flatten() {
        match value(variable, pod, pod_ip) {
            Ok(value) => {
                let value = expand(&value, &env);
                env.insert(variable.name.clone(), value);
            }
            Err(problem) => {
                warn(format!("container {}: env {}: {problem}", container.name, variable.name));
            }
        }
    }
    env
}

/// `command` and `args`, variables expanded.
#[must_use]
pub fn command_line(container: &Container, env: &BTreeMap<String, String>) -> Vec<String> {
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    words.map(|word| expand(word, env)).collect()
}

/// The variables that describe a namespace's Services to its pods.
#[must_use]
pub fn of_services<'a>(
    namespace: &str,
    services: impl Iterator<Item = &'a Service>,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for service in services.filter(|service| key(&service.metadata).0 == namespace) {
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_ref().filter(|ip| *ip != "None" && !ip.is_empty()) else {
            continue;
        };
        let name = upper(&key(&service.metadata).1);
        env.insert(format!("{name}_SERVICE_HOST"), ip.clone());
        for (i, port) in spec.ports.iter().flatten().enumerate() {
            let number = port.port;
            if i == 0 {
                env.insert(format!("{name}_SERVICE_PORT"), number.to_string());
                env.insert(format!("{name}_PORT"), format!("tcp://{ip}:{number}"));
            }
            if let Some(port_name) = &port.name {
                let port_name = upper(port_name);
                env.insert(format!("{name}_SERVICE_PORT_{port_name}"), number.to_string());
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let link = format!("{name}_PORT_{number}_{protocol}");
            let lower = protocol.to_ascii_lowercase();
            env.insert(format!("{link}_PROTO"), lower.clone());
            env.insert(format!("{link}_PORT"), number.to_string());
            env.insert(format!("{link}_ADDR"), ip.clone());
            env.insert(link, format!("{lower}://{ip}:{number}"));
        }
    }
    env
}

/// `$(NAME)` becomes the variable's value where there is one and stays where not; `$$` is `$`.
#[must_use]
pub fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let after = &after[1..];
        if let Some(escaped) = after.strip_prefix('$') {
            out.push('$');
            rest = escaped;
        } else if let Some((name, tail)) =
            after.strip_prefix('(').and_then(|reference| reference.split_once(')'))
        {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

fn value(variable: &EnvVar, pod: &Pod, pod_ip: Ipv4Addr) -> Result<String, String> {
    let Some(from) = &variable.value_from else {
        return Ok(variable.value.clone().unwrap_or_default());
    };
    let Some(field) = &from.field_ref else {
        return Err("only value and valueFrom.fieldRef are known here; it is ignored".into());
    };
    let path = field.field_path.as_str();
    let map = |map: &Option<BTreeMap<String, String>>, name: &str| {
        map.as_ref().and_then(|map| map.get(name)).cloned().unwrap_or_default()
    };
    let keyed = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    let (namespace, name) = key(&pod.metadata);
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    match path {
        "metadata.name" => Ok(name),
        "metadata.namespace" => Ok(namespace),
        "status.podIP" | "status.podIPs" => Ok(pod_ip.to_string()),
        "status.hostIP" | "status.hostIPs" => Ok(super::net::NODE.to_string()),
        "spec.nodeName" => Ok(super::NODE_NAME.into()),
        "spec.serviceAccountName" => Ok(account.unwrap_or_else(|| "default".into())),
        _ => {
            if let Some(label) = keyed("metadata.labels['") {
                Ok(map(&pod.metadata.labels, label))
            } else if let Some(annotation) = keyed("metadata.annotations['") {
                Ok(map(&pod.metadata.annotations, annotation))
            } else {
                Err(format!("the field {path:?} is not known here; it is ignored"))
            }
        }
    }
}

fn upper(name: &str) -> String {
    name.to_ascii_uppercase().replace(['-', '.'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn vars(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn references_expand_as_kubernetes_does() {
        let env = vars(&[("A", "1"), ("B", "$(A)")]);
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(B)", "x1y$(A)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(MISSING)", "$(MISSING)"),
            ("$A $( $", "$A $( $"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &env), expected, "{text}");
        }
    }

    #[test]
    fn services_appear_as_variables_of_their_own_namespace() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "my-orders", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [
                {"name": "http", "port": 80}, {"name": "grpc", "port": 90}]}
        }))
        .unwrap();
        let env = of_services("shop", [&service].into_iter());
        assert_eq!(env["MY_ORDERS_SERVICE_HOST"], "10.96.0.7");
        assert_eq!(env["MY_ORDERS_SERVICE_PORT"], "80");
        assert_eq!(env["MY_ORDERS_SERVICE_PORT_GRPC"], "90");
        assert_eq!(env["MY_ORDERS_PORT_90_TCP"], "tcp://10.96.0.7:90");
        assert!(of_services("other", [&service].into_iter()).is_empty());
    }

    #[test]
    fn fields_of_the_pod_and_earlier_variables_are_usable() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"app": "x"}},
            "spec": {"containers": [{"name": "c", "command": ["run", "$(URL)"], "env": [
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "URL", "value": "http://$(IP)/$(APP)"},
                {"name": "BAD", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]}]}
        }))
        .unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let mut warnings = Vec::new();
        let ip = Ipv4Addr::new(10, 244, 0, 9);
        let env = of_container(container, &pod, ip, &BTreeMap::new(), |w| warnings.push(w));
        assert_eq!(command_line(container, &env), ["run", "http://10.244.0.9/x"]);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(!env.contains_key("BAD"));
    }
}
