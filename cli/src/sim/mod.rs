//! `remora sim FILE`: the proxy's balancer, circuit breaker and retry budget on virtual time.
//!
//! - [`scenario`] what is simulated, read from a file; `expect` what should come of it;
//! - `engine` discrete events; `adapter` the only file that calls the code of the proxy;
//! - `record` what happened, `measure` and `recovery` figures made of it;
//! - [`report`] what came of it; [`text`] and `chart` on a terminal, [`svg`] as a picture.
//!
//! Nothing here decides like the proxy does: the proxy's own code is called, and only servers and
//! callers are made up.

mod adapter;
mod chart;
mod engine;
mod expect;
mod measure;
mod record;
mod recovery;
pub mod report;
pub mod scenario;
pub mod svg;
pub mod text;

use std::{
    fs::File,
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

pub use engine::TooManyRequests;
pub use report::{Report, run};
pub use scenario::{Scenario, ScenarioError};

/// Columns where nothing says how many there are.
const WIDTH: usize = 80;

/// What `--help` ends with: the bounds of [`scenario`], and the exit status.
const AFTER_HELP: &str = "\
Simulated are at most: one hour, 100 servers, 1000 proxies, 1000 events, 8 policies, 2000000 requests
for each policy, 100 expectations; a file has at most 1 MiB.

Exit status: 0 where all that the file expects held, 1 where something did not, 2 where the file or
the command line cannot be used.";

/// Arguments of `remora sim`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Scenario (YAML): docs/simulator.md has the fields, docs/examples/sim examples.
    file: PathBuf,
    /// Another seed than the file's; the same file and seed give the same output.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Set a word in every policy, for example decay=2s; may be given several times.
    #[arg(long, value_name = "WORD=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
    /// Print one JSON object instead of tables and charts.
    #[arg(long)]
    json: bool,
    /// Write the charts into this file too, as one self-contained SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Columns of the output, 60 to 200 [default: $COLUMNS, else 80]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(60..=200))]
    width: Option<u16>,
    /// Without colours; chosen by itself where the output is no terminal.
    #[arg(long)]
    no_color: bool,
}

/// Why nothing was simulated, or nothing written.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot read {}: {source}", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("{}: larger than {} bytes, the most that is read", file.display(), scenario::MAX_FILE)]
    TooLarge { file: PathBuf },
    #[error("{}:{}: {}", file.display(), error.line, error.problem)]
    Scenario { file: PathBuf, error: ScenarioError },
    #[error("--set {word}: {problem}")]
    Set { word: String, problem: String },
    #[error("{}: {error}", file.display())]
    TooMany { file: PathBuf, error: TooManyRequests },
    #[error("cannot write {}: {source}", file.display())]
    Write { file: PathBuf, source: io::Error },
    #[error("cannot print: {0}")]
    Print(#[source] io::Error),
}

/// Runs `remora sim`: status 0 where everything expected held, 1 where something did not, 2 where
/// the file or the command line cannot be used.
#[must_use]
pub fn main(args: &Args) -> ExitCode {
    match simulate(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("remora: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything held.
fn simulate(args: &Args) -> Result<bool, Error> {
    let file = &args.file;
    let text = read(file)?;
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let mut scenario = Scenario::parse(&name, &text)
        .map_err(|error| Error::Scenario { file: file.clone(), error })?;
    for (word, value) in &args.set {
        let bad = |problem| Error::Set { word: word.clone(), problem };
        scenario.set(word, value).map_err(bad)?;
    }
    let seed = args.seed.unwrap_or(scenario.seed);
    let report =
        run(&scenario, seed).map_err(|error| Error::TooMany { file: file.clone(), error })?;
    if let Some(path) = &args.svg {
        std::fs::write(path, svg::picture(&report))
            .map_err(|source| Error::Write { file: path.clone(), source })?;
    }
    let mut out = io::stdout().lock();
    let style = style(args, out.is_terminal());
    let printed = match args.json {
        true => report.json(&mut out),
        false => text::write(&mut out, &report, style),
    };
    match printed.and_then(|()| out.flush()) {
        // Whoever has seen enough of it (`| head`) is no trouble.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Print(error)),
        _ => Ok(report.held),
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let unreadable = |source| Error::Read { file: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(scenario::MAX_FILE + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > scenario::MAX_FILE {
        return Err(Error::TooLarge { file: path.to_owned() });
    }
    Ok(text)
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(word, _)| !word.is_empty());
    let (word, value) = parts.ok_or("write it as WORD=VALUE, for example decay=2s")?;
    Ok((word.to_owned(), value.to_owned()))
}

fn style(args: &Args, terminal: bool) -> text::Style {
    let columns = || std::env::var("COLUMNS").ok()?.parse::<usize>().ok();
    let width = args.width.map(usize::from).or_else(columns).unwrap_or(WIDTH);
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    let colours = terminal && !args.no_color && !plain && !dumb;
    text::Style { width: width.clamp(60, 200), colours }
}
