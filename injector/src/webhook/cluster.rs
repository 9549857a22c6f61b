//! The way to the API server.

use std::{path::Path, time::Duration};

use http::{HeaderValue, header::USER_AGENT};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::NativeSidecar;

/// Longest wait for an answer to one request that is no watch.
pub(super) const REQUEST: Duration = Duration::from_secs(5);
/// First Kubernetes minor version whose kubelets know native sidecars by default.
const NATIVE_SINCE: u32 = 29;

/// Why the cluster cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClusterError {
    /// The file is none, or a bad one.
    #[error("--kubeconfig {file}: {source}")]
    Kubeconfig {
        /// Its path.
        file: String,
        /// What is wrong with it.
        source: kube::config::KubeconfigError,
    },
    /// Neither an account of a pod nor a kubeconfig was found.
    #[error("no way to the cluster: {0}; run in a pod with a service account or give --kubeconfig")]
    Inference(#[from] kube::config::InferConfigError),
    /// TLS or credentials.
    #[error("the cluster's client cannot be set up: {0}")]
    Client(#[from] kube::Error),
}

/// A client that says who it is.
///
/// # Errors
/// See [`ClusterError`].
pub(super) async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ClusterError> {
    let mut config = match kubeconfig {
        None => Config::infer().await?,
        Some(path) => {
            let error =
                |source| ClusterError::Kubeconfig { file: path.display().to_string(), source };
            let file = Kubeconfig::read_from(path).map_err(error)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(error)?
        }
    };
    let agent = HeaderValue::from_static(concat!("remora-injector/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    Ok(Client::try_from(config)?)
}

/// Whether sidecars are native; asks the API server, again and again until it answers, where that
/// depends on its version. One that does not tell is taken for new.
pub(super) async fn native_sidecar(form: NativeSidecar, client: &Client) -> bool {
    match form {
        NativeSidecar::Enabled => return true,
        NativeSidecar::Disabled => return false,
        NativeSidecar::Auto => {}
    }
    let mut pauses = Pauses::default();
    loop {
        match tokio::time::timeout(REQUEST, client.apiserver_version()).await {
            Ok(Ok(version)) => {
                let native = knows_native_sidecars(&version.major, &version.minor);
                tracing::info!(cluster = %version.git_version, native, "form of the sidecar");
                return native;
            }
            Ok(Err(kube::Error::Api(status))) if (400..404).contains(&status.code) => {
                tracing::warn!(
                    error = %status,
                    "the cluster does not tell its version: native sidecars; --native-sidecar \
                     chooses"
                );
                return true;
            }
            Ok(Err(error)) => tracing::warn!(%error, "cannot ask the cluster for its version"),
            Err(_) => tracing::warn!("the cluster does not answer"),
        }
        tokio::time::sleep(pauses.next_pause()).await;
    }
}

/// Distributions write `29+`; what cannot be read is taken for new.
fn knows_native_sidecars(major: &str, minor: &str) -> bool {
    let number = |s: &str| s.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>();
    match (number(major), number(minor)) {
        (Ok(1), Ok(minor)) => minor >= NATIVE_SINCE,
        _ => true,
    }
}

/// Growing, jittered pauses between attempts: from 0.25 s doubling to 30 s, each drawn from its
/// upper half.
#[derive(Debug)]
pub(super) struct Pauses {
    next: Duration,
    rng: fastrand::Rng,
}

impl Pauses {
    const FIRST: Duration = Duration::from_millis(250);
    const LAST: Duration = Duration::from_secs(30);

    pub(super) fn next_pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(0.5 + self.rng.f64() / 2.0);
        self.next = (self.next * 2).min(Self::LAST);
        pause
    }

    pub(super) fn reset(&mut self) {
        self.next = Self::FIRST;
    }
}

impl Default for Pauses {
    fn default() -> Self {
        Self { next: Self::FIRST, rng: fastrand::Rng::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_sidecars_begin_with_1_29() {
        assert!(!knows_native_sidecars("1", "28"));
        assert!(!knows_native_sidecars("1", "28+"));
        assert!(knows_native_sidecars("1", "29+"));
        assert!(knows_native_sidecars("1", "36"));
        assert!(knows_native_sidecars("2", "0"));
        assert!(knows_native_sidecars("one", ""));
    }

    #[test]
    fn pauses_grow_to_a_bound_and_start_anew() {
        let mut pauses = Pauses::default();
        let first = pauses.next_pause();
        assert!(first >= Pauses::FIRST / 2 && first <= Pauses::FIRST);
        let last = (0..20).map(|_| pauses.next_pause()).last().unwrap();
        assert!(last >= Pauses::LAST / 2 && last <= Pauses::LAST);
        pauses.reset();
        assert!(pauses.next_pause() <= Pauses::FIRST);
    }
}
