//! Interception without a capability in the pod: an agent on the node writes the rules.
//!
//! A namespace that enforces the Pod Security levels `baseline` or `restricted` admits no container
//! with `NET_ADMIN`. There the init container only asks ([`ask`]), and the agent of its node
//! ([`agent`]), which may, writes the very same rules into the network namespace that asked.
//!
//! The exchange is one line of JSON each way over TCP. What the asker says is not trusted: the agent
//! takes rules only for a network namespace that has the address the connection came from, never for
//! the node's own, and only once. An application that starts later can thus not lift the rules of its
//! own pod, let alone another's.

mod agent;
mod ask;
mod namespace;

pub use agent::{AgentArgs, AgentError, parse as parse_request, run as agent};
pub use ask::{AskArgs, AskError, run as ask};
use serde::{Deserialize, Serialize};

/// Longest line of either side.
const MAX_LINE: u64 = 16 << 10;

/// What the init container says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Request {
    /// Inode of its network namespace, which is the same number seen from anywhere on the node.
    netns: u64,
    /// Flags as of `redirect apply`.
    rules: Vec<String>,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    /// The rules are in force.
    Applied,
    /// There were rules already; they stay as they are.
    InForce,
    /// They are not; says why.
    Refused(String),
}

#[cfg(test)]
mod tests;
