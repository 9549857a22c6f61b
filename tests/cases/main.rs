//! End-to-end cases.

mod proxy;
