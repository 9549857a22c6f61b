//! Gateway API's routes on Services: manifests, the control plane, and both proxies.

#![allow(clippy::unwrap_used, reason = "clippy sees only the tests themselves as tests")]

mod backends;
mod change;
mod conformance;
mod conformance_filters;
mod documented;
mod echo;
mod fault;
mod filters;
mod grpc;
mod matching;
mod owners;
mod policy;
mod shop;
mod streams;
