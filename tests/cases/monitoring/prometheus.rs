//! The same by Prometheus itself.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use remora_tests::{
    address::Block,
    mesh::{NAMESPACE, Pair},
    origin::{Origin, get},
    sidecar::try_get,
    wait::eventually,
};
use serde_json::Value;

use super::{DASHBOARDS, dashboard, path, queries, rules, text};

/// Where a program is; `None`, and a line that says so, where it is not.
fn program(name: &str) -> Option<std::path::PathBuf> {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&dirs).map(|dir| dir.join(name)).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: no {name}; it is in Debian's package prometheus");
    }
    found
}

#[test]
fn promtool_finds_the_rules_right_and_each_alert_fires_when_it_should() {
    let Some(promtool) = program("promtool") else { return };
    for arguments in [["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]] {
        let mut command = Command::new(&promtool);
        let output =
            command.args(arguments).current_dir(path("deploy/prometheus")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let problems = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}{problems}");
    }
}

/// A Prometheus that ends with the test.
struct Prometheus {
    process: Child,
    addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Prometheus {
    fn start(program: &Path, addr: SocketAddr, jobs: &[Value]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = serde_json::json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [path("deploy/prometheus/rules.yaml").canonicalize().unwrap()],
            "scrape_configs": jobs,
        });
        // JSON is YAML.
        let file = dir.path().join("prometheus.yaml");
        std::fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()));
        command.arg(format!("--web.listen-address={addr}")).arg("--log.level=error");
        let process = command.stdin(Stdio::null()).spawn().unwrap();
        Self { process, addr, _dir: dir }
    }

    /// The result of a query; `Err`: what is wrong with it.
    async fn ask(&self, query: &str) -> Option<Result<Vec<Value>, String>> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let (_, body) = try_get(self.addr, &format!("/api/v1/query?query={encoded}")).await?;
        // It is sent in chunks; the answer is the one line that is no chunk's length.
        let line = body.lines().find(|line| line.starts_with('{'))?;
        let answer: Value = serde_json::from_str(line).ok()?;
        if answer["status"] != "success" {
            return Some(Err(text(&answer, "error").to_owned()));
        }
        Some(Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default()))
    }
}

/// The query as Grafana asks it.
fn asked(query: &str) -> String {
    let ranged = query.replace("$__rate_interval", "10s").replace("$__range", "1m");
    ranged.replace("$namespace", NAMESPACE).replace("$service", "orders")
}

fn job(name: &str, addr: SocketAddr, labels: Value) -> Value {
    let target = serde_json::json!({"targets": [addr.to_string()], "labels": labels});
    serde_json::json!({"job_name": name, "honor_labels": true, "static_configs": [target]})
}

/// Titles of what must have data while requests go on, whatever else does.
const GOLDEN: [&str; 13] = [
    "Requests",
    "Success",
    "p50",
    "p99",
    "Proxies",
    "Arrives by mTLS",
    "Requests by Service",
    "Success by Service",
    "p99 by Service",
    "Answers by class",
    "Latency",
    "Requests by caller",
    "Proxies connected",
];

#[tokio::test]
async fn a_prometheus_that_scrapes_a_mesh_answers_every_query_and_has_the_golden_signals() {
    let Some(program) = program("prometheus") else { return };
    let pair = Pair::start(&[]).await;
    let _origin = Origin::saying(pair.server.pod.app(), "hello").await;
    let mut jobs = Vec::new();
    for pod in [&pair.client.pod, &pair.server.pod] {
        let labels = serde_json::json!({"proxy_namespace": NAMESPACE, "proxy_pod": pod.name});
        jobs.push(job(&pod.name, SocketAddr::from((pod.ip, 4191)), labels));
    }
    let replica = serde_json::json!({"replica": "plane"});
    jobs.push(job("plane", pair.mesh.plane_admin(), replica));
    let block = Block::claim();
    let prometheus = Prometheus::start(&program, SocketAddr::from((block.next(), 9090)), &jobs);
    for name in DASHBOARDS {
        for (title, query, _) in queries(&dashboard(name)) {
            let query = asked(&query);
            let golden = GOLDEN.contains(&title.as_str());
            eventually(&format!("data for {title}: {query}"), async || {
                assert_eq!(get(pair.entry()).await.unwrap().status, 200);
                let found = prometheus.ask(&query).await?;
                let found =
                    found.unwrap_or_else(|error| panic!("{name}, {title}: {error}\n{query}"));
                (!golden || !found.is_empty()).then_some(())
            })
            .await;
        }
    }
    for rule in rules() {
        let query = text(&rule, "expr");
        let found = eventually("an answer", async || prometheus.ask(query).await).await;
        assert!(found.is_ok(), "{found:?}: {query}");
    }
}
