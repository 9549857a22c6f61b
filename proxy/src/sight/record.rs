//! Records of single requests, as `/decisions` shows them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::{
    finished::{Finished, Rules},
    id::DecisionId,
    story::{Attempt, Outcome},
};
use crate::balance::{
    breaker,
    choice::By,
    policy::TimeoutPolicy,
    retry::{Sent, Verdict},
};

/// Bytes of a path, or of a host, that are kept.
const MAX_TEXT: usize = 256;

/// One request, recorded.
#[derive(Debug, Clone, Serialize)]
pub struct Decision {
    id: DecisionId,
    at_ms: u64,
    direction: &'static str,
    target: String,
    service: Option<String>,
    route: Option<String>,
    route_why: Option<String>,
    protocol: &'static str,
    method: Option<String>,
    path: Option<String>,
    host: Option<String>,
    status: Option<u16>,
    grpc_status: Option<u32>,
    reason: Option<&'static str>,
    error: Option<String>,
    #[serde(rename = "failed")]
    failure: bool,
    client_left: bool,
    client: Option<IpAddr>,
    peer: Option<String>,
    policy: Option<String>,
    attempts: Vec<Told>,
    /// Attempts beyond those.
    attempts_untold: u32,
    tried: Vec<SocketAddr>,
    sent_bytes: Option<u64>,
    received_bytes: Option<u64>,
    timeouts: Option<Timeouts>,
    retry_budget_left: Option<u64>,
    phases: Phases,
    trace_id: Option<String>,
    elapsed_ms: u128,
}

/// A record and its age.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// Milliseconds since the request was over.
    pub ago_ms: u128,
    /// The record.
    #[serde(flatten, serialize_with = "inner")]
    pub decision: Arc<Decision>,
}

fn inner<S: Serializer>(decision: &Arc<Decision>, serializer: S) -> Result<S::Ok, S::Error> {
    decision.serialize(serializer)
}

#[derive(Debug, Clone, Serialize)]
struct Told {
    endpoint: SocketAddr,
    pod: Box<str>,
    zone: Box<str>,
    identity: Option<String>,
    tls: &'static str,
    candidates: Vec<Candidate>,
    chosen: &'static str,
    breaker: &'static str,
    start_us: u64,
    connect_us: Option<u64>,
    head_us: Option<u64>,
    status: Option<u16>,
    grpc_status: Option<u32>,
    reason: Option<&'static str>,
    error: Option<Box<str>>,
    may_have_run: &'static str,
    verdict: &'static str,
    backoff_us: u64,
}

#[derive(Debug, Clone, Serialize)]
struct Candidate {
    endpoint: SocketAddr,
    cost_ms: Option<f64>,
    in_flight: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
struct Timeouts {
    request_ms: Option<f64>,
    response_ms: Option<f64>,
    per_try_ms: Option<f64>,
    idle_ms: Option<f64>,
    connect_ms: f64,
}

#[derive(Debug, Clone, Serialize)]
struct Phases {
    wait_us: u64,
    head_us: Option<u64>,
    total_us: u64,
}

impl Decision {
    pub(super) fn new(id: DecisionId, at_ms: u64, finished: &Finished<'_>) -> Self {
        let Finished { story, about, ended, .. } = finished;
        let (failure, client_left) = match finished.result {
            Ok(answered) => (answered.failure, answered.left),
            Err(_) => (true, false),
        };
        let error = finished.result.err();
        let attempts: Vec<Told> = story.attempts().map(|attempt| told(attempt, finished)).collect();
        // Those before the last one.
        let tried = attempts.iter().rev().skip(1).rev().map(|attempt| attempt.endpoint).collect();
        let head_us = attempts.last().and_then(|last| last.head_us);
        let (route, route_why) = match &finished.route {
            Some((name, why)) => (Some((*name).to_owned()), Some(why.clone().into_owned())),
            None => (None, None),
        };
        Self {
            id,
            at_ms,
            direction: finished.direction.as_str(),
            target: finished.target.to_string(),
            service: finished.service.map(ToString::to_string),
            route,
            route_why,
            protocol: match about {
                None => "tcp",
                Some(_) if finished.grpc => "grpc",
                Some(about) => about.protocol,
            },
            method: about.map(|about| about.method.to_string()),
            path: about.map(|about| cut(about.path).to_owned()),
            host: finished.host().map(|host| cut(host).to_owned()),
            status: about.and_then(|_| Some(finished.status()?.as_u16())),
            grpc_status: finished.grpc_status(),
            reason: error.map(|error| error.reason().as_str()),
            error: error.map(ToString::to_string),
            failure,
            client_left,
            client: finished.client,
            peer: finished.peer.map(|id| id.as_str().to_owned()),
            policy: finished.policy.clone(),
            attempts,
            attempts_untold: story.untold,
            tried,
            sent_bytes: finished.carried.map(|carried| carried.sent),
            received_bytes: finished.carried.map(|carried| carried.received),
            timeouts: finished.rules.map(Timeouts::of),
            retry_budget_left: finished.rules.and_then(|rules| rules.budget_left),
            phases: Phases {
                wait_us: micros(story.waited),
                head_us,
                total_us: micros(ended.saturating_duration_since(story.started)),
            },
            trace_id: story.trace.map(|context| context.trace.to_string()),
            elapsed_ms: ended.saturating_duration_since(story.started).as_millis(),
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> DecisionId {
        self.id
    }

    /// Whether the request failed: by the proxy's own answer, or by one that blames the server.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.failure
    }

    /// Whether the client left before it had a whole response.
    #[must_use]
    pub fn client_left(&self) -> bool {
        self.client_left
    }

    /// Whom it was for, and whom it went to.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        [Some(&self.target), self.service.as_ref()].into_iter().flatten().map(String::as_str)
    }

    /// `namespace/name/rule` of the route that it took.
    #[must_use]
    pub fn route(&self) -> Option<&str> {
        self.route.as_deref()
    }

    /// Status that an HTTP client saw.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Its method.
    #[must_use]
    pub fn method(&self) -> Option<&str> {
        self.method.as_deref()
    }

    /// Reason word of an answer that the proxy made itself.
    #[must_use]
    pub fn reason(&self) -> Option<&'static str> {
        self.reason
    }

    /// The trace that it belongs to.
    #[must_use]
    pub fn trace(&self) -> Option<&str> {
        self.trace_id.as_deref()
    }
}

fn told(attempt: &Attempt, finished: &Finished<'_>) -> Told {
    let started = finished.story.started;
    let endpoint = &attempt.endpoint;
    let since = |at: Instant| micros(at.saturating_duration_since(started));
    let breaker = match endpoint.stats.breaker().state(finished.ended.into_std()) {
        breaker::State::Closed => "ready",
        breaker::State::Open => "open",
        breaker::State::HalfOpen => "half-open",
    };
    let mut told = Told {
        endpoint: endpoint.addr,
        pod: endpoint.pod.clone(),
        zone: endpoint.zone.clone(),
        identity: endpoint.identity.as_ref().map(|id| id.as_str().to_owned()),
        tls: if endpoint.identity.is_some() { "mtls" } else { "none" },
        candidates: candidates(attempt),
        chosen: attempt.choice.by.as_str(),
        breaker,
        start_us: since(attempt.began),
        connect_us: None,
        head_us: None,
        status: None,
        grpc_status: None,
        reason: None,
        error: None,
        may_have_run: may_have_run(Sent::Maybe),
        verdict: attempt.verdict_word(),
        backoff_us: match attempt.verdict {
            Verdict::Retry { backoff } => micros(backoff),
            Verdict::Stop(_) => 0,
        },
    };
    match &attempt.result {
        Outcome::Answered { status, grpc, connected, head } => {
            told.status = Some(status.as_u16());
            told.grpc_status = *grpc;
            told.connect_us =
                connected.map(|at| micros(at.saturating_duration_since(attempt.began)));
            told.head_us = Some(since(*head));
            told.may_have_run = may_have_run(Sent::Yes);
        }
        Outcome::Connected(at) => {
            told.connect_us = Some(micros(at.saturating_duration_since(attempt.began)));
            told.may_have_run = may_have_run(Sent::Yes);
        }
        Outcome::Failed { reason, error, sent, .. } => {
            told.reason = Some(reason.as_str());
            told.error = Some(error.clone());
            told.may_have_run = may_have_run(*sent);
        }
        Outcome::GivenUp => {}
    }
    told
}

fn candidates(attempt: &Attempt) -> Vec<Candidate> {
    let Some(other) = attempt.other else { return Vec::new() };
    let [own, others] = attempt.choice.costs;
    let cost = |endpoint, cost: f64| match attempt.choice.by {
        By::LowerCost => Candidate { endpoint, cost_ms: Some(cost * 1e3), in_flight: None },
        _ => Candidate { endpoint, cost_ms: None, in_flight: Some(cost) },
    };
    vec![cost(attempt.endpoint.addr, own), cost(other, others)]
}

impl Timeouts {
    fn of(rules: Rules<'_>) -> Self {
        let TimeoutPolicy { request, response, idle, backend_request, connect } = rules.timeouts;
        let per_try = rules.retry.and_then(|retry| retry.per_try_timeout);
        let per_try = [per_try, *backend_request].into_iter().flatten().min();
        Self {
            request_ms: request.map(millis),
            response_ms: response.map(millis),
            per_try_ms: per_try.map(millis),
            idle_ms: idle.map(millis),
            connect_ms: millis(*connect),
        }
    }
}

fn may_have_run(sent: Sent) -> &'static str {
    match sent {
        Sent::No => "no",
        Sent::Maybe => "maybe",
        Sent::Yes => "yes",
    }
}

/// Milliseconds with their thousandths.
fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The beginning of a text, at a character's end.
pub(super) fn cut(text: &str) -> &str {
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    &text[..ends.take_while(|end| *end <= MAX_TEXT).last().unwrap_or(0)]
}
