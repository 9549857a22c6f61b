//! The table of subcommands. Hidden ones are this program re-executed by itself: entering
//! namespaces has to happen before a process has threads, so each step is a process of its own.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use remora_core::{
    failure,
    names::env,
    telemetry::{self, LogError, LogFormat, LogHandle},
};

use crate::{
    check, demo, install, lint,
    observe::{diag, endpoints, routes, tap, top, why, why_endpoint},
    sim, up,
};

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
    /// Tell the story of a small shop in a mesh of its own.
    Demo(demo::Args),
    /// Simulate balancing, circuit breaking and retries over servers of your making.
    Sim(sim::Args),
    /// Say what can be known to be wrong with manifests.
    Lint(lint::Args),

    /// Watch Services and endpoints live: requests, success, latency, breakers.
    Top(top::Args),
    /// Show the endpoints of Services as their callers see them.
    Endpoints(endpoints::Args),
    /// Show the routes of Services and what takes them.
    Routes(routes::Args),
    /// Follow requests as they are answered, each with what was decided about it.
    Tap(tap::Args),
    /// Tell what became of one request, and why.
    Why(why::Args),
    /// Tell how an address became an endpoint, and what has come of it since.
    WhyEndpoint(why_endpoint::Args),
    /// Write all that a bug report needs into one archive, without secrets.
    Diag(diag::Args),

    /// See whether a cluster can take the mesh, and whether an installed mesh does its job.
    Check(check::Args),
    /// Write the objects of an installation: remora install | kubectl apply -f -
    Install(install::Args),
    /// Remove Remora from a cluster.
    Uninstall(install::uninstall::Args),
    /// Write sidecars into manifests, as the webhook does in a cluster.
    Inject(remora_injector::cli::Args),
    /// The sidecar.
    Proxy(remora_proxy::program::Program),
    /// Discovery and identity.
    ControlPlane(Box<Logged<remora_control_plane::Args>>),
    /// The admission webhook that writes sidecars into pods.
    Injector(Box<Logged<remora_injector::webhook::Args>>),
    /// Put the interception rules of a pod in force, or remove them.
    Redirect(remora_proxy::redirect::Args),

    /// The part of `demo` that runs inside the stage.
    #[command(hide = true)]
    DemoStage(demo::StageArgs),
    /// The shop's programs.
    #[command(hide = true)]
    Shop(demo::shop::Args),

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

/// A program that logs.
#[derive(Debug, clap::Args)]
struct Logged<A: clap::Args> {
    #[command(flatten)]
    args: A,
    /// Log filter, for example info or warn,remora_proxy=debug
    #[arg(long = "log", env = env::LOG, default_value = "info")]
    filter: String,
    /// text or json
    #[arg(long = "log-format", env = env::LOG_FORMAT, default_value = "text")]
    format: LogFormat,
}

impl<A: clap::Args> Logged<A> {
    fn log(&self) -> Result<LogHandle, LogError> {
        telemetry::init(&self.filter, self.format)
    }
}

/// Runs the program that the command line names.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    match cli.program {
        Program::Up(args) => report(up::run(args)),
        Program::Exec(args) => report(up::exec::run(args)),
        Program::Demo(args) => demo::run(&args),
        Program::Sim(args) => sim::main(&args),
        Program::Lint(args) => lint::main(&args),
        Program::Top(args) => top::run(&args),
        Program::Endpoints(args) => endpoints::run(&args),
        Program::Routes(args) => routes::run(&args),
        Program::Tap(args) => tap::run(&args),
        Program::Why(args) => why::run(&args),
        Program::WhyEndpoint(args) => why_endpoint::run(&args),
        Program::Diag(args) => diag::run(&args),
        Program::DemoStage(args) => demo::run_stage(&args),
        Program::Check(args) => report(check::run(&args)),
        Program::Install(args) => report(install::run(args)),
        Program::Uninstall(args) => report(install::uninstall::run(&args)),
        Program::Inject(args) => report(remora_injector::cli::run(&args).map(ExitCode::from)),
        Program::Proxy(program) => {
            report(remora_proxy::program::run(program).map(|()| ExitCode::SUCCESS))
        }
        Program::ControlPlane(program) => report(control_plane(*program)),
        Program::Injector(program) => report(injector(*program)),
        Program::Redirect(args) => {
            report(remora_proxy::redirect::run(&args).map(|()| ExitCode::SUCCESS))
        }
        Program::Shop(args) => report(demo::shop::run(args).map(|()| ExitCode::SUCCESS)),
        Program::StageEnter(args) => report(up::stage::enter(args)),
        Program::StageInit(args) => report(up::stage::init(args)),
        Program::UpStage(args) => report(up::run_stage(args)),
        Program::PodAnchor(args) => report(up::enter::anchor(&args)),
        Program::PodExec(args) => report(up::enter::exec(&args)),
        Program::StageExec(args) => report(up::exec::stage_exec(args)),
    }
}

fn control_plane(program: Logged<remora_control_plane::Args>) -> anyhow::Result<ExitCode> {
    let log = program.log()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(remora_control_plane::until_signal(program.args, log))?;
    Ok(ExitCode::SUCCESS)
}

fn injector(program: Logged<remora_injector::webhook::Args>) -> anyhow::Result<ExitCode> {
    let log = program.log()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(remora_injector::webhook::until_signal(program.args, log))?;
    Ok(ExitCode::SUCCESS)
}

fn report<E: Into<anyhow::Error>>(result: Result<ExitCode, E>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("remora: {}", failure::sentence(error.into().chain()));
        ExitCode::FAILURE
    })
}
