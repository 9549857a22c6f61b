//! What is outside the mesh: carried untouched, counted by name, and refused where that is asked for.

use std::net::SocketAddr;

use remora_tests::{
    mesh::{Mesh, NAMESPACE, Pod},
    sidecar::Sidecar,
    wait::eventually,
    wire::{App, Wire},
};
use serde_json::json;

use super::{ask, tells};

const PASSED: &str = "remora_outbound_passthrough_connections_total";
const DENY: &str = "config.remora.io/default-outbound-policy";

/// A caller, and an address that no manifest names.
async fn caller(mesh: &mut Mesh) -> (Sidecar, Pod) {
    let far = mesh.plain_pod("far", "none");
    mesh.remove_pod(&far);
    let web = mesh.pod("web", "web");
    mesh.start_plane().await;
    (mesh.sidecar(&web, &[&far.address().to_string()]).await, far)
}

#[tokio::test]
async fn a_request_to_the_outside_is_untouched_and_counted_by_its_host() {
    let mut mesh = Mesh::new();
    let (client, far) = caller(&mut mesh).await;
    let app = App::listen(far.address()).await;
    let entry = client.entry(&far.address().to_string());
    let request = "GET /%7e HTTP/1.1\r\nhOsT: Example.com:8080\r\nRemora-Odd: 1\r\n\r\n";
    let mut wire = Wire::dial(entry).await;
    wire.send(request).await;
    let mut server = app.accept().await;
    server.expect(request).await;
    server.send("anything").await;
    drop(server);
    assert_eq!(wire.rest().await.unwrap(), b"anything");
    client.until(PASSED, &[("host", "example.com")], 1).await;
    drop(wire);
    let recorded = eventually("a record", async || {
        let (_, text) = client.get("/decisions").await;
        let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
        shown["decisions"].get(0).cloned()
    });
    let record = recorded.await;
    assert_eq!(record["target"], far.address().to_string());
    assert_eq!((&record["host"], &record["protocol"]), (&"example.com".into(), &"tcp".into()));
    assert_eq!(record["received_bytes"], "anything".len());

    // A server that speaks first is heard at once, though nothing names it.
    let mut wire = Wire::dial(entry).await;
    let mut server = app.accept().await;
    server.send("220 ready\r\n").await;
    wire.expect("220 ready\r\n").await;
    client.until(PASSED, &[("host", "unnamed")], 1).await;
    assert_eq!(client.metric("remora_detect_total", &[("direction", "outbound")]).await, 0);
}

#[tokio::test]
async fn tls_to_the_outside_is_untouched_and_counted_by_its_server_name() {
    let mut mesh = Mesh::new();
    let (client, far) = caller(&mut mesh).await;
    let app = App::listen(far.address()).await;
    let hello = client_hello("api.example.com");
    let mut wire = Wire::dial(client.entry(&far.address().to_string())).await;
    wire.send(&hello).await;
    wire.finish().await;
    assert_eq!(app.accept().await.rest().await.unwrap(), hello);
    client.until(PASSED, &[("host", "api.example.com")], 1).await;
}

/// The first flight of a TLS client, as rustls writes it.
fn client_hello(name: &'static str) -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name).unwrap();
    let mut tls = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    tls.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn a_namespace_that_denies_the_outside_refuses_it_and_a_change_holds_at_once() {
    let mut mesh = Mesh::new();
    let (client, far) = caller(&mut mesh).await;
    let _app = tells(far.address(), "far").await;
    let entry = client.entry(&far.address().to_string());
    assert_eq!(ask(entry, "far").await.status, 200);
    let policy = |word: &str| {
        let object = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "annotations": {DENY: word}}});
        mesh.write_raw("namespace", &object.to_string());
    };
    policy("deny");
    let reason = [("direction", "outbound"), ("reason", "no-route")];
    eventually("a refusal", async || refused(entry).await.then_some(())).await;
    assert!(client.metric("remora_proxy_errors_total", &reason).await > 0);
    policy("allow");
    eventually("the way out", async || (!refused(entry).await).then_some(())).await;
}

/// Whether a connection breaks instead of being answered.
async fn refused(entry: SocketAddr) -> bool {
    Wire::is_refused(entry, b"GET / HTTP/1.1\r\nHost: far\r\nConnection: close\r\n\r\n").await
}
