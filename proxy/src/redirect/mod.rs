//! Transparent interception: the rules in a pod's network namespace that turn its TCP connections
//! to the proxy, and, where no kube-proxy does it, the node's translation of Service addresses. Where a
//! pod may not write them itself, [`node`] does.
//!
//! Everything here acts on the calling thread's network namespace and blocks for the kernel's
//! answer, which takes a few milliseconds.

mod backend;
mod cli;
pub mod iptables;
pub mod nft;
pub mod node;
mod rules;
mod service_nat;

pub use backend::{Backend, BackendError, Written};
pub use cli::{Args, Error, run};
pub use nft::NftError as RedirectError;
pub use rules::{Except, Exempt, RedirectConfig, Rules, Way};
pub use service_nat::{ServiceNat, ServiceVip};

#[cfg(test)]
mod tests;

/// Name of the pod's table.
const TABLE: &str = "remora";

/// Puts the interception rules in force by nf_tables, in place of former ones of its own.
///
/// # Errors
/// Where the kernel refuses; the former rules then stay.
pub fn apply(config: &RedirectConfig) -> Result<(), RedirectError> {
    nft::replace(&config.rules().table())
}

/// Removes the interception rules of nf_tables; no error where there are none.
///
/// # Errors
/// Where the kernel refuses.
pub fn remove() -> Result<(), RedirectError> {
    nft::remove(TABLE)
}
