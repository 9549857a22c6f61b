//! What is handed in once a request or a connection is over, from which records, lines of the access log
//! and spans are made.

use std::{borrow::Cow, fmt, net::IpAddr};

use http::{Method, StatusCode, Uri, request::Parts};
use remora_core::spiffe::SpiffeId;
use tokio::time::Instant;

use super::{Wanted, story::Story};
use crate::{
    balance::policy::{Policy, RetryPolicy, TimeoutPolicy},
    error::Error,
    http::h1::request::RequestHead,
    metrics::{
        Direction,
        flow::{End, Finished as Given, Rpc},
    },
    route::Message,
};

/// What a record tells of a request's head.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path, without the query, which may hold secrets.
    pub path: &'a str,
    /// Whom it names.
    pub host: Option<&'a str>,
    /// `http/1.1` or `http/2`.
    pub protocol: &'static str,
}

/// A connection of which no request is read. It is over, or not carried.
pub struct Connection<'a> {
    /// Which way it went.
    pub direction: Direction,
    /// Where it was going.
    pub target: &'a dyn fmt::Display,
    /// Which Service it went to.
    pub service: Option<&'a dyn fmt::Display>,
    /// Where it came from.
    pub client: Option<IpAddr>,
    /// Who its caller proved to be.
    pub peer: Option<&'a SpiffeId>,
    /// The policy that let it in or not.
    pub policy: Option<&'a dyn fmt::Display>,
    /// What it went through.
    pub story: &'a Story,
    /// What was carried; `None`: nothing ever was.
    pub carried: Option<Carried<'a>>,
    /// Why it was not carried, or why the proxy ended it.
    pub error: Option<&'a Error>,
}

/// What was carried of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Carried<'a> {
    /// Bytes from the one who opened it.
    pub sent: u64,
    /// Bytes back.
    pub received: u64,
    /// The name that it was for, as its first bytes said.
    pub host: Option<&'a str>,
}

/// A request's head, whatever its codec keeps it in. Asked only where a record is made.
pub trait Described: Sync {
    /// What is told of it.
    fn about(&self) -> About<'_>;
}

/// A request that is over, or that the proxy is about to answer itself.
pub struct Finished<'a> {
    /// Which way it went.
    pub direction: Direction,
    /// Its head; `None`: a connection, of which no request was read.
    pub about: Option<About<'a>>,
    /// Whether it was gRPC.
    pub grpc: bool,
    /// Whom it was for: a Service, or the address of the application.
    pub target: &'a dyn fmt::Display,
    /// Which Service it went to.
    pub service: Option<&'a dyn fmt::Display>,
    /// The route that it took, and why that one.
    pub route: Option<(&'a str, Cow<'a, str>)>,
    /// Where its connection came from.
    pub client: Option<IpAddr>,
    /// Who its caller proved to be.
    pub peer: Option<&'a SpiffeId>,
    /// The policy that let it in or not.
    pub policy: Option<String>,
    /// What was in force for it.
    pub rules: Option<Rules<'a>>,
    /// What it went through.
    pub story: &'a Story,
    /// Of a connection: what was carried.
    pub carried: Option<Carried<'a>>,
    /// What its client got.
    pub result: Result<Answered, &'a Error>,
    /// When it was over.
    pub ended: Instant,
}

/// Bounds on a request.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Breaker and balancer.
    pub policy: &'a Policy,
    /// Its time-outs.
    pub timeouts: &'a TimeoutPolicy,
    /// What was retried.
    pub retry: Option<&'a RetryPolicy>,
    /// Retries that the budget still allowed.
    pub budget_left: Option<u64>,
}

/// A response that the client got, or did not wait for.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    /// Its status; `None`: the client left before there was one.
    pub status: Option<StatusCode>,
    /// gRPC's status.
    pub grpc: Option<u32>,
    /// Whether it counts as a failure of the one who gave it.
    pub failure: bool,
    /// Whether the client left before all of it was there.
    pub left: bool,
    /// What somebody wants of it.
    pub wanted: Wanted,
}

impl Finished<'_> {
    /// Whom it names.
    pub(super) fn host(&self) -> Option<&str> {
        self.about.and_then(|about| about.host).or(self.carried.and_then(|carried| carried.host))
    }
}

impl Answered {
    /// A response as it is counted.
    #[must_use]
    pub fn of(given: &Given, wanted: Wanted) -> Self {
        let grpc = match given.rpc {
            Rpc::Said(code) => Some(code),
            Rpc::No | Rpc::Unsaid => None,
        };
        let left = given.end == End::Cancelled;
        Self { status: Some(given.status), grpc, failure: given.failed(), left, wanted }
    }

    /// None, since the client left.
    #[must_use]
    pub fn not_waited_for(wanted: Wanted) -> Self {
        Self { left: true, ..Self::carried(wanted) }
    }

    /// None, since nothing was asked.
    #[must_use]
    pub fn carried(wanted: Wanted) -> Self {
        Self { status: None, grpc: None, failure: false, left: false, wanted }
    }
}

impl Described for RequestHead {
    fn about(&self) -> About<'_> {
        let (path, host) = (self.path(), self.authority());
        About { method: &self.method, path, host, protocol: "http/1.1" }
    }
}

impl Described for Parts {
    fn about(&self) -> About<'_> {
        About {
            method: &self.method,
            path: self.uri.path(),
            host: self.authority(),
            protocol: "http/2",
        }
    }
}

impl Described for (Method, Uri) {
    fn about(&self) -> About<'_> {
        let (method, uri) = self;
        let host = uri.authority().map(http::uri::Authority::as_str);
        About { method, path: uri.path(), host, protocol: "http/2" }
    }
}
