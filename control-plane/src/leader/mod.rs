//! What must be written once, however many replicas of the control plane run: the trust bundle in
//! every namespace that needs it, the API server's trust in our answers at admission, the status of
//! routes, and Events about the issuer.
//!
//! - [`lease`] decides which replica does it; it is never on the way of a request, and every
//!   replica serves proxies whether it leads or not;
//! - [`trust_bundles`] keeps the ConfigMaps right;
//! - [`lint_webhook`] keeps the caBundles of the ValidatingWebhookConfiguration right;
//! - [`route_status`] says of Gateway API routes what became of them;
//! - [`events`] tells people about the issuer.
//!
//! Writing twice would do no harm (both replicas would write the same); the Lease saves the API
//! server the work and keeps two versions of the program from overwriting each other in turns.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use remora_core::drain;
use tokio::sync::watch;

pub mod events;
pub mod lease;
pub mod lint_webhook;
pub mod route_status;
pub mod trust_bundles;

use crate::discovery::State;
use events::Notice;
use trust_bundles::PublishedBundle;

/// Longest wait for the API server's answer to one request.
const ANSWER: Duration = Duration::from_secs(4);
/// First and longest pause before a request that failed is repeated.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often a lasting failure is reported.
const REPORT: Duration = Duration::from_secs(30);

/// Which replica this is.
#[derive(Debug, Clone)]
pub struct Replica {
    /// Namespace of the control plane.
    pub namespace: String,
    /// Name of this replica, unique among them: the pod's name.
    pub identity: String,
}

/// What the leader writes, as it is now.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Content of the ConfigMaps.
    pub bundle: watch::Receiver<Arc<PublishedBundle>>,
    /// Namespaces that need one beside the control plane's own: see [`trust_bundles::publish`].
    pub namespaces: watch::Receiver<Arc<BTreeSet<Arc<str>>>>,
    /// What there is to tell about the issuer.
    pub notices: watch::Receiver<Arc<Vec<Notice>>>,
    /// Knows the routes, and what is to be said of them.
    pub state: Arc<State>,
    /// Whether objects are judged at admission.
    pub admission: bool,
}

/// Takes part in the election and does the leader's work whenever it is ours, until draining
/// begins. The receiver says whether this replica leads.
pub fn run(
    client: kube::Client,
    replica: Replica,
    inputs: Inputs,
    clock: fn() -> SystemTime,
    mut rng: fastrand::Rng,
    drain: drain::Watch,
) -> (watch::Receiver<bool>, impl Future<Output = ()> + Send) {
    let (leading, hold) =
        lease::hold(client.clone(), replica.clone(), clock, rng.fork(), drain.clone());
    let publish = trust_bundles::publish(
        client.clone(),
        replica.namespace.clone(),
        leading.clone(),
        inputs.bundle.clone(),
        inputs.namespaces,
        rng.fork(),
        drain.clone(),
    );
    let statuses = route_status::publish(
        client.clone(),
        leading.clone(),
        inputs.state,
        clock,
        rng.fork(),
        drain.clone(),
    );
    let trust = lint_webhook::publish(
        client.clone(),
        leading.clone(),
        inputs.bundle,
        rng.fork(),
        drain.clone(),
    );
    let trust = async move {
        if inputs.admission {
            trust.await;
        }
    };
    let report =
        events::report(client, replica, leading.clone(), inputs.notices, clock, rng, drain);
    let work = async move {
        let (publish, statuses) = (Box::pin(publish), Box::pin(statuses));
        tokio::join!(hold, publish, statuses, Box::pin(trust), Box::pin(report));
    };
    (leading, work)
}

/// Why a request to the API server came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// It said no.
    #[error("API server: {} ({})", .0.message, .0.code)]
    Refused(Box<kube::core::Status>),
    /// It was not reached, or its answer made no sense.
    #[error("API server: {0}")]
    Failed(kube::Error),
    /// It said nothing.
    #[error("no answer from the API server within {ANSWER:?}")]
    Timeout,
}

impl CallError {
    fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Refused(status) => Some(status),
            _ => None,
        }
    }

    fn code(&self) -> u16 {
        self.status().map_or(0, |status| status.code)
    }

    /// What to do about it, as the end of a log line.
    fn mend(&self) -> &'static str {
        match self.code() {
            401 | 403 => "; compare the roles with `remora install`, and apply them again",
            _ => "",
        }
    }
}

/// One request, within a bound.
async fn call<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, CallError> {
    match tokio::time::timeout(ANSWER, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(CallError::Refused(status)),
        Ok(Err(error)) => Err(CallError::Failed(error)),
        Err(_) => Err(CallError::Timeout),
    }
}

/// Doubles with every failure in a row; half of it is chance.
fn pause(failures: u32, rng: &mut fastrand::Rng) -> Duration {
    let step = RETRY.0.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(RETRY.1);
    step.mul_f64(0.5 + 0.5 * rng.f64())
}

/// Lets one line through every [`REPORT`].
#[derive(Debug, Default)]
struct Seldom(Option<tokio::time::Instant>);

impl Seldom {
    fn due(&mut self, now: tokio::time::Instant) -> bool {
        let due = self.0.is_none_or(|last| now.duration_since(last) >= REPORT);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

/// Now, as Kubernetes writes times with microseconds.
fn micro_time(now: SystemTime) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
    // Beyond the year 9999 only.
    MicroTime(Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH))
}

#[cfg(test)]
mod testing;
