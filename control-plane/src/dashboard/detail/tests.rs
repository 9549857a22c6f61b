use serde_json::{Value, json};

use super::{
    super::{
        cluster::Cluster,
        testing::{heard, shop},
    },
    *,
};

fn orders() -> Name {
    Name::new("shop", "orders")
}

fn told(cluster: &Cluster, shown: Option<&Shown>, series: Vec<Sample>) -> Value {
    let ports = &cluster.services[&orders()];
    serde_json::to_value(service(&orders(), ports, &[], shown, series)).unwrap()
}

#[test]
fn a_service_is_told_with_what_its_callers_saw() {
    let cluster = shop();
    let shown = Shown::of(&cluster, heard(&cluster));
    let figures = shown.services[&orders()].load.figures();
    let all = told(&cluster, Some(&shown), vec![Sample { at_ms: 7, figures }]);
    assert_eq!(all["ports"], json!([{"port": 80, "name": "http", "protocol": "http1"}]));
    assert_eq!(
        all["series"],
        json!([{"at_ms": 7, "rps": 40.0, "success": 0.875, "p50_us": 1750, "p99_us": 9000}])
    );
    assert_eq!(
        all["callers"],
        json!([{"namespace": "shop", "workload": "Deployment/web", "pods": 2,
            "rps": 40.0, "success": 0.875, "p50_us": 1750, "p99_us": 9000}])
    );
    assert_eq!(
        all["endpoints"][0],
        json!({"port": 80, "address": "10.0.0.4:8080", "known": true, "pod": "shop/orders-4",
            "owner": "Deployment/orders", "node": "n1", "zone": null,
            "identity": "spiffe://cluster.local/ns/shop/sa/orders",
            "state": "open", "ready": 1, "half_open": 0, "open": 1, "reason": "success-rate",
            "trips": 2, "next_probe_ms": 900, "in_flight": 4, "ewma_ms": 9.0,
            "rps": 0.0, "success": null, "p50_us": null, "p99_us": null}),
        "the ejected one comes first"
    );
    assert_eq!(all["endpoints"][1]["state"], json!("ready"));
    assert_eq!(
        all["identified_callers"][0],
        json!({"id": "spiffe://cluster.local/ns/shop/sa/web", "requests": 7, "failures": 2})
    );
    assert_eq!(all["identities"][0]["identity"], json!("spiffe://cluster.local/ns/shop/sa/orders"));
    assert_eq!(all["events"].as_array().unwrap().len(), 3);
}

#[test]
fn without_a_round_the_index_alone_is_told() {
    let all = told(&shop(), None, Vec::new());
    assert_eq!((&all["sampled"], &all["now"]["success"]), (&json!(false), &Value::Null));
    assert_eq!(all["endpoints"][0]["state"], json!("unused"));
}

#[test]
fn an_endpoint_that_only_a_proxy_still_has_is_marked() {
    let mut cluster = shop();
    let shown = Shown::of(&cluster, heard(&cluster));
    let ports = cluster.services.get_mut(&orders()).unwrap();
    let old = &ports[0];
    let left = Snapshot {
        head: Arc::clone(&old.head),
        endpoints: old.endpoints.iter().take(1).cloned().collect(),
    };
    ports[0] = Arc::new(left);
    let all = told(&cluster, Some(&shown), Vec::new());
    let row = &all["endpoints"][0];
    assert_eq!((&row["address"], &row["known"]), (&json!("10.0.0.4:8080"), &json!(false)));
    assert_eq!(row["pod"], Value::Null);
}
