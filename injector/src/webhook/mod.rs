//! The injector as the API server calls it: a mutating admission webhook and what it needs to be
//! reachable.
//!
//! | file | job |
//! |---|---|
//! | `args` | flags, and the [`Settings`](crate::Settings) that follow from them |
//! | `app` | puts the parts together; the only file that knows all others |
//! | `server` | TLS and HTTP: accepts the API server's connections |
//! | `review` | one AdmissionReview in, one out |
//! | `namespaces` | what the namespaces' annotations say, mirrored to their label |
//! | `certs` | the serving certificate in its Secret, and the CA in the webhook's configuration |
//! | `events` | Kubernetes events about pods that did not get what was asked for |
//! | `metrics`, `cluster` | what `/metrics` shows; the client |
//!
//! # What happens when the injector is not there
//! `failurePolicy: Fail` with a time-out of 5 s: a pod of a namespace that opted in is not created
//! rather than created without its sidecar; its ReplicaSet tries again. Namespaces that did not opt
//! in do not call the webhook and notice nothing.

mod app;
mod args;
mod certs;
mod cluster;
mod events;
mod metrics;
mod namespaces;
mod review;
mod server;
#[cfg(test)]
mod tests;

pub use app::{run, serve, until_signal};
pub use args::{Args, Defaults};
