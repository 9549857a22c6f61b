//! `remora up DIR`: a directory of plain Kubernetes manifests brought to life on this machine,
//! with real processes, real network namespaces and real interception.
//!
//! [`run`] is the outer process: it owns the state directory and the terminal and starts the
//! stage ([`stage`]); [`run_stage`] is the program inside, which drives a [`cluster::Cluster`].

pub mod anchor;
pub mod cluster;
pub mod console;
pub mod dns;
pub mod enter;
pub mod env;
pub mod error;
pub mod exec;
pub mod ignored;
pub mod manifests;
pub mod mesh;
pub mod net;
pub mod plane;
pub mod pod;
pub mod probe;
pub mod process;
pub mod publish;
pub mod resolved;
pub mod services;
pub mod sidecar;
pub mod stage;
pub mod state;

use std::{ffi::OsString, fs, net::SocketAddr, path::PathBuf, process::ExitCode};

use error::{Doing, Error};
use publish::Publish;
use state::StateDir;

/// What pods see as their node's name.
pub const NODE_NAME: &str = "remora-node";

/// Name of a mesh that is given none.
pub const DEFAULT_NAME: &str = "default";

/// Arguments of `remora up`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of Kubernetes manifests (.yaml, .yml, .json).
    dir: PathBuf,
    /// Name of this mesh, where several run at a time.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// Make a Service reachable from this machine: 127.0.0.1:8080=web.shop:80.
    #[arg(long, value_name = "ADDRESS:PORT=SERVICE.NAMESPACE:PORT")]
    publish: Vec<String>,
    /// Keep the containers' output in their log files.
    #[arg(short, long)]
    quiet: bool,
}

/// Arguments of the hidden `up-stage`.
#[derive(Debug, clap::Args)]
pub struct StageArgs {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    state: PathBuf,
    #[arg(long)]
    quiet: bool,
    /// Where the host reaches the dashboard.
    #[arg(long)]
    dashboard: Option<SocketAddr>,
}

/// How to bring a directory to life.
#[derive(Debug, Clone)]
pub struct Options {
    /// The manifests.
    pub dir: PathBuf,
    /// Where logs and everything else goes.
    pub state: StateDir,
    /// Keep the containers' output off the terminal.
    pub quiet: bool,
    /// Whether the stage knows one user only (see [`one_user`]).
    pub one_user: bool,
    /// `--leaf-lifetime` of the control plane; its default where `None`.
    pub leaf_lifetime: Option<String>,
    /// Where the host reaches the dashboard, if it does.
    pub dashboard: Option<SocketAddr>,
}

/// Runs `remora up`, the outer process.
///
/// # Errors
/// Where the mesh cannot be started.
pub fn run(args: Args) -> Result<ExitCode, Error> {
    let dir = fs::canonicalize(&args.dir).doing(|| format!("read {}", args.dir.display()))?;
    // Before anything is made: what is wrong is said in one place, by one process.
    let manifests = manifests::load(&dir).map_err(Error::Manifests)?;
    if manifests.pods.is_empty() && manifests.services.is_empty() {
        return Err(Error::Manifests(vec![format!(
            "{}: no manifests; put files ending in .yaml, .yml or .json there",
            dir.display()
        )]));
    }
    let publish =
        args.publish.iter().map(|text| text.parse()).collect::<Result<Vec<Publish>, _>>()?;
    publish.iter().try_for_each(|publish| publish.check(&manifests.services))?;
    let state = StateDir::create(&args.name)?;
    let mut program: Vec<OsString> = vec!["up-stage".into(), "--dir".into(), dir.into()];
    program.extend(["--state".into(), state.root().into()]);
    if args.quiet {
        program.push("--quiet".into());
    }
    let code = runtime()?.block_on(outer(&state, program, publish))?;
    let code = if code == stage::FORBIDDEN { 1 } else { code };
    Ok(ExitCode::from(code))
}

/// Runs a program of ours in a stage, with published ports and the dashboard; returns its exit status.
///
/// # Errors
/// Where a port cannot be published or the stage cannot be started.
pub async fn outer(
    state: &StateDir,
    mut program: Vec<OsString>,
    publish: Vec<Publish>,
) -> Result<u8, Error> {
    if let Some(at) = show_dashboard(state).await {
        program.extend(["--dashboard".into(), at.to_string().into()]);
    }
    for publish in publish {
        let listener = publish::listen(&publish).await?;
        tokio::spawn(publish::carry(listener, publish, state.path("publish.sock")));
    }
    stage::launch(state, &program).await
}

/// Makes the dashboard reachable from this machine, and says where; `None` where that cannot be, which
/// is no reason to go without a mesh.
pub async fn show_dashboard(state: &StateDir) -> Option<SocketAddr> {
    let listener = publish::listen_for_dashboard().await.ok()?;
    let at = listener.local_addr().ok()?;
    tokio::spawn(publish::carry_dashboard(listener, state.path("publish.sock")));
    Some(at)
}

/// Runs the part of `remora up` that is inside the stage.
///
/// # Errors
/// Where the manifests cannot be brought to life.
pub fn run_stage(args: StageArgs) -> Result<ExitCode, Error> {
    runtime()?.block_on(async {
        let mut lifeline = stage::lifeline();
        let options = Options {
            dir: args.dir,
            state: StateDir::at(args.state),
            quiet: args.quiet,
            one_user: one_user(),
            leaf_lifetime: None,
            dashboard: args.dashboard,
        };
        let socket = options.state.path("publish.sock");
        let logs = options.state.path("logs");
        let console = console::Console::new(options.quiet);
        let cluster = cluster::Cluster::start(options).await?;
        console.say(&format!("logs are in {}; Ctrl-C ends it", logs.display()));
        tokio::spawn(publish::serve(cluster.clone(), socket));
        if lifeline.recv().await == Some(stage::Lifeline::Stop) {
            console.say("stopping; Ctrl-C again to end at once");
            tokio::select! {
                () = cluster.stop() => {}
                _ = lifeline.recv() => {}
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Whether this process is in a user namespace that does not know the proxy's user.
#[must_use]
pub fn one_user() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    // first id inside, first id outside, how many
    let knows = |line: &str| {
        let mut numbers = line.split_whitespace().map(|n| n.parse::<u64>().unwrap_or(0));
        let (first, _, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
        let uid = u64::from(remora_core::names::PROXY_UID);
        Some((first..first + count).contains(&uid))
    };
    !map.lines().any(|line| knows(line).unwrap_or(false))
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(|| "start a runtime".into())
}
