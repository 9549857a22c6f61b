//! Namespaces, their pods, and what a few of the proxies say of themselves.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Pod},
};
use remora_core::names::{SYSTEM_NAMESPACE, ports};
use remora_injector::{NamespaceInfo, Settings};

use super::system::readiness;
use crate::check::{
    api::{Listed, Read, Reader, Unread, shortened},
    exposition::Exposition,
    facts::{Mesh, NamespaceFacts, PodFacts, ProxyState, Sampled},
    reduce,
};

const MAX_NAMESPACES: usize = 5000;
/// Pods that are looked at, of all namespaces together.
const MAX_PODS: usize = 20_000;
/// Opted-in namespaces whose Deployments are looked at, and Deployments of each.
const MAX_WORKLOADS: usize = 100;
/// Proxies that are asked.
pub(in crate::check) const SAMPLE: usize = 20;

/// Reads the namespaces named, or all.
pub(super) async fn mesh(reader: &Reader, only: &[String]) -> Mesh {
    let settings = Settings::default();
    let (namespaces, absent) = if only.is_empty() {
        let all = |ns: Namespace| Some((reduce::info(&ns), reduce::namespace(&ns, &settings)));
        let path = "/api/v1/namespaces";
        (reader.list(path, "list namespaces", MAX_NAMESPACES, all).await, Vec::new())
    } else {
        named(reader, only, &settings).await
    };
    let (known, facts) = match namespaces {
        Ok(listed) => {
            let (known, facts): (Vec<NamespaceInfo>, Vec<NamespaceFacts>) =
                listed.items.into_iter().unzip();
            let known: BTreeMap<_, _> =
                known.into_iter().map(|info| (info.name.clone(), info)).collect();
            (Ok(known), Ok(Listed { items: facts, cut: listed.cut }))
        }
        Err(why) => (Err(why.clone()), Err(why)),
    };
    let pods = match &known {
        Ok(known) => pods(reader, only, known, &settings).await,
        Err(why) => Err(why.clone()),
    };
    let (refused, sample) = tokio::join!(refused(reader, &facts), sample(reader, &pods));
    Mesh { namespaces: facts, absent, pods, refused, sample }
}

type Known = (NamespaceInfo, NamespaceFacts);

async fn named(
    reader: &Reader,
    names: &[String],
    settings: &Settings,
) -> (Read<Listed<Known>>, Vec<String>) {
    let asked = names.iter().map(|name| async move {
        let path = format!("/api/v1/namespaces/{name}");
        let read: Read<Namespace> = reader.get(&path, "get namespaces").await;
        (name, read)
    });
    let (mut items, mut absent) = (Vec::new(), Vec::new());
    for (name, read) in join_all(asked).await {
        match read {
            Ok(ns) => items.push((reduce::info(&ns), reduce::namespace(&ns, settings))),
            Err(Unread::Absent) => absent.push(name.clone()),
            Err(why) => return (Err(why), absent),
        }
    }
    (Ok(Listed { items, cut: false }), absent)
}

async fn pods(
    reader: &Reader,
    only: &[String],
    known: &BTreeMap<String, NamespaceInfo>,
    settings: &Settings,
) -> Read<Listed<PodFacts>> {
    let of_mesh = |pod: Pod| {
        let ours = pod.metadata.namespace.as_deref() == Some(SYSTEM_NAMESPACE);
        if ours { None } else { reduce::pod(&pod, known, settings) }
    };
    if only.is_empty() {
        return reader.list("/api/v1/pods", "list pods", MAX_PODS, of_mesh).await;
    }
    let mut all = Listed { items: Vec::new(), cut: false };
    for name in known.keys() {
        let (path, need) =
            (format!("/api/v1/namespaces/{name}/pods"), format!("list pods in {name}"));
        let most = MAX_PODS.saturating_sub(all.items.len());
        let listed = reader.list(&path, &need, most, of_mesh).await?;
        all.items.extend(listed.items);
        all.cut |= listed.cut;
    }
    Ok(all)
}

/// Deployments that cannot make their pods. What cannot be read is left out: the pods tell the same.
async fn refused(
    reader: &Reader,
    namespaces: &Read<Listed<NamespaceFacts>>,
) -> Vec<(String, String, String)> {
    let opted_in = namespaces.iter().flat_map(|listed| &listed.items).filter(|ns| ns.opted_in);
    let asked = opted_in.take(MAX_WORKLOADS).map(|ns| async move {
        let path = format!("/apis/apps/v1/namespaces/{}/deployments", ns.name);
        let need = format!("list deployments in {}", ns.name);
        let listed = reader.list(&path, &need, MAX_WORKLOADS, failing).await;
        let rows = listed.map(|listed| listed.items).unwrap_or_default();
        rows.into_iter().map(|(name, said)| (ns.name.clone(), name, said)).collect::<Vec<_>>()
    });
    join_all(asked).await.into_iter().flatten().collect()
}

fn failing(deployment: Deployment) -> Option<(String, String)> {
    let conditions = deployment.status?.conditions?;
    let failure =
        conditions.into_iter().find(|c| c.type_ == "ReplicaFailure" && c.status == "True")?;
    Some((deployment.metadata.name?, shortened(&failure.message.unwrap_or_default())))
}

/// Asks a few proxies, by turns from each namespace.
async fn sample(reader: &Reader, pods: &Read<Listed<PodFacts>>) -> Vec<Sampled> {
    let Ok(pods) = pods else { return Vec::new() };
    let asked = by_turns(&pods.items).into_iter().map(|pod| async move {
        let (ns, name) = (pod.namespace.as_str(), pod.name.as_str());
        let (ready, metrics) = tokio::join!(
            reader.pod(ns, name, ports::PROXY_ADMIN, "/ready"),
            reader.pod(ns, name, ports::PROXY_ADMIN, "/metrics")
        );
        let clock = ready.as_ref().ok().and_then(|answer| answer.clock);
        Sampled {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            node: pod.node.clone(),
            ready: readiness(ready),
            clock,
            metrics: metrics.map(|answer| Exposition::parse(&answer.text())),
        }
    });
    join_all(asked).await
}

/// At most [`SAMPLE`] proxies that run, the first of each namespace before the second of any.
fn by_turns(pods: &[PodFacts]) -> Vec<&PodFacts> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let running =
        pods.iter().filter(|pod| matches!(pod.proxy, ProxyState::Meshed { ready: true, .. }));
    let mut ranked: Vec<(usize, &PodFacts)> = running
        .map(|pod| {
            let turn = seen.entry(&pod.namespace).or_default();
            *turn += 1;
            (*turn, pod)
        })
        .collect();
    ranked.sort_by_key(|(turn, _)| *turn);
    ranked.into_iter().map(|(_, pod)| pod).take(SAMPLE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use remora_injector::Owner;

    #[test]
    fn a_sample_takes_from_every_namespace_before_it_takes_twice() {
        let pod = |namespace: &str, n: usize, ready| PodFacts {
            namespace: namespace.to_owned(),
            name: format!("web-{n}"),
            node: String::new(),
            owner: Owner { kind: "Deployment".to_owned(), name: "web".to_owned() },
            ready,
            proxy: ProxyState::Meshed { version: None, ready, trouble: None },
        };
        let mut pods: Vec<_> = (0..40).map(|n| pod("big", n, true)).collect();
        pods.push(pod("small", 0, true));
        pods.push(pod("ill", 0, false));
        let chosen = by_turns(&pods);
        assert_eq!(chosen.len(), SAMPLE);
        assert_eq!((chosen[0].namespace.as_str(), chosen[1].namespace.as_str()), ("big", "small"));
        assert!(chosen.iter().all(|pod| pod.namespace != "ill"));
    }
}
