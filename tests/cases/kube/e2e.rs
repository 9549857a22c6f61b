//! All of it: the installation's flags and rights, admission, the rules that the injected init
//! container writes, the injected sidecar, and applications that dial a Service's address.

use std::net::{Ipv4Addr, SocketAddr};

use remora_cli::up::net::NODE;
use remora_tests::{
    mesh::{POD_PORT, SERVICE_PORT},
    origin::{Origin, get},
    sidecar::try_get,
    wait::eventually,
};
use serde_json::{Value, json};

use super::{
    cluster::{Cluster, Program, is_injected, pod},
    kubelet::{Running, container, on_a_node},
    shop::{SHOP, slice},
};
use remora_tests::load::Load;

/// The Service's address.
const ORDERS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

#[test]
fn pods_of_a_meshed_namespace_talk_mtls_through_churn_and_an_outage_of_the_control_plane() {
    const NAME: &str = "kube::e2e::pods_of_a_meshed_namespace_talk_mtls_through_churn_and_an_outage_of_the_control_plane";
    on_a_node(NAME, async {
        let node = Node::start().await;
        let web = node.pod("web").await;
        let (one, two) = tokio::join!(node.pod("orders-1"), node.pod("orders-2"));
        let _apps = tokio::join!(serve(&one, "one"), serve(&two, "two"));
        node.ready(&[&one, &two]);
        let entry = (ORDERS, SERVICE_PORT).into();
        web.run(move || until_answered(entry)).await;
        let load = web.run(move || async move { Load::start(entry) }).await;
        load.passes(200).await;
        for server in [&one, &two] {
            let mtls =
                server.metric("remora_inbound_http_requests_total", &[("tls", "mtls")]).await;
            assert!(mtls > 10, "{} had {mtls} requests over mTLS", server.name);
            let plain =
                server.metric("remora_inbound_http_requests_total", &[("tls", "none")]).await;
            assert_eq!(plain, 0, "{} had requests in plaintext", server.name);
        }

        node.ready(&[&two]);
        until_endpoints(&web, 1).await;
        load.passes(50).await;
        let three = node.pod("orders-3").await;
        serve(&three, "three").await;
        node.ready(&[&two, &three]);
        until_endpoints(&web, 2).await;
        load.passes(50).await;

        // Nobody tells of what changes meanwhile, and what is known goes on being served.
        let addr = node.plane.addr;
        let Node { cluster, plane, injector } = node;
        drop(plane);
        load.passes(200).await;
        let node = Node { plane: control_plane_after(&cluster, &three).await, cluster, injector };
        assert_eq!(node.plane.addr, addr);
        node.plane.ready().await;
        until_endpoints(&web, 1).await;
        node.ready(&[&one, &two, &three]);
        until_endpoints(&web, 3).await;
        load.passes(200).await;
        load.without_failures().await;
        assert_eq!(node.cluster.api.refused(), [], "the roles do not suffice");
    });
}

#[test]
fn under_strict_policy_probes_are_answered_and_strangers_are_not() {
    const NAME: &str = "kube::e2e::under_strict_policy_probes_are_answered_and_strangers_are_not";
    on_a_node(NAME, async {
        let node = Node::start().await;
        let mut wanted = named("orders-1");
        wanted["metadata"]["annotations"] =
            json!({"config.remora.io/default-inbound-policy": "all-authenticated"});
        let app = &mut wanted["spec"]["containers"][0];
        app["readinessProbe"] = json!({"httpGet": {"path": "/healthz", "port": POD_PORT}});
        app["livenessProbe"] = json!({"tcpSocket": {"port": POD_PORT}});
        let orders = node.run(wanted).await;
        let stored = node.cluster.api.object("pods", SHOP, "orders-1").unwrap();
        let probe = |kind: &str| {
            let get = &container(&stored, "app")[kind]["httpGet"];
            let port = u16::try_from(get["port"].as_u64().unwrap()).unwrap();
            (port, get["path"].as_str().unwrap().to_owned())
        };
        let ask = async |(port, path): (u16, String)| {
            let (status, _) = try_get((orders.ip, port).into(), &path).await?;
            Some(status)
        };
        let (port, path) = probe("livenessProbe");
        assert_eq!((port, path.as_str()), (4191, "/probe/app/liveness"));
        assert_eq!(ask((port, path.clone())).await, Some(503), "nobody listens yet");
        serve(&orders, "hello").await;
        // The policy is in force from the first moment; nobody is let in before it is known.
        assert_eq!(ask((POD_PORT, "/".to_owned())).await, Some(403), "a stranger in plaintext");
        assert_eq!(ask((port, path)).await, Some(200));
        assert_eq!(ask(probe("readinessProbe")).await, Some(200));
        let web = node.pod("web").await;
        node.ready(&[&orders]);
        web.run(|| until_answered((ORDERS, SERVICE_PORT).into())).await;
    });
}

#[test]
fn an_ordinary_container_serves_as_a_native_one_does() {
    const NAME: &str = "kube::e2e::an_ordinary_container_serves_as_a_native_one_does";
    on_a_node(NAME, async {
        let node = Node::start().await;
        let ordinary = async |name: &str| {
            let mut wanted = named(name);
            wanted["metadata"]["annotations"] =
                json!({"config.remora.io/native-sidecar": "disabled"});
            node.run(wanted).await
        };
        let (web, orders) = (ordinary("web").await, ordinary("orders-1").await);
        let stored = node.cluster.api.object("pods", SHOP, "web").unwrap();
        assert_eq!(stored["spec"]["containers"][0]["name"], "remora-proxy");
        serve(&orders, "hello").await;
        node.ready(&[&orders]);
        web.run(|| until_answered((ORDERS, SERVICE_PORT).into())).await;
        let mtls = [("tls", "mtls")];
        assert!(orders.metric("remora_inbound_http_requests_total", &mtls).await >= 1);
    });
}

/// The programs of an installation on the node.
struct Node {
    cluster: Cluster,
    plane: Program,
    injector: Program,
}

impl Node {
    async fn start() -> Self {
        let cluster = Cluster::install().await;
        // There is no DNS here.
        cluster.set_flag("remora-injector", "control-plane", &format!("{NODE}:8086"));
        cluster.set_flag("remora-control-plane", "listen", &format!("{NODE}:8086"));
        cluster.api.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1",
            "labels": {"topology.kubernetes.io/zone": "zone-a"}}}));
        cluster.api.namespace(SHOP, &[("remora.io/inject", "enabled")]);
        cluster.api.put(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "orders", "namespace": SHOP,
                         "annotations": {"timeout.remora.io/connect": "10s"}},
            "spec": {"clusterIP": ORDERS, "selector": {"app": "orders"},
                     "ports": [{"port": SERVICE_PORT, "targetPort": POD_PORT}]}}));
        let (injector, plane) = tokio::join!(cluster.injector(), cluster.control_plane(&[]));
        tokio::join!(injector.ready(), plane.ready());
        cluster.labelled(SHOP, Some("enabled")).await;
        Self { cluster, plane, injector }
    }

    /// A pod through admission and to life.
    async fn pod(&self, name: &str) -> Running {
        self.run(named(name)).await
    }

    /// The same with a pod of the test's own.
    async fn run(&self, wanted: Value) -> Running {
        let admitted = self.cluster.create(SHOP, wanted).await.unwrap();
        assert!(is_injected(&admitted));
        let name = admitted["metadata"]["name"].as_str().unwrap();
        let number = match name.rsplit_once('-') {
            Some((_, number)) => 2 + number.parse::<u8>().unwrap(),
            None => 2,
        };
        Running::start(&self.cluster, &admitted, Ipv4Addr::new(10, 244, 0, number)).await
    }

    /// Writes who is behind the Service.
    fn ready(&self, pods: &[&Running]) {
        write_slice(&self.cluster, pods);
    }
}

/// A pod with a port, whose number in its name is that of its address.
fn named(name: &str) -> Value {
    let mut wanted = pod(name);
    wanted["spec"]["containers"][0]["ports"] = json!([{"containerPort": POD_PORT}]);
    wanted
}

/// Asks until there is an answer: the control plane learns of endpoints a moment after they are
/// written.
async fn until_answered(entry: SocketAddr) {
    let ask = async || get(entry).await.ok().filter(|answer| answer.status == 200);
    eventually("an answer of the application", ask).await;
}

fn write_slice(cluster: &Cluster, pods: &[&Running]) {
    let ready: Vec<(&str, Ipv4Addr)> = pods.iter().map(|pod| (pod.name.as_str(), pod.ip)).collect();
    cluster.api.put(slice("orders", &ready));
}

/// Changes the endpoints, and starts the control plane again.
async fn control_plane_after(cluster: &Cluster, only: &Running) -> Program {
    write_slice(cluster, &[only]);
    cluster.control_plane(&[]).await
}

async fn until_endpoints(pod: &Running, count: usize) {
    eventually(&format!("{count} endpoints of orders"), async || {
        (pod.endpoints("orders").await == count).then_some(())
    })
    .await;
}

/// An application in a pod, which lives as long as the pod's thread.
async fn serve(pod: &Running, text: &'static str) {
    let ip = pod.ip;
    pod.run(move || async move {
        let app = Origin::saying((ip, POD_PORT).into(), text).await;
        tokio::task::spawn_local(async move {
            let _app = app;
            std::future::pending::<()>().await;
        });
    })
    .await;
}
