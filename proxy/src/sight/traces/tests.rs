use std::time::SystemTime;

use http::HeaderMap;
use opentelemetry::{
    Value,
    trace::{SpanId, SpanKind, Status},
};
use opentelemetry_sdk::trace::SpanData;
use tokio::time::{Instant, advance};

use super::*;
use crate::{
    balance::retry::{Sent, StopReason, Verdict},
    error::{Error, Reason},
    metrics::Direction,
    sight::{
        story::Outcome,
        testing::{NOW, Over},
    },
};

const W3C: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0";
const B3: &str = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";

fn tracer(rate: &str) -> Tracer {
    Tracer::new(rate.parse().unwrap(), Arc::default(), 7)
}

fn begun(tracer: &Tracer, fields: &[(&'static str, String)]) -> Option<TraceContext> {
    let field = |(name, value): &(&'static str, String)| {
        (http::HeaderName::from_static(name), value.parse().unwrap())
    };
    let fields: HeaderMap = fields.iter().map(field).collect();
    let mut story = Story::new(Instant::now(), &fields);
    tracer.begin(&mut story, &fields);
    story.trace
}

#[test]
fn a_caller_that_says_whether_it_records_is_followed_whatever_the_rate() {
    for (name, recorded, other) in [
        ("traceparent", format!("{W3C}1"), format!("{W3C}0")),
        ("b3", format!("{B3}-1"), format!("{B3}-0")),
    ] {
        let context = begun(&tracer("0"), &[(name, recorded)]).unwrap();
        assert_eq!(context.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((context.parent, context.sampled), (0x00f0_67aa_0ba9_02b7, true));
        assert!(!begun(&tracer("1"), &[(name, other)]).unwrap().sampled, "{name}");
    }
    assert_eq!(begun(&tracer("1"), &[("b3", "0".into())]), None);
}

#[test]
fn w3cs_word_goes_before_b3s() {
    let both = [("traceparent", format!("{W3C}0")), ("b3", "1".into())];
    assert!(!begun(&tracer("1"), &both).unwrap().sampled);
}

#[test]
fn of_those_whose_caller_does_not_say_a_share_is_traced() {
    let tracer = tracer("0.25");
    let traced: Vec<_> = (0..10_000).filter_map(|_| begun(&tracer, &[])).collect();
    assert!((2300..2700).contains(&traced.len()), "{}", traced.len());
    assert!(traced.iter().all(|context| context.sampled && context.parent == 0));
    let ids: std::collections::HashSet<_> = traced.iter().map(|context| context.trace).collect();
    assert_eq!(ids.len(), traced.len());
}

#[test]
fn proxies_that_are_left_the_choice_for_a_trace_choose_alike() {
    let (one, two) = (tracer("0.5"), Tracer::new("0.5".parse().unwrap(), Arc::default(), 8));
    let choice = |tracer: &Tracer, n: u64| {
        let b3 = format!("{:016x}-00f067aa0ba902b7", n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        begun(tracer, &[("b3", b3)]).unwrap().sampled
    };
    let chosen: Vec<_> = (1..100).map(|n| choice(&one, n)).collect();
    assert!(chosen.contains(&true) && chosen.contains(&false));
    assert_eq!(chosen, (1..100).map(|n| choice(&two, n)).collect::<Vec<_>>());
}

/// The spans of a request.
fn spans(over: &mut Over) -> Vec<SpanData> {
    let tracer = tracer("0");
    over.story.trace = Some(TraceContext { trace: TraceId(5), parent: 6, sampled: true });
    over.tell(|finished| tracer.ended(NOW, None, finished));
    tracer.queue.take()
}

fn value(span: &SpanData, key: &str) -> Option<Value> {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == key);
    found.map(|attribute| attribute.value.clone())
}

#[tokio::test(start_paused = true)]
async fn attempts_are_children_of_their_request_with_their_own_times() {
    let at = |millis| SystemTime::UNIX_EPOCH + NOW - Duration::from_millis(millis);
    let step = Duration::from_millis(10);
    let mut over = Over::answered(Direction::Outbound, 200);
    advance(step).await;
    let (reason, sent, at_once) = (Reason::ConnectFailed, Sent::No, Instant::now());
    let failed = Outcome::Failed { reason, error: "refused".into(), sent, at: at_once };
    over.attempt(1, failed, Verdict::Retry { backoff: Duration::ZERO });
    advance(step).await;
    let (connected, head) = (Some(Instant::now()), Instant::now() + step);
    let status = http::StatusCode::OK;
    let answered = Outcome::Answered { status, grpc: None, connected, head };
    over.attempt(2, answered, Verdict::Stop(StopReason::NotRetryable));
    advance(2 * step).await;

    let spans = spans(&mut over);
    let [request, first, second] = &spans[..] else { panic!("{spans:#?}") };
    assert!(spans.iter().all(|span| span.span_context.trace_id() == 5.into()));
    assert_eq!((request.parent_span_id, request.parent_span_is_remote), (SpanId::from(6), true));
    for attempt in [first, second] {
        assert_eq!(attempt.parent_span_id, request.span_context.span_id());
        assert!(!attempt.parent_span_is_remote);
        assert_eq!(attempt.span_kind, SpanKind::Client);
    }
    assert_eq!((request.start_time, request.end_time), (at(40), at(0)));
    assert_eq!((first.start_time, first.end_time), (at(30), at(30)));
    assert_eq!((second.start_time, second.end_time), (at(20), at(0)));
    assert_eq!(second.events.events[0].name, "connected");
    assert_eq!((&request.name, &request.status), (&"GET".into(), &Status::Unset));
    assert_eq!(first.status, Status::error("refused"));
    assert_eq!(value(first, "error.type"), Some("connect-failed".into()));
    assert_eq!(value(first, "http.response.status_code"), None);
    for (span, key, wanted) in [
        (request, "http.request.method", Value::from("GET")),
        (request, "url.full", "http://orders:8080/cart".into()),
        (request, "url.path", "/cart".into()),
        (request, "server.address", "orders".into()),
        (request, "server.port", 8080.into()),
        (request, "http.response.status_code", 200.into()),
        (request, "network.peer.port", 2.into()),
        (request, "remora.attempts", 2.into()),
        (request, "remora.route", "shop/split/0".into()),
        (second, "http.request.resend_count", 1.into()),
        (second, "network.peer.address", "10.0.0.7".into()),
        (second, "network.peer.port", 2.into()),
        (second, "http.response.status_code", 200.into()),
        (second, "remora.endpoint.pod", "orders-1".into()),
        (second, "remora.verdict", "done".into()),
    ] {
        assert_eq!(value(span, key), Some(wanted), "{key}");
    }
    assert_eq!(value(first, "http.request.resend_count"), None);
}

#[tokio::test(start_paused = true)]
async fn a_status_is_an_error_to_those_whom_the_conventions_say() {
    use Direction::{Inbound, Outbound};
    let denied = || Error::Denied("nobody".into());
    let none = || Error::NoEndpoints { service: "shop/orders:80".into() };
    for (mut over, wanted, error) in [
        (Over::answered(Outbound, 200), None, false),
        (Over::answered(Outbound, 404), Some("404"), true),
        (Over::answered(Inbound, 404), None, false),
        (Over::answered(Inbound, 500), Some("500"), true),
        (Over::failed(Outbound, none()), Some("no-endpoints"), true),
        (Over::failed(Inbound, denied()), Some("denied"), false),
        (Over::grpc(Outbound, 0), None, false),
        (Over::grpc(Outbound, 5), Some("NOT_FOUND"), true),
        (Over::grpc(Inbound, 5), None, false),
        (Over::grpc(Inbound, 13), Some("INTERNAL"), true),
    ] {
        let span = &spans(&mut over)[0];
        assert_eq!(value(span, "error.type"), wanted.map(Value::from), "{span:#?}");
        assert_eq!(span.status != Status::Unset, error, "{span:#?}");
        let kind = if over.direction == Outbound { SpanKind::Client } else { SpanKind::Server };
        assert_eq!(span.span_kind, kind);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_client_did_not_wait_for_lasts_until_it_left_and_is_no_error() {
    for (status, shown) in [(None, None), (Some(200), Some(Value::from(200)))] {
        let mut over = Over::left(Direction::Outbound, status);
        over.attempt(1, Outcome::GivenUp, Verdict::Stop(StopReason::NotRetryable));
        advance(Duration::from_millis(10)).await;
        let spans = spans(&mut over);
        let [request, attempt] = &spans[..] else { panic!("{spans:#?}") };
        for span in [request, attempt] {
            assert_eq!((&span.status, value(span, "error.type")), (&Status::Unset, None));
            assert_eq!(span.end_time, SystemTime::UNIX_EPOCH + NOW);
        }
        assert_eq!(value(request, "http.response.status_code"), shown);
        assert_eq!(value(request, "remora.client_left"), Some(true.into()));
        assert_eq!(value(attempt, "remora.verdict"), Some("given-up".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_call_is_named_by_its_method() {
    let span = &spans(&mut Over::grpc(Direction::Inbound, 14))[0];
    assert_eq!(span.name, "shop.Orders/Call");
    for (key, wanted) in [
        ("rpc.system.name", Value::from("grpc")),
        ("rpc.method", "shop.Orders/Call".into()),
        ("rpc.response.status_code", "UNAVAILABLE".into()),
        ("http.response.status_code", 200.into()),
        ("client.address", "10.0.0.1".into()),
    ] {
        assert_eq!(value(span, key), Some(wanted), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_method_adds_no_name() {
    let mut over = Over::answered(Direction::Inbound, 200);
    over.method = "BREW".parse().unwrap();
    let span = &spans(&mut over)[0];
    assert_eq!(span.name, "HTTP");
    assert_eq!(value(span, "http.request.method"), Some("_OTHER".into()));
    assert_eq!(value(span, "http.request.method_original"), Some("BREW".into()));
}

#[tokio::test(start_paused = true)]
async fn beyond_the_bound_spans_are_dropped_and_counted() {
    let queue = Arc::new(Queue::default());
    let span = spans(&mut Over::answered(Direction::Inbound, 200)).remove(0);
    for _ in 0..queue::MAX_WAITING + 3 {
        queue.push(vec![span.clone()]);
    }
    let taken = std::iter::repeat_with(|| queue.take().len()).take_while(|count| *count > 0);
    assert_eq!(taken.collect::<Vec<_>>(), [queue::BATCH; queue::MAX_WAITING / queue::BATCH]);
    assert_eq!(queue.lost(), [("queue-full", 3), ("export-failed", 0)]);
}
