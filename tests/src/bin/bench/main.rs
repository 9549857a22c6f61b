//! What Remora costs: instructions per request of each proxy, sidecar pairs side by side, and the
//! control plane at scale.
//! docs/performance.md says how to read the figures.

mod backend;
mod compare;
mod instructions;
mod load;
mod mesh;
mod process;
mod scale;

use std::{future::Future, process::ExitCode};

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// Measurements of Remora's programs.
#[derive(Debug, Parser)]
#[command(name = "bench", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    program: Program,
}

#[derive(Debug, Subcommand)]
enum Program {
    /// User instructions per request of the outbound and the inbound proxy, counted by callgrind
    Instructions(instructions::Args),
    /// Our pair, a pair of Envoys and no proxy at all, in one run, interleaved, on pinned CPUs
    Compare(compare::Args),
    /// The control plane at the size of a large cluster: memory, CPU and delay of a rollout
    Scale(scale::Args),
    /// Load: closed loop or at a constant rate; prints one line of JSON
    Load(load::Args),
    /// A back end for HTTP/1.1, HTTP/2, echoed bytes and bulk bytes
    Backend(backend::Args),

    /// Become a command, pinned and in a pod's network, that ends with its parent
    #[command(hide = true)]
    Enter(process::Enter),
    /// Hold a network namespace until standard input ends
    #[command(hide = true)]
    Pod,
    /// Turn the pod's connections to its sidecar, or no longer
    #[command(hide = true)]
    Intercept(compare::pods::Intercept),
    /// Print what an admin endpoint answers
    #[command(hide = true)]
    Fetch(load::Fetch),
}

fn main() -> ExitCode {
    match run(Cli::parse().program) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(program: Program) -> anyhow::Result<()> {
    match program {
        Program::Instructions(args) => block_on(instructions::run(args)),
        Program::Compare(args) => {
            // Namespaces are entered before there are threads.
            compare::pods::leave_host_network()?;
            block_on(compare::run(args))
        }
        Program::Scale(args) => block_on(scale::run(args)),
        Program::Load(args) => block_on(load::run(args)),
        Program::Backend(args) => block_on(backend::run(args)),
        Program::Enter(args) => process::enter(&args),
        Program::Pod => compare::pods::hold(),
        Program::Intercept(args) => compare::pods::intercept(&args),
        Program::Fetch(args) => block_on(load::fetch_and_print(args)),
    }
}

/// Runs to the end or to Ctrl-C or SIGTERM; what was started is dropped, and with that killed.
fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            result = work => result,
            _ = interrupt.recv() => anyhow::bail!("interrupted"),
            _ = terminate.recv() => anyhow::bail!("terminated"),
        }
    })
}
