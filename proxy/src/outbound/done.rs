//! Closing the books on a request when its response body ends, breaks or is dropped.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Outbound, Snapshot, Upstream,
    books::{self, Books},
    call::Deadline,
    h2::Head,
    record::Told,
    verdict,
};
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
    metrics::flow::{End as Ended, Finished, Rpc},
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
    /// What is counted where the response ends well.
    pub(super) given: Finished,
    pub(super) sent_at: Instant,
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
        match end {
            End::Complete(trailers) => {
                let code = trailers.and_then(|trailers| Some((grpc_status(trailers)?, trailers)));
                let decided = code.filter(|_| self.undecided);
                let outcome = decided.map(|(code, trailers)| verdict::grpc_outcome(code, trailers));
                self.report(now, outcome.unwrap_or(Outcome::Success));
                if let (Rpc::Unsaid, Some((code, _))) = (self.given.rpc, code) {
                    self.given.rpc = Rpc::Said(code);
                }
                self.over(now, &self.given);
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
                self.close(now, &self.given.ended(books::broken(outcome)));
                if let Some(error) = self.broken(&endpoint, error) {
                    let of = (&*self.upstream, Some(&self.snapshot));
                    self.outbound.record(of, self.told(), Err(&error));
                }
            }
            End::Dropped => self.over(now, &self.given.ended(Ended::Cancelled)),
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
        self.outbound.ejected(&self.upstream, self.guard.endpoint(), ejection);
    }

    /// Counts the request's end.
    fn close(&self, now: Instant, finished: &Finished) {
        let books = Books { upstream: &self.upstream, by: &self.snapshot.by };
        books.close(finished, self.request.story.started, now);
        let (metrics, took) = (&self.outbound.metrics, now - self.sent_at);
        self.guard.endpoint().finished(metrics, finished, took, now.into_std());
    }

    /// The same, where it may be recorded: of a whole response, or of one that the client did not wait
    /// for.
    pub(super) fn over(&self, now: Instant, given: &Finished) {
        self.close(now, given);
        let of = (&*self.upstream, &self.snapshot);
        self.outbound.answered(of, self.told(), given);
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
