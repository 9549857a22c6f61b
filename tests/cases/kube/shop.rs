//! A meshed namespace: pods and EndpointSlices as controllers and kubelets would write them, the
//! control plane that watches them, and real sidecars.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use k8s_openapi::ByteString;
use remora_core::names;
use remora_proto::v1::{CertifyRequest, CertifyResponse, identity_client::IdentityClient};
use remora_proxy::{
    config,
    tls::{channel::ControlPlane, material::server_auth_config, verify::TrustBundle},
};
use remora_tests::{
    address::Block,
    mesh::{POD_PORT, Pod, SERVICE_PORT},
    sidecar::Sidecar,
    wait::eventually,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::cluster::{Cluster, Program};

/// The namespace.
pub(super) const SHOP: &str = "shop";
/// First port of the outbound listeners.
const ENTRY_PORT: u16 = 5000;

/// An installation, a meshed namespace and one replica of the control plane.
pub(super) struct Shop {
    pub(super) cluster: Cluster,
    pub(super) plane: Program,
    block: Block,
    dir: TempDir,
}

impl Shop {
    /// Installs, and waits until the control plane is ready.
    pub(super) async fn open() -> Self {
        Self::open_with(&[]).await
    }

    /// The same with flags for the control plane.
    pub(super) async fn open_with(flags: &[&str]) -> Self {
        Self::on(Cluster::install().await, flags).await
    }

    /// The same on an installation that is there.
    pub(super) async fn on(cluster: Cluster, flags: &[&str]) -> Self {
        cluster.api.namespace(SHOP, &[("remora.io/inject", "enabled")]);
        cluster.api.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1",
            "labels": {"topology.kubernetes.io/zone": "zone-a"}}}));
        let plane = cluster.control_plane(flags).await;
        plane.ready().await;
        let (block, dir) = (Block::claim(), tempfile::tempdir().unwrap());
        Self { cluster, plane, block, dir }
    }

    /// A Service of port 80.
    pub(super) fn service(&self, name: &str) {
        let timeout = "timeout.remora.io/connect";
        self.cluster.api.put(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": SHOP, "annotations": {timeout: "10s"}},
            "spec": {"selector": {"app": name}, "clusterIP": self.block.next(),
                     "ports": [{"port": SERVICE_PORT, "targetPort": POD_PORT}]},
        }));
    }

    /// A running pod with a sidecar, in no slice yet.
    pub(super) fn pod(&self, name: &str, service: &str) -> Pod {
        let ip = self.block.next();
        self.cluster.api.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": SHOP, "labels": {"app": service},
                         "annotations": {names::annotations::INJECTED: "test"}},
            "spec": {"serviceAccountName": name, "nodeName": "node1",
                "initContainers": [{"name": names::PROXY_CONTAINER, "restartPolicy": "Always"}],
                "containers": [{"name": "app", "ports": [{"containerPort": POD_PORT}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                       "conditions": [{"type": "Ready", "status": "True"}]},
        }));
        Pod::at(ip, name, service)
    }

    /// Writes the one EndpointSlice of a Service.
    pub(super) fn slice(&self, service: &str, ready: &[&Pod]) {
        let ready: Vec<(&str, Ipv4Addr)> =
            ready.iter().map(|pod| (pod.name.as_str(), pod.ip)).collect();
        self.cluster.api.put(slice(service, &ready));
    }

    /// Starts a pod's sidecar, with a listener for each of the Services that its application
    /// calls, and waits until it is ready.
    pub(super) async fn sidecar(&self, pod: &Pod, calls: &[&str]) -> Sidecar {
        let sidecar = self.unready_sidecar(pod, calls, &self.token(pod)).await;
        sidecar.ready().await;
        sidecar
    }

    /// The same with another token, and without waiting.
    pub(super) async fn unready_sidecar(&self, pod: &Pod, calls: &[&str], token: &str) -> Sidecar {
        let at = |port| SocketAddr::from((pod.ip, port));
        let token_file = self.dir.path().join(format!("{}.token", pod.name));
        std::fs::write(&token_file, token).unwrap();
        let mut flags = vec![
            "remora-proxy".to_owned(),
            format!("--outbound-listen={}", at(4140)),
            format!("--inbound-listen={}", at(4143)),
            format!("--admin-listen={}", at(4191)),
            format!("--control-plane={}", self.plane.addr),
            format!("--trust-bundle={}", self.bundle_file().await.display()),
            format!("--token-file={}", token_file.display()),
            format!("--pod-namespace={SHOP}"),
            format!("--pod-name={}", pod.name),
            format!("--pod-ips={}", pod.ip),
            "--workers=1".to_owned(),
            "--shutdown-grace-period=200ms".to_owned(),
            format!("--inbound-forward={}={}", pod.address(), pod.app()),
        ];
        for (port, service) in (ENTRY_PORT..).zip(calls) {
            let authority = format!("{service}.{SHOP}:{SERVICE_PORT}");
            flags.push(format!("--outbound-service={}={authority}", at(port)));
        }
        Sidecar::launch(pod.clone(), super::cluster::flags::<config::Args>(flags))
    }

    /// The token that the kubelet would write for a pod.
    pub(super) fn token(&self, pod: &Pod) -> String {
        let audiences = [names::TOKEN_AUDIENCE];
        self.cluster.api.issue_token(SHOP, &pod.name, Some(&pod.name), &audiences)
    }

    /// The trust bundle as the kubelet would mount it.
    pub(super) async fn bundle_file(&self) -> PathBuf {
        let file = self.dir.path().join("ca.crt");
        std::fs::write(&file, bundle(&self.cluster, SHOP).await).unwrap();
        file
    }

    /// Endpoints of a Service that the control plane knows, by pod.
    pub(super) async fn known(&self, service: &str) -> Option<Vec<String>> {
        known(&self.plane, service).await
    }

    /// Waits until the control plane knows these endpoints, and no others.
    pub(super) async fn until_known(&self, service: &str, pods: &[&Pod]) {
        let wanted: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
        eventually(&format!("{service} to have {wanted:?}"), async || {
            let mut known = self.known(service).await?;
            known.sort();
            (known == wanted).then_some(())
        })
        .await;
    }

    /// Asks for a certificate as a proxy with this token would.
    pub(super) async fn certify(&self, token: &str) -> Result<CertifyResponse, tonic::Status> {
        certify(&self.plane, &bundle(&self.cluster, SHOP).await, token).await
    }
}

/// The one EndpointSlice of a Service, with these pods ready.
pub(super) fn slice(service: &str, ready: &[(&str, Ipv4Addr)]) -> Value {
    let endpoint = |(name, ip): &(&str, Ipv4Addr)| {
        json!({"addresses": [ip], "nodeName": "node1", "zone": "zone-a",
               "conditions": {"ready": true, "serving": true, "terminating": false},
               "targetRef": {"kind": "Pod", "name": name, "namespace": SHOP}})
    };
    let endpoints: Vec<Value> = ready.iter().map(endpoint).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{service}-x"), "namespace": SHOP,
                     "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": [{"name": "", "port": POD_PORT, "protocol": "TCP"}],
    })
}

/// Endpoints of a Service that a replica knows, by pod.
pub(super) async fn known(plane: &Program, service: &str) -> Option<Vec<String>> {
    let (_, text) = plane.try_get("/services").await?;
    let all: Value = serde_json::from_str(&text).unwrap();
    let found = all.as_array()?.iter().find(|one| one["name"] == service)?;
    let pods = found["endpoints"].as_array()?.iter();
    Some(pods.map(|one| one["pod"].as_str().unwrap_or("none").to_owned()).collect())
}

/// The roots (PEM) that are published in a namespace.
pub(super) async fn bundle(cluster: &Cluster, namespace: &str) -> String {
    let what = format!("the trust bundle in {namespace}");
    let find = |api: &remora_tests::apiserver::ApiServer| {
        let map = api.object("configmaps", namespace, names::TRUST_BUNDLE_CONFIG_MAP)?;
        Some(map["data"][names::TRUST_BUNDLE_KEY].as_str()?.to_owned())
    };
    cluster.api.until(&what, find).await
}

/// Asks a replica for a certificate with this token.
pub(super) async fn certify(
    plane: &Program,
    roots: &str,
    token: &str,
) -> Result<CertifyResponse, tonic::Status> {
    let roots = CertificateDer::pem_slice_iter(roots.as_bytes()).map(Result::unwrap).collect();
    let bundle = TrustBundle::new(names::TRUST_DOMAIN, roots).unwrap();
    let id = remora_core::spiffe::SpiffeId::control_plane(names::TRUST_DOMAIN).unwrap();
    let config = server_auth_config(&bundle, &id).unwrap();
    let authority = Arc::from(plane.addr.to_string());
    let channel = ControlPlane { authority, id, mark: None }
        .connect(config, &mut fastrand::Rng::with_seed(1))
        .await
        .unwrap();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let request = CertifyRequest { token: token.into(), csr: request.der().to_vec() };
    let response = IdentityClient::new(channel).certify(request).await?;
    Ok(response.into_inner())
}

/// A value of a Secret's data.
pub(super) fn secret_text(secret: &Value, key: &str) -> String {
    let bytes: ByteString = serde_json::from_value(secret["data"][key].clone()).unwrap();
    String::from_utf8(bytes.0).unwrap()
}
