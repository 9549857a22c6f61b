//! Checks tokens by the TokenReview API. What a token says of itself is never believed here: only the
//! API's answer is, and nothing of it is kept.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::authentication::v1::{TokenReview as Review, TokenReviewSpec, UserInfo};
use kube::{Api, Client, api::PostParams};
use remora_core::names;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout},
};

use super::token::{TokenError, TokenReview, Workload};
use crate::metrics::{Metrics, ReviewFailure};

/// Reviews at a time; the API server's own limits are shared with everybody else.
const IN_FLIGHT: usize = 32;
/// Reviews that wait for their turn. After an outage every proxy may come at once; those beyond try
/// again with back-off.
const WAITING: usize = 1024;
/// Longest wait for a turn, and then for the answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest part of the API's words that is told on.
const MAX_REASON: usize = 300;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Asks the API server.
pub struct ApiReview {
    api: Api<Review>,
    in_flight: Semaphore,
    waiting: Semaphore,
    metrics: Arc<Metrics>,
}

impl ApiReview {
    /// Asks through a client.
    #[must_use]
    pub fn new(client: Client, metrics: Arc<Metrics>) -> Self {
        Self {
            api: Api::all(client),
            in_flight: Semaphore::new(IN_FLIGHT),
            waiting: Semaphore::new(WAITING),
            metrics,
        }
    }

    /// The right to have one review in flight.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        let _waiting = self.waiting.try_acquire().ok()?;
        timeout(TIMEOUT, self.in_flight.acquire()).await.ok()?.ok()
    }

    fn failed(&self, kind: ReviewFailure, problem: String) -> TokenError {
        self.metrics.review_failed(kind);
        TokenError::Unavailable(problem)
    }

    fn api_failed(&self, error: &kube::Error) -> TokenError {
        let kube::Error::Api(status) = error else {
            return self.failed(
                ReviewFailure::Connection,
                format!(
                    "no answer from the API server ({}); trying again helps",
                    clip(&error.to_string())
                ),
            );
        };
        let said = clip(&status.message);
        match status.code {
            401 | 403 => self.failed(
                ReviewFailure::Forbidden,
                format!(
                    "the control plane may not review tokens ({said}); give its ServiceAccount \
                     the verb create on tokenreviews.authentication.k8s.io, as the ClusterRole \
                     remora-control-plane of `remora install` does"
                ),
            ),
            429 => self.failed(
                ReviewFailure::Throttled,
                format!("the API server is too busy ({said}); trying again helps"),
            ),
            code => self.failed(
                ReviewFailure::Server,
                format!("the API server answered {code} ({said}); trying again helps"),
            ),
        }
    }
}

#[tonic::async_trait]
impl TokenReview for ApiReview {
    async fn review(&self, token: &[u8]) -> Result<Workload, TokenError> {
        // The API takes an empty token for a malformed request.
        let token = std::str::from_utf8(token).map(str::trim).unwrap_or_default();
        if token.is_empty() {
            return Err(TokenError::Refused("it is empty or no text".to_owned()));
        }
        let Some(_turn) = self.turn().await else {
            let problem = "too many reviews are waiting; trying again helps".to_owned();
            return Err(self.failed(ReviewFailure::Overloaded, problem));
        };
        let review = Review {
            spec: TokenReviewSpec {
                audiences: Some(vec![names::TOKEN_AUDIENCE.to_owned()]),
                token: Some(token.to_owned()),
            },
            ..Review::default()
        };
        let started = Instant::now();
        let parameters = PostParams::default();
        let answer = timeout(TIMEOUT, self.api.create(&parameters, &review)).await;
        self.metrics.review.observe(started.elapsed().as_secs_f64());
        match answer {
            Ok(Ok(review)) => workload(review).map_err(TokenError::Refused),
            Ok(Err(error)) => Err(self.api_failed(&error)),
            Err(_) => {
                let problem = format!("no answer from the API server in {} s", TIMEOUT.as_secs());
                Err(self.failed(ReviewFailure::Timeout, problem))
            }
        }
    }
}

/// Whom a review vouches for, or why it does not.
fn workload(review: Review) -> Result<Workload, String> {
    let status = review.status.unwrap_or_default();
    if status.authenticated != Some(true) {
        let said = status.error.unwrap_or_default();
        return Err(format!(
            "the API server does not accept it ({}); the pod needs a projected token with audience {}",
            clip(&said),
            names::TOKEN_AUDIENCE,
        ));
    }
    let audiences = status.audiences.unwrap_or_default();
    if !audiences.iter().any(|audience| audience == names::TOKEN_AUDIENCE) {
        return Err(format!(
            "its audiences {audiences:?} do not contain {}; the pod needs a projected token with it",
            names::TOKEN_AUDIENCE
        ));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.as_deref().unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, service_account)) =
        account.filter(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains(':'))
    else {
        return Err(format!("it is the token of {name:?}, not of a ServiceAccount"));
    };
    let (Some(pod), Some(_)) = (extra(&user, POD_NAME), extra(&user, POD_UID)) else {
        return Err(format!(
            "it is not bound to a pod; {name} must use the projected token of a pod, not one made \
             with kubectl create token"
        ));
    };
    Ok(Workload {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: pod.to_owned(),
    })
}

/// The only value of a key.
fn extra<'a>(user: &'a UserInfo, key: &str) -> Option<&'a str> {
    match user.extra.as_ref()?.get(key)?.as_slice() {
        [only] if !only.is_empty() => Some(only),
        _ => None,
    }
}

fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_REASON)]
}

#[cfg(test)]
mod tests;
