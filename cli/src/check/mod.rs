//! `remora check`: whether a cluster can take the mesh, and whether an installed mesh does its job.
//!
//! - `connect` which cluster, and as whom; `api` bounded reading from it;
//! - `gather/` reads, and judges nothing; `reduce` keeps of namespaces and pods what counts;
//! - `facts` what was read;
//! - `judge/` pure: facts in, lines out;
//! - `report` the lines, as text or JSON.

pub(crate) mod api;
mod certificate;
pub(crate) mod connect;
mod exposition;
mod facts;
mod gather;
mod judge;
mod permissions;
mod reduce;
mod report;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use remora_core::settings::parse_duration;
use tokio::time::Instant;

pub use report::{Line, Status};

use api::Reader;
use connect::Cluster;

/// User-Agent of the checks.
const AGENT: &str = concat!("remora-check/", env!("CARGO_PKG_VERSION"));
/// Pause between two rounds of `--wait`.
const AGAIN: Duration = Duration::from_secs(2);

/// `remora check`
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Look at the cluster only, as before an install. Chosen by itself where nothing is installed
    #[arg(long)]
    pre: bool,
    /// Look at these namespaces only, instead of all that have opted in
    #[arg(long, short, value_name = "NS", value_parser = namespace)]
    namespace: Vec<String>,
    /// Kubeconfig to use, instead of $KUBECONFIG or ~/.kube/config
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig, instead of its current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Print a JSON array of {check, status, message, mend}
    #[arg(long)]
    json: bool,
    /// Look again until nothing fails any more, at most this long: 30s, 2m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    wait: Option<Duration>,
    /// Words instead of coloured marks; chosen by itself where the output is no terminal
    #[arg(long)]
    no_color: bool,
}

/// Checks and prints; the exit status is 0 where nothing failed, else 1.
///
/// # Errors
/// Where there is no runtime, or nobody to print to.
pub fn run(args: &Args) -> io::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let lines = runtime.block_on(async {
        match connect::cluster(args.kubeconfig.as_deref(), args.context.as_deref(), AGENT).await {
            Ok(cluster) => {
                let reader = Reader::new(cluster.client.clone(), now);
                until_fine(&reader, &cluster, args).await
            }
            Err(error) => vec![judge::no_cluster(&error.to_string())],
        }
    });
    let mut out = io::stdout().lock();
    if args.json {
        report::json(&mut out, &lines)?;
    } else {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colours = out.is_terminal() && !args.no_color && !plain;
        report::text(&mut out, &lines, colours)?;
    }
    out.flush()?;
    Ok(if report::found_trouble(&lines) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[allow(clippy::disallowed_methods, reason = "clocks and certificates are what is checked")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// Rounds until nothing fails or the time is up; one round where no time is given.
async fn until_fine(reader: &Reader, cluster: &Cluster, args: &Args) -> Vec<Line> {
    let end = Instant::now() + args.wait.unwrap_or_default();
    let mut told = None;
    loop {
        let lines = round(reader, cluster, args).await;
        let Some(first) = lines.iter().find(|line| line.status == Status::Failed) else {
            return lines;
        };
        if Instant::now() + AGAIN > end {
            return lines;
        }
        if told.as_ref() != Some(&first.message) {
            eprintln!("waiting: {}", first.message);
            told = Some(first.message.clone());
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn round(reader: &Reader, cluster: &Cluster, args: &Args) -> Vec<Line> {
    judge::lines(&Box::pin(gather::facts(reader, cluster, args)).await)
}

/// A namespace's name (RFC 1123 label), since it becomes part of URLs.
pub(crate) fn namespace(name: &str) -> Result<String, String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fits = (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if fits { Ok(name.to_owned()) } else { Err(format!("{name:?} is no name of a namespace")) }
}
