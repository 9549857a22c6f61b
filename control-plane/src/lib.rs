//! Remora's control plane: tells proxies what the addresses are that their applications dial, and
//! gives workloads their certificates.
//!
//! - [`source`] where objects come from: manifests today, speaking the same events as a watch;
//! - [`index`] objects in, answers out; pure;
//! - [`discovery`] the index over gRPC;
//! - [`identity`] the certificate authority;
//! - [`lint`] what can be known to be wrong with manifests; pure;
//! - [`leader`] what one replica of several writes: trust bundles, Events;
//! - [`server`] the listener with its own certificate;
//! - [`app`] puts them together.

pub mod app;
pub mod discovery;
pub mod identity;
pub mod index;
mod interned;
pub mod leader;
pub mod lint;
pub mod metrics;
mod pages;
pub mod server;
pub mod source;

pub use app::{Args, run, until_signal};
