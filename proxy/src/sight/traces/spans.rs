//! The spans of a request, from its story: one for the request and one for each attempt.

use std::{
    borrow::Cow,
    fmt,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use opentelemetry::{
    KeyValue,
    trace::{
        Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId as OtelTraceId,
        TraceState,
    },
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::time::Instant;

use super::Tracer;
use crate::{
    balance::retry::Verdict,
    metrics::Direction,
    sight::{
        finished::{About, Finished},
        id::DecisionId,
        record::cut,
        semantic::{self, Ending, Host},
        story::{Attempt, Outcome},
        trace::TraceContext,
    },
};

/// Attributes that most spans have room for.
const USUAL: usize = 20;

/// The spans of a traced request, its own one first; none of a connection.
pub(super) fn of(
    tracer: &Tracer,
    context: TraceContext,
    (at, id): (Duration, Option<DecisionId>),
    finished: &Finished<'_>,
) -> Vec<SpanData> {
    let Some(about) = finished.about else { return Vec::new() };
    let maker = Maker { tracer, context, at, finished, about };
    let own = tracer.ids.next().0;
    let mut spans = vec![maker.request(own, id)];
    let attempts: Vec<&Attempt> = finished.story.attempts().collect();
    for (n, attempt) in attempts.iter().enumerate() {
        let last = n + 1 == attempts.len() && finished.story.untold == 0;
        spans.push(maker.attempt(own, (n, attempt), last));
    }
    spans
}

struct Maker<'a> {
    tracer: &'a Tracer,
    context: TraceContext,
    /// When the request was over, since 1970.
    at: Duration,
    finished: &'a Finished<'a>,
    about: About<'a>,
}

/// Attributes with the order in which they are added.
#[derive(Debug)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn add(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        self.0.push(KeyValue::new(key, value));
    }

    fn show(&mut self, key: &'static str, value: &dyn fmt::Display) {
        self.add(key, value.to_string());
    }

    fn status(&mut self, status: StatusCode, grpc: Option<u32>) {
        self.add("http.response.status_code", i64::from(status.as_u16()));
        if let Some(code) = grpc {
            self.add("rpc.response.status_code", semantic::grpc_code(code));
        }
    }
}

impl Maker<'_> {
    fn request(&self, own: u64, id: Option<DecisionId>) -> SpanData {
        let Finished { story, target, service, route, peer, .. } = self.finished;
        let mut attributes = self.common();
        attributes.add("url.path", cut(self.about.path).to_owned());
        attributes.add("url.scheme", "http");
        // What the client got, whoever made it.
        if let Some(status) = self.finished.status() {
            attributes.status(status, self.finished.grpc_status());
        }
        if self.finished.client_left() {
            attributes.add("remora.client_left", true);
        }
        let ending = self.finished.ending();
        if let Some(kind) = self.finished.error_type() {
            attributes.add("error.type", kind);
        }
        match self.finished.direction {
            Direction::Outbound => {
                let host = self.about.host.map_or_else(|| target.to_string(), str::to_owned);
                let path = cut(self.about.path);
                attributes.add("url.full", format!("http://{}{path}", cut(&host)));
                if let Some(last) = story.attempts().last() {
                    peer_of(&mut attributes, last);
                }
                attributes.add("remora.attempts", self.attempts());
            }
            Direction::Inbound => {
                if let Some(client) = self.finished.client {
                    attributes.show("client.address", &client);
                    attributes.show("network.peer.address", &client);
                }
            }
        }
        attributes.show("remora.target", *target);
        if let Some(service) = service {
            attributes.show("remora.service", *service);
        }
        if let Some((route, _)) = route {
            attributes.add("remora.route", (*route).to_owned());
        }
        if let Some(peer) = peer {
            attributes.add("remora.peer", peer.as_str().to_owned());
        }
        if let Some(id) = id {
            attributes.show("remora.decision.id", &id);
        }
        let (parent, times) = (self.context.parent, (story.started, self.finished.ended));
        let mut span = self.span((own, parent), times, attributes, self.status(&ending));
        span.parent_span_is_remote = parent != 0;
        span
    }

    fn attempt(&self, parent: u64, (n, attempt): (usize, &Attempt), last: bool) -> SpanData {
        let mut attributes = self.common();
        if n > 0 {
            attributes.add("http.request.resend_count", i64::try_from(n).unwrap_or(i64::MAX));
        }
        peer_of(&mut attributes, attempt);
        attributes.add("remora.endpoint.pod", attempt.endpoint.pod.to_string());
        if !attempt.endpoint.zone.is_empty() {
            attributes.add("remora.endpoint.zone", attempt.endpoint.zone.to_string());
        }
        attributes.add("remora.endpoint.chosen", attempt.choice.by.as_str());
        attributes.add("remora.verdict", attempt.verdict_word());
        let retried = matches!(attempt.verdict, Verdict::Retry { .. });
        let (ending, end) = match &attempt.result {
            // The client got it, or so much of it as there was.
            Outcome::Answered { .. } if last && !retried => {
                (self.finished.ending(), self.finished.ended)
            }
            Outcome::Answered { status, grpc, head, .. } => {
                (Ending::Answered { status: *status, grpc: *grpc }, *head)
            }
            Outcome::Failed { reason, error, at, .. } => {
                (Ending::Failed { reason: reason.as_str(), error: Cow::Borrowed(error) }, *at)
            }
            Outcome::GivenUp | Outcome::Connected(_) => (Ending::GivenUp, self.finished.ended),
        };
        if let Ending::Answered { status, grpc } = ending {
            attributes.status(status, grpc);
        }
        if let Some(kind) = ending.error_type(self.finished.direction) {
            attributes.add("error.type", kind);
        }
        let id = self.tracer.ids.next().0;
        let times = (attempt.began, end);
        let mut span = self.span((id, parent), times, attributes, self.status(&ending));
        if let Outcome::Answered { connected: Some(at), .. } = attempt.result {
            let mut events = SpanEvents::default();
            events.events.push(Event::new("connected", self.time(at), Vec::new(), 0));
            span.events = events;
        }
        span
    }

    /// What the spans of a request have in common.
    fn common(&self) -> Attributes {
        let about = &self.about;
        let mut attributes = Attributes(Vec::with_capacity(USUAL));
        let method = semantic::method(about.method);
        attributes.add("http.request.method", method);
        if method == semantic::OTHER {
            attributes.add("http.request.method_original", cut(about.method.as_str()).to_owned());
        }
        let target = self.finished.target.to_string();
        let named = about.host.and_then(Host::of);
        if let Some(host) = named.or_else(|| Host::of(&target)) {
            attributes.add("server.address", cut(host.name).to_owned());
            let port = host.port.or_else(|| Host::of(&target)?.port);
            if let Some(port) = port {
                attributes.add("server.port", i64::from(port));
            }
        }
        attributes.add("network.protocol.name", "http");
        attributes.add("network.protocol.version", semantic::version(about.protocol));
        if self.finished.grpc {
            attributes.add("rpc.system.name", "grpc");
            attributes.add("rpc.method", self.rpc_method().to_owned());
        }
        attributes
    }

    /// `package.Service/Method`.
    fn rpc_method(&self) -> &str {
        cut(self.about.path).trim_start_matches('/')
    }

    fn attempts(&self) -> i64 {
        let told = self.finished.story.attempts().count();
        i64::try_from(told).unwrap_or(i64::MAX) + i64::from(self.finished.story.untold)
    }

    fn status(&self, ending: &Ending<'_>) -> Status {
        match ending {
            // A server's span is no error where the fault is the caller's.
            Ending::Failed { .. }
                if self.finished.direction == Direction::Inbound
                    && self.finished.status().is_some_and(|status| status.is_client_error()) =>
            {
                Status::Unset
            }
            Ending::Failed { error, .. } => Status::error(error.clone().into_owned()),
            _ if ending.error_type(self.finished.direction).is_some() => Status::error(""),
            _ => Status::Unset,
        }
    }

    fn span(
        &self,
        (own, parent): (u64, u64),
        (start, end): (Instant, Instant),
        attributes: Attributes,
        status: Status,
    ) -> SpanData {
        let context = SpanContext::new(
            OtelTraceId::from(self.context.trace.0),
            SpanId::from(own),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        );
        let name = if self.finished.grpc {
            Cow::Owned(self.rpc_method().to_owned())
        } else {
            match semantic::method(self.about.method) {
                semantic::OTHER => "HTTP".into(),
                method => method.into(),
            }
        };
        SpanData {
            span_context: context,
            parent_span_id: SpanId::from(parent),
            parent_span_is_remote: false,
            span_kind: match self.finished.direction {
                Direction::Outbound => SpanKind::Client,
                Direction::Inbound => SpanKind::Server,
            },
            name,
            start_time: self.time(start),
            end_time: self.time(end),
            attributes: attributes.0,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: self.tracer.scope.clone(),
        }
    }

    /// A time of the story by the wall clock, which said so much at the request's end.
    fn time(&self, instant: Instant) -> SystemTime {
        let ago = self.finished.ended.saturating_duration_since(instant);
        SystemTime::UNIX_EPOCH + self.at.saturating_sub(ago)
    }
}

fn peer_of(attributes: &mut Attributes, attempt: &Attempt) {
    let addr = attempt.endpoint.addr;
    attributes.show("network.peer.address", &addr.ip());
    attributes.add("network.peer.port", i64::from(addr.port()));
    if let Some(identity) = &attempt.endpoint.identity {
        attributes.add("remora.peer", identity.as_str().to_owned());
    }
}
