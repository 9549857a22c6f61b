use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use http::StatusCode;
use remora_proto::v1 as pb;

use super::*;
use crate::{
    discovery::{Limits, Service, Target, client::StreamError},
    error::Reason,
    metrics::{
        Direction, Tls,
        flow::{End, Finished, Rpc},
        inbound::{Counted, Verdict},
        trace::TraceId,
    },
    tls::testing::{TestCa, id},
};

const MS: Duration = Duration::from_millis(1);

/// A collector, and one Service that discovery told of.
struct World {
    collector: Collector,
    version: u64,
}

impl World {
    fn new() -> Self {
        let now = Instant::now().into_std();
        let collector = Collector {
            metrics: Arc::new(Metrics::new(now)),
            discovery: Discovery::new(Limits::default(), now),
            identity: TestCa::new().identity(&id("orders")),
            admission: Admission::new(10, 10),
            spans: Arc::default(),
            runtimes: vec![("control".to_owned(), tokio::runtime::Handle::current())],
        };
        Self { collector, version: 0 }
    }

    /// `orders.shop:80`, known by an address.
    fn tell(&mut self, address: u8, service: pb::Service) -> Arc<Service> {
        self.version += 1;
        let answer = Some(pb::update::Answer::Service(service));
        let update = pb::Update { id: 0, version: self.version, answer };
        let target = Target::Address(([10, 96, 0, address], 80).into());
        let (discovery, now) = (&self.collector.discovery, Instant::now().into_std());
        discovery.restore(&target, &update, now).unwrap();
        match discovery.cached(&target, now) {
            Some(Resolution::Service(service)) => service,
            other => panic!("{other:?}"),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        self.collector.scrape(&mut text).unwrap();
        text
    }
}

fn orders(endpoints: impl IntoIterator<Item = u8>) -> pb::Service {
    let endpoint = |n| pb::Endpoint {
        address: Some(pb::SocketAddress { ip: vec![10, 0, 0, n], port: 8080 }),
        pod: format!("orders-{n}"),
        ..Default::default()
    };
    let backend = pb::WeightedBackend {
        namespace: "shop".to_owned(),
        name: "canary".to_owned(),
        port: 81,
        weight: 1,
        ..Default::default()
    };
    let route = pb::Route {
        name: "shop/split/0".to_owned(),
        backends: vec![backend],
        ..Default::default()
    };
    pb::Service {
        namespace: "shop".to_owned(),
        name: "orders".to_owned(),
        port: 80,
        endpoints: endpoints.into_iter().map(endpoint).collect(),
        routes: vec![route],
        ..Default::default()
    }
}

fn answered(rpc: Rpc) -> Finished {
    Finished { status: StatusCode::OK, rpc, end: End::Whole, trace: None }
}

/// Counts each thing once.
fn count_everything(world: &mut World) {
    let now = Instant::now().into_std();
    let service = world.tell(1, orders([1]));
    let (state, traffic) = (service.state_full(), &service.traffic);
    let (metrics, one) = (&world.collector.metrics, |counter: &std::sync::atomic::AtomicU64| {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    });
    let counters =
        [&traffic.requests, &traffic.retries, &traffic.ejections, &traffic.connections.bytes[0]];
    traffic.bodies.of_request(1);
    traffic.bodies.of_response(1);
    counters.into_iter().for_each(one);
    traffic.budget(Default::default()).deposit(now);
    drop(traffic.connections.open(Tls::Mutual));
    let route = &state.routes[0].traffic;
    route.budget(Default::default()).deposit(now);
    [&route.requests, &route.aborted, &route.mirrored[0]].into_iter().for_each(one);
    let (_, backend) = route.backends().remove(0);
    one(&backend.requests);
    let port = metrics.inbound.port(8080, now);
    port.bodies.of_request(1);
    port.bodies.of_response(1);
    let counted = Counted { caller: port.caller(None), port };
    counted.arrived(Tls::None, Verdict::Audit);
    let failed = answered(Rpc::Said(14));
    for finished in [answered(Rpc::Said(0)), failed, failed.ended(End::Cancelled)] {
        for flow in [&traffic.flow, &route.flow, &backend.flow] {
            flow.finished(&finished, MS, now);
        }
        state.endpoints[0].finished(metrics, &finished, MS, now);
        counted.finished(&finished, MS, now);
    }
    metrics.error(Direction::Outbound, Reason::NoEndpoints);
    metrics.access_log_written(1);
    metrics.access_log_dropped(1);
    one(&world.collector.spans.failed);
    metrics.detected(Direction::Inbound, "http/1");
    metrics.detect_took(Direction::Inbound, MS);
    drop(metrics.connection(Direction::Outbound, Tls::None));
    metrics.carried(Direction::Outbound, 1, 1);
    metrics.passed_through.count(None);
}

/// Families with their types and the names of their labels, but for those of the format's own.
type Families = BTreeMap<String, (String, BTreeSet<String>)>;

fn scraped(text: &str) -> Families {
    let mut families = Families::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            family = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
            families.insert(family.clone(), (kind.to_owned(), BTreeSet::new()));
        } else if let Some((_, rest)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let labels = rest.split_once("} ").unwrap().0;
            let names = labels.split("\",").map(|label| label.split_once("=\"").unwrap().0);
            let known = &mut families.get_mut(&family).unwrap().1;
            known.extend(names.filter(|name| *name != "le").map(str::to_owned));
        }
    }
    families
}

fn documented() -> Families {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/admin.md");
    let text = std::fs::read_to_string(path).unwrap();
    let section =
        text.split("\n## ").find(|part| part.starts_with("Metrics of the proxy")).unwrap();
    let quoted = |cell: &str| -> Vec<String> {
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let rows = section.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, kind @ ("counter" | "gauge" | "histogram"), labels, ..] = cells[..] else {
            return None;
        };
        let labels = quoted(labels).into_iter().collect();
        Some((quoted(name).remove(0), (kind.to_owned(), labels)))
    });
    rows.collect()
}

#[tokio::test]
async fn the_documented_table_and_a_scrape_have_the_same_names_types_and_labels() {
    let mut world = World::new();
    count_everything(&mut world);
    // Waits for another thread, so that the runtime knows how long it was busy before.
    tokio::task::spawn_blocking(|| {}).await.unwrap();
    world.collector.discovery.applied();
    world.collector.discovery.disconnected(&StreamError::Ended, true);
    let shown = scraped(&world.text());
    let told = documented();
    assert!(told.len() > 60, "the table was found: {told:?}");
    for (name, is) in &shown {
        assert_eq!(told.get(name), Some(is), "{name}: documented, and as it is");
    }
    for name in told.keys() {
        assert!(shown.contains_key(name), "{name} is documented, and nothing shows it");
    }
}

#[tokio::test]
async fn everything_is_shown_with_what_was_counted() {
    let mut world = World::new();
    count_everything(&mut world);
    let text = world.text();
    let of = "namespace=\"shop\",service=\"orders\",port=\"80\"";
    let route = format!("{of},route=\"shop/split/0\"");
    let backend = "backend_namespace=\"shop\",backend_service=\"canary\",backend_port=\"81\"";
    for line in [
        format!("remora_outbound_http_requests_total{{{of}}} 1"),
        format!("remora_outbound_http_responses_total{{{of},status_class=\"2xx\"}} 3"),
        format!("remora_outbound_grpc_responses_total{{{of},grpc_status=\"UNAVAILABLE\"}} 2"),
        format!("remora_outbound_http_failures_total{{{of}}} 1"),
        format!("remora_outbound_http_cancelled_total{{{of}}} 1"),
        format!("remora_outbound_http_request_body_bytes_total{{{of}}} 1"),
        "remora_inbound_http_response_body_bytes_total{port=\"8080\"} 1".to_owned(),
        format!("remora_outbound_http_latency_seconds_sum{{{of}}} 0.002"),
        format!("remora_outbound_http_latency_seconds_bucket{{le=\"0.0005\",{of}}} 0"),
        format!("remora_outbound_http_latency_seconds_bucket{{le=\"0.001\",{of}}} 2"),
        format!("remora_outbound_http_latency_seconds_bucket{{le=\"+Inf\",{of}}} 2"),
        format!("remora_outbound_endpoints{{{of},state=\"ready\"}} 1"),
        format!("remora_outbound_endpoints{{{of},state=\"open\"}} 0"),
        format!("remora_outbound_connections_total{{{of},tls=\"mtls\"}} 1"),
        format!("remora_outbound_open_connections{{{of}}} 0"),
        format!("remora_outbound_route_failures_total{{{route}}} 1"),
        format!("remora_outbound_backend_requests_total{{{route},{backend}}} 1"),
        format!(
            "remora_outbound_endpoint_requests_total{{{of},endpoint=\"10.0.0.1:8080\",\
             pod=\"orders-1\"}} 3"
        ),
        "remora_inbound_http_requests_total{port=\"8080\",tls=\"none\"} 1".to_owned(),
        "remora_inbound_caller_failures_total{port=\"8080\",client_id=\"none\"} 1".to_owned(),
        "remora_inbound_policy_decisions_total{port=\"8080\",verdict=\"audit\"} 1".to_owned(),
        "remora_proxy_errors_total{direction=\"outbound\",reason=\"no-endpoints\"} 1".to_owned(),
        "remora_detect_total{direction=\"inbound\",result=\"http/1\"} 1".to_owned(),
        "remora_detect_duration_seconds_bucket{le=\"0.0005\",direction=\"inbound\"} 0".to_owned(),
        "remora_detect_duration_seconds_bucket{le=\"0.001\",direction=\"inbound\"} 1".to_owned(),
        "remora_detect_duration_seconds_count{direction=\"outbound\"} 0".to_owned(),
        "remora_tcp_open_connections{direction=\"outbound\",tls=\"mtls\"} 0".to_owned(),
    ] {
        assert!(text.lines().any(|known| known == line), "{line} in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn targets_of_one_service_are_added_up_and_a_tick_changes_no_sum() {
    let mut world = World::new();
    let now = Instant::now().into_std();
    for address in [1, 2] {
        let service = world.tell(address, orders([1]));
        service.traffic.flow.finished(&answered(Rpc::No), MS, now);
    }
    let line = "remora_outbound_http_responses_total{namespace=\"shop\",service=\"orders\",\
                port=\"80\",status_class=\"2xx\"} 2\n";
    assert!(world.text().contains(line));
    rotate(&world.collector.metrics, &world.collector.discovery, Instant::now());
    assert!(world.text().contains(line));
}

#[tokio::test]
async fn endpoints_beyond_the_bound_are_other_and_never_move() {
    let mut world = World::new();
    let metrics = Arc::clone(&world.collector.metrics);
    let taken: Vec<_> = (1..crate::metrics::MAX_ENDPOINTS).map(|_| metrics.seats.take()).collect();
    let service = world.tell(1, orders([1, 2]));
    let endpoints = service.state_full();
    let count = || {
        for endpoint in endpoints.endpoints.iter() {
            endpoint.finished(&metrics, &answered(Rpc::No), MS, Instant::now().into_std());
        }
    };
    count();
    drop(taken);
    count();
    let text = world.text();
    let name = "remora_outbound_endpoint_requests_total";
    let own = "{namespace=\"shop\",service=\"orders\",port=\"80\",endpoint=\"10.0.0.1:8080\",\
               pod=\"orders-1\"} 2\n";
    let other = "{namespace=\"other\",service=\"other\",port=\"other\",endpoint=\"other\",\
                 pod=\"other\"} 2\n";
    assert!(text.contains(&format!("{name}{own}")), "{text}");
    assert!(text.contains(&format!("{name}{other}")), "{text}");
    assert!(!text.contains("orders-2"), "{text}");
}

#[tokio::test]
async fn a_traced_request_is_the_exemplar_of_its_bucket() {
    let mut world = World::new();
    let service = world.tell(1, orders([1]));
    let trace = Some(TraceId(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736));
    let finished = Finished { trace, ..answered(Rpc::No) };
    service.traffic.flow.finished(&finished, 3 * MS, Instant::now().into_std());
    let text = world.text();
    let line = text.lines().find(|line| line.contains("trace_id")).unwrap();
    let head = "remora_outbound_http_latency_seconds_bucket{le=\"0.005\",namespace=\"shop\",\
                service=\"orders\",port=\"80\"} 1 # {trace_id=\
                \"4bf92f3577b34da6a3ce929d0e0e4736\"} 0.003 ";
    assert!(line.starts_with(head), "{line}");
    assert_eq!(text.matches("trace_id").count(), 1);
}
