//! The access log: one line for a request, on the proxy's standard output.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use http::{Request, Response, StatusCode};
use remora_core::{settings::AccessLog, telemetry::LogFormat};
use remora_tests::{
    mesh::Mesh,
    origin::{Answer, Body, Origin, Speaks, empty, full, h1},
    sidecar::Sidecar,
    wait::{eventually, within},
    wire::Wire,
};
use serde_json::Value;
use tempfile::TempDir;

const LINES: &str = "remora_access_log_lines_total";
const DROPPED: &str = "remora_access_log_dropped_total";

/// `web` calls `orders`, and writes what it is told to write.
struct World {
    _mesh: Mesh,
    client: Sidecar,
    server: Sidecar,
    app: Origin,
    dir: TempDir,
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_remora-under-test"))
}

fn file(dir: &TempDir) -> PathBuf {
    dir.path().join("lines")
}

impl World {
    async fn start(which: AccessLog, format: Option<LogFormat>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let out = File::create(file(&dir)).unwrap();
        Self::writing_to(which, format, dir, out.into()).await
    }

    /// The application answers `/broken` with 500, `/slow` never and everything else with 200.
    async fn writing_to(
        which: AccessLog,
        format: Option<LogFormat>,
        dir: TempDir,
        out: Stdio,
    ) -> Self {
        let mut mesh = Mesh::new();
        (mesh.sight.access_log, mesh.sight.access_log_format) = (which, format);
        mesh.service("orders", &[]);
        let (web, orders) = (mesh.pod("web", "web"), mesh.pod("orders-1", "orders"));
        mesh.start_plane().await;
        let client = mesh.sidecar_writing(program(), &web, &["orders"], out).await;
        // Its lines are not looked at.
        mesh.sight.access_log = AccessLog::Off;
        let server = mesh.sidecar(&orders, &[]).await;
        let handler = |request: Request<_>| async move {
            if request.uri().path() == "/slow" {
                std::future::pending::<()>().await;
            }
            let mut response = Response::new(full("answer"));
            if request.uri().path() == "/broken" {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
            response
        };
        let app = Origin::serve(orders.app(), Speaks::H1, handler).await;
        Self { _mesh: mesh, client, server, app, dir }
    }

    async fn ask(&self, requests: impl IntoIterator<Item = Request<Body>>) -> Vec<Answer> {
        let mut sender = h1(self.client.entry("orders")).await;
        let mut answers = Vec::new();
        for request in requests {
            let response = within("an answer", sender.send_request(request)).await.unwrap();
            answers.push(Answer::read(response).await.unwrap());
        }
        answers
    }

    /// All lines, once there are so many.
    async fn lines(&self, count: usize) -> Vec<String> {
        eventually(&format!("{count} lines"), async || {
            let text = std::fs::read_to_string(file(&self.dir)).unwrap();
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            (lines.len() >= count).then_some(lines)
        })
        .await
    }
}

fn request(path: &str) -> Request<Body> {
    Request::get(path).header("host", "orders").body(empty()).unwrap()
}

fn paths(lines: &[String]) -> Vec<String> {
    let path = |line: &String| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["url.path"].as_str().unwrap().to_owned()
    };
    lines.iter().map(path).collect()
}

#[tokio::test]
async fn all_has_a_line_for_each_request_in_json_by_opentelemetrys_names() {
    let world = World::start(AccessLog::All, Some(LogFormat::Json)).await;
    let traced = Request::get("/cart?card=4111")
        .header("host", "orders:80")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");
    let traced = traced.body(empty()).unwrap();
    let answers = world.ask([traced, request("/broken")]).await;
    let lines = world.lines(2).await;
    assert!(!lines[0].contains("card"), "{}", lines[0]);
    let line: Value = serde_json::from_str(&lines[0]).unwrap();
    let endpoint = world.server.pod.address();
    for (key, wanted) in [
        ("remora.direction", Value::from("outbound")),
        ("http.request.method", "GET".into()),
        ("url.path", "/cart".into()),
        ("http.response.status_code", 200.into()),
        ("error.type", Value::Null),
        ("server.address", "orders".into()),
        ("server.port", 80.into()),
        ("client.address", "127.0.0.1".into()),
        ("network.protocol.name", "http".into()),
        ("network.protocol.version", "1.1".into()),
        ("network.peer.address", endpoint.ip().to_string().into()),
        ("network.peer.port", endpoint.port().into()),
        ("remora.target", "shop/orders:80".into()),
        ("remora.service", "shop/orders:80".into()),
        ("remora.attempts", 1.into()),
        ("remora.peer", world.server.pod.identity().into()),
        ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736".into()),
    ] {
        assert_eq!(line[key], wanted, "{key} of {line:#}");
    }
    assert!(line["duration"].as_f64().is_some_and(|seconds| seconds > 0.0), "{line:#}");
    assert!(line["timestamp"].as_str().is_some_and(|at| at.ends_with('Z')), "{line:#}");
    let line: Value = serde_json::from_str(&lines[1]).unwrap();
    assert_eq!(line["error.type"], "500");
    // The record has the rest.
    assert_eq!(
        line["remora.decision.id"],
        answers[1].headers["remora-decision-id"].to_str().unwrap()
    );
    assert_eq!(world.client.metric(LINES, &[]).await, 2);
}

#[tokio::test]
async fn text_is_the_format_where_nobody_says_another() {
    let world = World::start(AccessLog::All, None).await;
    world.ask([request("/cart")]).await;
    let line = &world.lines(1).await[0];
    assert!(line.starts_with("timestamp=20"), "{line}");
    assert!(
        line.contains(" http.request.method=GET url.path=/cart http.response.status_code=200 ")
    );
}

#[tokio::test]
async fn errors_has_lines_for_what_failed_alone() {
    let world = World::start(AccessLog::Errors, Some(LogFormat::Json)).await;
    world.ask(["/fine", "/broken", "/fine", "/broken"].map(request)).await;
    assert_eq!(paths(&world.lines(2).await), ["/broken", "/broken"]);
}

#[tokio::test]
async fn sampled_has_those_and_one_in_a_hundred_of_the_others() {
    let world = World::start(AccessLog::Sampled, Some(LogFormat::Json)).await;
    let all: Vec<_> = (0..150).map(|n| request(&format!("/{n}"))).collect();
    world.ask(all).await;
    world.ask([request("/broken")]).await;
    assert_eq!(paths(&world.lines(3).await), ["/0", "/100", "/broken"]);
}

#[tokio::test]
async fn a_connection_of_bytes_has_a_line_when_it_is_over() {
    let world = World::start(AccessLog::All, Some(LogFormat::Json)).await;
    let mut client = Wire::dial(world.client.entry("orders")).await;
    client.send("\x01ping").await;
    // The application takes it for a bad request.
    let answer = client.rest().await.unwrap();
    drop(client);
    let line: Value = serde_json::from_str(&world.lines(1).await[0]).unwrap();
    for (key, wanted) in [
        ("network.transport", Value::from("tcp")),
        ("remora.target", "shop/orders:80".into()),
        ("remora.attempts", 1.into()),
        ("remora.peer", world.server.pod.identity().into()),
        ("remora.sent_bytes", 5.into()),
        ("remora.received_bytes", answer.len().into()),
        ("error.type", Value::Null),
    ] {
        assert_eq!(line[key], wanted, "{key} of {line:#}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_wait_has_its_line() {
    let world = World::start(AccessLog::Sampled, Some(LogFormat::Json)).await;
    // The first of a hundred has a line anyway.
    world.ask([request("/cart")]).await;
    let mut client = Wire::dial(world.client.entry("orders")).await;
    client.send("GET /slow HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    let has_it = || async { (world.app.requests() == 2).then_some(()) };
    eventually("the application has it", has_it).await;
    client.reset();
    let lines = world.lines(2).await;
    assert_eq!(paths(&lines), ["/cart", "/slow"]);
    let line: Value = serde_json::from_str(&lines[1]).unwrap();
    assert_eq!(line["remora.client_left"], true, "{line:#}");
    assert_eq!(line["http.response.status_code"], Value::Null, "{line:#}");
    assert_eq!(line["network.peer.port"], world.server.pod.address().port());
}

#[tokio::test]
async fn off_has_none_and_the_last_line_of_the_others_is_written_before_the_end() {
    for (which, count) in [(AccessLog::Off, 0), (AccessLog::All, 1)] {
        let World { client, dir, server: _server, app: _app, _mesh } =
            World::start(which, None).await;
        let mut sender = h1(client.entry("orders")).await;
        let response = within("an answer", sender.send_request(request("/cart"))).await.unwrap();
        assert_eq!(Answer::read(response).await.unwrap().status, 200);
        drop(sender);
        client.terminate();
        client.ended().await;
        let text = std::fs::read_to_string(file(&dir)).unwrap();
        assert_eq!(text.lines().count(), count, "{which}: {text}");
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_costs_lines_which_are_counted_and_no_request() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let world = World::writing_to(AccessLog::All, None, dir, writer.into()).await;
    // Lines as long as they can be.
    let long = |n: usize| {
        let (path, host) = (format!("/{n}/{}", "a".repeat(240)), "b".repeat(200));
        Request::get(path).header("host", host).body(empty()).unwrap()
    };
    eventually("a lost line", async || {
        let answers = world.ask((0..200).map(long)).await;
        assert!(answers.iter().all(|answer| answer.status == 200));
        (world.client.metric(DROPPED, &[]).await > 0).then_some(())
    })
    .await;
    // What comes through after that is whole lines.
    let read = tokio::task::spawn_blocking(move || {
        let mut text = vec![0; 32 * 1024];
        reader.read_exact(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    });
    let text = within("lines", read).await.unwrap();
    let (whole, _) = text.rsplit_once('\n').unwrap();
    assert!(whole.lines().all(|line| line.starts_with("timestamp=20")), "{whole}");
}
