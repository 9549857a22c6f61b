//! Three nginx behind one Service.

use std::fs;

use super::{
    capture::{Capture, has},
    manifests::{deployment, idle, namespace, service},
    mesh::{As, Up, both, installed, open_dir},
};

/// In every request and every answer; never to be seen between pods.
const MARKER: &str = "remora-plaintext-marker";

/// nginx that is root gives its temporary directories to `user`, so both must be its own.
const CONF: &str = r#"
user root;
master_process off;
error_log stderr;
events {}
http {
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server { listen 8080; location / { return 200 "$hostname\n"; add_header X-Marker MARKER; } }
}
"#;

/// The conf lies beside the manifests; each replica has its own pid file.
fn manifests() -> String {
    let run =
        "exec nginx -p @DIR@/ -c @DIR@/nginx.conf -g \"daemon off; pid @DIR@/$POD_NAME.pid;\"";
    [
        namespace("shop", true),
        deployment("shop", "name", 3, 8080, &["sh", "-c", run]),
        service("shop", "name", 80, "main"),
        idle("shop", "client"),
        idle("outside", "observer"),
    ]
    .concat()
}

#[test]
fn nginx_is_balanced_with_mtls_and_nothing_but_tls_is_on_the_wire() {
    let needed =
        [("nginx", "nginx-light"), ("curl", "curl"), ("python3", "python3"), ("sh", "dash")];
    if installed(&needed) {
        both(balanced);
    }
}

fn balanced(who: As) {
    let dir = open_dir();
    fs::write(dir.path().join("nginx.conf"), CONF.replace("MARKER", MARKER)).unwrap();
    let Some(up) = Up::start_with(dir, "nginx", who, &manifests()) else { return };
    let servers = ["shop/name-0", "shop/name-1", "shop/name-2"];
    up.wait_ready(0, &servers);
    up.wait_ready(0, &["shop/client", "outside/observer"]);
    let captures = servers.map(|server| Capture::on(&up, server));

    for host in ["name", "name.shop", "name.shop.svc.cluster.local", "$NAME_SERVICE_HOST"] {
        let url = format!("http://{host}/?{MARKER}");
        let answered = up.spread("shop/client", &url, 3);
        let all = ["name-0", "name-1", "name-2"];
        assert!(answered.iter().eq(all.iter()), "{host}: {answered:?}");
    }

    let mtls = |pod, direction| {
        let parts = ["remora_tcp_connections_total", direction, "tls=\"mtls\""];
        up.metric("outside/observer", pod, &parts)
    };
    assert!(mtls("shop/client", "direction=\"outbound\"") > 0.0);
    let mut requests = 0.0;
    for server in servers {
        assert!(mtls(server, "direction=\"inbound\"") > 0.0, "{server}");
        let parts = ["remora_inbound_http_requests_total", "tls=\"mtls\""];
        requests += up.metric("outside/observer", server, &parts);
    }
    assert!(requests >= 96.0, "only {requests} requests came over mTLS");

    for (server, capture) in servers.into_iter().zip(captures) {
        let bytes = capture.bytes();
        assert!(has(&bytes, &[0x17, 3, 3]), "{server}: no TLS record among {}", bytes.len());
        assert!(!has(&bytes, MARKER.as_bytes()), "{server}: plaintext between the pods");
    }

    // What shows that the captures would see plaintext: a caller without a sidecar.
    let seen = Capture::on(&up, servers[0]);
    let url = format!("http://{}:8080/?{MARKER}", up.address(servers[0]));
    up.get("outside/observer", &url).unwrap();
    assert!(has(&seen.bytes(), MARKER.as_bytes()), "the capture sees nothing");
}
