//! Namespaces that opted in, and their pods.

use std::collections::BTreeMap;

use remora_core::{
    names::{INJECTOR_SERVICE_ACCOUNT, SYSTEM_NAMESPACE, annotations, labels},
    settings::Inject,
};

use super::{count, named, version, webhook::privileged};
use crate::check::{
    facts::{After, Mesh, NamespaceFacts, PodFacts, ProxyState},
    report::Line,
};

/// Lines of one kind of trouble.
const MAX_LINES: usize = 20;

pub(super) fn lines(after: &After) -> Vec<Line> {
    const CHECK: &str = "namespaces.opted-in";
    let mesh = &after.mesh;
    let mut lines: Vec<Line> = mesh.absent.iter().map(|name| absent(name)).collect();
    let namespaces = match &mesh.namespaces {
        Ok(listed) => listed,
        Err(why) => {
            lines.push(Line::unread(CHECK, "namespaces", why));
            return lines;
        }
    };
    let opted_in: Vec<&str> =
        namespaces.items.iter().filter(|ns| ns.opted_in).map(|ns| ns.name.as_str()).collect();
    let cut =
        if namespaces.cut { " (not all namespaces were looked at; use --namespace)" } else { "" };
    lines.push(if opted_in.is_empty() {
        Line::warning(
            CHECK,
            format!("no namespace has opted in{cut}"),
            format!("kubectl annotate namespace NAME {}=enabled", annotations::INJECT),
        )
    } else {
        let what = count(opted_in.len(), "opted-in namespace");
        Line::ok(CHECK, format!("{what}: {}{cut}", named(&opted_in)))
    });
    for namespace in namespaces.items.iter().filter(|ns| !ns.terminating) {
        lines.extend(annotated(namespace));
        // With an agent on the node, the pods themselves need no capability.
        if !after.injector.has_flag("--redirect-agent") {
            lines.extend(pod_security(namespace, mesh));
        }
    }
    lines.extend(pods(after));
    lines.extend(mesh.refused.iter().map(|(namespace, name, said)| {
        Line::failed(
            "namespaces.refused",
            format!("Deployment {name} in {namespace} cannot make its pods: {said}"),
            if said.contains("violates PodSecurity") {
                privileged(namespace)
            } else {
                format!("kubectl describe replicaset -n {namespace}")
            },
        )
    }));
    lines
}

fn absent(name: &str) -> Line {
    Line::failed(
        "namespaces.opted-in",
        format!("there is no namespace {name}"),
        "name one that is there with --namespace",
    )
}

/// Its annotations, and the label that mirrors one of them.
fn annotated(namespace: &NamespaceFacts) -> Vec<Line> {
    const CHECK: &str = "namespaces.annotations";
    let name = &namespace.name;
    let mut lines = Vec::new();
    if let Some(invalid) = &namespace.invalid {
        let key = invalid.split(':').next().unwrap_or_default().trim_start_matches("annotation ");
        lines.push(Line::failed(
            CHECK,
            format!("namespace {name}: {invalid}"),
            format!("kubectl annotate namespace {name} --overwrite {key}=VALUE"),
        ));
    }
    for warning in &namespace.warnings {
        lines.push(Line::warning(
            CHECK,
            format!("namespace {name}: {warning}"),
            "remove it, or write the one that was meant",
        ));
    }
    let asked = namespace.inject.as_deref().and_then(|value| value.trim().parse::<Inject>().ok());
    let expected = asked.map(|asked| match asked {
        Inject::Enabled => "enabled",
        Inject::Disabled => "disabled",
    });
    // Those that are never injected get no label.
    let never = asked == Some(Inject::Enabled) && !namespace.opted_in;
    if never {
        lines.push(Line::warning(
            CHECK,
            format!("namespace {name} has opted in, but is never injected"),
            format!("kubectl annotate namespace {name} {}-", annotations::INJECT),
        ));
    } else if namespace.label.as_deref() != expected {
        lines.push(mirrored(namespace, expected));
    }
    lines
}

fn mirrored(namespace: &NamespaceFacts, expected: Option<&str>) -> Line {
    const CHECK: &str = "namespaces.label";
    let (name, key) = (&namespace.name, labels::INJECT);
    let has =
        namespace.label.as_ref().map_or("is absent".to_owned(), |label| format!("is {label}"));
    let mend = format!(
        "the injector sets it; see kubectl logs deployment/{INJECTOR_SERVICE_ACCOUNT} -n \
         {SYSTEM_NAMESPACE}"
    );
    match expected {
        Some("enabled") => Line::failed(
            CHECK,
            format!("namespace {name}: label {key} {has}, so new pods get no sidecar"),
            mend,
        ),
        _ => Line::warning(
            CHECK,
            format!("namespace {name}: label {key} {has}, which the annotation does not say"),
            mend,
        ),
    }
}

/// Levels that forbid what the init container needs.
fn pod_security(namespace: &NamespaceFacts, mesh: &Mesh) -> Option<Line> {
    let level = namespace.enforces.as_deref().filter(|level| *level != "privileged")?;
    let pods = || mesh.pods.iter().flat_map(|listed| &listed.items);
    let in_it = || pods().filter(|pod| pod.namespace == namespace.name);
    // A pod's own annotation is enough to need it.
    if !namespace.opted_in && in_it().next().is_none() {
        return None;
    }
    let name = &namespace.name;
    let message =
        format!("namespace {name} enforces Pod Security {level}, which forbids NET_ADMIN");
    let mend = privileged(name);
    let admitted = in_it().any(|pod| matches!(pod.proxy, ProxyState::Meshed { .. }));
    Some(if admitted {
        let message = format!("{message}: pods that have a sidecar are not admitted again");
        Line::warning("namespaces.pod-security", message, mend)
    } else {
        let message = format!("{message}: pods with a sidecar are refused");
        Line::failed("namespaces.pod-security", message, mend)
    })
}

/// Pods without the sidecar they should have, and those whose sidecar is not as it should be.
fn pods(after: &After) -> Vec<Line> {
    const CHECK: &str = "namespaces.pods";
    let pods = match &after.mesh.pods {
        Ok(listed) => listed,
        Err(why) => return vec![Line::unread(CHECK, "pods", why)],
    };
    let mut lines = Vec::new();
    if pods.cut {
        let message = "not all pods were looked at: there are more than this program takes at once";
        lines.push(Line::warning(CHECK, message, "look at some: --namespace NAME"));
    }
    lines.extend(bounded(uninjected(&pods.items)));
    lines.extend(bounded(not_ready(&pods.items)));
    lines.extend(bounded(outdated(after, &pods.items)));
    if lines.is_empty() {
        let meshed = pods.items.iter().filter(|pod| is_meshed(pod)).count();
        lines.push(Line::ok(
            CHECK,
            match meshed {
                0 => "no pod that should have a sidecar is without one".to_owned(),
                n => format!(
                    "{} with a sidecar, all ready and of one version; none is without",
                    count(n, "pod")
                ),
            },
        ));
    }
    lines
}

fn is_meshed(pod: &PodFacts) -> bool {
    matches!(pod.proxy, ProxyState::Meshed { .. })
}

/// A cluster may have the same trouble a thousand times.
fn bounded(mut lines: Vec<Line>) -> Vec<Line> {
    let more = lines.len().saturating_sub(MAX_LINES);
    if more > 0 {
        lines.truncate(MAX_LINES);
        if let Some(last) = lines.last_mut() {
            last.message = format!("{}; the same of {more} more", last.message);
        }
    }
    lines
}

fn uninjected(pods: &[PodFacts]) -> Vec<Line> {
    const CHECK: &str = "namespaces.uninjected";
    let rows = by_workload(pods, |pod| match &pod.proxy {
        ProxyState::Meshed { .. } => None,
        ProxyState::Missing => Some((0, "")),
        ProxyState::Refused(said) => Some((1, said.as_str())),
        ProxyState::Unsuitable(said) => Some((2, said.as_str())),
    });
    rows.into_iter()
        .map(|(((kind, said), owner), pods)| {
            let (place, n) = (place(owner), count(pods.len(), "pod"));
            match kind {
                0 => Line::failed(
                    CHECK,
                    format!("{place}: {n} without the sidecar it should have"),
                    renew(owner),
                ),
                1 => Line::failed(
                    CHECK,
                    format!("{place}: {n} without a sidecar: {said}"),
                    format!("correct the annotation, then: {}", renew(owner)),
                ),
                _ => Line::warning(
                    CHECK,
                    format!("{place}: {said}"),
                    format!(
                        "where that is meant, annotate its pods {}: disabled",
                        annotations::INJECT
                    ),
                ),
            }
        })
        .collect()
}

fn not_ready(pods: &[PodFacts]) -> Vec<Line> {
    const CHECK: &str = "namespaces.not-ready";
    let rows = by_workload(pods, |pod| match &pod.proxy {
        ProxyState::Meshed { ready: false, trouble, .. } => {
            Some((true, trouble.as_deref().unwrap_or("the proxy is not ready yet")))
        }
        ProxyState::Meshed { ready: true, .. } if !pod.ready => Some((false, "")),
        _ => None,
    });
    rows.into_iter()
        .map(|(((proxy, said), owner), pods)| {
            let (place, n) = (place(owner), count(pods.len(), "pod"));
            let (namespace, first) = (owner.namespace, pods.first().map_or("", |pod| &*pod.name));
            if proxy {
                let mend = format!(
                    "kubectl logs {first} -n {namespace} -c remora-proxy, and kubectl describe pod {first} -n {namespace}"
                );
                Line::failed(CHECK, format!("{place}: {n} whose proxy is not ready: {said}"), mend)
            } else {
                Line::warning(
                    CHECK,
                    format!("{place}: {n} not ready, though the proxy is"),
                    format!("the application's own containers: kubectl describe pod {first} -n {namespace}"),
                )
            }
        })
        .collect()
}

/// Proxies of another version than what is installed. One minor version apart is supported.
fn outdated(after: &After, pods: &[PodFacts]) -> Vec<Line> {
    let mut installed: Vec<&String> =
        after.injector.versions.values().chain(after.control_plane.versions.values()).collect();
    installed.sort();
    installed.dedup();
    // During an upgrade there is no one version to compare with.
    let [installed] = installed.as_slice() else { return Vec::new() };
    let rows = by_workload(pods, |pod| match &pod.proxy {
        ProxyState::Meshed { version: Some(version), .. } if version != *installed => {
            Some(version.as_str())
        }
        _ => None,
    });
    rows.into_iter()
        .map(|((running, owner), pods)| {
            let far = match (version(running), version(installed)) {
                (Some((a, b)), Some((c, d))) => a != c || b.abs_diff(d) > 1,
                _ => false,
            };
            let n = pods.len();
            let apart = if far { ", more than one minor version apart" } else { "" };
            let message = format!(
                "{}: {n} {} of version {running}, installed is {installed}{apart}",
                place(owner),
                if n == 1 { "proxy" } else { "proxies" },
            );
            Line::warning("namespaces.versions", message, renew(owner))
        })
        .collect()
}

/// What a pod belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Workload<'a> {
    namespace: &'a str,
    kind: &'a str,
    name: &'a str,
}

/// Pods by what is to be said of them and by workload.
fn by_workload<'a, K: Ord>(
    pods: &'a [PodFacts],
    said: impl Fn(&'a PodFacts) -> Option<K>,
) -> BTreeMap<(K, Workload<'a>), Vec<&'a PodFacts>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for pod in pods {
        if let Some(key) = said(pod) {
            let (kind, name) = (pod.owner.kind.as_str(), pod.owner.name.as_str());
            let workload = Workload { namespace: &pod.namespace, kind, name };
            all.entry((key, workload)).or_default().push(pod);
        }
    }
    all
}

fn place(workload: Workload<'_>) -> String {
    format!("{} {} in {}", workload.kind, workload.name, workload.namespace)
}

/// How a workload comes to new pods.
fn renew(workload: Workload<'_>) -> String {
    let Workload { namespace, kind, name } = workload;
    match kind {
        "Deployment" | "StatefulSet" | "DaemonSet" => {
            format!("kubectl rollout restart {}/{name} -n {namespace}", kind.to_lowercase())
        }
        "ReplicaSet" | "ReplicationController" => {
            format!(
                "delete the pods of {} {name} in {namespace}: it makes new ones",
                kind.to_lowercase()
            )
        }
        "Job" => {
            format!("Job {name}: new Jobs get one; delete this and create it again, or let it end")
        }
        "Pod" => format!("delete pod {name} in {namespace} and create it again"),
        _ => format!("let {kind} {name} in {namespace} make its pods anew"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{judge::fixtures, report::Status};

    #[test]
    fn a_healthy_mesh_has_nothing_to_say() {
        let lines = lines(&fixtures::after());
        assert!(lines.iter().all(|line| line.status == Status::Ok), "{lines:#?}");
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn pods_without_their_sidecar_are_listed_by_workload_with_the_restart() {
        let mut after = fixtures::after();
        let pods = &mut after.mesh.pods.as_mut().unwrap().items;
        for pod in pods.iter_mut() {
            pod.proxy = ProxyState::Missing;
        }
        let lines = pods_lines(&after);
        assert_eq!((lines.len(), lines[0].status), (1, Status::Failed));
        assert_eq!(
            lines[0].message,
            "Deployment web in shop: 2 pods without the sidecar it should have"
        );
        assert_eq!(
            lines[0].mend.as_deref(),
            Some("kubectl rollout restart deployment/web -n shop")
        );
    }

    fn pods_lines(after: &After) -> Vec<Line> {
        super::pods(after)
    }

    #[test]
    fn refused_unsuitable_and_unready_pods_say_why() {
        let mut after = fixtures::after();
        let pods = &mut after.mesh.pods.as_mut().unwrap().items;
        pods[0].proxy = ProxyState::Refused("annotation x: \"y\" is no z (on the pod)".to_owned());
        pods[1].proxy = ProxyState::Unsuitable("no sidecar: hostNetwork".to_owned());
        let judged = pods_lines(&after);
        assert_eq!((judged[0].status, judged[1].status), (Status::Failed, Status::Warning));
        let pods = &mut after.mesh.pods.as_mut().unwrap().items;
        pods[0].proxy = ProxyState::Meshed {
            version: None,
            ready: false,
            trouble: Some("container remora-init: ended".to_owned()),
        };
        let version = Some(env!("CARGO_PKG_VERSION").to_owned());
        pods[1].proxy = ProxyState::Meshed { version, ready: true, trouble: None };
        pods[1].ready = false;
        let judged = pods_lines(&after);
        assert_eq!((judged[0].status, judged[1].status), (Status::Warning, Status::Failed));
        assert!(
            judged[1].message.ends_with("not ready: container remora-init: ended"),
            "{judged:?}"
        );
    }

    #[test]
    fn proxies_of_another_version_are_warned_about() {
        let mut after = fixtures::after();
        let pods = &mut after.mesh.pods.as_mut().unwrap().items;
        pods[0].proxy =
            ProxyState::Meshed { version: Some("9.9.0".to_owned()), ready: true, trouble: None };
        let line = pods_lines(&after).remove(0);
        assert_eq!((line.check, line.status), ("namespaces.versions", Status::Warning));
        assert!(line.message.contains("1 proxy of version 9.9.0"), "{line:?}");
        assert!(line.message.ends_with("more than one minor version apart"), "{line:?}");
    }

    #[test]
    fn a_label_that_does_not_mirror_the_annotation_is_told() {
        let of = |inject: Option<&str>, label: Option<&str>| NamespaceFacts {
            name: "shop".to_owned(),
            inject: inject.map(str::to_owned),
            opted_in: inject == Some("enabled"),
            label: label.map(str::to_owned),
            ..NamespaceFacts::default()
        };
        for (inject, label, status) in [
            (Some("enabled"), Some("enabled"), None),
            (None, None, None),
            (Some("enabled"), None, Some(Status::Failed)),
            (Some("enabled"), Some("disabled"), Some(Status::Failed)),
            (None, Some("enabled"), Some(Status::Warning)),
            (Some("disabled"), Some("enabled"), Some(Status::Warning)),
        ] {
            let lines = annotated(&of(inject, label));
            assert_eq!(lines.first().map(|line| line.status), status, "{inject:?} {label:?}");
        }
    }

    #[test]
    fn a_bad_annotation_of_a_namespace_has_its_key_in_the_mend() {
        let namespace = NamespaceFacts {
            name: "shop".to_owned(),
            inject: Some("true".to_owned()),
            invalid: Some("annotation remora.io/inject: \"true\" is neither".to_owned()),
            ..NamespaceFacts::default()
        };
        let line = annotated(&namespace).remove(0);
        assert_eq!(line.status, Status::Failed);
        assert_eq!(
            line.mend.as_deref(),
            Some("kubectl annotate namespace shop --overwrite remora.io/inject=VALUE")
        );
    }

    #[test]
    fn pod_security_that_refuses_the_sidecar_fails_where_the_namespace_opted_in() {
        let mut after = fixtures::after();
        let mut namespace = after.mesh.namespaces.as_ref().unwrap().items[0].clone();
        namespace.enforces = Some("baseline".to_owned());
        let line = pod_security(&namespace, &after.mesh).unwrap();
        assert_eq!(line.status, Status::Warning, "its pods were admitted before");
        after.mesh.pods.as_mut().unwrap().items.clear();
        let line = pod_security(&namespace, &after.mesh).unwrap();
        assert_eq!(line.status, Status::Failed);
        assert!(line.mend.unwrap().contains("enforce=privileged"));
        namespace.opted_in = false;
        assert_eq!(pod_security(&namespace, &after.mesh), None);
    }

    #[test]
    fn the_same_trouble_a_thousand_times_is_some_lines() {
        let lines = vec![Line::ok("c", "m"); 1000];
        let lines = bounded(lines);
        assert_eq!(lines.len(), MAX_LINES);
        assert_eq!(lines[MAX_LINES - 1].message, "m; the same of 980 more");
    }
}
