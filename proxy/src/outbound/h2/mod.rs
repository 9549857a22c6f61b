//! HTTP/2 requests of the application, gRPC among them.

mod call;

use std::{future::poll_fn, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, request};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};
use tokio::time::Instant;

use self::call::{H2Answer, H2Call};
use super::{
    Outbound, Snapshot, Upstream,
    attempt::{Exchange, Facts, Taken},
    books,
    call::{Answer, NoAnswer},
    deadline,
    done::Done,
    http::Requests,
    mirror,
    record::Told,
    routed::{Arrived, Changes, Course},
    verdict,
};
use crate::{
    balance::stats::Outcome,
    error::Error,
    http::{
        answer::is_grpc,
        h2::{
            body::{self, ResponseBody},
            headers::strip_ours,
            replay::Replay,
            request::check,
            server::StreamReset,
            upgrade,
        },
    },
    metrics::Direction,
    net::{
        admission::{STREAMS, Stream},
        copy::Carried,
    },
    sight::story::Story,
};

/// Nobody hears it.
const GONE: Error = Error::BadRequest("the client went away");

/// Answers one request: with the upstream's response or reset, or with the proxy's own response that
/// says why there is none.
pub(super) async fn handle(
    requests: Arc<Requests>,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody<Box<Done>>>, StreamReset> {
    let outbound = &requests.outbound;
    let mut story = requests.begin(request.headers(), Instant::now());
    let grpc = is_grpc(request.headers());
    let checked = check(&request, outbound.max_header_size).map_err(Error::Refused);
    let connect = request.method() == Method::CONNECT;
    let downstream = connect.then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    let body = (!body.is_end_stream()).then(|| Replay::new(body));
    let (stream, upstream) = match begin(&requests, checked).await {
        Ok(begun) => begun,
        Err(error) => {
            let told = Told { head: &parts, grpc, client: requests.client, story: &story };
            let response = outbound.failed((&requests.last(), None), told, &error);
            return Ok(response.map(ResponseBody::made));
        }
    };
    strip_ours(&mut parts.headers);
    let snapshot = upstream.snapshot();
    if snapshot.routes.is_some() {
        // Boxed, since most Services have none.
        let arrived = Arrived { grpc, copied: !connect };
        let (request, upstream) = ((parts, body, downstream), (&upstream, snapshot));
        return Box::pin(routed(&requests, request, upstream, (stream, story), arrived)).await;
    }
    let patience = grpc.then(|| deadline::read(&parts.headers)).flatten();
    let from = (requests.client, story.started);
    let exchange = Exchange::new(outbound, (&upstream, snapshot), from, patience);
    let mut call = H2Call::new(&exchange, &parts, body, (grpc, patience.is_some()));
    let facts = Facts { method: &parts.method, grpc, head: &parts };
    match exchange.run(&mut call, facts, &mut story).await {
        Ok(taken) => {
            let rest = (call.body.take(), stream);
            let request = Head { head: (parts.method, parts.uri), grpc, story };
            Ok(finish(exchange, taken, request, rest, (downstream, None)))
        }
        Err(why) => unanswered(&exchange, why, (facts, &story), None),
    }
}

/// A place for the request, and whom it is for.
async fn begin(
    requests: &Requests,
    checked: Result<(), Error>,
) -> Result<(Stream, Arc<Upstream>), Error> {
    checked?;
    let stream = requests.outbound.admission.stream().ok_or(Error::Overloaded(STREAMS))?;
    Ok((stream, requests.upstream().await?))
}

/// Answers a request of a Service that has routes.
async fn routed(
    requests: &Requests,
    (mut parts, body, downstream): (request::Parts, Option<Replay>, Option<OnUpgrade>),
    (upstream, snapshot): (&Arc<Upstream>, Snapshot),
    (stream, mut story): (Stream, Story),
    arrived: Arrived,
) -> Result<Response<ResponseBody<Box<Done>>>, StreamReset> {
    let routes = snapshot.routes.as_deref().unwrap_or_default();
    let going = match requests.course((upstream, routes), &mut parts, arrived, &story).await {
        Course::Answer(response) => return Ok(response.map(ResponseBody::made)),
        Course::Go(going) => going,
    };
    let (grpc, outbound) = (arrived.grpc, &requests.outbound);
    let patience = grpc.then(|| deadline::read(&parts.headers)).flatten();
    let from = (requests.client, story.started);
    let snapshot = going.snapshot();
    let exchange = Exchange::new(outbound, (&going.upstream, snapshot), from, patience);
    let mut call = H2Call::new(&exchange, &parts, body, (grpc, patience.is_some()));
    let facts = Facts { method: &parts.method, grpc, head: &parts };
    let answered = exchange.run(&mut call, facts, &mut story).await;
    let changes = &going.changes;
    if !going.copies.is_empty() {
        let body = match &call.body {
            None => Some(None),
            Some(body) => body.copied().map(Some),
        };
        outbound.mirror(changes.route(), going.copies, body, send_copy);
    }
    match answered {
        Ok(taken) => {
            let rest = (call.body.take(), stream);
            let request = Head { head: (parts.method, parts.uri), grpc, story };
            Ok(finish(exchange, taken, request, rest, (downstream, Some(changes))))
        }
        Err(why) => unanswered(&exchange, why, (facts, &story), Some(changes)),
    }
}

/// Gives the client a reset or an answer of ours in the place of a response.
fn unanswered(
    exchange: &Exchange<'_>,
    why: NoAnswer,
    (facts, story): (Facts<'_>, &Story),
    changes: Option<&Changes>,
) -> Result<Response<ResponseBody<Box<Done>>>, StreamReset> {
    let error = why.into_error().unwrap_or(GONE);
    if let Error::StreamReset { code, .. } = error {
        exchange.reset(facts, story, &error);
        return Err(code.into());
    }
    let mut response = exchange.failed(facts, story, &error);
    if let Some(changes) = changes {
        changes.apply(response.headers_mut());
    }
    Ok(response.map(ResponseBody::made))
}

/// What is left of a request once it is answered.
pub(super) struct Head {
    pub(super) head: (Method, http::Uri),
    pub(super) grpc: bool,
    pub(super) story: Story,
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
    let mut story = Story::new(Instant::now(), &parts.headers);
    let from = (mirror::NOWHERE, story.started);
    let snapshot = mirror::snapshot(&upstream);
    let exchange = Exchange::new(&outbound, (&upstream, snapshot), from, None);
    let grpc = is_grpc(&parts.headers);
    let mut call = H2Call::new(&exchange, &parts, body, (grpc, false));
    let facts = Facts { method: &parts.method, grpc, head: &parts };
    let Ok(taken) = exchange.run(&mut call, facts, &mut story).await else { return false };
    let rest = (call.body.take(), stream);
    let request = Head { head: (parts.method, parts.uri), grpc, story };
    let mut body = finish(exchange, taken, request, rest, (None, None)).into_body();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if frame.is_err() {
            return false;
        }
    }
    true
}

/// Hands the response on; its body's end closes the books.
fn finish(
    exchange: Exchange<'_>,
    taken: Taken<H2Answer>,
    mut request: Head,
    (upload, stream): (Option<Replay>, Stream),
    (downstream, changes): (Option<OnUpgrade>, Option<&Changes>),
) -> Response<ResponseBody<Box<Done>>> {
    let Taken { answer, mut guard, permit, mark, .. } = taken;
    let decided = verdict::outcome(&answer, request.grpc);
    let rpc = books::rpc(&answer, request.grpc);
    let given = books::promised(answer.status(), rpc, request.story.sampled());
    let H2Answer { mut response, first, connection, bounds, sent_at, .. } = answer;
    if given.failed() {
        exchange.outbound.name(&mut request.story, (guard.endpoint(), response.headers()));
    }
    // Only a proxy of ours may say what our headers say.
    let proxy = guard.endpoint().identity.is_some();
    if !proxy {
        strip_ours(response.headers_mut());
    }
    if let Some(id) = request.story.explained {
        id.write(response.headers_mut());
    }
    if let Some(mark) = mark {
        mark.write(response.headers_mut());
    }
    if let Some(changes) = changes {
        changes.apply(response.headers_mut());
    }
    exchange.begun(&mut guard, sent_at, decided);
    let (end, idle) = (bounds.end(), bounds.idle);
    let from = body::Origin { grpc: request.grpc, proxy };
    let is_tunnel = downstream.is_some() && response.status().is_success();
    if is_tunnel {
        exchange.report(&mut guard, sent_at, Outcome::Success);
    }
    let done = Box::new(Done {
        outbound: Arc::clone(exchange.outbound),
        upstream: Arc::clone(exchange.upstream),
        client: exchange.client,
        request,
        given,
        sent_at,
        snapshot: exchange.snapshot,
        _connection: connection,
        _permit: permit,
        _stream: stream,
        guard,
        rtt: sent_at.elapsed(),
        undecided: decided.is_none(),
        deadline: end,
    });
    if let Some(downstream) = downstream.filter(|_| is_tunnel) {
        done.over(Instant::now(), &given);
        let upstream = hyper::upgrade::on(&mut response);
        tunnel(downstream, upstream, idle, done);
        return response.map(|_| ResponseBody::made(Bytes::new()));
    }
    let bounds = body::Bounds::new(end.map(|deadline| deadline.at), idle, upload);
    let counted = Arc::clone(exchange.upstream.bodies());
    response
        .map(|body| ResponseBody::upstream((first, body), done, (from, counted)).bounded(bounds))
}

/// Carries the bytes of a `CONNECT` on a task of its own. The request is over when they are.
fn tunnel(down: OnUpgrade, up: OnUpgrade, idle: Option<Duration>, done: Box<Done>) {
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
