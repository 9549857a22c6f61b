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
}

impl OnEnd for Done {
    fn on_end(mut self, end: End<'_>) {
        let now = Instant::now();
        let endpoint = Arc::clone(self.guard.endpoint());
        match end {
            End::Complete(trailers) => {
                if self.undecided {
                    let outcome = trailers
                        .and_then(|t| {
                            verdict::grpc_status(t).map(|code| verdict::grpc_outcome(code, t))
                        })
                        .unwrap_or(Outcome::Success);
                    self.report(now, outcome);
                }
                endpoint.latency.record(now - self.started);
                self.upstream.traffic().latency.record(now - self.started);
            }
            End::Broken(error) => {
                let kind = match error {
                    BodyError::TimedOut | BodyError::Idle(_) => FailureKind::TimedOut,
                    _ => FailureKind::Transport,
                };
                // A head that promised success was reported already; the break is news.
                self.report(now, Outcome::Failure(kind));
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
