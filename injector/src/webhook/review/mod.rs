//! One AdmissionReview in, one out.
//!
//! | what comes | answer |
//! |---|---|
//! | no `CREATE` of a Pod | allowed, untouched |
//! | a pod that gets a sidecar | allowed, with the patch; doubts as warnings |
//! | a pod that gets none | allowed; the surprising reasons as warning and event |
//! | an annotation that cannot be used | denied, 422, with its name and the mend; event |
//! | a pod that does not parse | denied if it asked for a sidecar, else allowed with a warning |
//! | a namespace that cannot be looked up | denied, 503 "try again": never silently without sidecar |
//! | anything that is no AdmissionReview v1 | an HTTP error, which the API server takes for a failed call |

pub(crate) mod http;

use std::sync::Arc;

use k8s_openapi::{ByteString, api::core::v1::Pod};
use remora_core::{
    admission::{self, BadReview, Details, Request, Status, warnings},
    names::annotations,
    settings::{Inject, in_force},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    events::{Events, Notice, Reason},
    metrics::Metrics,
    namespaces::{Lookup, Namespaces},
};
use crate::{Decision, NamespaceInfo, Settings, SkipReason, decide, patch};

/// Answers reviews.
pub(crate) struct Reviewer {
    pub(crate) settings: Settings,
    pub(crate) namespaces: Arc<Namespaces>,
    pub(crate) events: Events,
    pub(crate) metrics: Arc<Metrics>,
}

/// Advice of the API reference: 120 characters a warning, else clients cut it.
const MAX_WARNING: usize = 120;

/// An answer before it is written, with the words that the metrics know it by.
struct Verdict {
    allowed: Result<Option<ByteString>, Status>,
    warnings: Vec<String>,
    result: &'static str,
    reason: &'static str,
}

impl Reviewer {
    /// The answer to a body, as JSON.
    ///
    /// # Errors
    /// Where the body is no review.
    pub(crate) async fn answer(&self, body: &[u8]) -> Result<Vec<u8>, BadReview> {
        let started = Instant::now();
        let request = admission::read(body)?;
        let verdict = self.verdict(&request).await;
        let allowed = verdict.allowed.as_ref().map(Option::as_ref);
        let reply = admission::reply(&request, allowed, &warnings(&verdict.warnings, MAX_WARNING))?;
        self.metrics.reviewed(verdict.result, verdict.reason, started.elapsed());
        Ok(reply)
    }

    async fn verdict(&self, request: &Request) -> Verdict {
        if !request.is_of("", "pods") || request.operation != "CREATE" {
            return Verdict::untouched("not-a-new-pod");
        }
        let lookup = self.namespaces.lookup(&request.namespace).await;
        let pod = match parse(&request.object) {
            Ok(pod) => pod,
            Err(problem) => return unreadable(&request.object, &lookup, &problem),
        };
        let (namespace, fresh) = match lookup {
            Lookup::Cached(namespace) => (namespace, false),
            Lookup::Asked(namespace) => (namespace, true),
            Lookup::Unknown(_) if declines(&request.object) => {
                return Verdict::untouched("disabled-on-pod");
            }
            Lookup::Unknown(why) => return Verdict::try_again(&request.namespace, &why),
        };
        let mut decision = decide(&pod, &namespace, &self.settings);
        let not_asked = matches!(
            decision,
            Decision::Skip(SkipReason::NotOptedIn { .. } | SkipReason::DisabledOnNamespace { .. })
        );
        // The label made the API server call, so what the cache says may be old.
        if not_asked && !fresh {
            match self.namespaces.ask(&request.namespace).await {
                Lookup::Cached(namespace) | Lookup::Asked(namespace) => {
                    decision = decide(&pod, &namespace, &self.settings);
                }
                Lookup::Unknown(why) => return Verdict::try_again(&request.namespace, &why),
            }
        }
        let dry_run = request.dry_run == Some(true);
        let notify = |reason, note: &str| {
            if !dry_run {
                self.events.send(Notice::about_pod(&request.namespace, &pod, reason, note));
            }
        };
        self.carry_out(decision, &pod, notify)
    }

    fn carry_out(&self, decision: Decision, pod: &Pod, notify: impl Fn(Reason, &str)) -> Verdict {
        match decision {
            Decision::Inject(plan) => {
                for warning in &plan.warnings {
                    notify(Reason::Warning, warning);
                }
                match serde_json::to_vec(&patch(pod, &plan, &self.settings)) {
                    Ok(patch) => Verdict {
                        allowed: Ok(Some(ByteString(patch))),
                        warnings: plan.warnings,
                        result: "inject",
                        reason: "injected",
                    },
                    Err(error) => Verdict::refused(
                        500,
                        "InternalError",
                        format!("the patch cannot be written: {error}; report it"),
                        "internal",
                    ),
                }
            }
            Decision::Skip(reason) => {
                let (word, loud) = describe(&reason);
                let text = reason.to_string();
                if loud {
                    notify(Reason::Skipped, &text);
                }
                let warnings = if loud { vec![text] } else { Vec::new() };
                Verdict { allowed: Ok(None), warnings, result: "skip", reason: word }
            }
            Decision::Refuse(refusal) => {
                let text = refusal.to_string();
                notify(Reason::Refused, &text);
                Verdict::refused(422, "Invalid", text, "invalid-annotation")
            }
        }
    }
}

/// The word for the metrics, and whether the owner should hear of it: what he asked for himself, or
/// has already, is no news.
fn describe(reason: &SkipReason) -> (&'static str, bool) {
    match reason {
        SkipReason::NotOptedIn { .. } => ("not-opted-in", false),
        SkipReason::DisabledOnPod => ("disabled-on-pod", false),
        SkipReason::DisabledOnNamespace { .. } => ("disabled-on-namespace", false),
        SkipReason::AlreadyInjected { .. } => ("already-injected", false),
        SkipReason::HostNetwork => ("host-network", true),
        SkipReason::Windows => ("windows", true),
        SkipReason::SystemNamespace { .. } => ("system-namespace", true),
        SkipReason::OtherSidecar { .. } => ("other-sidecar", true),
    }
}

impl Verdict {
    fn untouched(reason: &'static str) -> Self {
        Self { allowed: Ok(None), warnings: Vec::new(), result: "skip", reason }
    }

    fn refused(code: u16, reason: &'static str, message: String, word: &'static str) -> Self {
        let details = (code == 503).then_some(Details { retry_after_seconds: 1 });
        let message = format!("remora: {message}");
        Self {
            allowed: Err(Status { code, reason, message, details }),
            warnings: Vec::new(),
            result: "refuse",
            reason: word,
        }
    }

    fn try_again(namespace: &str, why: &str) -> Self {
        let message = format!(
            "cannot tell whether pods of namespace {namespace} get a sidecar: {why}; try again"
        );
        Self::refused(503, "ServiceUnavailable", message, "namespace-unknown")
    }
}

/// A pod whose `metadata` and `spec` are there, so that a patch finds its places.
fn parse(object: &Value) -> Result<Pod, String> {
    for part in ["metadata", "spec"] {
        if !object.get(part).is_some_and(Value::is_object) {
            return Err(format!("{part} is missing"));
        }
    }
    Pod::deserialize(object).map_err(|error| error.to_string())
}

/// A pod from a newer API than ours must not be held up unless it asked for what we cannot do.
fn unreadable(object: &Value, lookup: &Lookup, problem: &str) -> Verdict {
    let on_pod = on_pod(object);
    let asked = match lookup {
        Lookup::Cached(namespace) | Lookup::Asked(namespace) => {
            let asks = |value: &str| value.parse() == Ok(Inject::Enabled);
            in_force(on_pod, on_namespace(namespace)).is_some_and(asks)
        }
        Lookup::Unknown(_) => !declines(object),
    };
    if asked {
        let message = format!(
            "the pod cannot be read: {problem}; mend it, or annotate it {}: disabled",
            annotations::INJECT
        );
        return Verdict::refused(422, "Invalid", message, "unreadable");
    }
    Verdict {
        allowed: Ok(None),
        warnings: vec![format!("the pod cannot be read and stays as it is: {problem}")],
        result: "skip",
        reason: "unreadable",
    }
}

/// Whether the pod says no, which settles it whatever its namespace says.
fn declines(object: &Value) -> bool {
    on_pod(object).is_some_and(|value| value.parse() == Ok(Inject::Disabled))
}

fn on_pod(object: &Value) -> Option<&str> {
    let map = object.pointer("/metadata/annotations")?;
    map.get(annotations::INJECT)?.as_str().map(str::trim)
}

fn on_namespace(namespace: &NamespaceInfo) -> Option<&str> {
    namespace.annotations.get(annotations::INJECT).map(|value| value.trim())
}
