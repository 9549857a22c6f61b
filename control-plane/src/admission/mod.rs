//! Answers at admission: whoever applies a route or a Service hears at once what is wrong with it.
//!
//! | what comes | answer |
//! |---|---|
//! | not a route that names a Service, and not a Service with annotations of ours | allowed, untouched |
//! | of a namespace of the system; an object that is being deleted; an update that changes nothing that is read here | the same |
//! | an error of the object by itself, which its former state did not have | denied, 422, with all findings at once |
//! | anything else that `remora lint` would say | allowed, with warnings |
//! | an object that cannot be read | allowed, with a warning: the API server's own checks let it pass |
//!
//! What depends on other objects never denies anything: they may come a moment later. [`judge`] is pure;
//! [`server`] carries it, and `leader::lint_webhook` keeps the API server's trust in that.

pub mod server;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Service;
use remora_core::{
    admission::{self, BadReview, Request, Status, warnings},
    names::SYSTEM_NAMESPACE,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    discovery::State,
    lint::{Basis, Finding, Rule, Severity, lint_in_cluster},
    metrics::AdmissionResult,
    source::{
        self,
        manifest::Object,
        route::{GROUP, Written},
    },
};

/// Namespaces in which nothing is judged: the cluster's own life must never depend on us.
const SYSTEM: [&str; 3] = ["kube-system", "kube-node-lease", SYSTEM_NAMESPACE];
/// Longest warning, in characters: what an API server leaves of each where all are too long.
const MAX_WARNING: usize = 256;
/// Findings that are spelt out where an object is denied.
const MAX_FINDINGS: usize = 20;

/// What is missing is looked for again after this long: a Service of the same file was applied a moment
/// ago, and its news is on the way here.
const SETTLE: Duration = Duration::from_millis(200);

/// Answers reviews with what is known now.
#[derive(Debug)]
pub struct Reviewer {
    /// What other objects there are.
    pub state: Arc<State>,
}

/// What an object is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is none of our business.
    Untouched,
    /// It cannot be read, and why.
    Unreadable(String),
    /// It was judged.
    Judged {
        /// Why it is denied; empty: it is allowed.
        denied: Vec<Finding>,
        /// What it is warned of.
        warned: Vec<Finding>,
    },
}

impl Reviewer {
    /// The answer to a body, as JSON.
    ///
    /// # Errors
    /// Where the body is no review.
    pub async fn answer(&self, body: &[u8]) -> Result<Vec<u8>, BadReview> {
        let request = admission::read(body)?;
        let mut verdict = self.judge(&request);
        if verdict.misses_something() {
            tokio::time::sleep(SETTLE).await;
            verdict = self.judge(&request);
        }
        self.state.metrics.admitted(verdict.result());
        let texts = verdict.warnings(&request);
        let status = verdict.status();
        let allowed: Result<Option<&Value>, &Status> = status.as_ref().map_or(Ok(None), Err);
        Ok(admission::reply(&request, allowed, &warnings(&texts, MAX_WARNING))?)
    }

    fn judge(&self, request: &Request) -> Verdict {
        judge(request, |object| {
            self.state.is_loaded().then(|| self.state.read(|index| index.around(object)))
        })
    }
}

/// Judges what a review is about. `around` gives the objects that another depends on, and nothing where
/// they are not known yet: what depends on them is not judged then.
pub fn judge(
    request: &Request,
    around: impl FnOnce(&source::Object) -> Option<Vec<source::Object>>,
) -> Verdict {
    let judged = ["CREATE", "UPDATE"].contains(&&*request.operation)
        && !SYSTEM.contains(&&*request.namespace);
    let Some(read) = reader(request).filter(|_| judged) else { return Verdict::Untouched };
    let new = match read(&request.object) {
        Ok(object) => object,
        Err(problem) => return Verdict::Unreadable(problem),
    };
    if !concerns_us(&new) || new.metadata().deletion_timestamp.is_some() {
        return Verdict::Untouched;
    }
    // One that cannot be read any more is as good as none.
    let old = Some(&request.old_object).filter(|old| !old.is_null()).and_then(|old| read(old).ok());
    if old.as_ref().is_some_and(|old| old.slim() == new.slim()) {
        return Verdict::Untouched;
    }
    let around = new.slim().and_then(|slim| around(&slim));
    let findings = lint_in_cluster(&new, around);
    let before = old.filter(concerns_us).map(|old| lint_in_cluster(&old, None)).unwrap_or_default();
    let (denied, warned) = sorted_out(findings, before);
    Verdict::Judged { denied, warned }
}

/// What denies an object, and what it is only warned of.
fn sorted_out(findings: Vec<Finding>, before: Vec<Finding>) -> (Vec<Finding>, Vec<Finding>) {
    // How often each error was there before, wherever in the object: rules move when others are added.
    let mut known: BTreeMap<(Rule, String, String), usize> = BTreeMap::new();
    for finding in before.into_iter().filter(denies) {
        *known.entry(signature(&finding)).or_default() += 1;
    }
    findings.into_iter().partition(|finding| {
        let left = known.get_mut(&signature(finding)).filter(|left| **left > 0);
        denies(finding) && left.map(|left| *left -= 1).is_none()
    })
}

/// Whether a finding is a reason to deny an object: it is wrong whatever else there is, and what is
/// written is not carried out. Weights that are all 0 are carried out to the letter, and are how somebody
/// takes a route's traffic away.
fn denies(finding: &Finding) -> bool {
    finding.severity == Severity::Error
        && finding.basis == Basis::Itself
        && finding.rule != Rule::WeightsZero
}

/// What stays the same of a finding when its place in the object moves.
fn signature(finding: &Finding) -> (Rule, String, String) {
    let unplaced = |text: &str| {
        let parts =
            text.split('[').map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit()));
        parts.collect::<Vec<_>>().join("[")
    };
    (finding.rule, unplaced(&finding.field), unplaced(&finding.problem))
}

type Read = fn(&Value) -> Result<Object, String>;

/// How the object of a request is read; `None` for kinds that are not judged.
fn reader(request: &Request) -> Option<Read> {
    if request.is_of("", "services") {
        return Some(|value| parse::<Service>(value).map(Object::Service));
    }
    let reader = |resource: &str| -> Option<Read> {
        Some(match resource {
            "httproutes" => |value| parse::<Written<_>>(value).map(Object::HttpRoute),
            "grpcroutes" => |value| parse::<Written<_>>(value).map(Object::GrpcRoute),
            "tlsroutes" => |value| parse::<Written<_>>(value).map(Object::TlsRoute),
            "tcproutes" => |value| parse::<Written<_>>(value).map(Object::TcpRoute),
            _ => return None,
        })
    };
    reader(&request.resource.resource).filter(|_| request.is_of(GROUP, &request.resource.resource))
}

fn parse<K: DeserializeOwned>(value: &Value) -> Result<Arc<K>, String> {
    serde_path_to_error::deserialize(value).map(Arc::new).map_err(|error| error.to_string())
}

/// Whether an object says anything to us: a route that names a Service, rightly or not, or a Service with
/// an annotation of ours.
fn concerns_us(object: &Object) -> bool {
    match object.slim() {
        Some(source::Object::Route(route)) => {
            route.parents.iter().any(|parent| parent.is_service() || parent.is_slip())
        }
        Some(source::Object::Service(service)) => !service.meta.annotations.is_empty(),
        _ => false,
    }
}

impl Verdict {
    /// As the metrics know it.
    fn result(&self) -> AdmissionResult {
        match self {
            Self::Untouched => AdmissionResult::Untouched,
            Self::Unreadable(_) => AdmissionResult::Unreadable,
            Self::Judged { denied, .. } if !denied.is_empty() => AdmissionResult::Denied,
            Self::Judged { warned, .. } if !warned.is_empty() => AdmissionResult::Warned,
            Self::Judged { .. } => AdmissionResult::Allowed,
        }
    }

    /// Whether it warns of something that is not there, or not yet.
    fn misses_something(&self) -> bool {
        let Self::Judged { warned, .. } = self else { return false };
        warned.iter().any(|finding| {
            matches!(
                finding.rule,
                Rule::ParentMissing
                    | Rule::ParentPort
                    | Rule::BackendMissing
                    | Rule::BackendPort
                    | Rule::GrantMissing
            )
        })
    }

    /// A line for each warning, in the order of fields.
    fn warnings(&self, request: &Request) -> Vec<String> {
        match self {
            Self::Untouched => Vec::new(),
            Self::Unreadable(why) => {
                let resource = &request.resource.resource;
                vec![format!("not judged, since this version cannot read all of {resource}: {why}")]
            }
            Self::Judged { warned, .. } => warned.iter().map(line).collect(),
        }
    }

    /// Why it is denied, all of it in one answer.
    fn status(&self) -> Option<Status> {
        let Self::Judged { denied, .. } = self else { return None };
        let object = denied.first()?.object.as_ref().map_or_else(String::new, ToString::to_string);
        let mut lines = vec![format!("remora: {object} would not do what is written")];
        lines.extend(denied.iter().take(MAX_FINDINGS).map(line));
        if let Some(more @ 1..) = denied.len().checked_sub(MAX_FINDINGS) {
            lines.push(format!("and {more} more"));
        }
        let message = lines.join("\n  ");
        Some(Status { code: 422, reason: "Invalid", message, details: None })
    }
}

/// Field, what is wrong, what follows, and the mend.
fn line(finding: &Finding) -> String {
    let Finding { rule, field, problem, mend, .. } = finding;
    format!("{field}: {problem}; {mend} ({rule})")
}
