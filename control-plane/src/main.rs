//! The program `remora-control-plane`.

use std::process::ExitCode;

use clap::Parser;
use remora_control_plane::{Args, until_signal};
use remora_core::{
    failure, names,
    telemetry::{self, LogFormat},
};

/// Tells proxies what the addresses are that their applications dial, and gives workloads their
/// certificates.
#[derive(Debug, Parser)]
#[command(name = "remora-control-plane", version)]
struct Cli {
    #[command(flatten)]
    args: Args,
    /// Log filter, for example info or warn,remora_control_plane=debug. The default leaves out what
    /// the Kubernetes client logs by itself: each of its errors is told here, with the mend.
    #[arg(long, env = names::env::LOG, default_value = "info,kube_client=off,kube_runtime=off")]
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
            eprintln!("remora-control-plane: {}", failure::sentence(error.chain()));
            ExitCode::FAILURE
        }
    }
}
