//! Closing the books on a request when its response body ends, breaks or is dropped.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Outbound, Upstream, verdict};
use crate::{
    balance::{
        bulkhead::Permit,
        policy::Policy,
        stats::{FailureKind, InFlight, Outcome},
    },
    discovery::Endpoint,
    http::h2::{
        body::{End, OnEnd},
        pool::Connection,
        replay::BodyError,
    },
    net::admission::Stream,
};

/// Everything that a finished request gives back.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) outbound: Arc<Outbound>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) policy: Arc<Policy>,
    /// Held so that the connection lives as long as its stream.
    pub(super) _connection: Connection,
    /// Its place among the process's streams.
    pub(super) _stream: Stream,
    /// Its place in the Service's bulkhead.
    pub(super) _permit: Option<Permit>,
    pub(super) guard: InFlight<Endpoint>,
    pub(super) started: Instant,
    /// Until the response's head.
    pub(super) rtt: Duration,
    /// gRPC: the verdict comes with the trailers.
    pub(super) undecided: bool,
    /// The time that may run out is the client's own.
    pub(super) impatient: bool,
}

impl OnEnd for Done {
    fn on_end(mut self, end: End<'_>) {
        let now = Instant::now();
        let endpoint = Arc::clone(self.guard.endpoint());
        match end {
            End::Complete(trailers) => {
                let code = trailers.filter(|_| self.undecided).and_then(|trailers| {
                    Some(verdict::grpc_outcome(verdict::grpc_status(trailers)?, trailers))
                });
                self.report(now, code.unwrap_or(Outcome::Success));
                endpoint.latency.record(now - self.started);
                self.upstream.traffic().latency.record(now - self.started);
            }
            End::Broken(error) => {
                let outcome = match error {
                    BodyError::TimedOut if self.impatient => Outcome::Cancelled,
                    BodyError::TimedOut | BodyError::Idle(_) => {
                        Outcome::Failure(FailureKind::TimedOut)
                    }
                    _ => Outcome::Failure(FailureKind::Transport),
                };
                self.report(now, outcome);
            }
            End::Dropped => {}
        }
    }
}

impl Done {
    fn report(&mut self, now: Instant, outcome: Outcome) {
        let rng = &mut self.outbound.rng.lock();
        let ejection = self.guard.report(now.into_std(), self.rtt, outcome, &self.policy, rng);
        self.upstream.ejected(self.guard.endpoint(), ejection);
    }
}
