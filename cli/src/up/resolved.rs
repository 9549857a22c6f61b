//! What the control plane reads: every object with what a cluster would have added. Only what
//! changed is written, each file at once.

use std::{
    collections::BTreeMap,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Service;
use remora_core::names::annotations;
use remora_injector::ProxySettings;
use serde::Serialize;
use serde_json::{Value, json};

use super::{net::NODE, pod::Pod, state::write_atomic};

/// The directory and what is in it.
#[derive(Debug)]
pub struct Resolved {
    dir: PathBuf,
    written: BTreeMap<String, Vec<u8>>,
}

impl Resolved {
    /// An empty directory.
    #[must_use]
    pub fn at(dir: PathBuf) -> Self {
        Self { dir, written: BTreeMap::new() }
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory hold exactly these objects.
    ///
    /// # Errors
    /// Where a file cannot be written; the next call tries it again.
    pub fn update(&mut self, objects: impl Iterator<Item = Value>) -> io::Result<()> {
        let mut wanted = BTreeMap::new();
        for object in objects {
            let part = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or("");
            let kind = part("/kind").to_ascii_lowercase();
            let (namespace, name) = (part("/metadata/namespace"), part("/metadata/name"));
            let file = format!("{kind}_{namespace}_{name}.json");
            wanted.insert(file, serde_json::to_vec_pretty(&object)?);
        }
        let gone: Vec<_> =
            self.written.keys().filter(|file| !wanted.contains_key(*file)).cloned().collect();
        for (file, text) in wanted {
            if self.written.get(&file) != Some(&text) {
                write_atomic(&self.dir.join(&file), &text)?;
                self.written.insert(file, text);
            }
        }
        for file in gone {
            fs::remove_file(self.dir.join(&file))?;
            self.written.remove(&file);
        }
        Ok(())
    }
}

/// An object as the API would show it, with its kind.
#[must_use]
pub fn value<T: Serialize>(object: &T) -> Value {
    serde_json::to_value(object).unwrap_or_else(|_| json!({}))
}

/// A Service with its cluster address.
#[must_use]
pub fn service(object: &Service, cluster_ip: Option<Ipv4Addr>) -> Value {
    let mut value = value(object);
    if let Some(ip) = cluster_ip {
        value["spec"]["clusterIP"] = json!(ip);
        value["spec"]["clusterIPs"] = json!([ip]);
    }
    value
}

/// A Pod with its status.
#[must_use]
pub fn pod(pod: &Pod) -> Option<Value> {
    let live = pod.live();
    let address = live.address?;
    let mut value = value(&pod.object);
    let ready = if pod.is_ready() { "True" } else { "False" };
    value["metadata"]["namespace"] = json!(pod.key.0);
    value["spec"]["nodeName"] = json!(super::NODE_NAME);
    if let Some(settings) = &pod.sidecar {
        injected(&mut value, settings);
    }
    if let Some(since) = &live.terminating {
        value["metadata"]["deletionTimestamp"] = json!(since);
    }
    value["status"] = json!({
        "phase": if live.containers.is_empty() { "Pending" } else { "Running" },
        "hostIP": NODE,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [
            {"type": "Ready", "status": ready},
            {"type": "ContainersReady", "status": ready},
        ],
    });
    Some(value)
}

/// What the webhook would have left on the pod, and the rules that are in force in it, whatever its
/// namespace says by now.
fn injected(pod: &mut Value, settings: &ProxySettings) {
    let annotated = &mut pod["metadata"]["annotations"];
    annotated[annotations::INJECTED] = json!(env!("CARGO_PKG_VERSION"));
    annotated[annotations::SKIP_INBOUND_PORTS] = json!(settings.skip_inbound_ports.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meshed_pod_tells_its_own_rules_even_where_it_has_none() {
        let told = |ports: &str| {
            let mut pod = json!({"metadata": {"name": "p"}});
            let skip_inbound_ports = ports.parse().unwrap();
            injected(&mut pod, &ProxySettings { skip_inbound_ports, ..ProxySettings::default() });
            pod["metadata"]["annotations"][annotations::SKIP_INBOUND_PORTS].clone()
        };
        assert_eq!(told("22,8000-8010"), "22,8000-8010");
        assert_eq!(told(""), "");
    }

    #[test]
    fn only_changes_are_written_and_the_gone_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut resolved = Resolved::at(dir.path().to_owned());
        let object =
            |name: &str, x: i32| json!({"kind": "Pod", "metadata": {"name": name}, "x": x});
        resolved.update([object("a", 1), object("b", 1)].into_iter()).unwrap();
        // A file that was not written again keeps what somebody else put there.
        fs::write(dir.path().join("pod__a.json"), "mark").unwrap();
        resolved.update([object("a", 1), object("c", 1)].into_iter()).unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["pod__a.json", "pod__c.json"]);
        assert_eq!(fs::read(dir.path().join("pod__a.json")).unwrap(), b"mark");
        resolved.update([object("a", 2)].into_iter()).unwrap();
        assert_ne!(fs::read(dir.path().join("pod__a.json")).unwrap(), b"mark");
    }
}
