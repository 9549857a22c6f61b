//! The program `remora-injector`.

use std::process::ExitCode;

use clap::Parser;
use remora_core::{
    failure, names,
    telemetry::{self, LogFormat},
};
use remora_injector::webhook::{Args, until_signal};

/// Writes sidecars into pods as they are made: the cluster's admission webhook.
#[derive(Debug, Parser)]
#[command(name = "remora-injector", version)]
struct Cli {
    #[command(flatten)]
    args: Args,
    /// Log filter, for example info or warn,remora_injector=debug.
    #[arg(long, env = names::env::LOG, default_value = "info")]
    log: String,
    /// Format of the log: text or json.
    #[arg(long, env = names::env::LOG_FORMAT, default_value = "text")]
    log_format: LogFormat,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let run = async { until_signal(cli.args, telemetry::init(&cli.log, cli.log_format)?).await };
    match run.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("remora-injector: {}", failure::sentence(error.chain()));
            ExitCode::FAILURE
        }
    }
}
