//! The agent of a node: one process in the node's own namespaces, as root.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use remora_core::names::ports;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{Answer, MAX_LINE, Request, namespace};
use crate::redirect::{RedirectConfig, RedirectError, cli::Rules, nft};

/// Longest exchange with one pod.
const EXCHANGE: Duration = Duration::from_secs(5);
/// Exchanges at a time; more wait in the kernel's queue.
const MAX_EXCHANGES: usize = 32;
/// Pause where the system cannot give us connections.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Flags of `redirect agent`.
#[derive(Debug, Clone, clap::Args)]
pub struct AgentArgs {
    /// Where pods of this node ask: the node's address.
    #[arg(long, value_name = "IP")]
    listen_ip: IpAddr,
    /// Port on it.
    #[arg(long, value_name = "PORT", default_value_t = ports::REDIRECT_AGENT)]
    listen_port: u16,
    /// Where the node's processes are.
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    proc: PathBuf,
}

/// The agent cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The port cannot be had.
    #[error("redirect agent: cannot listen on {address}: {error}; use an address of this node")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// The system's word.
        error: io::Error,
    },
    /// The process table cannot be read.
    #[error("redirect agent: {}: {error}; it needs hostPID and the node's root", proc.display())]
    Proc {
        /// Where it should be.
        proc: PathBuf,
        /// The system's word.
        error: io::Error,
    },
    /// The runtime cannot be made.
    #[error("redirect agent: cannot start: {0}")]
    Start(#[from] io::Error),
}

/// Serves the pods of this node until SIGTERM or SIGINT.
///
/// # Errors
/// Where it cannot begin.
pub fn run(args: &AgentArgs) -> Result<(), AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let address = SocketAddr::new(args.listen_ip, args.listen_port);
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| AgentError::Listen { address, error })?;
        let own = namespace::own(&args.proc)
            .map_err(|error| AgentError::Proc { proc: args.proc.clone(), error })?;
        eprintln!("redirect agent: serving the pods of this node on {address}");
        let stop = crate::app::signals()?;
        serve(listener, Node { proc: args.proc.clone(), own }.into(), stop).await;
        Ok(())
    })
}

/// What the agent knows of its node.
#[derive(Debug)]
pub(super) struct Node {
    /// Where its processes are.
    pub(super) proc: PathBuf,
    /// Inode of its own network namespace.
    pub(super) own: u64,
}

pub(super) async fn serve(listener: TcpListener, node: Arc<Node>, stop: impl Future<Output = ()>) {
    let mut stop = std::pin::pin!(stop);
    let room = Arc::new(Semaphore::new(MAX_EXCHANGES));
    let mut exchanges = JoinSet::new();
    loop {
        let next = async { (Arc::clone(&room).acquire_owned().await, listener.accept().await) };
        let (permit, accepted) = tokio::select! {
            () = &mut stop => break,
            next = next => next,
        };
        while exchanges.try_join_next().is_some() {}
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let node = Arc::clone(&node);
        exchanges.spawn(async move {
            let peer = peer.ip().to_canonical();
            match timeout(EXCHANGE, exchange(stream, peer, &node)).await {
                // The kubelet's probe connects and says nothing.
                Ok(Ok(None)) => {}
                Ok(Ok(Some(answer))) => eprintln!("redirect agent: pod {peer}: {answer:?}"),
                Ok(Err(error)) => eprintln!("redirect agent: pod {peer}: {error}"),
                Err(_) => eprintln!("redirect agent: pod {peer}: nothing within {EXCHANGE:?}"),
            }
            drop(permit);
        });
    }
    // What was begun is finished, so that no pod hangs on a half-done answer.
    while exchanges.join_next().await.is_some() {}
}

/// `None` where the other side said nothing.
async fn exchange(mut stream: TcpStream, peer: IpAddr, node: &Node) -> io::Result<Option<Answer>> {
    let mut line = String::new();
    let (read, mut write) = stream.split();
    if BufReader::new(read.take(MAX_LINE)).read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let answer = match parse(&line) {
        Ok((netns, config)) => {
            let (proc, own) = (node.proc.clone(), node.own);
            let work = move || apply(&proc, own, netns, peer, &config);
            tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
        }
        Err(problem) => Answer::Refused(problem),
    };
    let mut text = serde_json::to_string(&answer).map_err(io::Error::other)?;
    text.push('\n');
    write.write_all(text.as_bytes()).await?;
    Ok(Some(answer))
}

/// The rules as flags, with the parser of `redirect apply`.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct RuleFlags {
    #[command(flatten)]
    rules: Rules,
}

/// Reads what a pod asks for: the inode of its network namespace, and the rules.
///
/// # Errors
/// What is not understood.
pub fn parse(line: &str) -> Result<(u64, RedirectConfig), String> {
    let request: Request =
        serde_json::from_str(line).map_err(|error| format!("not understood: {error}"))?;
    let flags = RuleFlags::try_parse_from(&request.rules)
        .map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())?;
    Ok((request.netns, flags.rules.config()))
}

/// Blocks for a few milliseconds.
fn apply(proc: &Path, own: u64, netns: u64, peer: IpAddr, config: &RedirectConfig) -> Answer {
    if netns == own {
        return Answer::Refused("this is the node's own network; the pod uses hostNetwork".into());
    }
    let namespace = match namespace::open(proc, netns) {
        Ok(Some(namespace)) => namespace,
        Ok(None) => {
            return Answer::Refused(format!(
                "no process of this node lives in network namespace {netns}; ask the agent of the \
                 pod's own node"
            ));
        }
        Err(error) => return Answer::Refused(format!("{}: {error}", proc.display())),
    };
    let table = config.rules().table();
    let work = move || -> Result<Result<bool, RedirectError>, String> {
        let addresses = namespace::addresses().map_err(|error| error.to_string())?;
        if !addresses.contains(&peer) {
            return Err(format!("network namespace {netns} does not have the address {peer}"));
        }
        Ok(nft::create(&table))
    };
    match namespace::inside(namespace, work) {
        Ok(Ok(Ok(true))) => Answer::Applied,
        Ok(Ok(Ok(false))) => Answer::InForce,
        Ok(Ok(Err(error))) => Answer::Refused(error.to_string()),
        Ok(Err(problem)) => Answer::Refused(problem),
        Err(error) => Answer::Refused(format!("cannot enter network namespace {netns}: {error}")),
    }
}
