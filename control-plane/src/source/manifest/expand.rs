//! A Deployment's Pods, without a scheduler: `NAME-0` to `NAME-(n-1)`.

use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

/// Most replicas that one Deployment may ask for here.
pub const MAX_REPLICAS: i32 = 1000;

/// The Pods of a Deployment; `replicas` defaults to 1. They have stable names, so that a changed
/// replica count adds or removes only the last ones.
#[must_use]
pub fn expand(deployment: &Deployment) -> Vec<Pod> {
    let Some(spec) = &deployment.spec else { return Vec::new() };
    let name = deployment.metadata.name.clone().unwrap_or_default();
    let template = spec.template.metadata.clone().unwrap_or_default();
    (0..spec.replicas.unwrap_or(1).clamp(0, MAX_REPLICAS))
        .map(|ordinal| Pod {
            metadata: ObjectMeta {
                name: Some(format!("{name}-{ordinal}")),
                namespace: deployment.metadata.namespace.clone(),
                labels: template.labels.clone(),
                annotations: template.annotations.clone(),
                owner_references: Some(vec![OwnerReference {
                    api_version: "apps/v1".to_owned(),
                    kind: "Deployment".to_owned(),
                    name: name.clone(),
                    uid: deployment.metadata.uid.clone().unwrap_or_default(),
                    controller: Some(true),
                    block_owner_deletion: Some(true),
                }]),
                ..ObjectMeta::default()
            },
            spec: spec.template.spec.clone(),
            status: None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(replicas: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "orders"}},
                "template": {
                    "metadata": {"labels": {"app": "orders"}, "annotations": {"a": "b"}},
                    "spec": {"containers": [{"name": "c"}]}
                }
            }
        }))
        .unwrap()
    }

    #[test]
    fn replicas_become_pods_with_stable_names_and_their_owner() {
        let pods = expand(&deployment(json!(2)));
        let names: Vec<_> = pods.iter().filter_map(|p| p.metadata.name.as_deref()).collect();
        assert_eq!(names, ["orders-0", "orders-1"]);
        let owner = &pods[1].metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("Deployment", "orders"));
        assert_eq!(pods[0].metadata.labels.as_ref().unwrap()["app"], "orders");
        assert_eq!(pods[0].metadata.annotations.as_ref().unwrap()["a"], "b");
        assert_eq!(pods[0].metadata.namespace.as_deref(), Some("shop"));
    }

    #[test]
    fn replicas_default_to_one_and_zero_means_none() {
        assert_eq!(expand(&deployment(serde_json::Value::Null)).len(), 1);
        assert_eq!(expand(&deployment(json!(0))).len(), 0);
    }
}
