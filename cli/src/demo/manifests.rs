//! The demo's manifests: plain Kubernetes YAML with a few places left to fill in.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use super::cluster::Error;

const SHOP: &str = include_str!("manifests/shop.yaml");
const ORDERS: &str = include_str!("manifests/orders.yaml");

/// Namespace of the shop.
pub(crate) const NAMESPACE: &str = "shop";
/// Replicas of `orders` at the beginning.
pub(crate) const ORDERS_REPLICAS: u32 = 3;

/// What is filled in.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    /// Path of the running binary.
    pub(crate) remora: PathBuf,
    /// Directory of the control files.
    pub(crate) control: PathBuf,
    /// Socket of the story.
    pub(crate) report: PathBuf,
    /// Requests per second.
    pub(crate) rate: u32,
}

impl Values {
    /// Writes all manifests into a directory.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), Error> {
        replace(&dir.join("shop.yaml"), &self.fill(SHOP, ORDERS_REPLICAS))?;
        self.write_orders(dir, ORDERS_REPLICAS)
    }

    /// Writes the manifest of `orders` with another number of replicas.
    pub(crate) fn write_orders(&self, dir: &Path, replicas: u32) -> Result<(), Error> {
        replace(&dir.join("orders.yaml"), &self.fill(ORDERS, replicas))
    }

    fn fill(&self, template: &str, replicas: u32) -> String {
        template
            .replace("@REMORA@", &quoted(&self.remora))
            .replace("@CONTROL@", &quoted(&self.control))
            .replace("@REPORT@", &quoted(&self.report))
            .replace("@RATE@", &self.rate.to_string())
            .replace("@ORDERS@", &replicas.to_string())
    }
}

/// For the inside of a double-quoted YAML scalar, whose escapes JSON's are a part of.
fn quoted(path: &Path) -> String {
    let json = serde_json::Value::from(path.to_string_lossy()).to_string();
    json[1..json.len() - 1].to_owned()
}

/// Replaces a file so that a reader sees the old or the new one, never a part; the name while it
/// is written is none that a manifest directory is searched for.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let written = || -> std::io::Result<()> {
        let mut part = tempfile::Builder::new().prefix(".part-").tempfile_in(dir)?;
        part.write_all(text.as_bytes())?;
        part.persist(path)?;
        Ok(())
    };
    written().map_err(Error::file(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::Value;

    fn values(remora: &str) -> Values {
        Values {
            remora: remora.into(),
            control: "/run/shop/control".into(),
            report: "/run/shop/report.sock".into(),
            rate: 150,
        }
    }

    fn documents(replicas: u32, remora: &str) -> Vec<Value> {
        let values = values(remora);
        let text =
            format!("{}\n---\n{}", values.fill(SHOP, replicas), values.fill(ORDERS, replicas));
        text.split("\n---\n")
            .map(|document| serde_saphyr::from_str::<Value>(document).unwrap())
            .collect()
    }

    fn find<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
        documents
            .iter()
            .find(|d| d["kind"] == kind && d["metadata"]["name"] == name)
            .unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    #[test]
    fn the_shop_is_meshed_and_complete() {
        let documents = documents(3, "/usr/bin/remora");
        let namespace = find(&documents, "Namespace", NAMESPACE);
        assert_eq!(namespace["metadata"]["annotations"]["remora.io/inject"], "enabled");
        for (name, replicas) in [("web", 1), ("orders", 3), ("inventory", 2), ("ticker", 1)] {
            let deployment = find(&documents, "Deployment", name);
            assert_eq!(deployment["spec"]["replicas"], replicas, "{name}");
            let service = find(&documents, "Service", name);
            assert_eq!(
                service["spec"]["selector"], deployment["spec"]["template"]["metadata"]["labels"],
                "{name}"
            );
        }
        find(&documents, "Deployment", "load");
    }

    #[test]
    fn every_document_is_the_kind_it_says() {
        use k8s_openapi::api::{apps::v1::Deployment, core::v1::Service};
        for document in documents(3, "/usr/bin/remora") {
            match document["kind"].as_str() {
                Some("Deployment") => {
                    Deployment::deserialize(&document).unwrap();
                }
                Some("Service") => {
                    Service::deserialize(&document).unwrap();
                }
                kind => assert_eq!(kind, Some("Namespace")),
            }
        }
    }

    #[test]
    fn lint_finds_nothing_wrong_with_the_shop() {
        use remora_control_plane::{lint::lint, source::manifest};
        let dir = tempfile::tempdir().unwrap();
        values("/usr/bin/remora").write(dir.path()).unwrap();
        let objects = manifest::load(&[dir.path().to_owned()]).unwrap();
        assert!(!objects.all().is_empty());
        assert_eq!(lint(&objects), []);
    }

    #[test]
    fn orders_has_the_policy_the_story_relies_on() {
        let documents = documents(3, "/usr/bin/remora");
        let annotations = &find(&documents, "Service", "orders")["metadata"]["annotations"];
        for (key, value) in [
            ("balancer.remora.io/failure-accrual", "consecutive"),
            ("balancer.remora.io/failure-accrual-consecutive-max-failures", "5"),
            ("retry.remora.io/http", "5xx"),
            ("retry.remora.io/limit", "2"),
        ] {
            assert_eq!(annotations[key], value, "{key}");
        }
    }

    #[test]
    fn a_strange_path_of_the_binary_stays_one_word() {
        let path = r#"/home/a b/"quoted"\x: #1/remora"#;
        let documents = documents(4, path);
        let orders = find(&documents, "Deployment", "orders");
        let container = &orders["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["command"][0], path);
        assert_eq!(orders["spec"]["replicas"], 4);
    }
}
