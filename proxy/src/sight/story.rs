//! What a request went through, kept on its way at the cost of a few words.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderName, StatusCode};
use remora_core::names::headers::EXPLAIN;
use tokio::time::Instant;

use super::{
    id::DecisionId,
    trace::{TraceContext, TraceId},
};
use crate::{
    balance::{
        choice::Choice,
        retry::{Sent, StopReason, Verdict},
    },
    discovery::Endpoint,
    error::{Error, Reason},
    fields::Fields,
};

/// Attempts of one request that are kept; of more the last ones are only counted.
pub const MAX_ATTEMPTS: usize = 8;

static EXPLAIN_NAME: HeaderName = HeaderName::from_static(EXPLAIN);

/// One request, from its arrival on.
#[derive(Debug)]
pub struct Story {
    /// When its head was there.
    pub started: Instant,
    /// Under which id it is to be recorded, where its caller asked for a record.
    pub explained: Option<DecisionId>,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
    /// How long it waited for a place in its Service's bulkhead.
    pub waited: Duration,
    /// Most requests have one attempt, which needs no allocation.
    first: Option<Attempt>,
    more: Vec<Attempt>,
    /// Attempts that are not kept.
    pub untold: u32,
}

/// One attempt.
#[derive(Debug)]
pub struct Attempt {
    /// Whom it went to.
    pub endpoint: Arc<Endpoint>,
    /// Why this one.
    pub choice: Choice,
    /// The one that it was compared with.
    pub other: Option<SocketAddr>,
    /// When the endpoint was chosen.
    pub began: Instant,
    /// What came of it.
    pub result: Outcome,
    /// What was decided then.
    pub verdict: Verdict,
}

/// What came of an attempt.
#[derive(Debug)]
pub enum Outcome {
    /// A response's head.
    Answered {
        /// Its status.
        status: StatusCode,
        /// gRPC's status, where it is in the head already.
        grpc: Option<u32>,
        /// When the connection stood; `None`: it stood before.
        connected: Option<Instant>,
        /// When the head was there.
        head: Instant,
    },
    /// A connection that is carried as bytes, since then.
    Connected(Instant),
    /// None.
    Failed {
        /// Why.
        reason: Reason,
        /// The whole sentence.
        error: Box<str>,
        /// Whether an application may have seen the request.
        sent: Sent,
        /// When that was clear.
        at: Instant,
    },
    /// The client did not wait: it lasted as long as the request. Until something comes of it, this is
    /// what there is to tell.
    GivenUp,
}

impl Story {
    /// Begins one.
    #[must_use]
    pub fn new(started: Instant, fields: &impl Fields) -> Self {
        Self { trace: TraceContext::of(fields), ..Self::of_connection(started) }
    }

    /// Begins that of a connection, which has no fields.
    #[must_use]
    pub fn of_connection(started: Instant) -> Self {
        Self {
            started,
            explained: None,
            trace: None,
            waited: Duration::ZERO,
            first: None,
            more: Vec::new(),
            untold: 0,
        }
    }

    /// The trace that it belongs to, where its caller records it.
    #[must_use]
    pub fn sampled(&self) -> Option<TraceId> {
        self.trace.filter(|context| context.sampled).map(|context| context.trace)
    }

    /// Whether a caller asks for a record of its request.
    #[must_use]
    pub fn is_asked_for(fields: &impl Fields) -> bool {
        fields.get(&EXPLAIN_NAME) == Some(b"1")
    }

    /// One more attempt.
    pub fn tell(&mut self, attempt: Attempt) {
        if self.first.is_none() {
            self.first = Some(attempt);
        } else if self.more.len() + 1 < MAX_ATTEMPTS {
            self.more.push(attempt);
        } else {
            self.untold += 1;
        }
    }

    /// What came of the attempt that was told last, and what was decided then.
    pub fn came_of_it(&mut self, result: Outcome, verdict: Verdict) {
        let last = if self.more.is_empty() { self.first.as_mut() } else { self.more.last_mut() };
        if let Some(last) = last.filter(|_| self.untold == 0) {
            (last.result, last.verdict) = (result, verdict);
        }
    }

    /// Attempts in their order, at most [`MAX_ATTEMPTS`].
    pub fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.first.iter().chain(&self.more)
    }
}

impl Outcome {
    /// A failure.
    #[must_use]
    pub fn failed(error: &Error, at: Instant) -> Self {
        let (reason, sent) = (error.reason(), error.sent());
        Self::Failed { reason, error: error.to_string().into(), sent, at }
    }
}

impl Attempt {
    /// What the verdict is called in records: an attempt whose answer is given to the client is done,
    /// unless something forbade another; of one that nobody waited for there was no verdict.
    #[must_use]
    pub fn verdict_word(&self) -> &'static str {
        match (self.verdict, &self.result) {
            (_, Outcome::GivenUp) => "given-up",
            (Verdict::Retry { .. }, _) => "retry",
            (
                Verdict::Stop(StopReason::NotRetryable),
                Outcome::Answered { .. } | Outcome::Connected(_),
            ) => "done",
            (Verdict::Stop(why), _) => why.as_str(),
        }
    }
}
