//! What the manifests say about protocols and destinations, and what the proxy makes of it.

use http::Request;
use hyper::client::conn::http1;
use remora_tests::{
    mesh::{Mesh, Pair, SERVICE_PORT},
    origin::{Answer, Body, Origin, Speaks, empty, full, get, h1},
    wait::{eventually, within},
    wire::{App, Wire},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[tokio::test]
async fn http_on_an_opaque_port_is_carried_as_bytes() {
    let port = SERVICE_PORT.to_string();
    let (pair, app) = Pair::with_app(&[("config.remora.io/opaque-ports", &port)]).await;
    let mut client = Wire::dial(pair.entry()).await;
    let request = "GET / HTTP/1.1\r\nhOST: orders\r\nConnection: x\r\nRemora-Odd: 1\r\n\r\n";
    client.send(request).await;
    let mut server = app.accept().await;
    server.expect(request).await;
    server.send("anything").await;
    drop(server);
    assert_eq!(client.rest().await.unwrap(), b"anything");
    assert_eq!(pair.client.metric("remora_detect_total", &[("direction", "outbound")]).await, 0);
}

#[tokio::test]
async fn a_port_that_says_http_is_not_looked_at() {
    let mut mesh = Mesh::new();
    mesh.service_speaking("orders", "http");
    let (web, orders) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let _server = mesh.sidecar(&orders, &[]).await;
    let _origin = Origin::saying(orders.app(), "hello").await;
    assert_eq!(get(client.entry("orders")).await.unwrap().text, "hello");
    assert_eq!(client.metric("remora_detect_total", &[("direction", "outbound")]).await, 0);
}

#[tokio::test]
async fn a_port_that_the_service_does_not_have_is_reset_at_once() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[]);
    let web = mesh.pod("web", "web");
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders:81", "nowhere"]).await;
    for entry in ["orders", "nowhere"] {
        assert!(Wire::is_refused(client.entry(entry), b"").await, "{entry}");
    }
    let reason = [("direction", "outbound"), ("reason", "no-route")];
    assert_eq!(client.metric("remora_proxy_errors_total", &reason).await, 2);
}

#[tokio::test]
async fn an_annotation_that_changes_takes_effect_on_the_next_request() {
    let pair = Pair::start(&[]).await;
    let origin = Origin::serve(pair.server.pod.app(), Speaks::H1, |_| async {
        http::Response::builder().status(503).body(full("")).unwrap()
    })
    .await;
    assert_eq!(get(pair.entry()).await.unwrap().status, 503);
    assert_eq!(origin.requests(), 1);
    pair.mesh.service("orders", &[("retry.remora.io/http", "503")]);
    eventually("a retry", async || {
        let before = origin.requests();
        assert_eq!(get(pair.entry()).await.unwrap().status, 503);
        (origin.requests() == before + 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_manifest_that_is_broken_leaves_the_last_good_state_in_force() {
    let pair = Pair::start(&[]).await;
    let _origin = Origin::saying(pair.server.pod.app(), "hello").await;
    assert_eq!(get(pair.entry()).await.unwrap().status, 200);
    pair.mesh.write_raw("pod-orders-1", "{ this is no manifest");
    pair.mesh.plane_metric("remora_control_plane_manifest_load_failures_total", 1).await;
    assert_eq!(get(pair.entry()).await.unwrap().status, 200);
    assert_eq!(pair.client.endpoints("orders").await.len(), 1);
    // Mended, it counts again.
    pair.mesh.write_pod(&pair.server.pod);
    let second = pair.mesh.plain_pod("orders-2", "orders");
    pair.client.until_endpoints("orders", 2).await;
    drop(second);
}

#[tokio::test]
async fn a_sidecar_that_starts_before_the_control_plane_serves_once_it_is_there() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[]);
    let (web, orders) = (mesh.pod("web", "web"), mesh.plain_pod("orders-1", "orders"));
    let client = mesh.unready_sidecar(&web, &["orders"]);
    eventually("its admin endpoint", async || {
        let answer = client.try_get("/ready").await;
        answer.filter(|(status, text)| *status == 503 && text.contains("certificate"))
    })
    .await;
    let _origin = Origin::saying(orders.app(), "hello").await;
    mesh.start_plane().await;
    client.ready().await;
    assert_eq!(get(client.entry("orders")).await.unwrap().text, "hello");
}

#[tokio::test]
async fn a_caller_outside_the_mesh_hears_a_server_that_speaks_first() {
    let pair = Pair::start(&[]).await;
    let app = App::listen(pair.server.pod.app()).await;
    let mut client = Wire::dial(pair.server.pod.address()).await;
    let mut server = app.accept().await;
    server.send("220 ready\r\n").await;
    client.expect("220 ready\r\n").await;
    client.send("QUIT\r\n").await;
    server.expect("QUIT\r\n").await;
}

#[tokio::test]
async fn a_service_that_is_deleted_and_made_anew_is_found_again() {
    let (pair, app) = Pair::with_app(&[]).await;
    drop(app);
    let _origin = Origin::saying(pair.server.pod.app(), "hello").await;
    let mut kept = h1(pair.entry()).await;
    assert_eq!(ask(&mut kept).await.status, 200);
    pair.mesh.remove_service("orders");
    eventually("new connections to be reset", || async {
        let Ok(mut stream) = TcpStream::connect(pair.entry()).await else { return Some(()) };
        let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
        (asked.is_err() || stream.read_u8().await.is_err()).then_some(())
    })
    .await;
    let gone = ask(&mut kept).await;
    let reason = gone.reason().map(str::to_owned);
    assert_eq!((gone.status, reason.as_deref()), (404, Some("no-route")));
    pair.mesh.service("orders", &[]);
    eventually("the kept connection to work again", async || {
        (ask(&mut kept).await.status == 200).then_some(())
    })
    .await;
}

async fn ask(kept: &mut http1::SendRequest<Body>) -> Answer {
    kept.ready().await.unwrap();
    let request = Request::get("/").header("host", "orders").body(empty()).unwrap();
    let response = within("an answer", kept.send_request(request)).await.unwrap();
    Answer::read(response).await.unwrap()
}
