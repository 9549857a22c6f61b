//! The only file that calls the proxy's balancer, breaker and retry budget, and the control plane's
//! reader of annotations. What it calls is what runs in a cluster; what it adds is a clock that the
//! simulation moves and answers that the simulation makes up.
//!
//! [`Proxy`] stands for one proxy's view of one Service. Its methods are the steps of the attempt
//! loop of `proxy/src/outbound/attempt.rs`, in that order: [`Proxy::arrived`], [`Proxy::pick`],
//! [`Proxy::report`], [`Proxy::judge`].

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use remora_control_plane::{discovery, index::policy};
use remora_proxy::{
    balance::{
        EndpointStats, Endpoints,
        pick::{NoEndpoint, Tried, Wish, pick},
        policy::Policy,
        retry::{self, Answer, Attempt, Budget, Pushback, Sent, StopReason, Verdict},
        stats::{FailureKind, InFlight, Outcome},
    },
    discovery::ServiceState,
    error::Error,
};

/// Nobody is dialled; errors want to name somebody.
const NOBODY: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

/// Where virtual time begins. Only differences matter, so real time leaves no trace.
#[expect(clippy::disallowed_methods, reason = "an Instant cannot be made from nothing")]
pub(super) fn epoch() -> Instant {
    Instant::now()
}

/// A Service's policy, read from annotations as in a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Rules(Arc<Policy>);

/// A word of a policy that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BadWord {
    /// The word as it was written; empty where it is not one of them.
    pub(super) word: String,
    /// What is wrong and the mend.
    pub(super) problem: String,
}

impl Rules {
    /// Reads words and values: annotations with or without their prefix.
    ///
    /// # Errors
    /// Names the first word that is unknown, or whose value cannot be used.
    pub(super) fn parse(words: &[(String, String)], now: Instant) -> Result<Self, BadWord> {
        let mut annotations = BTreeMap::new();
        for (word, value) in words {
            let bad = |problem| BadWord { word: word.clone(), problem };
            let key = annotation(word).map_err(bad)?;
            if annotations.insert(key.to_owned(), value.clone()).is_some() {
                return Err(bad(format!("{key} is there twice; leave one out")));
            }
        }
        let (service, bad) = discovery::told(&annotations);
        if let Some(bad) = bad.into_iter().next() {
            let names = |word: &str| annotation(word).ok() == Some(bad.key.as_str());
            let word = words.iter().map(|(word, _)| word).find(|word| names(word));
            let word = word.cloned().unwrap_or_default();
            // Here nothing was in force before.
            let problem = bad.problem.split("; what held before").next().unwrap_or_default();
            return Err(BadWord { word, problem: problem.to_owned() });
        }
        let (state, bad) = ServiceState::from_snapshot(None, &service, 0, now);
        if let Some(bad) = bad.into_iter().next() {
            return Err(BadWord { word: String::new(), problem: bad.to_string() });
        }
        Ok(Self(state.policy))
    }

    /// How long one attempt may wait for an answer.
    pub(super) fn attempt_bound(&self) -> Option<Duration> {
        let per_try = self.0.retry.as_ref().and_then(|retry| retry.per_try_timeout);
        [self.0.timeouts.response, per_try].into_iter().flatten().min()
    }

    /// How long a whole request may take.
    pub(super) fn request_bound(&self) -> Option<Duration> {
        self.0.timeouts.request
    }
}

/// Whether two words mean the same.
pub(super) fn same(one: &str, other: &str) -> bool {
    one == other || annotation(one).is_ok_and(|key| annotation(other) == Ok(key))
}

/// The annotation that a word names.
fn annotation(word: &str) -> Result<&'static str, String> {
    let named = |key: &&str| *key == word || key.split_once('/').is_some_and(|(_, w)| w == word);
    let found: Vec<&str> = policy::known().filter(named).collect();
    match found[..] {
        [key] => Ok(key),
        [] => {
            let known = policy::known().filter_map(|key| Some(key.split_once('/')?.1));
            let known = known.collect::<Vec<_>>().join(", ");
            Err(format!("{word:?} is no word of a policy; use one of {known}"))
        }
        _ => Err(format!("{word:?} could be any of {}; write it in full", found.join(", "))),
    }
}

/// A server as one proxy knows it.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) server: usize,
    /// How often the server had joined: one that comes back is another peer.
    pub(super) generation: u32,
    stats: EndpointStats,
}

impl AsRef<EndpointStats> for Endpoint {
    fn as_ref(&self) -> &EndpointStats {
        &self.stats
    }
}

/// The endpoints that one request chooses from, to its end.
pub(super) type Snapshot = Arc<Endpoints<Endpoint>>;
/// A request on its way; dropped without a report it was given up.
pub(super) type Guard = InFlight<Endpoint>;

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// With an answer.
    Answered {
        /// HTTP status.
        status: u16,
        /// `Retry-After`, in whole seconds as HTTP has it.
        retry_after: Option<u32>,
    },
    /// The connection was refused: nothing left the proxy.
    Refused,
    /// The connection broke after the request was sent.
    Broken,
    /// No answer within [`Rules::attempt_bound`].
    TimedOut,
}

/// What became of an endpoint's breaker with a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Breaker {
    /// It stays as it is: closed or open.
    Same {
        /// Whether requests pass freely.
        closed: bool,
    },
    /// It opened.
    Opened,
    /// A probe failed.
    OpenedAgain,
}

/// What to do with an attempt that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Send once more after a pause.
    Again {
        /// The pause.
        backoff: Duration,
    },
    /// Answer the caller.
    Stop,
    /// Answer the caller, because enough attempts were made.
    StopAtLimit,
    /// Answer the caller, because the budget is used up.
    StopByBudget,
}

/// Sends beyond the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Repeats {
    /// By policy.
    pub(super) retries: u32,
    /// Because nothing was sent.
    pub(super) resends: u32,
}

/// One proxy and one Service: statistics, breakers and budget are its own, as in a process.
#[derive(Debug)]
pub(super) struct Proxy {
    rules: Rules,
    endpoints: Snapshot,
    cursor: AtomicUsize,
    budget: Option<Budget>,
    rng: fastrand::Rng,
}

impl Proxy {
    /// A proxy that has just started and knows no endpoint.
    pub(super) fn new(rules: Rules, rng: fastrand::Rng, now: Instant) -> Self {
        let budget = rules.0.retry.as_ref().map(|retry| Budget::new(retry.budget, now));
        let endpoints = Arc::new(Endpoints::new(Vec::new(), &rules.0));
        Self { rules, endpoints, cursor: AtomicUsize::new(0), budget, rng }
    }

    /// Discovery tells the endpoints, as server and generation. Those known keep their statistics.
    pub(super) fn told(&mut self, endpoints: &[(usize, u32)], now: Instant) {
        let known = |server, generation| {
            let same = |e: &&Arc<Endpoint>| e.server == server && e.generation == generation;
            self.endpoints.iter().find(same).cloned()
        };
        let first = self.endpoints.is_empty();
        let fresh = |server, generation| {
            let stats = EndpointStats::new(now);
            let stats = if first { stats } else { stats.joining(now) };
            Arc::new(Endpoint { server, generation, stats })
        };
        let all = endpoints.iter().map(|&(s, g)| known(s, g).unwrap_or_else(|| fresh(s, g)));
        self.endpoints = Arc::new(Endpoints::new(all.collect(), &self.rules.0));
    }

    /// What a request that arrives now chooses from.
    pub(super) fn snapshot(&self) -> Snapshot {
        Arc::clone(&self.endpoints)
    }

    /// A request arrives.
    pub(super) fn arrived(&self, now: Instant) {
        if let Some(budget) = &self.budget {
            budget.deposit(now);
        }
    }

    /// Chooses an endpoint; the error is the reason word of the proxy's own answer.
    pub(super) fn pick(
        &mut self,
        snapshot: &Snapshot,
        tried: &[usize],
        now: Instant,
    ) -> Result<Guard, &'static str> {
        let avoid = |endpoint: &Endpoint| {
            if tried.contains(&endpoint.server) { Tried::Avoid } else { Tried::No }
        };
        let (rules, wish) = (&self.rules.0, Wish::default());
        match pick(snapshot, rules, &self.cursor, wish, avoid, now, &mut self.rng) {
            Ok(picked) => Ok(picked.guard),
            Err(NoEndpoint::AllEjected { .. }) => Err("all-ejected"),
            Err(NoEndpoint::Empty | NoEndpoint::AllExcluded) => Err("no-endpoints"),
        }
    }

    /// Tells an endpoint's statistics how an attempt went after `took`.
    pub(super) fn report(
        &mut self,
        mut guard: Guard,
        now: Instant,
        took: Duration,
        ended: Ended,
    ) -> Breaker {
        let outcome = ended.outcome();
        let ejection = guard.report(now, took, outcome, &self.rules.0, &mut self.rng);
        match ejection {
            Some(ejection) if ejection.again => Breaker::OpenedAgain,
            Some(_) => Breaker::Opened,
            None => Breaker::Same { closed: guard.endpoint().stats.breaker().is_closed() },
        }
    }

    /// Decides whether an attempt is made again; takes from the budget where it is by policy.
    pub(super) fn judge(
        &mut self,
        ended: Ended,
        so_far: Repeats,
        endpoints: usize,
        method: &Method,
        now: Instant,
    ) -> Next {
        let policy = self.rules.0.retry.as_ref();
        let Repeats { retries, resends } = so_far;
        let (sent, answer) = match ended.error() {
            None if policy.is_none() => return Next::Stop,
            None => (Sent::Yes, ended.status()),
            Some(error) => (error.sent(), error.status()),
        };
        let (answer, pushback, backoffs) = (Answer::Http(answer), ended.pushback(), retries);
        let attempt = Attempt { sent, answer, pushback, retries, backoffs, resends, endpoints };
        let request = retry::Request { method, keyed: false, replayable: true };
        let budget = self.budget.as_ref();
        match retry::decide(policy, request, attempt, budget, now, &mut self.rng) {
            Verdict::Retry { backoff } => Next::Again { backoff },
            Verdict::Stop(StopReason::Limit) => Next::StopAtLimit,
            Verdict::Stop(StopReason::Budget) => Next::StopByBudget,
            Verdict::Stop(_) => Next::Stop,
        }
    }
}

impl Ended {
    /// The proxy's error where there is no answer to hand on.
    fn error(self) -> Option<Error> {
        match self {
            Self::Answered { .. } => None,
            Self::Refused => {
                let source = io::ErrorKind::ConnectionRefused.into();
                Some(Error::Connect { addr: NOBODY, source })
            }
            Self::Broken => {
                let detail = String::new();
                Some(Error::UpstreamReset { addr: NOBODY, detail, sent: Sent::Maybe })
            }
            Self::TimedOut => Some(Error::ResponseTimeout(Duration::ZERO)),
        }
    }

    /// Whether nothing of the request was sent.
    pub(super) fn is_unsent(self) -> bool {
        self.error().is_some_and(|error| error.sent() == Sent::No)
    }

    /// What the caller sees.
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Answered { status, .. } => StatusCode::from_u16(status)
                .expect("invariant: the statuses of scenarios are from 200 to 599"),
            _ => self.error().map_or(StatusCode::BAD_GATEWAY, |error| error.status()),
        }
    }

    /// The reason word of the proxy's own answer.
    pub(super) fn reason(self) -> Option<&'static str> {
        self.error().map(|error| error.reason().as_str())
    }

    /// What it asks of those who would come again.
    fn pushback(self) -> Pushback {
        match self {
            Self::Answered { status: 429 | 503, retry_after: Some(seconds) } => {
                Pushback::AtLeast(Duration::from_secs(seconds.into()))
            }
            _ => Pushback::None,
        }
    }

    /// As the attempt loop classifies it.
    fn outcome(self) -> Outcome {
        let status = self.status();
        Outcome::Failure(match self {
            Self::Answered { retry_after, .. } => {
                let retry_after = retry_after.map(|n| Duration::from_secs(n.into()));
                match status {
                    StatusCode::TOO_MANY_REQUESTS => FailureKind::RateLimited { retry_after },
                    status if status.is_server_error() => FailureKind::ServerError { retry_after },
                    _ => return Outcome::Success,
                }
            }
            _ if status == StatusCode::GATEWAY_TIMEOUT => FailureKind::TimedOut,
            _ => FailureKind::Transport,
        })
    }
}
