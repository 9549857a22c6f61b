//! Closing the books on a request when its response body ends, breaks or is dropped.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Outbound, Upstream, attempt, dial::Key};
use crate::{
    balance::{
        policy::Policy,
        stats::{FailureKind, InFlight, Outcome},
    },
    discovery::Endpoint,
    http::{
        body::{End, OnEnd},
        pool::Connection,
        replay::BodyError,
    },
};

/// Everything that a finished request gives back.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) outbound: Arc<Outbound>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) policy: Arc<Policy>,
    pub(super) connection: Option<Connection>,
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
                            attempt::grpc_status(t).map(|code| attempt::grpc_outcome(code, t))
                        })
                        .unwrap_or(Outcome::Success);
                    self.report(now, outcome);
                }
                endpoint.latency.record(now - self.started);
                self.upstream.traffic().latency.record(now - self.started);
                if let Some(connection) = self.connection.take() {
                    self.outbound.pool.give_back(&Key(endpoint), connection, now);
                }
            }
            End::Broken(error) => {
                let kind = match error {
                    BodyError::TimedOut => FailureKind::TimedOut,
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
