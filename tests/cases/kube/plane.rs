//! The control plane on a cluster: what it serves, and what it goes on serving while the API
//! server misbehaves.

use std::time::Duration;

use remora_tests::{
    apiserver::{ApiServer, Cut, Fault},
    mesh::Pod,
    origin::Origin,
    sidecar::Sidecar,
    wait::eventually,
};

use super::{
    cluster::Cluster,
    shop::{SHOP, Shop},
};
use remora_tests::load::Load;

/// Watches of the five kinds that it follows.
const KINDS: [&str; 5] = ["namespaces", "services", "endpointslices", "pods", "nodes"];

#[tokio::test]
async fn what_is_served_follows_the_cluster() {
    let shop = Shop::open().await;
    shop.service("orders");
    let (one, two) = (shop.pod("orders-1", "orders"), shop.pod("orders-2", "orders"));
    shop.slice("orders", &[&one]);
    shop.until_known("orders", &[&one]).await;
    shop.slice("orders", &[&one, &two]);
    shop.until_known("orders", &[&one, &two]).await;
    shop.slice("orders", &[]);
    shop.until_known("orders", &[]).await;
    shop.cluster.api.remove("services", SHOP, "orders");
    eventually("the Service to be gone", async || {
        shop.known("orders").await.is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn nothing_is_served_before_the_first_lists_are_whole() {
    let cluster = Cluster::install().await;
    cluster.api.fail("list", "endpointslices", Fault::Forbidden);
    let plane = cluster.control_plane(&[]).await;
    let refused = |api: &ApiServer| {
        api.asked().iter().filter(|a| a.resource == "endpointslices").count() >= 2
    };
    cluster.api.until("lists to be refused", |api| refused(api).then_some(())).await;
    let (status, why) = plane.try_get("/ready").await.unwrap();
    assert_eq!(status, 503);
    assert!(why.contains("endpointslices"), "{why}");
    cluster.api.heal();
    plane.ready().await;
}

#[tokio::test]
async fn no_request_fails_while_watches_break() {
    survives(|api| api.cut_watches(Cut::Broken)).await;
}

#[tokio::test]
async fn no_request_fails_while_watches_are_told_410() {
    survives(|api| api.cut_watches(Cut::Expired)).await;
}

#[tokio::test]
async fn no_request_fails_while_versions_are_forgotten() {
    survives(|api| {
        api.compact();
        api.cut_watches(Cut::Clean);
    })
    .await;
}

#[tokio::test]
async fn no_request_fails_while_the_api_server_is_too_busy() {
    survives(|api| {
        api.fail_times(2, "watch", "endpointslices", Fault::TooManyRequests);
        api.fail_times(2, "list", "*", Fault::Internal);
        api.cut_watches(Cut::Expired);
    })
    .await;
}

#[tokio::test]
async fn no_request_fails_while_rights_are_missing() {
    survives(|api| {
        api.fail_times(3, "*", "pods", Fault::Forbidden);
        api.fail_times(3, "*", "endpointslices", Fault::Forbidden);
        api.cut_watches(Cut::Expired);
    })
    .await;
}

#[tokio::test]
async fn no_request_fails_while_the_api_server_is_slow() {
    survives(|api| {
        api.fail("*", "*", Fault::Slow(Duration::from_millis(500)));
        api.cut_watches(Cut::Expired);
    })
    .await;
}

#[tokio::test]
async fn no_request_fails_while_the_api_server_is_dead_and_comes_back() {
    let (mut shop, served) = Served::start().await;
    shop.cluster.api.kill();
    served.load.passes(200).await;
    shop.until_known("orders", &[&served.one, &served.two]).await;
    let (status, _) = shop.plane.try_get("/ready").await.unwrap();
    assert_eq!(status, 200, "readiness flaps");
    shop.slice("orders", &[&served.two]);
    shop.cluster.api.restart().await;
    served.client.until_endpoints("orders", 1).await;
    served.ends_well(&shop).await;
}

/// Sidecars that call one another without a break.
struct Served {
    one: Pod,
    two: Pod,
    client: Sidecar,
    load: Load,
    _servers: [(Sidecar, Origin); 2],
}

impl Served {
    async fn start() -> (Shop, Self) {
        let shop = Shop::open().await;
        shop.service("orders");
        let web = shop.pod("web", "web");
        let (one, two) = (shop.pod("orders-1", "orders"), shop.pod("orders-2", "orders"));
        shop.slice("orders", &[&one, &two]);
        let (client, first, second) = tokio::join!(
            shop.sidecar(&web, &["orders"]),
            shop.sidecar(&one, &[]),
            shop.sidecar(&two, &[])
        );
        let apps = (Origin::saying(one.app(), "one").await, Origin::saying(two.app(), "two").await);
        // Until then there is no such Service, and who calls it is told so.
        shop.until_known("orders", &[&one, &two]).await;
        let load = Load::start(client.entry("orders"));
        load.passes(50).await;
        let servers = [(first, apps.0), (second, apps.1)];
        (shop, Self { one, two, client, load, _servers: servers })
    }

    async fn ends_well(self, shop: &Shop) {
        self.load.passes(50).await;
        self.load.without_failures().await;
        assert_eq!(shop.cluster.api.refused(), [], "the roles do not suffice");
    }
}

/// No request fails, and edits come through, the first one made while things go wrong.
async fn survives(fault: fn(&ApiServer)) {
    let (shop, served) = Served::start().await;
    let (one, two) = (&served.one, &served.two);
    fault(&shop.cluster.api);
    shop.slice("orders", &[one]);
    shop.until_known("orders", &[one]).await;
    served.client.until_endpoints("orders", 1).await;
    shop.slice("orders", &[one, two]);
    shop.until_known("orders", &[one, two]).await;
    served.client.until_endpoints("orders", 2).await;
    served.ends_well(&shop).await;
}

#[tokio::test]
async fn a_watch_in_torn_chunks_with_many_bookmarks_tells_the_same() {
    let cluster = Cluster::install().await;
    cluster.api.tear_chunks();
    cluster.api.bookmark_every(Duration::from_millis(20));
    let shop = Shop::on(cluster, &[]).await;
    shop.service("orders");
    let pods: Vec<Pod> = (0..10).map(|n| shop.pod(&format!("orders-{n}"), "orders")).collect();
    for count in 1..=pods.len() {
        let ready: Vec<&Pod> = pods[..count].iter().collect();
        shop.slice("orders", &ready);
        shop.until_known("orders", &ready).await;
    }
}

/// A watch that says nothing more is noticed at the latest when the client's own time is up; what
/// it knew is served until then.
#[tokio::test]
async fn silent_watches_leave_what_is_known_in_force() {
    let shop = Shop::open().await;
    shop.service("orders");
    let (one, two) = (shop.pod("orders-1", "orders"), shop.pod("orders-2", "orders"));
    shop.slice("orders", &[&one]);
    shop.until_known("orders", &[&one]).await;
    shop.cluster.api.hold_watches();
    shop.slice("orders", &[&one, &two]);
    assert_eq!(shop.known("orders").await.unwrap(), ["orders-1"]);
    assert!(matches!(shop.plane.try_get("/ready").await, Some((200, _))));
    shop.cluster.api.heal();
    shop.until_known("orders", &[&one, &two]).await;
    let open = |kind: &&str| shop.cluster.api.watches(kind) == 1;
    assert!(KINDS.iter().all(open), "a watch of each kind");
}
