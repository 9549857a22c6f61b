//! Applications that bind as they like: who reached them without the mesh reaches them with it, and
//! nobody else does.

use super::{
    loops::dials,
    manifests::{idle, namespace},
    mesh::{As, Up, both, eventually, installed},
};

/// Answers with its first argument on each address of the others; `POD` stands for the pod's own.
const SERVE: &str = "
import os, socket, sys, threading
def serve(listener):
    while True:
        connection, _ = listener.accept()
        with connection:
            if connection.recv(100):
                connection.sendall(sys.argv[1].encode())
for address in sys.argv[2:]:
    host, port = address.split(':')
    listener = socket.create_server((host.replace('POD', os.environ['POD_IP']), int(port)))
    threading.Thread(target=serve, args=[listener]).start()
";

/// A pod of two containers, of which nothing says that anyone listens on 8003, and its Services: of
/// that port, and of one where only the pod itself is served.
fn server(namespace: &str) -> String {
    let command = |words: &[&str]| {
        serde_json::to_string(&[&["/usr/bin/python3", "-c", SERVE], words].concat()).unwrap()
    };
    let app = command(&["app", "POD:8001", "127.0.0.1:8002", "0.0.0.0:8003"]);
    let second = command(&["second", "0.0.0.0:8004", "127.0.0.1:8005"]);
    let env = "env: [{name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]";
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: server, namespace: {namespace}, labels: {{app: server}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: app, command: {app}, {env}, ports: [{{containerPort: 8001}}, {{containerPort: 8002}}]}}
  - {{name: second, command: {second}, {env}, ports: [{{containerPort: 8004}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: server, namespace: {namespace}}}
spec:
  selector: {{app: server}}
  ports: [{{name: open, port: 80, targetPort: 8003}}, {{name: own, port: 82, targetPort: 8002}}]
---
"
    )
}

#[test]
fn applications_are_reached_as_they_bind_with_and_without_the_mesh() {
    if installed(&[("python3", "python3"), ("curl", "curl")]) {
        both(reach);
    }
}

fn reach(who: As) {
    let manifests = [
        namespace("shop", true),
        server("shop"),
        server("outside"),
        idle("shop", "client"),
        idle("outside", "observer"),
    ];
    let Some(up) = Up::start("binds", who, &manifests.concat()) else { return };
    up.wait_ready(0, &["shop/server", "outside/server", "shop/client", "outside/observer"]);

    for namespace in ["shop", "outside"] {
        let ip = up.address(&format!("{namespace}/server"));
        let from_outside = [
            (format!("{ip}:8001"), "said"),
            (format!("{ip}:8002"), "refused"),
            (format!("{ip}:8003"), "said"),
            (format!("{ip}:8004"), "said"),
            (format!("{ip}:8005"), "refused"),
            (format!("{ip}:8009"), "refused"),
            (format!("server.{namespace}:80"), "said"),
            (format!("server.{namespace}:82"), "refused"),
        ];
        let (targets, expected): (Vec<&str>, Vec<&str>) =
            from_outside.iter().map(|(target, how)| (target.as_str(), *how)).unzip();
        for from in ["shop/client", "outside/observer"] {
            // Ready is said before everyone has learnt of it.
            let service = format!("server.{namespace}:80");
            eventually(&format!("{from} reaches {service}"), || {
                (dials(&up, from, &[&service]) == ["said"]).then_some(())
            });
            assert_eq!(dials(&up, from, &targets), expected, "{from}: {targets:?}");
        }
        // Its containers share the network: each reaches the other, by either address.
        let own = [
            "127.0.0.1:8001",
            "127.0.0.1:8002",
            "127.0.0.1:8003",
            "127.0.0.1:8004",
            "127.0.0.1:8005",
        ];
        let ends = dials(&up, &format!("{namespace}/server"), &own);
        assert_eq!(ends, ["refused", "said", "said", "said", "said"], "{namespace}");
        let own = [8001, 8002, 8004].map(|port| format!("{ip}:{port}"));
        let ends = dials(&up, &format!("{namespace}/server"), &own.each_ref().map(String::as_str));
        assert_eq!(ends, ["said", "refused", "said"], "{namespace}");
    }
    let mtls = ["remora_tcp_connections_total", "direction=\"inbound\"", "tls=\"mtls\""];
    assert!(up.metric("outside/observer", "shop/server", &mtls) >= 4.0, "in the mesh, by mTLS");
}
