//! How much of a Service may be going on at a time.

use std::time::Duration;

use remora_core::settings::InvalidAnnotation;

use super::{Annotations, Warnings, no_effect, read, values};

const MAX_CONNECTIONS: &str = "balancer.remora.io/max-connections";
const MAX_IN_FLIGHT: &str = "balancer.remora.io/max-in-flight";
const MAX_PENDING: &str = "balancer.remora.io/max-pending";
const PENDING_TIMEOUT: &str = "balancer.remora.io/pending-timeout";

pub(super) const KEYS: [&str; 4] = [MAX_CONNECTIONS, MAX_IN_FLIGHT, MAX_PENDING, PENDING_TIMEOUT];

/// How much of a Service may be going on in a proxy at a time; absent is no bound, or the proxy's
/// default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bulkheads {
    /// Connections to all endpoints together.
    pub max_connections: Option<u32>,
    /// Requests.
    pub max_in_flight: Option<u32>,
    /// Requests that wait for their turn; 0: none waits.
    pub max_pending: u32,
    /// How long one waits.
    pub pending_timeout: Option<Duration>,
}

pub(super) fn parse(
    map: &Annotations,
    warn: &mut Warnings,
) -> Result<Bulkheads, InvalidAnnotation> {
    let bulkheads = Bulkheads {
        max_connections: read(map, MAX_CONNECTIONS, values::count_from_one)?,
        max_in_flight: read(map, MAX_IN_FLIGHT, values::count_from_one)?,
        max_pending: read(map, MAX_PENDING, values::count)?.unwrap_or(0),
        pending_timeout: read(map, PENDING_TIMEOUT, values::positive)?,
    };
    if bulkheads.max_connections.is_none() && bulkheads.max_in_flight.is_none() {
        let without =
            format!("without {MAX_IN_FLIGHT} or {MAX_CONNECTIONS}: nothing has to wait; add one");
        no_effect(map, &[MAX_PENDING, PENDING_TIMEOUT], &without, warn);
    } else if bulkheads.max_pending == 0 {
        let without = format!("without {MAX_PENDING} above 0: nothing may wait; add that");
        no_effect(map, &[PENDING_TIMEOUT], &without, warn);
    }
    Ok(bulkheads)
}
