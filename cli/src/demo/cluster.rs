//! What the story needs of the mesh it is told about. The main implementation is `remora up`; the
//! other is one network with explicit listeners, for machines that forbid namespaces.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    proxies::{Certificate, Metrics, Services},
    shop::HttpClient,
};

/// Longest wait for an admin endpoint.
const ADMIN_LIMIT: Duration = Duration::from_secs(2);

/// A mesh with the shop in it.
pub(crate) trait Cluster {
    /// The manifests in force; an edit takes effect while the mesh runs.
    fn manifests(&self) -> &Path;

    /// The shop's pods, those included that are starting or ending.
    async fn pods(&mut self) -> Result<Vec<Pod>, Error>;

    /// Kills the control plane and keeps it from coming back.
    async fn kill_control_plane(&mut self) -> Result<(), Error>;

    /// Lets the control plane come back.
    async fn revive_control_plane(&mut self) -> Result<(), Error>;

    /// What a person can try while the mesh stays up, a line each.
    fn to_try(&self, pods: &[Pod]) -> Vec<String>;
}

/// One pod of the shop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    /// Name.
    pub(crate) name: String,
    /// Admin endpoint of its sidecar.
    pub(crate) admin: SocketAddr,
    /// Whether its readiness probe passes.
    pub(crate) ready: bool,
}

impl Pod {
    /// Whether it belongs to a Deployment.
    pub(crate) fn is_of(&self, deployment: &str) -> bool {
        self.name.strip_prefix(deployment).is_some_and(|rest| rest.starts_with('-'))
    }

    /// What its sidecar knows of the Services it balances.
    pub(crate) async fn services(&self) -> Result<Services, Error> {
        self.json("/endpoints").await
    }

    /// Its sidecar's certificate.
    pub(crate) async fn certificate(&self) -> Result<Certificate, Error> {
        self.json("/certs").await
    }

    /// Its sidecar's metrics.
    pub(crate) async fn metrics(&self) -> Result<Metrics, Error> {
        let text = self.get("/metrics").await?;
        Ok(Metrics::parse(&String::from_utf8_lossy(&text)))
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let text = self.get(path).await?;
        serde_json::from_slice(&text).map_err(|e| self.error(path, e.to_string()))
    }

    async fn get(&self, path: &str) -> Result<bytes::Bytes, Error> {
        let client = HttpClient::new(self.admin.to_string(), ADMIN_LIMIT);
        let answer = client.get_fresh(path).await.map_err(|e| self.error(path, e.to_string()))?;
        if !answer.status().is_success() {
            return Err(self.error(path, format!("status {}", answer.status())));
        }
        Ok(answer.into_body())
    }

    fn error(&self, path: &str, problem: String) -> Error {
        Error::Admin { pod: self.name.clone(), path: path.to_owned(), problem }
    }
}

/// Why the story cannot go on. That something did not hold is no error but a verdict.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A sidecar's admin endpoint.
    #[error("sidecar of {pod}: GET {path}: {problem}")]
    Admin {
        /// Pod of the sidecar.
        pod: String,
        /// Path asked for.
        path: String,
        /// What went wrong.
        problem: String,
    },
    /// A file of the demo's own.
    #[error("{}: {source}", path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The shop did not come up.
    #[error("the shop is not ready after {waited:?}: {missing}")]
    NotReady {
        /// How long the story waited.
        waited: Duration,
        /// What is missing.
        missing: String,
    },
    /// The load generator is gone.
    #[error("the load generator has ended")]
    LoadEnded,
    /// The mesh itself.
    #[error("{0}")]
    Mesh(String),
    /// A person or the system ended it.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}
