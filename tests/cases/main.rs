//! End-to-end cases.

mod kube;
mod policy;
mod proxy;
mod up;
