//! What belongs to the process as a whole: connections, errors, discovery, identity, the system.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use nix::sys::{
    resource::{Resource, UsageWho, getrlimit, getrusage},
    time::TimeValLike,
};

use super::Collector;
use crate::{
    error::Reason,
    metrics::{
        DETECT_BOUNDS, DETECTED, DIRECTIONS, Metrics, TLS,
        text::{Distribution, Exposition},
    },
};

const NO_LABELS: [(&str, &str); 0] = [];

impl Collector {
    pub(super) fn process(&self, out: &mut Exposition<'_>) {
        errors(&self.metrics, out);
        detection(&self.metrics, out);
        connections(&self.metrics, out);
        let places = u64::try_from(self.admission.limit()).unwrap_or(u64::MAX);
        out.gauge("remora_tcp_connections_limit", "Connections carried at most", places);
        self.discovery(out);
        if let Some(material) = self.identity.current() {
            let help = "End of the certificate's validity";
            let expiry = material.certificate().not_after.as_secs();
            out.gauge("remora_identity_cert_expiry_timestamp_seconds", help, expiry);
        }
        let refreshes = [(NO_LABELS, self.identity.refreshes())];
        out.counters("remora_identity_cert_refreshes", "Certificates installed", refreshes);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        out.gauges("remora_build_info", "Version", [(version, 1u64)]);
        self.sight(out);
        self.runtimes(out);
        system(out);
        let start = out.wall().unix(self.metrics.started).as_secs_f64();
        out.gauge("process_start_time_seconds", "When the process began, since 1970", start);
    }

    fn discovery(&self, out: &mut Exposition<'_>) {
        let status = self.discovery.status();
        let help = "Whether the stream to the control plane is up";
        out.gauge("remora_discovery_connected", help, u64::from(status.connected));
        if let Some(last) = status.last_update {
            let help = "Since the last update of the control plane was applied";
            let silence = out.wall().now().saturating_duration_since(last).as_secs_f64();
            out.gauge("remora_discovery_silence_seconds", help, silence);
        }
        let targets = self.discovery.all().len() as u64;
        out.gauge("remora_discovery_targets", "Destinations known", targets);
        let help = "Destinations turned away because the cache was full";
        let refused = [(NO_LABELS, self.discovery.refused_targets())];
        out.counters("remora_discovery_refused_targets", help, refused);
        let help = "Streams to the control plane that ended: asked to come again, or lost";
        let ended = [([("reason", "asked")], status.asked), ([("reason", "lost")], status.lost)];
        out.counters("remora_discovery_streams_ended", help, ended);
    }

    fn sight(&self, out: &mut Exposition<'_>) {
        let [written, dropped] = self.metrics.access_log.each_ref().map(|n| n.load(Relaxed));
        out.counters("remora_access_log_lines", "Lines of the access log", [(NO_LABELS, written)]);
        let help = "Lines that were lost: too many waited";
        out.counters("remora_access_log_dropped", help, [(NO_LABELS, dropped)]);
        let help = "Spans that the collector has taken";
        let taken = [(NO_LABELS, self.spans.exported())];
        out.counters("remora_trace_spans_exported", help, taken);
        let help = "Spans that were lost: too many waited, or the collector did not take them";
        let lost = self.spans.lost().map(|(reason, count)| ([("reason", reason)], count));
        out.counters("remora_trace_spans_dropped", help, lost);
    }

    fn runtimes(&self, out: &mut Exposition<'_>) {
        let workers = self.runtimes.iter().filter(|(thread, _)| thread.starts_with("worker"));
        let workers = workers.count() as u64;
        out.gauge("remora_runtime_workers", "Threads that carry traffic", workers);
        let tasks = self.runtimes.iter().map(|(thread, runtime)| {
            ([("thread", thread)], runtime.metrics().num_alive_tasks() as u64)
        });
        out.gauges("remora_runtime_tasks", "Tasks that are not over", tasks);
        let busy = self.runtimes.iter().map(|(thread, runtime)| {
            ([("thread", thread)], runtime.metrics().worker_total_busy_duration(0).as_secs_f64())
        });
        out.counters("remora_runtime_busy_seconds", "Time in tasks, and not asleep", busy);
    }
}

fn errors(metrics: &Metrics, out: &mut Exposition<'_>) {
    let errors = Reason::ALL.iter().flat_map(|&reason| {
        DIRECTIONS.iter().zip(&metrics.errors).map(move |(direction, counts)| {
            let value = counts[reason as usize].load(Relaxed);
            ([("direction", *direction), ("reason", reason.as_str())], value)
        })
    });
    let help = "Answers and endings that the proxy made itself";
    out.counters("remora_proxy_errors", help, errors);
}

fn detection(metrics: &Metrics, out: &mut Exposition<'_>) {
    let detected = table(&DETECTED, &metrics.detected, "result");
    out.counters("remora_detect", "Connections by what their first bytes were", detected);
    let name = "remora_detect_duration_seconds";
    out.histograms(name, "Time that looking at first bytes took");
    for (direction, times) in DIRECTIONS.iter().zip(&metrics.detect_took) {
        let counts: Vec<u64> = times.counts.iter().map(|count| count.load(Relaxed)).collect();
        let sum = Duration::from_nanos(times.nanos.load(Relaxed)).as_secs_f64();
        let of = Distribution { bounds: &DETECT_BOUNDS, counts: &counts, sum, exemplars: &[] };
        out.histogram(name, &[("direction", *direction)], &of);
    }
}

fn connections(metrics: &Metrics, out: &mut Exposition<'_>) {
    let help = "Connections accepted from, or opened for, the application";
    let accepted = table(&TLS, &metrics.connections, "tls");
    out.counters("remora_tcp_connections", help, accepted);
    let bytes = table(&["sent", "received"], &metrics.bytes, "flow");
    out.counters("remora_tcp_bytes", "Bytes of opaque connections", bytes);
    let open = DIRECTIONS.iter().zip(&metrics.open).flat_map(|(direction, counts)| {
        TLS.iter().zip(counts).map(move |(tls, count)| {
            ([("direction", *direction), ("tls", *tls)], count.load(Relaxed))
        })
    });
    out.gauges("remora_tcp_open_connections", "Connections open now", open);
    let help = "Connections to what is outside the mesh, by server name or Host";
    let passed = metrics.passed_through.all();
    let passed = passed.into_iter().map(|(host, value)| ([("host", host)], value));
    out.counters("remora_outbound_passthrough_connections", help, passed);
}

fn table<'a, const N: usize>(
    words: &'a [&'static str; N],
    values: &'a [[AtomicU64; N]; 2],
    label: &'static str,
) -> impl Iterator<Item = ([(&'static str, &'static str); 2], u64)> + 'a {
    DIRECTIONS.iter().zip(values).flat_map(move |(direction, values)| {
        words.iter().zip(values).map(move |(word, value)| {
            ([("direction", *direction), (label, *word)], value.load(Relaxed))
        })
    })
}

/// What the system says of the process, under the names that Prometheus's clients give it; as far as
/// /proc is there to tell.
fn system(out: &mut Exposition<'_>) {
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let spent = usage.user_time() + usage.system_time();
        let seconds = spent.num_microseconds() as f64 / 1e6;
        out.counters("process_cpu_seconds", "User and system time", [(NO_LABELS, seconds)]);
    }
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        if let Some(kib) = field("VmRSS:") {
            out.gauge("process_resident_memory_bytes", "Resident memory", kib * 1024);
        }
        if let Some(kib) = field("VmSize:") {
            out.gauge("process_virtual_memory_bytes", "Address space", kib * 1024);
        }
        if let Some(threads) = field("Threads:") {
            out.gauge("process_threads", "Threads", threads);
        }
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        out.gauge("process_open_fds", "Open file descriptors", open.count() as u64);
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        out.gauge("process_max_fds", "File descriptors that it may have", soft);
    }
}
