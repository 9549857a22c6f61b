//! The dashboard of a mesh with real proxies, from this machine.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use serde_json::Value;

use super::{
    manifests::{idle, namespace, teller},
    mesh::{As, Up, both, eventually, installed},
};

#[test]
fn up_says_where_the_dashboard_is_and_it_shows_who_calls_whom() {
    if installed(&[("python3", "python3"), ("curl", "curl")]) {
        both(shown);
    }
}

fn shown(who: As) {
    let manifests = [namespace("shop", true), teller("shop", "meshed", 1), idle("shop", "client")];
    let Some(up) = Up::start("dashboard", who, &manifests.concat()) else { return };
    let line = up.wait_for(0, &["the dashboard is at http://"]);
    let address = line.split("http://").nth(1).unwrap().trim_end_matches('/').to_owned();
    up.wait_ready(0, &["shop/meshed-0", "shop/client"]);
    up.get_soon("shop/client", "http://meshed/hostname");

    let page = get(&address, "/").expect("the page");
    assert!(page.contains("<title>Remora</title>"), "{page}");
    let edge = |all: &Value| {
        let edges = all["edges"].as_array()?;
        let called = |edge: &&Value| {
            edge["from"] == "workload:shop/Pod/client" && edge["to"] == "service:shop/meshed"
        };
        edges.iter().find(called).cloned()
    };
    eventually("all proxies to be heard, and the call to be seen", || {
        let all = json(&address, "/dashboard/topology.json")?;
        (all["proxies"]["answered"] == 2 && all["proxies"]["failed"] == 0).then(|| edge(&all))?
    });
    let service = json(&address, "/dashboard/services/shop/meshed.json").expect("the Service");
    assert_eq!(service["endpoints"][0]["state"], "ready", "{service}");

    let endpoint = format!("{}:8000", up.address("shop/meshed-0"));
    let path = format!("/why-endpoint?address={endpoint}");
    let why = json(&address, &path).expect("why");
    let known = &why["services"][0];
    assert_eq!((&known["name"], &known["state"]), (&"meshed".into(), &"ready".into()), "{why}");
    let push = &known["pushes"][0];
    assert_eq!(push["pod"], "client", "{why}");
    let times = [&known["event_ms"], &push["sent_ms"], &push["acked_ms"]].map(Value::as_u64);
    assert!(times.iter().all(Option::is_some) && times.is_sorted(), "{why}");
}

fn json(address: &str, path: &str) -> Option<Value> {
    serde_json::from_str(&get(address, path)?).ok()
}

/// The body of an answer with status 200.
fn get(address: &str, path: &str) -> Option<String> {
    let mut socket = TcpStream::connect(address).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}
