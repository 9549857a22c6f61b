use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::{
    super::testing::{answers, asked, caller, heard, shop, snapshot, window},
    *,
};

fn told(cluster: &Cluster, heard: Heard) -> Value {
    let begin = Instant::now();
    let moment = Moment {
        now: begin + Duration::from_millis(30),
        wall: SystemTime::UNIX_EPOCH + Duration::from_secs(9),
    };
    serde_json::to_value(topology(cluster, &Shown::of(cluster, heard), &moment, begin)).unwrap()
}

#[test]
fn the_overview_of_a_shop() {
    let cluster = shop();
    let all = told(&cluster, heard(&cluster));
    assert_eq!(
        all["edges"],
        json!([
            {"from": "workload:shop/Deployment/web", "to": "service:shop/orders", "kind": "calls",
             "rps": 40.0, "success": 0.875, "p50_us": 1750, "p99_us": 9000},
            {"from": "service:shop/orders", "to": "workload:shop/Deployment/orders", "kind": "serves"},
            {"from": "service:shop/web", "to": "workload:shop/Deployment/web", "kind": "serves"},
        ])
    );
    assert_eq!(
        all["nodes"],
        json!([
            {"id": "workload:shop/Deployment/orders", "kind": "workload", "namespace": "shop",
             "name": "Deployment/orders", "pods": 2},
            {"id": "workload:shop/Deployment/web", "kind": "workload", "namespace": "shop",
             "name": "Deployment/web", "pods": 2},
            {"id": "service:shop/orders", "kind": "service", "namespace": "shop", "name": "orders",
             "pods": null, "ports": [80], "endpoints": 2, "ejected": 1,
             "rps": 40.0, "success": 0.875, "p50_us": 1750, "p99_us": 9000},
            {"id": "service:shop/web", "kind": "service", "namespace": "shop", "name": "web",
             "pods": null, "ports": [80], "endpoints": 2, "ejected": 0,
             "rps": 0.0, "success": null, "p50_us": null, "p99_us": null},
        ])
    );
    assert_eq!(
        all["proxies"],
        json!({"known": 4, "connected": 1, "asked": 4, "answered": 3, "failed": 1, "failures": [
            {"namespace": "shop", "pod": "orders-4", "error": "no answer within 1 s"}]})
    );
    assert_eq!((&all["sampled_ms"], &all["round_ms"]), (&json!(9000), &json!(30)));
    assert_eq!(
        all["events"][0],
        json!({"at_ms": 5, "service": "shop/orders:80", "endpoint": "10.0.0.4:8080",
            "pod": "orders-4", "kind": "ejected", "reason": "success-rate", "penalty_ms": 1000,
            "seen_by": "shop/web-2"})
    );
    assert_eq!(
        all["identities"][1],
        json!({"identity": "spiffe://cluster.local/ns/shop/sa/web", "pods": 2,
            "workloads": ["shop/Deployment/web"], "certificates": 2, "expires_ms": 1_000_000})
    );
}

#[test]
fn of_too_many_services_the_busiest_are_shown() {
    let mut cluster = shop();
    for n in 0..MAX_SERVICES {
        let quiet = snapshot(&format!("quiet-{n:03}"), 80, "quiet", &[]);
        cluster.services.insert(quiet.head.service.clone(), vec![quiet]);
    }
    let all = told(&cluster, heard(&cluster));
    let services = all["nodes"].as_array().unwrap().iter().filter(|n| n["kind"] == "service");
    let names: Vec<_> = services.map(|node| node["name"].as_str().unwrap()).collect();
    assert_eq!((names.len(), &all["services_left_out"]), (MAX_SERVICES, &json!(2)));
    assert!(names.contains(&"orders") && !names.contains(&"web"), "the last by name go");
}

#[test]
fn of_too_many_calls_the_busiest_are_shown() {
    let mut cluster = shop();
    let template = asked(&cluster, "web-1").clone();
    let mut heard = Heard::default();
    let none = json!({});
    for n in 0..MAX_EDGES as u64 + 5 {
        let mut from = template.clone();
        from.workload = Name::new("shop", &format!("Pod/{n}"));
        let windows = window(n, 0, 1, 1);
        heard.add(&cluster, &from, answers(&caller("ready", &windows), &none, &none, &none));
    }
    cluster.services.remove(&Name::new("shop", "web"));
    let all = told(&cluster, heard);
    let edges = all["edges"].as_array().unwrap();
    let calls: Vec<_> = edges.iter().filter(|edge| edge["kind"] == "calls").collect();
    assert_eq!((calls.len(), &all["edges_left_out"]), (MAX_EDGES, &json!(5)));
    assert_eq!(calls[0]["from"], json!("workload:shop/Pod/1004"));
}
