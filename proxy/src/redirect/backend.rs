//! What writes the rules: nf_tables over netlink, or the programs of iptables.

use std::{ffi::OsStr, fmt};

pub use remora_core::settings::RedirectBackend as Backend;

use super::{
    iptables::{self, Applied, IptablesError},
    nft::{self, NftError, Table},
    rules::Rules,
};

/// Why the rules are not in force, or not gone.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// nf_tables refused.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// iptables refused.
    #[error(transparent)]
    Iptables(#[from] IptablesError),
    /// The kernel has no nf_tables, and iptables could not either.
    #[error("{nft}; nor by iptables: {iptables}")]
    Neither {
        /// What nf_tables said.
        nft: NftError,
        /// What iptables said.
        iptables: IptablesError,
    },
}

/// How the rules came into force. Displays as one line.
#[derive(Debug)]
pub struct Written {
    by: &'static str,
    /// Why not by what was tried first.
    instead: Option<BackendError>,
    /// Why it is not known whether rules of iptables are left.
    left: Option<IptablesError>,
}

/// Puts the rules in force in place of former ones, whichever backend wrote those. For a moment
/// both kinds are there, rather than none.
///
/// Programs of iptables are looked for on `path`.
///
/// # Errors
/// Where the backend cannot, the former rules then stay; and where those of the other backend
/// cannot be removed.
pub(super) fn apply(
    rules: &Rules,
    backend: Backend,
    path: &OsStr,
) -> Result<Written, BackendError> {
    apply_with(rules, backend, path, nft::replace)
}

/// The same with whatever writes to nf_tables.
pub(super) fn apply_with(
    rules: &Rules,
    backend: Backend,
    path: &OsStr,
    write_nft: impl FnOnce(&Table) -> Result<(), NftError>,
) -> Result<Written, BackendError> {
    let instead = match backend {
        Backend::Iptables => None,
        Backend::Nft | Backend::Auto => match write_nft(&rules.table()) {
            Ok(()) => {
                // Mostly there is no program of iptables. One that is there but cannot say what it
                // has, because rules of others are beyond it, must not keep a pod from starting.
                let left = iptables::remove(path)?;
                return Ok(Written { by: "nftables", instead: None, left });
            }
            Err(error @ NftError::Unsupported { .. }) if backend == Backend::Auto => Some(error),
            Err(error) => return Err(error.into()),
        },
    };
    let Applied { by, instead: iptables } = match (iptables::apply(rules, path), &instead) {
        (Ok(applied), _) => applied,
        (Err(iptables), Some(nft)) => {
            return Err(BackendError::Neither { nft: nft.clone(), iptables });
        }
        (Err(error), None) => return Err(error.into()),
    };
    remove_nft()?;
    let instead = instead.map(Into::into).or(iptables.map(Into::into));
    Ok(Written { by, instead, left: None })
}

/// Removes the rules of every backend; no error where there are none.
///
/// # Errors
/// Where the kernel or a program refuses.
pub(super) fn remove(path: &OsStr) -> Result<(), BackendError> {
    remove_nft()?;
    match iptables::remove(path)? {
        Some(problem) => Err(problem.into()),
        None => Ok(()),
    }
}

fn remove_nft() -> Result<(), NftError> {
    match super::remove() {
        // Then there are none.
        Err(NftError::Unsupported { .. }) => Ok(()),
        other => other,
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rules in force by {}", self.by)?;
        if let Some(why) = &self.instead {
            write!(f, "; tried first: {why}")?;
        }
        if let Some(problem) = &self.left {
            write!(f, "; cannot tell whether rules of iptables are left: {problem}")?;
        }
        Ok(())
    }
}
