//! `remora`: the mesh's command line, and its programs in one binary.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    remora_cli::programs::run(remora_cli::programs::Cli::parse())
}
