//! What happened to requests, for whoever asks: a story is kept while a request is under way
//! ([`story`]), and when it is over somebody may want a record of it ([`Sight::finished`]).
//!
//! Every request has a story, which costs a few words on its way. A record, which costs much more,
//! is made of failures, of those whose client left before there was a response, of one in [`SAMPLE`] of
//! the others, of those whose caller asked ([`names::headers::EXPLAIN`]), and of all while somebody
//! listens ([`Sight::listen`]).
//! Lines of the [`access_log`] and the spans of [`traces`] are made then too, where they are wanted.
//!
//! [`names::headers::EXPLAIN`]: remora_core::names::headers::EXPLAIN

pub mod access_log;
pub mod filter;
pub mod finished;
pub mod id;
pub mod record;
mod ring;
mod semantic;
pub mod story;
pub mod trace;
pub mod traces;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::HeaderName;
use parking_lot::Mutex;
use remora_core::names::headers::DECISION_ID;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::Instant,
};

use self::{
    access_log::AccessLog,
    filter::Filter,
    finished::{Answered, Connection, Finished},
    id::{DecisionId, Ids},
    record::{Decision, Shown},
    ring::Ring,
    story::Story,
    traces::Tracer,
};
use crate::fields::Fields;

/// [`DECISION_ID`] as a name.
pub static DECISION_ID_NAME: HeaderName = HeaderName::from_static(DECISION_ID);

/// Failures that are kept.
pub const MAX_FAILURES: usize = 256;
/// Other requests that are kept.
pub const MAX_OTHERS: usize = 256;
/// Of so many requests that did not fail one is kept.
pub const SAMPLE: u64 = 100;
/// Records that wait for one that listens; of more it misses the oldest, and is told how many.
const MAX_WAITING: usize = 256;

/// The records of one process. Written by the workers, read by the control thread.
#[derive(Debug)]
pub struct Sight {
    ids: Ids,
    clock: WallClock,
    /// Failures apart, so that no number of other records pushes them out.
    failures: Mutex<Ring>,
    others: Mutex<Ring>,
    /// Requests that did not fail.
    finished: AtomicU64,
    taps: broadcast::Sender<Arc<Decision>>,
    /// How many listen. The channel would lock to say so, and every request asks.
    listening: AtomicUsize,
    log: Option<AccessLog>,
    tracer: Option<Tracer>,
}

/// What is to be made of a request that is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// A record.
    pub record: bool,
    /// A line in the access log.
    pub line: bool,
    /// Spans.
    pub spans: bool,
}

impl Wanted {
    /// Whether there is anything to do.
    #[must_use]
    pub fn any(self) -> bool {
        self.record || self.line || self.spans
    }
}

/// Says what time it is, since 1970.
pub type WallClock = fn() -> Duration;

impl Sight {
    /// Nothing recorded yet. `seed` makes ids differ from those of other processes.
    #[must_use]
    pub fn new(seed: u64, clock: WallClock) -> Self {
        Self {
            ids: Ids::new(seed),
            clock,
            failures: Mutex::new(Ring::new(MAX_FAILURES)),
            others: Mutex::new(Ring::new(MAX_OTHERS)),
            finished: AtomicU64::new(0),
            taps: broadcast::Sender::new(MAX_WAITING),
            listening: AtomicUsize::new(0),
            log: None,
            tracer: None,
        }
    }

    /// With an access log.
    #[must_use]
    pub fn logging(self, log: Option<AccessLog>) -> Self {
        Self { log, ..self }
    }

    /// With traces.
    #[must_use]
    pub fn tracing(self, tracer: Option<Tracer>) -> Self {
        Self { tracer, ..self }
    }

    /// Decides whether a request is traced, by its fields as they came.
    pub fn begin(&self, story: &mut Story, fields: &impl Fields) {
        if let Some(tracer) = &self.tracer {
            tracer.begin(story, fields);
        }
    }

    /// An id for a record to come.
    #[must_use]
    pub fn id(&self) -> DecisionId {
        self.ids.next()
    }

    /// What somebody wants of a request that is over. To be asked once for each that did not fail.
    #[must_use]
    pub fn wants(&self, story: &Story, failed: bool) -> Wanted {
        let kept = failed || self.chooses() || story.explained.is_some();
        self.wanted(story, failed, kept)
    }

    /// The same of one whose client left before there was a response. Why it did not wait is what people
    /// come to ask.
    #[must_use]
    pub fn wants_of_left(&self, story: &Story) -> Wanted {
        self.wanted(story, false, true)
    }

    fn wanted(&self, story: &Story, failed: bool, kept: bool) -> Wanted {
        Wanted {
            record: kept || self.listening.load(Ordering::Relaxed) > 0,
            line: self.log.as_ref().is_some_and(|log| log.wants(failed, kept)),
            spans: self.tracer.is_some() && story.trace.is_some_and(|context| context.sampled),
        }
    }

    fn chooses(&self) -> bool {
        self.finished.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE)
    }

    /// Makes what is wanted of a request that is over.
    pub fn finished(&self, id: DecisionId, finished: &Finished<'_>) {
        let wanted = match finished.result {
            Ok(answered) => answered.wanted,
            Err(_) => self.wants(finished.story, true),
        };
        let now = (self.clock)();
        let recorded = wanted.record.then_some(id);
        if let Some(log) = self.log.as_ref().filter(|_| wanted.line) {
            log.write(now, recorded, finished);
        }
        if let Some(tracer) = self.tracer.as_ref().filter(|_| wanted.spans) {
            tracer.ended(now, recorded, finished);
        }
        if wanted.record {
            self.record(id, now, finished);
        }
    }

    fn record(&self, id: DecisionId, now: Duration, finished: &Finished<'_>) {
        let at = finished.ended;
        let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let decision = Arc::new(Decision::new(id, unix_ms, finished));
        let ring = if decision.failed() { &self.failures } else { &self.others };
        ring.lock().push(at, Arc::clone(&decision));
        // Nobody may be there to hear it.
        let _ = self.taps.send(decision);
    }

    /// Makes what is wanted of a connection that is over, or not carried.
    pub fn connection(&self, connection: Connection<'_>, now: Instant) {
        let Connection { direction, target, service, client, peer, policy, story, .. } = connection;
        let wanted = self.wants(story, connection.error.is_some());
        if !wanted.any() {
            return;
        }
        let finished = Finished {
            direction,
            about: None,
            grpc: false,
            target,
            service,
            route: None,
            client,
            peer,
            policy: policy.map(ToString::to_string),
            rules: None,
            story,
            carried: connection.carried,
            result: connection.error.map_or(Ok(Answered::carried(wanted)), Err),
            ended: now,
        };
        self.finished(self.id(), &finished);
    }

    /// The newest records that a filter lets through, newest first.
    #[must_use]
    pub fn newest_first(&self, filter: &Filter, limit: usize, now: Instant) -> Vec<Shown> {
        let mut all: Vec<(Instant, Arc<Decision>)> = Vec::new();
        for ring in [&self.failures, &self.others] {
            all.extend(ring.lock().iter().filter(|(_, decision)| filter.passes(decision)).cloned());
        }
        all.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        all.truncate(limit);
        let ago = |at: Instant| now.saturating_duration_since(at).as_millis();
        all.into_iter().map(|(at, decision)| Shown { ago_ms: ago(at), decision }).collect()
    }

    /// Records as they are made from now on.
    #[must_use]
    pub fn listen(self: &Arc<Self>) -> Heard {
        self.listening.fetch_add(1, Ordering::Relaxed);
        Heard { records: self.taps.subscribe(), sight: Arc::clone(self) }
    }
}

/// One that listens, until it is dropped.
#[derive(Debug)]
pub struct Heard {
    records: broadcast::Receiver<Arc<Decision>>,
    sight: Arc<Sight>,
}

impl Heard {
    /// The next record, once there is one.
    ///
    /// # Errors
    /// How many were missed by one that does not keep up.
    pub async fn next(&mut self) -> Result<Arc<Decision>, RecvError> {
        self.records.recv().await
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.sight.listening.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
