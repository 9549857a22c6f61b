//! The proxy's own work as spans: what the control thread does ([`SPANS`]) goes into the same queue.

use std::{sync::Arc, time::Duration};

use opentelemetry::{Context, trace::TracerProvider};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{Sampler, SdkTracerProvider, Span, SpanData, SpanProcessor},
};
use remora_core::telemetry::{Bridge, SPANS};
use tracing_subscriber::{Layer, filter::Targets};

use super::queue::Queue;

/// Makes OpenTelemetry spans of ours and puts them into a queue. All of them: they are few.
#[must_use]
pub fn layer(queue: &Arc<Queue>) -> Bridge {
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::AlwaysOn)
        .with_span_processor(Waiting(Arc::clone(queue)))
        .build();
    let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
    let layer = tracing_opentelemetry::layer().with_tracer(tracer);
    // What is done matters, not by which line and thread.
    let layer = layer.with_location(false).with_threads(false).with_tracked_inactivity(false);
    layer.with_filter(Targets::new().with_target(SPANS, tracing::Level::INFO)).boxed()
}

/// Hands spans on to the queue.
#[derive(Debug)]
struct Waiting(Arc<Queue>);

impl SpanProcessor for Waiting {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.push(vec![span]);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}
