//! Requests that ended: answers by class and gRPC code, failures and how long they took.
//!
//! What a worker counts lies in a part of its own ([`Part`]), so that a request costs one lock that is
//! free and some additions. Every [`TICK`] the control thread takes the parts away and adds them to
//! what is kept ([`Past`]): sums since the start, and a compact record of the last minute. A flow
//! without requests has no part, and costs nothing; one that never had any is a pointer.

use std::{
    cell::Cell,
    sync::OnceLock,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use http::StatusCode;
use parking_lot::Mutex;
use remora_core::latency::{Quantiles, micros};

use super::{
    grpc,
    past::{Merged, Past, Spans, Windows},
    trace::{Exemplar, TraceId},
};

/// How often parts are taken away.
pub const TICK: Duration = Duration::from_secs(10);
/// Upper bounds of the latency histograms that are scraped, in microseconds.
pub const BOUNDS: [u64; 14] = [
    500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];
/// Buckets of these, with the one that has no bound.
pub const BUCKETS: usize = BOUNDS.len() + 1;
/// Parts of a flow. Workers beyond share them, which two seldom do at the same moment: a part is held
/// for about a hundred instructions of some ten thousand for each request.
const PARTS: usize = 4;

thread_local! {
    static WORKER: Cell<usize> = const { Cell::new(0) };
}

/// Says which worker the calling thread is.
pub fn on_worker(index: usize) {
    WORKER.set(index % PARTS);
}

/// A request that ended.
#[derive(Debug, Clone, Copy)]
pub struct Finished {
    /// Status that the client was given.
    pub status: StatusCode,
    /// gRPC's word on it.
    pub rpc: Rpc,
    /// How it ended.
    pub end: End,
    /// The trace that it belongs to, where it is sampled.
    pub trace: Option<TraceId>,
}

/// What gRPC says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rpc {
    /// It is no call.
    No,
    /// It is one, and no code came.
    Unsaid,
    /// It ended with this code.
    Said(u32),
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With a whole response.
    Whole,
    /// The response broke off, or took too long.
    Broken,
    /// The client went away.
    Cancelled,
    /// The proxy answered itself because something went wrong.
    Made,
}

impl Finished {
    /// The same with another end.
    #[must_use]
    pub fn ended(self, end: End) -> Self {
        Self { end, ..self }
    }

    /// The gRPC code; `None` where it is no call.
    #[must_use]
    pub fn code(&self) -> Option<usize> {
        let code = match (self.rpc, self.end) {
            (Rpc::No, _) => return None,
            (Rpc::Said(code), _) => code,
            (Rpc::Unsaid, End::Cancelled) => grpc::CANCELLED,
            (Rpc::Unsaid, End::Broken) => grpc::UNAVAILABLE,
            (Rpc::Unsaid, End::Whole | End::Made) => grpc::of_status(self.status),
        };
        Some(grpc::index(code))
    }

    /// Whether it counts as failed: a 5xx, a code that blames the server, a response that broke off, an
    /// answer of our own.
    #[must_use]
    pub fn failed(&self) -> bool {
        match self.end {
            End::Broken | End::Made => true,
            End::Cancelled => false,
            End::Whole => {
                self.status.is_server_error() || self.code().is_some_and(grpc::is_failure)
            }
        }
    }
}

/// Requests of one kind: to a Service, by a route, to an endpoint.
#[derive(Debug, Default)]
pub struct Flow(OnceLock<Box<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    parts: [Part; PARTS],
    past: Mutex<Past>,
}

/// What one worker counted since the last tick. On a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Part(Mutex<Option<Box<Recent>>>);

/// Last one of each bucket of the histogram that is scraped.
pub type Exemplars = [Option<Exemplar>; BUCKETS];

/// What was counted since the last tick.
#[derive(Debug)]
pub(super) struct Recent {
    pub(super) counts: Counts,
    /// Grows with what is recorded: about 1 KiB for 256 µs, 4 KiB for 10 ms and 10 KiB for a minute.
    pub(super) latency: Histogram<u32>,
    pub(super) exemplars: Option<Box<Exemplars>>,
}

/// Sums.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Responses by class, 1xx to 5xx.
    pub responses: [u64; 5],
    /// Calls by gRPC code; `None`: there were none.
    pub grpc: Option<Box<[u64; grpc::CODES]>>,
    /// Requests that the client gave up, before their response began or after.
    pub cancelled: u64,
    /// Of those that ended otherwise, how many failed.
    pub failures: u64,
    /// These by how long they took: up to each of [`BOUNDS`] and above the one before.
    pub buckets: [u64; BUCKETS],
    /// How long they took together, in microseconds.
    pub micros: u64,
}

impl Counts {
    /// Requests that ended, and not because the client gave up.
    #[must_use]
    pub fn finished(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        let arrays = [
            (&mut self.responses[..], &other.responses[..]),
            (&mut self.buckets[..], &other.buckets[..]),
        ];
        for (sums, counts) in arrays {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        if let Some(counts) = &other.grpc {
            let sums = self.grpc.get_or_insert_with(|| Box::new([0; grpc::CODES]));
            sums.iter_mut().zip(&**counts).for_each(|(sum, count)| *sum += count);
        }
        self.cancelled += other.cancelled;
        self.failures += other.failures;
        self.micros += other.micros;
    }
}

impl Recent {
    fn new() -> Box<Self> {
        let mut latency = Histogram::new_with_bounds(1, 2, 2)
            .expect("invariant: the bounds are constants that hdrhistogram accepts");
        latency.auto(true);
        Box::new(Self { counts: Counts::default(), latency, exemplars: None })
    }

    fn finished(&mut self, finished: &Finished, took: Duration, now: Instant) {
        let class = usize::from(finished.status.as_u16() / 100).clamp(1, 5) - 1;
        self.counts.responses[class] += 1;
        if let Some(code) = finished.code() {
            self.counts.grpc.get_or_insert_with(|| Box::new([0; grpc::CODES]))[code] += 1;
        }
        if finished.end == End::Cancelled {
            self.counts.cancelled += 1;
            return;
        }
        let bucket = self.took(took, finished.failed());
        if let Some(trace) = finished.trace {
            let exemplars = self.exemplars.get_or_insert_with(|| Box::new([None; BUCKETS]));
            exemplars[bucket] = Some(Exemplar { trace, took, at: now });
        }
    }

    /// Counts how long a request took, and gives its bucket.
    fn took(&mut self, took: Duration, failed: bool) -> usize {
        let micros = micros(took);
        // It grows to any value that `micros` gives.
        let _ = self.latency.record(micros);
        let bucket = BOUNDS.partition_point(|bound| micros > *bound);
        self.counts.buckets[bucket] += 1;
        self.counts.micros += micros;
        self.counts.failures += u64::from(failed);
        bucket
    }
}

impl Flow {
    /// Counts a request that ended `now`.
    pub fn finished(&self, finished: &Finished, took: Duration, now: Instant) {
        self.count(|recent| recent.finished(finished, took, now));
    }

    /// Counts a request that failed without a response.
    pub fn unanswered(&self, took: Duration) {
        self.count(|recent| {
            recent.took(took, true);
        });
    }

    /// Counts a request whose client left before there was a response.
    pub fn left(&self) {
        self.count(|recent| recent.counts.cancelled += 1);
    }

    fn count(&self, count: impl FnOnce(&mut Recent)) {
        let inner = self.0.get_or_init(Box::default);
        // The index is below PARTS.
        let mut part = inner.parts[WORKER.get()].0.lock();
        count(part.get_or_insert_with(Recent::new));
    }

    /// Takes the parts away for good. To be called with each tick's number, from 1 on; once more with
    /// the same does nothing.
    pub fn rotate(&self, tick: u64) {
        let Some(inner) = self.0.get() else { return };
        let mut past = inner.past.lock();
        if past.begin(tick) {
            // One after the other, and none while it is added up: no worker waits for long.
            past.take(inner.parts.iter().filter_map(|part| part.0.lock().take()));
        }
    }

    /// Sums since the start, and the exemplars.
    #[must_use]
    pub fn totals(&self) -> (Counts, Exemplars) {
        let (mut counts, mut exemplars) = (Counts::default(), [None; BUCKETS]);
        self.read(|past, recent| {
            let (add, newer) = match (past, recent) {
                (Some(past), _) => (&past.counts, &past.exemplars),
                (None, Some(recent)) => (&recent.counts, &recent.exemplars),
                (None, None) => return,
            };
            counts.add(add);
            for (to, from) in exemplars.iter_mut().zip(newer.iter().flat_map(|of| of.iter())) {
                *to = newest(*to, *from);
            }
        });
        (counts, exemplars)
    }

    /// How long requests took since the start.
    #[must_use]
    pub fn quantiles(&self) -> Quantiles {
        if self.is_unused() {
            return Quantiles::default();
        }
        let mut all = Merged::new();
        self.read(|past, recent| {
            past.into_iter().for_each(|past| all.add_all(past));
            recent.into_iter().for_each(|recent| all.add_recent(recent));
        });
        all.quantiles()
    }

    /// The last 10 s, the last minute and everything.
    #[must_use]
    pub fn windows(&self, spans: &Spans) -> Windows {
        if self.is_unused() {
            return spans.empty();
        }
        let (mut window, mut all) = (Merged::new(), Merged::new());
        let mut slots = Vec::new();
        self.read(|past, recent| {
            if let Some(past) = past {
                all.add_all(past);
                slots = past.slots(spans);
            }
            if let Some(recent) = recent {
                window.add_recent(recent);
                all.add_recent(recent);
            }
        });
        spans.windows(window, &slots, &all)
    }

    fn is_unused(&self) -> bool {
        self.0.get().is_none()
    }

    /// Shows what is kept, and then the parts. Nothing is counted twice or missed between the two.
    fn read(&self, mut look: impl FnMut(Option<&Past>, Option<&Recent>)) {
        let Some(inner) = self.0.get() else { return };
        let past = inner.past.lock();
        look(Some(&past), None);
        for part in &inner.parts {
            if let Some(recent) = part.0.lock().as_deref() {
                look(None, Some(recent));
            }
        }
    }
}

pub(super) fn newest(one: Option<Exemplar>, other: Option<Exemplar>) -> Option<Exemplar> {
    [one, other].into_iter().flatten().max_by_key(|exemplar| exemplar.at)
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
