//! Traces: which requests are traced, and their spans on the way to a collector.
//!
//! A request is traced where its caller says that it records (W3C Trace Context, or B3), and of those
//! whose caller says nothing a share. Contexts pass on untouched: our spans are children of the caller's,
//! beside those of the application. They are made when the request is over ([`spans`]), from the times
//! that its story has; workers put them into a bounded queue ([`queue`]), and the control thread sends
//! them off ([`export`]).

mod b3;
pub mod bridge;
pub mod export;
pub mod queue;
mod spans;

use std::{sync::Arc, time::Duration};

use opentelemetry::InstrumentationScope;
use remora_core::settings::SampleRate;

use self::{b3::B3, queue::Queue};
use super::{
    finished::Finished,
    id::{DecisionId, Ids},
    story::Story,
    trace::{TraceContext, TraceId},
};
use crate::fields::Fields;

/// Decides on traces and makes their spans. One for a process.
#[derive(Debug)]
pub struct Tracer {
    rate: SampleRate,
    ids: Ids,
    queue: Arc<Queue>,
    scope: InstrumentationScope,
}

impl Tracer {
    /// Takes a share of the requests whose caller does not say; spans go into `queue`. `seed` makes ids
    /// differ from those of other processes.
    #[must_use]
    pub fn new(rate: SampleRate, queue: Arc<Queue>, seed: u64) -> Self {
        Self { rate, ids: Ids::new(seed), queue, scope: scope() }
    }

    /// Decides whether a request is traced, and as part of which trace, by its fields as they came.
    pub fn begin(&self, story: &mut Story, fields: &impl Fields) {
        if story.trace.is_some() {
            // What W3C's context says holds.
            return;
        }
        let B3 { context, sampled } = B3::of(fields);
        let (trace, parent) = context.unwrap_or_else(|| (self.new_trace(), 0));
        let sampled = sampled.unwrap_or_else(|| self.rate.takes(trace.0));
        // A trace that would begin here and does not has no name.
        story.trace =
            (sampled || context.is_some()).then_some(TraceContext { trace, parent, sampled });
    }

    /// Makes the spans of a request that is over. `at`: when that was, since 1970; `id`: that of its
    /// record, where there is one.
    pub(super) fn ended(&self, at: Duration, id: Option<DecisionId>, finished: &Finished<'_>) {
        if let Some(context) = finished.story.trace.filter(|context| context.sampled) {
            self.queue.push(spans::of(self, context, (at, id), finished));
        }
    }

    fn new_trace(&self) -> TraceId {
        TraceId(u128::from(self.ids.next().0) << 64 | u128::from(self.ids.next().0))
    }
}

/// Whose spans they are.
fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(env!("CARGO_PKG_NAME"))
        .with_version(env!("CARGO_PKG_VERSION"))
        .build()
}

#[cfg(test)]
mod tests;
