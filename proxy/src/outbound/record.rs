//! What is told of a request to the application's upstreams, once it is over or about to be answered
//! by the proxy.

use std::net::IpAddr;

use bytes::Bytes;
use http::Response;
use tokio::time::Instant;

use super::{
    Outbound, Snapshot, Upstream,
    attempt::{Exchange, Facts},
    books::{self, Books},
    http::Requests,
    snapshot::By,
};
use crate::{
    balance::stats::InFlight,
    discovery::Endpoint,
    error::Error,
    fields::Fields,
    http::answer,
    metrics::{Direction, flow::Finished as Given},
    sight::{
        DECISION_ID_NAME,
        finished::{Answered, Described, Finished, Rules},
        id::DecisionId,
        story::{Outcome, Story},
    },
};

/// A request, as far as its record is concerned.
#[derive(Clone, Copy)]
pub(super) struct Told<'a> {
    pub(super) head: &'a dyn Described,
    pub(super) grpc: bool,
    pub(super) client: IpAddr,
    pub(super) story: &'a Story,
}

impl Outbound {
    /// Counts and records a request that the proxy answers itself, and makes the answer. `snapshot`:
    /// what held for the request, once that was known.
    pub(super) fn failed(
        &self,
        (upstream, snapshot): (&Upstream, Option<&Snapshot>),
        told: Told<'_>,
        error: &Error,
    ) -> Response<Bytes> {
        self.error(error.reason());
        tracing::debug!(%error, upstream = %upstream.name(), "request failed");
        let id = self.record((upstream, snapshot), told, Err(error));
        let mut response = answer::error(error, told.grpc);
        id.write(response.headers_mut());
        let made = books::made(response.status(), error, told.grpc);
        let by = snapshot.map_or(&By::Dialled, |snapshot| &snapshot.by);
        Books { upstream, by }.close(&made, told.story.started, Instant::now());
        response
    }

    /// Gives a request that failed the id under which it is recorded: the one under which the endpoint's
    /// proxy did, where that failed it.
    pub(super) fn name(&self, story: &mut Story, (by, response): (&Endpoint, &impl Fields)) {
        let theirs = || {
            // Only a proxy of ours knows.
            by.identity.as_ref()?;
            std::str::from_utf8(response.get(&DECISION_ID_NAME)?).ok()?.parse().ok()
        };
        story.explained = story.explained.or_else(theirs).or_else(|| Some(self.sight.id()));
    }

    /// Records a request that got a response, if somebody wants to know of it.
    pub(super) fn answered(
        &self,
        (upstream, snapshot): (&Upstream, &Snapshot),
        told: Told<'_>,
        given: &Given,
    ) {
        let wanted = self.sight.wants(told.story, given.failed());
        if wanted.any() {
            self.record((upstream, Some(snapshot)), told, Ok(Answered::of(given, wanted)));
        }
    }

    /// Counts and records a request whose client left before there was a response.
    pub(super) fn left(&self, (upstream, snapshot): (&Upstream, &Snapshot), told: Told<'_>) {
        Books { upstream, by: &snapshot.by }.left();
        let last = told.story.attempts().last();
        if let Some(attempt) = last.filter(|attempt| matches!(attempt.result, Outcome::GivenUp)) {
            attempt.endpoint.left(&self.metrics);
        }
        let wanted = self.sight.wants_of_left(told.story);
        let result = Ok(Answered::not_waited_for(wanted));
        self.record((upstream, Some(snapshot)), told, result);
    }

    /// Records a request.
    pub(super) fn record(
        &self,
        (upstream, snapshot): (&Upstream, Option<&Snapshot>),
        told: Told<'_>,
        result: Result<Answered, &Error>,
    ) -> DecisionId {
        let now = Instant::now();
        let rules = snapshot.map(|snapshot| Rules {
            policy: &snapshot.policy,
            timeouts: snapshot.timeouts(),
            retry: snapshot.retry(),
            budget_left: snapshot.budget(upstream).map(|budget| budget.left(now.into_std())),
        });
        let (route, parent) = match snapshot.map(|snapshot| &snapshot.by) {
            Some(By::Route { route, condition, parent, .. }) => {
                (Some((&*route.name, route.why(*condition).into())), &**parent)
            }
            _ => (None, upstream),
        };
        let (target, service) = (parent.name(), upstream.name());
        let finished = Finished {
            direction: Direction::Outbound,
            about: Some(told.head.about()),
            grpc: told.grpc,
            target: &target,
            service: Some(&service),
            route,
            client: Some(told.client),
            peer: None,
            policy: None,
            rules,
            story: told.story,
            carried: None,
            result,
            ended: now,
        };
        let id = told.story.explained.unwrap_or_else(|| self.sight.id());
        self.sight.finished(id, &finished);
        id
    }
}

impl Exchange<'_> {
    fn told<'a>(&self, facts: Facts<'a>, story: &'a Story) -> Told<'a> {
        Told { head: facts.head, grpc: facts.grpc, client: self.client, story }
    }

    /// See [`Outbound::failed`].
    pub(super) fn failed(&self, facts: Facts<'_>, story: &Story, error: &Error) -> Response<Bytes> {
        let of = (&**self.upstream, Some(&self.snapshot));
        self.outbound.failed(of, self.told(facts, story), error)
    }

    /// The same where the client has the beginning of a response already.
    pub(super) fn broke_off(
        &self,
        (facts, story): (Facts<'_>, &Story),
        given: &Given,
        error: &Error,
    ) {
        self.outbound.error(error.reason());
        self.books().close(given, self.started, Instant::now());
        let of = (&**self.upstream, Some(&self.snapshot));
        self.outbound.record(of, self.told(facts, story), Err(error));
    }

    /// The same where the client's stream is reset.
    pub(super) fn reset(&self, facts: Facts<'_>, story: &Story, error: &Error) {
        self.outbound.error(error.reason());
        self.books().close_unanswered(self.started.elapsed());
        let of = (&**self.upstream, Some(&self.snapshot));
        self.outbound.record(of, self.told(facts, story), Err(error));
    }

    /// See [`Outbound::left`].
    pub(super) fn left(&self, facts: Facts<'_>, story: &Story) {
        let of = (&**self.upstream, &self.snapshot);
        self.outbound.left(of, self.told(facts, story));
    }

    /// The request, and the attempt that was sent then, have ended now with a whole response, or with
    /// as much of one as the client waited for.
    pub(super) fn over(
        &self,
        (facts, story): (Facts<'_>, &Story),
        (guard, sent_at): (&InFlight<Endpoint>, Instant),
        given: &Given,
    ) -> Instant {
        let now = self.close(guard, sent_at, given);
        let of = (&**self.upstream, &self.snapshot);
        self.outbound.answered(of, self.told(facts, story), given);
        now
    }
}

impl Requests {
    /// Begins the story of a request whose fields are as they came.
    pub(super) fn begin(&self, fields: &impl Fields, started: Instant) -> Story {
        let mut story = Story::new(started, fields);
        self.outbound.sight.begin(&mut story, fields);
        if Story::is_asked_for(fields) {
            story.explained = Some(self.outbound.sight.id());
        }
        story
    }
}
