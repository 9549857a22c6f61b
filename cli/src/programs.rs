//! The table of subcommands. Hidden ones are this program re-executed by itself: entering
//! namespaces has to happen before a process has threads, so each step is a process of its own.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::up;

/// A service mesh for Kubernetes that also runs on one machine.
#[derive(Debug, Parser)]
#[command(name = "remora", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    program: Program,
}

#[derive(Debug, Subcommand)]
enum Program {
    /// Bring a directory of Kubernetes manifests to life on this machine.
    Up(up::Args),
    /// Run a command inside a pod of a running `remora up`.
    Exec(up::exec::Args),

    /// Enter the namespaces of a stage.
    #[command(hide = true)]
    StageEnter(up::stage::EnterArgs),
    /// Be the first process of a stage.
    #[command(hide = true)]
    StageInit(up::stage::InitArgs),
    /// The part of `up` that runs inside the stage.
    #[command(hide = true)]
    UpStage(up::StageArgs),
    /// Hold a pod's namespaces.
    #[command(hide = true)]
    PodAnchor(up::enter::AnchorArgs),
    /// Enter a pod's namespaces and become a command.
    #[command(hide = true)]
    PodExec(up::enter::ExecArgs),
    /// Enter a stage's mount namespace, then a pod's, and become a command.
    #[command(hide = true)]
    StageExec(up::exec::StageExecArgs),
}

/// Runs the program that the command line names.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    match cli.program {
        Program::Up(args) => report(up::run(args)),
        Program::Exec(args) => report(up::exec::run(args)),
        Program::StageEnter(args) => report(up::stage::enter(args)),
        Program::StageInit(args) => report(up::stage::init(args)),
        Program::UpStage(args) => report(up::run_stage(args)),
        Program::PodAnchor(args) => report(up::enter::anchor(&args)),
        Program::PodExec(args) => report(up::enter::exec(&args)),
        Program::StageExec(args) => report(up::exec::stage_exec(args)),
    }
}

fn report<E: std::fmt::Display>(result: Result<ExitCode, E>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("remora: {error}");
        ExitCode::FAILURE
    })
}
