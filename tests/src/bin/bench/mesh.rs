//! What the control plane and the two proxies of a measured pair read and are told.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::json;

use crate::backend::ports;

/// The pod of the load, which dials.
pub(crate) const CLIENT: &str = "client";
/// The first pod of the Service; its proxy stands for all of them.
pub(crate) const SERVER: &str = "server-1";

/// A directory with all that a pair needs, and where its programs are.
#[derive(Debug)]
pub(crate) struct Mesh {
    dir: PathBuf,
    bin: PathBuf,
    control_plane: SocketAddr,
}

/// What the proxy of one pod listens on.
#[derive(Debug)]
pub(crate) struct Sidecar<'a> {
    /// [`CLIENT`] or [`SERVER`].
    pub(crate) pod: &'a str,
    /// Addresses of the pod.
    pub(crate) ips: &'a [IpAddr],
    /// Listener for redirected outbound connections.
    pub(crate) outbound: SocketAddr,
    /// Listener for redirected inbound connections.
    pub(crate) inbound: SocketAddr,
    /// Admin endpoint.
    pub(crate) admin: SocketAddr,
    /// Further flags.
    pub(crate) more: Vec<String>,
}

impl Mesh {
    /// Writes a Service `app.bench` at `cluster_ip` with one meshed pod per endpoint, and tokens.
    pub(crate) fn write(
        dir: &Path,
        bin: &Path,
        control_plane: SocketAddr,
        cluster_ip: IpAddr,
        endpoints: &[IpAddr],
    ) -> anyhow::Result<Self> {
        let (manifests, tokens) = (dir.join("manifests"), dir.join("tokens"));
        fs::create_dir_all(&manifests)?;
        fs::create_dir_all(&tokens)?;
        let objects = std::iter::once(service(cluster_ip))
            .chain(endpoints.iter().enumerate().map(|(i, ip)| pod(i + 1, *ip)));
        for (i, object) in objects.enumerate() {
            fs::write(manifests.join(format!("{i}.json")), object.to_string())?;
        }
        for pod in [CLIENT, SERVER] {
            let token = format!("token of {pod}");
            fs::write(dir.join(pod).with_extension("token"), &token)?;
            let hash: String = digest(&SHA256, token.as_bytes())
                .as_ref()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            let file = tokens.join(hash).with_extension("json");
            let workload = json!({"namespace": "bench", "serviceAccount": "default", "pod": pod});
            fs::write(&file, workload.to_string())?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        }
        Ok(Self { dir: dir.to_owned(), bin: bin.to_owned(), control_plane })
    }

    /// The control plane's command line.
    pub(crate) fn control_plane(&self, admin: SocketAddr) -> Vec<String> {
        let mut words = vec![self.program("remora-control-plane")];
        for (flag, path) in [
            ("--manifests", "manifests"),
            ("--token-dir", "tokens"),
            ("--ca-dir", "ca"),
            ("--trust-bundle-out", "bundle.pem"),
        ] {
            words.extend([flag.to_owned(), self.file(path)]);
        }
        let listen = self.control_plane;
        words.extend(split(&format!("--listen {listen} --admin-listen {admin} --log warn")));
        words
    }

    /// A proxy's command line.
    pub(crate) fn proxy(&self, sidecar: &Sidecar<'_>) -> Vec<String> {
        let Sidecar { pod, ips, outbound, inbound, admin, more } = sidecar;
        let ips = ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
        let mut words = vec![self.program("remora-proxy")];
        words.extend(["--trust-bundle".to_owned(), self.file("bundle.pem")]);
        words.extend(["--token-file".to_owned(), self.file(&format!("{pod}.token"))]);
        words.extend(split(&format!(
            "--outbound-listen {outbound} --inbound-listen {inbound} --admin-listen {admin} \
             --control-plane {} --pod-namespace bench --pod-name {pod} --pod-ips {ips} \
             --workers 1 --shutdown-grace-period 0s --log warn",
            self.control_plane
        )));
        words.extend(more.iter().cloned());
        words
    }

    /// Where the control plane leaves the roots that the proxies start with.
    pub(crate) fn bundle(&self) -> PathBuf {
        self.dir.join("bundle.pem")
    }

    fn program(&self, name: &str) -> String {
        self.bin.join(name).to_string_lossy().into_owned()
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }
}

/// The directory with both release programs: `REMORA_BIN`, or the checkout's.
pub(crate) fn programs(flag: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    program(flag.clone(), "remora-proxy")?;
    program(flag, "remora-control-plane")
}

/// The same of one of them.
pub(crate) fn program(flag: Option<PathBuf>, program: &str) -> anyhow::Result<PathBuf> {
    let checkout = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release");
    let dir = flag.unwrap_or_else(checkout);
    fs::metadata(dir.join(program)).with_context(|| {
        format!(
            "no {program} in {}: cargo build --release -p {program}, or say with REMORA_BIN where it is",
            dir.display()
        )
    })?;
    Ok(dir)
}

fn split(words: &str) -> Vec<String> {
    words.split_whitespace().map(str::to_owned).collect()
}

fn service(cluster_ip: IpAddr) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "app", "namespace": "bench"},
        "spec": {"clusterIP": cluster_ip, "selector": {"app": "server"}, "ports": [
            {"name": "http1", "port": ports::HTTP1},
            {"name": "http2", "port": ports::HTTP2},
            {"name": "echo", "port": ports::ECHO, "appProtocol": "tcp"},
            {"name": "bulk", "port": ports::BULK, "appProtocol": "tcp"},
        ]},
    })
}

fn pod(number: usize, ip: IpAddr) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("server-{number}"), "namespace": "bench",
            "labels": {"app": "server"}, "annotations": {"remora.io/proxy-version": "bench"},
        },
        "spec": {"containers": [{"name": "app", "image": "none"}]},
        "status": {
            "podIP": ip, "podIPs": [{"ip": ip}], "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// Fails where the inbound proxy's metrics do not show a connection over mTLS: a pair that does
/// less is not to be measured.
pub(crate) fn expect_mutual_tls(metrics: &str) -> anyhow::Result<()> {
    let counted = metrics.lines().any(|line| {
        line.starts_with("remora_tcp_connections_total{")
            && line.contains("direction=\"inbound\"")
            && line.contains("tls=\"mtls\"")
            && !line.ends_with(" 0")
    });
    anyhow::ensure!(counted, "the proxies do not speak mTLS to each other");
    Ok(())
}
