//! End-to-end cases.

mod proxy;
mod up;
