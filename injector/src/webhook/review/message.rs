//! AdmissionReview v1, as much of it as the injector reads and all that it writes
//! (`admission.k8s.io/v1`, Kubernetes API reference, "AdmissionReview").
//!
//! What is read is not checked for unknown fields: later API servers may send more.

use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Group and version of the message.
pub(super) const API_VERSION: &str = "admission.k8s.io/v1";
/// Kind of the message.
pub(super) const KIND: &str = "AdmissionReview";

/// What the API server sends.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Question {
    pub(super) api_version: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) request: Option<Request>,
}

/// The request in it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Request {
    /// Comes back in the answer.
    pub(crate) uid: String,
    /// What is written.
    pub(crate) resource: Resource,
    /// For example `ephemeralcontainers`.
    #[serde(default)]
    pub(crate) sub_resource: Option<String>,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub(crate) operation: String,
    /// Namespace of the object.
    #[serde(default)]
    pub(crate) namespace: String,
    /// Nothing may be written because of this request.
    #[serde(default)]
    pub(crate) dry_run: Option<bool>,
    /// The object as it would be stored.
    #[serde(default)]
    pub(crate) object: Value,
}

/// What is written, in Kubernetes' terms.
#[derive(Debug, Deserialize)]
pub(crate) struct Resource {
    /// Empty for the core group.
    #[serde(default)]
    pub(crate) group: String,
    /// For example `pods`.
    pub(crate) resource: String,
}

/// What goes back.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reply<'a> {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) response: Response<'a>,
}

/// The response in it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Response<'a> {
    pub(super) uid: &'a str,
    pub(super) allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) patch: Option<ByteString>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) warnings: Vec<String>,
}

/// What the pod's creator sees where `allowed` is false.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    pub(super) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) details: Option<Details>,
}

/// The API server makes a `Retry-After` of it, and its clients try again by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Details {
    pub(super) retry_after_seconds: u32,
}

/// Advice of the API reference: 120 characters a warning, else clients cut it.
const MAX_WARNING: usize = 120;
/// The API server keeps 4096 bytes of all warnings.
const MAX_WARNINGS: usize = 10;

/// Warnings as they can be sent: cut to what clients show, and no more than ten.
pub(super) fn warnings(texts: &[String]) -> Vec<String> {
    texts
        .iter()
        .take(MAX_WARNINGS)
        .map(|text| cut(&format!("remora: {text}"), MAX_WARNING))
        .collect()
}

/// At most `max` characters of a text, on one line; an ellipsis says that there was more.
pub(crate) fn cut(text: &str, max: usize) -> String {
    let line = text.replace(['\n', '\r'], " ");
    if line.chars().count() <= max {
        return line;
    }
    line.chars().take(max - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_bounded_in_length_and_number() {
        let texts: Vec<String> = (0..50).map(|n| format!("{n}\n{}", "ü".repeat(500))).collect();
        let sent = warnings(&texts);
        assert_eq!(sent.len(), MAX_WARNINGS);
        assert!(sent.iter().all(|w| w.chars().count() == MAX_WARNING && !w.contains('\n')));
        assert!(sent.iter().map(String::len).sum::<usize>() < 4096);
        assert_eq!(warnings(&["short".to_owned()]), ["remora: short"]);
    }
}
