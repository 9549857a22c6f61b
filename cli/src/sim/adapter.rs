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
use remora_control_plane::{discovery, index::policy::KNOWN};
use remora_core::settings::{parse_duration, parse_ratio};
use remora_proxy::{
    balance::{
        EndpointStats,
        pick::{NoEndpoint, Tried, pick},
        policy::{BudgetPolicy, Policy},
        retry::{self, Answer, Attempt, Budget, Sent, StopReason, Verdict},
        stats::{FailureKind, InFlight, Outcome},
    },
    discovery::ServiceState,
    error::Error,
};

/// What of the budget can be set in a scenario although no annotation does.
const BUDGET: [&str; 3] = ["budget-ratio", "budget-min-per-second", "budget-window"];
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
    /// Reads words and values: annotations with or without their prefix, and the budget's.
    ///
    /// # Errors
    /// Names the first word that is unknown, or whose value cannot be used.
    pub(super) fn parse(words: &[(String, String)], now: Instant) -> Result<Self, BadWord> {
        let mut annotations = BTreeMap::new();
        let mut budget = BudgetPolicy::default();
        for (word, value) in words {
            let bad = |problem| BadWord { word: word.clone(), problem };
            match annotation(word).map_err(bad)? {
                Some(key) if annotations.insert(key.to_owned(), value.clone()).is_some() => {
                    return Err(bad(format!("{key} is there twice; leave one out")));
                }
                Some(_) => {}
                None => set_budget(&mut budget, word, value).map_err(bad)?,
            }
        }
        let (service, bad) = discovery::told(&annotations);
        if let Some(bad) = bad.into_iter().next() {
            let names = |word: &str| annotation(word).ok().flatten() == Some(bad.key.as_str());
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
        let mut policy = Arc::unwrap_or_clone(state.policy);
        if let Some(retry) = &mut policy.retry {
            retry.budget = budget;
        }
        Ok(Self(Arc::new(policy)))
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
    one == other || annotation(one).is_ok_and(|key| key.is_some() && annotation(other) == Ok(key))
}

/// The annotation that a word names; `None` for a word of the budget.
fn annotation(word: &str) -> Result<Option<&'static str>, String> {
    let named = |key: &&&str| **key == word || key.split_once('/').is_some_and(|(_, w)| w == word);
    let found: Vec<&str> = KNOWN.iter().filter(named).copied().collect();
    match found[..] {
        [key] => Ok(Some(key)),
        [] if BUDGET.contains(&word) => Ok(None),
        [] => {
            let known = KNOWN.iter().filter_map(|key| Some(key.split_once('/')?.1));
            let known: Vec<&str> = known.chain(BUDGET).collect();
            Err(format!("{word:?} is no word of a policy; use one of {}", known.join(", ")))
        }
        _ => Err(format!("{word:?} could be any of {}; write it in full", found.join(", "))),
    }
}

fn set_budget(budget: &mut BudgetPolicy, word: &str, value: &str) -> Result<(), String> {
    match word {
        "budget-ratio" => budget.ratio = parse_ratio(value)?,
        "budget-window" => {
            budget.window = match parse_duration(value)? {
                Duration::ZERO => return Err(format!("{value:?} is no time at all; use 10s")),
                window => window,
            }
        }
        _ => {
            let rate = value.parse().ok().filter(|rate| (0.0..=1e6).contains(rate));
            budget.min_per_second =
                rate.ok_or_else(|| format!("{value:?}: use a number from 0 to 1000000"))?;
        }
    }
    Ok(())
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
pub(super) type Snapshot = Arc<[Arc<Endpoint>]>;
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
        Self { rules, endpoints: Arc::new([]), cursor: AtomicUsize::new(0), budget, rng }
    }

    /// Discovery tells the endpoints, as server and generation. Those known keep their statistics.
    pub(super) fn told(&mut self, endpoints: &[(usize, u32)], now: Instant) {
        let known = |server, generation| {
            let same = |e: &&Arc<Endpoint>| e.server == server && e.generation == generation;
            self.endpoints.iter().find(same).cloned()
        };
        let fresh = |server, generation| {
            Arc::new(Endpoint { server, generation, stats: EndpointStats::new(now) })
        };
        let all = endpoints.iter().map(|&(s, g)| known(s, g).unwrap_or_else(|| fresh(s, g)));
        self.endpoints = all.collect();
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
        match pick(snapshot, &self.rules.0, &self.cursor, avoid, now, &mut self.rng) {
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
        let attempt = Attempt { sent, answer: Answer::Http(answer), retries, resends, endpoints };
        let budget = self.budget.as_ref();
        match retry::decide(policy, attempt, method, budget, true, now, &mut self.rng) {
            Verdict::Retry { backoff } => Next::Again { backoff },
            Verdict::Stop(StopReason::Limit) => Next::StopAtLimit,
            Verdict::Stop(StopReason::Budget) => Next::StopByBudget,
            Verdict::Stop(StopReason::NotRetryable | StopReason::NotReplayable) => Next::Stop,
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
