//! A collector of traces, as far as proxies know: OTLP over gRPC.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use crate::wait::eventually;

/// A span and whose it is.
#[derive(Debug, Clone)]
pub struct Received {
    /// Attributes of the one who sent it.
    pub resource: BTreeMap<String, String>,
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// The span itself.
    pub span: Span,
}

/// Keeps what it gets. Dropped, it ends.
#[derive(Debug)]
pub struct Collector {
    addr: SocketAddr,
    received: Kept,
    task: AbortHandle,
}

#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<Received>>>);

impl Collector {
    /// Listens on the loopback device.
    ///
    /// # Panics
    /// Where it cannot.
    pub async fn listen() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let addr = listener.local_addr().expect("its address");
        let received = Kept::default();
        let service = TraceServiceServer::new(received.clone());
        let serve =
            Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
        Self { addr, received, task: tokio::spawn(serve).abort_handle() }
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What came so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Received> {
        self.received.0.lock().clone()
    }

    /// Waits until so many spans of a pod have come, and gives these.
    ///
    /// # Panics
    /// Where they do not come.
    pub async fn spans_of(&self, pod: &str, count: usize) -> Vec<Received> {
        eventually(&format!("{count} spans of {pod}"), async || {
            let spans = self.spans().into_iter();
            let own: Vec<_> = spans.filter(|span| span.resource["k8s.pod.name"] == pod).collect();
            (own.len() >= count).then_some(own)
        })
        .await
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.map(|resource| texts(&resource.attributes));
            let resource = resource.unwrap_or_default();
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().extend(spans.map(|span| {
                let (resource, attributes) = (resource.clone(), texts(&span.attributes));
                Received { resource, attributes, span }
            }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Received {
    /// `Client`, `Server`, …
    #[must_use]
    pub fn kind(&self) -> SpanKind {
        self.span.kind()
    }

    /// Whether it ended with an error.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
    }

    /// An attribute as text; empty where there is none.
    #[must_use]
    pub fn get(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }

    /// Its trace, in hexadecimal digits.
    #[must_use]
    pub fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    /// The span that it is part of, in hexadecimal digits; empty for the first of a trace.
    #[must_use]
    pub fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    /// Its own id, in hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> String {
        hex(&self.span.span_id)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(yes) => yes.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let pair = |attribute: &KeyValue| {
        let value = attribute.value.as_ref()?.value.as_ref()?;
        Some((attribute.key.clone(), text(value)))
    };
    attributes.iter().filter_map(pair).collect()
}
