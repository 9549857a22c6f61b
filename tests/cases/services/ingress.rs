//! nginx as an ingress controller: in front of the mesh, with a sidecar of its own.

use std::fs;

use crate::up::{
    manifests::{idle, namespace, teller},
    mesh::{As, Up, installed, open_dir},
};

/// It knows one pod, by address, as controllers do that watch endpoints.
const CONF: &str = r#"
user root;
master_process off;
error_log stderr;
events {}
http {
  access_log off;
  client_body_temp_path gate-body; proxy_temp_path gate-proxy; fastcgi_temp_path gate-fastcgi;
  uwsgi_temp_path gate-uwsgi; scgi_temp_path gate-scgi;
  server {
    listen 8088;
    location / {
      proxy_pass http://POD:8000; proxy_set_header Host $host;
      proxy_http_version 1.1; proxy_set_header Connection "";
    }
  }
}
"#;

fn gate() -> String {
    r#"apiVersion: v1
kind: Pod
metadata:
  name: gate
  namespace: shop
  labels: {app: gate}
  annotations: {config.remora.io/ingress: enabled}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: nginx
    command: [sh, -c, "until [ -e @DIR@/gate.conf ]; do sleep 0.1; done; exec nginx -p @DIR@/ -c @DIR@/gate.conf -g \"daemon off; pid @DIR@/gate.pid;\""]
    ports: [{name: main, containerPort: 8088}]
    readinessProbe: {tcpSocket: {port: main}, periodSeconds: 1}
---
"#
    .to_owned()
}

#[test]
fn nginx_in_front_that_dials_one_pod_is_balanced_over_all_by_mtls() {
    let needed =
        [("nginx", "nginx-light"), ("curl", "curl"), ("python3", "python3"), ("sh", "dash")];
    if !installed(&needed) {
        return;
    }
    let dir = open_dir();
    let manifests =
        [namespace("shop", true), teller("shop", "files", 3), gate(), idle("outside", "visitor")];
    let Some(up) = Up::start_with(dir, "ingress", As::Me, &manifests.concat()) else { return };
    let servers = ["shop/files-0", "shop/files-1", "shop/files-2"];
    up.wait_ready(0, &servers);
    let conf = CONF.replace("POD", &up.address("shop/files-0"));
    let draft = up.dir.path().join(".gate.part");
    fs::write(&draft, conf).unwrap();
    fs::rename(draft, up.dir.path().join("gate.conf")).unwrap();
    up.wait_ready(0, &["shop/gate", "outside/visitor"]);

    let url = format!("http://{}:8088/hostname", up.address("shop/gate"));
    let answered = up.spread("outside/visitor", &url, 3);
    assert!(answered.iter().eq(["files-0", "files-1", "files-2"].iter()), "{answered:?}");
    for server in servers {
        let parts = ["remora_tcp_connections_total", "direction=\"inbound\"", "tls=\"mtls\""];
        assert!(up.metric("outside/visitor", server, &parts) > 0.0, "{server}");
    }
}
