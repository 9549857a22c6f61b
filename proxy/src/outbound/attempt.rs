//! The attempt loop: pick one endpoint from one snapshot, send, classify, done or once more.
//!
//! How a request is sent is the codec's business ([`Call`], which [`super::h1`] and [`super::h2`] are);
//! everything that is decided about it is decided here.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{HeaderValue, Method};
use tokio::time::{Instant, sleep_until};

use super::{
    Outbound, Snapshot, Upstream, books,
    call::{Answer, Bounds, Call, Deadline, NoAnswer, Via},
    places::{NoPlace, Places},
    snapshot::Mark,
    verdict,
};
use crate::{
    balance::{
        affinity,
        bulkhead::Permit,
        pick::{Picked, Tried, pick},
        policy::Affinity,
        retry::{self, Answer as Seen, IDEMPOTENCY_KEY, Pushback, Sent, StopReason, Verdict},
        stats::{InFlight, Outcome},
    },
    discovery::Endpoint,
    error::{Error, Reason},
    fields::Fields,
    http::answer::grpc_status,
    sight::{
        finished::Described,
        story::{self, Attempt, Story},
    },
};

/// What the decisions need to know of a request.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) method: &'a Method,
    pub(super) grpc: bool,
    /// Its head, for whoever asks afterwards.
    pub(super) head: &'a dyn Described,
}

/// One request and all attempts at it.
pub(super) struct Exchange<'a> {
    pub(super) outbound: &'a Arc<Outbound>,
    pub(super) upstream: &'a Arc<Upstream>,
    pub(super) snapshot: Snapshot,
    pub(super) started: Instant,
    pub(super) deadline: Option<Deadline>,
    /// Where the client's connection comes from.
    pub(super) client: IpAddr,
}

/// A response to give, and what is needed to close the books on it.
pub(super) struct Taken<A> {
    pub(super) answer: A,
    pub(super) guard: InFlight<Endpoint>,
    pub(super) places: Places,
    /// Held until the response's end.
    pub(super) permit: Option<Permit>,
    /// What keeps the client at this endpoint, where that is done by something in the response.
    pub(super) mark: Option<Mark>,
}

/// What an attempt brought.
struct Answered<A> {
    answer: A,
    guard: InFlight<Endpoint>,
}

/// How often a request was sent again, and why.
#[derive(Debug, Clone, Copy, Default)]
struct Sends {
    /// By policy.
    retries: u32,
    /// By policy, since a server said how long to wait.
    backoffs: u32,
    /// Because no application was reached.
    resends: u32,
}

struct Unanswered {
    why: NoAnswer,
    /// To whom it was sent; `None`: there was nobody.
    endpoint: Option<Arc<Endpoint>>,
}

/// Somebody waits for a response. Where it is dropped before it is over, the client has left, be it that
/// its connection says so or that nobody polls the request any more.
struct Waiting<'a> {
    exchange: &'a Exchange<'a>,
    facts: Facts<'a>,
    story: &'a mut Story,
    over: bool,
}

impl Waiting<'_> {
    /// There is something to give to the client.
    fn over<T>(&mut self, given: T) -> T {
        self.over = true;
        given
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.exchange.left(self.facts, self.story);
        }
    }
}

impl<'a> Exchange<'a> {
    /// `snapshot` is one of `upstream`; `patience` is the client's own bound on the whole request.
    pub(super) fn new(
        outbound: &'a Arc<Outbound>,
        (upstream, snapshot): (&'a Arc<Upstream>, Snapshot),
        (client, started): (IpAddr, Instant),
        patience: Option<Duration>,
    ) -> Self {
        let owner = snapshot.timeouts().request.map(|bound| (bound, false));
        let bound = [owner, patience.map(|bound| (bound, true))].into_iter().flatten().min();
        let deadline =
            bound.map(|(bound, by_client)| Deadline { at: started + bound, bound, by_client });
        Self { outbound, upstream, snapshot, started, deadline, client }
    }

    /// Sends until there is a response to give, or no permission to try once more. Counts and records a
    /// request whose client leaves before.
    pub(super) async fn run<C: Call>(
        &self,
        call: &mut C,
        facts: Facts<'_>,
        story: &mut Story,
    ) -> Result<Taken<C::Answer>, NoAnswer> {
        let traffic = self.upstream.traffic();
        self.books().open();
        let mut waiting = Waiting { exchange: self, facts, story, over: false };
        if let Some(budget) = self.snapshot.budget(self.upstream) {
            budget.deposit(self.started.into_std());
        }
        let places = Places::of(self.upstream, &self.snapshot);
        let deadline = self.deadline.map(|deadline| deadline.at);
        let entered = places.enter(call.is_exclusive(), deadline).await;
        if places.are_bounded() {
            waiting.story.waited = self.started.elapsed();
        }
        let permit = entered.map_err(|none| waiting.over(self.no_place(none)))?;
        let mut sends = Sends::default();
        let mut tried: Vec<Arc<Endpoint>> = Vec::new();
        loop {
            let result = self.attempt(call, (&places, sends), &tried, waiting.story).await;
            let now = Instant::now();
            let (verdict, pushback) = self.judge(&result, call, facts, (sends, now));
            tell(waiting.story, &result, verdict, (facts.grpc, now));
            let backoff = match verdict {
                Verdict::Retry { backoff } => backoff,
                Verdict::Stop(why) => {
                    self.count_stop(why, sends.retries);
                    return match result {
                        Ok(Answered { answer, guard, .. }) => {
                            let mark = self.keep(call.fields(), guard.endpoint());
                            Ok(waiting.over(Taken { answer, guard, places, permit, mark }))
                        }
                        Err(Unanswered { why: NoAnswer::ClientGone, .. }) => {
                            Err(NoAnswer::ClientGone)
                        }
                        Err(failed) => Err(waiting.over(failed.why)),
                    };
                }
            };
            sends.count(sent(&result), pushback);
            traffic.retries.fetch_add(1, Ordering::Relaxed);
            match result {
                Ok(Answered { answer, mut guard, .. }) => {
                    let outcome = verdict::outcome(&answer, facts.grpc).unwrap_or(Outcome::Success);
                    self.report(&mut guard, answer.sent_at(), outcome);
                    let rpc = books::rpc(&answer, facts.grpc);
                    let given = books::promised(answer.status(), rpc, None);
                    self.outbound.tried(guard.endpoint(), &given, answer.sent_at());
                    tried.push(Arc::clone(guard.endpoint()));
                    call.give_up(guard.endpoint(), answer);
                }
                Err(failed) => tried.extend(failed.endpoint),
            }
            self.pause(backoff).await.map_err(|why| waiting.over(why))?;
        }
    }

    fn no_place(&self, none: NoPlace) -> NoAnswer {
        match (none, self.deadline) {
            (NoPlace::Overloaded(error), _) => error.into(),
            (NoPlace::OutOfTime, Some(deadline)) => deadline.passed(),
            (NoPlace::OutOfTime, None) => Error::RequestTimeout(Duration::ZERO).into(),
        }
    }

    /// Remembers which endpoint the client got, for its next request.
    fn keep(&self, fields: &impl Fields, endpoint: &Endpoint) -> Option<Mark> {
        let token = endpoint.stats.token();
        match self.snapshot.affinity()? {
            Affinity::Cookie { name, timeout } => {
                // A cookie that ends by itself is set anew, so that it ends that long after its last
                // use.
                let known = timeout.is_none() && affinity::named(fields, name) == Some(token);
                let cookie = || affinity::set_cookie(name, token, *timeout);
                if known { None } else { cookie().map(Mark::Cookie) }
            }
            // It comes with every response: a client may know the last one only.
            Affinity::Header { name } => {
                let value = HeaderValue::try_from(token.to_string()).ok()?;
                Some(Mark::Field(name.clone(), value))
            }
            Affinity::ClientAddress { timeout } => {
                let now = Instant::now().into_std();
                self.upstream.traffic().clients.keep(self.client, token, *timeout, now);
                None
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
        (places, sends): (&Places, Sends),
        tried: &[Arc<Endpoint>],
        story: &mut Story,
    ) -> Result<Answered<C::Answer>, Unanswered> {
        let picked = self.pick(call.fields(), tried);
        let picked = picked.map_err(|error| Unanswered { why: error.into(), endpoint: None })?;
        let Picked { mut guard, choice, .. } = picked;
        let began = Instant::now();
        let endpoint = Arc::clone(guard.endpoint());
        // Told before it is over: where the client leaves meanwhile, nobody comes back here.
        story.tell(Attempt {
            endpoint: Arc::clone(&endpoint),
            choice,
            other: choice.other.map(|other| self.snapshot.endpoints[other].addr),
            began,
            result: story::Outcome::GivenUp,
            verdict: Verdict::Stop(StopReason::NotRetryable),
        });
        let (snapshot, bounds) = (&self.snapshot, self.bounds(sends, began));
        let (explained, connections) = (story.explained, self.upstream.connections());
        let via = Via { places, snapshot, bounds, explained, connections };
        match call.send(&endpoint, via).await {
            Ok(answer) => Ok(Answered { answer, guard }),
            Err(why) => {
                self.report(&mut guard, began, why.outcome());
                self.outbound.unanswered(&endpoint, &why, began);
                Err(Unanswered { why, endpoint: Some(endpoint) })
            }
        }
    }

    fn bounds(&self, sends: Sends, now: Instant) -> Bounds {
        let timeouts = self.snapshot.timeouts();
        let by = |bound: Duration| (now + bound, bound);
        let per_try = self.snapshot.retry().and_then(|retry| retry.per_try_timeout).map(by);
        let whole = timeouts.backend_request.map(by);
        Bounds {
            earlier: sends.retries + sends.resends,
            retries: sends.retries,
            connect: timeouts.connect,
            attempt: [per_try, whole].into_iter().flatten().min(),
            response: timeouts.response,
            idle: timeouts.idle,
            deadline: self.deadline,
            whole,
        }
    }

    fn pick(
        &self,
        fields: &impl Fields,
        tried: &[Arc<Endpoint>],
    ) -> Result<Picked<Endpoint>, Error> {
        let avoid = |endpoint: &Endpoint| {
            let known = tried.iter().any(|t| std::ptr::eq(Arc::as_ptr(t), endpoint));
            if known { Tried::Avoid } else { Tried::No }
        };
        let Snapshot { policy, endpoints, .. } = &self.snapshot;
        let now = Instant::now().into_std();
        let wish = self.upstream.wish(&self.snapshot, Some(fields), self.client, now);
        let mut rng = self.outbound.rng.lock();
        let picked = pick(endpoints, policy, self.upstream.cursor(), wish, avoid, now, &mut rng);
        picked.map_err(|none| self.upstream.nobody(none))
    }

    fn judge<C: Call>(
        &self,
        result: &Result<Answered<C::Answer>, Unanswered>,
        call: &C,
        facts: Facts<'_>,
        (sends, now): (Sends, Instant),
    ) -> (Verdict, Pushback) {
        let policy = self.snapshot.retry();
        let stop = (Verdict::Stop(StopReason::NotRetryable), Pushback::None);
        let (sent, answer, pushback) = match result {
            Ok(_) if policy.is_none() => return stop,
            Ok(Answered { answer, guard, .. }) => {
                let seen = verdict::seen_by_client(answer, facts.grpc);
                let sent = verdict::sent(guard.endpoint(), answer.fields());
                (sent, seen, Pushback::read(seen, answer.fields()))
            }
            Err(Unanswered { why: NoAnswer::Error(error), endpoint: Some(_) }) => {
                let seen = if facts.grpc {
                    Seen::Grpc(error.grpc_status())
                } else {
                    Seen::Http(error.status())
                };
                (error.sent(), seen, Pushback::None)
            }
            // Nobody to send it to, or nobody to send it for.
            Err(_) => return stop,
        };
        let Sends { retries, backoffs, resends } = sends;
        let endpoints = self.snapshot.endpoints.len();
        let attempt =
            retry::Attempt { sent, answer, pushback, retries, backoffs, resends, endpoints };
        let request = retry::Request {
            method: facts.method,
            keyed: policy.is_some() && call.fields().get(&IDEMPOTENCY_KEY).is_some(),
            replayable: call.is_replayable(),
        };
        let budget = self.snapshot.budget(self.upstream);
        let mut rng = self.outbound.rng.lock();
        let budget = budget.as_deref();
        (retry::decide(policy, request, attempt, budget, now.into_std(), &mut rng), pushback)
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
            StopReason::Pushback => {
                traffic.retry_pushback.fetch_add(1, Ordering::Relaxed);
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
        self.outbound.ejected(self.upstream, guard.endpoint(), ejection);
    }

    /// Says what a response's head says of its endpoint. A failure is one for good; a success is yet to
    /// come to its end.
    pub(super) fn begun(
        &self,
        guard: &mut InFlight<Endpoint>,
        sent_at: Instant,
        outcome: Option<Outcome>,
    ) {
        match outcome {
            Some(Outcome::Success) | None => {
                let now = Instant::now();
                if guard.promise(now.into_std(), now - sent_at, &self.snapshot.policy) {
                    self.outbound.recovered(self.upstream, guard.endpoint());
                }
            }
            Some(outcome) => self.report(guard, sent_at, outcome),
        }
    }
}

impl Sends {
    fn count(&mut self, sent: Sent, pushback: Pushback) {
        if sent == Sent::No {
            self.resends += 1;
            return;
        }
        self.retries += 1;
        // A server that says when to come starts the doubling of pauses anew (gRFC A6).
        let exact = matches!(pushback, Pushback::Exactly(_));
        self.backoffs = if exact { 0 } else { self.backoffs + 1 };
    }
}

/// Says in a request's story what came of its last attempt.
fn tell<A: Answer>(
    story: &mut Story,
    result: &Result<Answered<A>, Unanswered>,
    verdict: Verdict,
    (grpc, at): (bool, Instant),
) {
    let result = match result {
        Ok(Answered { answer, .. }) => story::Outcome::Answered {
            status: answer.status(),
            grpc: grpc.then(|| grpc_status(answer.fields())).flatten(),
            connected: answer.dialled().then(|| answer.sent_at()),
            head: at,
        },
        Err(Unanswered { endpoint: Some(_), why }) => match why.error() {
            Some(error) => story::Outcome::failed(error, at),
            None => return,
        },
        Err(Unanswered { endpoint: None, .. }) => return,
    };
    story.came_of_it(result, verdict);
}

fn sent<A>(result: &Result<A, Unanswered>) -> Sent {
    match result {
        Ok(_) => Sent::Yes,
        Err(Unanswered { why: NoAnswer::Error(error), .. }) => error.sent(),
        Err(_) => Sent::Maybe,
    }
}
