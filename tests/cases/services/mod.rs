//! Each kind of Service and name, and what the mesh makes of it. `docs/services.md` has the table, and
//! [`table`] sees to it that the tests it names exist.
//!
//! On loopback an application that was intercepted is a listener for an address: no packet ever goes
//! to a cluster address there. What depends on redirection, DNS, environment variables or the node's
//! translation is in `names`, `outside_in` and `ingress`, with `remora up`, which is IPv4 only.

#![allow(clippy::unwrap_used, reason = "clippy sees only the tests themselves as tests")]

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use remora_tests::{
    mesh::{Mesh, POD_PORT, Pod},
    origin::{Answer, Origin, Speaks, empty, full, h1},
    sidecar::Sidecar,
    wait::within,
};
use serde_json::{Value, json};

mod change;
mod cluster_ip;
mod endpoints;
mod in_front;
mod ingress;
mod names;
mod near;
mod outside;
mod outside_in;
mod table;

/// A cluster address; nothing listens there.
const VIP: &str = "10.96.0.5";

/// `spec` of a Service that selects the pods made for `app`, with port 80 and turns in order.
fn balanced(app: &str) -> Value {
    json!({"clusterIP": VIP, "selector": {"app": app},
        "ports": [{"port": 80, "targetPort": POD_PORT}]})
}

/// An application that tells its pod's name and what the request had for a Host.
async fn tells(addr: SocketAddr, name: &str) -> Origin {
    let name = name.to_owned();
    Origin::serve(addr, Speaks::H1, move |request| {
        let host = request.headers().get("host").and_then(|host| host.to_str().ok());
        let text = format!("{name} {}", host.unwrap_or_default());
        async move { Response::new(full(Bytes::from(text))) }
    })
    .await
}

/// A GET with this Host over a connection of its own; the words that [`tells`] answers.
async fn ask(entry: SocketAddr, host: &str) -> Answer {
    let request = Request::get("/").header("host", host).body(empty()).unwrap();
    within("an answer", async {
        let mut sender = h1(entry).await;
        Answer::read(sender.send_request(request).await.unwrap()).await.unwrap()
    })
    .await
}

/// The pod that answered.
async fn who(entry: SocketAddr) -> String {
    let answer = ask(entry, "any").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text.split(' ').next().unwrap().to_owned()
}

/// The pods that answered so many requests, sorted.
async fn whos(entry: SocketAddr, requests: usize) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..requests {
        all.push(who(entry).await);
    }
    all.sort();
    all.dedup();
    all
}

/// Connections that arrived at a pod by mTLS.
async fn by_mtls(server: &Sidecar) -> u64 {
    let labels = [("direction", "inbound"), ("tls", "mtls")];
    server.metric("remora_tcp_connections_total", &labels).await
}

/// A pod with a sidecar, and its application.
async fn serving(mesh: &Mesh, pod: &Pod) -> (Sidecar, Origin) {
    (mesh.sidecar(pod, &[]).await, tells(pod.app(), &pod.name).await)
}
