//! `remora inject`.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    path::PathBuf,
};

use clap::ArgAction;
use remora_core::{names::annotations, settings::RedirectBackend};

use crate::{
    decide::{Decision, Settings},
    proxy_settings::NativeSidecar,
    stream::{StreamError, inject_stream},
};

/// Write sidecars into the pods of a manifest.
///
/// The result goes to standard output, what became of each object to standard error. Pods whose
/// annotations, or whose namespace's in the same text, say `remora.io/inject: disabled` stay as
/// they are.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Manifest to read; - is standard input. May be given several times.
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true, action = ArgAction::Append)]
    files: Vec<PathBuf>,
    /// Namespace of objects that name none.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Inject only where an annotation in the text asks for it.
    #[arg(long)]
    only_annotated: bool,
    /// Image of the proxy.
    #[arg(long, value_name = "IMAGE")]
    proxy_image: Option<String>,
    /// Address of the control plane.
    #[arg(long, value_name = "HOST:PORT")]
    control_plane: Option<String>,
    /// Trust domain of the mesh.
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// Whether the cluster has native sidecars (Kubernetes 1.29): auto, enabled or disabled.
    #[arg(long, value_name = "WHETHER", default_value = "auto")]
    native_sidecar: NativeSidecar,
    /// Sidecars ask an agent on their node for the interception rules.
    #[arg(long)]
    redirect_agent: bool,
    /// What writes the rules otherwise: nft, iptables or auto.
    #[arg(long, value_name = "BACKEND", default_value_t, conflicts_with = "redirect_agent")]
    redirect_backend: RedirectBackend,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// Its path.
        file: String,
        /// The system's word.
        source: io::Error,
    },
    /// A file holds what cannot be injected.
    #[error("{file}: {source}")]
    Manifest {
        /// Its path.
        file: String,
        /// Which line, and what is wrong.
        source: StreamError,
    },
    /// The result cannot be written.
    #[error("cannot write the result: {0}")]
    Write(#[source] io::Error),
}

/// Reads, injects and writes; returns the exit status: 0, or 1 where an object was refused.
///
/// # Errors
/// Where a file cannot be read, injected or written; nothing is written then, but for the last.
pub fn run(args: &Args) -> Result<u8, Error> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    run_with(args, &mut stdin.lock(), &mut stdout.lock(), &mut stderr.lock())
}

fn run_with(
    args: &Args,
    stdin: &mut impl Read,
    stdout: &mut impl Write,
    stderr: &mut impl Write,
) -> Result<u8, Error> {
    let settings = args.settings();
    let mut asked = BTreeMap::new();
    if !args.only_annotated {
        asked.insert(annotations::INJECT.to_owned(), "enabled".to_owned());
    }
    let mut text = String::new();
    let mut status = 0;
    for path in &args.files {
        let file = path.display().to_string();
        let input =
            read(path, stdin).map_err(|source| Error::Read { file: file.clone(), source })?;
        let result = inject_stream(&input, &args.namespace, &asked, &settings)
            .map_err(|source| Error::Manifest { file, source })?;
        for object in &result.report {
            // Nobody to tell where standard error is closed.
            _ = writeln!(stderr, "{object}");
            if matches!(object.decision, Decision::Refuse(_)) {
                status = 1;
            }
        }
        if !text.is_empty() && !result.text.starts_with("---") {
            text.push_str("---\n");
        }
        text.push_str(&result.text);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::Write)?;
    Ok(status)
}

fn read(path: &PathBuf, stdin: &mut impl Read) -> io::Result<String> {
    if path.as_os_str() != "-" {
        return fs::read_to_string(path);
    }
    let mut text = String::new();
    stdin.read_to_string(&mut text)?;
    Ok(text)
}

impl Args {
    fn settings(&self) -> Settings {
        let native_sidecar = self.native_sidecar != NativeSidecar::Disabled;
        let mut settings = Settings {
            native_sidecar,
            redirect_agent: self.redirect_agent,
            redirect_backend: self.redirect_backend,
            ..Settings::default()
        };
        for (given, field) in [
            (&self.proxy_image, &mut settings.proxy_image),
            (&self.control_plane, &mut settings.control_plane),
            (&self.trust_domain, &mut settings.trust_domain),
        ] {
            if let Some(value) = given {
                field.clone_from(value);
            }
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn run_on(stdin: &str) -> (Result<u8, Error>, String, String) {
        let args = Program::parse_from(["inject", "-f", "-"]).args;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let result = run_with(&args, &mut stdin.as_bytes(), &mut out, &mut err);
        (result, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn a_refused_object_is_reported_and_changes_the_status() {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, annotations: {remora.io/inject: maybe}}\nspec: {containers: []}\n";
        let (status, out, err) = run_on(pod);
        assert_eq!((status.unwrap(), out.as_str()), (1, pod));
        assert!(err.starts_with("Pod web: refused: annotation remora.io/inject:"), "{err}");
    }

    #[test]
    fn a_broken_manifest_writes_nothing() {
        let (status, out, _) = run_on("kind: [");
        assert!(status.unwrap_err().to_string().starts_with("-: line 1: not valid YAML"));
        assert_eq!(out, "");
    }

    #[test]
    fn a_file_is_required() {
        assert!(Program::try_parse_from(["inject"]).is_err());
    }
}
