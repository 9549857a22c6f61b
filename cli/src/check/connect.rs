//! Which cluster is asked, and as whom.

use std::{path::Path, time::Duration};

use http::{HeaderValue, header};
use kube::{
    Client, Config,
    config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};

/// Patience with a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// A cluster to ask.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// Name of the context, or `in-cluster`.
    pub(crate) context: String,
    /// URL of the API server.
    pub(crate) url: String,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The kubeconfig is absent or broken, or has no such context.
    #[error("{0}")]
    Kubeconfig(#[from] KubeconfigError),
    /// Neither a kubeconfig nor a pod's ServiceAccount.
    #[error("{0}")]
    Infer(#[from] Box<InferConfigError>),
    /// Its certificates or credentials cannot be used.
    #[error("{0}")]
    Client(#[from] Box<kube::Error>),
}

/// By the flags, else as `kubectl` finds it, else the ServiceAccount of the pod this runs in;
/// `agent` is the User-Agent.
pub(crate) async fn cluster(
    kubeconfig: Option<&Path>,
    context: Option<&str>,
    agent: &'static str,
) -> Result<Cluster, Error> {
    let context = context.map(str::to_owned);
    let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
    let given = match kubeconfig {
        Some(file) => Some(Kubeconfig::read_from(file)?),
        None => match Kubeconfig::read() {
            Ok(found) => Some(found),
            Err(error) if context.is_some() => return Err(error.into()),
            Err(_) => None,
        },
    };
    let (mut config, context) = match given {
        Some(kubeconfig) => {
            let current = context.or_else(|| kubeconfig.current_context.clone());
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
            (config, current.unwrap_or_default())
        }
        None => (Config::infer().await.map_err(Box::new)?, "in-cluster".to_owned()),
    };
    config.connect_timeout = Some(CONNECT);
    config.headers.push((header::USER_AGENT, HeaderValue::from_static(agent)));
    let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let client = Client::try_from(config).map_err(Box::new)?;
    Ok(Cluster { client, context, url })
}
