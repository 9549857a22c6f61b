//! The last times that endpoints were taken out of balancing, or came back.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Events kept; the oldest goes first.
pub const MAX: usize = 128;

/// A bounded ring of events.
#[derive(Debug, Default)]
pub struct Events(Mutex<VecDeque<Event>>);

/// Something happened to an endpoint.
#[derive(Debug, Clone)]
pub struct Event {
    /// When.
    pub at: Instant,
    /// Whose endpoint: `namespace/name:port`, or the address of a pod that is dialled directly.
    pub service: Box<str>,
    /// Its address.
    pub endpoint: SocketAddr,
    /// Name of its pod; empty if unknown.
    pub pod: Box<str>,
    /// What.
    pub what: What,
}

/// What can happen to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Its breaker opened.
    Ejected {
        /// The rule: `consecutive-failures` or `success-rate`.
        reason: &'static str,
        /// For how long.
        penalty: Duration,
    },
    /// Its breaker closed.
    Recovered,
}

impl Events {
    /// Keeps an event.
    pub fn push(&self, event: Event) {
        let mut ring = self.0.lock();
        if ring.len() >= MAX {
            ring.pop_front();
        }
        ring.push_back(event);
    }

    /// All of them, newest first.
    #[must_use]
    pub fn newest_first(&self) -> Vec<Event> {
        self.0.lock().iter().rev().cloned().collect()
    }
}
