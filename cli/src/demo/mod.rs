//! `remora demo`: a small shop in a mesh of its own, a constant load, and a story told with both.
//!
//! - [`shop`] the programs, which know nothing of the mesh; the load generator among them;
//! - `manifests` the shop as plain Kubernetes YAML;
//! - `cluster` what the story needs of the mesh it is told about, and who provides it: `meshed`
//!   (what `remora up` brings to life) or `loopback` (one network, explicit listeners);
//! - `story` the chapters, their measurements and verdicts;
//! - `screen` the terminal.

mod cluster;
mod load;
mod loopback;
mod manifests;
mod meshed;
mod proxies;
mod screen;
pub mod shop;
mod story;

use std::{
    ffi::OsString,
    future::Future,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};

pub use cluster::Error;
pub use meshed::{StageArgs, run_stage};

use cluster::Cluster;
use manifests::Values;
use screen::Screen;
use story::{Pace, Story};

/// Lines of each log that are shown where the demo fails.
const LAST_LINES: usize = 10;

/// `remora demo`
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Tell the story in half the time, as continuous integration does.
    #[arg(long)]
    short: bool,
    /// Print the result as one JSON document on standard output, everything else on standard error.
    #[arg(long)]
    json: bool,
    /// Stay up after the story and print what can be tried.
    #[arg(long)]
    keep: bool,
    /// Requests per second to the shop's front door.
    #[arg(long, default_value_t = 150,
          value_parser = clap::value_parser!(u32).range(10..=i64::from(load::MAX_RATE)))]
    rate: u32,
    /// Use one network with explicit listeners, as where the machine forbids namespaces.
    #[arg(long)]
    one_network: bool,
}

impl Args {
    fn pace(&self) -> Pace {
        if self.short { Pace::SHORT } else { Pace::FULL }
    }

    /// The same as a command line.
    fn flags(&self) -> Vec<OsString> {
        let switches = [(self.short, "--short"), (self.json, "--json"), (self.keep, "--keep")];
        let mut flags = vec![format!("--rate={}", self.rate).into()];
        flags.extend(switches.into_iter().filter(|(on, _)| *on).map(|(_, flag)| flag.into()));
        flags
    }

    /// Validity of the sidecars' certificates in this demo.
    fn leaf_lifetime(&self) -> Duration {
        self.pace().leaf_lifetime
    }
}

/// Files of one demo.
#[derive(Debug)]
struct Place {
    dir: PathBuf,
    logs: PathBuf,
    values: Values,
}

impl Place {
    /// Lays the manifests out in a directory that exists.
    fn prepare(dir: &Path, logs: PathBuf, args: &Args) -> Result<Self, Error> {
        let values = Values {
            remora: std::env::current_exe().map_err(Error::file(Path::new("/proc/self/exe")))?,
            control: dir.join("control"),
            report: dir.join("report.sock"),
            rate: args.rate,
        };
        let place = Self { dir: dir.to_owned(), logs, values };
        for dir in [&place.values.control, &place.manifests()] {
            std::fs::create_dir_all(dir).map_err(Error::file(dir))?;
        }
        place.values.write(&place.manifests())?;
        Ok(place)
    }

    fn manifests(&self) -> PathBuf {
        self.dir.join("manifests")
    }
}

/// Runs `remora demo`: exit status 0 only if every chapter held.
pub fn run(args: &Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let told = match runtime {
        Ok(runtime) => runtime.block_on(play(args)),
        Err(error) => Err(Error::Mesh(format!("no runtime: {error}"))),
    };
    match told {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("remora: demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// In namespaces where the machine allows them, else on one network.
async fn play(args: &Args) -> Result<u8, Error> {
    if !args.one_network
        && let Some(code) = meshed::run(args).await?
    {
        return Ok(code);
    }
    Ok(u8::from(!on_one_network(args).await?))
}

/// The fallback.
async fn on_one_network(args: &Args) -> Result<bool, Error> {
    let temporary = std::env::temp_dir();
    let dir = tempfile::Builder::new()
        .prefix("remora-demo-")
        .tempdir()
        .map_err(Error::file(&temporary))?;
    let place = Place::prepare(dir.path(), dir.path().join("logs"), args)?;
    eprintln!(
        "remora: demo: without namespaces; the shop runs on one network, and its programs dial \
         their sidecars' listeners on loopback addresses"
    );
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::file(dir.path()))?;
    let stop = async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    };
    let (cluster, keeper) =
        loopback::start(&place.values, &place.dir, place.manifests(), args.leaf_lifetime()).await?;
    let (out, terminal): (Box<dyn Write>, _) = if args.json {
        (Box::new(io::stderr()), io::stderr().is_terminal())
    } else {
        (Box::new(io::stdout()), io::stdout().is_terminal())
    };
    let screen = Screen::new(out, terminal);
    let told = tell(cluster, &place, args, screen, "one network", stop).await;
    keeper.stop().await;
    if let Err(error) = &told {
        eprint!("{}", evidence(error, &place.logs));
    }
    told
}

/// Tells the story about a mesh that is coming up; whether everything held.
async fn tell<C: Cluster>(
    cluster: C,
    place: &Place,
    args: &Args,
    screen: Screen,
    mode: &'static str,
    stop: impl Future<Output = ()>,
) -> Result<bool, Error> {
    let mut stop = std::pin::pin!(stop);
    let story = async {
        let values = place.values.clone();
        let mut story = Story::begin(cluster, values, args.pace(), screen).await?;
        let summary = story.tell(mode).await?;
        Ok((story, summary))
    };
    let (mut story, summary) = tokio::select! {
        told = story => told?,
        () = stop.as_mut() => return Err(Error::Interrupted),
    };
    story.screen().summary(&summary);
    if args.json {
        let text = serde_json::to_string_pretty(&summary)
            .map_err(|e| Error::Mesh(format!("the summary cannot be written: {e}")))?;
        println!("{text}");
    }
    if args.keep {
        tokio::select! {
            kept = story.keep() => kept?,
            () = stop => {}
        }
    }
    Ok(summary.held)
}

/// The end of each log, for a story that could not be told: the files go with the demo.
fn evidence(error: &Error, logs: &Path) -> String {
    let mut text = String::new();
    if matches!(error, Error::Interrupted) {
        return text;
    }
    let files = std::fs::read_dir(logs).into_iter().flatten().filter_map(Result::ok);
    let mut files: Vec<_> = files.map(|entry| entry.path()).collect();
    files.sort();
    for path in files {
        let log = std::fs::read(&path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let Some(name) = path.file_name().filter(|_| !lines.is_empty()) else { continue };
        text.push_str(&format!("--- {}\n", name.display()));
        for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
            text.push_str(&format!("{line}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_the_end_of_every_log_that_has_something_to_say() {
        let dir = tempfile::tempdir().unwrap();
        let lines: String = (0..100).map(|n| format!("line {n}\n")).collect();
        std::fs::write(dir.path().join("web-0.log"), lines).unwrap();
        std::fs::write(dir.path().join("silent.log"), "").unwrap();
        let text = evidence(&Error::Mesh("x".into()), dir.path());
        assert!(text.starts_with("--- web-0.log\n") && text.ends_with("line 99\n"), "{text}");
        assert_eq!(text.lines().count(), 1 + LAST_LINES);
        assert_eq!(evidence(&Error::Interrupted, dir.path()), "");
    }
}
