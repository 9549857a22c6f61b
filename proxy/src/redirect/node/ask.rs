//! What the init container does where the node's agent writes the rules. It needs no privilege.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use remora_core::{names::ports, settings::parse_duration};
use tokio::time::Instant;

use super::{Answer, MAX_LINE, Request, namespace};
use crate::redirect::cli::Rules;

/// Pause between attempts to reach the agent, which may be starting.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for a connection, and for an answer in the end.
const ATTEMPT: Duration = Duration::from_secs(10);
/// First wait for an answer; doubled each time. The answer to the very request that puts the rules in
/// force does not come through: connection tracking begins with the rules, takes the answer for the
/// first packet of a new connection and turns it to the proxy. Asked once more, on a connection that is
/// tracked from its beginning, the agent says that the rules are in force.
const FIRST_ANSWER: Duration = Duration::from_millis(200);

/// Flags of `redirect ask`.
#[derive(Debug, Clone, clap::Args)]
pub struct AskArgs {
    /// Address of this pod's node.
    #[arg(long, value_name = "IP")]
    agent_ip: IpAddr,
    /// Port of the agent on it.
    #[arg(long, value_name = "PORT", default_value_t = ports::REDIRECT_AGENT)]
    agent_port: u16,
    /// How long to wait for the agent.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    rules: Rules,
}

/// The rules are not in force.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The agent was not reached.
    #[error(
        "no redirect agent at {agent} within {waited:?}: {error}; see that DaemonSet \
         remora-redirect-agent runs on this pod's node"
    )]
    Unreachable {
        /// Where it should be.
        agent: SocketAddr,
        /// How long we tried.
        waited: Duration,
        /// What the last attempt said.
        error: io::Error,
    },
    /// It would not.
    #[error("redirect agent at {agent} refused: {problem}")]
    Refused {
        /// Which.
        agent: SocketAddr,
        /// Its reason.
        problem: String,
    },
    /// Our own namespace is not known.
    #[error("/proc/thread-self/ns/net: {0}")]
    Namespace(io::Error),
}

/// Asks until the agent answers or time is up.
///
/// # Errors
/// Where the rules are not in force at the end.
pub fn run(args: &AskArgs) -> Result<(), AskError> {
    let agent = SocketAddr::new(args.agent_ip, args.agent_port);
    let netns = namespace::own(Path::new("/proc")).map_err(AskError::Namespace)?;
    let request = Request { netns, rules: args.rules.flags() };
    // Nothing runs beside this: waiting blocks the thread, on a clock that tests could pause.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(AskError::Namespace)?;
    runtime.block_on(async {
        let began = Instant::now();
        let mut patience = FIRST_ANSWER;
        loop {
            match attempt(agent, &request, patience) {
                Ok(Answer::Applied | Answer::InForce) => return Ok(()),
                Ok(Answer::Refused(problem)) => return Err(AskError::Refused { agent, problem }),
                Err(error) if began.elapsed() + PAUSE >= args.timeout => {
                    return Err(AskError::Unreachable { agent, waited: args.timeout, error });
                }
                Err(error) if is_silence(&error) => patience = (patience * 2).min(ATTEMPT),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    })
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn attempt(agent: SocketAddr, request: &Request, patience: Duration) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&agent, ATTEMPT)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(ATTEMPT))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
