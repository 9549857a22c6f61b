use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use serde_json::json;

use super::*;
use crate::{
    error::Error,
    metrics::Direction,
    sight::testing::{NOW, Over},
};

const LINES: usize = 0;
const DROPPED: usize = 1;

fn counted(metrics: &Metrics, which: usize) -> u64 {
    metrics.access_log[which].load(std::sync::atomic::Ordering::Relaxed)
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new(tokio::time::Instant::now().into_std()))
}

/// Takes what is written, each time when it is allowed to.
struct Slow {
    allowed: Receiver<()>,
    written: SyncSender<Vec<u8>>,
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.allowed.recv().map_err(io::Error::other)?;
        self.written.send(bytes.to_vec()).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct World {
    log: AccessLog,
    metrics: Arc<Metrics>,
    allow: SyncSender<()>,
    written: Receiver<Vec<u8>>,
}

fn log(which: Which, format: LogFormat) -> World {
    let ((allow, allowed), (sender, written)) = (sync_channel(100), sync_channel(100));
    let metrics = metrics();
    let slow = Box::new(Slow { allowed, written: sender });
    let log = AccessLog::start(which, format, slow, Arc::clone(&metrics)).unwrap().unwrap();
    World { log, metrics, allow, written }
}

/// The one line that comes of a request.
fn line(format: LogFormat, over: &Over) -> String {
    let world = log(Which::All, format);
    world.allow.send(()).unwrap();
    over.tell(|finished| world.log.write(NOW, Some(DecisionId(7)), finished));
    String::from_utf8(world.written.recv().unwrap()).unwrap()
}

#[test]
fn each_mode_takes_its_requests() {
    for (which, [failed, kept, other]) in [
        (Which::Errors, [true, false, false]),
        (Which::Sampled, [true, true, false]),
        (Which::All, [true, true, true]),
    ] {
        let log = log(which, LogFormat::Json).log;
        let wants = [log.wants(true, true), log.wants(false, true), log.wants(false, false)];
        assert_eq!(wants, [failed, kept, other], "{which}");
    }
    let (format, out) = (LogFormat::Json, Box::new(io::sink()));
    assert!(AccessLog::start(Which::Off, format, out, metrics()).unwrap().is_none());
}

#[test]
fn a_line_has_the_request_under_opentelemetrys_names() {
    let over = Over::answered(Direction::Outbound, 404);
    let line = line(LogFormat::Json, &over);
    let (object, end) = line.split_at(line.len() - 1);
    assert_eq!(end, "\n");
    let mut object: serde_json::Value = serde_json::from_str(object).unwrap();
    assert!(object["duration"].take().as_f64().is_some_and(|seconds| seconds < 1.0));
    let wanted = json!({
        "timestamp": "2026-01-01T00:00:00.000000Z",
        "remora.direction": "outbound",
        "http.request.method": "GET",
        "url.path": "/cart",
        "http.response.status_code": 404,
        "error.type": "404",
        "duration": null,
        "server.address": "orders",
        "server.port": 8080,
        "client.address": "10.0.0.1",
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "remora.target": "shop/orders:80",
        "remora.service": "shop/orders-v2:80",
        "remora.route": "shop/split/0",
        "remora.attempts": 0,
        "remora.decision.id": "0000000000000007",
    });
    assert_eq!(object, wanted);
}

#[test]
fn text_says_the_same_as_key_and_value() {
    let error = Error::NoEndpoints { service: "shop/orders:80".into() };
    let line = line(LogFormat::Text, &Over::failed(Direction::Inbound, error));
    let begin = "timestamp=2026-01-01T00:00:00.000000Z remora.direction=inbound \
                 http.request.method=GET url.path=/cart http.response.status_code=503 \
                 error.type=no-endpoints duration=0.";
    assert!(line.starts_with(begin), "{line}");
    assert!(line.ends_with("remora.target=10.0.0.7:8080 remora.decision.id=0000000000000007\n"));
}

#[test]
fn a_request_whose_client_left_says_so_and_has_the_status_that_there_was() {
    let left = line(LogFormat::Text, &Over::left(Direction::Outbound, None));
    assert!(!left.contains("status_code") && !left.contains("error.type"), "{left}");
    assert!(left.contains(" remora.client_left=true "), "{left}");
    let left = line(LogFormat::Json, &Over::left(Direction::Inbound, Some(200)));
    assert!(left.contains(r#""http.response.status_code":200"#), "{left}");
    assert!(left.contains(r#""remora.client_left":true"#), "{left}");
}

#[test]
fn a_grpc_call_has_its_status_by_name() {
    let line = line(LogFormat::Text, &Over::grpc(Direction::Outbound, 14));
    assert!(line.contains("http.response.status_code=200 rpc.response.status_code=UNAVAILABLE"));
    assert!(line.contains("error.type=UNAVAILABLE") && line.contains("protocol.version=2"));
}

#[test]
fn a_reader_that_does_not_read_costs_lines_which_are_counted_and_no_waiting() {
    let world = log(Which::All, LogFormat::Json);
    let over = Over::answered(Direction::Outbound, 200);
    // More than fits twice. Nobody takes any of it, so that waiting would never end.
    let total = 2 * u64::try_from(MAX_WAITING / 300).unwrap();
    for _ in 0..total {
        over.tell(|finished| world.log.write(NOW, None, finished));
    }
    let dropped = counted(&world.metrics, DROPPED);
    assert!(dropped > 0 && dropped < total, "{dropped} of {total}");
    let mut lines = 0;
    while lines < total - dropped {
        world.allow.send(()).unwrap();
        let written = String::from_utf8(world.written.recv().unwrap()).unwrap();
        assert!(written.ends_with("}\n") && written.len() <= MAX_WAITING);
        lines += u64::try_from(written.lines().count()).unwrap();
    }
    assert_eq!((lines, counted(&world.metrics, DROPPED)), (total - dropped, dropped));
}

#[tokio::test]
async fn what_was_logged_is_written_before_the_end() {
    let world = log(Which::All, LogFormat::Text);
    for _ in 0..2 {
        world.allow.send(()).unwrap();
        let over = Over::answered(Direction::Inbound, 200);
        over.tell(|finished| world.log.write(NOW, None, finished));
    }
    world.log.close().await;
    assert_eq!(counted(&world.metrics, LINES), 2);
    assert!(world.written.try_recv().is_ok());
}

#[tokio::test]
async fn lines_that_cannot_be_written_are_counted_as_lost() {
    let world = log(Which::All, LogFormat::Text);
    let over = Over::answered(Direction::Inbound, 200);
    over.tell(|finished| world.log.write(NOW, None, finished));
    // The other end is gone.
    drop(world.allow);
    world.log.close().await;
    assert_eq!((counted(&world.metrics, LINES), counted(&world.metrics, DROPPED)), (0, 1));
}
