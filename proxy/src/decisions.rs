//! Why requests failed: a bounded ring of the last ones that the proxy answered itself.
//!
//! Only failures are recorded, so a request that succeeds pays nothing.

use std::{collections::VecDeque, time::Duration};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use crate::{error::Error, metrics::Direction};

/// Records kept; the oldest goes first.
pub const MAX: usize = 256;
/// Bytes of a path that are kept.
const MAX_PATH: usize = 256;
/// Endpoints named in one record.
const MAX_TRIED: usize = 8;

/// The last failures of both directions.
#[derive(Debug, Default)]
pub struct Decisions(Mutex<VecDeque<(Instant, Decision)>>);

/// One request that the proxy answered itself.
#[derive(Debug, Clone, Serialize)]
pub struct Decision {
    /// `outbound` or `inbound`.
    pub direction: &'static str,
    /// Whom the request was for: a Service, or the address of the application.
    pub target: String,
    /// The route that it took, `namespace/name/rule`; `None`: its Service has none.
    pub route: Option<String>,
    /// Its method.
    pub method: String,
    /// Its path without the query, which may hold secrets; cut at 256 bytes.
    pub path: String,
    /// Reason word, as in the header `remora-proxy-error`.
    pub reason: &'static str,
    /// Status that an HTTP client saw.
    pub status: u16,
    /// The whole sentence.
    pub error: String,
    /// Endpoints that were tried before the last attempt, in order; at most 8.
    pub tried: Vec<String>,
    /// From its arrival to the answer, in milliseconds.
    pub elapsed_ms: u128,
}

/// A record and its age.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// Milliseconds since the answer.
    pub ago_ms: u128,
    /// The record.
    #[serde(flatten)]
    pub decision: Decision,
}

/// The request that failed.
#[derive(Debug, Clone, Copy)]
pub struct Failed<'a> {
    /// Which way it went.
    pub direction: Direction,
    /// Whom it was for.
    pub target: &'a str,
    /// The route that it took.
    pub route: Option<&'a str>,
    /// Its method.
    pub method: &'a http::Method,
    /// Its path, without the query.
    pub path: &'a str,
    /// Since it arrived.
    pub elapsed: Duration,
}

impl Decisions {
    /// Records a failure.
    pub fn record<T: ToString>(
        &self,
        now: Instant,
        failed: Failed<'_>,
        error: &Error,
        tried: impl Iterator<Item = T>,
    ) {
        let path = failed.path;
        let cut =
            path.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= MAX_PATH);
        let decision = Decision {
            direction: failed.direction.as_str(),
            target: failed.target.to_owned(),
            route: failed.route.map(str::to_owned),
            method: failed.method.to_string(),
            path: path[..cut.last().unwrap_or(0)].to_owned(),
            reason: error.reason().as_str(),
            status: error.status().as_u16(),
            error: error.to_string(),
            tried: tried.take(MAX_TRIED).map(|endpoint| endpoint.to_string()).collect(),
            elapsed_ms: failed.elapsed.as_millis(),
        };
        let mut ring = self.0.lock();
        if ring.len() >= MAX {
            ring.pop_front();
        }
        ring.push_back((now, decision));
    }

    /// All of them, newest first.
    #[must_use]
    pub fn newest_first(&self, now: Instant) -> Vec<Shown> {
        let ring = self.0.lock();
        ring.iter()
            .rev()
            .map(|(at, decision)| Shown {
                ago_ms: now.saturating_duration_since(*at).as_millis(),
                decision: decision.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(decisions: &Decisions, path: &str) {
        let failed = Failed {
            direction: Direction::Outbound,
            target: "shop/orders:80",
            route: None,
            method: &http::Method::GET,
            path,
            elapsed: Duration::from_millis(3),
        };
        let error = Error::NoEndpoints { service: "shop/orders:80".into() };
        decisions.record(Instant::now(), failed, &error, ["10.0.0.1:80"].iter());
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_comes_first_and_the_oldest_goes() {
        let decisions = Decisions::default();
        for n in 0..=MAX {
            fail(&decisions, &format!("/{n}"));
        }
        let shown = decisions.newest_first(Instant::now());
        assert_eq!(shown.len(), MAX);
        assert_eq!(shown[0].decision.path, format!("/{MAX}"));
        assert_eq!(shown[MAX - 1].decision.path, "/1");
        assert_eq!((shown[0].decision.reason, shown[0].decision.status), ("no-endpoints", 503));
    }

    #[test]
    fn long_paths_are_cut() {
        let decisions = Decisions::default();
        fail(&decisions, &format!("/{}", "x".repeat(5000)));
        assert_eq!(decisions.newest_first(Instant::now())[0].decision.path.len(), MAX_PATH);
    }
}
