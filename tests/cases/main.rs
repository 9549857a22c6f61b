//! End-to-end cases.

mod kube;
mod proxy;
mod up;
