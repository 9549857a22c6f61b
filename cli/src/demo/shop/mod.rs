//! The shop: ordinary programs that know nothing of the mesh.
//!
//! `web` answers over HTTP/1.1 and asks `orders`, which asks `inventory` by gRPC; `ticker` is a TCP
//! service that speaks first; `load` is the customer. They run as hidden subcommands of the same
//! binary, so that the demo needs nothing installed.

mod client;
mod control;
mod grpc;
mod guard;
mod inventory;
mod orders;
mod serve;
mod ticker;
mod web;

use std::{
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use remora_core::drain::{Drain, Watch};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::load;

pub(crate) use client::{CallError, GrpcClient, HttpClient};
pub(crate) use control::Behaviour;

/// Header in which `orders` names the pod that answered; `web` passes it on.
pub(crate) const POD_HEADER: &str = "shop-orders-pod";

/// Time between SIGTERM and the end of accepting. A pod is told to end at the moment its endpoint
/// begins to be withdrawn, not after, so a server that closes its listener at once refuses callers
/// that cannot know yet.
const LAME_DUCK: Duration = Duration::from_millis(500);
/// Time for open requests after that.
const GRACE: Duration = Duration::from_secs(5);

/// `remora shop …`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    program: Program,
}

#[derive(Debug, clap::Subcommand)]
enum Program {
    /// Answers over HTTP/1.1 after asking orders.
    Web(web::Args),
    /// Answers over HTTP/1.1 after asking inventory by gRPC.
    Orders(orders::Args),
    /// Answers by gRPC.
    Inventory(Server),
    /// Sends a banner, then echoes lines.
    Ticker(Server),
    /// Sends requests at a constant rate.
    Load(load::Args),
    /// Runs a program that ends with the one who started it.
    Guard(guard::Args),
}

/// What every server of the shop is told.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Server {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// Name of this pod.
    #[arg(long, env = "POD_NAME", default_value = "pod")]
    pod: String,
    /// Directory in which a file `<pod>.json` changes how this server behaves.
    #[arg(long, env = "SHOP_CONTROL_DIR")]
    control_dir: Option<PathBuf>,
}

/// Whether the server has been told to end: it then reports itself not ready.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leaving(Arc<AtomicBool>);

impl Leaving {
    fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs one of the shop's programs until it is told to end.
///
/// # Errors
/// Where it cannot start: an address in use, no runtime.
pub fn run(args: Args) -> anyhow::Result<()> {
    if let Program::Guard(args) = &args.program {
        return guard::run(args);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match args.program {
            Program::Web(args) => serve(args.server.clone(), |s| web::run(s, args)).await,
            Program::Orders(args) => serve(args.server.clone(), |s| orders::run(s, args)).await,
            Program::Inventory(server) => serve(server, inventory::run).await,
            Program::Ticker(server) => serve(server, ticker::run).await,
            Program::Load(args) => until_terminated(load::run(args)).await,
            Program::Guard(_) => Ok(()),
        }
    })
}

/// What a server gets: its socket, its name, its knobs, and how to end.
pub(crate) struct Serving {
    listener: TcpListener,
    pod: Arc<str>,
    control: control::Control,
    leaving: Leaving,
    drain: Watch,
}

/// Binds, serves, and on SIGTERM ends in order: not ready, then no new connections, then idle.
async fn serve<F>(server: Server, program: impl FnOnce(Serving) -> F) -> anyhow::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(server.listen)
        .await
        .with_context(|| format!("cannot listen on {}", server.listen))?;
    let (drain, watch) = Drain::new();
    let leaving = Leaving::default();
    let file = server.control_dir.map(|dir| dir.join(format!("{}.json", server.pod)));
    let (control, follow) = control::follow(file);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let follow = tokio::spawn(follow);
    let serving = tokio::spawn(program(Serving {
        listener,
        pod: server.pod.into(),
        control,
        leaving: leaving.clone(),
        drain: watch,
    }));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    leaving.begin();
    tokio::time::sleep(LAME_DUCK).await;
    drain.drain(GRACE).await;
    serving.abort();
    follow.abort();
    Ok(())
}

async fn until_terminated(program: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = program => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
