//! Requests that arrive for the pod's application: what they have in common, whatever version they
//! speak. [`super::h1`] and [`super::h2`] are the two codecs' ends of it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Response};
use tokio::time::Instant;

use super::{Arrival, Inbound, authorize};
use crate::{decisions::Failed, error::Error, http::answer, metrics::Direction};

/// What the requests of one connection have in common.
#[derive(Debug)]
pub struct Requests {
    pub(super) inbound: Arc<Inbound>,
    pub(super) arrival: Arrival,
    /// The caller's identity as a header value, made once.
    pub(super) client_id: Option<HeaderValue>,
    trust_domain: Option<Arc<str>>,
}

impl Requests {
    pub(super) fn new(inbound: Arc<Inbound>, arrival: Arrival) -> Self {
        let client_id = arrival.identity().and_then(|id| HeaderValue::from_str(id.as_str()).ok());
        let trust_domain = inbound.trust_domain();
        Self { inbound, arrival, client_id, trust_domain }
    }

    /// Counts a request and asks policy for it.
    pub(super) fn admit(&self, path: &str) -> Result<(), Error> {
        let Self { inbound, arrival, .. } = self;
        inbound.metrics.inbound_request(arrival.tls);
        let policy = inbound.discovery.inbound_policy();
        authorize::request(&policy, arrival, path, self.trust_domain.as_deref())
    }

    /// Counts and records a request that the proxy answers itself, and makes the answer.
    pub(super) fn failed(&self, facts: Facts<'_>, error: &Error) -> Response<Bytes> {
        self.failed_late(facts, error);
        answer::error(error, facts.grpc)
    }

    /// The same where the client has the beginning of a response already.
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

/// What is told of a request that failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) grpc: bool,
    pub(super) started: Instant,
}
