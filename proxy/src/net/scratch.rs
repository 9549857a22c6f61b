//! The bytes that a worker reads into before it knows what they are.
//!
//! Connections that wait hold no buffer of their own; what is read is used at once, and only what is
//! left over is kept.

use std::cell::RefCell;

/// Bytes read at once. Four TLS records: larger gains nothing measurable, smaller costs writes.
pub const SIZE: usize = 64 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SIZE].into());
}

/// Lends the worker's scratch space. Its content is arbitrary.
///
/// # Panics
/// Where it is lent already: do not read from a connection inside `f` that uses it too.
pub fn with<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| f(scratch))
}
