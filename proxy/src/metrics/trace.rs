//! Requests of traces beside the figures that they are part of.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// Names a trace (W3C Trace Context); never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// One request of a trace, to look at beside the figures that it is part of.
#[derive(Debug, Clone, Copy)]
pub struct Exemplar {
    /// Which trace.
    pub trace: TraceId,
    /// How long it took.
    pub took: Duration,
    /// When it ended.
    pub at: Instant,
}
