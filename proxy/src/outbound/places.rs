//! Places in a Service's bulkheads: waiting for one, and making room for another connection.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{Outbound, Snapshot, Upstream, dial::Key};
use crate::{
    balance::bulkhead::{Berth, Bulkhead, Full, Permit},
    error::Error,
};

/// The bulkheads of a Service, as one request or connection found them; mostly there are none.
#[derive(Debug, Clone)]
pub(super) struct Places {
    bulkhead: Option<Arc<Bulkhead>>,
    patience: Duration,
}

/// There is no place.
#[derive(Debug)]
pub(super) enum NoPlace {
    /// None became free in time, or too many wait already.
    Overloaded(Error),
    /// The request's own time ended first.
    OutOfTime,
}

const FULL: &str = "the Service's bulkhead is full (balancer.remora.io/max-pending wait already)";
const NOT_IN_TIME: &str = "no place in the Service's bulkhead became free in time";

impl Places {
    pub(super) fn of(upstream: &Upstream, snapshot: &Snapshot) -> Self {
        let policy = &snapshot.policy;
        let bulkhead = upstream.traffic().bulkhead(policy);
        Self { bulkhead, patience: policy.bulkheads.pending_timeout }
    }

    /// Waits for a place for a request, or for a connection of bytes. `exclusive`: it has its
    /// connection for itself.
    pub(super) async fn enter(
        &self,
        exclusive: bool,
        deadline: Option<Instant>,
    ) -> Result<Option<Permit>, NoPlace> {
        let Some(bulkhead) = &self.bulkhead else { return Ok(None) };
        if let Some(permit) = bulkhead.try_enter(exclusive) {
            return Ok(Some(permit));
        }
        let patience = Instant::now() + self.patience;
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        match timeout_at(until, bulkhead.enter(exclusive)).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            Ok(Err(Full)) => Err(NoPlace::Overloaded(Error::Overloaded(FULL))),
            Err(_) if until < patience => Err(NoPlace::OutOfTime),
            Err(_) => Err(NoPlace::Overloaded(Error::Overloaded(NOT_IN_TIME))),
        }
    }

    /// Whether there is anything to wait for.
    pub(super) fn are_bounded(&self) -> bool {
        self.bulkhead.is_some()
    }

    /// Whether another worker waits for a connection to close.
    pub(super) fn starved(&self) -> bool {
        self.bulkhead.as_ref().is_some_and(|bulkhead| bulkhead.is_starved())
    }
}

impl Outbound {
    /// A place for one more connection; an idle one of the same Service makes room.
    pub(super) async fn berth(
        &self,
        places: &Places,
        snapshot: &Snapshot,
        bound: Duration,
    ) -> Result<Option<Berth>, Error> {
        let Some(bulkhead) = &places.bulkhead else { return Ok(None) };
        let mut others = snapshot.endpoints.iter();
        loop {
            if let Ok(berth) = bulkhead.try_connect() {
                return Ok(berth);
            }
            if !others.any(|endpoint| self.idle.close_oldest(&Key(Arc::clone(endpoint)))) {
                break;
            }
        }
        // Those that are left are in use, or idle with another worker.
        let until = Instant::now() + bound.min(places.patience);
        match timeout_at(until, bulkhead.connect()).await {
            Ok(Ok(berth)) => Ok(berth),
            Ok(Err(Full)) => Err(Error::Overloaded(FULL)),
            Err(_) => Err(Error::Overloaded(NOT_IN_TIME)),
        }
    }
}
