//! Names, environment variables and addresses: the same Service whatever it is called by.

use crate::up::{
    manifests::{idle, namespace, service, teller},
    mesh::{As, Up, installed},
};

/// A pod of a StatefulSet, as far as DNS is concerned, that tells its name.
fn numbered(name: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: db}}}}
spec:
  hostname: {name}
  subdomain: db
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    command: [/usr/bin/python3, -m, http.server, "8000", --directory, /etc]
    readinessProbe: {{tcpSocket: {{port: 8000}}, periodSeconds: 1}}
---
"#
    )
}

const HEADLESS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: None, selector: {app: db}, ports: [{port: 8000}]}\n---\n";
const ALIAS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: shop}\nspec: {type: ExternalName, externalName: plain.outside.svc.cluster.local}\n---\n";

#[test]
fn short_and_full_names_variables_and_addresses_mean_the_same() {
    if !installed(&[("python3", "python3"), ("curl", "curl"), ("sh", "dash")]) {
        return;
    }
    let manifests = [
        namespace("shop", true),
        teller("shop", "files", 1),
        // The client's environment has only Services that are there before it.
        numbered("db-0"),
        numbered("db-1"),
        HEADLESS.to_owned(),
        ALIAS.to_owned(),
        idle("shop", "client"),
        teller("outside", "plain", 1),
        service("outside", "other", 81, "8000"),
        idle("outside", "observer"),
    ];
    let Some(up) = Up::start("names", As::Me, &manifests.concat()) else { return };
    let pods = ["shop/files-0", "shop/db-0", "shop/db-1", "shop/client", "outside/plain-0"];
    up.wait_ready(0, &pods);
    up.wait_ready(0, &["outside/observer"]);
    up.get_soon("shop/client", "http://files/hostname");

    let shell = |script: &str| up.stdout("shop/client", &["sh", "-c", script]).trim().to_owned();
    let address = shell("echo $FILES_SERVICE_HOST:$FILES_SERVICE_PORT");
    let hosts = [
        "files",
        "files.shop",
        "files.shop.svc",
        "files.shop.svc.cluster.local",
        "files.shop.svc.cluster.local.",
        "$FILES_SERVICE_HOST:$FILES_SERVICE_PORT",
        &address,
    ];
    let requests = || {
        let parts = ["remora_outbound_http_requests_total", "service=\"files\""];
        up.metric("outside/observer", "shop/client", &parts)
    };
    for host in hosts {
        let before = requests();
        let answer = shell(&format!("curl -sS --fail --max-time 5 http://{host}/hostname"));
        assert_eq!(answer, "files-0", "{host}");
        assert!(requests() > before, "{host} was not taken for the Service");
    }

    // A pod of a StatefulSet by its own name is that pod, by mTLS.
    let mtls = |pod: &str| {
        let parts = ["remora_tcp_connections_total", "direction=\"inbound\"", "tls=\"mtls\""];
        up.metric("outside/observer", pod, &parts)
    };
    for pod in ["db-0", "db-1"] {
        let path = format!("shop/{pod}");
        let before = mtls(&path);
        for host in [format!("{pod}.db"), format!("{pod}.db.shop.svc.cluster.local")] {
            let answer = up.get_soon("shop/client", &format!("http://{host}:8000/hostname"));
            assert_eq!(answer, pod, "{host}");
        }
        assert!(mtls(&path) > before, "{pod}: no mTLS");
    }

    // An alias is what it names.
    assert_eq!(up.get_soon("shop/client", "http://alias/hostname"), "plain-0");
}
