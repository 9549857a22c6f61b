//! The kinds that the double knows, and what an API server says of each.

use serde_json::{Value, json};

/// A kind of object.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    /// API group; empty for the core.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// The name in paths: `endpointslices`.
    pub plural: &'static str,
    /// As manifests write it.
    pub name: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether the server counts `metadata.generation`.
    pub generation: bool,
}

impl Kind {
    /// The `apiVersion`.
    #[must_use]
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// As errors name it: `leases.coordination.k8s.io`.
    #[must_use]
    pub fn qualified(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// The object of a bookmark: what is not optional in the server's own types is there, empty.
    pub(super) fn bookmark(&self, version: u64) -> Value {
        let mut object = json!({
            "kind": self.name, "apiVersion": self.api_version(),
            "metadata": {"resourceVersion": version.to_string()},
        });
        let rest = match self.plural {
            "namespaces" | "deployments" | "jobs" => json!({"spec": {}, "status": {}}),
            "services" => json!({"spec": {}, "status": {"loadBalancer": {}}}),
            "endpointslices" => json!({"addressType": "", "endpoints": null, "ports": null}),
            "pods" => json!({"spec": {"containers": null}, "status": {}}),
            "nodes" => json!({"spec": {}, "status": {
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
                "nodeInfo": {"machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "",
                    "osImage": "", "containerRuntimeVersion": "", "kubeletVersion": "",
                    "kubeProxyVersion": "", "operatingSystem": "", "architecture": ""}}}),
            "networkpolicies" => json!({"spec": {"podSelector": {}}}),
            _ => json!({}),
        };
        if let (Some(object), Value::Object(rest)) = (object.as_object_mut(), rest) {
            object.extend(rest);
        }
        object
    }
}

/// The kind of this group, version and plural.
#[must_use]
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| (k.group, k.version, k.plural) == (group, version, plural))
}

/// The kind of this `apiVersion` and name.
#[must_use]
pub fn of(api_version: &str, name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.name == name && k.api_version() == api_version)
}

/// The kind of this plural, where one group has it; `events` are those of `events.k8s.io`.
#[must_use]
pub fn plural(plural: &str) -> Option<&'static Kind> {
    KINDS.iter().rfind(|k| k.plural == plural)
}

const fn kind(
    group: &'static str,
    plural: &'static str,
    name: &'static str,
    namespaced: bool,
    generation: bool,
) -> Kind {
    Kind { group, version: "v1", plural, name, namespaced, generation }
}

const RBAC: &str = "rbac.authorization.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";
/// Gateway API: there where [`super::ApiServer::serve_gateway_api`] says so.
pub const GATEWAY: &str = "gateway.networking.k8s.io";

/// Every kind.
pub static KINDS: [Kind; 33] = [
    kind("", "namespaces", "Namespace", false, false),
    kind("", "nodes", "Node", false, false),
    kind("", "pods", "Pod", true, true),
    kind("", "services", "Service", true, false),
    kind("", "configmaps", "ConfigMap", true, false),
    kind("", "secrets", "Secret", true, false),
    kind("", "serviceaccounts", "ServiceAccount", true, false),
    kind("", "endpoints", "Endpoints", true, false),
    kind("", "events", "Event", true, false),
    kind("events.k8s.io", "events", "Event", true, false),
    kind("discovery.k8s.io", "endpointslices", "EndpointSlice", true, true),
    kind("coordination.k8s.io", "leases", "Lease", true, false),
    kind("apps", "deployments", "Deployment", true, true),
    kind("apps", "replicasets", "ReplicaSet", true, true),
    kind("apps", "statefulsets", "StatefulSet", true, true),
    kind("apps", "daemonsets", "DaemonSet", true, true),
    kind("batch", "jobs", "Job", true, true),
    kind("batch", "cronjobs", "CronJob", true, true),
    kind("policy", "poddisruptionbudgets", "PodDisruptionBudget", true, true),
    kind("networking.k8s.io", "networkpolicies", "NetworkPolicy", true, true),
    kind("scheduling.k8s.io", "priorityclasses", "PriorityClass", false, true),
    kind(RBAC, "roles", "Role", true, false),
    kind(RBAC, "rolebindings", "RoleBinding", true, false),
    kind(RBAC, "clusterroles", "ClusterRole", false, false),
    kind(RBAC, "clusterrolebindings", "ClusterRoleBinding", false, false),
    kind(ADMISSION, "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", false, true),
    kind(
        ADMISSION,
        "validatingwebhookconfigurations",
        "ValidatingWebhookConfiguration",
        false,
        true,
    ),
    kind(GATEWAY, "httproutes", "HTTPRoute", true, true),
    kind(GATEWAY, "grpcroutes", "GRPCRoute", true, true),
    kind(GATEWAY, "tlsroutes", "TLSRoute", true, true),
    kind(GATEWAY, "tcproutes", "TCPRoute", true, true),
    kind(GATEWAY, "referencegrants", "ReferenceGrant", true, true),
    kind(
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        false,
        true,
    ),
];
