//! Who is who: certificates of both sides, no downgrade, plaintext callers, headers of ours.

use remora_tests::{
    mesh::{Mesh, Pair},
    origin::{Origin, get},
    wait::eventually,
    wire::{App, Wire},
};

const CLIENT_ID: &str = "remora-client-id";

#[tokio::test]
async fn both_sides_prove_who_they_are() {
    let pair = Pair::start(&[]).await;
    let _origin = Origin::saying(pair.server.pod.app(), "hello").await;
    assert_eq!(get(pair.entry()).await.unwrap().status, 200);
    for (sidecar, direction) in [(&pair.client, "outbound"), (&pair.server, "inbound")] {
        assert_eq!(sidecar.certs().await["identity"], sidecar.pod.identity().as_str());
        let of = |tls| [("direction", direction), ("tls", tls)];
        let total = "remora_tcp_connections_total";
        assert_eq!(sidecar.metric(total, &of("mtls")).await, 1, "{direction}");
        if direction == "inbound" {
            assert_eq!(sidecar.metric(total, &of("none")).await, 0);
        }
    }
    let rows = pair.client.endpoints("orders").await;
    assert_eq!(rows[0]["identity"], pair.server.pod.identity().as_str());
}

#[tokio::test]
async fn the_application_learns_who_calls_and_cannot_be_lied_to() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.entry()).await;
    client
        .send(
            "GET / HTTP/1.1\r\nHost: orders\r\nRemora-Client-Id: spiffe://cluster.local/ns/x/sa/root\r\n\
             Remora-Attempt: 7\r\nremora-anything: 1\r\n\r\n",
        )
        .await;
    let mut server = app.accept().await;
    let head = server.head().await;
    assert_eq!(head.all(CLIENT_ID), [pair.client.pod.identity()]);
    assert_eq!((head.get("remora-attempt"), head.get("remora-anything")), (None, None));
    // Nor can the application pretend to be a proxy that answers.
    server
        .send("HTTP/1.1 200 OK\r\nRemora-Proxy-Error: connect-failed\r\nContent-Length: 0\r\n\r\n")
        .await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("remora-proxy-error")), (200, None));
}

#[tokio::test]
async fn an_endpoint_with_another_identity_gets_nothing() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[]);
    let (web, orders) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let _impostor = mesh.impostor(&orders, "mallory").await;
    let app = App::listen(orders.app()).await;
    let answer = get(client.entry("orders")).await.unwrap();
    assert_eq!((answer.status, answer.reason()), (502, Some("identity-mismatch")), "{answer:?}");
    let mut bytes = Wire::dial(client.entry("orders")).await;
    bytes.send("\x01secret").await;
    assert!(bytes.rest().await.is_err());
    assert!(!app.has_caller().await, "the application was not called");
    let reason = [("direction", "outbound"), ("reason", "identity-mismatch")];
    client.until("remora_proxy_errors_total", &reason, 2).await;
}

/// Whoever took over the address of an endpoint with an identity sees a ClientHello and no more.
#[tokio::test]
async fn an_endpoint_with_an_identity_is_never_spoken_to_in_plaintext() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[]);
    let (web, orders) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let plain = App::listen(orders.address()).await;
    let capture = async {
        let mut all = Vec::new();
        loop {
            let mut wire = plain.accept().await;
            let first = wire.exactly(5).await;
            assert_eq!(first[0], 22, "a TLS handshake record");
            let length = usize::from(u16::from_be_bytes([first[3], first[4]]));
            all.extend(wire.exactly(length).await);
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            all.extend(wire.rest().await.unwrap_or_default());
            let text = String::from_utf8_lossy(&all);
            assert!(!text.contains("orders-secret") && !text.contains("HTTP/1.1"), "{text}");
        }
    };
    let call = async {
        let mut http = Wire::dial(client.entry("orders")).await;
        http.send("GET /orders-secret HTTP/1.1\r\nHost: orders-secret\r\n\r\n").await;
        let head = http.head().await;
        assert_eq!((head.status(), head.get("remora-proxy-error")), (502, Some("tls-failed")));
        let mut bytes = Wire::dial(client.entry("orders")).await;
        bytes.send("\x01orders-secret").await;
        assert!(bytes.rest().await.is_err());
    };
    tokio::select! {
        () = call => {}
        () = capture => unreachable!(),
    }
    let plaintext = [("direction", "outbound"), ("tls", "none")];
    // The two connections of the application itself; to the endpoint there is none.
    assert!(client.metric("remora_tcp_connections_total", &plaintext).await <= 2);
}

#[tokio::test]
async fn a_caller_without_a_sidecar_is_served_and_has_no_name() {
    let (pair, app) = Pair::with_app(&[]).await;
    let mut client = Wire::dial(pair.server.pod.address()).await;
    client
        .send("GET / HTTP/1.1\r\nHost: orders\r\nRemora-Client-Id: spiffe://x/ns/y/sa/z\r\n\r\n")
        .await;
    let mut server = app.accept().await;
    let head = server.head().await;
    assert_eq!(head.get(CLIENT_ID), None);
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    pair.server.until("remora_inbound_http_requests_total", &[("tls", "none")], 1).await;

    let mut client = Wire::dial(pair.server.pod.address()).await;
    client.send("\x01bytes").await;
    app.accept().await.expect("\x01bytes").await;
}

#[tokio::test]
async fn a_pod_without_a_sidecar_is_called_in_plaintext() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[]);
    let (web, plain) = (mesh.pod("web", "web"), mesh.plain_pod("orders-1", "orders"));
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let _origin = Origin::saying(plain.app(), "plain").await;
    assert_eq!(get(client.entry("orders")).await.unwrap().text, "plain");
    let mtls = [("direction", "outbound"), ("tls", "mtls")];
    assert_eq!(client.metric("remora_tcp_connections_total", &mtls).await, 0);
}

#[tokio::test]
async fn where_callers_must_prove_themselves_others_are_denied() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[]);
    let web = mesh.pod("web", "web");
    let policy = [("config.remora.io/default-inbound-policy", "all-authenticated")];
    let orders = mesh.pod_with("orders-1", "orders", true, &policy);
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let server = mesh.sidecar(&orders, &[]).await;
    let app = App::listen(orders.app()).await;

    let answer = get(orders.address()).await.unwrap();
    assert_eq!((answer.status, answer.reason()), (403, Some("denied")));
    let mut bytes = Wire::dial(orders.address()).await;
    bytes.send("\x01hello").await;
    let error = bytes.rest().await.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(!app.has_caller().await);
    let reason = [("direction", "inbound"), ("reason", "denied")];
    assert_eq!(server.metric("remora_proxy_errors_total", &reason).await, 2);
    let denied = [("verdict", "denied")];
    assert_eq!(server.metric("remora_inbound_policy_decisions_total", &denied).await, 2);
    let nobody = [("client_id", "none")];
    assert_eq!(server.metric("remora_inbound_caller_failures_total", &nobody).await, 1);

    let mut known = Wire::dial(client.entry("orders")).await;
    known.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    let mut served = app.accept().await;
    served.head().await;
    served.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(known.head().await.status(), 200);
}

#[tokio::test]
async fn a_policy_that_changes_takes_effect_without_a_restart() {
    let pair = Pair::start(&[]).await;
    let _origin = Origin::saying(pair.server.pod.app(), "hello").await;
    let mut pod = pair.server.pod.clone();
    assert_eq!(get(pod.address()).await.unwrap().status, 200);
    let key = "config.remora.io/default-inbound-policy".to_owned();
    pod.annotations.push((key, "all-authenticated".to_owned()));
    pair.mesh.write_pod(&pod);
    eventually("plaintext callers to be denied", || async {
        (get(pod.address()).await.unwrap().status == 403).then_some(())
    })
    .await;
    assert_eq!(get(pair.entry()).await.unwrap().status, 200);
}

#[tokio::test]
async fn kubelets_probe_is_let_in_where_nobody_else_is() {
    let mut mesh = Mesh::new();
    let policy = [("config.remora.io/default-inbound-policy", "deny")];
    let mut orders = mesh.pod_with("orders-1", "orders", true, &policy);
    orders.probe = Some("/healthz".to_owned());
    mesh.write_pod(&orders);
    mesh.start_plane().await;
    let _server = mesh.sidecar(&orders, &[]).await;
    let _origin = Origin::saying(orders.app(), "well").await;
    let mut kubelet = Wire::dial(orders.address()).await;
    for (path, status) in [("/healthz", 200), ("/healthz/deep", 403), ("/", 403)] {
        kubelet.send(format!("GET {path} HTTP/1.1\r\nHost: probe\r\n\r\n")).await;
        let head = kubelet.head().await;
        assert_eq!(head.status(), status, "{path}");
        kubelet.exactly(head.get("content-length").unwrap().parse().unwrap()).await;
    }
}

/// The address of a pod that went away now belongs to another workload.
#[tokio::test]
async fn a_kept_connection_is_not_used_for_the_next_owner_of_its_address() {
    let pair = Pair::start(&[]).await;
    let origin = Origin::saying(pair.server.pod.app(), "hello").await;
    assert_eq!(get(pair.entry()).await.unwrap().status, 200);
    let mut heir = pair.server.pod.clone();
    heir.name = "orders-9".to_owned();
    pair.mesh.remove_pod(&pair.server.pod);
    pair.mesh.write_pod(&heir);
    eventually("the new owner to be known", async || {
        let rows = pair.client.endpoints("orders").await;
        rows.iter().any(|row| row["identity"] == heir.identity().as_str()).then_some(())
    })
    .await;
    let before = origin.requests();
    let answer = get(pair.entry()).await.unwrap();
    assert_eq!((answer.status, answer.reason()), (502, Some("identity-mismatch")), "{answer:?}");
    assert_eq!(origin.requests(), before);
}
