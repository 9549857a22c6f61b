//! What a codec does for the attempt loop, and what the loop asks it to keep to.

use std::{future::Future, sync::Arc, time::Duration};

use http::StatusCode;
use tokio::time::Instant;

use super::{Snapshot, places::Places, verdict};
use crate::{
    balance::stats::Outcome, discovery::Endpoint, error::Error, fields::Fields,
    metrics::connections::Connections, sight::id::DecisionId,
};

/// A request that can be sent, more than once if need be.
pub(super) trait Call: Send {
    /// A response whose head is there and whose body may still be on its way.
    type Answer: Answer;

    /// Sends it over one connection to one endpoint.
    ///
    /// # Errors
    /// [`NoAnswer`]; the endpoint is told of by the caller.
    fn send(
        &mut self,
        endpoint: &Arc<Endpoint>,
        via: Via<'_>,
    ) -> impl Future<Output = Result<Self::Answer, NoAnswer>> + Send;

    /// Its fields, as the client sent them.
    fn fields(&self) -> &impl Fields;

    /// Whether it has an upstream connection for itself while it lasts.
    fn is_exclusive(&self) -> bool;

    /// Whether its body can be sent from its first byte again.
    fn is_replayable(&self) -> bool;

    /// Closes the books on a response that the client does not get to see.
    fn give_up(&mut self, endpoint: &Arc<Endpoint>, answer: Self::Answer);
}

/// What the loop looks at in a response.
pub(super) trait Answer: Send {
    fn status(&self) -> StatusCode;
    fn fields(&self) -> &impl Fields;
    /// When the connection stood and the request left: the endpoint's speed is judged without the
    /// dial, which happens once.
    fn sent_at(&self) -> Instant;
    /// Whether the connection was made for it.
    fn dialled(&self) -> bool;
}

/// No response.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// For a reason that the client is told, if no other attempt does better.
    Error(Error),
    /// The client's own time ran out; the endpoint may have been quick enough for others.
    Impatient(Error),
    /// The client's request is broken. Nobody else is to blame, and nobody else is asked.
    BadRequest(Error),
    /// The client is gone.
    ClientGone,
}

impl NoAnswer {
    /// What the client is told; nothing where there is no client.
    pub(super) fn into_error(self) -> Option<Error> {
        match self {
            Self::Error(error) | Self::Impatient(error) | Self::BadRequest(error) => Some(error),
            Self::ClientGone => None,
        }
    }

    /// What the client is told.
    pub(super) fn error(&self) -> Option<&Error> {
        match self {
            Self::Error(error) | Self::Impatient(error) | Self::BadRequest(error) => Some(error),
            Self::ClientGone => None,
        }
    }

    /// What it says of the endpoint.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Error(error) => verdict::failure(error),
            _ => Outcome::Cancelled,
        }
    }
}

impl From<Error> for NoAnswer {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// What a send has to keep to.
#[derive(Clone, Copy)]
pub(super) struct Via<'a> {
    pub(super) places: &'a Places,
    pub(super) snapshot: &'a Snapshot,
    pub(super) bounds: Bounds,
    /// Under which id the other side is to record it.
    pub(super) explained: Option<DecisionId>,
    /// Where connections that are opened for it are counted.
    pub(super) connections: &'a Arc<Connections>,
}

/// Bounds of one send, and which one it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Sends before this one.
    pub(super) earlier: u32,
    /// Those of them that may have reached an application.
    pub(super) retries: u32,
    /// Establishing a connection.
    pub(super) connect: Duration,
    /// When the response's head must be there; the per-try time-out.
    pub(super) attempt: Option<(Instant, Duration)>,
    /// From the end of the request to the response's head.
    pub(super) response: Option<Duration>,
    /// Longest pause in a body.
    pub(super) idle: Option<Duration>,
    /// When the whole response must be there.
    pub(super) deadline: Option<Deadline>,
    /// When the whole response to this send must be there.
    pub(super) whole: Option<(Instant, Duration)>,
}

impl Bounds {
    /// How long establishing a connection may take from now on.
    pub(super) fn connect_within(&self, now: Instant) -> Duration {
        let until = [self.attempt.map(|(at, _)| at), self.deadline.map(|deadline| deadline.at)];
        let left = until.into_iter().flatten().map(|at| at.saturating_duration_since(now));
        left.min().map_or(self.connect, |left| left.min(self.connect))
    }

    /// When the whole response must be there, once its head is.
    pub(super) fn end(&self) -> Option<Deadline> {
        let whole = self.whole.map(|(at, bound)| Deadline { at, bound, by_client: false });
        [self.deadline, whole].into_iter().flatten().min_by_key(|deadline| deadline.at)
    }

    /// What a failed dial is to the request: where its own time is over, that.
    pub(super) fn dial_failed(&self, now: Instant, error: Error) -> NoAnswer {
        match self.deadline {
            Some(deadline) if deadline.at <= now => deadline.passed(),
            _ => error.into(),
        }
    }
}

/// The end of a request's time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    /// How long it was.
    pub(super) bound: Duration,
    /// The client said so, and not the Service's owner.
    pub(super) by_client: bool,
}

impl Deadline {
    /// What the client is told when it has passed.
    pub(super) fn passed(self) -> NoAnswer {
        let error = Error::RequestTimeout(self.bound);
        if self.by_client { NoAnswer::Impatient(error) } else { NoAnswer::Error(error) }
    }
}
