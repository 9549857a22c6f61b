//! Closing the books on a request when its response body ends, breaks or is dropped.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::StatusCode;
use tokio::time::Instant;

use super::{Outbound, Snapshot, Upstream, call::Deadline, h2::Head, record::Told, verdict};
use crate::{
    balance::{
        bulkhead::Permit,
        stats::{FailureKind, InFlight, Outcome},
    },
    discovery::Endpoint,
    error::{Error, Sent},
    http::{
        answer::grpc_status,
        h2::{
            body::{End, OnEnd},
            pool::Connection,
            replay::BodyError,
        },
    },
    net::admission::Stream,
};

/// Everything that a finished request gives back.
pub(super) struct Done {
    pub(super) outbound: Arc<Outbound>,
    pub(super) upstream: Arc<Upstream>,
    /// What the request was, and went through.
    pub(super) request: Head,
    /// Where it came from.
    pub(super) client: IpAddr,
    /// Status, gRPC's too where the head had it, and whether that is a failure.
    pub(super) answered: (StatusCode, Option<u32>, bool),
    /// What held for it.
    pub(super) snapshot: Snapshot,
    /// Held so that the connection lives as long as its stream.
    pub(super) _connection: Connection,
    /// Its place among the process's streams.
    pub(super) _stream: Stream,
    /// Its place in the Service's bulkhead.
    pub(super) _permit: Option<Permit>,
    pub(super) guard: InFlight<Endpoint>,
    /// Until the response's head.
    pub(super) rtt: Duration,
    /// gRPC: the verdict comes with the trailers.
    pub(super) undecided: bool,
    /// The time that may run out.
    pub(super) deadline: Option<Deadline>,
}

impl OnEnd for Box<Done> {
    fn on_end(mut self, end: End<'_>) {
        let now = Instant::now();
        let endpoint = Arc::clone(self.guard.endpoint());
        let started = self.request.story.started;
        match end {
            End::Complete(trailers) => {
                let code = trailers.filter(|_| self.undecided).and_then(|trailers| {
                    let code = grpc_status(trailers)?;
                    Some((code, verdict::grpc_outcome(code, trailers)))
                });
                let outcome = code.map_or(Outcome::Success, |(_, outcome)| outcome);
                self.report(now, outcome);
                endpoint.latency.record(now - started);
                self.upstream.traffic().latency.record(now - started);
                let (status, grpc, failure) = self.answered;
                let failure = failure || matches!(outcome, Outcome::Failure(_));
                let status = (status, grpc.or(code.map(|(code, _)| code)));
                let of = (&*self.upstream, &self.snapshot);
                self.outbound.answered(of, self.told(), status, failure);
            }
            End::Broken(error) => {
                let outcome = match error {
                    BodyError::TimedOut if self.deadline.is_some_and(|end| end.by_client) => {
                        Outcome::Cancelled
                    }
                    BodyError::TimedOut | BodyError::Idle(_) => {
                        Outcome::Failure(FailureKind::TimedOut)
                    }
                    _ => Outcome::Failure(FailureKind::Transport),
                };
                self.report(now, outcome);
                if let Some(error) = self.broken(&endpoint, error) {
                    let of = (&*self.upstream, Some(&self.snapshot));
                    self.outbound.record(of, self.told(), Err(&error));
                }
            }
            End::Dropped => {}
        }
    }
}

impl Done {
    fn told(&self) -> Told<'_> {
        let Head { head, grpc, story } = &self.request;
        Told { head, grpc: *grpc, client: self.client, story }
    }

    fn report(&mut self, now: Instant, outcome: Outcome) {
        let rng = &mut self.outbound.rng.lock();
        let ejection =
            self.guard.report(now.into_std(), self.rtt, outcome, &self.snapshot.policy, rng);
        self.upstream.ejected(self.guard.endpoint(), ejection);
    }

    /// Why the response broke off, where that was not the client's doing.
    fn broken(&self, endpoint: &Endpoint, error: &BodyError) -> Option<Error> {
        match error {
            BodyError::Client(_) | BodyError::Superseded(_) => None,
            BodyError::TimedOut => self.deadline.map(|end| Error::RequestTimeout(end.bound)),
            BodyError::Idle(after) => Some(Error::UpstreamIdle(*after)),
            BodyError::Upstream(_) => Some(Error::UpstreamReset {
                addr: endpoint.addr,
                detail: error.to_string(),
                sent: Sent::Yes,
            }),
        }
    }
}
