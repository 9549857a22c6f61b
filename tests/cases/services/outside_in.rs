//! Node ports and load balancers: from outside into the mesh, and from the mesh to them.

use crate::up::{
    manifests::{deployment, idle, namespace},
    mesh::{As, Up, installed},
};

/// Tells who called: a server whose answer is the address that the connection came from.
const TELLS_CALLER: &str = "import http.server as h\nclass H(h.BaseHTTPRequestHandler):\n  def do_GET(s):\n    b=(s.client_address[0]+'\\n').encode();s.send_response(200);s.send_header('Content-Length',str(len(b)));s.end_headers();s.wfile.write(b)\nh.ThreadingHTTPServer(('',8000),H).serve_forever()";

const NODE: &str = "10.244.0.1";
const BALANCER: &str = "192.0.2.10";
const EXTERNAL: &str = "192.0.2.11";

fn exposed(namespace: &str, name: &str, node_port: u16) -> String {
    format!(
        r"apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  externalIPs: [{EXTERNAL}]
  selector: {{app: {name}}}
  ports: [{{port: 80, targetPort: main, nodePort: {node_port}}}]
status: {{loadBalancer: {{ingress: [{{ip: {BALANCER}}}]}}}}
---
"
    )
}

#[test]
fn a_meshed_pod_is_reached_from_outside_by_node_port_and_load_balancer() {
    reached(true);
}

#[test]
fn external_traffic_policy_local_keeps_the_clients_address() {
    reached(false);
}

/// From a pod without a sidecar, and from one with it, in every way that leads in from outside.
fn reached(meshed: bool) {
    if !installed(&[("python3", "python3"), ("curl", "curl")]) {
        return;
    }
    let home = if meshed { "shop" } else { "plain" };
    let manifests = [
        namespace("shop", true),
        deployment(home, "files", 1, 8000, &["/usr/bin/python3", "-c", TELLS_CALLER]),
        exposed(home, "files", 30_080),
        idle("shop", "client"),
        idle("outside", "observer"),
    ];
    let name = if meshed { "nodeport" } else { "nodeport-plain" };
    let Some(up) = Up::start(name, As::Me, &manifests.concat()) else { return };
    let server = format!("{home}/files-0");
    up.wait_ready(0, &[&server, "shop/client", "outside/observer"]);
    let entries = [format!("{NODE}:30080"), format!("{BALANCER}:80"), format!("{EXTERNAL}:80")];
    for entry in &entries {
        for from in ["outside/observer", "shop/client"] {
            let caller = up.get_soon(from, &format!("http://{entry}/"));
            if !meshed {
                assert_eq!(caller, up.address(from), "{entry} from {from}");
            }
        }
    }
    if meshed {
        let plain = ["remora_tcp_connections_total", "direction=\"inbound\"", "tls=\"none\""];
        assert!(up.metric("outside/observer", &server, &plain) >= 6.0, "not by the sidecar");
    }
    let passed = ["remora_outbound_passthrough_connections_total"];
    let passed = up.metric("outside/observer", "shop/client", &passed);
    assert!(passed >= 3.0, "the mesh took {passed} of three for the outside");
    // What no Service has on the node is the node's own, and on a balancer's address refused.
    assert!(up.get("outside/observer", &format!("http://{BALANCER}:81/")).is_err());
    assert!(up.get("outside/observer", &format!("http://{NODE}:9990/ready")).is_ok());
}
