//! The interception rules by iptables, for kernels without nf_tables.
//!
//! Its programs do the work: `iptables-legacy-restore` and `ip6tables-legacy-restore`, else
//! `iptables-restore` and `ip6tables-restore`. Ours are two chains in the `nat` table and a jump to
//! each; everything else in there is somebody else's and stays.

mod script;
mod tool;

use std::{ffi::OsStr, fmt::Write, io, path::PathBuf};

use script::{Family, Ours};

use super::rules::Rules;

/// Why the rules of iptables could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// Nothing to do it with.
    #[error(
        "neither iptables-legacy-restore nor iptables-restore is on PATH; install package iptables \
         where this runs, or use --backend nft, which needs no program"
    )]
    Missing,
    /// IPv6 would go around the proxy.
    #[error(
        "{program} is not on PATH but IPv6 is on; install it, or switch IPv6 off (sysctl \
         net.ipv6.conf.all.disable_ipv6=1)"
    )]
    MissingV6 {
        /// What is missing.
        program: String,
    },
    /// A program does not start.
    #[error("cannot run {}: {error}", program.display())]
    Run {
        /// Which.
        program: PathBuf,
        /// The system's word.
        error: io::Error,
    },
    /// A program says no; the rules are as before.
    #[error("{}: {said}{}", program.display(), mend(said))]
    Refused {
        /// Which.
        program: PathBuf,
        /// Its word.
        said: String,
    },
    /// No implementation of iptables could do it.
    #[error("{}", each(.0))]
    AllRefused(Vec<IptablesError>),
}

fn mend(said: &str) -> &'static str {
    if said.contains("ermission denied") {
        "; needs CAP_NET_ADMIN in the pod's network namespace, and iptables-legacy CAP_NET_RAW too"
    } else if said.contains("initialize") {
        "; needs CAP_NET_ADMIN and CAP_NET_RAW, and kernel modules iptable_nat and ip6table_nat"
    } else if said.contains("lock") {
        "; another program is changing rules, or XTABLES_LOCKFILE names no file that can be opened"
    } else {
        "; needs kernel modules xt_REDIRECT, xt_owner, xt_mark and xt_tcpudp, and for iptables-nft \
         nf_tables and nft_compat"
    }
}

fn each(errors: &[IptablesError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Which implementation of iptables it was.
#[derive(Debug)]
pub struct Applied {
    /// What its programs' names begin with.
    pub by: &'static str,
    /// Why it was not the one before it.
    pub instead: Option<IptablesError>,
}

/// Puts the rules in force, in place of former ones of any implementation of iptables on this
/// search path, and says by which one: the first that can, going by a dry run.
///
/// Each family of addresses changes at once and as a whole. Acts on the calling thread's network
/// namespace and blocks until the programs have ended.
///
/// # Errors
/// Where none can; the former rules then stay.
pub fn apply(rules: &Rules, path: &OsStr) -> Result<Applied, IptablesError> {
    let (tools, families) = (tool::find(path), tool::families());
    let mut problems = Vec::new();
    let able = tools.iter().position(|tool| match tool.replace(rules, &families) {
        Ok(()) => true,
        Err(problem) => {
            problems.push(problem);
            false
        }
    });
    let Some(able) = able else {
        return Err(match problems.len() {
            0 => IptablesError::Missing,
            1 => problems.remove(0),
            _ => IptablesError::AllRefused(problems),
        });
    };
    for (at, other) in tools.iter().enumerate() {
        if at != able {
            // One that cannot look at its table cannot have written to it.
            _ = other.remove()?;
        }
    }
    Ok(Applied { by: tools[able].name, instead: problems.pop() })
}

/// Removes our chains and the jumps to them, as far as there are any and a program on this search
/// path knows of them. `Some` where one cannot say whether it does.
///
/// # Errors
/// Where a program does not remove what it has.
pub fn remove(path: &OsStr) -> Result<Option<IptablesError>, IptablesError> {
    let mut unknown = None;
    for tool in tool::find(path) {
        unknown = tool.remove()?.or(unknown);
    }
    Ok(unknown)
}

/// The rules as `iptables-restore --noflush` and `ip6tables-restore --noflush` read them, where
/// none of ours are there yet.
#[must_use]
pub fn print(rules: &Rules) -> String {
    let mut text = String::new();
    for (program, family) in [("iptables", Family::V4), ("ip6tables", Family::V6)] {
        let script = Ours::default().change(&Ours::wanted(rules, family)).unwrap_or_default();
        // Writing to a string does not fail.
        _ = write!(text, "# {program}-restore --noflush\n{script}");
    }
    text
}
