//! `remora up` and `remora exec` as people run them: real processes, real namespaces. Every test
//! runs as root and, where this is possible, as an ordinary user; what cannot run says why.

#![allow(clippy::unwrap_used, reason = "the functions that tests share are tests too")]

mod harness;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};

use harness::{As, Up, in_namespace, remora};

fn both(test: fn(As)) {
    test(As::Me);
    test(As::Nobody);
}

fn orders(replicas: u32) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: orders, namespace: shop}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: orders}}}}
  template:
    metadata: {{labels: {{app: orders}}}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: app
        command: [/usr/bin/python3, -m, http.server]
        args: ["$(PORT)", --directory, /etc]
        env:
        - {{name: PORT, value: "8000"}}
        - {{name: ME, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}
        ports: [{{name: http, containerPort: 8000}}]
        readinessProbe: {{httpGet: {{path: /hostname, port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: orders, namespace: shop}}
spec: {{selector: {{app: orders}}, ports: [{{port: 80, targetPort: http, name: http}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: each, namespace: shop}}
spec: {{selector: {{app: orders}}, clusterIP: None, ports: [{{port: 8000}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: other}}
spec:
  containers: [{{name: c, command: [sleep, "1000"]}}]
"#
    )
}

/// Asks a Service for its pod's name, from inside a pod.
fn ask(up: &Up, from: &str, host: &str) -> String {
    let script = format!(
        "import urllib.request as u; print(u.urlopen('http://{host}/hostname', timeout=5).read().decode(), end='')"
    );
    up.stdout(from, &["/usr/bin/python3", "-c", &script]).trim().to_owned()
}

#[test]
fn names_resolve_and_services_answer() {
    both(|who| {
        let Some(up) = Up::start("names", who, &orders(2), &[]) else { return };
        up.wait_ready(&["shop/orders-0", "shop/orders-1", "other/client"]);
        let host = up.stdout("shop/orders-0", &["sh", "-c", "echo $ORDERS_SERVICE_HOST"]);
        let port = up.stdout("shop/orders-0", &["sh", "-c", "echo $ORDERS_SERVICE_PORT"]);
        assert!(host.starts_with("10.96."), "{host}");
        assert_eq!(port, "80\n");
        for name in ["orders", "orders.shop", "orders.shop.svc.cluster.local"] {
            let found = up.stdout("shop/orders-1", &["getent", "hosts", name]);
            assert!(found.starts_with(host.trim()), "{name}: {found}");
        }
        // Another namespace has to say which one.
        assert!(!up.exec("other/client", &["getent", "hosts", "orders"]).status.success());
        let each = up.stdout("other/client", &["getent", "ahostsv4", "each.shop"]);
        for pod in ["shop/orders-0", "shop/orders-1"] {
            let ip = up.stdout(pod, &["sh", "-c", "echo $ME"]);
            assert!(each.contains(ip.trim()), "{each} lacks {ip}");
        }
        assert!(!up.exec("other/client", &["getent", "hosts", "example.com"]).status.success());

        let mut answered: Vec<_> =
            (0..40).map(|_| ask(&up, "other/client", "orders.shop")).collect();
        answered.sort();
        answered.dedup();
        assert_eq!(answered, ["orders-0", "orders-1"]);
    });
}

#[test]
fn edits_take_effect_and_bad_ones_leave_all_as_it_is() {
    both(|who| {
        let Some(up) = Up::start("edits", who, &orders(1), &[]) else { return };
        up.wait_ready(&["shop/orders-0", "other/client"]);
        up.edit(&orders(2));
        up.wait_ready(&["shop/orders-1"]);
        up.edit("apiVersion: v1\nkind: Pod\nmetadata: {name: BAD}\n");
        up.wait_for(&["a.yaml", "BAD", "stays"]);
        assert!(ask(&up, "shop/orders-1", "orders").starts_with("orders-"));
        up.edit(&orders(1));
        up.wait_for(&["pod shop/orders-1 is gone"]);
        let gone = up.exec("shop/orders-1", &["true"]);
        assert_eq!(gone.status.code(), Some(1));
        let said = String::from_utf8_lossy(&gone.stderr).into_owned();
        assert!(said.contains("no pod \"orders-1\"") && said.contains("shop/orders-0"), "{said}");
        // A changed template makes another pod of the same name.
        up.edit(
            &orders(1)
                .replace("value: \"8000\"", "value: \"8000\"}\n        - {name: NEW, value: \"1\""),
        );
        up.wait_for(&["pod shop/orders-0 is gone"]);
        up.wait_ready(&["shop/orders-0"]);
        assert_eq!(up.stdout("shop/orders-0", &["sh", "-c", "echo $NEW"]), "1\n");
    });
}

#[test]
fn a_container_that_dies_is_started_again() {
    both(|who| {
        let Some(up) = Up::start("dies", who, &orders(1), &[]) else { return };
        up.wait_ready(&["shop/orders-0"]);
        up.stdout("shop/orders-0", &["pkill", "-9", "-f", "http.server"]);
        up.wait_for(&["shop/orders-0", "container app", "status 137", "starting it again"]);
        up.wait_ready(&["shop/orders-0"]);
        assert_eq!(ask(&up, "shop/orders-0", "orders"), "orders-0");
    });
}

#[test]
fn meshed_pods_speak_mtls_and_get_a_dead_proxy_back() {
    both(|who| {
        let manifests = format!(
            "{}{}{}",
            "apiVersion: v1\nkind: Namespace\n\
             metadata: {name: shop, annotations: {remora.io/inject: enabled}}\n---",
            orders(2),
            "---\napiVersion: v1\nkind: Pod\nmetadata: {name: caller, namespace: shop}\n\
             spec: {containers: [{name: c, command: [sleep, \"1000\"]}]}\n",
        );
        let Some(up) = Up::start("meshed", who, &manifests, &[]) else { return };
        up.wait_ready(&["shop/orders-0", "shop/orders-1", "other/client"]);
        for _ in 0..10 {
            assert!(ask(&up, "shop/caller", "orders").starts_with("orders-"));
        }
        let metrics = "import urllib.request as u; \
                       print(u.urlopen('http://127.0.0.1:4191/metrics').read().decode())";
        let metrics = up.stdout("shop/caller", &["/usr/bin/python3", "-c", metrics]);
        let outbound = "remora_tcp_connections_total{direction=\"outbound\",tls=\"mtls\"} ";
        let count = metrics.lines().find_map(|line| line.strip_prefix(outbound));
        assert!(count.is_some_and(|n| n.parse::<u64>().unwrap() > 0), "{metrics}");
        // A pod without a sidecar reaches meshed ones all the same.
        assert!(ask(&up, "other/client", "orders.shop").starts_with("orders-"));

        let proxy = ["pkill", "-9", "-f", "--", "proxy .*--pod-name orders-0"];
        up.stdout("shop/orders-0", &proxy);
        up.wait_for(&["pod shop/orders-0: proxy ended with status 137", "starting it again"]);
        up.wait_ready(&["shop/orders-0"]);
        assert!(ask(&up, "shop/caller", "orders").starts_with("orders-"));

        up.stdout("other/client", &["pkill", "-9", "-f", "^/proc/self/exe control-plane"]);
        up.wait_for(&["control plane ended with status 137", "starting it again"]);
        assert!(ask(&up, "shop/caller", "orders").starts_with("orders-"));
    });
}

#[test]
fn exec_passes_streams_and_exit_status_through() {
    both(|who| {
        let Some(up) = Up::start("exec", who, &orders(1), &[]) else { return };
        up.wait_ready(&["shop/orders-0"]);
        let pod = "shop/orders-0";
        assert_eq!(up.exec(pod, &["sh", "-c", "exit 42"]).status.code(), Some(42));
        assert_eq!(up.exec(pod, &["sh", "-c", "kill -TERM $$"]).status.code(), Some(143));
        assert_eq!(up.exec(pod, &["no-such-command"]).status.code(), Some(127));
        let both = up.exec(pod, &["sh", "-c", "echo out; echo err >&2"]);
        assert_eq!(
            (both.stdout.as_slice(), both.stderr.as_slice()),
            (&b"out\n"[..], &b"err\n"[..])
        );

        let mut cat = remora(who).unwrap();
        cat.args(["exec", "--name", &up.name, "-n", "shop", "orders-0", "-c", "app", "--", "cat"]);
        let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        cat.stdin.take().unwrap().write_all(b"through").unwrap();
        assert_eq!(cat.wait_with_output().unwrap().stdout, b"through");

        let mut wrong = remora(who).unwrap();
        wrong
            .args(["exec", "--name", &up.name, "-n", "shop", "orders-0", "-c", "no", "--", "true"]);
        let said = String::from_utf8(wrong.output().unwrap().stderr).unwrap();
        assert!(said.contains("no container \"no\"; it has: app"), "{said}");
        let mut nowhere = remora(who).unwrap();
        nowhere.args(["exec", "--name", "nowhere", "p", "--", "true"]);
        let said = String::from_utf8(nowhere.output().unwrap().stderr).unwrap();
        assert!(said.contains("no mesh is running under the name \"nowhere\""), "{said}");
    });
}

#[test]
fn a_killed_outer_process_leaves_nothing() {
    both(|who| {
        let Some(mut up) = Up::start("killed", who, &orders(1), &[]) else { return };
        up.wait_ready(&["shop/orders-0"]);
        let anchor = up.stdout("shop/orders-0", &["readlink", "/proc/self/ns/net"]);
        assert!(in_namespace(anchor.trim()), "the pod's processes are seen from outside");
        let twice =
            remora(who).unwrap().arg("up").arg(up.dir.path()).args(["--name", &up.name]).output();
        let said = String::from_utf8(twice.unwrap().stderr).unwrap();
        assert!(said.contains("already running"), "{said}");
        // For nobody too: setpriv has become remora.
        up.child.kill().unwrap();
        up.child.wait().unwrap();
        let gone = (0..600).any(|_| {
            let left = in_namespace(anchor.trim());
            if left {
                // Poll an outside fact that nothing announces.
                let _ = up.lines.recv_timeout(Duration::from_millis(100));
            }
            !left
        });
        assert!(gone, "processes are left in {anchor}");
        // The name is free again at once.
        let name = up.name.clone();
        drop(up);
        let again =
            remora(who).unwrap().args(["exec", "--name", &name, "p", "--", "true"]).output();
        let said = String::from_utf8(again.unwrap().stderr).unwrap();
        assert!(said.contains("no mesh is running"), "{said}");
    });
}

#[test]
fn published_ports_reach_the_service_and_a_stop_is_graceful() {
    both(|who| {
        // Taken and given back, so that most likely it is free.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let publish = format!("127.0.0.1:{port}=orders.shop:http");
        let flags = ["--publish", publish.as_str()];
        let Some(mut up) = Up::start("publish", who, &orders(1), &flags) else { return };
        up.wait_ready(&["shop/orders-0"]);
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"GET /hostname HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("orders-0\n"), "{answer}");

        let pid = up.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        up.wait_for(&["pod shop/orders-0 is gone"]);
        assert_eq!(up.child.wait().unwrap().code(), Some(0));
    });
}

#[test]
fn wrong_input_is_answered_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = remora(As::Me).unwrap().args(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let path = dir.path().to_str().unwrap();
    let (code, said) = run(&["up", path]);
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("no manifests"), "{said}");
    let (code, said) = run(&["up", "/no/such/directory"]);
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    fs::write(dir.path().join("a.yaml"), orders(1)).unwrap();
    let (code, said) = run(&["up", path, "--name", "../x"]);
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    let (code, said) = run(&["up", path, "--publish", "80=web"]);
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    assert_eq!(run(&["up", path, "--no-such-flag"]).0, Some(2));
}
