//! What belongs to Services and to the process itself, read at scrape time.
//!
//! Series per Service are bounded by the discovery cache's bound on targets, those per route by the
//! routes of these.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet},
    metrics::{MetricType, gauge::ConstGauge},
};

use crate::{
    discovery::{
        Discovery, Resolution, ServiceId,
        traffic::{Mirrored, RouteTraffic, Traffic},
    },
    metrics::Families,
    net::admission::Admission,
    tls::identity::Identity,
};

/// Upper bounds of the latency histogram.
const BUCKETS: [Duration; 14] = [
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Shows Services, identity and discovery to a registry.
#[derive(Debug)]
pub struct MeshCollector {
    /// Answers of the control plane.
    pub discovery: Discovery,
    /// Certificate and roots.
    pub identity: Identity,
    /// Places for connections.
    pub admission: Arc<Admission>,
}

/// Which counter of a Service's traffic.
type Counter = fn(&Traffic) -> &AtomicU64;
type Labels = [(&'static str, String); 3];

fn labels(id: &ServiceId) -> Labels {
    [
        ("namespace", id.namespace.to_string()),
        ("service", id.name.to_string()),
        ("port", id.port.to_string()),
    ]
}

fn with(labels: &Labels, name: &'static str, value: &str) -> [(&'static str, String); 4] {
    let [a, b, c] = labels.clone();
    [a, b, c, (name, value.to_owned())]
}

impl Collector for MeshCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        // One Service may be known by several targets (address, names), each with its own traffic;
        // they are added up.
        let services = self.services();
        let each = |pick: fn(&Traffic) -> &AtomicU64| {
            services.iter().map(move |(id, all)| {
                (labels(id), all.iter().map(|s| pick(&s.traffic).load(Relaxed)).sum())
            })
        };
        let mut families = Families(&mut encoder);
        families.counters(
            "remora_outbound_http_requests",
            "Requests of the application, retries not counted",
            each(|t| &t.requests),
        )?;
        families.counters(
            "remora_outbound_ejections",
            "Endpoints taken out of balancing",
            each(|t| &t.ejections),
        )?;
        let responses = services.iter().flat_map(|(id, all)| {
            CLASSES.iter().enumerate().map(move |(class, word)| {
                let sum = all.iter().map(|s| s.traffic.responses[class].load(Relaxed)).sum();
                (with(&labels(id), "status_class", word), sum)
            })
        });
        families.counters(
            "remora_outbound_http_responses",
            "Responses given to the application",
            responses,
        )?;
        let results: [(&str, Counter); 5] = [
            ("sent", |t| &t.retries),
            ("succeeded", |t| &t.retries_succeeded),
            ("limit", |t| &t.retry_limit),
            ("budget", |t| &t.retry_budget),
            ("pushback", |t| &t.retry_pushback),
        ];
        let retries = services.iter().flat_map(|(id, all)| {
            results.iter().map(move |(word, pick)| {
                let sum = all.iter().map(|s| pick(&s.traffic).load(Relaxed)).sum();
                (with(&labels(id), "result", word), sum)
            })
        });
        families.counters(
            "remora_outbound_retries",
            "Attempts beyond the first, and retries not made",
            retries,
        )?;
        routes(&mut families, &services)?;
        latency(&mut encoder, &services)?;
        self.process(&mut encoder)
    }
}

type Services = Vec<(ServiceId, Vec<Arc<crate::discovery::Service>>)>;

impl MeshCollector {
    fn services(&self) -> Services {
        let mut services: Services = Vec::new();
        for (_, resolution) in self.discovery.all() {
            let Some(Resolution::Service(service)) = resolution else { continue };
            match services.iter_mut().find(|(id, _)| *id == service.id) {
                Some((_, all)) => all.push(service),
                None => services.push((service.id.clone(), vec![service])),
            }
        }
        services
    }

    fn process(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let status = self.discovery.status();
        let connected = i64::from(status.connected);
        gauge(
            encoder,
            "remora_discovery_connected",
            "Whether the stream to the control plane is up",
            connected,
        )?;
        let places = i64::try_from(self.admission.limit()).unwrap_or(i64::MAX);
        gauge(encoder, "remora_tcp_connections_limit", "Connections carried at most", places)?;
        let targets = i64::try_from(self.discovery.all().len()).unwrap_or(i64::MAX);
        gauge(encoder, "remora_discovery_targets", "Destinations known", targets)?;
        if let Some(material) = self.identity.current() {
            let expiry =
                i64::try_from(material.certificate().not_after.as_secs()).unwrap_or(i64::MAX);
            gauge(
                encoder,
                "remora_identity_cert_expiry_timestamp_seconds",
                "End of the certificate's validity",
                expiry,
            )?;
        }
        let one = |value| std::iter::once(([] as [(&'static str, &str); 0], value));
        Families(encoder).counters(
            "remora_identity_cert_refreshes",
            "Certificates installed",
            one(self.identity.refreshes()),
        )?;
        Families(encoder).counters(
            "remora_discovery_refused_targets",
            "Destinations turned away because the cache was full",
            one(self.discovery.refused_targets()),
        )?;
        Families(encoder).counters(
            "remora_discovery_streams_ended",
            "Streams to the control plane that ended: asked to come again, or lost",
            [([("reason", "asked")], status.asked), ([("reason", "lost")], status.lost)]
                .into_iter(),
        )?;
        let build = [([("version", env!("CARGO_PKG_VERSION"))], 1u64)];
        let mut info =
            encoder.encode_descriptor("remora_build_info", "Version", None, MetricType::Gauge)?;
        for (labels, value) in build {
            ConstGauge::new(i64::try_from(value).unwrap_or(1))
                .encode(info.encode_family(&labels)?)?;
        }
        if let Some((rss, fds)) = process_figures() {
            gauge(encoder, "process_resident_memory_bytes", "Resident memory", rss)?;
            gauge(encoder, "process_open_fds", "Open file descriptors", fds)?;
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}

/// What single routes have seen; there are series for those that a Service has now.
fn routes(families: &mut Families<'_, '_>, services: &Services) -> fmt::Result {
    let mut seen: BTreeMap<(&ServiceId, Box<str>), RouteCounts> = BTreeMap::new();
    for (id, all) in services {
        for service in all {
            let state = service.state_full();
            // A rule may be several routes of one name, whose traffic is one.
            let once: BTreeMap<_, _> = state.routes.iter().map(|r| (&r.name, r)).collect();
            for (name, route) in once {
                seen.entry((id, name.clone())).or_default().add(&route.traffic);
            }
        }
    }
    let route = |(id, name): &(&ServiceId, Box<str>)| with(&labels(id), "route", name);
    families.counters(
        "remora_outbound_route_requests",
        "Requests that took a route",
        seen.iter().map(|(key, counts)| (route(key), counts.requests)),
    )?;
    let kinds = |words: &'static [&'static str], of: fn(&RouteCounts) -> &[u64]| {
        seen.iter().flat_map(move |(key, counts)| {
            let [a, b, c, d] = route(key);
            words.iter().zip(of(counts)).map(move |(word, count)| {
                let last = ("result", (*word).to_owned());
                ([a.clone(), b.clone(), c.clone(), d.clone(), last], *count)
            })
        })
    };
    families.counters(
        "remora_outbound_route_faults",
        "Requests that a route refused or held up on purpose",
        kinds(&["aborted", "delayed"], |counts| &counts.faults),
    )?;
    families.counters(
        "remora_outbound_route_mirrors",
        "Copies of a route's requests",
        kinds(&Mirrored::WORDS, |counts| &counts.mirrored),
    )
}

#[derive(Default)]
struct RouteCounts {
    requests: u64,
    faults: [u64; 2],
    mirrored: [u64; Mirrored::WORDS.len()],
}

impl RouteCounts {
    /// A Service that is known by several targets has a route as often.
    fn add(&mut self, traffic: &RouteTraffic) {
        self.requests += traffic.requests.load(Relaxed);
        for (sum, count) in self.faults.iter_mut().zip([&traffic.aborted, &traffic.delayed]) {
            *sum += count.load(Relaxed);
        }
        for (sum, count) in self.mirrored.iter_mut().zip(&traffic.mirrored) {
            *sum += count.load(Relaxed);
        }
    }
}

/// A histogram in the text format: `_bucket`, `_count` and `_sum`.
fn latency(encoder: &mut DescriptorEncoder<'_>, services: &Services) -> fmt::Result {
    let name = "remora_outbound_http_latency_seconds";
    let help = "From a request's arrival to the end of its response";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (id, all) in services {
        let mut buckets = vec![0u64; BUCKETS.len()];
        let (mut count, mut sum) = (0, Duration::ZERO);
        for service in all {
            let mut at = 0;
            let (n, total) = service.traffic.latency.cumulative(&BUCKETS, |_, below| {
                buckets[at] += below;
                at += 1;
            });
            count += n;
            sum += total;
        }
        // The encoder wants each bucket's own count.
        let mut below = 0;
        let mut own: Vec<(f64, u64)> = Vec::with_capacity(BUCKETS.len() + 1);
        for (bound, cumulative) in BUCKETS.iter().zip(&buckets) {
            own.push((bound.as_secs_f64(), cumulative.saturating_sub(below)));
            below = *cumulative;
        }
        own.push((f64::INFINITY, count.saturating_sub(below)));
        let labels = labels(id);
        let labels = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
        let mut metric = family.encode_family(&labels)?;
        metric.encode_histogram::<NoLabelSet>(sum.as_secs_f64(), count, &own, None)?;
    }
    Ok(())
}

/// Resident bytes and open descriptors, where /proc is there to tell.
fn process_figures() -> Option<(i64, i64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().trim_end_matches(" kB").trim().parse().ok()?;
    let fds = std::fs::read_dir("/proc/self/fd").ok()?.count();
    Some((kib * 1024, i64::try_from(fds).unwrap_or(i64::MAX)))
}
