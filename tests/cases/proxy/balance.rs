//! Which endpoint gets what: balancing, ejection, no endpoints, dead ones.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use remora_tests::{
    mesh::{Mesh, Pod},
    origin::{Answer, Origin, Speaks, empty, full, get, h1},
    sidecar::Sidecar,
    wait::{eventually, within},
    wire::{App, Wire},
};
use serde_json::Value;

/// A Service with several pods, each with a sidecar, and a caller.
struct Group {
    mesh: Mesh,
    client: Sidecar,
    servers: Vec<Sidecar>,
}

impl Group {
    async fn start(count: usize, annotations: &[(&str, &str)]) -> Self {
        let mut mesh = Mesh::new();
        mesh.service("orders", annotations);
        let web = mesh.pod("web", "web");
        let pods: Vec<Pod> =
            (1..=count).map(|n| mesh.pod(&format!("orders-{n}"), "orders")).collect();
        mesh.start_plane().await;
        let servers = pods.iter().map(|pod| mesh.sidecar(pod, &[]));
        let servers = futures_util::future::join_all(servers).await;
        let client = mesh.sidecar(&web, &["orders"]).await;
        Self { mesh, client, servers }
    }

    async fn get(&self) -> Answer {
        get(self.client.entry("orders")).await.unwrap()
    }

    fn app(&self, n: usize) -> std::net::SocketAddr {
        self.servers[n].pod.app()
    }

    /// What `/endpoints` says of one pod.
    async fn endpoint(&self, n: usize) -> Value {
        let all = self.client.endpoints("orders").await;
        let name = self.servers[n].pod.name.as_str();
        all.into_iter().find(|e| e["pod"] == name).unwrap_or_else(|| panic!("no endpoint {name}"))
    }
}

/// `200` as long as the switch is on, else `500`.
async fn switched(addr: std::net::SocketAddr, well: Arc<AtomicBool>) -> Origin {
    Origin::serve(addr, Speaks::H1, move |_| {
        let status = if well.load(Ordering::SeqCst) { 200 } else { 500 };
        async move { Response::builder().status(status).body(full("")).unwrap() }
    })
    .await
}

#[tokio::test]
async fn requests_spread_over_all_endpoints() {
    let group = Group::start(3, &[]).await;
    let mut origins = Vec::new();
    for n in 0..3 {
        let busy = |_| async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Response::new(full("hello"))
        };
        origins.push(Origin::serve(group.app(n), Speaks::H1, busy).await);
    }
    let entry = group.client.entry("orders");
    let connection = || async {
        let mut sender = h1(entry).await;
        for _ in 0..15 {
            let request = Request::get("/").header("host", "orders").body(empty()).unwrap();
            let response = within("an answer", sender.send_request(request)).await.unwrap();
            assert_eq!(Answer::read(response).await.unwrap().status, 200);
            within("the connection", sender.ready()).await.unwrap();
        }
    };
    futures_util::future::join_all((0..6).map(|_| connection())).await;
    let counts: Vec<usize> = origins.iter().map(Origin::requests).collect();
    assert_eq!(counts.iter().sum::<usize>(), 90);
    assert!(counts.iter().all(|count| *count >= 5), "{counts:?}");
    let ours = [("service", "orders"), ("status_class", "2xx")];
    assert_eq!(group.client.metric("remora_outbound_http_responses_total", &ours).await, 90);
}

#[tokio::test]
async fn round_robin_takes_turns() {
    let group = Group::start(3, &[("balancer.remora.io/algorithm", "round-robin")]).await;
    let mut origins = Vec::new();
    for n in 0..3 {
        origins.push(Origin::saying(group.app(n), "hello").await);
    }
    for _ in 0..30 {
        assert_eq!(group.get().await.status, 200);
    }
    let counts: Vec<usize> = origins.iter().map(Origin::requests).collect();
    assert_eq!(counts, [10, 10, 10]);
}

#[tokio::test]
async fn a_slow_endpoint_gets_less() {
    let group = Group::start(3, &[]).await;
    let slow = Origin::serve(group.app(0), Speaks::H1, |_| async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        Response::new(full("slow"))
    })
    .await;
    let fast = [Origin::saying(group.app(1), "1").await, Origin::saying(group.app(2), "2").await];
    for _ in 0..90 {
        assert_eq!(group.get().await.status, 200);
    }
    let (slow, fast) = (slow.requests(), fast.each_ref().map(Origin::requests));
    assert!(slow * 3 < fast[0] && slow * 3 < fast[1], "{slow} against {fast:?}");
}

#[tokio::test]
async fn an_endpoint_that_keeps_failing_is_ejected_and_one_probe_brings_it_back() {
    let group = Group::start(
        3,
        &[
            ("balancer.remora.io/failure-accrual-consecutive-max-failures", "3"),
            ("balancer.remora.io/failure-accrual-consecutive-min-penalty", "300ms"),
            ("balancer.remora.io/failure-accrual-consecutive-max-penalty", "300ms"),
            // So that the failing one is chosen however it fares.
            ("balancer.remora.io/algorithm", "round-robin"),
        ],
    )
    .await;
    let well = Arc::new(AtomicBool::new(false));
    let failing = switched(group.app(0), Arc::clone(&well)).await;
    let _others =
        [Origin::saying(group.app(1), "1").await, Origin::saying(group.app(2), "2").await];
    let mut failures = 0;
    eventually("the ejection", || async {
        let _ = group.get().await;
        (group.endpoint(0).await["state"] == "open").then_some(())
    })
    .await;
    let row = group.endpoint(0).await;
    assert_eq!(row["breaker"]["reason"], "consecutive-failures", "{row}");
    group.client.until("remora_outbound_ejections_total", &[("service", "orders")], 1).await;
    failures += failing.requests();
    assert!(failures >= 3, "{failures}");
    // While it is open nobody notices it.
    let before = failing.requests();
    for _ in 0..6 {
        let answer = group.get().await;
        if group.endpoint(0).await["state"] == "open" {
            assert_eq!((answer.status, failing.requests()), (200, before));
        }
    }
    well.store(true, Ordering::SeqCst);
    eventually("its return", || async {
        let _ = group.get().await;
        let row = group.endpoint(0).await;
        (row["state"] == "ready" && failing.requests() > before + 1).then_some(())
    })
    .await;
}

/// Each answer begins as a success; that it does not come to its end is what counts.
#[tokio::test]
async fn an_endpoint_whose_answers_break_off_is_ejected() {
    let policy = [
        ("balancer.remora.io/failure-accrual-consecutive-max-failures", "3"),
        ("balancer.remora.io/failure-accrual-consecutive-min-penalty", "60s"),
        ("balancer.remora.io/algorithm", "round-robin"),
    ];
    let group = Group::start(2, &policy).await;
    let app = App::listen(group.app(0)).await;
    let _well = Origin::saying(group.app(1), "well").await;
    let breaking = async {
        loop {
            let mut server = app.accept().await;
            server.head().await;
            server.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
        }
    };
    let calls = eventually("the ejection", || async {
        let mut client = Wire::dial(group.client.entry("orders")).await;
        client.send("GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").await;
        let _ = client.rest().await;
        (group.endpoint(0).await["state"] == "open").then_some(())
    });
    tokio::select! {
        () = calls => {}
        () = breaking => unreachable!(),
    }
    assert_eq!(group.endpoint(0).await["failures"], 3);
}

#[tokio::test]
async fn a_service_never_loses_its_only_endpoint() {
    let group = Group::start(
        1,
        &[
            ("balancer.remora.io/failure-accrual-consecutive-max-failures", "2"),
            ("balancer.remora.io/failure-accrual-consecutive-min-penalty", "30s"),
        ],
    )
    .await;
    let well = Arc::new(AtomicBool::new(false));
    let origin = switched(group.app(0), Arc::clone(&well)).await;
    for _ in 0..6 {
        assert_eq!(group.get().await.status, 500);
    }
    assert_eq!(group.endpoint(0).await["state"], "open");
    well.store(true, Ordering::SeqCst);
    assert_eq!(group.get().await.status, 200);
    assert_eq!(origin.requests(), 7);
}

#[tokio::test]
async fn a_service_without_endpoints_is_503_with_retry_after() {
    let group = Group::start(0, &[]).await;
    let answer = group.get().await;
    assert_eq!((answer.status, answer.reason()), (503, Some("no-endpoints")));
    assert_eq!(answer.headers["retry-after"], "1");
    assert!(answer.text.contains("shop/orders:80"), "{}", answer.text);
    let reason = [("direction", "outbound"), ("reason", "no-endpoints")];
    assert_eq!(group.client.metric("remora_proxy_errors_total", &reason).await, 1);
}

#[tokio::test]
async fn a_new_endpoint_gets_traffic_as_soon_as_it_is_there() {
    let mut group = Group::start(1, &[]).await;
    let _first = Origin::saying(group.app(0), "first").await;
    assert_eq!(group.get().await.text, "first");
    let pod = group.mesh.pod("orders-2", "orders");
    group.servers.push(group.mesh.sidecar(&pod, &[]).await);
    let second = Origin::saying(pod.app(), "second").await;
    eventually("a request for it", || async {
        assert_eq!(group.get().await.status, 200);
        (second.requests() > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn callers_do_not_notice_an_endpoint_that_refuses_connections() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[("balancer.remora.io/algorithm", "round-robin")]);
    let web = mesh.pod("web", "web");
    let (alive, dead) = (mesh.plain_pod("alive", "orders"), mesh.plain_pod("dead", "orders"));
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let _origin = Origin::saying(alive.app(), "alive").await;
    for _ in 0..30 {
        let answer = get(client.entry("orders")).await.unwrap();
        assert_eq!((answer.status, answer.text.as_str()), (200, "alive"));
    }
    let rows = client.endpoints("orders").await;
    let failures =
        rows.iter().find(|row| row["pod"] == dead.name.as_str()).unwrap()["failures"].as_u64();
    assert!(failures > Some(0), "it was tried: {rows:?}");
}

#[tokio::test]
async fn callers_do_not_notice_an_application_that_is_down_behind_its_sidecar() {
    let group = Group::start(2, &[("balancer.remora.io/algorithm", "round-robin")]).await;
    let _origin = Origin::saying(group.app(0), "alive").await;
    for _ in 0..20 {
        let answer = group.get().await;
        assert_eq!((answer.status, answer.text.as_str()), (200, "alive"));
    }
    group.servers[1].until("remora_proxy_errors_total", &[("reason", "connect-failed")], 1).await;
}

#[tokio::test]
async fn the_only_endpoint_that_refuses_connections_is_503_connect_failed() {
    let mut mesh = Mesh::new();
    mesh.service("orders", &[]);
    let web = mesh.pod("web", "web");
    mesh.plain_pod("dead", "orders");
    mesh.start_plane().await;
    let client = mesh.sidecar(&web, &["orders"]).await;
    let answer = get(client.entry("orders")).await.unwrap();
    assert_eq!((answer.status, answer.reason()), (503, Some("connect-failed")));
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn opaque_connections_spread_over_all_endpoints() {
    let group = Group::start(2, &[("balancer.remora.io/algorithm", "round-robin")]).await;
    let mut apps = Vec::new();
    for n in 0..2 {
        apps.push(remora_tests::wire::App::listen(group.app(n)).await);
    }
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut client = remora_tests::wire::Wire::dial(group.client.entry("orders")).await;
        client.send("\x01hello").await;
        open.push(client);
    }
    for app in &apps {
        for _ in 0..2 {
            app.accept().await.expect("\x01hello").await;
        }
    }
}
