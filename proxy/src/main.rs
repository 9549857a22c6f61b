//! `remora-proxy`: the sidecar.

use std::process::ExitCode;

use clap::Parser;
use remora_core::failure;
use remora_proxy::program;

/// Remora's per-pod proxy.
#[derive(Debug, Parser)]
#[command(name = "remora-proxy", version)]
struct Cli {
    #[command(flatten)]
    program: program::Program,
}

fn main() -> ExitCode {
    match program::run(Cli::parse().program) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("remora-proxy: {}", failure::sentence(error.chain()));
            ExitCode::FAILURE
        }
    }
}
