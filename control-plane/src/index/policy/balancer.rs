//! How an endpoint is chosen.

use std::time::Duration;

use remora_core::settings::{InvalidAnnotation, parse_duration};

use super::{Annotations, Warnings, no_effect, read, values, warning};

const ALGORITHM: &str = "balancer.remora.io/algorithm";
const HASH_ON: &str = "balancer.remora.io/hash-on";
const SLOW_START: &str = "balancer.remora.io/slow-start";
const DEFAULT_RTT: &str = "balancer.remora.io/default-rtt";
const DECAY: &str = "balancer.remora.io/decay";
const FAILURE_PENALTY: &str = "balancer.remora.io/failure-penalty";

pub(super) const KEYS: [&str; 6] =
    [ALGORITHM, HASH_ON, SLOW_START, DEFAULT_RTT, DECAY, FAILURE_PENALTY];

/// How an endpoint is chosen; absent values are the proxy's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Balancer {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// What [`Algorithm::RingHash`] hashes.
    pub hash_on: HashOn,
    /// Time in which the share of an endpoint that joined grows to all of it.
    pub slow_start: Option<Duration>,
    /// Round-trip time assumed of a new endpoint.
    pub default_rtt: Option<Duration>,
    /// Time constant of the moving average.
    pub decay: Option<Duration>,
    /// Latency that a failure counts as, at least.
    pub failure_penalty: Option<Duration>,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// Peak EWMA over power of two choices.
    #[default]
    PeakEwma,
    /// Fewest requests in flight.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Uniformly at random.
    Random,
    /// By consistent hashing.
    RingHash,
}

/// What of a request is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HashOn {
    /// A field of its head, in lower case.
    Header(String),
    /// A cookie.
    Cookie(String),
    /// The address of the client.
    #[default]
    ClientAddress,
}

pub(super) fn parse(map: &Annotations, warn: &mut Warnings) -> Result<Balancer, InvalidAnnotation> {
    let hash_on = read(map, HASH_ON, parse_hash_on)?;
    let algorithm = read(map, ALGORITHM, parse_algorithm)?.unwrap_or_default();
    let slow_start = read(map, SLOW_START, parse_duration)?;
    let balancer = Balancer {
        algorithm,
        hash_on: hash_on.clone().unwrap_or_default(),
        slow_start,
        default_rtt: read(map, DEFAULT_RTT, values::positive)?,
        decay: read(map, DECAY, values::positive)?,
        failure_penalty: read(map, FAILURE_PENALTY, parse_duration)?,
    };
    if algorithm != Algorithm::RingHash {
        let without = format!("without {ALGORITHM}: ring-hash; add that, or remove this");
        no_effect(map, &[HASH_ON], &without, warn);
        return Ok(balancer);
    }
    if hash_on.is_none() {
        let problem = format!(
            "ring-hash without {HASH_ON} hashes the client's address; say what to hash: \
             header:NAME, cookie:NAME or client-address"
        );
        warn.push(warning(ALGORITHM, problem));
    }
    if slow_start.is_some_and(|window| !window.is_zero()) {
        let with = format!("with {ALGORITHM}: ring-hash; remove this, or choose another algorithm");
        no_effect(map, &[SLOW_START], &with, warn);
    }
    Ok(balancer)
}

fn parse_algorithm(s: &str) -> Result<Algorithm, String> {
    match s {
        "peak-ewma" => Ok(Algorithm::PeakEwma),
        "least-request" => Ok(Algorithm::LeastRequest),
        "round-robin" => Ok(Algorithm::RoundRobin),
        "random" => Ok(Algorithm::Random),
        "ring-hash" => Ok(Algorithm::RingHash),
        _ => Err(format!("{s:?}: use peak-ewma, least-request, round-robin, random or ring-hash")),
    }
}

fn parse_hash_on(s: &str) -> Result<HashOn, String> {
    match s.split_once(':') {
        Some(("header", name)) => {
            Ok(HashOn::Header(values::token(name.trim())?.to_ascii_lowercase()))
        }
        Some(("cookie", name)) => Ok(HashOn::Cookie(values::token(name.trim())?)),
        None if s == "client-address" => Ok(HashOn::ClientAddress),
        _ => Err(format!("{s:?}: use header:NAME, cookie:NAME or client-address")),
    }
}
