//! The manifests of a directory, as the rest of `up` wants them: Deployments expanded into Pods,
//! namespaces filled in, each object with the file it came from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Namespace, Pod, Service},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// An object and the file it came from.
#[derive(Debug, Clone)]
pub struct Sourced<T> {
    /// The object, its namespace filled in.
    pub object: T,
    /// Where it was read.
    pub file: PathBuf,
}

/// Everything a directory asks for.
#[derive(Debug, Clone, Default)]
pub struct Manifests {
    /// Namespaces by name; those that are only used, not described, are there too.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Services.
    pub services: Vec<Sourced<Service>>,
    /// Pods, and those of Deployments.
    pub pods: Vec<Sourced<Pod>>,
    /// Other objects, handed to the control plane as they are.
    pub others: Vec<Sourced<Value>>,
    /// Kinds that have no meaning here.
    pub ignored: BTreeSet<String>,
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
/// One line for each problem: file, what is wrong, the mend.
pub fn load(dir: &Path) -> Result<Manifests, Vec<String>> {
    let mut manifests = Manifests::default();
    let mut problems = Vec::new();
    match files(dir) {
        Err(error) => problems.push(format!("{}: {error}", dir.display())),
        Ok(files) if files.is_empty() => problems.push(format!(
            "{}: no manifests; put files ending in .yaml, .yml or .json there",
            dir.display()
        )),
        Ok(files) => {
            for file in files {
                if let Err(problem) = read(&file, &mut manifests) {
                    problems.push(format!("{}: {problem}", file.display()));
                }
            }
        }
    }
    duplicates(&manifests, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }
    let used: BTreeSet<_> = manifests.pods.iter().map(|pod| key(&pod.object.metadata).0).collect();
    let served = manifests.services.iter().map(|service| key(&service.object.metadata).0);
    for name in used.into_iter().chain(served) {
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let empty = || Namespace { metadata, ..Namespace::default() };
        manifests.namespaces.entry(name).or_insert_with(empty);
    }
    Ok(manifests)
}

fn files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if path.is_file() && !hidden && matches!(kind, "yaml" | "yml" | "json") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(file: &Path, into: &mut Manifests) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|e| e.to_string())?;
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).map_err(|e| e.to_string().replace('\n', " "))?;
    for document in documents {
        object(file, document, into)?;
    }
    Ok(())
}

fn object(file: &Path, document: Value, into: &mut Manifests) -> Result<(), String> {
    if document.is_null() {
        return Ok(());
    }
    let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    match kind.as_str() {
        "" => return Err("an object without `kind`; add for example `kind: Pod`".into()),
        "List" => {
            for item in document.get("items").and_then(Value::as_array).into_iter().flatten() {
                object(file, item.clone(), into)?;
            }
        }
        "Namespace" => {
            let namespace: Namespace = parse(&kind, document)?;
            into.namespaces.insert(named(&kind, &namespace.metadata)?, namespace);
        }
        "Service" => {
            let mut service: Service = parse(&kind, document)?;
            named(&kind, &service.metadata)?;
            service.metadata.namespace.get_or_insert_with(|| "default".into());
            into.services.push(Sourced { object: service, file: file.into() });
        }
        "Pod" => {
            let mut pod: Pod = parse(&kind, document)?;
            named(&kind, &pod.metadata)?;
            pod.metadata.namespace.get_or_insert_with(|| "default".into());
            into.pods.push(Sourced { object: pod, file: file.into() });
        }
        "Deployment" => {
            let deployment: Deployment = parse(&kind, document)?;
            named(&kind, &deployment.metadata)?;
            let pods = expand(&deployment);
            into.pods.extend(pods.map(|object| Sourced { object, file: file.into() }));
        }
        "EndpointSlice" => into.others.push(Sourced { object: document, file: file.into() }),
        _ => {
            into.ignored.insert(kind);
        }
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(kind: &str, document: Value) -> Result<T, String> {
    let name = document
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .map_or_else(String::new, |name| format!(" {name}"));
    serde_json::from_value(document).map_err(|e| format!("{kind}{name}: {e}"))
}

fn named(kind: &str, meta: &ObjectMeta) -> Result<String, String> {
    let name = meta.name.clone().unwrap_or_default();
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    for text in [name.as_str(), namespace] {
        if text.is_empty() || text.len() > 253 || !text.chars().all(fits) || text.starts_with('.') {
            return Err(format!(
                "{kind}: {text:?} is no name; use lower-case letters, digits, - and ."
            ));
        }
    }
    Ok(name)
}

/// The Pods of a Deployment, `NAME-0` to `NAME-(replicas-1)`.
fn expand(deployment: &Deployment) -> impl Iterator<Item = Pod> {
    let (namespace, name) = key(&deployment.metadata);
    let spec = deployment.spec.clone().unwrap_or_default();
    let replicas = spec.replicas.unwrap_or(1).max(0);
    (0..replicas).map(move |n| {
        let mut metadata = spec.template.metadata.clone().unwrap_or_default();
        metadata.name = Some(format!("{name}-{n}"));
        metadata.namespace = Some(namespace.clone());
        metadata.owner_references = Some(vec![OwnerReference {
            api_version: "apps/v1".into(),
            kind: "Deployment".into(),
            name: name.clone(),
            ..OwnerReference::default()
        }]);
        Pod { metadata, spec: spec.template.spec.clone(), status: None }
    })
}

fn duplicates(manifests: &Manifests, problems: &mut Vec<String>) {
    let mut seen: BTreeMap<(&str, Key), &Path> = BTreeMap::new();
    let pods = manifests.pods.iter().map(|p| ("Pod", key(&p.object.metadata), p.file.as_path()));
    let services =
        manifests.services.iter().map(|s| ("Service", key(&s.object.metadata), s.file.as_path()));
    for (kind, key, file) in pods.chain(services) {
        if let Some(first) = seen.insert((kind, key.clone()), file) {
            problems.push(format!(
                "{}: {kind} {}/{} is in {} already; rename or remove one",
                file.display(),
                key.0,
                key.1,
                first.display()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), text).unwrap();
        dir
    }

    #[test]
    fn a_deployment_becomes_its_replicas() {
        let dir = dir(concat!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: orders, namespace: shop}\n",
            "spec:\n  replicas: 2\n  selector: {matchLabels: {app: orders}}\n",
            "  template:\n    metadata: {labels: {app: orders}}\n    spec: {containers: []}\n"
        ));
        let manifests = load(dir.path()).unwrap();
        let names: Vec<_> = manifests.pods.iter().map(|p| key(&p.object.metadata)).collect();
        assert_eq!(names, [("shop".into(), "orders-0".into()), ("shop".into(), "orders-1".into())]);
        assert!(manifests.namespaces.contains_key("shop"));
    }

    #[test]
    fn problems_name_the_file() {
        for bad in ["kind: Pod\nmetadata: {name: UPPER}\n", "a: [\n", "metadata: {name: x}\n"] {
            let dir = dir(bad);
            let problems = load(dir.path()).unwrap_err();
            assert_eq!(problems.len(), 1, "{bad}");
            assert!(problems[0].contains("a.yaml"), "{problems:?}");
        }
    }
}
