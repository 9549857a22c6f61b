//! Whatever callers and applications do, nothing stays behind.

use http::{Request, Response};
use remora_tests::{
    mesh::{Mesh, Pair},
    origin::{Origin, Speaks, full, h2},
    sidecar::Sidecar,
    wait::{eventually, within},
    wire::{App, Wire},
};

/// Waits until a sidecar has no connection but those of its pools, and none of its endpoints has a
/// request in flight.
async fn nothing_open(sidecar: &Sidecar, direction: &str, tls: &str) {
    eventually(&format!("no {direction} connection over {tls}"), async || {
        let labels = [("direction", direction), ("tls", tls)];
        (sidecar.metric("remora_tcp_open_connections", &labels).await == 0).then_some(())
    })
    .await;
}

async fn nothing_in_flight(client: &Sidecar) {
    eventually("no request in flight", async || {
        let rows = client.endpoints("orders").await;
        rows.iter().all(|row| row["in_flight"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn connections_of_bytes_that_break_at_any_point_are_gone_on_all_sides() {
    let (pair, app) = Pair::with_app(&[]).await;
    for n in 0..12 {
        let mut client = Wire::dial(pair.entry()).await;
        client.send("\x01hello").await;
        let mut server = app.accept().await;
        server.expect("\x01hello").await;
        match n % 4 {
            0 => client.reset(),
            1 => server.reset(),
            2 => drop(client),
            _ => drop((server, client)),
        }
    }
    for tls in ["none", "mtls"] {
        nothing_open(&pair.client, "outbound", tls).await;
        nothing_open(&pair.server, "inbound", tls).await;
    }
    nothing_in_flight(&pair.client).await;
}

#[tokio::test]
async fn http_clients_that_go_away_in_the_middle_of_an_answer_leave_nothing_behind() {
    let (pair, app) = Pair::with_app(&[]).await;
    for _ in 0..5 {
        let mut client = Wire::dial(pair.entry()).await;
        client.send("GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
        let mut server = app.accept().await;
        server.head().await;
        server.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await;
        client.until("x\r\n").await;
        client.reset();
        // The application notices as soon as it writes on.
        within("the application to be told", async {
            loop {
                let chunk = tokio::io::AsyncWriteExt::write_all(server.stream(), b"1\r\ny\r\n");
                if chunk.await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    nothing_open(&pair.client, "outbound", "none").await;
    nothing_in_flight(&pair.client).await;
}

#[tokio::test]
async fn many_short_connections_at_once_are_all_served_and_all_gone() {
    let pair = Pair::start(&[]).await;
    let origin = Origin::saying(pair.server.pod.app(), "hello").await;
    let entry = pair.entry();
    for _ in 0..4 {
        let calls = (0..50).map(|_| remora_tests::origin::get(entry));
        for answer in futures_util::future::join_all(calls).await {
            assert_eq!(answer.unwrap().status, 200);
        }
    }
    assert_eq!(origin.requests(), 200);
    nothing_open(&pair.client, "outbound", "none").await;
    nothing_in_flight(&pair.client).await;
    let mtls = [("direction", "inbound"), ("tls", "mtls")];
    let opened = pair.server.metric("remora_tcp_connections_total", &mtls).await;
    assert!(opened <= 60, "{opened} handshakes for 200 requests of 50 clients");
}

#[tokio::test]
async fn two_workers_serve_and_drain_as_one() {
    let mut mesh = Mesh::new();
    mesh.workers = 2;
    mesh.grace = std::time::Duration::from_secs(10);
    let pair = Pair::in_mesh(mesh, &[]).await;
    let _origin = Origin::serve(pair.server.pod.app(), Speaks::H2, |_: Request<_>| async {
        Response::new(full("hello"))
    })
    .await;
    let entry = pair.entry();
    let calls = (0..20).map(|_| async {
        let mut sender = h2(entry).await;
        let request = Request::get("http://orders/").body(remora_tests::origin::empty()).unwrap();
        within("an answer", sender.send_request(request)).await.unwrap().status()
    });
    let statuses = futures_util::future::join_all(calls).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_eq!(pair.client.metric("remora_outbound_http_requests_total", &[]).await, 20);
    nothing_open(&pair.client, "outbound", "none").await;
    let Pair { client, server, .. } = pair;
    client.terminate();
    client.ended().await;
    server.terminate();
    server.ended().await;
}

#[tokio::test]
async fn an_application_that_stops_reading_stops_the_caller() {
    let pair = Pair::start(&[]).await;
    let app = App::listen(pair.server.pod.app()).await;
    let mut client = Wire::dial(pair.entry()).await;
    client.send("\x01").await;
    let mut server = app.accept().await;
    server.expect("\x01").await;
    let chunk = vec![7; 1 << 20];
    let mut sent = 0;
    // Kernel buffers of four hops and one buffer of each proxy; far from all that is offered.
    let stuck = async {
        loop {
            client.send(&chunk).await;
            sent += 1;
            assert!(sent < 64, "the proxies swallow {sent} MiB");
        }
    };
    let pause = std::time::Duration::from_millis(500);
    assert!(tokio::time::timeout(pause, stuck).await.is_err());
    drop(server);
    assert!(client.rest().await.is_err());
}
