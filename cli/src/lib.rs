//! The command line of Remora, and its programs in one binary.
//!
//! - [`programs`] the table of subcommands, the only place that knows all programs;
//! - [`check`] whether a cluster can take the mesh, and an installed mesh does its job;
//! - [`up`] a directory of Kubernetes manifests brought to life on this machine;
//! - [`lint`] what can be known to be wrong with manifests;
//! - [`install`] the objects of an installation in a cluster, and their removal;
//! - [`observe`] what a running mesh does: `top`, `tap`, `why` and their kin;
//! - [`demo`] the story that shows what the mesh does, told on `up`;
//! - [`sim`] balancing, breaking and retries on virtual time.

pub mod check;
pub mod demo;
pub mod install;
pub mod lint;
pub mod observe;
pub mod programs;
pub mod sim;
pub mod up;
