//! What the API server says of the mesh's own pods: a chosen part of their status, Events and logs.
//! Environment variables, arguments and volumes are not read on.

use std::io::{self, Write};

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Event, Pod};
use remora_core::names::{PROXY_CONTAINER, SYSTEM_NAMESPACE};
use serde_json::{Value, json};

use super::archive::{Archive, MAX_FILE};
use crate::{
    check::api::{Read, Unread},
    observe::mesh::{AT_A_TIME, Kubernetes, Member},
};

/// Pods and Events that are looked at in a namespace.
const MOST: usize = 1000;
/// Namespaces beside our own whose Events are looked at.
const MAX_NAMESPACES: usize = 20;
/// Lines of each log.
const LINES: usize = 2000;

/// Adds all of it.
///
/// # Errors
/// Where the archive cannot be written.
pub(super) async fn collect(
    archive: &mut Archive<impl Write>,
    cluster: &Kubernetes,
    proxies: &[Member],
) -> io::Result<()> {
    let version: Read<Value> = cluster.reader.get("/version", "get /version").await;
    add(archive, "kubernetes/version.json", version)?;
    let ours = pods(cluster, SYSTEM_NAMESPACE).await;
    let mut logs: Vec<(String, String, String)> = Vec::new();
    for pod in ours.iter().flatten() {
        let name = pod["name"].as_str().unwrap_or_default();
        let containers = pod["containers"].as_array().into_iter().flatten();
        let containers = containers.filter_map(|container| container["name"].as_str());
        logs.extend(
            containers.map(|container| {
                (SYSTEM_NAMESPACE.to_owned(), name.to_owned(), container.to_owned())
            }),
        );
    }
    add(archive, "kubernetes/pods/remora-system.json", ours.map(Value::Array))?;
    let mut namespaces: Vec<&str> = proxies.iter().map(|proxy| proxy.namespace.as_str()).collect();
    namespaces.dedup();
    for namespace in namespaces.iter().skip(MAX_NAMESPACES) {
        archive.leave_out(format!("kubernetes/pods/{namespace}.json"), "too many namespaces");
    }
    namespaces.truncate(MAX_NAMESPACES);
    for namespace in &namespaces {
        let path = format!("kubernetes/pods/{namespace}.json");
        let meshed = pods(cluster, namespace).await.map(|pods| {
            pods.into_iter().filter(|pod| proxies.iter().any(|proxy| pod["name"] == proxy.pod))
        });
        add(archive, &path, meshed.map(Iterator::collect))?;
    }
    for namespace in std::iter::once(&SYSTEM_NAMESPACE).chain(&namespaces) {
        let path = format!("kubernetes/events/{namespace}.json");
        add(archive, &path, events(cluster, namespace, proxies).await)?;
    }
    let of_proxies = proxies
        .iter()
        .map(|proxy| (proxy.namespace.clone(), proxy.pod.clone(), PROXY_CONTAINER.to_owned()));
    logs.extend(of_proxies);
    let read = stream::iter(logs).map(|(namespace, pod, container)| async move {
        let path = format!(
            "/api/v1/namespaces/{namespace}/pods/{pod}/log?container={container}&tailLines={LINES}\
             &limitBytes={MAX_FILE}"
        );
        let need = format!("get pods/log in {namespace}");
        let text = cluster.reader.text(&path, &need).await;
        (format!("kubernetes/logs/{namespace}/{pod}/{container}.log"), text)
    });
    let mut read = std::pin::pin!(read.buffer_unordered(AT_A_TIME));
    while let Some((path, text)) = read.next().await {
        match text {
            Ok(text) => archive.text(&path, &text)?,
            Err(why) => archive.leave_out(path, why),
        }
    }
    Ok(())
}

fn add(archive: &mut Archive<impl Write>, path: &str, value: Read<Value>) -> io::Result<()> {
    match value {
        Ok(value) => archive.json(path, value),
        Err(why) => {
            archive.leave_out(path, why);
            Ok(())
        }
    }
}

async fn pods(cluster: &Kubernetes, namespace: &str) -> Result<Vec<Value>, Unread> {
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let need = format!("list pods in {namespace}");
    Ok(cluster.reader.list(&path, &need, MOST, |pod| Some(of_pod(pod))).await?.items)
}

/// What counts of a pod.
fn of_pod(pod: Pod) -> Value {
    let spec = pod.spec.unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    let inits = spec.init_containers.into_iter().flatten();
    let containers: Vec<Value> = inits
        .chain(spec.containers)
        .map(|container| {
            json!({ "name": container.name, "image": container.image,
                    "resources": container.resources, "restartPolicy": container.restart_policy })
        })
        .collect();
    let ours = |key: &String| key.contains("remora.io/");
    let annotations = pod.metadata.annotations.unwrap_or_default();
    let annotations: serde_json::Map<String, Value> =
        annotations.into_iter().filter(|(key, _)| ours(key)).map(|(k, v)| (k, v.into())).collect();
    let inits = status.init_container_statuses.into_iter().flatten();
    let statuses = inits.chain(status.container_statuses.into_iter().flatten()).map(|status| {
        json!({ "name": status.name, "ready": status.ready, "started": status.started,
                "restartCount": status.restart_count, "state": status.state,
                "lastState": status.last_state, "imageID": status.image_id })
    });
    json!({ "namespace": pod.metadata.namespace, "name": pod.metadata.name,
            "creationTimestamp": pod.metadata.creation_timestamp,
            "deletionTimestamp": pod.metadata.deletion_timestamp,
            "annotations": annotations, "nodeName": spec.node_name, "containers": containers,
            "phase": status.phase, "reason": status.reason, "message": status.message,
            "podIPs": status.pod_ips, "startTime": status.start_time,
            "conditions": status.conditions, "containerStatuses": statuses.collect::<Vec<_>>() })
}

/// Events of our namespace, and elsewhere those that are about meshed pods or written by us.
async fn events(cluster: &Kubernetes, namespace: &str, proxies: &[Member]) -> Read<Value> {
    let path = format!("/api/v1/namespaces/{namespace}/events");
    let need = format!("list events in {namespace}");
    let ours = |event: Event| {
        let by = event.reporting_component.clone().unwrap_or_default();
        let source = event.source.as_ref().and_then(|source| source.component.clone());
        let about = event.involved_object.name.clone().unwrap_or_default();
        let counts = namespace == SYSTEM_NAMESPACE
            || by.contains("remora")
            || source.as_ref().is_some_and(|source| source.contains("remora"))
            || proxies.iter().any(|proxy| proxy.namespace == namespace && proxy.pod == about);
        counts.then(|| {
            json!({ "type": event.type_, "reason": event.reason, "message": event.message,
                    "count": event.count, "firstTimestamp": event.first_timestamp,
                    "lastTimestamp": event.last_timestamp, "eventTime": event.event_time,
                    "reportingComponent": by, "source": source,
                    "object": { "kind": event.involved_object.kind, "name": about } })
        })
    };
    Ok(Value::Array(cluster.reader.list(&path, &need, MOST, ours).await?.items))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_pod_nothing_is_kept_that_its_owner_wrote_for_itself() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "web-0", "namespace": "shop",
                "annotations": { "remora.io/proxy-version": "0.1.0", "owner.example/note": "PLANTED" } },
            "spec": { "nodeName": "node1", "volumes": [{ "name": "PLANTED" }],
                "containers": [{ "name": "app", "image": "web:1", "args": ["PLANTED"],
                    "command": ["PLANTED"], "env": [{ "name": "A", "value": "PLANTED" }] }] },
            "status": { "phase": "Running", "containerStatuses": [{ "name": "app", "ready": true,
                "restartCount": 3, "image": "", "imageID": "" }] } }))
        .unwrap();
        let kept = of_pod(pod);
        assert!(!kept.to_string().contains("PLANTED"), "{kept}");
        assert_eq!(kept["annotations"]["remora.io/proxy-version"], "0.1.0");
        assert_eq!(kept["containerStatuses"][0]["restartCount"], 3);
    }
}
