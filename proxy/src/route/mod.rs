//! Routes of a Service: which requests go where, with which policy, and what is changed on the way
//! (Gateway API, a rule of an HTTPRoute or GRPCRoute whose parent is the Service).
//!
//! The control plane has merged and ordered them, so the first that matches is taken ([`find`]).
//! [`parse`] makes them from the wire, once per update: whatever can be compiled or joined is, so
//! that a request pays for looking alone. Nothing here does I/O, knows the time or rolls dice of
//! its own.
//!
//! A request goes through the files like this:
//!
//! 1. [`find`] takes the first route one of whose conditions ([`matching`]) holds. None: 404.
//! 2. [`fault`] says whether it is held up or refused on purpose.
//! 3. [`Route::answer`]: a filter may answer in the backend's place ([`redirect`], [`cors`]).
//! 4. [`backend`] chooses whom it goes to.
//! 5. [`prepare`] changes the request ([`modify`], [`rewrite`]), first as the route says, then as
//!    the backend's filters say; [`finish`] changes the response.
//!
//! [`Message`] is a request as the files see it, whichever codec it came by.

pub mod backend;
pub mod cors;
pub mod fault;
pub mod matching;
pub mod mirror;
pub mod modify;
pub mod parse;
mod pattern;
pub mod redirect;
pub mod rewrite;
mod shown;
pub mod stream;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Response};

use crate::{
    balance::policy::{Affinity, RetryPolicy, TimeoutPolicy},
    discovery::traffic::RouteTraffic,
    fields::{Fields, FieldsMut},
};
use backend::Backends;
use cors::Cors;
use fault::Fault;
use matching::RouteMatch;
use mirror::Mirror;
use modify::HeaderModifier;
use redirect::Redirect;
use rewrite::UrlRewrite;

/// A request, as routes look at it and change it.
pub trait Message {
    /// Where its fields are.
    type Fields: FieldsMut;

    /// Its method.
    fn method(&self) -> &Method;

    /// Its path as it was sent, without the query; `*` or `host:port` where the target is that.
    fn path(&self) -> &str;

    /// What comes after the question mark.
    fn query(&self) -> Option<&str>;

    /// `host` or `host:port` that it is for.
    fn authority(&self) -> Option<&str>;

    /// Its fields.
    fn fields(&self) -> &Self::Fields;

    /// Its fields.
    fn fields_mut(&mut self) -> &mut Self::Fields;

    /// Puts another authority in the place of its own.
    fn set_authority(&mut self, authority: &HeaderValue);

    /// Puts another path in the place of its own; the query stays. Nothing happens to a target that
    /// has no path (`*`, CONNECT).
    fn set_path(&mut self, path: &str);
}

/// Requests that match get its filters and policy and go to its backends.
#[derive(Debug)]
pub struct Route {
    /// `namespace/name/rule`.
    pub name: Box<str>,
    /// Any of them suffices; empty: every request.
    pub matches: Box<[RouteMatch]>,
    /// Whom they go to.
    pub backends: Backends,
    /// In the order in which they are applied.
    pub filters: Box<[Filter]>,
    /// What is retried, the Service's own policy where the route has none; `None`: only what
    /// provably never ran.
    pub retry: Option<RetryPolicy>,
    /// The route's time-outs, the Service's own where it has none.
    pub timeouts: TimeoutPolicy,
    /// Who keeps the endpoint that it had, across backends; `None`: as the backend's Service says.
    pub affinity: Option<Affinity>,
    /// Failure on purpose.
    pub fault: Option<Fault>,
    /// What it has seen.
    pub traffic: Arc<RouteTraffic>,
}

/// Changes requests and responses, or answers in the backend's place.
#[derive(Debug)]
pub enum Filter {
    /// Fields of the request.
    RequestHeaders(HeaderModifier),
    /// Fields of the response.
    ResponseHeaders(HeaderModifier),
    /// Answers.
    Redirect(Redirect),
    /// Host and path of the request.
    Rewrite(UrlRewrite),
    /// A copy to somebody else.
    Mirror(Arc<Mirror>),
    /// Who may share the response; answers preflights.
    Cors(Box<Cors>),
}

/// A route that a request takes, and by what.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// The route.
    pub route: &'a Arc<Route>,
    /// Bytes of the request's path that the condition names as its prefix, without a slash at the
    /// end; `None` where the condition is not about a prefix.
    pub prefix: Option<usize>,
    /// Which of the route's conditions it meets; 0 where the route has none.
    pub condition: usize,
}

/// What is answered in the place of any backend.
#[derive(Debug)]
pub enum Answer {
    /// A response like others: filters change it.
    Redirect(Response<Bytes>),
    /// The last word on who may share what.
    Preflight(Response<Bytes>),
}

/// The route that a request takes; `None`: none of them.
#[must_use]
pub fn find<'a>(routes: &'a [Arc<Route>], request: &impl Message) -> Option<Found<'a>> {
    routes.iter().find_map(|route| {
        let (condition, prefix) = route.matches(request)?;
        Some(Found { route, prefix, condition })
    })
}

impl Route {
    /// Whether a request takes this route; the condition and the prefix as in [`Found`].
    fn matches(&self, request: &impl Message) -> Option<(usize, Option<usize>)> {
        if self.matches.is_empty() {
            // Every path begins with the root.
            return Some((0, Some(0)));
        }
        // A preflight asks on behalf of another request, which may be the one that is meant.
        let asked = cors::preflight_for(request).filter(|_| self.cors().is_some());
        let mut conditions = self.matches.iter().enumerate();
        conditions.find_map(|(at, wanted)| Some((at, wanted.holds(request, asked)?)))
    }

    /// Why a request takes this route, for people.
    #[must_use]
    pub fn why(&self, condition: usize) -> String {
        let Some(met) = self.matches.get(condition) else {
            return "it takes every request".to_owned();
        };
        match self.matches.len() {
            1 => met.to_string(),
            of => format!("{met} (condition {} of {of})", condition + 1),
        }
    }

    fn cors(&self) -> Option<&Cors> {
        cors_of(&self.filters)
    }

    /// What is answered in the place of any backend, if a filter does that.
    #[must_use]
    pub fn answer(&self, request: &impl Message, prefix: Option<usize>) -> Option<Answer> {
        answer(&self.filters, request, prefix)
    }
}

/// What the first of some filters answers that answers such a request at all.
#[must_use]
pub fn answer(filters: &[Filter], request: &impl Message, prefix: Option<usize>) -> Option<Answer> {
    filters.iter().find_map(|filter| match filter {
        Filter::Redirect(redirect) => Some(Answer::Redirect(redirect.answer(request, prefix))),
        Filter::Cors(cors) => cors.answer(request).map(Answer::Preflight),
        _ => None,
    })
}

/// Changes a request. A path is made of `original`, the one that the client sent, by whichever
/// filter comes last.
pub fn prepare(
    filters: &[Filter],
    request: &mut impl Message,
    (original, prefix): (&str, Option<usize>),
) {
    for filter in filters {
        match filter {
            Filter::RequestHeaders(modifier) => modifier.apply(request.fields_mut()),
            Filter::Rewrite(rewrite) => rewrite.apply(request, original, prefix),
            _ => {}
        }
    }
}

/// Changes a response to a request that had `origin` as its field of that name.
pub fn finish(filters: &[Filter], origin: Option<&HeaderValue>, response: &mut impl FieldsMut) {
    for filter in filters {
        match filter {
            Filter::ResponseHeaders(modifier) => modifier.apply(response),
            Filter::Cors(cors) => cors.apply(origin, response),
            _ => {}
        }
    }
}

/// The field `Origin` of a request, where one of some filters will want it.
#[must_use]
pub fn origin(filters: &[Filter], fields: &impl Fields) -> Option<HeaderValue> {
    cors_of(filters)?;
    HeaderValue::from_bytes(fields.get(&http::header::ORIGIN)?).ok()
}

fn cors_of(filters: &[Filter]) -> Option<&Cors> {
    filters.iter().find_map(|filter| match filter {
        Filter::Cors(cors) => Some(&**cors),
        _ => None,
    })
}
