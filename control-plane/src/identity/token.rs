//! How a workload proves who it is.

use std::{io, path::PathBuf};

use serde::Deserialize;

/// Who a token stands for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its ServiceAccount.
    pub service_account: String,
    /// Its pod, for the log.
    #[serde(default)]
    pub pod: String,
}

/// Why a token was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Nobody's token.
    #[error("token is not known; the workload must present the token it was given")]
    Unknown,
    /// Not accepted, and why.
    #[error("token refused: {0}")]
    Refused(String),
    /// The check itself failed; trying again may help.
    #[error("token cannot be checked: {0}")]
    Unavailable(String),
}

/// Checks tokens: a directory on one machine, the TokenReview API in Kubernetes.
#[tonic::async_trait]
pub trait TokenReview: Send + Sync + 'static {
    /// Who a token stands for.
    async fn review(&self, token: &[u8]) -> Result<Workload, TokenError>;
}

/// A directory with a file `<SHA-256 of the token in hex>.json` per token. The directory never
/// holds a token itself, and looking a hash up leaks nothing by its timing.
#[derive(Debug)]
pub struct TokenDir(PathBuf);

impl TokenDir {
    /// Tokens registered in a directory, which may come into being later.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self(dir)
    }
}

#[tonic::async_trait]
impl TokenReview for TokenDir {
    async fn review(&self, token: &[u8]) -> Result<Workload, TokenError> {
        // Files end with a newline more often than not.
        let path = self.0.join(format!("{}.json", sha256_hex(token.trim_ascii())));
        let text = match tokio::fs::read(&path).await {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(TokenError::Unknown);
            }
            Err(error) => return Err(TokenError::Unavailable(error.to_string())),
        };
        serde_json::from_slice(&text)
            .map_err(|error| TokenError::Unavailable(format!("{}: {error}", path.display())))
    }
}

fn sha256_hex(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
