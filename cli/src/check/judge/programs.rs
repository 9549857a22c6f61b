//! Our own Deployments and what belongs to them.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::Pod,
};
use remora_core::names::SYSTEM_NAMESPACE;

use super::{count, named, version};
use crate::check::{
    api::Read,
    facts::{After, Program},
    gather::is_ready,
    reduce::waiting,
    report::Line,
};

const INSTALL: &str = "install again: remora install | kubectl apply -f -";

pub(super) fn lines(after: &After) -> Vec<Line> {
    let programs = [&after.control_plane, &after.injector];
    let mut lines = Vec::new();
    match &after.namespace {
        Ok(namespace) if namespace.metadata.deletion_timestamp.is_some() => {
            lines.push(Line::failed(
                "programs.namespace",
                format!("namespace {SYSTEM_NAMESPACE} is being deleted"),
                "wait until it is gone, then install again; remora uninstall removes the rest",
            ));
        }
        Ok(_) => {}
        Err(why) => {
            let what = format!("namespace {SYSTEM_NAMESPACE}");
            lines.push(Line::unread("programs.namespace", &what, why));
        }
    }
    for program in programs {
        lines.push(deployment(program));
        lines.extend(pods(program, after));
        lines.push(service(program));
        lines.push(budget(program));
    }
    lines.extend(after.agents.as_ref().map(agents));
    lines.push(versions(programs));
    lines
}

/// A node without its agent starts no pod with a sidecar.
fn agents(set: &Read<DaemonSet>) -> Line {
    const CHECK: &str = "programs.redirect-agent";
    let status = match set {
        Ok(set) => set.status.clone().unwrap_or_default(),
        Err(why) => return Line::unread(CHECK, "DaemonSet remora-redirect-agent", why),
    };
    let (ready, wanted) = (status.number_ready, status.desired_number_scheduled);
    let said = format!("remora-redirect-agent: ready on {ready} of {wanted} nodes");
    if ready < wanted {
        let mend = format!(
            "pods with a sidecar wait on the other nodes: kubectl get pods -n {SYSTEM_NAMESPACE} \
             -o wide -l app.kubernetes.io/component=redirect-agent"
        );
        return Line::failed(CHECK, said, mend);
    }
    Line::ok(CHECK, said)
}

fn deployment(program: &Program) -> Line {
    const CHECK: &str = "programs.deployment";
    let name = program.name;
    let deployment = match &program.deployment {
        Ok(deployment) => deployment,
        Err(why) => return Line::unread(CHECK, &format!("Deployment {name}"), why),
    };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let ready = status.ready_replicas.unwrap_or(0);
    let updated = status.updated_replicas.unwrap_or(0);
    let image = image(deployment);
    if wanted == 0 {
        let mend = format!("kubectl scale deployment/{name} -n {SYSTEM_NAMESPACE} --replicas=2");
        return Line::failed(CHECK, format!("{name} is scaled to 0"), mend);
    }
    let cause = condition(deployment, "ReplicaFailure", "True")
        .or_else(|| condition(deployment, "Progressing", "False"))
        .map(|said| format!(": {said}"))
        .unwrap_or_default();
    let mend = format!("kubectl describe deployment/{name} -n {SYSTEM_NAMESPACE}");
    if ready == 0 {
        return Line::failed(CHECK, format!("{name}: none of {wanted} ready{cause}"), mend);
    }
    if ready < wanted || updated < wanted {
        let said =
            format!("{name}: {ready} of {wanted} ready, {updated} of them as last applied{cause}");
        return Line::warning(CHECK, said, mend);
    }
    let mut running: Vec<&str> = program.versions.values().map(String::as_str).collect();
    running.sort_unstable();
    running.dedup();
    let version = match running.as_slice() {
        [] => String::new(),
        all => format!(", version {}", all.join(" and ")),
    };
    Line::ok(CHECK, format!("{name}: {ready} of {wanted} ready{version}, image {image}"))
}

fn image(deployment: &Deployment) -> String {
    let spec = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let first = spec.and_then(|spec| spec.containers.first());
    first.and_then(|container| container.image.clone()).unwrap_or_default()
}

fn condition(deployment: &Deployment, kind: &str, status: &str) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|c| c.type_ == kind && c.status == status)?;
    found.message.as_deref().map(crate::check::api::shortened)
}

/// Our pods that are not well, one line each.
fn pods(program: &Program, after: &After) -> Vec<Line> {
    const CHECK: &str = "programs.pods";
    let pods = match &program.pods {
        Ok(listed) => &listed.items,
        Err(why) => {
            return vec![Line::unread(CHECK, &format!("the pods of {}", program.name), why)];
        }
    };
    pods.iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .filter_map(|pod| {
            let name = pod.metadata.name.as_deref()?;
            let ready = is_ready(pod);
            if ready {
                return restarts(pod, name);
            }
            let (cause, mend) = trouble(pod, name).unwrap_or_else(|| {
                let said =
                    after.warnings.get(name).cloned().unwrap_or_else(|| "not ready".to_owned());
                (said, format!("kubectl logs {name} -n {SYSTEM_NAMESPACE}"))
            });
            Some(Line::failed(CHECK, format!("pod {name}: {cause}"), mend))
        })
        .collect()
}

fn restarts(pod: &Pod, name: &str) -> Option<Line> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let status = statuses.iter().find(|status| status.restart_count > 0)?;
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let why = last.map(|ended| {
        let reason = ended.reason.as_deref().unwrap_or("ended");
        format!(", last {reason} with exit code {}", ended.exit_code)
    });
    let mend = if last.and_then(|ended| ended.reason.as_deref()) == Some("OOMKilled") {
        format!("raise the memory limit of Deployment {}", owner(name))
    } else {
        format!("kubectl logs {name} -n {SYSTEM_NAMESPACE} --previous")
    };
    let times = count(usize::try_from(status.restart_count).unwrap_or(0), "time");
    Some(Line::warning(
        "programs.pods",
        format!("pod {name} is ready, but was restarted {times}{}", why.unwrap_or_default()),
        mend,
    ))
}

/// The Deployment by its pod's name, which ends in two hashes.
fn owner(pod: &str) -> &str {
    pod.rsplitn(3, '-').nth(2).unwrap_or(pod)
}

/// What keeps a pod from running, and the mend.
fn trouble(pod: &Pod, name: &str) -> Option<(String, String)> {
    let status = pod.status.as_ref()?;
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        let said = condition.message.clone().unwrap_or_default();
        let mend = "give a node room for it, or let it go to more nodes (taints, selectors)";
        return Some((format!("no node takes it: {said}"), mend.to_owned()));
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses);
    let said = containers.flatten().find_map(waiting)?;
    let mend = if said.contains("ImagePull") || said.contains("ErrImageNeverPull") {
        "load the image into the nodes, or install with --image REGISTRY/NAME:TAG".to_owned()
    } else if said.contains("CrashLoopBackOff") || said.contains("exit code") {
        format!("kubectl logs {name} -n {SYSTEM_NAMESPACE} --previous")
    } else {
        format!("kubectl describe pod {name} -n {SYSTEM_NAMESPACE}")
    };
    Some((said, mend))
}

fn service(program: &Program) -> Line {
    const CHECK: &str = "programs.service";
    let name = program.name;
    if let Err(why) = &program.service {
        return Line::unread(CHECK, &format!("Service {name}"), why);
    }
    let slices = match &program.slices {
        Ok(listed) => &listed.items,
        Err(why) => return Line::unread(CHECK, &format!("endpoints of Service {name}"), why),
    };
    // A pod of two address families is in two slices.
    let ready: BTreeSet<&str> = slices
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .filter(|endpoint| endpoint.conditions.as_ref().is_none_or(|c| c.ready != Some(false)))
        .filter_map(|endpoint| endpoint.target_ref.as_ref()?.name.as_deref())
        .collect();
    if ready.is_empty() {
        let mend = format!(
            "see the lines about its pods; where they are ready, {INSTALL}, so that the Service's \
             selector is as it was"
        );
        return Line::failed(CHECK, format!("Service {name} has no ready endpoint"), mend);
    }
    Line::ok(CHECK, format!("Service {name} has {}", count(ready.len(), "ready endpoint")))
}

fn budget(program: &Program) -> Line {
    const CHECK: &str = "programs.disruption-budget";
    let name = program.name;
    let replicas = program.deployment.as_ref().ok().and_then(|d| d.spec.as_ref()?.replicas);
    match &program.budget {
        Ok(_) => Line::ok(CHECK, format!("{name} has a PodDisruptionBudget")),
        Err(crate::check::api::Unread::Absent) => Line::warning(
            CHECK,
            format!(
                "{name} ({}) has no PodDisruptionBudget: a drain of nodes may end all at once",
                count(usize::try_from(replicas.unwrap_or(1)).unwrap_or(0), "replica")
            ),
            INSTALL,
        ),
        Err(why) => Line::unread(CHECK, &format!("PodDisruptionBudget of {name}"), why),
    }
}

/// Both programs of one version, and this one not more than a minor version away.
fn versions(programs: [&Program; 2]) -> Line {
    const CHECK: &str = "programs.versions";
    let own = env!("CARGO_PKG_VERSION");
    let mut running: Vec<&String> = programs.iter().flat_map(|p| p.versions.values()).collect();
    running.sort();
    running.dedup();
    match running.as_slice() {
        [] => Line::skipped(CHECK, "versions not checked: no program of ours says its own"),
        [one] => match (version(one), version(own)) {
            (Some((major, minor)), Some((our_major, our_minor)))
                if major != our_major || minor.abs_diff(our_minor) > 1 =>
            {
                Line::failed(
                    CHECK,
                    format!("the cluster has version {one}, this program is {own}"),
                    format!(
                        "use the remora of version {one}, or upgrade one minor version at a time"
                    ),
                )
            }
            _ if *one == own => Line::ok(CHECK, format!("all of version {own}, as this program")),
            _ => {
                Line::ok(CHECK, format!("all of version {one}; this program is {own}, which fits"))
            }
        },
        several => {
            let names: Vec<&str> = several.iter().map(|v| v.as_str()).collect();
            Line::warning(
                CHECK,
                format!("programs of several versions run: {}", named(&names)),
                format!(
                    "wait for the rollout: kubectl rollout status deployment -n {SYSTEM_NAMESPACE}"
                ),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{judge::fixtures, report::Status};
    use serde_json::json;

    #[test]
    fn a_healthy_install_has_nothing_to_say() {
        let lines = lines(&fixtures::after());
        assert!(lines.iter().all(|line| line.status == Status::Ok), "{lines:#?}");
    }

    #[test]
    fn what_is_not_there_fails_with_the_mend() {
        let mut after = fixtures::after();
        after.injector.deployment = Err(crate::check::api::Unread::Absent);
        let line = deployment(&after.injector);
        assert_eq!(line.status, Status::Failed);
        assert_eq!(line.message, "Deployment remora-injector is not there");
        assert!(line.mend.unwrap().contains("remora install"));
    }

    #[test]
    fn replicas_that_are_not_ready_are_told_with_the_deployments_words() {
        let mut after = fixtures::after();
        let deployment_of = |ready: i32| {
            serde_json::from_value(json!({
                "spec": { "replicas": 2, "selector": {}, "template": {} },
                "status": { "readyReplicas": ready, "updatedReplicas": 2, "conditions": [
                    { "type": "ReplicaFailure", "status": "True", "message": "exceeded quota" } ] },
            }))
            .unwrap()
        };
        after.injector.deployment = Ok(deployment_of(0));
        let line = deployment(&after.injector);
        assert_eq!(line.status, Status::Failed);
        assert_eq!(line.message, "remora-injector: none of 2 ready: exceeded quota");
        after.injector.deployment = Ok(deployment_of(1));
        assert_eq!(deployment(&after.injector).status, Status::Warning);
    }

    #[test]
    fn a_pod_says_why_it_does_not_run() {
        for (status, cause, mend) in [
            (
                json!({ "conditions": [{ "type": "PodScheduled", "status": "False",
                                         "message": "0/3 nodes are available" }] }),
                "no node takes it: 0/3 nodes are available",
                "taints",
            ),
            (
                json!({ "containerStatuses": [{ "name": "injector", "ready": false, "image": "",
                    "imageID": "", "restartCount": 0,
                    "state": { "waiting": { "reason": "ImagePullBackOff" } } }] }),
                "container injector: ImagePullBackOff",
                "--image",
            ),
            (
                json!({ "containerStatuses": [{ "name": "injector", "ready": false, "image": "",
                    "imageID": "", "restartCount": 4,
                    "state": { "waiting": { "reason": "CrashLoopBackOff" } } }] }),
                "container injector: CrashLoopBackOff",
                "--previous",
            ),
        ] {
            let mut after = fixtures::after();
            after.injector.pods = Ok(fixtures::pods(&[("remora-injector-5d-x", status)]));
            let line = pods(&after.injector, &after).remove(0);
            assert_eq!(line.message, format!("pod remora-injector-5d-x: {cause}"));
            assert!(line.mend.as_ref().unwrap().contains(mend), "{line:?}");
        }
    }

    #[test]
    fn a_pod_that_says_nothing_is_told_by_its_last_event() {
        let mut after = fixtures::after();
        after.injector.pods = Ok(fixtures::pods(&[("a", json!({ "phase": "Pending" }))]));
        after.warnings.insert("a".to_owned(), "FailedMount: no Secret".to_owned());
        assert_eq!(pods(&after.injector, &after)[0].message, "pod a: FailedMount: no Secret");
    }

    #[test]
    fn restarts_for_want_of_memory_name_the_limit() {
        let mut after = fixtures::after();
        after.injector.pods = Ok(fixtures::pods(&[(
            "remora-injector-5d-x",
            json!({
            "conditions": [{ "type": "Ready", "status": "True" }],
            "containerStatuses": [{ "name": "injector", "ready": true, "image": "", "imageID": "",
                "restartCount": 2, "lastState": { "terminated": { "reason": "OOMKilled",
                "exitCode": 137 } } }] }),
        )]));
        let line = pods(&after.injector, &after).remove(0);
        assert_eq!(line.status, Status::Warning);
        assert!(line.message.contains("restarted 2 times, last OOMKilled"), "{line:?}");
        assert_eq!(line.mend.unwrap(), "raise the memory limit of Deployment remora-injector");
    }

    #[test]
    fn a_service_without_ready_endpoints_fails() {
        let mut after = fixtures::after();
        after.injector.slices = Ok(fixtures::slices(&[("a", false)]));
        assert_eq!(service(&after.injector).status, Status::Failed);
    }

    #[test]
    fn a_node_without_its_redirect_agent_fails() {
        let status = |ready: i32| {
            let json = serde_json::json!({ "status": {
                "numberReady": ready, "desiredNumberScheduled": 2,
                "currentNumberScheduled": 2, "numberMisscheduled": 0 } });
            serde_json::from_value::<DaemonSet>(json).unwrap()
        };
        assert_eq!(agents(&Ok(status(2))).status, crate::check::report::Status::Ok);
        let line = agents(&Ok(status(1)));
        assert_eq!(line.status, crate::check::report::Status::Failed);
        assert!(line.message.contains("1 of 2"), "{}", line.message);
    }

    #[test]
    fn versions_may_differ_by_one_minor_version() {
        let judged = |running: &[&str]| {
            let mut after = fixtures::after();
            after.injector.versions.clear();
            after.control_plane.versions =
                running.iter().map(|v| (format!("pod of {v}"), (*v).to_owned())).collect();
            versions([&after.control_plane, &after.injector]).status
        };
        let (major, minor) = version(env!("CARGO_PKG_VERSION")).unwrap();
        let at = |minor: u64| format!("{major}.{minor}.7");
        assert_eq!(judged(&[env!("CARGO_PKG_VERSION")]), Status::Ok);
        assert_eq!(judged(&[&at(minor + 1)]), Status::Ok);
        assert_eq!(judged(&[&at(minor + 2)]), Status::Failed);
        assert_eq!(judged(&[&at(minor), &at(minor + 1)]), Status::Warning);
        assert_eq!(judged(&[]), Status::Skipped);
    }
}
