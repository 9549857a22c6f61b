//! Pods created for trial: the API server calls the webhook and stores nothing (`dryRun=All`).

use std::time::Duration;

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use remora_core::names::annotations;
use remora_injector::inject::PROXY_CONTAINER;
use serde_json::{Value, json};

use crate::check::{
    api::{Answer, Read, Reader, Unread},
    facts::{Mesh, NamespaceFacts, Trial, TrialOutcome},
};

/// One pod that asks for itself, in `default`, and one in an opted-in namespace, where there is one.
pub(super) async fn trials(reader: &Reader, mesh: &Mesh) -> Vec<Trial> {
    let by_namespace = mesh.namespaces.as_ref().ok().and_then(|listed| {
        let usable = |ns: &&NamespaceFacts| {
            ns.opted_in && !ns.terminating && ns.invalid.is_none() && ns.label.is_some()
        };
        let open =
            |ns: &NamespaceFacts| matches!(ns.enforces.as_deref(), None | Some("privileged"));
        let mut candidates = listed.items.iter().filter(usable);
        let first = candidates.clone().next();
        candidates.find(|ns| open(ns)).or(first).map(|ns| ns.name.clone())
    });
    let wanted =
        [("default".to_owned(), true)].into_iter().chain(by_namespace.map(|name| (name, false)));
    join_all(wanted.map(|(namespace, by_pod)| trial(reader, namespace, by_pod))).await
}

async fn trial(reader: &Reader, namespace: String, by_pod: bool) -> Trial {
    let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
    let answer = reader.create(&path, &pod(by_pod)).await;
    let took = answer.as_ref().map_or(Duration::ZERO, |answer| answer.took);
    let outcome = answer.and_then(|answer| outcome(&answer, &namespace));
    Trial { namespace, by_pod, outcome, took }
}

/// As harmless as a pod can be, so that nothing but the webhook has a reason to refuse it.
fn pod(by_pod: bool) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "generateName": "remora-check-", "annotations": {} },
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": { "runAsNonRoot": true, "runAsUser": 65_534,
                                 "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "app", "image": "remora-check:never-pulled",
                "resources": { "requests": { "cpu": "1m", "memory": "1Mi" },
                               "limits": { "cpu": "1m", "memory": "1Mi" } },
                "securityContext": { "allowPrivilegeEscalation": false,
                                     "capabilities": { "drop": ["ALL"] } },
            }],
        },
    });
    if by_pod {
        pod["metadata"]["annotations"][annotations::INJECT] = json!("enabled");
    }
    pod
}

fn outcome(answer: &Answer, namespace: &str) -> Read<TrialOutcome> {
    if answer.status.is_success() {
        let pod: Pod = answer.parse()?;
        let spec = pod.spec.unwrap_or_default();
        let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let injected = containers.any(|container| container.name == PROXY_CONTAINER);
        return Ok(if injected { TrialOutcome::Injected } else { TrialOutcome::Plain });
    }
    let said = answer.refusal().unwrap_or_else(|| format!("HTTP {}", answer.status.as_u16()));
    if answer.status.as_u16() == 403 && said.contains("cannot create resource") {
        return Err(Unread::Forbidden { need: format!("create pods in {namespace}") });
    }
    Ok(TrialOutcome::Refused(said))
}
