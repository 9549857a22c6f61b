//! The program `remora-control-plane`.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use remora_control_plane::{Args, run};
use remora_core::{
    drain::{Drain, Drained},
    names,
    telemetry::{self, LogFormat},
};
use tokio::signal::unix::{SignalKind, signal};

/// Tells proxies what the addresses are that their applications dial, and gives workloads their
/// certificates.
#[derive(Debug, Parser)]
#[command(name = "remora-control-plane", version)]
struct Cli {
    #[command(flatten)]
    args: Args,
    /// Log filter, for example info or warn,remora_control_plane=debug.
    #[arg(long, env = names::env::LOG, default_value = "info")]
    log_level: String,
    /// Format of the log: text or json.
    #[arg(long, env = names::env::LOG_FORMAT, default_value = "text")]
    log_format: LogFormat,
}

/// Time that open streams have for ending by themselves.
const GRACE: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match program(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("remora-control-plane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn program(cli: Cli) -> anyhow::Result<()> {
    let log = telemetry::init(&cli.log_level, cli.log_format)?;
    let (drain, watch) = Drain::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut running = std::pin::pin!(run(cli.args, Some(log), watch));
    tokio::select! {
        result = &mut running => return result,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining");
    let (drained, result) =
        tokio::join!(drain.drain(GRACE), tokio::time::timeout(GRACE, &mut running));
    if let Drained::Aborted(left) = drained {
        tracing::warn!(left, "drain deadline passed");
    }
    result.unwrap_or(Ok(()))
}
