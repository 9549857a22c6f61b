//! `remora up` with ordinary programs that know nothing of the mesh: what people see when they
//! bring plain manifests to life, break things, and edit.
//!
//! Programs that are not installed are looked for first; a case that lacks one says which package
//! has it and passes. Cases run as the user who runs them and, where `root` says so, as a user
//! without rights too.

#![allow(clippy::unwrap_used, reason = "clippy sees only the tests themselves as tests")]

mod binds;
mod capture;
mod dashboard;
mod edit;
mod kill;
mod loops;
pub(crate) mod manifests;
pub(crate) mod mesh;
mod nginx;
mod observe;
mod protocols;
mod reach;
mod wrong;
