//! Services and the pods behind them.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec},
        core::v1::{Pod, Service},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Report, Rule};
use crate::source::{
    Key, Kind,
    manifest::{
        Objects,
        endpoints::{named_port, selected},
        expand,
    },
};

/// A pod, and the object that it is written in.
pub(super) struct Workload {
    /// The Pod or its Deployment.
    pub(super) object: Key,
    /// Path of the pod in that object, with a dot at its end unless it is empty.
    pub(super) at: &'static str,
    pub(super) pod: Arc<Pod>,
}

/// All Pods, and one of each Deployment, even one that has no replicas for now.
pub(super) fn workloads(objects: &Objects) -> Vec<Workload> {
    let one = |deployment: &Arc<Deployment>| {
        let spec = deployment.spec.clone()?;
        let spec = DeploymentSpec { replicas: Some(1), ..spec };
        let one = Deployment { spec: Some(spec), ..Deployment::clone(deployment) };
        let pod = Arc::new(expand(&one).into_iter().next()?);
        let object = key(Kind::Deployment, &deployment.metadata);
        Some(Workload { object, at: "spec.template.", pod })
    };
    let of_deployments = objects.deployments().filter_map(one);
    let pods = objects.all().iter().filter_map(|(key, object)| match object {
        crate::source::manifest::Object::Pod(pod) => {
            Some(Workload { object: key.clone(), at: "", pod: Arc::clone(pod) })
        }
        _ => None,
    });
    of_deployments.chain(pods).collect()
}

pub(super) fn check(report: &mut Report<'_>) {
    let objects = report.objects;
    for service in objects.services() {
        let Some(spec) = &service.spec else { continue };
        let Some(selector) = spec.selector.as_ref().filter(|selector| !selector.is_empty()) else {
            continue;
        };
        if spec.type_.as_deref() == Some("ExternalName") {
            continue;
        }
        let key = key(Kind::Service, &service.metadata);
        let pods = report.workloads.iter().filter(|workload| {
            workload.object.namespace == key.namespace && selected(&workload.pod, selector)
        });
        let pods: Vec<Arc<Pod>> = pods.map(|workload| Arc::clone(&workload.pod)).collect();
        if pods.is_empty() {
            let labels: Vec<String> = selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let problem = format!(
                "no Pod or Deployment of these files in namespace {} has the labels {}",
                key.namespace,
                labels.join(", ")
            );
            let mend =
                "correct the selector or the labels; nothing to do if the pods are elsewhere";
            report.add(Rule::SelectorMatchesNoPod, &key, "spec.selector", problem, mend);
        } else {
            target_ports(report, &key, service, &pods);
        }
    }
}

fn target_ports(report: &mut Report<'_>, key: &Key, service: &Service, pods: &[Arc<Pod>]) {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    for (i, port) in ports.enumerate() {
        let Some(IntOrString::String(name)) = &port.target_port else { continue };
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if pods.iter().any(|pod| named_port(pod, name, protocol).is_some()) {
            continue;
        }
        let containers =
            pods.iter().filter_map(|pod| pod.spec.as_ref()).flat_map(|s| &s.containers);
        let names: BTreeSet<&str> = containers
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(|port| port.name.as_deref())
            .collect();
        let has = names.into_iter().collect::<Vec<_>>().join(", ");
        let has = if has.is_empty() { "none" } else { &has };
        let problem = format!(
            "{name:?} is the name of no {protocol} port of the pods it selects (they have: {has}), \
             so that port {} leads nowhere",
            port.port
        );
        let field = format!("spec.ports[{i}].targetPort");
        let mend = "correct it, or name the container's port";
        report.add(Rule::TargetPortUnknown, key, field, problem, mend);
    }
}

fn key(kind: Kind, meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Key {
    let namespace = meta.namespace.clone().unwrap_or_else(|| "default".to_owned());
    Key { kind, namespace, name: meta.name.clone().unwrap_or_default() }
}
