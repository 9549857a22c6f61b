//! When each endpoint was written, and when each proxy had it.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// What became of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Way {
    /// It takes traffic.
    Added,
    /// It takes none any more.
    Removed,
}

/// When each change was written. Each address comes once and goes once.
#[derive(Debug, Default)]
pub(super) struct Changes(Mutex<HashMap<(IpAddr, Way), Instant>>);

impl Changes {
    /// A change is written now.
    pub(super) fn written(&self, ip: Ipv4Addr, way: Way, now: Instant) {
        self.0.lock().insert((ip.into(), way), now);
    }

    /// How long ago a change was written; `None` for what was there from the start.
    pub(super) fn age(&self, ip: IpAddr, way: Way, now: Instant) -> Option<Duration> {
        self.0.lock().get(&(ip, way)).map(|at| now.duration_since(*at))
    }
}
