//! `remora-proxy`: the sidecar.

use std::process::ExitCode;

use clap::Parser;
use remora_core::{names::env, telemetry};
use remora_proxy::{app, config::Args};

/// Remora's per-pod proxy.
#[derive(Debug, Parser)]
#[command(name = "remora-proxy", version)]
struct Cli {
    #[command(flatten)]
    args: Args,
    /// Log filter, for example info or warn,remora_proxy=debug
    #[arg(long, env = env::LOG, default_value = "info")]
    log: String,
    /// text or json
    #[arg(long, env = env::LOG_FORMAT, default_value = "text")]
    log_format: telemetry::LogFormat,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("remora-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let log = telemetry::init(&cli.log, cli.log_format)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { app::run(cli.args, Some(log), app::signals()?).await })
}
