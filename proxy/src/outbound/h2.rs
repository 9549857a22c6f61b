//! HTTP/2 requests of the application, gRPC among them.

use std::{
    future::{Future, pending},
    sync::Arc,
    time::Duration,
};

use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, request};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};
use remora_core::names::headers::ATTEMPT;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    attempt::{Answer, Bounds, Call, Exchange, Facts, NoAnswer, Taken, Via},
    deadline,
    dial::Key,
    done::Done,
    http::Requests,
    verdict,
};
use crate::{
    discovery::Endpoint,
    error::{Error, Sent},
    fields::Fields,
    http::{
        answer::is_grpc,
        h2::{
            body::{self, RequestBody, ResponseBody},
            headers::strip_ours,
            pool::{Connection, SendError},
            replay::Replay,
            upgrade,
        },
    },
    net::admission::{STREAMS, Stream},
    tls::Alpn,
};

/// Retries that came before, for the server of a gRPC call (gRFC A6).
static PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// The request and what is needed to send it once more.
struct H2Call<'a> {
    requests: &'a Requests,
    parts: &'a request::Parts,
    body: Option<Replay>,
    grpc: bool,
    grpc_timeout: bool,
}

/// A response, and when its request left.
struct H2Answer {
    response: Response<Incoming>,
    connection: Connection,
    sent_at: Instant,
}

/// Answers one request: with the upstream's response, or with the proxy's own that says why not.
pub(super) async fn handle(
    requests: Arc<Requests>,
    request: Request<Incoming>,
) -> Response<ResponseBody<Done>> {
    let grpc = is_grpc(request.headers());
    match forward(&requests, request, grpc).await {
        Ok(response) => response,
        Err(error) => requests.failed(&error, grpc).map(ResponseBody::made),
    }
}

async fn forward(
    requests: &Requests,
    mut request: Request<Incoming>,
    grpc: bool,
) -> Result<Response<ResponseBody<Done>>, Error> {
    let started = Instant::now();
    check(&request)?;
    let stream = requests.outbound.admission.stream().ok_or(Error::Overloaded(STREAMS))?;
    let upstream = requests.upstream().await?;
    strip_ours(request.headers_mut());
    let connect = request.method() == Method::CONNECT;
    let downstream = connect.then(|| hyper::upgrade::on(&mut request));
    let patience = grpc.then(|| deadline::read(request.headers())).flatten();
    let exchange =
        Exchange::new(&requests.outbound, &upstream, (requests.client, started), patience);
    let (parts, body) = request.into_parts();
    let body = (!body.is_end_stream()).then(|| Replay::new(body));
    let mut call = H2Call { requests, parts: &parts, body, grpc, grpc_timeout: patience.is_some() };
    let facts = Facts { method: &parts.method, path: parts.uri.path(), grpc };
    match exchange.run(&mut call, facts).await {
        Ok(taken) => Ok(finish(&exchange, taken, facts, (call.body.take(), stream), downstream)),
        Err(why) => Err(why.into_error().unwrap_or(Error::BadRequest("the client went away"))),
    }
}

/// RFC 9110 §9.3.6: CONNECT names a host and a port.
fn check(request: &Request<Incoming>) -> Result<(), Error> {
    let authority = request.uri().authority();
    if request.method() == Method::CONNECT && authority.is_none_or(|a| a.port_u16().is_none()) {
        return Err(Error::BadRequest("CONNECT wants host:port"));
    }
    Ok(())
}

/// Hands the response on; its body's end closes the books.
fn finish(
    exchange: &Exchange<'_>,
    taken: Taken<H2Answer>,
    facts: Facts<'_>,
    (request, stream): (Option<Replay>, Stream),
    downstream: Option<OnUpgrade>,
) -> Response<ResponseBody<Done>> {
    let Taken { answer, mut guard, permit, cookie, .. } = taken;
    let decided = verdict::outcome(&answer, facts.grpc);
    let H2Answer { mut response, connection, sent_at } = answer;
    exchange.upstream.traffic().responded(response.status());
    if guard.endpoint().identity.is_none() {
        // Only a proxy of ours may say what our headers say.
        strip_ours(response.headers_mut());
    }
    if let Some(cookie) = cookie {
        response.headers_mut().append(http::header::SET_COOKIE, cookie);
    }
    if let Some(outcome) = decided {
        exchange.report(&mut guard, sent_at, outcome);
    }
    if let Some(downstream) = downstream.filter(|_| response.status().is_success()) {
        let upstream_side = hyper::upgrade::on(&mut response);
        upgrade::carry(downstream, upstream_side, &exchange.outbound.drain);
    }
    let done = Done {
        outbound: Arc::clone(exchange.outbound),
        upstream: Arc::clone(exchange.upstream),
        policy: Arc::clone(&exchange.snapshot.policy),
        _connection: connection,
        _permit: permit,
        _stream: stream,
        guard,
        started: exchange.started,
        rtt: sent_at.elapsed(),
        undecided: decided.is_none(),
    };
    let deadline = exchange.deadline.map(|deadline| deadline.at);
    let bounds = body::Bounds::new(deadline, exchange.snapshot.policy.timeouts.idle, request);
    response.map(|body| ResponseBody::upstream(body, done, facts.grpc).bounded(bounds))
}

impl Call for H2Call<'_> {
    type Answer = H2Answer;

    async fn send(&mut self, endpoint: &Arc<Endpoint>, via: Via<'_>) -> Result<H2Answer, NoAnswer> {
        let bounds = via.bounds;
        let outbound = &self.requests.outbound;
        let key = Key(Arc::clone(endpoint));
        let mut connection = match outbound.shared.get(&key) {
            Some(connection) => connection,
            None => {
                let within = bounds.connect_within(Instant::now());
                let places = (via.places, via.snapshot);
                let dial = || outbound.dial(endpoint, Alpn::H2, places, within);
                let open = outbound.shared.open(&key, dial).await;
                open.map_err(|error| bounds.dial_failed(Instant::now(), error))?
            }
        };
        let sent_at = Instant::now();
        let request = self.make(bounds, sent_at)?;
        let sent = self.in_time(connection.send(request), bounds).await?;
        let response = sent.map_err(|failed| broken(endpoint, &failed))?;
        match verdict::not_delivered(endpoint, response.headers()) {
            Some(error) => Err(error.into()),
            None => Ok(H2Answer { response, connection, sent_at }),
        }
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
        self.response.headers()
    }

    fn sent_at(&self) -> Instant {
        self.sent_at
    }
}

impl H2Call<'_> {
    /// The request for one attempt.
    fn make(&self, bounds: Bounds, now: Instant) -> Result<Request<RequestBody>, Error> {
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
        *request.version_mut() = self.parts.version;
        *request.headers_mut() = self.parts.headers.clone();
        let headers = request.headers_mut();
        if bounds.earlier > 0 {
            headers.insert(ATTEMPT, HeaderValue::from(bounds.earlier + 1));
        }
        if bounds.retries > 0 && self.grpc {
            headers.insert(&PREVIOUS_ATTEMPTS, HeaderValue::from(bounds.retries));
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
    let sent = if failed.unsent.is_some() || failed.refused() { Sent::No } else { Sent::Maybe };
    Error::UpstreamReset { addr: endpoint.addr, detail: detail(&failed.error), sent }
}

fn detail(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
