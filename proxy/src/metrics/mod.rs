//! What is counted, and nothing of how it is shown ([`crate::collect`]). Written by the workers: counters
//! with relaxed atomics, requests in parts of their own ([`flow`]).
//!
//! What belongs to one Service, route or endpoint is counted there ([`crate::discovery`]).
//! Series are bounded: every label has a closed set of values, or a bound on them ([`Hosts`],
//! [`inbound`], [`seats`]).

pub mod bodies;
pub mod connections;
pub mod events;
pub mod flow;
pub mod grpc;
pub mod inbound;
pub mod past;
pub mod seats;
pub mod text;
pub mod trace;
pub mod wall;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use self::{events::Events, flow::Flow, inbound::Inbound, past::Ticks, seats::Seats};
use crate::{error::Reason, hosts::Hosts};

/// Endpoints with series of their own; the others are `other`.
pub const MAX_ENDPOINTS: usize = 250;

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

pub(crate) const DIRECTIONS: [&str; 2] = ["outbound", "inbound"];
pub(crate) const TLS: [&str; 3] = ["mtls", "none", "passthrough"];
pub(crate) const DETECTED: [&str; 5] = ["http/1", "http/2", "tls", "opaque", "silent"];
/// Upper bounds of the detection histogram, in microseconds: a silent client is in the one after
/// 50 ms, a client that began and never became recognisable beyond the last.
pub(crate) const DETECT_BOUNDS: [u64; 12] =
    [100, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000];

/// What the whole process counts.
#[derive(Debug)]
pub struct Metrics {
    pub(crate) errors: [[AtomicU64; Reason::ALL.len()]; 2],
    pub(crate) detected: [[AtomicU64; DETECTED.len()]; 2],
    pub(crate) detect_took: [DetectTimes; 2],
    pub(crate) connections: [[AtomicU64; TLS.len()]; 2],
    pub(crate) open: [[AtomicI64; TLS.len()]; 2],
    pub(crate) bytes: [[AtomicU64; 2]; 2],
    /// Lines of the access log: written, dropped.
    pub(crate) access_log: [AtomicU64; 2],
    /// Connections to what is outside the mesh.
    pub passed_through: Hosts,
    /// Requests that arrive for the pod's application.
    pub inbound: Inbound,
    /// Endpoints that came and went.
    pub events: Events,
    /// For endpoints that are shown one by one.
    pub seats: Seats,
    /// Attempts at the endpoints that are not.
    pub others: Flow,
    /// When parts of flows were taken away.
    pub ticks: Ticks,
    /// When the process began.
    pub started: Instant,
}

/// How long detections took.
#[derive(Debug, Default)]
pub(crate) struct DetectTimes {
    /// Those up to each bound and above the one before; the last has no bound.
    pub(crate) counts: [AtomicU64; DETECT_BOUNDS.len() + 1],
    pub(crate) nanos: AtomicU64,
}

impl Metrics {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            errors: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            detected: Default::default(),
            detect_took: Default::default(),
            connections: Default::default(),
            open: Default::default(),
            bytes: Default::default(),
            access_log: Default::default(),
            passed_through: Hosts::default(),
            inbound: Inbound::new(now),
            events: Events::default(),
            seats: Seats::new(MAX_ENDPOINTS),
            others: Flow::default(),
            ticks: Ticks::new(now),
            started: now,
        }
    }

    /// Lines of the access log were written.
    pub fn access_log_written(&self, lines: u64) {
        self.access_log[0].fetch_add(lines, Ordering::Relaxed);
    }

    /// Lines of the access log were lost.
    pub fn access_log_dropped(&self, lines: u64) {
        self.access_log[1].fetch_add(lines, Ordering::Relaxed);
    }

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
    pub fn connection(self: &Arc<Self>, direction: Direction, tls: Tls) -> OpenConnection {
        self.connections[direction as usize][tls as usize].fetch_add(1, Ordering::Relaxed);
        self.open[direction as usize][tls as usize].fetch_add(1, Ordering::Relaxed);
        OpenConnection { metrics: Arc::clone(self), direction, tls }
    }

    /// Bytes of opaque connections, towards the application's peer and back.
    pub fn carried(&self, direction: Direction, sent: u64, received: u64) {
        self.bytes[direction as usize][0].fetch_add(sent, Ordering::Relaxed);
        self.bytes[direction as usize][1].fetch_add(received, Ordering::Relaxed);
    }
}

/// See [`Metrics::connection`].
#[derive(Debug)]
pub struct OpenConnection {
    metrics: Arc<Metrics>,
    direction: Direction,
    tls: Tls,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.metrics.open[self.direction as usize][self.tls as usize]
            .fetch_sub(1, Ordering::Relaxed);
    }
}
