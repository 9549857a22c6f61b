//! HTTP/2 requests of the application, gRPC among them.

use std::{
    future::{Future, pending, poll_fn},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, request};
use hyper::{
    body::{Body as _, Frame, Incoming},
    upgrade::OnUpgrade,
};
use remora_core::names::headers::ATTEMPT;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    Outbound, Snapshot, Upstream,
    attempt::{Exchange, Facts, Taken},
    books::{self, Books},
    call::{Answer, Bounds, Call, NoAnswer, Via},
    deadline,
    dial::Key,
    done::Done,
    http::Requests,
    mirror,
    routed::{Arrived, Changes, Course},
    snapshot::By,
    verdict,
};
use crate::{
    balance::stats::Outcome,
    discovery::Endpoint,
    error::{Error, Reason, Sent},
    fields::Fields,
    http::{
        answer::is_grpc,
        h2::{
            body::{self, RequestBody, ResponseBody},
            headers::strip_ours,
            pool::{Connection, SendError},
            replay::Replay,
            request::{check, version},
            server::StreamReset,
            upgrade,
        },
    },
    metrics::{Direction, flow::End},
    net::{
        admission::{STREAMS, Stream},
        copy::Carried,
    },
    tls::Alpn,
};

/// Nobody hears it.
const GONE: Error = Error::BadRequest("the client went away");
/// How long trailers may take to follow a head whose call could be retried for them.
const LOOK_AHEAD: Duration = Duration::from_millis(10);

/// Retries that came before, for the server of a gRPC call (gRFC A6).
static PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// The request and what is needed to send it once more.
struct H2Call<'a> {
    outbound: &'a Arc<Outbound>,
    parts: &'a request::Parts,
    body: Option<Replay>,
    grpc: bool,
    grpc_timeout: bool,
}

/// A response, and when its request left.
struct H2Answer {
    response: Response<Incoming>,
    /// What was read ahead of its body.
    first: Option<Frame<Bytes>>,
    connection: Connection,
    bounds: Bounds,
    sent_at: Instant,
}

/// Answers one request: with the upstream's response or reset, or with the proxy's own response that
/// says why there is none.
pub(super) async fn handle(
    requests: Arc<Requests>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody<Done>>, StreamReset> {
    let (grpc, started) = (is_grpc(request.headers()), Instant::now());
    match forward(&requests, request, grpc, started).await {
        Ok(response) => Ok(response),
        Err(Error::StreamReset { code, .. }) => {
            requests.outbound.error(Reason::UpstreamReset);
            Err(code.into())
        }
        Err(error) => {
            let books = Books { upstream: &requests.last(), by: &By::Dialled };
            let response = requests.outbound.failed(books, &error, grpc, started);
            Ok(response.map(ResponseBody::made))
        }
    }
}

async fn forward(
    requests: &Requests,
    mut request: Request<Incoming>,
    grpc: bool,
    started: Instant,
) -> Result<Response<ResponseBody<Done>>, Error> {
    check(&request, requests.outbound.max_header_size).map_err(Error::Refused)?;
    let stream = requests.outbound.admission.stream().ok_or(Error::Overloaded(STREAMS))?;
    let upstream = requests.upstream().await?;
    strip_ours(request.headers_mut());
    let snapshot = upstream.snapshot();
    if snapshot.routes.is_some() {
        // Boxed, since most Services have none.
        let copied = request.method() != Method::CONNECT;
        let arrived = Arrived { started, grpc, copied };
        return Box::pin(routed(requests, request, (&upstream, snapshot), stream, arrived)).await;
    }
    let connect = request.method() == Method::CONNECT;
    let downstream = connect.then(|| hyper::upgrade::on(&mut request));
    let patience = grpc.then(|| deadline::read(request.headers())).flatten();
    let from = (requests.client, started);
    let exchange = Exchange::new(&requests.outbound, (&upstream, snapshot), from, patience);
    let (parts, body) = request.into_parts();
    let body = (!body.is_end_stream()).then(|| Replay::new(body));
    let mut call = H2Call {
        outbound: &requests.outbound,
        parts: &parts,
        body,
        grpc,
        grpc_timeout: patience.is_some(),
    };
    let facts = Facts { method: &parts.method, path: parts.uri.path(), grpc };
    match exchange.run(&mut call, facts).await {
        Ok(taken) => {
            let rest = (call.body.take(), stream);
            Ok(finish(&exchange, taken, facts, rest, (downstream, None)))
        }
        Err(why) => Err(exchange.reset(why.into_error().unwrap_or(GONE))),
    }
}

/// Answers a request of a Service that has routes.
async fn routed(
    requests: &Requests,
    mut request: Request<Incoming>,
    (upstream, snapshot): (&Arc<Upstream>, Snapshot),
    stream: Stream,
    arrived: Arrived,
) -> Result<Response<ResponseBody<Done>>, Error> {
    let routes = snapshot.routes.as_deref().unwrap_or_default();
    let connect = request.method() == Method::CONNECT;
    let downstream = connect.then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    let going = match requests.course((upstream, routes), &mut parts, arrived).await {
        Course::Answer(response) => return Ok(response.map(ResponseBody::made)),
        Course::Go(going) => going,
    };
    let grpc = arrived.grpc;
    let patience = grpc.then(|| deadline::read(&parts.headers)).flatten();
    let from = (requests.client, arrived.started);
    let snapshot = going.snapshot();
    let exchange = Exchange::new(&requests.outbound, (&going.upstream, snapshot), from, patience);
    let body = (!body.is_end_stream()).then(|| Replay::new(body));
    let mut call = H2Call {
        outbound: &requests.outbound,
        parts: &parts,
        body,
        grpc,
        grpc_timeout: patience.is_some(),
    };
    let facts = Facts { method: &parts.method, path: parts.uri.path(), grpc };
    let answered = exchange.run(&mut call, facts).await;
    let changes = &going.changes;
    if !going.copies.is_empty() {
        let body = match &call.body {
            None => Some(None),
            Some(body) => body.copied().map(Some),
        };
        requests.outbound.mirror(changes.route(), going.copies, body, send_copy);
    }
    match answered {
        Ok(taken) => {
            let rest = (call.body.take(), stream);
            Ok(finish(&exchange, taken, facts, rest, (downstream, Some(changes))))
        }
        Err(why) => match exchange.reset(why.into_error().unwrap_or(GONE)) {
            reset @ Error::StreamReset { .. } => Err(reset),
            error => {
                let mut response =
                    requests.outbound.failed(exchange.books(), &error, grpc, exchange.started);
                changes.apply(response.headers_mut());
                Ok(response.map(ResponseBody::made))
            }
        },
    }
}

/// Sends a copy of a request and reads over what comes back; says whether that was a response.
async fn send_copy(
    outbound: Arc<Outbound>,
    upstream: Arc<Upstream>,
    parts: request::Parts,
    body: Option<Replay>,
) -> bool {
    let Some(stream) = outbound.admission.stream() else { return false };
    // Its own, since other copies are made of it too, and one attempt takes the body from another.
    let body = match body.map(|body| body.copied()) {
        Some(None) => return false,
        own => own.flatten(),
    };
    let from = (mirror::NOWHERE, Instant::now());
    let snapshot = mirror::snapshot(&upstream);
    let exchange = Exchange::new(&outbound, (&upstream, snapshot), from, None);
    let grpc = is_grpc(&parts.headers);
    let mut call = H2Call { outbound: &outbound, parts: &parts, body, grpc, grpc_timeout: false };
    let facts = Facts { method: &parts.method, path: parts.uri.path(), grpc };
    let Ok(taken) = exchange.run(&mut call, facts).await else { return false };
    let rest = (call.body.take(), stream);
    let mut body = finish(&exchange, taken, facts, rest, (None, None)).into_body();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if frame.is_err() {
            return false;
        }
    }
    true
}

/// Hands the response on; its body's end closes the books.
fn finish(
    exchange: &Exchange<'_>,
    taken: Taken<H2Answer>,
    facts: Facts<'_>,
    (request, stream): (Option<Replay>, Stream),
    (downstream, changes): (Option<OnUpgrade>, Option<&Changes>),
) -> Response<ResponseBody<Done>> {
    let Taken { answer, mut guard, permit, mark, trace, .. } = taken;
    let decided = verdict::outcome(&answer, facts.grpc);
    let given = books::promised(answer.status(), books::rpc(&answer, facts.grpc), trace);
    let H2Answer { mut response, first, connection, bounds, sent_at } = answer;
    // Only a proxy of ours may say what our headers say.
    let proxy = guard.endpoint().identity.is_some();
    if !proxy {
        strip_ours(response.headers_mut());
    }
    if let Some(mark) = mark {
        mark.write(response.headers_mut());
    }
    if let Some(changes) = changes {
        changes.apply(response.headers_mut());
    }
    exchange.begun(&mut guard, sent_at, decided);
    let (end, idle) = (bounds.end(), bounds.idle);
    let mut done = Done {
        outbound: Arc::clone(exchange.outbound),
        upstream: Arc::clone(exchange.upstream),
        policy: Arc::clone(&exchange.snapshot.policy),
        _connection: connection,
        _permit: permit,
        _stream: stream,
        guard,
        by: exchange.snapshot.by.clone(),
        started: exchange.started,
        sent_at,
        given,
        rtt: sent_at.elapsed(),
        undecided: decided.is_none(),
        impatient: end.is_some_and(|deadline| deadline.by_client),
    };
    if let Some(downstream) = downstream.filter(|_| response.status().is_success()) {
        exchange.report(&mut done.guard, sent_at, Outcome::Success);
        done.close(Instant::now(), End::Whole);
        let upstream = hyper::upgrade::on(&mut response);
        tunnel(downstream, upstream, idle, done);
        return response.map(|_| ResponseBody::made(Bytes::new()));
    }
    let bounds = body::Bounds::new(end.map(|deadline| deadline.at), idle, request);
    let from = body::Origin { grpc: facts.grpc, proxy };
    response.map(|body| ResponseBody::upstream((first, body), done, from).bounded(bounds))
}

/// Carries the bytes of a `CONNECT` on a task of its own. The request is over when they are.
fn tunnel(down: OnUpgrade, up: OnUpgrade, idle: Option<Duration>, done: Done) {
    let drain = done.outbound.drain.clone();
    tokio::spawn(drain.track(async move {
        let mut carried = Carried::default();
        if let Err(broken) = upgrade::carry(down, up, idle, &mut carried).await {
            done.outbound.cut(&broken);
        }
        let metrics = &done.outbound.metrics;
        metrics.carried(Direction::Outbound, carried.a_to_b, carried.b_to_a);
        drop(done);
    }));
}

impl Call for H2Call<'_> {
    type Answer = H2Answer;

    async fn send(&mut self, endpoint: &Arc<Endpoint>, via: Via<'_>) -> Result<H2Answer, NoAnswer> {
        let bounds = via.bounds;
        let outbound = self.outbound;
        let key = Key(Arc::clone(endpoint));
        let mut connection = match outbound.shared.get(&key) {
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
        let request = self.make(bounds, sent_at)?;
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
        Ok(H2Answer { response, first, connection, bounds, sent_at })
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
        *request.version_mut() = version(&self.parts.uri);
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
            && verdict::grpc_status(response.headers()).is_none()
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
