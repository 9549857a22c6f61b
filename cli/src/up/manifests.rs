//! The manifests of a directory, as the rest of `up` wants them. They are read by the same code
//! that the control plane reads manifests with, so that both mean the same.

use std::{collections::BTreeMap, path::Path};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use remora_control_plane::{
    index::service_warnings,
    source::manifest::{self, Object},
};
use serde_json::Value;

use super::{ignored::ignored, resolved::value, services::unmatched_ports};

/// Everything a directory asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifests {
    /// Namespaces by name; those that are only used, not described, are there too.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Services.
    pub services: Vec<Service>,
    /// Pods, and those of Deployments.
    pub pods: Vec<Pod>,
    /// Endpoints written by hand, for the control plane.
    pub slices: Vec<EndpointSlice>,
    /// Gateway API's routes and grants as they are written, for the control plane.
    pub routes: Vec<Value>,
    /// What was left out or looks like a slip.
    pub warnings: Vec<String>,
}

/// Namespace and name.
pub type Key = (String, String);

/// Namespace and name of an object.
#[must_use]
pub fn key(meta: &ObjectMeta) -> Key {
    let namespace = meta.namespace.clone().unwrap_or_else(|| "default".into());
    (namespace, meta.name.clone().unwrap_or_default())
}

/// Reads all manifests below a directory.
///
/// # Errors
/// One line for each problem: file, line, what is wrong, the mend.
pub fn load(dir: &Path) -> Result<Manifests, Vec<String>> {
    let objects = manifest::load(&[dir.to_owned()])
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let mut namespaces: BTreeMap<String, Namespace> = objects
        .namespaces()
        .map(|namespace| (key(&namespace.metadata).1, Namespace::clone(namespace)))
        .collect();
    let services: Vec<Service> = objects.services().map(|s| Service::clone(s)).collect();
    let pods: Vec<Pod> = objects.pods().into_values().map(|pod| Pod::clone(&pod)).collect();
    let used = pods.iter().map(|pod| key(&pod.metadata));
    for (name, _) in used.chain(services.iter().map(|service| key(&service.metadata))) {
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let empty = || Namespace { metadata, ..Namespace::default() };
        namespaces.entry(name).or_insert_with(empty);
    }
    let annotations = objects.services().flat_map(service_warnings).map(|w| w.to_string());
    let mut warnings: Vec<String> = objects.warnings.iter().map(ToString::to_string).collect();
    warnings.extend(annotations);
    warnings.extend(unmatched_ports(&services, &pods));
    warnings.extend(ignored(&pods).map(str::to_owned));
    let slices = objects.endpoint_slices().map(|slice| EndpointSlice::clone(slice)).collect();
    let routes = objects.all().values().filter_map(route).collect();
    Ok(Manifests { namespaces, services, pods, slices, routes, warnings })
}

/// A route or a grant as it is written; `None` for anything else.
fn route(object: &Object) -> Option<Value> {
    Some(match object {
        Object::HttpRoute(route) => value(&**route),
        Object::GrpcRoute(route) => value(&**route),
        Object::TlsRoute(route) | Object::TcpRoute(route) => value(&**route),
        Object::ReferenceGrant(grant) => value(&**grant),
        Object::Namespace(_)
        | Object::Service(_)
        | Object::Pod(_)
        | Object::Deployment(_)
        | Object::EndpointSlice(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn dir(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), text).unwrap();
        dir
    }

    #[test]
    fn a_deployment_becomes_its_replicas_in_its_namespace() {
        let dir = dir(concat!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: orders, namespace: shop}\n",
            "spec:\n  replicas: 2\n  selector: {matchLabels: {app: orders}}\n",
            "  template:\n    metadata: {labels: {app: orders}}\n",
            "    spec: {containers: [{name: c, command: [sleep]}]}\n"
        ));
        let manifests = load(dir.path()).unwrap();
        let names: Vec<_> = manifests.pods.iter().map(|pod| key(&pod.metadata)).collect();
        let pod = |name: &str| ("shop".to_owned(), name.to_owned());
        assert_eq!(names, [pod("orders-0"), pod("orders-1")]);
        assert!(manifests.namespaces.contains_key("shop"));
    }

    #[test]
    fn what_a_services_annotations_get_wrong_is_a_warning() {
        let dir = dir(concat!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n",
            "  annotations: {timeout.remora.io/request: soon, retry.remora.io/hhtp: \"503\"}\n",
            "spec: {ports: [{port: 80}]}\n"
        ));
        let warnings = load(dir.path()).unwrap().warnings;
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].starts_with("Service default/web: annotation retry.remora.io/hhtp: "));
        assert!(warnings[1].contains("timeout.remora.io/request: \"soon\""), "{warnings:?}");
    }

    #[test]
    fn routes_and_grants_are_handed_on_as_they_are_written() {
        let route = |kind: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
                 metadata: {{name: split, namespace: shop}}\n\
                 spec:\n  parentRefs: [{{group: '', kind: Service, name: web}}]\n\
                 {}  rules: [{{backendRefs: [{{name: web-v2, port: 80}}]}}]\n---\n",
                if kind == "TLSRoute" { "  hostnames: [web.test]\n" } else { "" }
            )
        };
        let kinds = ["GRPCRoute", "HTTPRoute", "TCPRoute", "TLSRoute"];
        let dir = dir(&kinds.map(route).concat());
        let routes = load(dir.path()).unwrap().routes;
        let mut told: Vec<_> = routes.iter().map(|route| route["kind"].as_str().unwrap()).collect();
        told.sort_unstable();
        assert_eq!(told, kinds);
        for route in routes {
            assert_eq!(route["apiVersion"], "gateway.networking.k8s.io/v1");
            assert_eq!(route["spec"]["parentRefs"][0]["kind"], "Service");
            assert_eq!(route["spec"]["rules"][0]["backendRefs"][0]["name"], "web-v2");
        }
    }

    #[test]
    fn problems_name_the_file() {
        let dir = dir("apiVersion: v1\nkind: Pod\nmetadata: {name: UPPER}\n");
        let problems = load(dir.path()).unwrap_err();
        assert!(problems.iter().all(|problem| problem.contains("a.yaml:")), "{problems:?}");
    }
}
