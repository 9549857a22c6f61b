//! Gives workloads their certificates.
//!
//! ```text
//! files | Secret ─► judge ─► keeper(rotation, bundle) ─► signer    ─► Certify, the server's own TLS
//!                                                   ├─► bundle    ─► discovery streams
//!                                                   ├─► published ─► ConfigMaps (leader)
//!                                                   └─► notices   ─► Events (leader)
//! ```
//! How an issuer is replaced without losing a request is written in [`rotation`].

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use remora_core::spiffe::SpiffeId;
use remora_proto::v1::{CertifyRequest, CertifyResponse, TrustBundle, identity_server};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::metrics::{CertifyResult, Metrics};

pub mod bundle;
pub mod ca;
pub mod expiry;
pub mod judge;
pub mod keeper;
pub mod review;
pub mod rotation;
pub mod secret;
pub mod store;
pub mod token;

use ca::SignError;
use rotation::Signer;
use token::{TokenError, TokenReview};

const MAX_TOKEN: usize = 16 << 10;
const MAX_REQUEST: usize = 8 << 10;

/// The gRPC service.
pub struct Identity {
    /// Signs, as it is now.
    pub signer: watch::Receiver<Arc<Signer>>,
    /// Checks tokens.
    pub tokens: Arc<dyn TokenReview>,
    /// Trust domain of the ids given out.
    pub trust_domain: String,
    /// The roots, as they are now.
    pub bundle: watch::Receiver<Arc<TrustBundle>>,
    /// The wall clock.
    pub clock: fn() -> SystemTime,
    /// Counts results.
    pub metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl identity_server::Identity for Identity {
    async fn certify(
        &self,
        request: Request<CertifyRequest>,
    ) -> Result<Response<CertifyResponse>, Status> {
        let result = self.answer(request.into_inner()).await;
        let kind = match &result {
            Ok(_) => CertifyResult::Issued,
            Err(status) => match status.code() {
                tonic::Code::Unauthenticated => CertifyResult::BadToken,
                tonic::Code::InvalidArgument => CertifyResult::BadRequest,
                _ => CertifyResult::Unavailable,
            },
        };
        self.metrics.certified(kind);
        if let Err(status) = &result {
            tracing::warn!(code = ?status.code(), reason = status.message(), "certificate refused");
        }
        result.map(Response::new)
    }
}

impl Identity {
    async fn answer(&self, request: CertifyRequest) -> Result<CertifyResponse, Status> {
        if request.token.len() > MAX_TOKEN || request.csr.len() > MAX_REQUEST {
            return Err(Status::invalid_argument("token over 16 KiB or request over 8 KiB"));
        }
        let workload = self.tokens.review(&request.token).await.map_err(|error| match error {
            TokenError::Unknown | TokenError::Refused(_) => {
                Status::unauthenticated(error.to_string())
            }
            TokenError::Unavailable(_) => Status::unavailable(error.to_string()),
        })?;
        let id = SpiffeId::new(&self.trust_domain, &workload.namespace, &workload.service_account)
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let now = (self.clock)();
        let signer = Arc::clone(&self.signer.borrow());
        if let Ok(wait) = signer.signs_from.duration_since(now)
            && !wait.is_zero()
        {
            return Err(Status::unavailable(format!(
                "the new issuer signs in {} s, when proxies trust its root; another replica may",
                wait.as_secs() + 1
            )));
        }
        let signed = signer.authority.sign_request(&request.csr, &id, now);
        let leaf = signed.map_err(|error| match error {
            SignError::Request(_) => Status::invalid_argument(error.to_string()),
            SignError::Expired | SignError::Sign(_) => Status::unavailable(error.to_string()),
        })?;
        tracing::info!(%id, pod = workload.pod, "certificate issued");
        Ok(CertifyResponse {
            chain: leaf.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            spiffe_id: id.to_string(),
            not_before: unix_seconds(leaf.not_before),
            not_after: unix_seconds(leaf.not_after),
            trust_bundle: Some((**self.bundle.borrow()).clone()),
        })
    }
}

/// Seconds since the Unix epoch.
#[must_use]
pub fn unix_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
