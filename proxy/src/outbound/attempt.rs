//! The attempt loop: pick one endpoint from one snapshot, send, classify, done or once more.
//!
//! How a request is sent is the codec's business ([`Call`]: [`super::h1`], [`super::h2`]); everything
//! that is decided about it is decided here.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{Method, StatusCode};
use tokio::time::{Instant, sleep_until};

use super::{Outbound, Snapshot, Upstream, verdict};
use crate::{
    balance::{
        pick::{NoEndpoint, Tried, pick},
        retry::{self, Answer as Seen, Sent, StopReason, Verdict},
        stats::{InFlight, Outcome},
    },
    decisions::Failed,
    discovery::Endpoint,
    error::{Error, Reason},
    http::fields::Fields,
    metrics::Direction,
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
        bounds: Bounds,
    ) -> impl Future<Output = Result<Self::Answer, NoAnswer>> + Send;

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
}

impl From<Error> for NoAnswer {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Bounds of one send, and which one it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Sends before this one.
    pub(super) earlier: u32,
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
}

impl Bounds {
    /// How long establishing a connection may take from now on.
    pub(super) fn connect_within(&self, now: Instant) -> Duration {
        let until = [self.attempt.map(|(at, _)| at), self.deadline.map(|deadline| deadline.at)];
        let left = until.into_iter().flatten().map(|at| at.saturating_duration_since(now));
        left.min().map_or(self.connect, |left| left.min(self.connect))
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

/// What the decisions need to know of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) grpc: bool,
}

/// One request and all attempts at it.
pub(super) struct Exchange<'a> {
    pub(super) outbound: &'a Arc<Outbound>,
    pub(super) upstream: &'a Arc<Upstream>,
    pub(super) snapshot: Snapshot,
    pub(super) started: Instant,
    pub(super) deadline: Option<Deadline>,
}

/// A response to give, and what is needed to close the books on it.
pub(super) struct Taken<A> {
    pub(super) answer: A,
    pub(super) guard: InFlight<Endpoint>,
}

struct Unanswered {
    why: NoAnswer,
    endpoint: Option<Arc<Endpoint>>,
}

impl<'a> Exchange<'a> {
    /// `patience` is the client's own bound on the whole request.
    pub(super) fn new(
        outbound: &'a Arc<Outbound>,
        upstream: &'a Arc<Upstream>,
        started: Instant,
        patience: Option<Duration>,
    ) -> Self {
        let snapshot = upstream.snapshot();
        let owner = snapshot.policy.timeouts.request.map(|bound| (bound, false));
        let bound = [owner, patience.map(|bound| (bound, true))].into_iter().flatten().min();
        let deadline =
            bound.map(|(bound, by_client)| Deadline { at: started + bound, bound, by_client });
        Self { outbound, upstream, snapshot, started, deadline }
    }

    /// Sends until there is a response to give, or no permission to try once more.
    pub(super) async fn run<C: Call>(
        &self,
        call: &mut C,
        facts: Facts<'_>,
    ) -> Result<Taken<C::Answer>, NoAnswer> {
        let traffic = self.upstream.traffic();
        traffic.requests.fetch_add(1, Ordering::Relaxed);
        if self.snapshot.policy.retry.is_some() {
            traffic.budget(&self.snapshot.policy).deposit(self.started.into_std());
        }
        let (mut retries, mut resends) = (0, 0);
        let mut tried: Vec<Arc<Endpoint>> = Vec::new();
        loop {
            let result = self.attempt(call, retries + resends, &tried).await;
            let verdict = self.judge(&result, call.is_replayable(), facts, (retries, resends));
            let (backoff, sent) = match verdict {
                Verdict::Retry { backoff } => (backoff, sent(&result)),
                Verdict::Stop(why) => {
                    self.count_stop(why, retries);
                    return result.map_err(|failed| {
                        self.record(facts, &failed.why, &tried);
                        failed.why
                    });
                }
            };
            if sent == Sent::No {
                resends += 1;
            } else {
                retries += 1;
            }
            traffic.retries.fetch_add(1, Ordering::Relaxed);
            match result {
                Ok(taken) => {
                    let Taken { answer, guard } = taken;
                    let endpoint = Arc::clone(guard.endpoint());
                    let outcome = verdict::outcome(&answer, facts.grpc).unwrap_or(Outcome::Success);
                    self.report(&mut { guard }, answer.sent_at(), outcome);
                    call.give_up(&endpoint, answer);
                    tried.push(endpoint);
                }
                Err(failed) => tried.extend(failed.endpoint),
            }
            if let Err(why) = self.pause(backoff).await {
                self.record(facts, &why, &tried);
                return Err(why);
            }
        }
    }

    /// Waits before the next attempt, as long as there is time for one.
    async fn pause(&self, backoff: Duration) -> Result<(), NoAnswer> {
        if backoff.is_zero() {
            return Ok(());
        }
        let until = Instant::now() + backoff;
        match self.deadline {
            Some(deadline) if deadline.at <= until => {
                sleep_until(deadline.at).await;
                Err(deadline.passed())
            }
            _ => {
                sleep_until(until).await;
                Ok(())
            }
        }
    }

    /// One endpoint, one connection, one send.
    async fn attempt<C: Call>(
        &self,
        call: &mut C,
        earlier: u32,
        tried: &[Arc<Endpoint>],
    ) -> Result<Taken<C::Answer>, Unanswered> {
        let mut guard =
            self.pick(tried).map_err(|error| Unanswered { why: error.into(), endpoint: None })?;
        let endpoint = Arc::clone(guard.endpoint());
        let begun = Instant::now();
        match call.send(&endpoint, self.bounds(earlier, begun)).await {
            Ok(answer) => Ok(Taken { answer, guard }),
            Err(why) => {
                let outcome = match &why {
                    NoAnswer::Error(error) => verdict::failure(error),
                    _ => Outcome::Cancelled,
                };
                self.report(&mut guard, begun, outcome);
                Err(Unanswered { why, endpoint: Some(endpoint) })
            }
        }
    }

    fn bounds(&self, earlier: u32, now: Instant) -> Bounds {
        let policy = &self.snapshot.policy;
        let per_try = policy.retry.as_ref().and_then(|retry| retry.per_try_timeout);
        Bounds {
            earlier,
            connect: policy.timeouts.connect,
            attempt: per_try.map(|bound| (now + bound, bound)),
            response: policy.timeouts.response,
            idle: policy.timeouts.idle,
            deadline: self.deadline,
        }
    }

    fn pick(&self, tried: &[Arc<Endpoint>]) -> Result<InFlight<Endpoint>, Error> {
        let avoid = |endpoint: &Endpoint| {
            let known = tried.iter().any(|t| std::ptr::eq(Arc::as_ptr(t), endpoint));
            if known { Tried::Avoid } else { Tried::No }
        };
        let Snapshot { policy, endpoints } = &self.snapshot;
        let now = Instant::now().into_std();
        let mut rng = self.outbound.rng.lock();
        match pick(endpoints, policy, self.upstream.cursor(), avoid, now, &mut rng) {
            Ok(picked) => Ok(picked.guard),
            Err(NoEndpoint::AllEjected { retry_after }) => {
                Err(Error::AllEjected { service: self.upstream.name(), retry_after })
            }
            Err(NoEndpoint::Empty | NoEndpoint::AllExcluded) => {
                Err(Error::NoEndpoints { service: self.upstream.name() })
            }
        }
    }

    fn judge<A: Answer>(
        &self,
        result: &Result<Taken<A>, Unanswered>,
        replayable: bool,
        facts: Facts<'_>,
        (retries, resends): (u32, u32),
    ) -> Verdict {
        let policy = self.snapshot.policy.retry.as_ref();
        let (sent, answer) = match result {
            Ok(_) if policy.is_none() => return Verdict::Stop(StopReason::NotRetryable),
            Ok(taken) => (Sent::Yes, verdict::seen_by_client(&taken.answer, facts.grpc)),
            Err(Unanswered { why: NoAnswer::Error(error), endpoint: Some(_) }) => {
                let answer = if facts.grpc {
                    Seen::Grpc(error.grpc_status())
                } else {
                    Seen::Http(error.status())
                };
                (error.sent(), answer)
            }
            // Nobody to send it to, or nobody to send it for.
            Err(_) => return Verdict::Stop(StopReason::NotRetryable),
        };
        let endpoints = self.snapshot.endpoints.len();
        let attempt = retry::Attempt { sent, answer, retries, resends, endpoints };
        let now = Instant::now().into_std();
        let budget = policy.map(|_| self.upstream.traffic().budget(&self.snapshot.policy));
        let mut rng = self.outbound.rng.lock();
        let budget = budget.as_deref();
        retry::decide(policy, attempt, facts.method, budget, replayable, now, &mut rng)
    }

    fn record(&self, facts: Facts<'_>, why: &NoAnswer, tried: &[Arc<Endpoint>]) {
        if let NoAnswer::Error(error) | NoAnswer::Impatient(error) | NoAnswer::BadRequest(error) =
            why
        {
            self.record_error(facts, error, tried);
        }
    }

    /// Keeps the failure for `/decisions`.
    pub(super) fn record_error(&self, facts: Facts<'_>, error: &Error, tried: &[Arc<Endpoint>]) {
        let target = self.upstream.name();
        let failed = Failed {
            direction: Direction::Outbound,
            target: &target,
            method: facts.method,
            path: facts.path,
            elapsed: self.started.elapsed(),
        };
        let tried = tried.iter().map(|endpoint| endpoint.addr);
        self.outbound.decisions.record(Instant::now(), failed, error, tried);
    }

    fn count_stop(&self, why: StopReason, retries: u32) {
        let traffic = self.upstream.traffic();
        match why {
            StopReason::Limit => {
                traffic.retry_limit.fetch_add(1, Ordering::Relaxed);
                self.outbound.error(Reason::RetryLimit);
            }
            StopReason::Budget => {
                traffic.retry_budget.fetch_add(1, Ordering::Relaxed);
                self.outbound.error(Reason::RetryBudget);
            }
            StopReason::NotRetryable if retries > 0 => {
                traffic.retries_succeeded.fetch_add(1, Ordering::Relaxed);
            }
            StopReason::NotRetryable | StopReason::NotReplayable => {}
        }
    }

    /// Says how an attempt went, as far as its endpoint is concerned; only the first report counts.
    pub(super) fn report(
        &self,
        guard: &mut InFlight<Endpoint>,
        sent_at: Instant,
        outcome: Outcome,
    ) {
        let now = Instant::now();
        let policy = &self.snapshot.policy;
        let rng = &mut self.outbound.rng.lock();
        let ejection = guard.report(now.into_std(), now - sent_at, outcome, policy, rng);
        self.upstream.ejected(guard.endpoint(), ejection);
    }
}

fn sent<A>(result: &Result<A, Unanswered>) -> Sent {
    match result {
        Ok(_) => Sent::Yes,
        Err(Unanswered { why: NoAnswer::Error(error), .. }) => error.sent(),
        Err(_) => Sent::Maybe,
    }
}
