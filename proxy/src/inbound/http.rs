//! Requests that arrive for the pod's application: what they have in common, whatever version they
//! speak. [`super::h1`] and [`super::h2`] are the two codecs' ends of it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode};
use remora_core::spiffe::SpiffeId;
use tokio::time::Instant;

use super::{Arrival, Inbound, authorize};
use crate::{
    decisions::Failed,
    error::Error,
    http::answer,
    metrics::{
        Direction,
        flow::{End, Finished, Rpc},
        inbound::{Counted, Verdict},
    },
};

/// What the requests of one connection have in common.
#[derive(Debug)]
pub struct Requests {
    pub(super) inbound: Arc<Inbound>,
    pub(super) arrival: Arrival,
    /// The caller's identity as a header value, made once.
    pub(super) client_id: Option<HeaderValue>,
    trust_domain: Option<Arc<str>>,
    counted: Counted,
}

impl Requests {
    pub(super) fn new(inbound: Arc<Inbound>, arrival: Arrival) -> Self {
        let client_id = arrival.identity().and_then(|id| HeaderValue::from_str(id.as_str()).ok());
        let trust_domain = inbound.trust_domain();
        let port = inbound.metrics.inbound.port(arrival.port, Instant::now().into_std());
        let caller = port.caller(arrival.identity().map(SpiffeId::as_str));
        Self { inbound, arrival, client_id, trust_domain, counted: Counted { port, caller } }
    }

    /// Counts a request and asks policy for it.
    pub(super) fn admit(&self, path: &str) -> Result<(), Error> {
        let Self { inbound, arrival, counted, .. } = self;
        let policy = inbound.discovery.inbound_policy();
        let verdict = authorize::request(&policy, arrival, path, self.trust_domain.as_deref());
        counted.arrived(arrival.tls, *verdict.as_ref().unwrap_or(&Verdict::Denied));
        verdict.map(drop)
    }

    /// A request has ended now.
    pub(super) fn close(&self, finished: &Finished, started: Instant) -> Instant {
        let now = Instant::now();
        self.counted.finished(finished, now - started, now.into_std());
        now
    }

    /// The same without a response: its stream was reset.
    pub(super) fn close_unanswered(&self, started: Instant) {
        self.counted.unanswered(started.elapsed());
    }

    /// Counts and records a request that the proxy answers itself, and makes the answer.
    pub(super) fn failed(&self, facts: Facts<'_>, error: &Error) -> Response<Bytes> {
        self.failed_late(facts, error);
        let response = answer::error(error, facts.grpc);
        let rpc = if facts.grpc { Rpc::Said(error.grpc_status()) } else { Rpc::No };
        self.close(&given(response.status(), rpc).ended(End::Made), facts.started);
        response
    }

    /// Records a request that ends in a break of our making.
    pub(super) fn failed_late(&self, facts: Facts<'_>, error: &Error) {
        let Self { inbound, arrival, .. } = self;
        inbound.metrics.error(Direction::Inbound, error.reason());
        tracing::debug!(%error, "request failed");
        let now = Instant::now();
        let failed = Failed {
            route: None,
            direction: Direction::Inbound,
            target: &arrival.app.to_string(),
            method: facts.method,
            path: facts.path,
            elapsed: now - facts.started,
        };
        inbound.decisions.record(now, failed, error, std::iter::empty::<&str>());
    }
}

/// What a head says of how its request ends, where it ends well.
pub(super) fn given(status: StatusCode, rpc: Rpc) -> Finished {
    Finished { status, rpc, end: End::Whole, trace: None }
}

/// What is told of a request that failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) grpc: bool,
    pub(super) started: Instant,
}
