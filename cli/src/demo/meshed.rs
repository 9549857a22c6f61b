//! The mesh that the demo is about: what `remora up` brings to life, in a stage of its own.
//!
//! As with `up`, the outer process ([`run`]) owns the terminal's signals and the state directory;
//! the story itself is told inside the stage ([`run_stage`]), on the node's network, from where
//! every sidecar's admin endpoint can be asked.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, IsTerminal, Write},
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use remora_core::names::ports;

use super::{
    Args, Place,
    cluster::{Cluster, Error, Pod},
    evidence,
    manifests::NAMESPACE,
    screen::Screen,
    tell,
};
use crate::up::{
    self,
    publish::{self, Publish},
    stage::{self, Lifeline},
    state::StateDir,
};

/// Name of the demo's mesh, for `remora exec`.
const NAME: &str = "demo";
/// Time for the pods to end after the story.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// Arguments of the hidden `demo-stage`.
#[derive(Debug, clap::Args)]
pub struct StageArgs {
    #[command(flatten)]
    demo: Args,
    #[arg(long)]
    state: PathBuf,
    /// Where the host reaches web.
    #[arg(long)]
    published: Option<SocketAddr>,
    /// Where the host reaches the dashboard.
    #[arg(long)]
    dashboard: Option<SocketAddr>,
}

/// The outer process; `None` where the machine forbids namespaces, which the stage has explained.
pub(super) async fn run(args: &Args) -> Result<Option<u8>, Error> {
    let state = StateDir::create(NAME).map_err(mesh)?;
    let mut program: Vec<OsString> = vec!["demo-stage".into()];
    program.extend(args.flags());
    program.extend(["--state".into(), state.root().into()]);
    if args.keep {
        let target = ("web".to_owned(), NAMESPACE.to_owned(), "80".to_owned());
        let publish = Publish { listen: (Ipv4Addr::LOCALHOST, 0).into(), target };
        let listener = publish::listen(&publish).await.map_err(mesh)?;
        let at = listener.local_addr().map_err(|e| Error::Mesh(e.to_string()))?;
        program.extend(["--published".into(), at.to_string().into()]);
        tokio::spawn(publish::carry(listener, publish, state.path("publish.sock")));
        if let Some(at) = up::show_dashboard(&state).await {
            program.extend(["--dashboard".into(), at.to_string().into()]);
        }
    }
    let code = stage::launch(&state, &program).await.map_err(mesh)?;
    Ok((code != stage::FORBIDDEN).then_some(code))
}

/// `demo-stage`: puts the shop up and tells the story.
#[must_use]
pub fn run_stage(args: &StageArgs) -> ExitCode {
    let state = StateDir::at(args.state.clone());
    // `up` says on standard error what it restarts, in the middle of lines that are drawn over.
    let mut said = match divert_stderr(&state.path("logs").join("up.log")) {
        Ok(said) => said,
        Err(error) => {
            eprintln!("remora: demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let told = match runtime {
        Ok(runtime) => runtime.block_on(inside(args, &state, &said)),
        Err(error) => Err(Error::Mesh(format!("no runtime: {error}"))),
    };
    match told {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = write!(said, "{}", evidence(&error, &state.path("logs")));
            let _ = writeln!(said, "remora: demo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn inside(args: &StageArgs, state: &StateDir, said: &File) -> Result<bool, Error> {
    let mut lifeline = stage::lifeline();
    let place = Place::prepare(&state.path("demo"), state.path("logs"), &args.demo)?;
    let (out, terminal): (Box<dyn Write>, _) = if args.demo.json {
        let said = said.try_clone().map_err(Error::file(Path::new("standard error")))?;
        let terminal = said.is_terminal();
        (Box::new(said), terminal)
    } else {
        (Box::new(io::stdout()), io::stdout().is_terminal())
    };
    let screen = Screen::new(out, terminal);
    let options = up::Options {
        dir: place.manifests(),
        state: state.clone(),
        quiet: true,
        one_user: up::one_user(),
        leaf_lifetime: Some(format!("{}s", args.demo.leaf_lifetime().as_secs())),
        dashboard: args.dashboard,
    };
    let cluster = up::cluster::Cluster::start(options).await.map_err(mesh)?;
    tokio::spawn(publish::serve(cluster.clone(), state.path("publish.sock")));
    let meshed = Meshed {
        cluster: cluster.clone(),
        manifests: place.manifests(),
        remora: place.values.remora.clone(),
        published: args.published,
        dashboard: args.dashboard,
    };
    let stop = async {
        lifeline.recv().await;
    };
    let told = tell(meshed, &place, &args.demo, screen, "namespaces", stop).await;
    tokio::select! {
        _ = tokio::time::timeout(ENDS_WITHIN, cluster.stop()) => {}
        // A second Ctrl-C, or the end of the outer process: the kernel ends what is left.
        Some(Lifeline::Cut) = lifeline.recv() => {}
    }
    told
}

/// From now on standard error is that file; returns what it was.
fn divert_stderr(path: &Path) -> Result<File, Error> {
    let stderr = || Error::file(Path::new("standard error"));
    let said = io::stderr().as_fd().try_clone_to_owned().map_err(stderr())?;
    let log = File::options().create(true).append(true).open(path).map_err(Error::file(path))?;
    nix::unistd::dup2_stderr(&log).map_err(|errno| stderr()(errno.into()))?;
    Ok(said.into())
}

fn mesh(error: up::error::Error) -> Error {
    Error::Mesh(error.to_string())
}

/// The story's handle on it.
struct Meshed {
    cluster: up::cluster::Cluster,
    manifests: PathBuf,
    remora: PathBuf,
    published: Option<SocketAddr>,
    dashboard: Option<SocketAddr>,
}

impl Cluster for Meshed {
    fn manifests(&self) -> &Path {
        &self.manifests
    }

    async fn pods(&mut self) -> Result<Vec<Pod>, Error> {
        let pods = self.cluster.pods().into_iter().filter(|pod| pod.key.0 == NAMESPACE);
        // One without an address is not there yet.
        let pods = pods.filter_map(|pod| {
            Some(Pod {
                admin: (pod.address?, ports::PROXY_ADMIN).into(),
                ready: pod.ready && !pod.terminating,
                name: pod.key.1,
            })
        });
        Ok(pods.collect())
    }

    async fn kill_control_plane(&mut self) -> Result<(), Error> {
        if self.cluster.kill_control_plane() {
            return Ok(());
        }
        Err(Error::Mesh("there is no control plane to kill".into()))
    }

    async fn revive_control_plane(&mut self) -> Result<(), Error> {
        self.cluster.revive_control_plane();
        Ok(())
    }

    fn to_try(&self, pods: &[Pod]) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(at) = self.dashboard {
            lines.push(format!("open http://{at}/ in a browser: the dashboard"));
        }
        if let Some(at) = self.published {
            lines.push(format!("curl http://{at}/"));
        }
        if let Some(web) = pods.iter().find(|pod| pod.is_of("web")) {
            let exec = format!("{} exec -n {NAMESPACE} {} --", self.remora.display(), web.name);
            lines.push(format!("{exec} curl -si -H 'remora-explain: 1' http://orders/"));
            let remora = self.remora.display();
            lines.push(format!("{remora} why ID, with the remora-decision-id of that answer"));
            lines.push(format!("{remora} top"));
            lines.push(format!("{exec} curl -s http://localhost:{}/metrics", ports::PROXY_ADMIN));
        }
        lines.push(format!("edit {} and save it", self.manifests.join("orders.yaml").display()));
        lines
    }
}
