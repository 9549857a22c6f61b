//! Counting what became of requests and attempts.
//!
//! A request is counted for its Service, and for the route and the backend that it took; an attempt for
//! its endpoint.

use std::{sync::atomic::Ordering, time::Duration};

use http::StatusCode;
use tokio::time::Instant;

use super::{
    Outbound, Upstream,
    attempt::Exchange,
    call::{Answer, NoAnswer},
    snapshot::By,
};
use crate::{
    balance::{
        breaker::Ejection,
        stats::{InFlight, Outcome},
    },
    discovery::Endpoint,
    error::Error,
    http::answer::grpc_status,
    metrics::{
        events::{Event, What},
        flow::{End, Finished, Rpc},
        trace::TraceId,
    },
};

/// Where a request is counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Books<'a> {
    pub(super) upstream: &'a Upstream,
    pub(super) by: &'a By,
}

impl Books<'_> {
    /// A request is about to be sent.
    pub(super) fn open(self) {
        self.upstream.traffic().requests.fetch_add(1, Ordering::Relaxed);
        if let Some(backend) = self.by.backend() {
            backend.traffic.requests.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request that began then has ended.
    pub(super) fn close(self, finished: &Finished, started: Instant, now: Instant) {
        let (took, now) = (now - started, now.into_std());
        self.upstream.traffic().flow.finished(finished, took, now);
        if let By::Route { route, .. } = self.by {
            route.traffic.flow.finished(finished, took, now);
            if let Some(backend) = self.by.backend() {
                backend.traffic.flow.finished(finished, took, now);
            }
        }
    }

    /// Its client left before there was a response.
    pub(super) fn left(self) {
        self.upstream.traffic().flow.left();
        if let By::Route { route, .. } = self.by {
            route.traffic.flow.left();
            if let Some(backend) = self.by.backend() {
                backend.traffic.flow.left();
            }
        }
    }

    /// It ended without a response: its stream was reset.
    pub(super) fn close_unanswered(self, took: Duration) {
        self.upstream.traffic().flow.unanswered(took);
        if let By::Route { route, .. } = self.by {
            route.traffic.flow.unanswered(took);
            if let Some(backend) = self.by.backend() {
                backend.traffic.flow.unanswered(took);
            }
        }
    }
}

/// What a head says of how its request ends, where it ends well.
pub(super) fn promised(status: StatusCode, rpc: Rpc, trace: Option<TraceId>) -> Finished {
    Finished { status, rpc, end: End::Whole, trace }
}

/// A response that the proxy made.
pub(super) fn made(status: StatusCode, error: &Error, grpc: bool) -> Finished {
    let rpc = if grpc { Rpc::Said(error.grpc_status()) } else { Rpc::No };
    Finished { status, rpc, end: End::Made, trace: None }
}

/// The code that a head says; a call may say it in its trailers.
pub(super) fn rpc(answer: &impl Answer, grpc: bool) -> Rpc {
    match grpc {
        false => Rpc::No,
        true => grpc_status(answer.fields()).map_or(Rpc::Unsaid, Rpc::Said),
    }
}

/// The same over HTTP/1, where trailers are carried on unread.
pub(super) fn h1_rpc(answer: &impl Answer, grpc: bool) -> Rpc {
    match rpc(answer, grpc) {
        Rpc::Unsaid if answer.status() == StatusCode::OK => Rpc::No,
        rpc => rpc,
    }
}

/// How a response ended that did not come to its end, by what that says of the endpoint.
pub(super) fn broken(outcome: Outcome) -> End {
    if outcome == Outcome::Cancelled { End::Cancelled } else { End::Broken }
}

impl Outbound {
    /// An attempt has ended that was sent then.
    pub(super) fn tried(&self, endpoint: &Endpoint, finished: &Finished, sent_at: Instant) {
        let now = Instant::now();
        endpoint.finished(&self.metrics, finished, now - sent_at, now.into_std());
    }

    /// An attempt is over without a response. One that nobody waits for any more is counted with its
    /// request ([`Exchange::left`]).
    pub(super) fn unanswered(&self, endpoint: &Endpoint, why: &NoAnswer, begun: Instant) {
        if matches!(why.outcome(), Outcome::Failure(_)) {
            endpoint.unanswered(&self.metrics, begun.elapsed());
        }
    }

    /// Counts and tells an ejection, where there was one.
    pub(super) fn ejected(
        &self,
        upstream: &Upstream,
        endpoint: &Endpoint,
        ejection: Option<Ejection>,
    ) {
        let Some(Ejection { reason, penalty, again }) = ejection else { return };
        upstream.traffic().ejections.fetch_add(1, Ordering::Relaxed);
        let reason = reason.as_str();
        let service = self.event(upstream, endpoint, What::Ejected { reason, penalty });
        let (endpoint, pod) = (endpoint.addr, &endpoint.pod);
        tracing::info!(service, %endpoint, %pod, reason, ?penalty, again, "endpoint ejected");
    }

    /// Tells that a breaker has closed.
    pub(super) fn recovered(&self, upstream: &Upstream, endpoint: &Endpoint) {
        let service = self.event(upstream, endpoint, What::Recovered);
        let (endpoint, pod) = (endpoint.addr, &endpoint.pod);
        tracing::info!(service, %endpoint, %pod, "endpoint is back");
    }

    /// Keeps an event, and gives the name of the Service.
    fn event(&self, upstream: &Upstream, endpoint: &Endpoint, what: What) -> String {
        let service = upstream.name();
        self.metrics.events.push(Event {
            at: Instant::now().into_std(),
            service: service.as_str().into(),
            endpoint: endpoint.addr,
            pod: endpoint.pod.clone(),
            what,
        });
        service
    }
}

impl Exchange<'_> {
    /// Where the request is counted.
    pub(super) fn books(&self) -> Books<'_> {
        Books { upstream: self.upstream, by: &self.snapshot.by }
    }

    /// The request has ended now, and with it the attempt that was sent then.
    pub(super) fn close(
        &self,
        guard: &InFlight<Endpoint>,
        sent_at: Instant,
        finished: &Finished,
    ) -> Instant {
        let now = Instant::now();
        self.books().close(finished, self.started, now);
        let metrics = &self.outbound.metrics;
        guard.endpoint().finished(metrics, finished, now - sent_at, now.into_std());
        now
    }
}

#[cfg(test)]
#[path = "books_tests.rs"]
mod tests;
