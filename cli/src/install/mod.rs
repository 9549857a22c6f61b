//! `remora install`: the objects of an installation, on standard output.
//!
//! - [`template`] the templates' dialect and its two renderings;
//! - [`values`] what can be chosen;
//! - [`chart`] the Helm chart, made from the same templates;
//! - [`uninstall`] the way back.
//!
//! The output is the same each time and holds no secret: the programs make theirs in the cluster.

mod chart;
mod template;
#[cfg(test)]
mod tests;
pub mod uninstall;
mod values;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::ArgAction;
use serde_json::Value;

pub use values::ValuesError;
use values::{FailurePolicy, NativeSidecar, PullPolicy, RedirectBackend, Sources};

/// In the order in which `kubectl apply -f -` must see them.
const TEMPLATES: [(&str, &str); 8] = [
    ("namespace.yaml", include_str!("../../../deploy/templates/namespace.yaml")),
    ("control-plane-rbac.yaml", include_str!("../../../deploy/templates/control-plane-rbac.yaml")),
    ("injector-rbac.yaml", include_str!("../../../deploy/templates/injector-rbac.yaml")),
    ("control-plane.yaml", include_str!("../../../deploy/templates/control-plane.yaml")),
    ("redirect-agent.yaml", include_str!("../../../deploy/templates/redirect-agent.yaml")),
    ("injector.yaml", include_str!("../../../deploy/templates/injector.yaml")),
    ("webhook.yaml", include_str!("../../../deploy/templates/webhook.yaml")),
    ("lint-webhook.yaml", include_str!("../../../deploy/templates/lint-webhook.yaml")),
];

/// Version of the installation that this program writes.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Write the objects of an installation: remora install | kubectl apply -f -
///
/// The namespace is always remora-system. The output holds no secret and is the same each time, so it may live in Git.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Image of the control plane, the injector and the sidecars.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// When the image of our own pods is pulled.
    #[arg(long, value_name = "POLICY")]
    image_pull_policy: Option<PullPolicy>,
    /// Replicas of the control plane and of the injector [default: 2]
    #[arg(long, value_name = "N")]
    replicas: Option<u32>,
    /// Trust domain of the SPIFFE ids [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// DNS suffix of the cluster [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    cluster_domain: Option<String>,
    /// Something else writes the Secret remora-identity-issuer, cert-manager for example.
    #[arg(long)]
    external_issuer: bool,
    /// Whether sidecars are native ones.
    #[arg(long, value_name = "WHEN")]
    native_sidecar: Option<NativeSidecar>,
    /// An agent on each node writes the interception rules, so that namespaces may enforce Pod
    /// Security level baseline or restricted.
    #[arg(long)]
    redirect_agent: bool,
    /// What writes the interception rules where pods do it themselves.
    #[arg(long, value_name = "BACKEND")]
    redirect_backend: Option<RedirectBackend>,
    /// What becomes of a pod that asked for a sidecar while no injector answers.
    #[arg(long, value_name = "POLICY")]
    webhook_failure_policy: Option<FailurePolicy>,
    /// File of values, as for the Helm chart; may be given several times.
    #[arg(short = 'f', long = "values", value_name = "FILE", action = ArgAction::Append)]
    values: Vec<PathBuf>,
    /// One value of such a file, for example controlPlane.resources.limits.memory=1Gi.
    #[arg(long, value_name = "NAME=VALUE", action = ArgAction::Append)]
    set: Vec<String>,
    /// Write the file of values with its defaults, and nothing else.
    #[arg(long)]
    show_values: bool,
    /// Write the Helm chart into a directory, and nothing else.
    #[arg(long, value_name = "DIR", hide = true)]
    helm_chart: Option<PathBuf>,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A choice cannot be used.
    #[error(transparent)]
    Values(#[from] ValuesError),
    /// The chart cannot be written.
    #[error("cannot write the chart into {}: {source}", directory.display())]
    Chart {
        /// Where.
        directory: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The objects cannot be written.
    #[error("cannot write the objects: {0}")]
    Write(#[source] io::Error),
}

/// Writes what the flags ask for; the exit status is 2 where they cannot be used.
///
/// # Errors
/// Where nothing could be written.
pub fn run(args: Args) -> Result<ExitCode, Error> {
    if let Some(directory) = args.helm_chart {
        return match chart::write(&directory, VERSION) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(source) => Err(Error::Chart { directory, source }),
        };
    }
    let text = if args.show_values {
        values::defaults(VERSION)
    } else {
        match objects(args.sources()) {
            Ok(text) => text,
            Err(error) => {
                eprintln!("remora: {error}");
                return Ok(ExitCode::from(2));
            }
        }
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::Write)?;
    Ok(ExitCode::SUCCESS)
}

/// The YAML of all objects.
fn objects(sources: Sources) -> Result<String, ValuesError> {
    let values: Value = values::resolve(VERSION, sources)?;
    let texts: Vec<String> = TEMPLATES
        .iter()
        .map(|(_, text)| template::render(text, &values))
        .filter(|text| !text.is_empty())
        .collect();
    Ok(texts.join("---\n"))
}

impl Args {
    fn sources(self) -> Sources {
        let mut flags: Vec<(&'static str, Value)> = Vec::new();
        let mut flag = |name, value: Option<Value>| flags.extend(value.map(|v| (name, v)));
        flag("image", self.image.map(Value::from));
        flag("imagePullPolicy", self.image_pull_policy.map(json));
        flag("controlPlane.replicas", self.replicas.map(Value::from));
        flag("injector.replicas", self.replicas.map(Value::from));
        flag("trustDomain", self.trust_domain.map(Value::from));
        flag("clusterDomain", self.cluster_domain.map(Value::from));
        flag("externalIssuer", self.external_issuer.then_some(Value::Bool(true)));
        flag("nativeSidecar", self.native_sidecar.map(json));
        flag("redirectAgent", self.redirect_agent.then_some(Value::Bool(true)));
        flag("redirectBackend", self.redirect_backend.map(json));
        flag("webhookFailurePolicy", self.webhook_failure_policy.map(json));
        Sources { files: self.values, set: self.set, flags }
    }
}

fn json(choice: impl serde::Serialize) -> Value {
    serde_json::to_value(choice).expect("invariant: a choice is a word")
}
