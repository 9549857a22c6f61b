//! Traces: what a collector learns of requests, and that nobody else notices.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{HeaderMap, Request, Response};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use remora_tests::{
    collector::{Collector, Received},
    grpc,
    mesh::{Mesh, Pair},
    origin::{Answer, Body, Origin, Speaks, empty, full, get, h1, h2},
    wait::{eventually, within},
    wire::{App, Wire},
};
use tokio::net::TcpListener;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const SENT: &str = "remora_outbound_http_requests_total";

/// A mesh whose sidecars trace this share of the requests whose caller does not say.
fn mesh(collector: &str, rate: &str) -> Mesh {
    let mut mesh = Mesh::new();
    mesh.sight.trace_collector = Some(collector.parse().unwrap());
    mesh.sight.trace_sample_rate = rate.parse().unwrap();
    mesh
}

async fn pair(collector: &Collector, rate: &str, annotations: &[(&str, &str)]) -> Pair {
    Pair::in_mesh(mesh(&collector.addr().to_string(), rate), annotations).await
}

fn sampled(flag: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flag}")
}

async fn ask(pair: &Pair, speaks: Speaks, fields: &[(&str, &str)]) -> Answer {
    let request = |uri| {
        let request = Request::get(uri).header("host", "orders");
        let request = fields.iter().fold(request, |request, (k, v)| request.header(*k, *v));
        request.body(empty()).unwrap()
    };
    let response = if speaks == Speaks::H2 {
        let mut request: Request<Body> = request("http://orders/cart?card=4111");
        request.headers_mut().remove("host");
        within("an answer", h2(pair.entry()).await.send_request(request)).await
    } else {
        within("an answer", h1(pair.entry()).await.send_request(request("/cart?card=4111"))).await
    };
    Answer::read(response.unwrap()).await.unwrap()
}

/// Fails so many times, then answers.
async fn failing_first(pair: &Pair, speaks: Speaks, times: usize) -> Origin {
    let left = Arc::new(AtomicUsize::new(times));
    Origin::serve(pair.server.pod.app(), speaks, move |_: Request<_>| {
        let take = |n: usize| n.checked_sub(1);
        let fails = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
        async move {
            let mut response = Response::new(full("answer"));
            *response.status_mut() = if fails { 503 } else { 200 }.try_into().unwrap();
            response
        }
    })
    .await
}

fn has(span: &Received, wanted: &[(&str, &str)]) {
    for (key, value) in wanted {
        assert_eq!(span.get(key), *value, "{key} of {span:#?}");
    }
}

#[tokio::test]
async fn a_traced_request_is_a_span_with_its_attempts_as_children_at_both_ends_of_the_hop() {
    let policy = [("retry.remora.io/http", "5xx"), ("retry.remora.io/limit", "1")];
    for (speaks, version) in [(Speaks::H1, "1.1"), (Speaks::H2, "2")] {
        let collector = Collector::listen().await;
        let pair = pair(&collector, "0", &policy).await;
        let _app = failing_first(&pair, speaks, 1).await;
        assert_eq!(ask(&pair, speaks, &[("traceparent", &sampled("01"))]).await.status, 200);

        let spans = collector.spans_of("web", 3).await;
        let [request, first, second] = &spans[..] else { panic!("{spans:#?}") };
        assert!(spans.iter().all(|span| span.trace() == TRACE));
        assert!(spans.iter().all(|span| span.kind() == SpanKind::Client));
        assert_eq!((request.parent(), request.is_error()), (CALLER.to_owned(), false));
        assert_eq!((first.parent(), first.is_error()), (request.id(), true));
        assert_eq!((second.parent(), second.is_error()), (request.id(), false));
        let endpoint = pair.server.pod.address();
        has(
            request,
            &[
                ("http.request.method", "GET"),
                ("url.full", "http://orders/cart"),
                ("url.path", "/cart"),
                ("server.address", "orders"),
                ("server.port", "80"),
                ("network.protocol.version", version),
                ("http.response.status_code", "200"),
                ("network.peer.address", &endpoint.ip().to_string()),
                ("network.peer.port", &endpoint.port().to_string()),
                ("remora.target", "shop/orders:80"),
                ("remora.attempts", "2"),
                ("error.type", ""),
            ],
        );
        has(first, &[("http.response.status_code", "503"), ("error.type", "503")]);
        has(first, &[("http.request.resend_count", ""), ("remora.verdict", "retry")]);
        has(second, &[("http.response.status_code", "200"), ("remora.verdict", "done")]);
        has(second, &[("http.request.resend_count", "1"), ("remora.endpoint.pod", "orders-1")]);
        assert!(request.span.start_time_unix_nano <= first.span.start_time_unix_nano);
        assert!(first.span.end_time_unix_nano <= second.span.start_time_unix_nano);
        assert_eq!(second.span.end_time_unix_nano, request.span.end_time_unix_nano);
        assert_eq!(request.resource["service.name"], "web");
        assert_eq!(request.resource["service.namespace"], "shop");
        assert_eq!(request.resource["k8s.namespace.name"], "shop");

        // The caller's children too, beside what the application makes of the same context.
        let spans = collector.spans_of("orders-1", 2).await;
        for (span, status) in spans.iter().zip(["503", "200"]) {
            assert_eq!((span.trace(), span.parent()), (TRACE.to_owned(), CALLER.to_owned()));
            assert_eq!((span.kind(), span.is_error()), (SpanKind::Server, status == "503"));
            let peer = pair.client.pod.identity();
            has(span, &[("http.response.status_code", status), ("remora.peer", &peer)]);
        }
        let all = collector.spans();
        assert!(all.iter().all(|span| !format!("{span:?}").contains("card")), "{all:#?}");
    }
}

#[tokio::test]
async fn contexts_reach_the_application_byte_for_byte() {
    let collector = Collector::listen().await;
    let pair = pair(&collector, "1", &[]).await;
    let app = App::listen(pair.server.pod.app()).await;
    let fields = [
        format!("Traceparent: {}", sampled("01")),
        "tracestate: vendor=Opaque,other=1".to_owned(),
        "TraceState: more=2".to_owned(),
        format!("b3: {TRACE}-{CALLER}-1-05e3ac9a4f6e3b90"),
        "X-B3-Sampled: true".to_owned(),
        format!("X-B3-TraceId:  {TRACE}"),
        "baggage: user=alice".to_owned(),
    ];
    let mut client = Wire::dial(pair.entry()).await;
    client.send(format!("GET / HTTP/1.1\r\nHost: orders\r\n{}\r\n\r\n", fields.join("\r\n"))).await;
    let mut server = app.accept().await;
    let head = server.head().await;
    let lines: Vec<_> = head.0.lines().collect();
    for field in &fields {
        assert!(lines.contains(&field.as_str()), "{field} in {head:?}");
    }
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 200);
}

#[tokio::test]
async fn of_a_caller_that_does_not_record_nothing_is_told() {
    let collector = Collector::listen().await;
    let pair = pair(&collector, "1", &[]).await;
    let _app = Origin::saying(pair.server.pod.app(), "answer").await;
    for fields in [("traceparent", sampled("00").as_str()), ("b3", "0"), ("x-b3-sampled", "0")] {
        assert_eq!(ask(&pair, Speaks::H1, &[fields]).await.status, 200);
    }
    // Spans leave in the order in which their requests end.
    let b3 = format!("{TRACE}-{CALLER}-1");
    assert_eq!(ask(&pair, Speaks::H1, &[("b3", &b3)]).await.status, 200);
    for pod in ["web", "orders-1"] {
        let spans = collector.spans_of(pod, 1).await;
        assert_eq!((spans[0].trace(), spans[0].parent()), (TRACE.to_owned(), CALLER.to_owned()));
        assert!(spans.iter().all(|span| span.trace() == TRACE), "{spans:#?}");
    }
}

#[tokio::test]
async fn without_a_context_the_rate_decides_and_the_trace_begins_here() {
    let collector = Collector::listen().await;
    let pair = pair(&collector, "1", &[]).await;
    let _app = Origin::saying(pair.server.pod.app(), "answer").await;
    assert_eq!(get(pair.entry()).await.unwrap().status, 200);
    let spans = collector.spans_of("web", 2).await;
    assert_eq!((spans[0].parent(), spans[1].parent()), (String::new(), spans[0].id()));
    assert_eq!(collector.spans_of("orders-1", 1).await[0].parent(), "");
}

#[tokio::test]
async fn a_request_that_the_proxy_fails_is_an_error_with_its_reason() {
    let collector = Collector::listen().await;
    let pair = pair(&collector, "0", &[]).await;
    // Nobody listens.
    let answer = ask(&pair, Speaks::H1, &[("traceparent", &sampled("01"))]).await;
    assert_eq!(answer.reason(), Some("connect-failed"));
    let spans = collector.spans_of("web", 2).await;
    assert!(spans.iter().all(Received::is_error), "{spans:#?}");
    assert!(spans.iter().all(|span| span.get("error.type") == "connect-failed"), "{spans:#?}");
    let id = answer.headers["remora-decision-id"].to_str().unwrap();
    has(&spans[0], &[("http.response.status_code", "503"), ("remora.decision.id", id)]);
}

#[tokio::test]
async fn a_grpc_call_has_its_method_and_its_status_from_the_trailers() {
    let collector = Collector::listen().await;
    let pair = pair(&collector, "1", &[]).await;
    let handler = |_: Request<_>| async {
        grpc::answer(grpc::body(vec![grpc::message("half")], grpc::status("13")))
    };
    let _app = Origin::serve(pair.server.pod.app(), Speaks::H2, handler).await;
    let call = grpc::call(grpc::body(vec![grpc::message("hello")], HeaderMap::new()));
    let response = within("an answer", h2(pair.entry()).await.send_request(call)).await.unwrap();
    assert_eq!(Answer::read(response).await.unwrap().trailers["grpc-status"], "13");
    for (pod, count) in [("web", 2), ("orders-1", 1)] {
        for span in collector.spans_of(pod, count).await {
            assert_eq!((span.span.name.as_str(), span.is_error()), ("shop.Orders/Call", true));
            has(
                &span,
                &[
                    ("rpc.system.name", "grpc"),
                    ("rpc.method", "shop.Orders/Call"),
                    ("rpc.response.status_code", "INTERNAL"),
                    ("error.type", "INTERNAL"),
                ],
            );
        }
    }
}

#[tokio::test]
async fn a_collector_that_is_away_costs_spans_which_are_counted_and_nothing_else() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let pair = Pair::in_mesh(mesh(&closed.to_string(), "1"), &[]).await;
    let _app = Origin::saying(pair.server.pod.app(), "answer").await;
    for _ in 0..20 {
        assert_eq!(get(pair.entry()).await.unwrap().status, 200);
    }
    let lost = [("reason", "export-failed")];
    pair.client.until("remora_trace_spans_dropped_total", &lost, 1).await;
    assert_eq!(get(pair.entry()).await.unwrap().status, 200);
    assert_eq!(pair.client.metric(SENT, &[]).await, 21);
    assert_eq!(pair.client.metric("remora_trace_spans_exported_total", &[]).await, 0);
}

#[tokio::test]
async fn the_last_spans_leave_before_the_proxy_does() {
    let collector = Collector::listen().await;
    let Pair { mesh: _mesh, client, server } = pair(&collector, "1", &[]).await;
    let _app = Origin::saying(server.pod.app(), "answer").await;
    assert_eq!(get(client.entry("orders")).await.unwrap().status, 200);
    client.terminate();
    client.ended().await;
    assert_eq!(collector.spans_of("web", 2).await.len(), 2);
}

#[tokio::test]
async fn the_proxys_own_work_is_traced_too() {
    let collector = Collector::listen().await;
    let mut mesh = mesh(&collector.addr().to_string(), "0");
    let web = mesh.pod("web", "web");
    mesh.start_plane().await;
    let program = Path::new(env!("CARGO_BIN_EXE_remora-under-test"));
    let _client = mesh.sidecar_process(program, &web, &[]).await;
    for (name, kind) in [
        ("identity certify", SpanKind::Client),
        ("discovery connect", SpanKind::Client),
        ("discovery update", SpanKind::Internal),
    ] {
        let done = |span: &Received| span.span.name == name && !span.is_error();
        let found = async || collector.spans().into_iter().find(done);
        let span = eventually(name, found).await;
        assert_eq!((span.kind(), span.resource["k8s.pod.name"].as_str()), (kind, "web"));
    }
}
