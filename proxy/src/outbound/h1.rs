//! HTTP/1 requests of the application. The whole exchange runs on the task of its connection.

use std::{future::poll_fn, sync::Arc};

use bytes::Bytes;
use http::StatusCode;
use remora_core::names::headers::{ATTEMPT, DECISION_ID};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};

use super::{
    Outbound, Snapshot, Upstream,
    attempt::{Exchange, Facts, Taken},
    books,
    call::{Answer, Bounds, Call, NoAnswer, Via},
    dial::{Connected, Key},
    http::Requests,
    mirror::{self, Nobody},
    record::Told,
    routed::{Arrived, Changes, Course},
    snapshot::Mark,
    verdict,
};
use crate::{
    balance::stats::Outcome,
    discovery::Endpoint,
    error::{Error, Sent},
    fields::{Fields, FieldsMut},
    http::{
        answer::is_grpc,
        h1::{
            exchange::{self, Ending, Late, Patience},
            request::RequestHead,
            response::ResponseHead,
            server::{self, After, Handler},
            transfer::Transfer,
            wire::Wire,
        },
    },
    metrics::{
        Direction,
        flow::{End, Finished},
    },
    net::{connect::Reset, copy::Carried},
    sight::{DECISION_ID_NAME, id::DecisionId, story::Story},
    tls::Alpn,
};

/// The request and the client's side of it.
struct H1Call<'a, C> {
    outbound: &'a Arc<Outbound>,
    client: &'a mut Wire<C>,
    request: &'a RequestHead,
    upload: Transfer,
    /// What a route still does to the response.
    changes: Option<&'a Changes>,
}

/// A response's head, and the connection that its body comes from.
struct H1Answer {
    wire: Wire<Connected>,
    head: ResponseHead,
    bounds: Bounds,
    sent_at: Instant,
    dialled: bool,
}

impl Handler<TcpStream> for Requests {
    async fn handle(&self, client: &mut Wire<TcpStream>, mut request: RequestHead) -> After {
        let mut story = self.begin(&request.fields, Instant::now());
        request.fields.strip_ours();
        let grpc = is_grpc(&request.fields);
        let upload = exchange::upload(&request);
        let upstream = match self.upstream().await {
            Ok(upstream) => upstream,
            Err(error) => {
                let told = Told { head: &request, grpc, client: self.client, story: &story };
                let response = self.outbound.failed((&self.last(), None), told, &error);
                let draining = self.outbound.drain.is_draining();
                return server::answer(client, &request, &upload, &response, draining).await;
            }
        };
        let snapshot = upstream.snapshot();
        if snapshot.routes.is_some() {
            // Boxed, since most Services have none.
            let arrived = Arrived { grpc, copied: !request.leaves_http() };
            let sides = (client, request, upload);
            return Box::pin(self.routed(sides, (&upstream, snapshot), arrived, story)).await;
        }
        let from = (self.client, story.started);
        let exchange = Exchange::new(&self.outbound, (&upstream, snapshot), from, None);
        let facts = Facts { method: &request.method, grpc, head: &request };
        let mut call = H1Call::new(&exchange, (client, &request), upload, None);
        match exchange.run(&mut call, facts, &mut story).await {
            Ok(taken) => call.finish(&exchange, taken, facts, story).await,
            Err(why) => call.give(&exchange, why, facts, &story).await,
        }
    }

    fn refused(&self, error: &Error) {
        self.outbound.error(error.reason());
        tracing::debug!(%error, "request refused");
    }
}

impl Requests {
    /// Answers a request of a Service that has routes.
    async fn routed(
        &self,
        (client, mut request, upload): (&mut Wire<TcpStream>, RequestHead, Transfer),
        (upstream, snapshot): (&Arc<Upstream>, Snapshot),
        arrived: Arrived,
        mut story: Story,
    ) -> After {
        let routes = snapshot.routes.as_deref().unwrap_or_default();
        // It may take long on purpose; meanwhile the client may go.
        let course = tokio::select! {
            biased;
            course = self.course((upstream, routes), &mut request, arrived, &story) => course,
            () = poll_fn(|cx| client.poll_gone(cx)) => {
                let told = Told { head: &request, grpc: arrived.grpc, client: self.client, story: &story };
                self.outbound.left((upstream, &snapshot), told);
                return After::Break;
            }
        };
        let going = match course {
            Course::Go(going) => going,
            Course::Answer(response) => {
                let draining = self.outbound.drain.is_draining();
                return server::answer(client, &request, &upload, &response, draining).await;
            }
        };
        let (upstream, changes) = (&going.upstream, &going.changes);
        let from = (self.client, story.started);
        let exchange = Exchange::new(&self.outbound, (upstream, going.snapshot()), from, None);
        let facts = Facts { method: &request.method, grpc: arrived.grpc, head: &request };
        let mut call = H1Call::new(&exchange, (client, &request), upload, Some(changes));
        let answered = exchange.run(&mut call, facts, &mut story).await;
        if !going.copies.is_empty() {
            let body = call.upload.kept().filter(|_| call.upload.is_done());
            let body = body.map(Bytes::copy_from_slice);
            self.outbound.mirror(changes.route(), going.copies, body, send_copy);
        }
        match answered {
            Ok(taken) => call.finish(&exchange, taken, facts, story).await,
            Err(why) => call.give(&exchange, why, facts, &story).await,
        }
    }
}

/// Sends a copy of a request and reads over what comes back; says whether that was a response.
async fn send_copy(
    outbound: Arc<Outbound>,
    upstream: Arc<Upstream>,
    mut request: RequestHead,
    body: Bytes,
) -> bool {
    let started = Instant::now();
    request.copied(&body);
    let mut client = Wire::new(Nobody, body.to_vec());
    let from = (mirror::NOWHERE, started);
    let snapshot = mirror::snapshot(&upstream);
    let exchange = Exchange::new(&outbound, (&upstream, snapshot), from, None);
    let grpc = is_grpc(&request.fields);
    let facts = Facts { method: &request.method, grpc, head: &request };
    let mut story = Story::new(started, &request.fields);
    let upload = exchange::upload(&request);
    let mut call = H1Call::new(&exchange, (&mut client, &request), upload, None);
    match exchange.run(&mut call, facts, &mut story).await {
        Ok(taken) => call.finish(&exchange, taken, facts, story).await != After::Break,
        Err(_) => false,
    }
}

impl From<Bounds> for Patience {
    fn from(bounds: Bounds) -> Self {
        Self {
            attempt: bounds.attempt.map(|(at, _)| at),
            response: bounds.response,
            idle: bounds.idle,
            request: bounds.deadline.map(|deadline| deadline.at),
        }
    }
}

impl<C: AsyncRead + AsyncWrite + Reset + Unpin + Send + Sync> Call for H1Call<'_, C> {
    type Answer = H1Answer;

    async fn send(&mut self, endpoint: &Arc<Endpoint>, via: Via<'_>) -> Result<H1Answer, NoAnswer> {
        let bounds = via.bounds;
        let outbound = self.outbound;
        let key = Key(Arc::clone(endpoint));
        let (mut wire, idle) = match outbound.idle.take(&key, Instant::now()) {
            Some((wire, idle)) => (wire, Some(idle)),
            None => (Wire::new(self.dial(endpoint, via).await?, Vec::new()), None),
        };
        let sent_at = Instant::now();
        let patience = Patience::from(bounds);
        let dialled = idle.is_none();
        let extra = extra(bounds, via.explained.filter(|_| endpoint.identity.is_some()));
        let sides = (&mut *self.client, &mut wire);
        let request = (self.request, extra.as_bytes());
        match exchange::ask(sides, request, &mut self.upload, patience).await {
            Ok(head) => match verdict::not_delivered(endpoint, &head.fields) {
                Some(error) => Err(error.into()),
                None => Ok(H1Answer { wire, head, bounds, sent_at, dialled }),
            },
            Err(failed) => {
                // Without a proxy on the other side an orderly end would say that we listen on.
                wire.reset();
                if let (exchange::NoAnswer::Broken { .. }, Some(idle)) = (&failed, idle) {
                    outbound.idle.broke(&key, idle, Instant::now());
                }
                Err(no_answer(failed, endpoint, bounds))
            }
        }
    }

    fn fields(&self) -> &impl Fields {
        &self.request.fields
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    fn is_replayable(&self) -> bool {
        self.upload.kept().is_some()
    }

    fn give_up(&mut self, endpoint: &Arc<Endpoint>, answer: H1Answer) {
        let H1Answer { mut wire, head, .. } = answer;
        if head.is_at_hand(&wire) && self.upload.is_done() {
            wire.discard_input();
            let key = Key(Arc::clone(endpoint));
            let idle = &self.outbound.idle;
            idle.give_back(&key, wire, head.kept_for, Instant::now());
        }
    }
}

impl Answer for H1Answer {
    fn status(&self) -> StatusCode {
        self.head.status
    }

    fn fields(&self) -> &impl Fields {
        &self.head.fields
    }

    fn sent_at(&self) -> Instant {
        self.sent_at
    }

    fn dialled(&self) -> bool {
        self.dialled
    }
}

impl<'a, C> H1Call<'a, C> {
    fn new(
        exchange: &Exchange<'a>,
        (client, request): (&'a mut Wire<C>, &'a RequestHead),
        mut upload: Transfer,
        changes: Option<&'a Changes>,
    ) -> Self {
        upload.counted_in(exchange.upstream.bodies());
        Self { outbound: exchange.outbound, client, request, upload, changes }
    }
}

impl<C: AsyncRead + AsyncWrite + Reset + Unpin + Send + Sync> H1Call<'_, C> {
    /// Boxed, since the future is large and rarely needed.
    async fn dial(&self, endpoint: &Endpoint, via: Via<'_>) -> Result<Connected, NoAnswer> {
        let within = via.bounds.connect_within(Instant::now());
        let places = (via.places, via.snapshot, via.connections);
        let dial = Box::pin(self.outbound.dial(endpoint, Alpn::H1, places, within));
        dial.await.map_err(|error| via.bounds.dial_failed(Instant::now(), error))
    }

    /// Gives the response to the client and closes the books.
    async fn finish(
        mut self,
        exchange: &Exchange<'_>,
        taken: Taken<H1Answer>,
        facts: Facts<'_>,
        mut story: Story,
    ) -> After {
        // The permit lives to the end of this function.
        let Taken { answer, mut guard, places, permit: _permit, mark } = taken;
        let outcome = verdict::outcome(&answer, facts.grpc);
        let rpc = books::h1_rpc(&answer, facts.grpc);
        let given = books::promised(answer.status(), rpc, story.sampled());
        let H1Answer { mut wire, mut head, bounds, sent_at, .. } = answer;
        if given.failed() {
            self.outbound.name(&mut story, (guard.endpoint(), &head.fields));
        }
        self.edit(&mut head, guard.endpoint(), (mark, story.explained));
        exchange.begun(&mut guard, sent_at, outcome);
        let outbound = self.outbound;
        let sides = (&mut *self.client, &mut wire);
        if head.leaves_http {
            exchange.report(&mut guard, sent_at, Outcome::Success);
            exchange.over((facts, &story), (&guard, sent_at), &given);
            let mut carried = Carried::default();
            let what = (self.request, head);
            if let Err(broken) = exchange::tunnel(sides, what, &mut carried, bounds.idle).await {
                outbound.cut(&broken);
            }
            outbound.metrics.carried(Direction::Outbound, carried.a_to_b, carried.b_to_a);
            return After::Break;
        }
        let (last, kept_for) = (outbound.drain.is_draining(), head.kept_for);
        let request = self.request;
        let upload = &mut self.upload;
        let bounds = Bounds { deadline: bounds.end(), ..bounds };
        match exchange::answer(sides, request, head, upload, bounds.into(), last).await {
            Ending::Complete { client, upstream: reusable } => {
                exchange.report(&mut guard, sent_at, Outcome::Success);
                let now = exchange.over((facts, &story), (&guard, sent_at), &given);
                if reusable && !places.starved() {
                    let key = Key(Arc::clone(guard.endpoint()));
                    outbound.idle.give_back(&key, wire, kept_for, now);
                }
                match client {
                    true => After::Next,
                    false if self.upload.is_done() => After::Close,
                    false => After::Refuse,
                }
            }
            Ending::ClientGone => {
                wire.reset();
                let given = given.ended(End::Cancelled);
                exchange.over((facts, &story), (&guard, sent_at), &given);
                After::Break
            }
            Ending::Broken { error, begun } => {
                let error = Error::UpstreamReset {
                    addr: guard.endpoint().addr,
                    detail: error.to_string(),
                    sent: Sent::Yes,
                };
                exchange.report(&mut guard, sent_at, verdict::failure(&error));
                let given = given.ended(End::Broken);
                outbound.tried(guard.endpoint(), &given, sent_at);
                let begun = begun.then_some(&given);
                self.broke_off(exchange, (facts, &story), error, begun).await
            }
            Ending::Late { late, begun } => {
                wire.reset();
                let why = too_late(late, bounds);
                exchange.report(&mut guard, sent_at, why.outcome());
                let given = given.ended(books::broken(why.outcome()));
                outbound.tried(guard.endpoint(), &given, sent_at);
                let begun = begun.then_some(&given);
                let Some(error) = why.into_error() else { return After::Break };
                self.broke_off(exchange, (facts, &story), error, begun).await
            }
        }
    }

    /// Makes a response's head the one that the client gets.
    fn edit(
        &self,
        head: &mut ResponseHead,
        endpoint: &Endpoint,
        (mark, id): (Option<Mark>, Option<DecisionId>),
    ) {
        if endpoint.identity.is_none() {
            // Only a proxy of ours may say what our headers say.
            head.fields.strip_ours();
        }
        if let Some(id) = id {
            head.fields.remove(&DECISION_ID_NAME);
            head.fields.add(DECISION_ID, id.to_string().as_bytes());
        }
        if let Some(mark) = mark {
            mark.write(&mut head.fields);
        }
        if let Some(changes) = self.changes {
            changes.apply(&mut head.fields);
        }
    }

    /// A response that was promised did not come to its end; `begun`: the client has a part of it.
    async fn broke_off(
        self,
        exchange: &Exchange<'_>,
        (facts, story): (Facts<'_>, &Story),
        error: Error,
        begun: Option<&Finished>,
    ) -> After {
        if let Some(given) = begun {
            exchange.broke_off((facts, story), given, &error);
            return After::Break;
        }
        self.give(exchange, error.into(), facts, story).await
    }

    /// Gives the client an answer of ours in the place of a response.
    async fn give(
        self,
        exchange: &Exchange<'_>,
        why: NoAnswer,
        facts: Facts<'_>,
        story: &Story,
    ) -> After {
        let Self { outbound, client, request, upload, changes, .. } = self;
        let Some(error) = why.into_error() else { return After::Break };
        let mut response = exchange.failed(facts, story, &error);
        if let Some(changes) = changes {
            changes.apply(response.headers_mut());
        }
        let draining = outbound.drain.is_draining();
        server::answer(client, request, &upload, &response, draining).await
    }
}

/// Lines that go with the fields of a request.
fn extra(bounds: Bounds, explained: Option<DecisionId>) -> String {
    let mut extra = String::new();
    if bounds.earlier > 0 {
        extra = format!("{ATTEMPT}: {}\r\n", bounds.earlier + 1);
    }
    if let Some(id) = explained {
        extra += &format!("{DECISION_ID}: {id}\r\n");
    }
    extra
}

fn no_answer(failed: exchange::NoAnswer, endpoint: &Endpoint, bounds: Bounds) -> NoAnswer {
    let addr = endpoint.addr;
    match failed {
        exchange::NoAnswer::ClientGone => NoAnswer::ClientGone,
        exchange::NoAnswer::BadBody(bad) => NoAnswer::BadRequest(Error::BadRequest(bad.0)),
        exchange::NoAnswer::Broken { error, sent } => {
            let sent = if sent { Sent::Maybe } else { Sent::No };
            Error::UpstreamReset { addr, detail: error.to_string(), sent }.into()
        }
        exchange::NoAnswer::Bad(bad) => Error::BadResponse { addr, problem: bad.0 }.into(),
        exchange::NoAnswer::Late(late) => too_late(late, bounds),
    }
}

fn too_late(late: Late, bounds: Bounds) -> NoAnswer {
    let or_zero = Option::unwrap_or_default;
    match late {
        Late::Attempt => Error::ResponseTimeout(or_zero(bounds.attempt.map(|(_, b)| b))).into(),
        Late::Response => Error::ResponseTimeout(or_zero(bounds.response)).into(),
        Late::UpstreamIdle => Error::UpstreamIdle(or_zero(bounds.idle)).into(),
        Late::ClientIdle => NoAnswer::BadRequest(Error::ClientIdle(or_zero(bounds.idle))),
        Late::Request => match bounds.deadline {
            Some(deadline) => deadline.passed(),
            None => Error::RequestTimeout(std::time::Duration::ZERO).into(),
        },
    }
}
