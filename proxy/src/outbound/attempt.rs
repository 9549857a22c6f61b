//! The attempt loop: pick one endpoint from one snapshot, send, classify, done or once more.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header, request};
use hyper::body::{Body as _, Incoming};
use remora_core::names::headers::{ATTEMPT, PROXY_ERROR};
use tokio::time::{Instant, timeout};

use super::{Outbound, Snapshot, Upstream, dial::Key, done::Done};
use crate::{
    balance::{
        pick::{NoEndpoint, Tried, Wish, pick},
        retry::{self, Answer, Pushback, Sent, StopReason, Verdict},
        stats::{FailureKind, InFlight, Outcome},
    },
    decisions::Failed,
    discovery::Endpoint,
    error::{Error, Reason},
    http::{
        Version,
        answer::is_grpc,
        body::{RequestBody, ResponseBody},
        headers::strip_ours,
        pool::{Connection, SendError},
        replay::Replay,
    },
    metrics::Direction,
    tls::Alpn,
};

/// One request and all attempts at it.
pub(super) struct Exchange<'a> {
    outbound: &'a Arc<Outbound>,
    upstream: &'a Arc<Upstream>,
    snapshot: Snapshot,
    version: Version,
    started: Instant,
}

/// A response, and what is needed to close the books on it.
struct Answered {
    response: Response<Incoming>,
    connection: Connection,
    guard: InFlight<Endpoint>,
    sent_at: Instant,
}

/// An attempt without a usable response.
struct Unanswered {
    error: Error,
    endpoint: Option<Arc<Endpoint>>,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(
        outbound: &'a Arc<Outbound>,
        upstream: &'a Arc<Upstream>,
        version: Version,
        started: Instant,
    ) -> Self {
        Self { outbound, upstream, snapshot: upstream.snapshot(), version, started }
    }

    /// When the whole request must be over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.snapshot.policy.timeouts.request.map(|bound| self.started + bound)
    }

    /// Sends until there is a response to give, or no permission to try once more.
    pub(super) async fn run(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<ResponseBody<Done>>, Error> {
        let (parts, body) = request.into_parts();
        let body = (!body.is_end_stream()).then(|| Replay::new(body));
        let grpc = is_grpc(&parts.headers);
        let traffic = self.upstream.traffic();
        traffic.requests.fetch_add(1, Ordering::Relaxed);
        if self.snapshot.policy.retry.is_some() {
            traffic.budget(&self.snapshot.policy).deposit(self.started.into_std());
        }
        let (mut retries, mut resends) = (0, 0);
        let mut tried: Vec<Arc<Endpoint>> = Vec::new();
        loop {
            let result = self.attempt(&parts, body.as_ref(), retries + resends, &tried).await;
            let verdict = self.judge(&result, &parts, body.as_ref(), grpc, (retries, resends));
            let (backoff, sent) = match verdict {
                Verdict::Retry { backoff } => (backoff, result.sent()),
                Verdict::Stop(why) => {
                    self.count_stop(why, retries);
                    return match result {
                        Ok(answered) => Ok(self.finish(answered, grpc)),
                        Err(failed) => {
                            self.record(&parts, &failed.error, &tried);
                            Err(failed.error)
                        }
                    };
                }
            };
            if sent == Sent::No {
                resends += 1;
            } else {
                retries += 1;
            }
            traffic.retries.fetch_add(1, Ordering::Relaxed);
            match result {
                Ok(answered) => {
                    tried.push(Arc::clone(answered.guard.endpoint()));
                    self.give_up_on(answered, grpc);
                }
                Err(failed) => {
                    tracing::debug!(error = %failed.error, "trying again");
                    tried.extend(failed.endpoint);
                }
            }
            if !backoff.is_zero() {
                tokio::time::sleep(backoff).await;
            }
        }
    }

    /// One endpoint, one connection, one send.
    async fn attempt(
        &self,
        parts: &request::Parts,
        body: Option<&Replay>,
        earlier: u32,
        tried: &[Arc<Endpoint>],
    ) -> Result<Answered, Unanswered> {
        let guard = self.pick(tried).map_err(|error| Unanswered { error, endpoint: None })?;
        let endpoint = Arc::clone(guard.endpoint());
        let request = match make(parts, body, earlier) {
            Some(request) => request,
            None => {
                return Err(Unanswered {
                    error: Error::Overloaded("request body is too long to repeat"),
                    endpoint: None,
                });
            }
        };
        let sent_at = Instant::now();
        match self.send(&endpoint, request).await {
            Ok((response, connection, sent_at)) => {
                Ok(Answered { response, connection, guard, sent_at })
            }
            Err(error) => {
                let kind = match error.status() {
                    StatusCode::GATEWAY_TIMEOUT => FailureKind::TimedOut,
                    _ => FailureKind::Transport,
                };
                self.report(guard, sent_at, Outcome::Failure(kind));
                Err(Unanswered { error, endpoint: Some(endpoint) })
            }
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
        match pick(endpoints, policy, self.upstream.cursor(), Wish::default(), avoid, now, &mut rng)
        {
            Ok(picked) => Ok(picked.guard),
            Err(NoEndpoint::AllEjected { retry_after }) => {
                Err(Error::AllEjected { service: self.upstream.name(), retry_after })
            }
            Err(NoEndpoint::Empty | NoEndpoint::AllExcluded) => {
                Err(Error::NoEndpoints { service: self.upstream.name() })
            }
        }
    }

    async fn send(
        &self,
        endpoint: &Arc<Endpoint>,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Connection, Instant), Error> {
        let timeouts = &self.snapshot.policy.timeouts;
        let alpn = match self.version {
            Version::H1 => Alpn::H1,
            Version::H2 => Alpn::H2,
        };
        let key = Key(Arc::clone(endpoint));
        let pool = &self.outbound.pool;
        let mut connection = match pool.get(&key, self.version) {
            Some(connection) => connection,
            None => {
                let dial = || self.outbound.dial(endpoint, alpn, timeouts.connect);
                pool.open(&key, self.version, dial).await?
            }
        };
        // The endpoint's speed is judged without the dial, which happens once.
        let sent_at = Instant::now();
        let sending = connection.send(request);
        let result = match self.head_bound() {
            None => sending.await,
            Some(bound) => {
                timeout(bound, sending).await.map_err(|_| Error::ResponseTimeout(bound))?
            }
        };
        match result {
            Ok(response) => {
                not_delivered(endpoint, &response).map_or(Ok((response, connection, sent_at)), Err)
            }
            Err(failed) => Err(broken(endpoint, failed)),
        }
    }

    /// How long one attempt may wait for a response head.
    fn head_bound(&self) -> Option<Duration> {
        let per_try = self.snapshot.policy.retry.as_ref().and_then(|retry| retry.per_try_timeout);
        [self.snapshot.policy.timeouts.response, per_try].into_iter().flatten().min()
    }

    fn judge(
        &self,
        result: &Result<Answered, Unanswered>,
        parts: &request::Parts,
        body: Option<&Replay>,
        grpc: bool,
        (retries, resends): (u32, u32),
    ) -> Verdict {
        let policy = self.snapshot.policy.retry.as_ref();
        let (sent, answer) = match result {
            Ok(_) if policy.is_none() => return Verdict::Stop(StopReason::NotRetryable),
            Ok(answered) => (Sent::Yes, seen_by_client(&answered.response, grpc)),
            // Nothing to send it to.
            Err(failed) if failed.endpoint.is_none() => {
                return Verdict::Stop(StopReason::NotRetryable);
            }
            Err(failed) if grpc => (failed.error.sent(), Answer::Grpc(failed.error.grpc_status())),
            Err(failed) => (failed.error.sent(), Answer::Http(failed.error.status())),
        };
        let endpoints = self.snapshot.endpoints.len();
        let (pushback, backoffs) = (Pushback::None, retries);
        let attempt =
            retry::Attempt { sent, answer, pushback, retries, backoffs, resends, endpoints };
        let replayable = body.is_none_or(Replay::is_replayable);
        let request = retry::Request { method: &parts.method, keyed: false, replayable };
        let now = Instant::now().into_std();
        let budget = policy.map(|_| self.upstream.traffic().budget(&self.snapshot.policy));
        let mut rng = self.outbound.rng.lock();
        let budget = budget.as_deref();
        retry::decide(policy, request, attempt, budget, now, &mut rng)
    }

    fn record(&self, parts: &request::Parts, error: &Error, tried: &[Arc<Endpoint>]) {
        let target = self.upstream.name();
        let failed = Failed {
            direction: Direction::Outbound,
            target: &target,
            method: &parts.method,
            uri: &parts.uri,
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
            StopReason::NotRetryable | StopReason::NotReplayable | StopReason::Pushback => {}
        }
    }

    /// Hands the response on; its body's end closes the books.
    fn finish(&self, answered: Answered, grpc: bool) -> Response<ResponseBody<Done>> {
        let Answered { mut response, connection, mut guard, sent_at } = answered;
        self.upstream.traffic().responded(response.status());
        if guard.endpoint().identity.is_none() {
            // Only a proxy of ours may say what our headers say.
            strip_ours(response.headers_mut());
        }
        let rtt = sent_at.elapsed();
        let decided = outcome(&response, grpc);
        if let Some(outcome) = decided {
            let now = Instant::now().into_std();
            let policy = &self.snapshot.policy;
            let ejection = guard.report(now, rtt, outcome, policy, &mut self.outbound.rng.lock());
            self.upstream.ejected(guard.endpoint(), ejection);
        }
        if leaves_http(&response) {
            let upstream_side = hyper::upgrade::on(&mut response);
            response.extensions_mut().insert(upstream_side);
        }
        let done = Done {
            outbound: Arc::clone(self.outbound),
            upstream: Arc::clone(self.upstream),
            policy: Arc::clone(&self.snapshot.policy),
            connection: Some(connection),
            guard,
            started: self.started,
            rtt,
            undecided: decided.is_none(),
        };
        response.map(|body| ResponseBody::upstream(body, done))
    }

    /// Books a response that the client does not get to see.
    fn give_up_on(&self, answered: Answered, grpc: bool) {
        let outcome = outcome(&answered.response, grpc).unwrap_or(Outcome::Success);
        let key = Key(Arc::clone(answered.guard.endpoint()));
        self.report(answered.guard, answered.sent_at, outcome);
        // Only a connection without an unread body is good for another request.
        if answered.response.body().is_end_stream() {
            self.outbound.pool.give_back(&key, answered.connection, Instant::now());
        }
    }

    fn report(&self, mut guard: InFlight<Endpoint>, sent_at: Instant, outcome: Outcome) {
        let now = Instant::now();
        let policy = &self.snapshot.policy;
        let rng = &mut self.outbound.rng.lock();
        let ejection = guard.report(now.into_std(), now - sent_at, outcome, policy, rng);
        self.upstream.ejected(guard.endpoint(), ejection);
    }
}

trait HasSent {
    fn sent(&self) -> Sent;
}

impl HasSent for Result<Answered, Unanswered> {
    fn sent(&self) -> Sent {
        match self {
            Ok(_) => Sent::Yes,
            Err(failed) => failed.error.sent(),
        }
    }
}

/// The request for one attempt; `None` where its body is gone.
fn make(
    parts: &request::Parts,
    body: Option<&Replay>,
    earlier: u32,
) -> Option<Request<RequestBody>> {
    let body = match body {
        None => RequestBody::Empty,
        Some(replay) => RequestBody::Attempt(replay.attempt()?),
    };
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.version_mut() = upstream_version(parts);
    *request.headers_mut() = parts.headers.clone();
    // HTTP/1 field names as the client wrote them: hyper keeps their case here.
    request.extensions_mut().clone_from(&parts.extensions);
    if earlier > 0 {
        request.headers_mut().insert(ATTEMPT, HeaderValue::from(earlier + 1));
    }
    Some(request)
}

/// A proxy speaks its own version (RFC 9110 §6.2), except that HTTP/1.1 needs a Host.
fn upstream_version(parts: &request::Parts) -> http::Version {
    match parts.version {
        http::Version::HTTP_10 if parts.headers.contains_key(header::HOST) => {
            http::Version::HTTP_11
        }
        version => version,
    }
}

fn leaves_http<B>(response: &Response<B>) -> bool {
    response.status() == StatusCode::SWITCHING_PROTOCOLS
        || (response.status().is_success() && response.headers().contains_key(header::UPGRADE))
}

/// The inbound proxy of an endpoint says that the request did not get through to the application.
/// Only a peer that proved its identity is believed.
fn not_delivered(endpoint: &Endpoint, response: &Response<Incoming>) -> Option<Error> {
    endpoint.identity.as_ref()?;
    let word = response.headers().get(PROXY_ERROR)?;
    let reason = Reason::from_word(word.as_bytes())?;
    matches!(reason, Reason::ConnectFailed | Reason::ConnectTimeout | Reason::Overloaded)
        .then(|| Error::NotDelivered { addr: endpoint.addr, reason: reason.as_str().to_owned() })
}

fn broken(endpoint: &Endpoint, failed: SendError) -> Error {
    let sent = if failed.unsent.is_some() || failed.refused() { Sent::No } else { Sent::Maybe };
    Error::UpstreamReset { addr: endpoint.addr, detail: detail(&failed.error), sent }
}

fn detail(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn seen_by_client<B>(response: &Response<B>, grpc: bool) -> Answer {
    match grpc_status(response.headers()).filter(|_| grpc) {
        Some(code) => Answer::Grpc(code),
        None => Answer::Http(response.status()),
    }
}

/// What a response head says about its endpoint; `None` where gRPC says it in the trailers.
fn outcome<B>(response: &Response<B>, grpc: bool) -> Option<Outcome> {
    let headers = response.headers();
    if grpc && response.status() == StatusCode::OK {
        return grpc_status(headers).map(|code| grpc_outcome(code, headers));
    }
    Some(match response.status() {
        StatusCode::TOO_MANY_REQUESTS => {
            Outcome::Failure(FailureKind::RateLimited { retry_after: retry_after(headers) })
        }
        status if status.is_server_error() => {
            Outcome::Failure(FailureKind::ServerError { retry_after: retry_after(headers) })
        }
        _ => Outcome::Success,
    })
}

/// `grpc-status` of a head (trailers-only response) or of trailers.
pub(super) fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Codes that blame the endpoint: DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS.
pub(super) fn grpc_outcome(code: u32, headers: &HeaderMap) -> Outcome {
    let pushback = headers
        .get("grpc-retry-pushback-ms")
        .and_then(|ms| ms.to_str().ok()?.parse().ok())
        .map(Duration::from_millis);
    match code {
        8 => Outcome::Failure(FailureKind::RateLimited { retry_after: pushback }),
        4 | 13 | 14 | 15 => Outcome::Failure(FailureKind::ServerError { retry_after: pushback }),
        _ => Outcome::Success,
    }
}

/// `Retry-After` in seconds (RFC 9110 §10.2.3). The form with a date is rare and not followed.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}
