//! What Gateway API's conformance suite has every mesh run (`conformance/mesh/manifests.yaml`): an
//! echo server in two versions, each behind a Service of its own and both behind `echo`, and a pod in
//! another namespace. As there, the callers are these very pods, and they dial cluster addresses.

use std::net::SocketAddr;

use http::Request;
use remora_tests::{
    grpc::{Ended, message},
    mesh::{Mesh, Pod},
    origin::{Origin, full, h2},
    sidecar::Sidecar,
    wait::within,
};
use serde_json::{Value, json};

use super::shop::{Ask, Told, Way, application, of_kind, write};

/// Another namespace.
pub(super) const ELSEWHERE: &str = "consumer";
/// Services, their addresses, and the versions of those that select one alone.
const SERVICES: [(&str, &str, Option<&str>); 3] = [
    ("echo", "10.96.8.1", None),
    ("echo-v1", "10.96.8.2", Some("v1")),
    ("echo-v2", "10.96.8.3", Some("v2")),
];
/// Where HTTP and gRPC are spoken: ports of the Services, and of the pods.
const DIALLED: [u16; 3] = [80, 8080, GRPC];
const SERVED: [u16; 2] = [8080, GRPC];
const GRPC: u16 = 7070;

/// All of it, running.
pub(super) struct Echo {
    mesh: Mesh,
    pub(super) v1: Sidecar,
    pub(super) v2: Sidecar,
    elsewhere: Pod,
    calls: Vec<String>,
    _apps: Vec<Origin>,
}

impl Echo {
    /// With these routes.
    pub(super) async fn with(routes: &[Value]) -> Self {
        let mut mesh = Mesh::new();
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ELSEWHERE}});
        mesh.write_raw(&format!("namespace-{ELSEWHERE}"), &namespace.to_string());
        for (name, address, version) in SERVICES {
            mesh.service_of(name, &spec(name, address, version));
        }
        let v1 = version(&mesh, "echo-v1-1", "v1", None);
        let v2 = version(&mesh, "echo-v2-1", "v2", None);
        let elsewhere = version(&mesh, "echo-v1-2", "v1", Some(ELSEWHERE));
        routes.iter().for_each(|route| write(&mesh, route));
        let mut apps = Vec::new();
        for (pod, name) in [(&v1, "echo-v1"), (&v2, "echo-v2"), (&elsewhere, "elsewhere")] {
            for port in SERVED {
                apps.push(application(pod.app_at(port), name).await);
            }
        }
        mesh.start_plane().await;
        let addresses = SERVICES.iter().flat_map(|(_, address, _)| {
            DIALLED.iter().map(move |port| format!("{address}:{port}"))
        });
        let calls: Vec<String> = addresses.chain([v2.address().to_string()]).collect();
        let named: Vec<&str> = calls.iter().map(String::as_str).collect();
        let (v1, v2) = tokio::join!(mesh.sidecar(&v1, &named), mesh.sidecar(&v2, &named));
        Self { mesh, v1, v2, elsewhere, calls, _apps: apps }
    }

    /// The sidecar of the pod in the other namespace.
    pub(super) async fn elsewhere(&self) -> Sidecar {
        let calls: Vec<&str> = self.calls.iter().map(String::as_str).collect();
        self.mesh.sidecar(&self.elsewhere, &calls).await
    }

    /// The answer to `echo-v1`, as the suite's requests begin there where they do not say otherwise.
    pub(super) async fn ask(&self, ask: Ask) -> Told {
        ask_from(&self.v1, "echo", ask).await
    }
}

/// What a pod gets that asks `HOST` or `HOST:PORT` for something.
pub(super) async fn ask_from(pod: &Sidecar, host: &str, ask: Ask) -> Told {
    ask.host(host).send(dialled(pod, host), Way::H1).await
}

/// What it gets that calls a method there.
pub(super) async fn call_from(pod: &Sidecar, host: &str, fields: &[(&str, &str)]) -> Ended {
    let request = Request::post(format!("http://{host}/echo.Echo/Say"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let add = |request: http::request::Builder, (name, value): &(&str, &str)| {
        request.header(*name, *value)
    };
    let request = fields.iter().fold(request, add).body(full(message("?"))).unwrap();
    let mut sender = h2(dialled(pod, host)).await;
    let response = within("an answer", sender.send_request(request)).await.unwrap();
    Ended::read(response).await.unwrap()
}

/// Where a pod's application dials a Service `NAME[.NAMESPACE][:PORT]`, or an address.
pub(super) fn dialled(pod: &Sidecar, host: &str) -> SocketAddr {
    let (name, port) = host.split_once(':').unwrap_or((host, "80"));
    let service = name.split('.').next().unwrap_or_default();
    match SERVICES.iter().find(|(known, ..)| *known == service) {
        Some((_, address, _)) => pod.entry(&format!("{address}:{port}")),
        None => pod.entry(host),
    }
}

fn spec(name: &str, address: &str, version: Option<&str>) -> Value {
    let mut selector = json!({"app": "echo"});
    if let Some(version) = version {
        selector["version"] = json!(version);
    }
    let mut grpc = json!({"name": "grpc", "port": GRPC});
    if name == "echo" {
        grpc["appProtocol"] = json!("kubernetes.io/h2c");
    }
    json!({"clusterIP": address, "selector": selector, "ports": [
        {"name": "http", "port": 80, "appProtocol": "http", "targetPort": 8080},
        {"name": "http-alt", "port": 8080, "appProtocol": "http"},
        {"name": "https", "port": 443, "targetPort": 8443},
        {"name": "tcp", "port": 9090},
        grpc,
    ]})
}

fn version(mesh: &Mesh, name: &str, version: &str, namespace: Option<&str>) -> Pod {
    let mut pod = mesh.pod(name, "echo");
    pod.labels = vec![("version".to_owned(), version.to_owned())];
    pod.ports = SERVED.to_vec();
    pod.namespace = namespace.map_or(pod.namespace, str::to_owned);
    mesh.write_pod(&pod);
    pod
}

/// A route of a kind on a port of a Service, or on all of its ports.
pub(super) fn on(kind: &str, service: &str, port: Option<u16>, rules: Value) -> Value {
    let mut route = of_kind(kind, &format!("on-{service}"), rules);
    route["spec"]["parentRefs"][0]["name"] = json!(service);
    if let Some(port) = port {
        route["spec"]["parentRefs"][0]["port"] = json!(port);
    }
    route
}

/// An HTTPRoute on `echo:80`.
pub(super) fn on_echo(rules: Value) -> Value {
    on("HTTPRoute", "echo", Some(80), rules)
}

/// The one match of what is at a path or below it.
pub(super) fn below(path: &str) -> Value {
    json!([{"path": {"type": "PathPrefix", "value": path}}])
}

/// The one backend.
pub(super) fn only(service: &str, port: u16) -> Value {
    json!([{"name": service, "port": port}])
}
