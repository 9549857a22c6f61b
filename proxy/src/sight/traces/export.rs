//! Spans leave for the collector: OTLP over gRPC, from the control thread.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter as _},
};
use remora_core::settings::TraceCollector;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::queue::Queue;
use crate::tls::channel;

/// Longest time for name look-up and connecting.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest time for one batch.
const EXPORT: Duration = Duration::from_secs(5);
/// How long the end of the process waits for the last spans.
const LAST: Duration = Duration::from_secs(2);

/// Whose spans they are (OpenTelemetry's resource conventions).
#[derive(Debug, Clone, Default)]
pub struct Workload {
    /// `service.name`.
    pub service: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Its node; empty where it is not known.
    pub node: String,
}

/// Sends off what a queue has.
#[derive(Debug)]
pub struct Export {
    queue: Arc<Queue>,
    collector: TraceCollector,
    exporter: SpanExporter,
}

impl Export {
    /// Dials when there is something to send. `mark` exempts the connection from redirection, where
    /// one is used.
    ///
    /// # Errors
    /// Where the exporter cannot be made.
    pub fn new(
        queue: Arc<Queue>,
        collector: TraceCollector,
        mark: Option<u32>,
        workload: Workload,
    ) -> Result<Self, ExporterBuildError> {
        let mut exporter = SpanExporter::builder()
            .with_tonic()
            .with_channel(channel(&collector, mark))
            .with_timeout(EXPORT)
            .build()?;
        exporter.set_resource(&workload.resource());
        Ok(Self { queue, collector, exporter })
    }

    /// Sends until `stop`, and then what is left, for a moment at most.
    pub async fn run(self, stop: CancellationToken) {
        let mut away = false;
        while let Some(()) = stop.run_until_cancelled(self.queue.some()).await {
            self.send(&mut away).await;
        }
        // A collector that is away loses spans, which it would have lost anyway.
        let _ = tokio::time::timeout(LAST, self.send(&mut away)).await;
    }

    /// All that waits.
    async fn send(&self, away: &mut bool) {
        loop {
            let batch = self.queue.take();
            if batch.is_empty() {
                return;
            }
            self.send_batch(batch, away).await;
        }
    }

    /// A batch that is not taken is lost: what comes next matters more.
    async fn send_batch(&self, batch: Vec<SpanData>, away: &mut bool) {
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let add = |counter: &AtomicU64| counter.fetch_add(count, Ordering::Relaxed);
        let collector = self.collector.as_str();
        match self.exporter.export(batch).await {
            Ok(()) => {
                add(&self.queue.exported);
                if std::mem::take(away) {
                    tracing::info!(collector, "trace collector takes spans again");
                }
            }
            Err(error) => {
                add(&self.queue.failed);
                if !std::mem::replace(away, true) {
                    tracing::warn!(%error, collector, "spans are lost until the trace collector answers");
                }
            }
        }
    }
}

impl Workload {
    fn resource(self) -> Resource {
        let known = [
            ("service.name", self.service),
            ("service.namespace", self.namespace.clone()),
            ("k8s.namespace.name", self.namespace),
            ("k8s.pod.name", self.pod),
            ("k8s.node.name", self.node),
        ];
        let known = known.into_iter().filter(|(_, value)| !value.is_empty());
        let attributes = known.map(|(key, value)| KeyValue::new(key, value));
        Resource::builder_empty().with_attributes(attributes).build()
    }
}

/// A channel that dials when it is used and again when its connection has ended. The name is looked up
/// anew for each connection.
fn channel(collector: &TraceCollector, mark: Option<u32>) -> Channel {
    let authority: Arc<str> = collector.as_str().into();
    let connector = tower::service_fn(move |_: http::Uri| {
        let authority = Arc::clone(&authority);
        async move { dial(&authority, mark).await.map(TokioIo::new) }
    });
    // Where it goes is the connector's business; the host only fills `:authority`.
    Endpoint::from_static("http://trace-collector")
        .connect_timeout(CONNECT)
        .connect_with_connector_lazy(connector)
}

async fn dial(authority: &str, mark: Option<u32>) -> io::Result<tokio::net::TcpStream> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(authority).await?.collect();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "name has no address");
    for address in addresses {
        match channel::tcp(address, mark).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}
