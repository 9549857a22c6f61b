//! Spans that wait to be sent off.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use opentelemetry_sdk::trace::SpanData;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};

/// Spans that wait; those of a request that would be beyond it are dropped.
pub const MAX_WAITING: usize = 2048;
/// Spans that are sent off together.
pub(super) const BATCH: usize = 512;
/// Spans are sent off together that come within this time.
const PAUSE: Duration = Duration::from_secs(1);

/// Spans on their way to the collector. Written by the workers, emptied by the control thread.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: Mutex<Vec<SpanData>>,
    /// The first one is there.
    first: Notify,
    /// As many as are sent off together.
    batch: Notify,
    dropped: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) exported: AtomicU64,
}

impl Queue {
    /// Adds spans that belong together, or counts that there was no room for them.
    pub fn push(&self, spans: Vec<SpanData>) {
        let count = spans.len();
        let before = {
            let mut waiting = self.waiting.lock();
            let before = waiting.len();
            if before + count <= MAX_WAITING {
                waiting.extend(spans);
            }
            before
        };
        if before + count > MAX_WAITING {
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            self.dropped.fetch_add(count, Ordering::Relaxed);
            return;
        }
        if before == 0 {
            self.first.notify_one();
        }
        if before < BATCH && before + count >= BATCH {
            self.batch.notify_one();
        }
    }

    /// Spans that the collector has taken.
    #[must_use]
    pub fn exported(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// Spans that were lost, by why.
    #[must_use]
    pub fn lost(&self) -> [(&'static str, u64); 2] {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [("queue-full", value(&self.dropped)), ("export-failed", value(&self.failed))]
    }

    /// Waits for the first span, and then for more: until a batch is full, or for a moment.
    pub(super) async fn some(&self) {
        while self.waiting.lock().is_empty() {
            self.first.notified().await;
        }
        if self.waiting.lock().len() < BATCH {
            // Nobody says so where the moment is over first; that is fine as well.
            let _ = timeout(PAUSE, self.batch.notified()).await;
        }
    }

    /// What is sent off next, the oldest first; nothing where nothing waits.
    pub(super) fn take(&self) -> Vec<SpanData> {
        let mut waiting = self.waiting.lock();
        let count = waiting.len().min(BATCH);
        waiting.drain(..count).collect()
    }
}
