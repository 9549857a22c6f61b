//! What a route's annotations ask for, for all of its rules.

use std::sync::Arc;

use remora_core::names::annotations::{
    BALANCER_PREFIX, FAULT_PREFIX, RETRY_PREFIX, TIMEOUT_PREFIX,
};

use super::{
    Annotations, Warnings,
    fault::{self, Fault},
    or,
    retry::{self, Retry},
    timeouts::{self, Timeouts},
    warning,
};

/// What a route's annotations ask for, for all of its rules.
#[derive(Debug, Clone, PartialEq, Default)]
pub(in crate::index) struct RoutePolicy {
    /// What is sent again; `None`: they do not say.
    pub(in crate::index) retry: Option<Retry>,
    /// How it is sent again, where something else says that it is.
    pub(in crate::index) how: Retry,
    pub(in crate::index) timeouts: Timeouts,
    pub(in crate::index) fault: Option<Arc<Fault>>,
}

/// Every annotation of a route that is read.
pub fn known() -> impl Iterator<Item = &'static str> {
    retry::KEYS.into_iter().chain(timeouts::KEYS).chain(fault::KEYS)
}

impl RoutePolicy {
    /// Reads a route's annotations; `retries` says whether one of its rules asks for retries itself.
    /// Where one of a group is bad, the group stays as it was.
    pub(in crate::index) fn parse(
        map: &Annotations,
        retries: bool,
        old: Option<&Self>,
        warn: &mut Warnings,
    ) -> Self {
        unknown_keys(map, warn);
        let old = old.cloned().unwrap_or_default();
        let mut of_nothing = Vec::new();
        let retry = retry::parse(map, if retries { &mut of_nothing } else { warn });
        let how = retry.is_ok().then(|| retry::read_all(map).ok()).flatten();
        Self {
            retry: or(retry, old.retry, warn),
            how: how.unwrap_or(old.how),
            timeouts: or(timeouts::parse(map), old.timeouts, warn),
            fault: or(fault::parse(map, warn).map(|fault| fault.map(Arc::new)), old.fault, warn),
        }
    }
}

fn unknown_keys(map: &Annotations, warn: &mut Warnings) {
    for key in map.keys() {
        let ours = [BALANCER_PREFIX, RETRY_PREFIX, TIMEOUT_PREFIX, FAULT_PREFIX];
        let Some(prefix) = ours.into_iter().find(|prefix| key.starts_with(prefix)) else {
            continue;
        };
        if prefix == BALANCER_PREFIX {
            let problem = "has no effect on a route; put it on the Service that is balanced";
            warn.push(warning(key, problem));
        } else if known().all(|known| known != key.as_str()) {
            let names: Vec<_> = known().filter_map(|k| k.strip_prefix(prefix)).collect();
            let problem = format!("unknown, ignored; known under {prefix}: {}", names.join(", "));
            warn.push(warning(key, problem));
        }
    }
}
