//! What the addresses that the application dials are, told by the control plane and kept up to
//! date by one stream.
//!
//! [`cache::Discovery`] is what the data path asks: a lock-free look-up, and on a miss a
//! subscription and a bounded wait. [`client::run`] is the one task that talks to the control
//! plane. Whatever was told stays in force until something else is told: a broken stream changes
//! nothing. [`service`] and [`inbound`] hold the parsed answers, [`snapshot`] the file from which a
//! proxy without a control plane starts.

pub mod cache;
pub mod client;
pub mod endpoint;
#[cfg(test)]
mod failover_tests;
pub mod inbound;
pub(crate) mod policy;
mod registry;
pub mod service;
pub mod snapshot;
#[cfg(test)]
mod tests;
pub mod traffic;
pub(crate) mod wire;

pub use cache::{Discovery, DiscoveryError, Limits, Resolution, Status, Target};
pub use endpoint::Endpoint;
pub use inbound::InboundPolicy;
pub use service::{PodTarget, Protocol, Service, ServiceId, ServiceState};
pub use wire::WireError;
