//! A scenario: servers, callers, what happens when, the policies to compare, and what is expected.
//!
//! - [`words`] times, shares and distributions; [`file`] the YAML as it is written;
//! - [`build`] what it means, checked; [`timeline`] what holds at which moment.

mod build;
mod file;
#[cfg(test)]
mod tests;
mod timeline;
pub(super) mod words;

use std::{ops::Range, time::Duration};

use http::Method;

pub(crate) use timeline::Edge;
pub use words::Latency;
pub(crate) use words::above_zero;

use super::{
    adapter::{self, Rules},
    expect::Expectation,
};

/// Bytes of a file.
pub const MAX_FILE: u64 = 1 << 20;
/// Servers, replicas counted one by one.
pub const MAX_SERVERS: u32 = 100;
/// Proxies of all groups of clients together.
pub const MAX_PROXIES: u32 = 1000;
/// Requests at a time that one proxy in a closed loop sends.
pub const MAX_CONCURRENCY: u32 = 1000;
/// Events, repetitions counted one by one.
pub const MAX_EVENTS: usize = 1000;
/// Policies to compare.
pub const MAX_POLICIES: usize = 8;
/// Expectations.
pub const MAX_EXPECTATIONS: usize = 100;
/// Requests that are simulated for one policy.
pub const MAX_REQUESTS: u32 = 2_000_000;

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What to call it: the file's name without its ending.
    pub name: String,
    /// What it is about, in a sentence.
    pub about: String,
    /// The seed where the command line gives none.
    pub seed: u64,
    /// How long clients send.
    pub duration: Duration,
    /// Requests that arrive before do not count.
    pub warmup: Duration,
    /// Round trip between a proxy and any server.
    pub network: Duration,
    /// Until proxies hear of a server that came or went.
    pub discovery: Duration,
    /// All servers; those of a group follow each other.
    pub servers: Vec<Server>,
    /// Servers by the name under which they are written.
    pub groups: Vec<Group>,
    /// Groups of proxies.
    pub clients: Vec<Clients>,
    /// The policies, each simulated alone; the first is the one meant where none is named.
    pub policies: Vec<NamedPolicy>,
    /// What should come of it.
    pub expect: Vec<Expectation>,
    changes: Vec<timeline::Change>,
    moves: Vec<timeline::Move>,
    disturbances: Vec<Range<Duration>>,
}

/// Servers that are written as one.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Indices of its servers.
    pub members: Range<usize>,
}

/// A server.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its name.
    pub name: String,
    behaviour: Behaviour,
}

/// What a server does with requests.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Behaviour {
    /// How long it is busy with one.
    pub(crate) latency: Latency,
    /// With how many at a time; the others wait.
    pub(crate) concurrency: Option<u32>,
    /// How many may wait; the others are answered 503.
    pub(crate) queue: u32,
    /// Requests a second beyond which it answers 429.
    pub(crate) rate_limit: Option<f64>,
    /// Shares that fail.
    pub(crate) failures: Vec<(Failure, f64)>,
    /// How long a 5xx or 429 takes, without a place among those that are worked on; as an answer
    /// where absent.
    pub(crate) fail_latency: Option<Latency>,
    /// `Retry-After` of 429 and 503, in seconds.
    pub(crate) retry_after: Option<u32>,
}

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It is answered with this status.
    Status(u16),
    /// The connection is refused.
    Connect,
    /// It is never answered.
    Hang,
    /// The connection breaks in the answer's place.
    Reset,
}

/// Proxies, each with an application that calls.
#[derive(Debug, Clone)]
pub struct Clients {
    /// What they are called.
    pub name: String,
    /// How many.
    pub count: u32,
    /// Of every request.
    pub method: Method,
    load: Load,
    active: Range<Duration>,
}

/// What one application sends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Load {
    /// So many requests a second, whatever becomes of them (Poisson).
    Open {
        /// Requests a second.
        rate: f64,
    },
    /// So many at a time, each after the one before was answered.
    Closed {
        /// Requests at a time.
        users: u32,
        /// Pause between an answer and the next request.
        think: Duration,
    },
}

/// A policy with its name.
#[derive(Debug, Clone)]
pub struct NamedPolicy {
    /// Its name.
    pub name: String,
    /// The words that it is written with.
    pub words: Vec<(String, String)>,
    pub(crate) rules: Rules,
}

/// What is wrong with a scenario.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ScenarioError {
    /// Where, from 1.
    pub line: u64,
    /// What, and the mend.
    pub problem: String,
}

impl Scenario {
    /// Reads a scenario; `name` is what to call it.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn parse(name: &str, text: &str) -> Result<Self, ScenarioError> {
        build::scenario(name, file::parse(text)?)
    }

    /// Sets a word in every policy, in place of what it was there.
    ///
    /// # Errors
    /// Where the word is unknown or its value cannot be used: what, and the mend.
    pub fn set(&mut self, word: &str, value: &str) -> Result<(), String> {
        let now = adapter::epoch();
        for policy in &mut self.policies {
            policy.words.retain(|(known, _)| !adapter::same(known, word));
            policy.words.push((word.to_owned(), value.to_owned()));
            policy.rules = Rules::parse(&policy.words, now).map_err(|bad| bad.problem)?;
        }
        Ok(())
    }

    /// Proxies of all groups.
    #[must_use]
    pub fn proxies(&self) -> u32 {
        self.clients.iter().map(|clients| clients.count).sum()
    }
}
