//! Whole rounds against an API server of a few lines; its texts are recorded from Kubernetes v1.36.2.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use clap::Parser;
use http::{Request, Response};
use http_body_util::Full;
use kube::{Client, client::Body};
use serde_json::{Value, json};

use super::{Args, Line, Status, api::Reader, connect::Cluster, round, until_fine};

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    args: Args,
}

fn args(flags: &[&str]) -> Args {
    Program::parse_from(["check"].iter().chain(flags)).args
}

/// Status, content type and body; nothing where it never answers.
type Answer = Option<(u16, &'static str, String)>;

fn json_of(status: u16, value: &Value) -> Answer {
    Some((status, "application/json", value.to_string()))
}

fn refused(status: u16, message: &str) -> Answer {
    json_of(status, &json!({ "kind": "Status", "message": message, "code": status }))
}

fn cluster(answer: impl Fn(&str, &str) -> Answer + Send + Sync + 'static) -> (Reader, Cluster) {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: Request<Body>| {
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let answer = answer(request.method().as_str(), &path);
        async move {
            let Some((status, kind, body)) = answer else { return std::future::pending().await };
            Response::builder()
                .status(status)
                .header("content-type", kind)
                .header("date", "Sat, 21 Nov 2026 00:24:29 GMT")
                .body(Full::new(Bytes::from(body)))
        }
    });
    let client = Client::new(service, "default");
    let url = "https://10.96.0.1:443".to_owned();
    let cluster = Cluster { client: client.clone(), context: "test".to_owned(), url };
    let clock = || SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_220_669_500);
    (Reader::new(client, clock), cluster)
}

fn version() -> Answer {
    json_of(
        200,
        &json!({ "major": "1", "minor": "36", "gitVersion": "v1.36.2", "gitCommit": "",
                 "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "",
                 "platform": "linux/amd64" }),
    )
}

fn status_of<'a>(lines: &'a [Line], check: &str) -> &'a Line {
    let line = lines.iter().find(|line| line.check == check);
    line.unwrap_or_else(|| panic!("no line {check} in {lines:#?}"))
}

#[tokio::test]
async fn where_nothing_is_installed_the_cluster_is_looked_at() {
    let (reader, cluster) = cluster(|method, path| match (method, path) {
        (_, "/version") => version(),
        ("POST", _) => json_of(201, &json!({ "status": { "allowed": false } })),
        (_, "/api/v1/nodes?limit=250") => json_of(
            200,
            &json!({ "metadata": {}, "items": [{ "metadata": { "name": "node1" }, "status": {
                "nodeInfo": { "kubeletVersion": "v1.36.2", "operatingSystem": "linux",
                    "architecture": "", "bootID": "", "containerRuntimeVersion": "",
                    "kernelVersion": "", "kubeProxyVersion": "", "machineID": "", "osImage": "",
                    "systemUUID": "" } } }] }),
        ),
        _ => refused(404, "not found"),
    });
    let lines = round(&reader, &cluster, &args(&[])).await;
    assert!(lines[0].message.contains("nothing is installed"), "{lines:#?}");
    assert_eq!(status_of(&lines, "kubernetes.nodes").status, Status::Ok);
    assert_eq!(status_of(&lines, "clocks.api-server").status, Status::Ok);
    assert_eq!(status_of(&lines, "leftovers.webhook").status, Status::Ok);
    assert_eq!(status_of(&lines, "permissions.install").status, Status::Failed);
}

#[tokio::test]
async fn where_nothing_may_be_read_everything_is_skipped_with_the_permission() {
    let (reader, cluster) = cluster(|method, path| match path {
        "/version" => version(),
        "/api/v1/namespaces/remora-system" => {
            json_of(200, &json!({ "metadata": { "name": "remora-system" } }))
        }
        _ => refused(
            403,
            if method == "POST" {
                "pods is forbidden: User \"jane\" cannot create resource \"pods\" in API group \"\" \
                 in the namespace \"default\""
            } else {
                "secrets is forbidden: User \"jane\" cannot get resource \"secrets\""
            },
        ),
    });
    let lines = round(&reader, &cluster, &args(&[])).await;
    let rest: Vec<&Line> =
        lines.iter().filter(|line| !line.check.starts_with("kubernetes.")).collect();
    assert!(rest.len() > 12, "{lines:#?}");
    for line in rest {
        assert_eq!(line.status, Status::Skipped, "{line:?}");
    }
    let issuer = status_of(&lines, "certificates.issuer");
    assert!(issuer.message.contains("get secrets in remora-system"), "{issuer:?}");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_never_answers_is_one_failed_line() {
    let (reader, cluster) = cluster(|_, _| None);
    let lines = round(&reader, &cluster, &args(&[])).await;
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0].status, Status::Failed);
    assert!(lines[0].message.ends_with("no answer within 5 s"), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_when_nothing_fails_and_when_the_time_is_up() {
    let fine_after = |rounds: usize| {
        let asked = AtomicUsize::new(0);
        move |method: &str, path: &str| match (method, path) {
            (_, "/version") => {
                if asked.fetch_add(1, Ordering::Relaxed) < rounds {
                    refused(503, "apiserver not ready")
                } else {
                    version()
                }
            }
            ("POST", _) => json_of(201, &json!({ "status": { "allowed": true } })),
            (_, "/api/v1/nodes?limit=250") => refused(403, "nodes is forbidden"),
            _ => refused(404, "not found"),
        }
    };
    let (reader, cluster_then) = cluster(fine_after(3));
    let lines = until_fine(&reader, &cluster_then, &args(&["--wait", "1m"])).await;
    assert!(lines.len() > 1 && lines.iter().all(|line| line.status != Status::Failed));

    let (reader, cluster_never) = cluster(fine_after(usize::MAX));
    let began = tokio::time::Instant::now();
    let lines = until_fine(&reader, &cluster_never, &args(&["--wait", "1m"])).await;
    assert!(lines[0].message.ends_with("apiserver not ready (HTTP 503)"), "{lines:?}");
    assert!(began.elapsed() <= Duration::from_secs(60));
}

#[tokio::test]
async fn lists_go_on_page_by_page_and_end_at_the_bound() {
    let (reader, _) = cluster(|_, path| {
        let page = match path {
            "/things?limit=250" => json!({ "metadata": { "continue": "a" }, "items": [1, 2] }),
            "/things?limit=250&continue=a" => {
                json!({ "metadata": { "continue": "b" }, "items": [3, 4] })
            }
            "/things?limit=250&continue=b" => json!({ "metadata": {}, "items": null }),
            other => panic!("asked for {other}"),
        };
        json_of(200, &page)
    });
    let odd = |n: u32| (n % 2 == 1).then_some(n);
    let all = reader.list("/things", "list things", 100, odd).await.unwrap();
    assert_eq!((all.items, all.cut), (vec![1, 3], false));
    let some = reader.list("/things", "list things", 3, Some::<u32>).await.unwrap();
    assert_eq!((some.items, some.cut), (vec![1, 2, 3, 4], true));
}

#[tokio::test]
async fn what_a_pod_says_is_told_from_what_keeps_the_api_server_from_it() {
    let (reader, _) = cluster(|_, path| {
        let pods = "/api/v1/namespaces/shop/pods";
        match path.strip_prefix(pods).unwrap_or_default() {
            "/web:4191/proxy/ready" => {
                Some((503, "text/plain", "not ready: identity\n".to_owned()))
            }
            "/gone:4191/proxy/ready" => refused(404, "pods \"gone\" not found"),
            _ => refused(503, "error trying to reach service: dial tcp: connection refused"),
        }
    });
    let web = reader.pod("shop", "web", 4191, "/ready").await.unwrap();
    assert_eq!((web.status.as_u16(), web.text().as_str()), (503, "not ready: identity\n"));
    assert!(reader.pod("shop", "gone", 4191, "/ready").await.is_err());
    let deaf = reader.pod("shop", "deaf", 4191, "/ready").await.unwrap_err();
    assert!(deaf.to_string().contains("connection refused (HTTP 503)"), "{deaf}");
}
