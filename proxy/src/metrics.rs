//! Counters of the whole process. What belongs to one Service or endpoint is counted there
//! ([`crate::discovery`]) and collected on the control thread at scrape time.
//!
//! Series are bounded: every label here has a closed set of values, or a bound on them ([`Hosts`]).

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::{error::Reason, hosts::Hosts};

/// Which way a connection goes, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The pod's application calls.
    Outbound,
    /// The pod's application is called.
    Inbound,
}

impl Direction {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        DIRECTIONS[self as usize]
    }
}

/// What protects a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Both sides proved who they are.
    Mutual,
    /// Nothing: the other side is not in the mesh.
    None,
    /// Not ours to look into.
    Passthrough,
}

const DIRECTIONS: [&str; 2] = ["outbound", "inbound"];
const TLS: [&str; 3] = ["mtls", "none", "passthrough"];
const DETECTED: [&str; 5] = ["http/1", "http/2", "tls", "opaque", "silent"];
/// Upper bounds of the detection histogram, in microseconds: a silent client is in the one after
/// 50 ms, a client that began and never became recognisable beyond the last.
const DETECT_BOUNDS: [u32; 12] =
    [100, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000];

/// The counters. Written by the workers with relaxed atomics.
#[derive(Debug, Default)]
pub struct Metrics {
    errors: [[AtomicU64; Reason::ALL.len()]; 2],
    detected: [[AtomicU64; DETECTED.len()]; 2],
    detect_took: [DetectTimes; 2],
    connections: [[AtomicU64; TLS.len()]; 2],
    open: [[AtomicI64; TLS.len()]; 2],
    bytes: [[AtomicU64; 2]; 2],
    inbound_requests: [AtomicU64; 2],
    /// Lines of the access log: written, dropped.
    access_log: [AtomicU64; 2],
    /// Connections to what is outside the mesh.
    pub passed_through: Hosts,
}

/// How long detections took.
#[derive(Debug, Default)]
struct DetectTimes {
    /// Those up to each bound and above the one before; the last has no bound.
    counts: [AtomicU64; DETECT_BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Metrics {
    /// The proxy answered or ended something itself.
    pub fn error(&self, direction: Direction, reason: Reason) {
        self.errors[direction as usize][reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// First bytes were looked at.
    pub fn detected(&self, direction: Direction, what: &str) {
        if let Some(at) = DETECTED.iter().position(|known| *known == what) {
            self.detected[direction as usize][at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How long the first bytes were looked at, or waited for.
    pub fn detect_took(&self, direction: Direction, took: Duration) {
        let times = &self.detect_took[direction as usize];
        let at = DETECT_BOUNDS.partition_point(|bound| took.as_micros() > u128::from(*bound));
        times.counts[at].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        times.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// A connection is open as long as the guard lives.
    #[must_use]
    pub fn connection(
        self: &std::sync::Arc<Self>,
        direction: Direction,
        tls: Tls,
    ) -> OpenConnection {
        self.connections[direction as usize][tls as usize].fetch_add(1, Ordering::Relaxed);
        self.open[direction as usize][tls as usize].fetch_add(1, Ordering::Relaxed);
        OpenConnection { metrics: std::sync::Arc::clone(self), direction, tls }
    }

    /// Bytes of opaque connections, towards the application's peer and back.
    pub fn carried(&self, direction: Direction, sent: u64, received: u64) {
        self.bytes[direction as usize][0].fetch_add(sent, Ordering::Relaxed);
        self.bytes[direction as usize][1].fetch_add(received, Ordering::Relaxed);
    }

    /// Lines of the access log were written.
    pub fn access_log_written(&self, lines: u64) {
        self.access_log[0].fetch_add(lines, Ordering::Relaxed);
    }

    /// Lines of the access log were lost.
    pub fn access_log_dropped(&self, lines: u64) {
        self.access_log[1].fetch_add(lines, Ordering::Relaxed);
    }

    /// A request arrived for the pod's application.
    pub fn inbound_request(&self, tls: Tls) {
        self.inbound_requests[usize::from(tls != Tls::Mutual)].fetch_add(1, Ordering::Relaxed);
    }
}

/// See [`Metrics::connection`].
#[derive(Debug)]
pub struct OpenConnection {
    metrics: std::sync::Arc<Metrics>,
    direction: Direction,
    tls: Tls,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.metrics.open[self.direction as usize][self.tls as usize]
            .fetch_sub(1, Ordering::Relaxed);
    }
}

/// Shows [`Metrics`] to a registry.
#[derive(Debug)]
pub struct ProcessCollector(pub std::sync::Arc<Metrics>);

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let m = &self.0;
        let mut family = Families(&mut encoder);
        family.counters(
            "remora_proxy_errors",
            "Answers and endings that the proxy made itself",
            Reason::ALL.iter().flat_map(|&reason| {
                (0..2).map(move |d| {
                    let value = m.errors[d][reason as usize].load(Ordering::Relaxed);
                    ([("direction", DIRECTIONS[d]), ("reason", reason.as_str())], value)
                })
            }),
        )?;
        family.counters(
            "remora_detect",
            "Connections by what their first bytes were",
            table(&DETECTED, &m.detected, "result"),
        )?;
        detect_times(&m.detect_took, family.0)?;
        family.counters(
            "remora_tcp_connections",
            "Connections accepted from, or opened for, the application",
            table(&TLS, &m.connections, "tls"),
        )?;
        family.counters(
            "remora_tcp_bytes",
            "Bytes of opaque connections",
            table(&["sent", "received"], &m.bytes, "flow"),
        )?;
        let open = (0..2).flat_map(|d| {
            TLS.iter().enumerate().map(move |(t, word)| {
                (
                    [("direction", DIRECTIONS[d]), ("tls", *word)],
                    m.open[d][t].load(Ordering::Relaxed),
                )
            })
        });
        let mut gauge = encoder.encode_descriptor(
            "remora_tcp_open_connections",
            "Connections open now",
            None,
            MetricType::Gauge,
        )?;
        for (labels, value) in open {
            ConstGauge::new(value).encode(gauge.encode_family(&labels)?)?;
        }
        Families(&mut encoder).counters(
            "remora_outbound_passthrough_connections",
            "Connections to what is outside the mesh, by server name or Host",
            m.passed_through.all().into_iter().map(|(host, value)| ([("host", host)], value)),
        )?;
        let mut families = Families(&mut encoder);
        families.counters(
            "remora_inbound_http_requests",
            "Requests that arrived for the pod's application",
            (0..2).map(|t| ([("tls", TLS[t])], m.inbound_requests[t].load(Ordering::Relaxed))),
        )?;
        for (counter, name, help) in [
            (&m.access_log[0], "remora_access_log_lines", "Lines of the access log"),
            (
                &m.access_log[1],
                "remora_access_log_dropped",
                "Lines that were lost: too many waited",
            ),
        ] {
            families.total(name, help, counter.load(Ordering::Relaxed))?;
        }
        Ok(())
    }
}

fn detect_times(
    times: &[DetectTimes; 2],
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), std::fmt::Error> {
    let (name, help) = ("remora_detect_duration_seconds", "Time that looking at first bytes took");
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (word, times) in DIRECTIONS.iter().zip(times) {
        let bounds = DETECT_BOUNDS.iter().map(|micros| f64::from(*micros) / 1e6);
        let counts = times.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.chain([f64::INFINITY]).zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(times.nanos.load(Ordering::Relaxed)).as_secs_f64();
        let labels = [("direction", *word)];
        let mut metric = family.encode_family(&labels)?;
        metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    Ok(())
}

fn table<'a, const N: usize>(
    words: &'a [&'static str; N],
    values: &'a [[AtomicU64; N]; 2],
    label: &'static str,
) -> impl Iterator<Item = ([(&'static str, &'static str); 2], u64)> + 'a {
    (0..2).flat_map(move |d| {
        words.iter().enumerate().map(move |(i, word)| {
            ([("direction", DIRECTIONS[d]), (label, *word)], values[d][i].load(Ordering::Relaxed))
        })
    })
}

/// Writes families of counters whose name gets `_total` from the format.
pub(crate) struct Families<'a, 'b>(pub(crate) &'a mut DescriptorEncoder<'b>);

impl Families<'_, '_> {
    /// One counter without labels; one that never counted is left out.
    pub(crate) fn total(&mut self, name: &str, help: &str, value: u64) -> std::fmt::Result {
        let counter = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        if value == 0 { Ok(()) } else { ConstCounter::new(value).encode(counter) }
    }

    /// One family; series that never counted are left out.
    pub(crate) fn counters<const N: usize, S: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        series: impl Iterator<Item = ([(&'static str, S); N], u64)>,
    ) -> Result<(), std::fmt::Error> {
        let kind = MetricType::Counter;
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in series.filter(|(_, value)| *value > 0) {
            let labels = labels.each_ref().map(|(name, value)| (*name, value.as_ref()));
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_scrape_shows_what_was_counted() {
        let metrics = Arc::new(Metrics::default());
        metrics.error(Direction::Outbound, Reason::NoEndpoints);
        metrics.detected(Direction::Inbound, "http/1");
        for micros in [80, 50_300, 51_000, 1_050_000] {
            metrics.detect_took(Direction::Outbound, Duration::from_micros(micros));
        }
        let _open = metrics.connection(Direction::Outbound, Tls::Mutual);
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(ProcessCollector(metrics)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "remora_proxy_errors_total{direction=\"outbound\",reason=\"no-endpoints\"} 1",
            "remora_detect_total{direction=\"inbound\",result=\"http/1\"} 1",
            "remora_tcp_open_connections{direction=\"outbound\",tls=\"mtls\"} 1",
            "remora_detect_duration_seconds_bucket{le=\"0.0001\",direction=\"outbound\"} 1",
            "remora_detect_duration_seconds_bucket{le=\"0.05\",direction=\"outbound\"} 1",
            "remora_detect_duration_seconds_bucket{le=\"0.1\",direction=\"outbound\"} 3",
            "remora_detect_duration_seconds_bucket{le=\"1.0\",direction=\"outbound\"} 3",
            "remora_detect_duration_seconds_bucket{le=\"+Inf\",direction=\"outbound\"} 4",
            "remora_detect_duration_seconds_sum{direction=\"outbound\"} 1.15138",
            "remora_detect_duration_seconds_count{direction=\"inbound\"} 0",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
