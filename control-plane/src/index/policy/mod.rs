//! What a Service's annotations ask for. Each group of them has a file that says what it means.

use std::{collections::BTreeMap, time::Duration};

use remora_core::{
    names::annotations::{BALANCER_PREFIX, RETRY_PREFIX, TIMEOUT_PREFIX},
    settings::{self, InvalidAnnotation},
};

pub mod affinity;
pub mod balancer;
pub mod breaker;
pub mod bulkheads;
pub mod fault;
pub mod retry;
pub mod route;
pub mod timeouts;
mod values;

use affinity::Affinity;
use balancer::Balancer;
use breaker::Breaker;
use bulkheads::Bulkheads;
use retry::Retry;
use timeouts::Timeouts;

/// Annotations that could not be used, and what follows.
pub(crate) type Warnings = Vec<InvalidAnnotation>;

/// Annotations of ours, by key.
pub(crate) type Annotations = BTreeMap<String, String>;

/// All policy of one Service.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Policy {
    /// How endpoints are chosen.
    pub balancer: Balancer,
    /// Who keeps the endpoint that it had; `None`: nobody.
    pub affinity: Option<Affinity>,
    /// When they are ejected.
    pub breaker: Breaker,
    /// What is sent again; `None`: only what provably never ran.
    pub retry: Option<Retry>,
    /// Time-outs; absent is no bound.
    pub timeouts: Timeouts,
    /// How much at a time.
    pub bulkheads: Bulkheads,
}

/// What follows from a value that cannot be used.
const LEFT: &str = "; what held before, or else the default, stays in force";

/// Every key that is read.
const KNOWN: [&[&str]; 6] = [
    &balancer::KEYS,
    &affinity::KEYS,
    &breaker::KEYS,
    &bulkheads::KEYS,
    &retry::KEYS,
    &timeouts::KEYS,
];

/// Every annotation of a Service that [`Policy`] is read from.
pub fn known() -> impl Iterator<Item = &'static str> {
    KNOWN.into_iter().flatten().copied()
}

impl Policy {
    /// Reads a Service's annotations; `client_ip` is the time-out of its `sessionAffinity: ClientIP`,
    /// where it has that. Where one of a group is bad, the group stays as it was, or as it is
    /// without annotations. What contradicts itself is a warning.
    pub(crate) fn parse(
        map: &Annotations,
        client_ip: Option<Duration>,
        old: Option<&Self>,
        warn: &mut Warnings,
    ) -> Self {
        unknown_keys(map, warn);
        let old = old.cloned().unwrap_or_else(|| {
            let affinity = affinity::of_address(client_ip);
            Self { affinity, ..Self::default() }
        });
        Self {
            balancer: or(balancer::parse(map, warn), old.balancer, warn),
            affinity: or(affinity::parse(map, client_ip, warn), old.affinity, warn),
            breaker: or(breaker::parse(map, warn), old.breaker, warn),
            retry: or(retry::parse(map, warn), old.retry, warn),
            timeouts: or(timeouts::parse(map), old.timeouts, warn),
            bulkheads: or(bulkheads::parse(map, warn), old.bulkheads, warn),
        }
    }
}

fn or<T>(new: Result<T, InvalidAnnotation>, old: T, warn: &mut Warnings) -> T {
    new.unwrap_or_else(|error| {
        warn.push(left(error));
        old
    })
}

/// A bad value that leaves what it was to change as it was.
pub(super) fn left(mut error: InvalidAnnotation) -> InvalidAnnotation {
    error.problem.push_str(LEFT);
    error
}

/// Whether it says of a value that it cannot be used, and not only what follows from one that can.
pub(crate) fn is_left(warning: &InvalidAnnotation) -> bool {
    warning.problem.ends_with(LEFT)
}

fn unknown_keys(map: &Annotations, warn: &mut Warnings) {
    for key in map.keys() {
        let ours = [BALANCER_PREFIX, RETRY_PREFIX, TIMEOUT_PREFIX];
        let Some(prefix) = ours.into_iter().find(|prefix| key.starts_with(prefix)) else {
            continue;
        };
        if known().all(|known| known != key.as_str()) {
            let names: Vec<_> = known().filter_map(|k| k.strip_prefix(prefix)).collect();
            let problem = format!("unknown, ignored; known under {prefix}: {}", names.join(", "));
            warn.push(warning(key, problem));
        }
    }
}

/// What is read, but not as its writer may think.
fn warning(key: &str, problem: impl Into<String>) -> InvalidAnnotation {
    InvalidAnnotation { key: key.to_owned(), problem: problem.into() }
}

/// Warns of each of the keys that is there and does nothing.
fn no_effect(map: &Annotations, keys: &[&str], without: &str, warn: &mut Warnings) {
    for key in keys.iter().filter(|key| map.contains_key(**key)) {
        warn.push(warning(key, format!("has no effect {without}")));
    }
}

fn read<T>(
    map: &Annotations,
    key: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, InvalidAnnotation> {
    settings::read(map, key, parse)
}

#[cfg(test)]
mod tests;
