//! Seeded simulation on virtual time.

use std::time::Instant;

/// Where virtual time begins. Only differences matter, so real time leaves no trace in a test.
#[expect(clippy::disallowed_methods, reason = "an Instant cannot be made from nothing")]
pub(super) fn epoch() -> Instant {
    Instant::now()
}
