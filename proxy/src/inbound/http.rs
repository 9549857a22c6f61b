//! Requests that arrive for the pod's application: what they have in common, whatever version they
//! speak. [`super::h1`] and [`super::h2`] are the two codecs' ends of it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use remora_core::spiffe::SpiffeId;
use tokio::time::Instant;

use super::{Arrival, Inbound, authorize};
use crate::{
    error::Error,
    fields::Fields,
    http::answer,
    metrics::{
        Direction, Tls,
        bodies::Bodies,
        flow::{End, Finished as Given, Rpc},
        inbound::{Counted, Verdict},
    },
    sight::{
        DECISION_ID_NAME,
        finished::{Answered, Described, Finished},
        id::DecisionId,
        story::Story,
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

    /// Begins the story of a request whose fields are as they came. What a proxy of ours says it is
    /// recorded as, it is recorded as here too.
    pub(super) fn begin(&self, fields: &impl Fields, started: Instant) -> Story {
        let mut story = Story::new(started, fields);
        self.inbound.sight.begin(&mut story, fields);
        if self.arrival.tls == Tls::Mutual {
            let id = fields.get(&DECISION_ID_NAME).and_then(|id| std::str::from_utf8(id).ok());
            story.explained = id.and_then(|id| id.parse().ok());
        }
        story
    }

    /// Counts a request and asks policy for it.
    pub(super) fn admit(&self, path: &str) -> Result<(), Error> {
        let Self { inbound, arrival, counted, .. } = self;
        let policy = inbound.discovery.inbound_policy();
        let verdict = authorize::request(&policy, arrival, path, self.trust_domain.as_deref());
        counted.arrived(arrival.tls, *verdict.as_ref().unwrap_or(&Verdict::Denied));
        verdict.map(drop)
    }

    /// Where bodies are counted.
    pub(super) fn bodies(&self) -> &Arc<Bodies> {
        &self.counted.port.bodies
    }

    /// A request has ended now.
    pub(super) fn close(&self, given: &Given, started: Instant) -> Instant {
        let now = Instant::now();
        self.counted.finished(given, now - started, now.into_std());
        now
    }

    /// Counts and records a request that the proxy answers itself, and makes the answer.
    pub(super) fn failed(&self, told: Told<'_>, error: &Error) -> Response<Bytes> {
        let id = self.broke(told, error);
        let mut response = answer::error(error, told.grpc);
        id.write(response.headers_mut());
        let rpc = if told.grpc { Rpc::Said(error.grpc_status()) } else { Rpc::No };
        let given = promised(response.status(), rpc, told.story);
        self.close(&given.ended(End::Made), told.story.started);
        response
    }

    /// The same where the client has the beginning of a response already.
    pub(super) fn failed_late(&self, told: Told<'_>, given: &Given, error: &Error) {
        self.broke(told, error);
        self.close(&given.ended(End::Broken), told.story.started);
    }

    /// The same where the client's stream is reset.
    pub(super) fn reset(&self, told: Told<'_>, error: &Error) {
        self.broke(told, error);
        self.counted.unanswered(told.story.started.elapsed());
    }

    fn broke(&self, told: Told<'_>, error: &Error) -> DecisionId {
        self.inbound.metrics.error(Direction::Inbound, error.reason());
        tracing::debug!(%error, "request failed");
        self.record(told, Err(error))
    }

    /// Counts a request that the application answered to the end, or as far as its caller waited, and
    /// records it if somebody wants to know of it.
    pub(super) fn over(&self, told: Told<'_>, given: &Given) -> Instant {
        let now = self.close(given, told.story.started);
        let wanted = self.inbound.sight.wants(told.story, given.failed());
        if wanted.any() {
            self.record(told, Ok(Answered::of(given, wanted)));
        }
        now
    }

    /// Counts and records a request whose caller left before there was a response.
    pub(super) fn left(&self, told: Told<'_>) {
        self.counted.left();
        let wanted = self.inbound.sight.wants_of_left(told.story);
        self.record(told, Ok(Answered::not_waited_for(wanted)));
    }

    fn record(&self, told: Told<'_>, result: Result<Answered, &Error>) -> DecisionId {
        let Self { inbound, arrival, .. } = self;
        let policy = inbound.discovery.inbound_policy();
        let finished = Finished {
            direction: Direction::Inbound,
            about: Some(told.head.about()),
            grpc: told.grpc,
            target: &arrival.app,
            service: None,
            route: None,
            client: arrival.address(),
            peer: arrival.identity(),
            policy: Some(policy.to_string()),
            rules: None,
            story: told.story,
            carried: None,
            result,
            ended: Instant::now(),
        };
        let id = told.story.explained.unwrap_or_else(|| inbound.sight.id());
        inbound.sight.finished(id, &finished);
        id
    }
}

/// What a head says of how its request ends, where it ends well.
pub(super) fn promised(status: StatusCode, rpc: Rpc, story: &Story) -> Given {
    Given { status, rpc, end: End::Whole, trace: story.sampled() }
}

/// A request, as far as its record is concerned.
#[derive(Clone, Copy)]
pub(super) struct Told<'a> {
    pub(super) head: &'a dyn Described,
    pub(super) grpc: bool,
    pub(super) story: &'a Story,
}
