//! The objects as a cluster has them, with all that nobody here reads: a pod is about 8 kB of JSON.

use remora_core::names::{PROXY_CONTAINER, annotations};
use serde_json::{Value, json};

use super::cluster::{Pod, SERVICE_PORT, Service, State};

/// What a ReplicaSet's pods have in their names.
pub(super) const TEMPLATE_HASH: &str = "7c9d5b8f6d";
/// Where the containers listen.
const POD_PORT: u16 = 8080;

/// A Node, as far as it is watched.
pub(super) fn node(name: &str, zone: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {
        "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone}}})
}

/// A Service with one port.
pub(super) fn service(service: &Service) -> Value {
    let Service { name, namespace, cluster_ip, .. } = service;
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": namespace, "labels": {"app.kubernetes.io/name": name},
            "annotations": {"retry.remora.io/http": "5xx"},
            "managedFields": [managed("helm", &["f:ports", "f:selector", "f:type"])],
        },
        "spec": {
            "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "type": "ClusterIP",
            "selector": {"app.kubernetes.io/name": name},
            "ports": [{"name": "http", "port": SERVICE_PORT, "targetPort": "http",
                       "protocol": "TCP", "appProtocol": "http"}],
        },
    })
}

/// The EndpointSlice with those of a Service's pods that have an address.
pub(super) fn slice(service: &Service) -> Value {
    let Service { name, namespace, pods, .. } = service;
    let endpoint = |pod: &Pod| {
        let ready = pod.state == State::Ready;
        json!({
            "addresses": [pod.ip], "nodeName": pod.node, "zone": pod.zone,
            "conditions": {"ready": ready, "serving": true, "terminating": !ready},
            "targetRef": {"kind": "Pod", "name": pod.name, "namespace": namespace,
                          "uid": "5c0b1de2-7b0f-4b8f-8d1c-3c3f0c2f3a11"},
        })
    };
    let addressed = pods.iter().filter(|pod| pod.state != State::Pending);
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{name}-x7k2p"), "namespace": namespace,
            "generateName": format!("{name}-"),
            "labels": {"kubernetes.io/service-name": name, "app.kubernetes.io/name": name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time":
                            "2026-11-29T02:30:00Z"},
            "managedFields": [managed("kube-controller-manager", &["f:endpoints", "f:ports"])],
        },
        "endpoints": addressed.map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": POD_PORT, "protocol": "TCP", "appProtocol": "http"}],
    })
}

/// A pod with its sidecar.
pub(super) fn pod(service: &Service, pod: &Pod) -> Value {
    let Service { name, namespace, .. } = service;
    let mut metadata = json!({
        "name": pod.name, "namespace": namespace,
        "generateName": format!("{name}-{TEMPLATE_HASH}-"),
        "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/instance": name,
                   "app.kubernetes.io/version": "3.14.2", "pod-template-hash": TEMPLATE_HASH},
        "annotations": {annotations::INJECTED: "0.1.0", annotations::INJECT: "enabled",
            "prometheus.io/scrape": "true", "prometheus.io/port": "9102",
            "checksum/config": "8f0b6d8a3c1d7e0f8f0b6d8a3c1d7e0f8f0b6d8a3c1d7e0f8f0b6d8a3c1d7e0f"},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
            "name": format!("{name}-{TEMPLATE_HASH}"), "blockOwnerDeletion": true,
            "uid": "0d2f8e8c-5f6b-4f9e-9f8a-6d0f1e2c3b4a"}],
        "managedFields": [
            managed("kube-controller-manager", &["f:containers", "f:volumes", "f:tolerations",
                "f:serviceAccount", "f:securityContext", "f:restartPolicy", "f:dnsPolicy"]),
            managed("kubelet", &["f:conditions", "f:containerStatuses", "f:hostIP", "f:phase",
                "f:podIP", "f:podIPs", "f:startTime", "f:initContainerStatuses"])],
    });
    if pod.state == State::Leaving {
        metadata["deletionTimestamp"] = json!("2026-11-29T02:31:00Z");
        metadata["deletionGracePeriodSeconds"] = json!(30);
    }
    let config = json!({"name": "config", "configMap": {"name": name, "defaultMode": 420}});
    let token = json!({"name": "remora-identity", "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"audience": "identity.remora.io", "expirationSeconds": 86_400,
                                 "path": "token"}}]}});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {"serviceAccountName": name, "nodeName": pod.node,
            "initContainers": [sidecar()], "containers": [application(name)],
            "volumes": [config, token],
            "securityContext": {"runAsNonRoot": true, "fsGroup": 1000,
                                "seccompProfile": {"type": "RuntimeDefault"}}},
        "status": status(pod),
    })
}

fn application(name: &str) -> Value {
    let variable = |number: u32| {
        json!({"name": format!("CHECKOUT_SETTING_{number}"),
        "value": format!("https://dependency-{number}.team.svc.cluster.local:8443/api/v1")})
    };
    let probe = |path: &str| {
        json!({"httpGet": {"path": path, "port": "http"},
        "initialDelaySeconds": 3, "periodSeconds": 10})
    };
    json!({
        "name": "app", "image": format!("registry.example.com/shop/{name}:3.14.2"),
        "args": ["serve", "--config=/etc/app/config.yaml", "--log-format=json"],
        "env": (0..12).map(variable).collect::<Vec<_>>(),
        "ports": [{"name": "http", "containerPort": POD_PORT},
                  {"name": "metrics", "containerPort": 9102}],
        "livenessProbe": probe("/healthz"), "readinessProbe": probe("/readyz"),
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"},
                      "limits": {"memory": "256Mi"}},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/app", "readOnly": true}],
        "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"]}},
    })
}

fn sidecar() -> Value {
    let field = |name: &str, path: &str| {
        json!({"name": name,
        "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}})
    };
    json!({
        "name": PROXY_CONTAINER, "image": "ghcr.io/remora-io/remora:0.1.0",
        "restartPolicy": "Always",
        "args": ["--outbound-listen=127.0.0.1:4140,[::1]:4140", "--inbound-listen=[::]:4143",
            "--admin-listen=[::]:4191", "--trust-bundle=/var/run/remora/trust/ca.crt",
            "--control-plane=remora-control-plane.remora-system.svc.cluster.local:8086",
            "--token-file=/var/run/remora/identity/token", "--shutdown-grace-period=25s"],
        "env": [field("REMORA_POD_NAME", "metadata.name"), field("REMORA_POD_IPS", "status.podIPs"),
            field("REMORA_POD_NAMESPACE", "metadata.namespace"),
            field("REMORA_NODE_NAME", "spec.nodeName")],
        "ports": [{"name": "remora-inbound", "containerPort": 4143},
                  {"name": "remora-admin", "containerPort": 4191}],
        "startupProbe": {"httpGet": {"path": "/ready", "port": 4191}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"path": "/live", "port": 4191}},
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "96Mi"}},
        "volumeMounts": [{"name": "remora-identity", "mountPath": "/var/run/remora/identity"}],
        "securityContext": {"runAsUser": 2102, "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
    })
}

fn status(pod: &Pod) -> Value {
    if pod.state == State::Pending {
        return json!({"phase": "Pending", "qosClass": "Burstable"});
    }
    let ready = if pod.state == State::Ready { "True" } else { "False" };
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status,
        "lastProbeTime": null, "lastTransitionTime": "2026-11-29T02:30:00Z"})
    };
    let container = |name: &str| {
        json!({"name": name, "ready": true, "started": true,
        "restartCount": 0, "image": "registry.example.com/shop/app:3.14.2",
        "imageID": "registry.example.com/shop/app@sha256:3f0b6d8a3c1d7e0f8f0b6d8a3c1d7e0f",
        "containerID": "containerd://8f0b6d8a3c1d7e0f8f0b6d8a3c1d7e0f8f0b6d8a3c1d7e0f",
        "state": {"running": {"startedAt": "2026-11-29T02:30:00Z"}}, "lastState": {}})
    };
    json!({
        "phase": "Running", "qosClass": "Burstable", "hostIP": "10.0.1.17",
        "podIP": pod.ip, "podIPs": [{"ip": pod.ip}], "startTime": "2026-11-29T02:30:00Z",
        "conditions": [condition("PodScheduled", "True"), condition("Initialized", "True"),
            condition("ContainersReady", ready), condition("Ready", ready)],
        "initContainerStatuses": [container(PROXY_CONTAINER)],
        "containerStatuses": [container("app")],
    })
}

/// Who wrote which fields, as the API server keeps it.
fn managed(manager: &str, fields: &[&str]) -> Value {
    let field = |name: &&str| {
        (
            (*name).to_owned(),
            json!({".": {}, "k:{\"name\":\"app\"}": {".": {}, "f:name": {},
            "f:image": {}, "f:imagePullPolicy": {}, "f:resources": {}, "f:terminationMessagePath": {}}}),
        )
    };
    let fields: serde_json::Map<String, Value> = fields.iter().map(field).collect();
    json!({"manager": manager, "operation": "Update", "apiVersion": "v1",
        "time": "2026-11-29T02:30:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": fields}})
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_pod_is_as_large_as_those_of_clusters() {
        let one = Pod {
            name: format!("checkout-0001-{TEMPLATE_HASH}-x7k2p"),
            ip: Ipv4Addr::new(10, 128, 0, 1),
            node: "ip-10-0-1-17.eu-central-1.compute.internal".to_owned(),
            zone: "eu-central-1a".to_owned(),
            state: State::Ready,
        };
        let (name, namespace) = ("checkout-0001".to_owned(), "team-00".to_owned());
        let service =
            Service { name, namespace, cluster_ip: Ipv4Addr::new(10, 96, 0, 1), pods: Vec::new() };
        let length = pod(&service, &one).to_string().len();
        assert!((7_000..10_000).contains(&length), "{length}");
    }
}
