//! What routes say, in the words that proxies are told in.

use std::{ops::Deref, sync::Arc, time::Duration};

use crate::index::{
    Name,
    policy::{fault::Fault, retry::Retry, timeouts::Timeouts},
};

/// What the routes of a Service's port say to one group of callers. Empty lists: nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Routes {
    /// For requests, in order of precedence: the first that matches is used.
    pub http: Box<[Route]>,
    /// For connections that are carried as bytes, in order of precedence.
    pub streams: Box<[StreamRoute]>,
}

/// The same, shared: what is equal is mostly the very same.
#[derive(Debug, Clone)]
pub struct SharedRoutes(pub Arc<Routes>);

impl PartialEq for SharedRoutes {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Deref for SharedRoutes {
    type Target = Routes;

    fn deref(&self) -> &Routes {
        &self.0
    }
}

/// Requests that match, and what becomes of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Any of them suffices; empty: every request.
    pub matches: Box<[RouteMatch]>,
    /// What becomes of them. A rule whose matches differ in precedence is in several routes.
    pub rule: Arc<Rule>,
}

/// Connections that match, and where they go.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamRoute {
    /// Server names of the TLS ClientHello; empty: every connection.
    pub server_names: Box<[String]>,
    /// Where they go; only its name and its backends count.
    pub rule: Arc<Rule>,
}

/// What becomes of requests: a rule with its references followed.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// `namespace/route/rule`; the last is the rule's name or, without one, its position.
    pub name: Arc<str>,
    /// In the order in which they are applied.
    pub filters: Box<[Filter<Backend>]>,
    /// One is chosen by weight.
    pub backends: Box<[WeightedBackend]>,
    /// How it treats them.
    pub policy: Policy,
}

impl Rule {
    /// Nothing can take what matches: there is no backend, or only such without weight.
    #[must_use]
    pub fn no_backend(&self) -> bool {
        self.backends.iter().all(|backend| backend.weight == 0)
    }
}

/// How a rule treats requests.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Policy {
    /// What is sent again; `None`: as the Service says.
    pub retry: Option<Retry>,
    /// `None`: as the Service says.
    pub timeouts: Option<RouteTimeouts>,
    /// Who keeps the endpoint that it had; `None`: as the Service says.
    pub session: Option<Session>,
    /// Failure on purpose; `None`: none.
    pub fault: Option<Arc<Fault>>,
}

/// Time-outs of a rule; what it does not say is as the Service says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteTimeouts {
    /// The whole exchange: `Some(None)` is no bound.
    pub request: Option<Option<Duration>>,
    /// One attempt, its response included: `Some(None)` is no bound.
    pub backend_request: Option<Option<Duration>>,
    /// What annotations say.
    pub annotated: Timeouts,
}

impl RouteTimeouts {
    /// What holds where the Service says something too: all time-outs, and that of one attempt.
    #[must_use]
    pub fn over(&self, service: &Timeouts) -> (Timeouts, Option<Duration>) {
        let own = &self.annotated;
        let timeouts = Timeouts {
            request: self.request.unwrap_or(own.request.or(service.request)),
            response: own.response.or(service.response),
            idle: own.idle.or(service.idle),
            connect: own.connect.or(service.connect),
        };
        (timeouts, self.backend_request.flatten())
    }
}

/// How a session is recognised (GEP-1619).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Session {
    /// By a cookie.
    Cookie {
        /// Its name.
        name: String,
        /// How long the client keeps it; `None`: until its session ends.
        timeout: Option<Duration>,
    },
    /// By a field that the client sends back.
    Header {
        /// Its name.
        name: String,
    },
}

/// What a request must have, all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteMatch {
    /// Its path; `None`: any.
    pub path: Option<Path>,
    /// Its method; `None`: any.
    pub method: Option<String>,
    /// Fields of its head.
    pub headers: Vec<ValueMatch>,
    /// Parameters of its query.
    pub query: Vec<ValueMatch>,
}

/// A path, without the query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Path {
    /// This very one.
    Exact(String),
    /// It or what is below it; without a slash at its end, but for `/` itself.
    Prefix(String),
    /// All of it matches.
    Regex(String),
}

/// A field or parameter and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueMatch {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// The value is a regular expression that all of it must match.
    pub regex: bool,
}

/// A reference that was followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The Service.
    pub service: Name,
    /// Its port.
    pub port: u16,
    /// Why it cannot be used; `None`: it can.
    pub invalid: Option<Unresolved>,
}

/// Why a reference cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unresolved {
    /// As the condition `ResolvedRefs` names it.
    pub reason: RefReason,
    /// For people.
    pub message: Box<str>,
}

/// Reasons of the condition `ResolvedRefs`; of several the first here is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefReason {
    /// Not a kind that requests can be sent to.
    InvalidKind,
    /// In a namespace that does not allow it.
    RefNotPermitted,
    /// Not there.
    BackendNotFound,
}

impl RefReason {
    /// As the standard writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidKind => "InvalidKind",
            Self::RefNotPermitted => "RefNotPermitted",
            Self::BackendNotFound => "BackendNotFound",
        }
    }
}

/// A backend and its part.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedBackend {
    /// Its part of the sum of all weights.
    pub weight: u32,
    /// Where to.
    pub backend: Backend,
    /// For what goes there, after those of the rule.
    pub filters: Box<[Filter<Backend>]>,
}

/// Changes requests and responses, or answers in the backend's place. `B` is a reference: as it is
/// written, or followed.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter<B> {
    /// Changes the request's fields.
    RequestHeaders(HeaderModifier),
    /// Changes the response's fields.
    ResponseHeaders(HeaderModifier),
    /// Answers that it is elsewhere.
    Redirect(Redirect),
    /// Changes what is asked for.
    Rewrite(Rewrite),
    /// Sends a copy of so many of so many.
    Mirror {
        /// Where to.
        backend: B,
        /// So many
        numerator: u32,
        /// of so many; at least 1.
        denominator: u32,
    },
    /// Answers preflights.
    Cors(Cors),
}

impl<B> Filter<B> {
    /// The same with its reference followed.
    pub(super) fn resolved(&self, follow: &impl Fn(&B) -> Backend) -> Filter<Backend> {
        match self {
            Self::RequestHeaders(change) => Filter::RequestHeaders(change.clone()),
            Self::ResponseHeaders(change) => Filter::ResponseHeaders(change.clone()),
            Self::Redirect(redirect) => Filter::Redirect(redirect.clone()),
            Self::Rewrite(rewrite) => Filter::Rewrite(rewrite.clone()),
            Self::Mirror { backend, numerator, denominator } => Filter::Mirror {
                backend: follow(backend),
                numerator: *numerator,
                denominator: *denominator,
            },
            Self::Cors(cors) => Filter::Cors(cors.clone()),
        }
    }

    /// The reference in it.
    pub(super) fn reference(&self) -> Option<&B> {
        match self {
            Self::Mirror { backend, .. } => Some(backend),
            _ => None,
        }
    }
}

/// Changes fields: removes, then sets, then adds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderModifier {
    /// In the place of what is there.
    pub set: Vec<(String, String)>,
    /// Beside what is there.
    pub add: Vec<(String, String)>,
    /// Names.
    pub remove: Vec<String>,
}

/// Where it is instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`; `None`: the request's.
    pub scheme: Option<String>,
    /// `None`: the request's.
    pub hostname: Option<String>,
    /// `None`: the scheme's own, where it is given, else the request's.
    pub port: Option<u16>,
    /// `None`: the request's.
    pub path: Option<PathModifier>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// What is asked for instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// In the place of Host.
    pub hostname: Option<String>,
    /// What becomes of the path.
    pub path: Option<PathModifier>,
}

/// What becomes of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathModifier {
    /// In the place of all of it.
    Full(String),
    /// In the place of the prefix that matched.
    Prefix(String),
}

/// GEP-1767.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Origins.
    pub allow_origins: Vec<String>,
    /// Methods.
    pub allow_methods: Vec<String>,
    /// Fields of requests.
    pub allow_headers: Vec<String>,
    /// Fields of responses.
    pub expose_headers: Vec<String>,
    /// With cookies.
    pub allow_credentials: bool,
    /// How long an answer to a preflight may be kept.
    pub max_age: Duration,
}
