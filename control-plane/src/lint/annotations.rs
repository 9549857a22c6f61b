//! Annotations: what the index warns of, and what nobody reads where it stands.

use std::collections::BTreeMap;

use remora_core::{
    names::annotations::{
        BALANCER_PREFIX, CONFIG, CONFIG_PREFIX, FAULT_PREFIX, INJECT, OPAQUE_PORTS, RETRY_PREFIX,
        TIMEOUT_PREFIX,
    },
    settings::{Inject, read},
};

use super::{Report, Rule};
use crate::{
    index::{Warning, policy::is_left},
    source::{Key, Kind},
};

pub(super) fn check(report: &mut Report<'_>, warnings: &[Warning]) {
    for warning in warnings {
        let (object, at) = written_in(report, &warning.object);
        let annotation = &warning.annotation;
        let rule =
            if is_left(annotation) { Rule::AnnotationValue } else { Rule::AnnotationIgnored };
        let mend = "correct or remove it";
        report.add_own(rule, &object, field(at, &annotation.key), annotation.problem.clone(), mend);
    }
    let objects = report.objects;
    for (key, object) in objects.all() {
        let Some(annotations) = &object.metadata().annotations else { continue };
        match key.kind {
            Kind::Namespace => of_pods(report, key, "", annotations),
            Kind::Service => of_service(report, key, annotations),
            Kind::Deployment => of_deployment(report, key, annotations),
            _ => {}
        }
    }
    let pods = report.workloads.iter().map(|workload| {
        let annotations = workload.pod.metadata.annotations.clone().unwrap_or_default();
        (workload.object.clone(), workload.at, annotations)
    });
    for (key, at, annotations) in pods.collect::<Vec<_>>() {
        of_pods(report, &key, at, &annotations);
    }
}

/// Where a pod of a Deployment is written.
fn written_in(report: &Report<'_>, object: &Key) -> (Key, &'static str) {
    if object.kind != Kind::Pod || report.objects.origin(object).is_some() {
        return (object.clone(), "");
    }
    // `NAME-0` to `NAME-(n-1)`, all alike.
    let deployment = object.name.rsplit_once('-').map_or("", |(name, _)| name);
    let name = deployment.to_owned();
    (Key { kind: Kind::Deployment, namespace: object.namespace.clone(), name }, "spec.template.")
}

fn field(at: &str, key: &str) -> String {
    format!("{at}metadata.annotations[{key}]")
}

/// On a Namespace or a pod.
fn of_pods(report: &mut Report<'_>, key: &Key, at: &str, annotations: &BTreeMap<String, String>) {
    if let Err(bad) = read(annotations, INJECT, str::parse::<Inject>) {
        let problem = format!("{}; it is as if it were not there", bad.problem);
        report.add_own(
            Rule::AnnotationValue,
            key,
            field(at, INJECT),
            problem,
            "correct or remove it",
        );
    }
    for name in annotations.keys() {
        if name.starts_with(CONFIG_PREFIX) && !CONFIG.contains(&name.as_str()) {
            let known: Vec<&str> =
                CONFIG.iter().filter_map(|key| key.strip_prefix(CONFIG_PREFIX)).collect();
            let problem =
                format!("unknown, ignored; known under {CONFIG_PREFIX}: {}", known.join(", "));
            let mend = "correct or remove it";
            report.add_own(Rule::AnnotationIgnored, key, field(at, name), problem, mend);
        }
        let policies = [BALANCER_PREFIX, RETRY_PREFIX, TIMEOUT_PREFIX, FAULT_PREFIX];
        if policies.iter().any(|prefix| name.starts_with(prefix)) {
            let problem = "is read on Services and routes, and has no effect here";
            let mend = "put it on the Service or on a route";
            report.add_own(Rule::AnnotationIgnored, key, field(at, name), problem, mend);
        }
    }
}

fn of_service(report: &mut Report<'_>, key: &Key, annotations: &BTreeMap<String, String>) {
    for name in annotations.keys() {
        let (problem, mend) = if name.starts_with(FAULT_PREFIX) {
            ("is read on routes, and has no effect on a Service", "put it on a route")
        } else if name == INJECT || name.starts_with(CONFIG_PREFIX) && name != OPAQUE_PORTS {
            ("has no effect on a Service", "put it on the pod template or on the Namespace")
        } else {
            continue;
        };
        report.add_own(Rule::AnnotationIgnored, key, field("", name), problem, mend);
    }
}

/// On the Deployment itself, where no pod has it.
fn of_deployment(report: &mut Report<'_>, key: &Key, annotations: &BTreeMap<String, String>) {
    for name in annotations.keys() {
        if name == INJECT || name.starts_with(CONFIG_PREFIX) {
            let problem = "is on the Deployment, where its pods do not get it";
            let mend = "move it to spec.template.metadata.annotations";
            report.add_own(Rule::AnnotationIgnored, key, field("", name), problem, mend);
        }
    }
}
