//! The command line of Remora, and its programs in one binary.
//!
//! - [`programs`] the table of subcommands, the only place that knows all programs;
//! - [`up`] a directory of Kubernetes manifests brought to life on this machine.

pub mod programs;
pub mod up;
