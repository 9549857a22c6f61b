//! The command line of `remora-proxy` and of `remora proxy`: without a subcommand it is the sidecar.

use std::sync::Arc;

use clap::{ArgMatches, Command, FromArgMatches, Subcommand};
use remora_core::{names::env, telemetry};

use crate::{
    app, config, ready_wait, redirect,
    sight::traces::{bridge, queue::Queue},
};

/// What the command line asks for.
///
/// A subcommand is a step that a pod needs beside the sidecar, so that one image without a shell is
/// enough. (Written out, because the derive knows no "either these flags or a subcommand".)
#[derive(Debug)]
pub enum Program {
    /// The sidecar itself.
    Sidecar(Box<Sidecar>),
    /// Something short.
    Step(Step),
}

impl clap::Args for Program {
    fn augment_args(command: Command) -> Command {
        Step::augment_subcommands(Sidecar::augment_args(command))
            .subcommand_negates_reqs(true)
            .args_conflicts_with_subcommands(true)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Program {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        if matches.subcommand_name().is_some() {
            Step::from_arg_matches(matches).map(Self::Step)
        } else {
            Sidecar::from_arg_matches(matches).map(|sidecar| Self::Sidecar(Box::new(sidecar)))
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What the sidecar is told.
#[derive(Debug, clap::Args)]
pub struct Sidecar {
    #[command(flatten)]
    args: config::Args,
    /// Log filter, for example info or warn,remora_proxy=debug
    #[arg(long, env = env::LOG, default_value = "info")]
    log: String,
    /// text or json
    #[arg(long, env = env::LOG_FORMAT, default_value = "text")]
    log_format: telemetry::LogFormat,
}

/// What a pod needs beside the sidecar.
#[derive(Debug, Subcommand)]
pub enum Step {
    /// Put the interception rules of a pod in force, or remove them (the init container's work).
    Redirect(redirect::Args),
    /// Wait until the proxy of this pod is ready (the postStart hook of an ordinary container).
    Await(ready_wait::Args),
}

/// Does what the command line says; the sidecar runs until it is told to end.
///
/// # Errors
/// What keeps the sidecar from starting, or a step from being done.
pub fn run(program: Program) -> anyhow::Result<()> {
    match program {
        Program::Step(Step::Redirect(args)) => Ok(redirect::run(&args)?),
        Program::Step(Step::Await(args)) => Ok(runtime()?.block_on(ready_wait::run(&args))?),
        Program::Sidecar(mut sidecar) => {
            let sight = &mut sidecar.args.sight;
            sight.access_log_format.get_or_insert(sidecar.log_format);
            let spans = Arc::new(Queue::default());
            let bridge = sight.trace_collector.as_ref().map(|_| bridge::layer(&spans));
            let log = telemetry::init_with(&sidecar.log, sidecar.log_format, bridge)?;
            runtime()?.block_on(async {
                let stop = app::signals()?;
                app::run_with(sidecar.args, Some(log), spans, stop).await
            })
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    #[command(name = "remora-proxy")]
    struct Cli {
        #[command(flatten)]
        program: Program,
    }

    const NEEDED: [&str; 10] = [
        "--control-plane=c:1",
        "--trust-bundle=/b",
        "--token-file=/t",
        "--pod-namespace=shop",
        "--pod-name=web",
        "--pod-ips=10.0.0.1,10.0.0.2",
        "--workers=2",
        "--log=warn",
        "--log-format=json",
        "--shutdown-grace-period=5s",
    ];

    fn parse(words: &[&str]) -> Result<Program, clap::Error> {
        let words = ["remora-proxy"].iter().chain(words);
        Cli::try_parse_from(words).map(|cli| cli.program)
    }

    #[test]
    fn without_a_step_it_is_the_sidecar() {
        let Program::Sidecar(sidecar) = parse(&NEEDED).unwrap() else { panic!("a step") };
        assert_eq!((sidecar.args.pod_ips.len(), sidecar.log.as_str()), (2, "warn"));
    }

    #[test]
    fn the_sidecar_names_what_it_is_not_told() {
        for words in [&[][..], &NEEDED[1..]] {
            let error = parse(words).unwrap_err().to_string();
            assert!(error.contains("--control-plane"), "{error}");
        }
    }

    #[test]
    fn steps_need_none_of_the_sidecars_flags() {
        for words in [
            &["redirect", "apply", "--print"][..],
            &["redirect", "remove"],
            &["await"],
            &["await", "--timeout", "5s"],
        ] {
            assert!(matches!(parse(words), Ok(Program::Step(_))), "{words:?}");
        }
        assert!(parse(&["--pod-name=web", "await"]).is_err());
    }
}
