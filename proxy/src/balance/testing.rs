//! Where virtual time begins in the tests of this folder. The simulations are in the command line's
//! crate (`cli/src/sim`, `cli/tests/sim`), which runs this folder's code as `remora sim` does.

use std::time::Instant;

/// Only differences matter, so real time leaves no trace in a test.
#[expect(clippy::disallowed_methods, reason = "an Instant cannot be made from nothing")]
pub(crate) fn epoch() -> Instant {
    Instant::now()
}
