//! `remora lint DIR|-`: what can be known to be wrong with manifests. The rules are the control
//! plane's; here are files, standard input, and how findings are shown.

mod report;

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use remora_control_plane::{
    lint::{Finding, Severity, lint, unloadable},
    source::manifest::{self, Objects, Problem},
};

/// Most that is read of standard input: what the loader takes of a file.
const MAX_INPUT: u64 = 16 << 20;
/// What findings call standard input.
const STDIN: &str = "-";

/// What `--help` ends with.
const AFTER_HELP: &str = "\
docs/lint.md has the rules, why each is one, and the mend.

Exit status: 0 where nothing is wrong, 1 where there is an error (with --strict: anything), 2 where the
command line or the input cannot be used.";

/// Arguments of `remora lint`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Directories and files, read as one set; - is standard input
    #[arg(required = true, value_name = "DIR|FILE|-")]
    inputs: Vec<PathBuf>,
    /// Warnings count as errors for the exit status
    #[arg(long)]
    strict: bool,
    /// Print a JSON array of {rule, severity, file, line, object, field, problem, mend}
    #[arg(long)]
    json: bool,
}

/// Why nothing was judged, or nothing written.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot read standard input: {0}; pipe manifests into it")]
    Stdin(#[source] io::Error),
    #[error("standard input has more than {MAX_INPUT} bytes; write it into a directory of files")]
    TooLarge,
    #[error("{}", lines(.0))]
    Unreadable(Vec<Problem>),
    #[error("no manifest in {0}; name files or directories with .yaml, .yml or .json in them")]
    Nothing(String),
    #[error("cannot print: {0}")]
    Print(#[source] io::Error),
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\nremora: ")
}

/// Runs `remora lint`: status 0 where nothing is wrong, 1 where something is, 2 where the command
/// line or the input cannot be used.
#[must_use]
pub fn main(args: &Args) -> ExitCode {
    match judge(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("remora: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether nothing is wrong.
fn judge(args: &Args) -> Result<bool, Error> {
    let findings = findings(&args.inputs, io::stdin().lock())?;
    let mut out = io::stdout().lock();
    let printed = match args.json {
        true => report::json(&mut out, &findings),
        false => report::text(&mut out, &findings),
    };
    match printed.and_then(|()| out.flush()) {
        // Whoever has seen enough of it (`| head`) is no trouble.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(Error::Print(error)),
        _ => {}
    }
    let counts = |finding: &Finding| args.strict || finding.severity == Severity::Error;
    Ok(!findings.iter().any(counts))
}

fn findings(inputs: &[PathBuf], stdin: impl Read) -> Result<Vec<Finding>, Error> {
    match load(inputs, stdin)? {
        Ok(objects) if objects.all().is_empty() && objects.warnings.is_empty() => {
            let names: Vec<String> = inputs.iter().map(|path| path.display().to_string()).collect();
            Err(Error::Nothing(names.join(", ")))
        }
        Ok(objects) => Ok(lint(&objects)),
        Err(problems) => {
            // What is no YAML, or no file at all, has not been read.
            let unread = |problem: &Problem| matches!(&*problem.field, "file" | "document");
            let unreadable: Vec<Problem> =
                problems.iter().filter(|problem| unread(problem)).cloned().collect();
            match unreadable.is_empty() {
                true => Ok(unloadable(&problems)),
                false => Err(Error::Unreadable(unreadable)),
            }
        }
    }
}

fn load(inputs: &[PathBuf], stdin: impl Read) -> Result<Result<Objects, Vec<Problem>>, Error> {
    let piped = |path: &&PathBuf| path.as_os_str() == STDIN;
    let mut files: Vec<PathBuf> = inputs.iter().filter(|path| !piped(path)).cloned().collect();
    // The same twice is no contradiction.
    files.sort();
    files.dedup();
    if !inputs.iter().any(|path| piped(&path)) {
        return Ok(manifest::load(&files));
    }
    let mut text = String::new();
    stdin.take(MAX_INPUT + 1).read_to_string(&mut text).map_err(Error::Stdin)?;
    if text.len() as u64 > MAX_INPUT {
        return Err(Error::TooLarge);
    }
    Ok(manifest::load_with(&files, Path::new(STDIN), &text))
}

#[cfg(test)]
mod tests;
