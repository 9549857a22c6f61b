//! `remora` as the cases run it: the same entry as the released binary, built with them so that
//! cargo always has it fresh.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    remora_cli::programs::run(remora_cli::programs::Cli::parse())
}
