//! `remora-proxy`: the sidecar.

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

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let log = telemetry::init(&cli.log, cli.log_format)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { app::run(cli.args, Some(log), app::signals()?).await })
}
