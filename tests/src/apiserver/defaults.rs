//! What the server adds to an object before it is admitted.

use serde_json::{Value, json};

use super::kinds::Kind;

/// Adds what is missing.
pub(super) fn fill(kind: &Kind, object: &mut Value, suffix: &str) {
    match (kind.group, kind.plural) {
        ("", "namespaces") => {
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            or(object, "spec", json!({"finalizers": ["kubernetes"]}));
            object["status"] = json!({"phase": "Active"});
        }
        ("", "pods") => pod(object, suffix),
        ("", "services") => service(object),
        ("", "secrets") => or(object, "type", json!("Opaque")),
        ("admissionregistration.k8s.io", plural) => {
            for webhook in items(object, "webhooks") {
                or(webhook, "namespaceSelector", json!({}));
                or(webhook, "objectSelector", json!({}));
                or(webhook, "failurePolicy", json!("Fail"));
                or(webhook, "matchPolicy", json!("Equivalent"));
                or(webhook, "timeoutSeconds", json!(10));
                if plural == "mutatingwebhookconfigurations" {
                    or(webhook, "reinvocationPolicy", json!("Never"));
                }
            }
        }
        _ => {}
    }
}

fn or(object: &mut Value, field: &str, value: Value) {
    if object[field].is_null() {
        object[field] = value;
    }
}

fn items<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

fn service(object: &mut Value) {
    let spec = &mut object["spec"];
    or(spec, "type", json!("ClusterIP"));
    or(spec, "sessionAffinity", json!("None"));
    or(spec, "internalTrafficPolicy", json!("Cluster"));
    for port in items(spec, "ports") {
        or(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        or(port, "targetPort", number);
    }
    or(object, "status", json!({"loadBalancer": {}}));
}

fn pod(object: &mut Value, suffix: &str) {
    let volume = format!("kube-api-access-{suffix}");
    let spec = &mut object["spec"];
    or(spec, "serviceAccountName", json!("default"));
    let account = spec["serviceAccountName"].clone();
    or(spec, "serviceAccount", account);
    if spec["automountServiceAccountToken"] != json!(false) {
        mount_token(spec, &volume);
    }
    or(spec, "restartPolicy", json!("Always"));
    or(spec, "terminationGracePeriodSeconds", json!(30));
    or(spec, "dnsPolicy", json!("ClusterFirst"));
    or(spec, "securityContext", json!({}));
    or(spec, "schedulerName", json!("default-scheduler"));
    or(spec, "priority", json!(0));
    or(spec, "enableServiceLinks", json!(true));
    or(spec, "preemptionPolicy", json!("PreemptLowerPriority"));
    let toleration = |key: &str| {
        json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists",
               "effect": "NoExecute", "tolerationSeconds": 300})
    };
    or(spec, "tolerations", json!([toleration("not-ready"), toleration("unreachable")]));
    let host = spec["hostNetwork"] == json!(true);
    for list in ["initContainers", "containers"] {
        items(spec, list).for_each(|container| fill_container(container, host));
    }
    or(object, "status", json!({}));
}

fn mount_token(spec: &mut Value, volume: &str) {
    const PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    let sources = json!([
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt",
                       "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace",
            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]);
    or(spec, "volumes", json!([]));
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        let source = json!({"sources": sources, "defaultMode": 420});
        volumes.push(json!({"name": volume, "projected": source}));
    }
    for list in ["initContainers", "containers"] {
        for container in items(spec, list) {
            or(container, "volumeMounts", json!([]));
            let Some(mounts) = container["volumeMounts"].as_array_mut() else { continue };
            if !mounts.iter().any(|mount| mount["mountPath"] == PATH) {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": PATH}));
            }
        }
    }
}

/// What the server adds to a container; also after a webhook has changed the pod.
pub(super) fn fill_container(container: &mut Value, host_network: bool) {
    or(container, "resources", json!({}));
    or(container, "terminationMessagePath", json!("/dev/termination-log"));
    or(container, "terminationMessagePolicy", json!("File"));
    or(container, "imagePullPolicy", json!("IfNotPresent"));
    for port in items(container, "ports") {
        or(port, "protocol", json!("TCP"));
        if host_network {
            let number = port["containerPort"].clone();
            or(port, "hostPort", number);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).filter(|probe| probe.is_object()) else {
            continue;
        };
        if probe["httpGet"].is_object() {
            or(&mut probe["httpGet"], "scheme", json!("HTTP"));
        }
        let seconds = [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1)];
        for (field, value) in seconds.into_iter().chain([("failureThreshold", 3)]) {
            or(probe, field, json!(value));
        }
    }
}

/// The same for every container of a pod that a webhook has changed.
pub(super) fn refill(pod: &mut Value) {
    let host = pod["spec"]["hostNetwork"] == json!(true);
    for list in ["initContainers", "containers"] {
        items(&mut pod["spec"], list).for_each(|container| fill_container(container, host));
    }
}
