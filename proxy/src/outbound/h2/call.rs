//! One request in HTTP/2, as the attempt loop sees it.

use std::{
    future::{Future, pending, poll_fn},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, request};
use hyper::body::{Body as _, Frame, Incoming};
use remora_core::names::headers::ATTEMPT;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{
    discovery::Endpoint,
    error::{Error, Sent},
    fields::Fields,
    http::{
        answer,
        h2::{
            body::RequestBody,
            pool::{Connection, SendError},
            replay::Replay,
            request::version,
        },
    },
    outbound::{
        Outbound, Snapshot,
        attempt::Exchange,
        call::{Answer, Bounds, Call, NoAnswer, Via},
        deadline,
        dial::Key,
        verdict,
    },
    sight::{DECISION_ID_NAME, id::DecisionId},
    tls::Alpn,
};

/// How long trailers may take to follow a head whose call could be retried for them.
const LOOK_AHEAD: Duration = Duration::from_millis(10);

/// Retries that came before, for the server of a gRPC call (gRFC A6).
static PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// The request and what is needed to send it once more.
pub(super) struct H2Call<'a> {
    outbound: &'a Arc<Outbound>,
    parts: &'a request::Parts,
    pub(super) body: Option<Replay>,
    grpc: bool,
    grpc_timeout: bool,
}

/// A response, and when its request left.
pub(super) struct H2Answer {
    pub(super) response: Response<Incoming>,
    /// What was read ahead of its body.
    pub(super) first: Option<Frame<Bytes>>,
    pub(super) connection: Connection,
    pub(super) bounds: Bounds,
    pub(super) sent_at: Instant,
    dialled: bool,
}

impl<'a> H2Call<'a> {
    /// `patient`: the client says itself how long it waits.
    pub(super) fn new(
        exchange: &Exchange<'a>,
        parts: &'a request::Parts,
        body: Option<Replay>,
        (grpc, patient): (bool, bool),
    ) -> Self {
        if let Some(body) = &body {
            body.counted_in(exchange.upstream.bodies());
        }
        let outbound = exchange.outbound;
        Self { outbound, parts, body, grpc, grpc_timeout: patient }
    }
}

impl Call for H2Call<'_> {
    type Answer = H2Answer;

    async fn send(&mut self, endpoint: &Arc<Endpoint>, via: Via<'_>) -> Result<H2Answer, NoAnswer> {
        let bounds = via.bounds;
        let outbound = self.outbound;
        let key = Key(Arc::clone(endpoint));
        let known = outbound.shared.get(&key);
        let dialled = known.is_none();
        let mut connection = match known {
            Some(connection) => connection,
            None => {
                let within = bounds.connect_within(Instant::now());
                let places = (via.places, via.snapshot, via.connections);
                let dial = || outbound.dial(endpoint, Alpn::H2, places, within);
                let open = outbound.shared.open(&key, dial).await;
                open.map_err(|error| bounds.dial_failed(Instant::now(), error))?
            }
        };
        let sent_at = Instant::now();
        let explained = via.explained.filter(|_| endpoint.identity.is_some());
        let request = self.make(bounds, sent_at, explained)?;
        let sent = self.in_time(connection.send(request), bounds).await?;
        let mut response = sent.map_err(|failed| broken(endpoint, &failed))?;
        let status = response.status();
        if self.parts.method == Method::CONNECT && status.is_success() && status != StatusCode::OK {
            // hyper opens a tunnel at 200 and at no other success.
            let problem = "grants CONNECT with another status than 200";
            return Err(Error::BadResponse { addr: endpoint.addr, problem }.into());
        }
        if let Some(error) = verdict::not_delivered(endpoint, response.headers()) {
            return Err(error.into());
        }
        let first = match self.looks_ahead(&response, bounds, via.snapshot) {
            true => Box::pin(self.in_time(look_ahead(endpoint, &mut response), bounds)).await??,
            false => None,
        };
        Ok(H2Answer { response, first, connection, bounds, sent_at, dialled })
    }

    fn fields(&self) -> &impl Fields {
        &self.parts.headers
    }

    fn is_exclusive(&self) -> bool {
        false
    }

    fn is_replayable(&self) -> bool {
        self.body.as_ref().is_none_or(Replay::is_replayable)
    }

    fn give_up(&mut self, _: &Arc<Endpoint>, _: H2Answer) {
        // Dropping the response resets its stream; the connection is everybody's.
    }
}

impl Answer for H2Answer {
    fn status(&self) -> StatusCode {
        self.response.status()
    }

    fn fields(&self) -> &impl Fields {
        // Trailers without a message before them are an answer as good as one of a head alone.
        let trailers = self.first.as_ref().and_then(Frame::trailers_ref);
        trailers.unwrap_or(self.response.headers())
    }

    fn sent_at(&self) -> Instant {
        self.sent_at
    }

    fn dialled(&self) -> bool {
        self.dialled
    }
}

impl H2Call<'_> {
    /// The request for one attempt.
    fn make(
        &self,
        bounds: Bounds,
        now: Instant,
        explained: Option<DecisionId>,
    ) -> Result<Request<RequestBody>, Error> {
        let body = match &self.body {
            None => RequestBody::Empty,
            Some(replay) => match replay.attempt() {
                Some(attempt) => RequestBody::Attempt(attempt),
                None => return Err(Error::Overloaded("request body is too long to repeat")),
            },
        };
        let mut request = Request::new(body);
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.parts.uri.clone();
        *request.version_mut() = version(&self.parts.uri);
        *request.headers_mut() = self.parts.headers.clone();
        let headers = request.headers_mut();
        if bounds.earlier > 0 {
            headers.insert(ATTEMPT, HeaderValue::from(bounds.earlier + 1));
        }
        if bounds.retries > 0 && self.grpc {
            headers.insert(&PREVIOUS_ATTEMPTS, HeaderValue::from(bounds.retries));
        }
        let id = explained.and_then(|id| HeaderValue::try_from(id.to_string()).ok());
        if let Some(id) = id {
            headers.insert(&DECISION_ID_NAME, id);
        }
        if let Some(end) = bounds.deadline.filter(|_| self.grpc_timeout) {
            let left = end.at.saturating_duration_since(now);
            headers.insert(&deadline::GRPC_TIMEOUT, deadline::value(left));
        }
        Ok(request)
    }
}

impl H2Call<'_> {
    /// Waits for a response's head, within all bounds.
    async fn in_time<T>(
        &self,
        sending: impl Future<Output = T>,
        bounds: Bounds,
    ) -> Result<T, NoAnswer> {
        let bounded = bounds.attempt.is_some()
            || bounds.response.is_some()
            || bounds.idle.is_some()
            || bounds.deadline.is_some();
        if !bounded {
            return Ok(sending.await);
        }
        // Boxed: it is large, and most Services have no time-outs.
        let late = Box::pin(self.late(bounds));
        tokio::select! {
            biased;
            answered = sending => Ok(answered),
            late = late => Err(late),
        }
    }

    /// Resolves with the first bound that passes.
    async fn late(&self, bounds: Bounds) -> NoAnswer {
        let response = async {
            let Some(bound) = bounds.response else { return pending().await };
            if let Some(body) = &self.body {
                body.ended().await;
            }
            sleep(bound).await;
            NoAnswer::Error(Error::ResponseTimeout(bound))
        };
        let attempt = async {
            let Some((at, bound)) = bounds.attempt else { return pending().await };
            sleep_until(at).await;
            NoAnswer::Error(Error::ResponseTimeout(bound))
        };
        let request = async {
            let Some(deadline) = bounds.deadline else { return pending().await };
            sleep_until(deadline.at).await;
            deadline.passed()
        };
        let idle = async {
            let (Some(bound), Some(body)) = (bounds.idle, &self.body) else {
                return pending().await;
            };
            tokio::select! {
                biased;
                () = body.ended() => pending().await,
                () = stalled(body, bound) => NoAnswer::BadRequest(Error::ClientIdle(bound)),
            }
        };
        tokio::select! {
            biased;
            late = request => late,
            late = attempt => late,
            late = response => late,
            late = idle => late,
        }
    }
}

impl H2Call<'_> {
    /// Whether it is worth knowing what follows the head: a code that would be retried.
    fn looks_ahead(
        &self,
        response: &Response<Incoming>,
        bounds: Bounds,
        snapshot: &Snapshot,
    ) -> bool {
        let policy = snapshot.retry();
        self.grpc
            && policy.is_some_and(|retry| !retry.grpc.is_empty() && bounds.retries < retry.limit)
            && self.is_replayable()
            && response.status() == StatusCode::OK
            && !response.body().is_end_stream()
            && answer::grpc_status(response.headers()).is_none()
    }
}

/// The first frame of a body, where it comes right behind the head. A server whose call failed before
/// its first message may say so in trailers of their own. Nobody waits for one that is silent: a head by
/// itself can be what the client waits for.
async fn look_ahead(
    endpoint: &Endpoint,
    response: &mut Response<Incoming>,
) -> Result<Option<Frame<Bytes>>, Error> {
    let body = response.body_mut();
    match timeout(LOOK_AHEAD, poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx))).await {
        Ok(Some(Err(error))) => Err(broken_off(endpoint, SendError { error, unsent: None })),
        Ok(Some(Ok(frame))) => Ok(Some(frame)),
        Ok(None) | Err(_) => Ok(None),
    }
}

/// Resolves once a body has not moved for so long.
async fn stalled(body: &Replay, bound: Duration) {
    let mut frames = body.frames();
    loop {
        sleep(bound).await;
        let now = body.frames();
        if now == frames {
            return;
        }
        frames = now;
    }
}

fn broken(endpoint: &Endpoint, failed: &SendError) -> Error {
    let addr = endpoint.addr;
    let sent = if failed.unsent.is_some() || failed.refused() { Sent::No } else { Sent::Maybe };
    match failed.reset().filter(|_| sent == Sent::Maybe) {
        Some(code) => Error::StreamReset { addr, code },
        None => Error::UpstreamReset { addr, detail: detail(&failed.error), sent },
    }
}

/// The same after a head: it ran.
fn broken_off(endpoint: &Endpoint, failed: SendError) -> Error {
    let addr = endpoint.addr;
    match failed.reset() {
        Some(code) => Error::StreamReset { addr, code },
        None => Error::UpstreamReset { addr, detail: detail(&failed.error), sent: Sent::Maybe },
    }
}

fn detail(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
