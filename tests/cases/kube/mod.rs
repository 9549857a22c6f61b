//! The control plane and the injector against a double of the Kubernetes API server.

#![allow(clippy::unwrap_used, reason = "clippy sees only the tests themselves as tests")]

mod cluster;
mod double;
mod e2e;
mod fidelity;
mod identity;
mod injector;
mod kubelet;
mod leftovers;
mod lint;
mod observe;
mod plane;
mod routes;
mod shop;
mod uninstall;
