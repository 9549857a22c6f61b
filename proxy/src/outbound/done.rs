//! Closing the books on a request when its response body ends, breaks or is dropped.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Outbound, Upstream,
    books::{self, Books},
    snapshot::By,
    verdict,
};
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
    metrics::flow::{End as Ended, Finished, Rpc},
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
    pub(super) by: By,
    pub(super) started: Instant,
    pub(super) sent_at: Instant,
    /// What is counted where the response ends well.
    pub(super) given: Finished,
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
        match end {
            End::Complete(trailers) => {
                let code = trailers.filter(|_| self.undecided).and_then(|trailers| {
                    Some(verdict::grpc_outcome(verdict::grpc_status(trailers)?, trailers))
                });
                self.report(now, code.unwrap_or(Outcome::Success));
                if let (Rpc::Unsaid, Some(trailers)) = (self.given.rpc, trailers) {
                    self.given.rpc = verdict::grpc_status(trailers).map_or(Rpc::Unsaid, Rpc::Said);
                }
                self.close(now, Ended::Whole);
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
                self.close(now, books::broken(outcome));
            }
            End::Dropped => self.close(now, Ended::Cancelled),
        }
    }
}

impl Done {
    fn report(&mut self, now: Instant, outcome: Outcome) {
        let rng = &mut self.outbound.rng.lock();
        let ejection = self.guard.report(now.into_std(), self.rtt, outcome, &self.policy, rng);
        self.outbound.ejected(&self.upstream, self.guard.endpoint(), ejection);
    }

    /// Counts the request's end.
    pub(super) fn close(&self, now: Instant, end: Ended) {
        let finished = self.given.ended(end);
        let books = Books { upstream: &self.upstream, by: &self.by };
        books.close(&finished, self.started, now);
        let (metrics, took) = (&self.outbound.metrics, now - self.sent_at);
        self.guard.endpoint().finished(metrics, &finished, took, now.into_std());
    }
}
