//! `remora endpoints`, `top`, `tap`, `why`, `why-endpoint` and `diag` against a cluster: the double's
//! port-forwards lead to admin servers with recorded answers.

use std::process::{Output, Stdio};

use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use remora_core::names::{annotations::INJECTED, ports};
use remora_tests::{
    address::Block,
    apiserver::{ADMIN, ApiServer},
    origin::{Body, BodyError, Origin, Speaks, full},
    wait::within,
};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

const FRONTEND: &str = include_str!("../../../cli/src/observe/recorded/endpoints-frontend.json");
const CART: &str = include_str!("../../../cli/src/observe/recorded/endpoints-cart.json");
const RETRIED: &str = include_str!("../../../cli/src/observe/recorded/decision-retried.json");
const INBOUND: &str = include_str!("../../../cli/src/observe/recorded/decision-inbound.json");
const EVENTS: &str = include_str!("../../../cli/src/observe/recorded/events-frontend.json");
const WHY_ENDPOINT: &str = include_str!("../../../cli/src/observe/recorded/why-endpoint.json");
const ID: &str = "5f0c2a9be1d47a30";
/// Somebody's secret, where it does not belong.
const PLANTED: &str = "hunter2hunter2";

/// A cluster with three proxies and a control plane.
struct Shop {
    api: ApiServer,
    block: Block,
    programs: Vec<Origin>,
}

impl Shop {
    /// `frontend-0` and `cart-0` call Services, `orders-0` is called, `deaf-0` does not listen.
    async fn open() -> Self {
        let api = ApiServer::start().await;
        api.namespace("shop", &[("remora.io/inject", "enabled")]);
        let mut shop = Self { api, block: Block::claim(), programs: Vec::new() };
        shop.pod("shop", "plain-0", &json!({}), &json!({}));
        shop.program("shop", "frontend-0", frontend).await;
        shop.program("shop", "cart-0", cart).await;
        shop.program("shop", "orders-0", orders).await;
        shop.pod("shop", "deaf-0", &json!({ INJECTED: "0.1.0" }), &json!({}));
        shop.program("remora-system", "remora-control-plane-x", control_plane).await;
        shop
    }

    fn pod(&self, namespace: &str, name: &str, annotations: &Value, labels: &Value) {
        self.api.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name, "annotations": annotations,
                          "labels": labels },
            "spec": { "nodeName": "node1", "containers": [{ "name": "app", "image": "app",
                      "env": [{ "name": "PASSWORD", "value": PLANTED }] }] },
            "status": { "phase": "Running", "podIP": "10.0.0.1" },
        }));
    }

    async fn program(&mut self, namespace: &str, name: &str, answer: fn(&str) -> Option<String>) {
        let (port, annotations, labels) = match namespace {
            "shop" => (ports::PROXY_ADMIN, json!({ INJECTED: "0.1.0" }), json!({})),
            _ => {
                let labels = json!({ "app.kubernetes.io/component": "control-plane" });
                (ports::CONTROL_PLANE_ADMIN, json!({}), labels)
            }
        };
        self.pod(namespace, name, &annotations, &labels);
        let at = (self.block.next(), port).into();
        let serve = move |request: Request<Incoming>| async move { respond(&request, answer) };
        self.programs.push(Origin::serve(at, Speaks::H1, serve).await);
        self.api.route_pod(namespace, name, port, at);
    }

    /// `remora` as this user, and the file that it needs.
    fn command(&self, user: &str, words: &[&str]) -> (Command, NamedTempFile) {
        let kubeconfig = NamedTempFile::new().unwrap();
        std::fs::write(kubeconfig.path(), self.api.kubeconfig(user)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_remora-under-test"));
        command.args(words).arg("--kubeconfig").arg(kubeconfig.path()).kill_on_drop(true);
        (command, kubeconfig)
    }

    /// Runs `remora` as this user.
    async fn remora_as(&self, user: &str, words: &[&str]) -> Output {
        let (mut command, _kubeconfig) = self.command(user, words);
        within("remora to end", command.output()).await.unwrap()
    }

    async fn remora(&self, words: &[&str]) -> Output {
        self.remora_as(ADMIN, words).await
    }

    /// What it prints; it has to succeed.
    async fn stdout(&self, words: &[&str]) -> String {
        let output = self.remora(words).await;
        assert!(output.status.success(), "{words:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.stdout(&[words, &["--json"]].concat()).await).unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn respond(request: &Request<Incoming>, answer: fn(&str) -> Option<String>) -> Response<Body> {
    let path = request.uri().path_and_query().unwrap().as_str();
    match answer(path) {
        // Which goes on.
        Some(text) if path.starts_with("/tap") => {
            let text = stream::iter([Ok::<_, BodyError>(Frame::data(text.into()))]);
            Response::new(StreamBody::new(text.chain(stream::pending())).boxed_unsync())
        }
        Some(text) => Response::new(full(text)),
        None => {
            let mut absent = Response::new(full("no such page\n"));
            *absent.status_mut() = StatusCode::NOT_FOUND;
            absent
        }
    }
}

fn frontend(path: &str) -> Option<String> {
    Some(match path.split('?').next().unwrap() {
        "/endpoints" => FRONTEND.to_owned(),
        "/events" => EVENTS.to_owned(),
        "/decisions" => RETRIED.to_owned(),
        "/config" => json!({ "version": "0.1.0", "token": PLANTED }).to_string(),
        "/metrics" => format!("remora_build_info{{version=\"0.1.0\"}} 1\nGET /a?k={PLANTED}\n"),
        "/tap" => {
            let record: Value = serde_json::from_str(RETRIED).unwrap();
            // One that is not wanted before the one that is.
            let mut other = record["decisions"][0].clone();
            other["method"] = "PUT".into();
            format!("{other}\n{}\n", record["decisions"][0])
        }
        _ => return None,
    })
}

fn cart(path: &str) -> Option<String> {
    match path {
        "/endpoints" => Some(CART.to_owned()),
        _ => path.starts_with("/decisions").then(|| json!({ "decisions": [] }).to_string()),
    }
}

fn orders(path: &str) -> Option<String> {
    match path {
        "/endpoints" => Some(json!({ "services": [] }).to_string()),
        _ => path.starts_with("/decisions").then(|| INBOUND.to_owned()),
    }
}

fn control_plane(path: &str) -> Option<String> {
    path.starts_with("/why-endpoint?address=10.0.0.2:8080").then(|| WHY_ENDPOINT.to_owned())
}

#[tokio::test]
async fn proxies_are_reached_by_port_forward_and_one_that_is_silent_is_named() {
    let shop = Shop::open().await;
    let seen = shop.json(&["endpoints", "orders.shop"]).await;
    assert_eq!(seen["proxies"], 3);
    assert_eq!(seen["unreachable"].as_array().unwrap().len(), 1, "{seen}");
    assert_eq!(seen["unreachable"][0]["pod"], "deaf-0");
    let why = seen["unreachable"][0]["why"].as_str().unwrap();
    assert!(why.contains("error forwarding port 4191"), "{why}");
    let endpoints = seen["services"][0]["endpoints"].as_array().unwrap();
    assert_eq!(endpoints[1]["state"], "open");
    assert_eq!((&endpoints[1]["seen_by"], &endpoints[1]["known_to"]), (&1.into(), &2.into()));

    let output = shop.remora(&["routes", "orders", "--pod", "shop/cart-0"]).await;
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("shop/orders/read"), "{table}");
    assert!(stderr(&output).contains("1 of 1 proxies answer in the cluster of context double"));

    let output = shop.remora(&["endpoints", "nobody"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("known are shop/empty:80, shop/orders:80"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test]
async fn who_may_not_forward_ports_is_told_so() {
    let shop = Shop::open().await;
    let names = json!({ "name": "reader" });
    shop.api.put(json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": names, "rules": [{ "apiGroups": [""], "resources": ["pods"],
                                       "verbs": ["get", "list"] }] }));
    shop.api.put(
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": names, "subjects": [{ "kind": "User", "name": "jane" }],
        "roleRef": { "kind": "ClusterRole", "name": "reader" } }),
    );
    shop.api.enforce_rbac();
    for words in [&["tap"][..], &["endpoints"], &["top"], &["why", ID]] {
        let output = shop.remora_as("jane", words).await;
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        let said = stderr(&output);
        assert!(said.contains("create pods/portforward in shop"), "{words:?}: {said}");
    }
}

#[tokio::test]
async fn tap_prints_records_as_they_come_until_it_has_as_many_as_were_asked_for() {
    let shop = Shop::open().await;
    let words = ["tap", "orders", "--method", "get", "--max", "1", "--pod", "frontend-0"];
    let line = shop.stdout(&words).await;
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("GET /orders/42 200 61 ms"), "{line}");
    assert!(line.contains(&format!("id={ID} attempts=2")), "{line}");
    let record = shop.json(&words).await;
    assert_eq!((&record["proxy"], &record["id"]), (&"shop/frontend-0".into(), &ID.into()));
    let output = shop.remora(&["tap", "--pod", "cart-0"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("it has no /tap; is it of an older version?"));
}

#[tokio::test]
async fn ctrl_c_ends_tap_and_that_is_no_failure() {
    let shop = Shop::open().await;
    let (mut command, _kubeconfig) = shop.command(ADMIN, &["tap", "--pod", "frontend-0"]);
    let mut tap = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(tap.stdout.take().unwrap()).lines();
    for method in ["PUT", "GET"] {
        let line = within("a record", lines.next_line()).await.unwrap().unwrap();
        assert!(line.contains(&format!("{method} /orders/42")), "{line}");
    }
    let pid = i32::try_from(tap.id().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    assert!(within("tap to end", tap.wait()).await.unwrap().success());
}

#[tokio::test]
async fn why_finds_the_record_and_the_other_side_of_it() {
    let shop = Shop::open().await;
    let story = shop.stdout(&["why", ID]).await;
    for part in [
        "The proxy of shop/frontend-0 took GET /orders/42",
        "Attempt 1",
        "So it was tried again after a pause of 12 ms.",
        "The proxy of shop/orders-0 took GET /orders/42",
    ] {
        assert!(story.split_whitespace().collect::<Vec<_>>().join(" ").contains(part), "{story}");
    }
    let records = shop.json(&["why", ID]).await;
    let pods: Vec<&str> =
        records.as_array().unwrap().iter().map(|one| one["pod"].as_str().unwrap()).collect();
    assert_eq!(pods, ["frontend-0", "orders-0"]);
    let output = shop.remora(&["why", "0000000000000000"]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(
        said.contains("3 proxies were asked") && said.contains("shop/deaf-0 did not answer"),
        "{said}"
    );
}

#[tokio::test]
async fn why_endpoint_has_event_push_and_history() {
    let shop = Shop::open().await;
    let known = shop.json(&["why-endpoint", "10.0.0.2:8080"]).await;
    let story = known["story"].as_array().unwrap();
    let what: Vec<&str> = story.iter().map(|step| step["what"].as_str().unwrap()).collect();
    for step in [
        "event: it became ready",
        "sent to shop/frontend-0",
        "confirmed",
        "applied",
        "first connection",
        "last success",
        "last failure",
    ] {
        assert!(what.contains(&step), "no {step:?} in {what:?}");
    }
    let applied = story.iter().find(|step| step["what"] == "applied").unwrap();
    assert_eq!(applied["after_event_ms"], 12);
    let output = shop.remora(&["why-endpoint", "10.9.9.9:1"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("knows 10.9.9.9:1"), "{}", stderr(&output));
}

#[tokio::test]
async fn top_prints_one_snapshot_where_there_is_no_terminal() {
    let shop = Shop::open().await;
    let table = shop.stdout(&["top"]).await;
    assert!(!table.contains('\x1b'), "{table}");
    assert!(table.lines().nth(1).unwrap().starts_with("shop/orders:80"), "{table}");
    assert!(table.contains("open at 1 of 2"), "{table}");
}

#[tokio::test]
async fn diag_has_what_a_report_needs_and_no_secret() {
    let shop = Shop::open().await;
    shop.api.set_log(
        "shop",
        "frontend-0",
        &format!("info: GET /a?k={PLANTED}\npassword={PLANTED}\n"),
    );
    shop.api.put(json!({ "apiVersion": "v1", "kind": "Event",
        "metadata": { "namespace": "shop", "name": "e1" }, "type": "Warning", "reason": "Unhealthy",
        "message": format!("GET http://10.0.0.1/ready?k={PLANTED} failed"),
        "involvedObject": { "kind": "Pod", "namespace": "shop", "name": "cart-0" } }));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("diag.tar");
    let output = shop.remora(&["diag", "--output", file.to_str().unwrap()]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let bytes = std::fs::read(&file).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(!text.contains(PLANTED), "a secret is in the archive");
    for part in [
        "remora-diag/versions.json",
        "remora-diag/proxies/shop/frontend-0/endpoints.json",
        "remora-diag/proxies/shop/frontend-0/metrics.txt",
        "remora-diag/kubernetes/version.json",
        "remora-diag/kubernetes/pods/shop.json",
        "remora-diag/kubernetes/events/shop.json",
        "remora-diag/kubernetes/logs/shop/frontend-0/remora-proxy.log",
        "proxies/shop/deaf-0/config.json: error forwarding port 4191",
        "proxies/shop/cart-0/metrics.txt: it has no /metrics",
        "Unhealthy",
    ] {
        assert!(text.contains(part), "no {part} in the archive");
    }
    assert!(!text.contains("plain-0"), "a pod without a proxy is none of ours");
}
