//! Who listens where when all share one network: addresses, command lines and the objects that the
//! control plane reads. Pure.
//!
//! The whole of 127/8 is local on Linux, so every pod has addresses of its own there:
//!
//! ```text
//! 127.B.0.k   the pod's address: its sidecar's inbound listeners and admin endpoint
//! 127.B.1.k   its program
//! 127.B.2.k   its sidecar's outbound listeners, one for each Service that the program calls
//! 127.B.3.k   cluster address of the kth Service
//! 127.B.255.1 the control plane
//! ```

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use remora_core::names::{annotations, ports};
use serde_json::{Value, json};

use super::super::manifests::NAMESPACE;

/// Added to a Service's port: an ordinary user cannot listen below 1024.
const ABOVE: u16 = 10_000;
/// A Service that a program calls: name, port, and the variable that tells the program where.
type Call = (&'static str, u16, &'static str);

/// Which Services each program calls.
const CALLS: [(&str, &[Call]); 3] = [
    ("web", &[("orders", 80, "SHOP_ORDERS")]),
    ("orders", &[("inventory", 9090, "SHOP_INVENTORY")]),
    (
        "load",
        &[
            ("web", 80, "SHOP_WEB"),
            ("inventory", 9090, "SHOP_INVENTORY"),
            ("ticker", 7070, "SHOP_TICKER"),
        ],
    ),
];

/// The addresses of one demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block(u8);

impl Block {
    /// One of many, so that two demos at a time rarely meet.
    pub(super) fn of_process(id: u32) -> Self {
        Self(u8::try_from(id % 200).unwrap_or(0) + 20)
    }

    fn at(self, role: u8, k: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.0, role, k)
    }

    /// The control plane's gRPC.
    pub(super) fn control_plane(self) -> SocketAddr {
        (self.at(255, 1), ports::CONTROL_PLANE).into()
    }

    /// The control plane's admin endpoint.
    pub(super) fn control_plane_admin(self) -> SocketAddr {
        (self.at(255, 1), ports::CONTROL_PLANE_ADMIN).into()
    }

    fn service(self, k: u8) -> Ipv4Addr {
        self.at(3, k)
    }
}

/// One pod's place in it.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) block: Block,
    /// Unique among the pods alive.
    pub(super) k: u8,
    pub(super) name: String,
    /// Its Deployment, as in the manifest.
    pub(super) deployment: Value,
}

impl Slot {
    fn owner(&self) -> &str {
        self.deployment["metadata"]["name"].as_str().unwrap_or_default()
    }

    fn template(&self) -> &Value {
        &self.deployment["spec"]["template"]
    }

    fn container(&self) -> &Value {
        &self.template()["spec"]["containers"][0]
    }

    /// The program's port, if it is a server.
    fn port(&self) -> Option<u16> {
        u16::try_from(self.container()["ports"][0]["containerPort"].as_u64()?).ok()
    }

    fn calls(&self) -> &'static [Call] {
        CALLS.iter().find(|(owner, _)| *owner == self.owner()).map_or(&[], |(_, calls)| calls)
    }

    /// Admin endpoint of the sidecar.
    pub(super) fn admin(&self) -> SocketAddr {
        (self.block.at(0, self.k), ports::PROXY_ADMIN).into()
    }

    /// Where the program itself listens.
    pub(super) fn program(&self) -> Option<SocketAddr> {
        Some((self.block.at(1, self.k), self.port()?).into())
    }

    /// What the pod's token vouches for.
    pub(super) fn registry_entry(&self) -> Value {
        json!({
            "namespace": NAMESPACE,
            "serviceAccount": self.template()["spec"]["serviceAccountName"],
            "pod": self.name,
        })
    }

    /// Command line and environment of the program.
    pub(super) fn program_command(&self) -> (Vec<OsString>, BTreeMap<String, String>) {
        let container = self.container();
        let words = |key: &str| {
            let words = container[key].as_array().cloned().unwrap_or_default();
            words.into_iter().filter_map(|word| word.as_str().map(str::to_owned))
        };
        let any = Ipv4Addr::UNSPECIFIED.to_string();
        let own = self.block.at(1, self.k).to_string();
        let command = words("command").chain(words("args").map(|word| word.replace(&any, &own)));
        let mut env = BTreeMap::from([("POD_NAME".to_owned(), self.name.clone())]);
        for variable in container["env"].as_array().into_iter().flatten() {
            if let (Some(name), Some(value)) =
                (variable["name"].as_str(), variable["value"].as_str())
            {
                env.insert(name.to_owned(), value.to_owned());
            }
        }
        for (_, port, variable) in self.calls() {
            env.insert((*variable).to_owned(), self.outbound(*port).to_string());
        }
        (command.map(OsString::from).collect(), env)
    }

    fn outbound(&self, port: u16) -> SocketAddr {
        // Every Service of the shop has a port of its own except web and orders, and no program
        // calls both.
        (self.block.at(2, self.k), port + ABOVE).into()
    }

    /// Command line of the sidecar.
    pub(super) fn sidecar_command(
        &self,
        remora: &Path,
        token: &Path,
        bundle: &Path,
    ) -> Vec<OsString> {
        let pod = self.block.at(0, self.k);
        let mut words: Vec<OsString> = vec![remora.into(), "proxy".into()];
        let mut flag = |name: &str, value: OsString| words.extend([name.into(), value]);
        flag("--outbound-listen", format!("{pod}:{}", ports::OUTBOUND).into());
        flag("--inbound-listen", format!("{pod}:{}", ports::INBOUND).into());
        flag("--admin-listen", self.admin().to_string().into());
        flag("--control-plane", self.block.control_plane().to_string().into());
        flag("--trust-bundle", bundle.into());
        flag("--token-file", token.into());
        flag("--pod-namespace", NAMESPACE.into());
        flag("--pod-name", self.name.clone().into());
        flag("--pod-ips", pod.to_string().into());
        flag("--workers", "1".into());
        flag("--shutdown-grace-period", "5s".into());
        for (service, port, _) in self.calls() {
            let authority = format!("{service}.{NAMESPACE}.svc.cluster.local:{port}");
            flag("--outbound-service", format!("{}={authority}", self.outbound(*port)).into());
        }
        if let (Some(port), Some(program)) = (self.port(), self.program()) {
            flag("--inbound-forward", format!("{pod}:{port}={program}").into());
        }
        words
    }

    /// The Pod as the control plane reads it.
    pub(super) fn object(&self, ready: bool, leaving: bool) -> Value {
        let template = self.template();
        let address = self.block.at(0, self.k).to_string();
        let mut metadata = json!({
            "name": self.name,
            "namespace": NAMESPACE,
            "labels": template["metadata"]["labels"],
            "annotations": {
                annotations::INJECT: "enabled",
                annotations::INJECTED: env!("CARGO_PKG_VERSION"),
            },
            "ownerReferences": [{
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": self.owner(),
                "uid": self.owner(),
                "controller": true,
            }],
        });
        if leaving {
            metadata["deletionTimestamp"] = "2000-01-01T00:00:00Z".into();
        }
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": template["spec"],
            "status": {
                "phase": "Running",
                "podIP": address,
                "podIPs": [{"ip": address}],
                "conditions": [
                    {"type": "Ready", "status": if ready && !leaving { "True" } else { "False" }},
                ],
            },
        })
    }
}

/// What the manifests say.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shop {
    /// Namespaces and Services, these with a cluster address, by file name.
    pub(super) objects: BTreeMap<PathBuf, Value>,
    pub(super) deployments: Vec<Value>,
}

impl Shop {
    /// Reads the documents of the demo's manifests.
    pub(super) fn parse(block: Block, texts: &[String]) -> Result<Self, String> {
        let mut shop = Self { objects: BTreeMap::new(), deployments: Vec::new() };
        let mut services = 0;
        for text in texts.iter().flat_map(|text| text.split("\n---\n")) {
            let mut object: Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            match object["kind"].as_str() {
                Some("Deployment") => shop.deployments.push(object),
                Some("Service") => {
                    services += 1;
                    object["spec"]["clusterIP"] = block.service(services).to_string().into();
                    shop.objects.insert(format!("service-{name}.json").into(), object);
                }
                Some("Namespace") => {
                    shop.objects.insert(format!("namespace-{name}.json").into(), object);
                }
                kind => return Err(format!("{name}: the demo has no use for kind {kind:?}")),
            }
        }
        Ok(shop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::manifests::Values;

    fn shop() -> Shop {
        let dir = tempfile::tempdir().unwrap();
        let values = Values {
            remora: "/bin/remora".into(),
            control: "/c".into(),
            report: "/r".into(),
            rate: 100,
        };
        values.write(dir.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        Shop::parse(Block(20), &[read("shop.yaml"), read("orders.yaml")]).unwrap()
    }

    fn slot(owner: &str, k: u8) -> Slot {
        let deployment = shop().deployments.into_iter().find(|d| d["metadata"]["name"] == owner);
        Slot { block: Block(20), k, name: format!("{owner}-0"), deployment: deployment.unwrap() }
    }

    fn text(words: &[OsString]) -> String {
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn services_have_distinct_cluster_addresses() {
        let shop = shop();
        let ips: std::collections::BTreeSet<_> = shop
            .objects
            .values()
            .filter_map(|object| object["spec"]["clusterIP"].as_str().map(str::to_owned))
            .collect();
        assert_eq!(ips.len(), 4);
        assert_eq!(shop.deployments.len(), 5);
    }

    #[test]
    fn a_program_dials_its_sidecar_and_peers_dial_the_other_sidecar() {
        let web = slot("web", 1);
        let (command, env) = web.program_command();
        assert_eq!(text(&command), "/bin/remora shop web --listen=127.20.1.1:8080");
        assert_eq!(env["SHOP_ORDERS"], "127.20.2.1:10080");
        let sidecar =
            text(&web.sidecar_command("/bin/remora".as_ref(), "/t".as_ref(), "/b".as_ref()));
        for part in [
            "--outbound-service 127.20.2.1:10080=orders.shop.svc.cluster.local:80",
            "--inbound-forward 127.20.0.1:8080=127.20.1.1:8080",
            "--admin-listen 127.20.0.1:4191",
            "--control-plane 127.20.255.1:8086",
        ] {
            assert!(sidecar.contains(part), "{part} in {sidecar}");
        }
        assert_eq!(web.object(true, false)["status"]["podIP"], "127.20.0.1");
    }

    #[test]
    fn no_program_has_two_outbound_listeners_on_one_address() {
        for (owner, calls) in CALLS {
            let ports: std::collections::BTreeSet<_> = calls.iter().map(|(_, p, _)| p).collect();
            assert_eq!(ports.len(), calls.len(), "{owner}");
        }
    }

    #[test]
    fn a_leaving_pod_is_not_ready() {
        let object = slot("orders", 2).object(true, true);
        assert_eq!(object["status"]["conditions"][0]["status"], "False");
        assert!(object["metadata"]["deletionTimestamp"].is_string());
        serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(object).unwrap();
    }
}
