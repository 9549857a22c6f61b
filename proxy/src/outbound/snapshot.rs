//! One moment of an upstream, and what a route puts in the place of its policy.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, header::SET_COOKIE};

use super::Upstream;
use crate::{
    balance::{
        endpoints::Endpoints,
        policy::{Affinity, Policy, RetryPolicy, TimeoutPolicy},
        retry::Budget,
    },
    discovery::Endpoint,
    fields::FieldsMut,
    route::{
        Route,
        backend::{Backend, Backends},
    },
};

/// All decisions of one attempt are made on the same one.
pub(crate) struct Snapshot {
    pub(super) policy: Arc<Policy>,
    pub(super) endpoints: Arc<Endpoints<Endpoint>>,
    /// Those of a Service, where it has any.
    pub(super) routes: Option<Arc<[Arc<Route>]>>,
    pub(super) by: By,
}

/// By what a request came to its upstream.
#[derive(Debug, Clone)]
pub(super) enum By {
    /// It was dialled, and has no routes.
    Dialled,
    /// A route sent it there: its retries, time-outs and affinity hold.
    Route {
        route: Arc<Route>,
        /// Which of the route's conditions it met.
        condition: usize,
        /// Which of its backends was chosen, if it has any.
        backend: Option<usize>,
        /// Whose route it is.
        parent: Arc<Upstream>,
    },
    /// It is a copy, which is sent once.
    Mirror,
}

impl Snapshot {
    /// What is retried; `None`: only what provably never ran.
    pub(super) fn retry(&self) -> Option<&RetryPolicy> {
        match &self.by {
            By::Dialled => self.policy.retry.as_ref(),
            By::Route { route, .. } => route.retry.as_ref(),
            By::Mirror => None,
        }
    }

    pub(super) fn timeouts(&self) -> &TimeoutPolicy {
        match &self.by {
            By::Dialled | By::Mirror => &self.policy.timeouts,
            By::Route { route, .. } => &route.timeouts,
        }
    }

    pub(super) fn affinity(&self) -> Option<&Affinity> {
        let own = self.policy.affinity.as_ref();
        match &self.by {
            By::Dialled => own,
            By::Route { route, .. } => route.affinity.as_ref().or(own),
            By::Mirror => None,
        }
    }

    /// The retry budget, where anything is retried.
    pub(super) fn budget(&self, upstream: &Upstream) -> Option<Arc<Budget>> {
        let wanted = self.retry()?.budget;
        Some(match &self.by {
            By::Route { route, .. } => route.traffic.budget(wanted),
            By::Dialled | By::Mirror => upstream.traffic().budget(wanted),
        })
    }
}

impl By {
    /// The backend that a route chose; `None`: the Service itself.
    pub(super) fn backend(&self) -> Option<&Backend> {
        match self {
            Self::Route { route, backend: Some(at), .. } => match &route.backends {
                Backends::Weighted(list) => list.at(*at),
                Backends::Own => None,
            },
            _ => None,
        }
    }
}

/// What tells a client to keep its endpoint.
#[derive(Debug)]
pub(super) enum Mark {
    Cookie(HeaderValue),
    Field(HeaderName, HeaderValue),
}

impl Mark {
    /// Puts it into a response.
    pub(super) fn write(&self, fields: &mut impl FieldsMut) {
        match self {
            Self::Cookie(cookie) => fields.append(&SET_COOKIE, cookie),
            Self::Field(name, value) => fields.set(name, value),
        }
    }
}
