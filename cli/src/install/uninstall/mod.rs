//! `remora uninstall`: removes an installation, with what its programs made.
//!
//! - [`survey`] what there is;
//! - [`removal`] the same, gone.
//!
//! It asks the API itself, because part of what is to go is spread over the cluster: a ConfigMap in
//! each namespace with sidecars, a label on each that is opted in.

mod removal;
mod survey;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use http::{HeaderValue, header::USER_AGENT};
use kube::{
    Client, Config,
    config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use remora_core::settings;

use survey::Survey;

/// Workloads with sidecars that are listed one by one.
const LISTED: usize = 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Remove Remora from a cluster.
///
/// Removes the objects of `remora install`, whichever way they came in, and what the programs made: certificates, trust bundles, labels. The namespace remora-system goes with all that is in it. Pods that have sidecars are not touched; while there are any, only --force goes on.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Say what would be removed, and remove nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Go on although pods still have sidecars. They keep working with the certificates that they
    /// have, at most a day, and do not start again without a control plane.
    #[arg(long)]
    pub force: bool,
    /// How long to wait for the last object to be gone.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = settings::parse_duration)]
    pub timeout: Duration,
    /// How to reach the cluster; without it as kubectl does.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// Why something is still there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig is absent or broken, or has no such context.
    #[error("no way to a cluster: {0}; give --kubeconfig FILE or --context NAME")]
    Kubeconfig(#[from] KubeconfigError),
    /// Neither a kubeconfig nor a pod's ServiceAccount.
    #[error("no way to a cluster: {0}; give --kubeconfig FILE")]
    Infer(#[source] Box<InferConfigError>),
    /// Its certificates or credentials cannot be used.
    #[error("no way to the cluster: {0}; see the certificates and credentials of the kubeconfig")]
    Client(#[source] Box<kube::Error>),
    /// The API server did not do it.
    #[error("cannot {what}: {source}; nothing that is done needs doing again: run it once more")]
    Api {
        /// Verb and objects.
        what: String,
        /// Its answer.
        source: Box<kube::Error>,
    },
    /// An object does not go.
    #[error(
        "{what} is still there after {waited:?}; `kubectl describe {what}` says what it waits for"
    )]
    Lingers {
        /// Kind and name.
        what: String,
        /// How long it had.
        waited: Duration,
    },
    /// Standard output is closed.
    #[error("cannot write what was done: {0}")]
    Write(#[from] io::Error),
}

/// Connects and removes; the exit status is 1 where pods with sidecars forbid it.
///
/// # Errors
/// Where something is still there.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let client = connect(args).await?;
        uninstall(client, args, &mut io::stdout().lock()).await
    })?;
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Removes everything, or nothing where pods with sidecars forbid it: then it is `false`.
///
/// # Errors
/// Where something is still there.
pub async fn uninstall(client: Client, args: &Args, out: &mut impl Write) -> Result<bool, Error> {
    let survey = Survey::of(&client).await?;
    if survey.is_empty() {
        writeln!(out, "there is no Remora in this cluster")?;
        return Ok(true);
    }
    let sidecars: usize = survey.sidecars.values().sum();
    if sidecars > 0 {
        tell_sidecars(&survey, sidecars, out)?;
        if !args.force {
            writeln!(out, "nothing was removed; --force goes on all the same")?;
            return Ok(false);
        }
    }
    if args.dry_run {
        for object in survey.objects() {
            writeln!(out, "would remove {object}")?;
        }
    } else {
        removal::carry_out(&client, &survey, args.timeout, out).await?;
    }
    for namespace in &survey.opted_in {
        writeln!(
            out,
            "kept: annotation remora.io/inject of namespace {namespace}; \
             kubectl annotate namespace {namespace} remora.io/inject- removes it"
        )?;
    }
    Ok(true)
}

fn tell_sidecars(survey: &Survey, sidecars: usize, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{sidecars} pods have sidecars:")?;
    for ((namespace, workload), pods) in survey.sidecars.iter().take(LISTED) {
        writeln!(out, "  {pods} of {workload} in {namespace}")?;
    }
    if let Some(more) = survey.sidecars.len().checked_sub(LISTED).filter(|more| *more > 0) {
        writeln!(out, "  and {more} workloads more")?;
    }
    writeln!(
        out,
        "take the annotation remora.io/inject off their namespaces and pod templates and restart \
         them (kubectl rollout restart), then uninstall"
    )
}

async fn connect(args: &Args) -> Result<Client, Error> {
    let options = KubeConfigOptions { context: args.context.clone(), ..Default::default() };
    let mut config = match &args.kubeconfig {
        Some(file) => {
            Config::from_custom_kubeconfig(Kubeconfig::read_from(file)?, &options).await?
        }
        None if args.context.is_some() => Config::from_kubeconfig(&options).await?,
        None => Config::infer().await.map_err(|error| Error::Infer(Box::new(error)))?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    let agent = HeaderValue::from_static(concat!("remora-uninstall/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    Client::try_from(config).map_err(|error| Error::Client(Box::new(error)))
}
