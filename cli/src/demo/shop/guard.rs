//! Runs a program that the kernel ends together with the one who started it.

use std::{ffi::OsString, os::unix::process::CommandExt, process::Command};

use anyhow::bail;
use nix::sys::{prctl, signal::Signal};

/// `remora shop guard -- PROGRAM…`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the program; returns only where it cannot.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let Some((program, words)) = args.command.split_first() else { bail!("no program given") };
    let error = Command::new(program).args(words).exec();
    bail!("cannot run {}: {error}", program.display())
}
