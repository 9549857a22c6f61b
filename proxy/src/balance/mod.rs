//! Choosing an endpoint, deciding when to leave one alone, and whether to send again: pure, no
//! I/O, no clock, no global randomness. Time and generators come in as arguments.
//!
//! One request goes through the files like this:
//!
//! 1. [`retry::Budget::deposit`] counts it.
//! 2. [`pick::pick`] takes one endpoint of the Service's current [`Endpoints`], by the cost that
//!    [`ewma`] estimates or on a [`ring`], by the endpoint that [`affinity`] remembers and the state
//!    that [`breaker`] keeps, and hands back a guard, and why it is this one ([`choice`]).
//! 3. The guard, [`stats::InFlight`], counts the request as in flight until it is dropped. The
//!    caller reports how it ended; that feeds the estimate and the breaker. A guard dropped
//!    without a report is a request that the client gave up.
//! 4. [`retry::decide`] says whether a failed attempt is sent again, and after which pause; then
//!    it starts again at 2, the endpoint marked as [`pick::Tried`].
//!
//! [`stats::EndpointStats`] belongs to one endpoint and is shared by all workers of the process.
//! Everything in it is atomic: no lock is taken between picking and reporting.

pub mod affinity;
pub mod breaker;
pub mod bulkhead;
pub mod choice;
pub mod endpoints;
pub mod ewma;
pub mod history;
pub mod pick;
pub mod policy;
pub mod retry;
pub mod ring;
pub mod stats;
pub mod token;
mod window;

#[cfg(test)]
pub(crate) mod testing;

pub use endpoints::Endpoints;
pub use stats::EndpointStats;

use std::time::Instant;

/// Nanoseconds from `epoch` to `now`; 0 for a `now` before it. Enough for 584 years.
fn nanos_since(epoch: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(epoch).as_nanos()).unwrap_or(u64::MAX)
}
