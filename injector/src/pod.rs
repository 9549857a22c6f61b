//! Facts about a pod.

use k8s_openapi::api::core::v1::Pod;

/// What a pod belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// For example `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// The workload that a pod belongs to, by its controller; a ReplicaSet made by a Deployment stands
/// for the Deployment. A pod of its own is its own owner.
#[must_use]
pub fn owner(pod: &Pod) -> Owner {
    let references = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let Some(controller) =
        references.iter().find(|r| r.controller == Some(true)).or(references.first())
    else {
        let name = pod.metadata.name.as_ref().or(pod.metadata.generate_name.as_ref());
        let name = name.map_or("", |name| name.trim_end_matches('-'));
        return Owner { kind: "Pod".to_owned(), name: name.to_owned() };
    };
    let hash = pod.metadata.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    if let ("ReplicaSet", Some(hash)) = (controller.kind.as_str(), hash)
        && let Some(name) = controller.name.strip_suffix(hash).and_then(|n| n.strip_suffix('-'))
    {
        return Owner { kind: "Deployment".to_owned(), name: name.to_owned() };
    }
    Owner { kind: controller.kind.clone(), name: controller.name.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn owner_of(metadata: serde_json::Value) -> (String, String) {
        let pod: Pod = serde_json::from_value(json!({ "metadata": metadata })).unwrap();
        let owner = owner(&pod);
        (owner.kind, owner.name)
    }

    #[test]
    fn a_deployments_pod_belongs_to_the_deployment() {
        let reference = json!([{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc12",
            "uid": "1", "controller": true
        }]);
        let labels = json!({ "pod-template-hash": "abc12" });
        assert_eq!(
            owner_of(json!({ "ownerReferences": reference, "labels": labels })),
            ("Deployment".into(), "web".into())
        );
        assert_eq!(
            owner_of(json!({ "ownerReferences": reference })),
            ("ReplicaSet".into(), "web-abc12".into())
        );
    }

    #[test]
    fn a_pod_of_its_own_is_its_owner() {
        assert_eq!(owner_of(json!({ "name": "debug" })), ("Pod".into(), "debug".into()));
        assert_eq!(owner_of(json!({ "generateName": "debug-" })), ("Pod".into(), "debug".into()));
    }
}
