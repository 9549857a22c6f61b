//! Ordinary programs of other protocols, each in a pod of the mesh.

use super::{
    manifests::{deployment, idle, namespace, service, teller},
    mesh::{As, Up, both, eventually, installed},
};

fn mesh(name: &str, who: As, server: &str, pods: &[&str]) -> Option<Up> {
    let manifests =
        [&namespace("shop", true), server, &idle("shop", "client"), &idle("outside", "observer")];
    let up = Up::start(name, who, &manifests.map(|text| text).concat())?;
    up.wait_ready(0, pods);
    up.wait_ready(0, &["shop/client", "outside/observer"]);
    Some(up)
}

/// The server's side has taken the connection with mTLS; probes, which come from the node, have
/// none.
fn assert_mtls(up: &Up, server: &str) {
    let parts = ["remora_tcp_connections_total", "direction=\"inbound\"", "tls=\"mtls\""];
    assert!(up.metric("outside/observer", server, &parts) > 0.0, "{server}: no mTLS connection");
}

#[test]
fn python_http_1_0_server_answers() {
    if !installed(&[("python3", "python3"), ("curl", "curl")]) {
        return;
    }
    both(|who| {
        let server = teller("shop", "files", 2);
        let Some(up) = mesh("py", who, &server, &["shop/files-0", "shop/files-1"]) else { return };
        let answered = up.spread("shop/client", "http://files/hostname", 2);
        assert!(answered.iter().eq(["files-0", "files-1"].iter()), "{answered:?}");
        assert_mtls(&up, "shop/files-0");
        let missing = up.get("shop/client", "http://files/no-such-file").unwrap_err();
        assert!(missing.contains("404"), "{missing}");
    });
}

#[test]
fn h2c_streams_are_balanced_one_by_one() {
    if !installed(&[("nghttpd", "nghttp2-server"), ("h2load", "nghttp2-client")]) {
        return;
    }
    let run = ["nghttpd", "--no-tls", "--htdocs=/etc", "8080"];
    let server = deployment("shop", "h2c", 2, 8080, &run) + &service("shop", "h2c", 80, "main");
    let pods = ["shop/h2c-0", "shop/h2c-1"];
    let Some(up) = mesh("h2c", As::Me, &server, &pods) else { return };
    let load = ["h2load", "-n", "200", "-c", "1", "-m", "10", "http://h2c/hostname"];
    // Ready is said before the caller's proxy has learnt of it.
    let one = ["h2load", "-n", "1", "http://h2c/hostname"];
    eventually("a server answers", || {
        up.stdout("shop/client", &one).contains("1 succeeded").then_some(())
    });
    let requests =
        |pod| up.metric("outside/observer", pod, &["remora_inbound_http_requests_total", "mtls"]);
    // One connection of the client each time; the endpoint that was slow to begin with gets its
    // share once that has faded.
    eventually("both servers get streams", || {
        let said = up.stdout("shop/client", &load);
        assert!(said.contains("200 succeeded, 0 failed, 0 errored"), "{said}");
        pods.iter().all(|pod| requests(pod) > 20.0).then_some(())
    });
}

#[test]
fn grpc_calls_are_carried_with_their_trailers() {
    if !installed(&[("curl", "curl")]) {
        return;
    }
    let shop = |name: &str, port: u16| {
        let listen = format!("--listen=0.0.0.0:{port}");
        deployment("shop", name, 1, port, &["@REMORA@", "shop", name, &listen])
    };
    let server = [
        shop("inventory", 9090),
        service("shop", "inventory", 9090, "main"),
        shop("orders", 8080),
        service("shop", "orders", 80, "main"),
    ];
    let pods = ["shop/inventory-0", "shop/orders-0"];
    let Some(up) = mesh("grpc", As::Me, &server.concat(), &pods) else { return };
    // Orders answers only after a gRPC call that ended with status 0 in the trailers.
    let answer = up.get_soon("shop/client", "http://orders/");
    assert!(answer.contains("orders-0") && answer.contains("inventory-0"), "{answer}");
    assert_mtls(&up, "shop/inventory-0");
}

#[test]
fn redis_is_carried_as_it_is() {
    if !installed(&[("redis-server", "redis-server"), ("redis-cli", "redis-tools")]) {
        return;
    }
    let run = [
        "redis-server",
        "--port",
        "6379",
        "--bind",
        "0.0.0.0",
        "--protected-mode",
        "no",
        "--save",
        "",
    ];
    let server =
        deployment("shop", "redis", 1, 6379, &run) + &service("shop", "redis", 6379, "main");
    let Some(up) = mesh("redis", As::Me, &server, &["shop/redis-0"]) else { return };
    // Ready is said before the caller's proxy has learnt of it.
    let ping = ["redis-cli", "-h", "redis", "PING"];
    eventually("redis answers", || up.exec("shop/client", &ping).status.success().then_some(()));
    let cli = |words: &[&str]| {
        up.stdout("shop/client", &[&["redis-cli", "-h", "redis"], words].concat()).trim().to_owned()
    };
    assert_eq!(cli(&["SET", "k", "v"]), "OK");
    assert_eq!(cli(&["GET", "k"]), "v");
    assert_mtls(&up, "shop/redis-0");
}

#[test]
fn a_server_that_speaks_first_is_heard_within_a_second() {
    if !installed(&[("python3", "python3")]) {
        return;
    }
    both(|who| {
        let run = ["@REMORA@", "shop", "ticker", "--listen=0.0.0.0:7070"];
        let server =
            deployment("shop", "ticker", 1, 7070, &run) + &service("shop", "ticker", 7070, "main");
        let Some(up) = mesh("ticker", who, &server, &["shop/ticker-0"]) else { return };
        let script = "
import socket, time
start = time.monotonic()
s = socket.create_connection(('ticker', 7070), 5); s.settimeout(5)
banner = s.recv(100).decode()
took = time.monotonic() - start
s.sendall(b'echo\\n')
print(took, banner.split()[0], s.recv(100).decode().strip())
";
        let said = up.stdout("shop/client", &["/usr/bin/python3", "-c", script]);
        let words: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(words[1..], ["ticker", "echo"], "{said}");
        assert!(words[0].parse::<f64>().unwrap() < 1.0, "the banner took {} s", words[0]);
        assert_mtls(&up, "shop/ticker-0");
    });
}
