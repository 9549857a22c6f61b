//! TCPRoutes and TLSRoutes: connections carried as bytes.

use std::{net::SocketAddr, sync::Arc};

use remora_tests::{mesh::Mesh, wire::Wire};
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs::default_provider};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::shop::{Shop, of_kind, to, weighted};

/// Says its name to whoever said something, and ends.
async fn teller(at: SocketAddr, name: &'static str) {
    let listener = TcpListener::bind(at).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut question = [0; 2048];
                // A client that says nothing is told nothing.
                if stream.read(&mut question).await.is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(name.as_bytes()).await;
                    let _ = stream.shutdown().await;
                    // What is closed with something unread ends in a reset.
                    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                }
            });
        }
    });
}

/// `a` with a sidecar, `b` without one, and a route on `orders`.
async fn start(route: Value) -> (Shop, remora_tests::sidecar::Sidecar) {
    let mesh = Mesh::new();
    let (a, b) = (mesh.pod("a-1", "a"), mesh.plain_pod("b-1", "b"));
    mesh.service("a", &[]);
    mesh.service("b", &[]);
    teller(a.app(), "a").await;
    teller(b.app(), "b").await;
    let shop = Shop::in_mesh(mesh, &[], &[route], &["orders"]).await;
    let sidecar = shop.mesh.sidecar(&a, &[]).await;
    (shop, sidecar)
}

/// What comes back; empty where the connection is reset.
async fn told(shop: &Shop, question: &[u8]) -> String {
    let mut wire = Wire::dial(shop.client.entry("orders")).await;
    wire.send(question).await;
    String::from_utf8(wire.rest().await.unwrap_or_default()).unwrap()
}

fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.unwrap().with_root_certificates(RootCertStore::empty());
    let name = name.to_owned().try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(config.with_no_client_auth()), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn connections_are_split_by_weight() {
    let rules = json!([{"backendRefs": [weighted("a", 3), weighted("b", 1)]}]);
    let (shop, _sidecar) = start(of_kind("TCPRoute", "r", rules)).await;
    let mut b = 0;
    for _ in 0..120 {
        match &*told(&shop, b"\x01hello").await {
            "a" => {}
            "b" => b += 1,
            other => panic!("{other:?}"),
        }
    }
    // Six standard deviations around 30.
    assert!((2..=58).contains(&b), "{b}");
}

#[tokio::test]
async fn a_connection_of_http_is_carried_as_bytes_too() {
    let rules = json!([{"backendRefs": [to("a")]}]);
    let (shop, _sidecar) = start(of_kind("TCPRoute", "r", rules)).await;
    assert_eq!(told(&shop, b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await, "a");
}

#[tokio::test]
async fn a_connection_that_nobody_has_a_part_in_is_reset() {
    for backends in [json!([weighted("a", 0)]), json!([to("gone")])] {
        let rules = json!([{"backendRefs": backends}]);
        let (shop, _sidecar) = start(of_kind("TCPRoute", "r", rules)).await;
        // An end in order would look like an answer.
        assert!(Wire::is_refused(shop.client.entry("orders"), b"\x01hello").await);
    }
}

#[tokio::test]
async fn the_name_that_a_client_asks_for_in_tls_decides() {
    let named = |name: &str, hostnames: &[&str], backend: &str| {
        let mut object = of_kind("TLSRoute", name, json!([{"backendRefs": [to(backend)]}]));
        object["spec"]["hostnames"] = json!(hostnames);
        object
    };
    let mesh = Mesh::new();
    let (a, b) = (mesh.pod("a-1", "a"), mesh.plain_pod("b-1", "b"));
    mesh.service("a", &[]);
    mesh.service("b", &[]);
    teller(a.app(), "a").await;
    teller(b.app(), "b").await;
    let routes = [named("one", &["a.example"], "a"), named("all", &["*.example"], "b")];
    let shop = Shop::in_mesh(mesh, &[], &routes, &["orders"]).await;
    let _sidecar = shop.mesh.sidecar(&a, &[]).await;
    for (name, wanted) in [("a.example", "a"), ("A.Example", "a"), ("c.example", "b")] {
        assert_eq!(told(&shop, &hello(name)).await, wanted, "{name}");
    }
    for question in [hello("else.test"), b"\x01no TLS".to_vec()] {
        assert_eq!(told(&shop, &question).await, "");
    }
}
