//! AdmissionReview v1, as much of it as our webhooks read and all that they write
//! (`admission.k8s.io/v1`, Kubernetes API reference, "AdmissionReview").
//!
//! What is read is not checked for unknown fields: later API servers may send more.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Group and version of the message.
const API_VERSION: &str = "admission.k8s.io/v1";
/// Kind of the message.
const KIND: &str = "AdmissionReview";

/// What the API server sends.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Question {
    api_version: Option<String>,
    kind: Option<String>,
    request: Option<Request>,
}

/// What is to be judged.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Comes back in the answer.
    pub uid: String,
    /// What is written.
    pub resource: Resource,
    /// For example `ephemeralcontainers`.
    #[serde(default)]
    pub sub_resource: Option<String>,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: String,
    /// Namespace of the object.
    #[serde(default)]
    pub namespace: String,
    /// Nothing may be written because of this request.
    #[serde(default)]
    pub dry_run: Option<bool>,
    /// The object as it would be stored.
    #[serde(default)]
    pub object: Value,
    /// The object as it is stored; null where it is new.
    #[serde(default)]
    pub old_object: Value,
}

/// What is written, in Kubernetes' terms.
#[derive(Debug, Deserialize)]
pub struct Resource {
    /// Empty for the core group.
    #[serde(default)]
    pub group: String,
    /// For example `pods`.
    pub resource: String,
}

impl Request {
    /// Whether it is about an object of this kind itself, and not about a part of it.
    #[must_use]
    pub fn is_of(&self, group: &str, resource: &str) -> bool {
        self.resource.group == group
            && self.resource.resource == resource
            && self.sub_resource.as_deref().unwrap_or_default().is_empty()
    }
}

/// A body that is no review.
#[derive(Debug, thiserror::Error)]
pub enum BadReview {
    /// Not JSON of the right shape.
    #[error("the body is no AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    /// Another version or kind.
    #[error(
        "the body is {kind} of {api_version}; this webhook speaks AdmissionReview of admission.k8s.io/v1"
    )]
    Version {
        /// As given.
        api_version: String,
        /// As given.
        kind: String,
    },
    /// There is nothing to answer.
    #[error("the AdmissionReview has no request with a uid")]
    NoRequest,
}

/// Reads what the API server sent.
///
/// # Errors
/// Where it is no review.
pub fn read(body: &[u8]) -> Result<Request, BadReview> {
    let question: Question = serde_json::from_slice(body)?;
    if question.api_version.as_deref() != Some(API_VERSION)
        || question.kind.as_deref() != Some(KIND)
    {
        let word = |given: Option<String>| given.unwrap_or_else(|| "something".to_owned());
        return Err(BadReview::Version {
            api_version: word(question.api_version),
            kind: word(question.kind),
        });
    }
    question.request.filter(|request| !request.uid.is_empty()).ok_or(BadReview::NoRequest)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Reply<'a, P> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a, P>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a, P> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<&'a P>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

/// What the writer of the object sees where it is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// HTTP status.
    pub code: u16,
    /// Kubernetes' word for it, for example `Invalid`.
    pub reason: &'static str,
    /// What is wrong, and the mend.
    pub message: String,
    /// When to try again, where that helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
}

/// The API server makes a `Retry-After` of it, and its clients try again by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// Seconds until then.
    pub retry_after_seconds: u32,
}

/// The answer to a request: allowed, with a JSON Patch where `patch` is one (base64, as JSON carries
/// bytes), or refused with the status. Warnings go back as they are: see [`warnings`].
///
/// # Errors
/// Where the patch cannot be written.
pub fn reply<P: Serialize>(
    request: &Request,
    verdict: Result<Option<&P>, &Status>,
    warnings: &[String],
) -> serde_json::Result<Vec<u8>> {
    let (status, patch) = match verdict {
        Ok(patch) => (None, patch),
        Err(status) => (Some(status), None),
    };
    serde_json::to_vec(&Reply {
        api_version: API_VERSION,
        kind: KIND,
        response: Response {
            uid: &request.uid,
            allowed: status.is_none(),
            status,
            patch_type: patch.map(|_| "JSONPatch"),
            patch,
            warnings,
        },
    })
}

/// The API server keeps 4096 characters of all warnings; beyond them it cuts each to 256, and then
/// leaves out the last.
const MAX_WARNINGS: usize = 10;

/// Warnings as they can be sent: in our name, each on one line and at most `longest` characters, and
/// no more than ten.
#[must_use]
pub fn warnings(texts: &[String], longest: usize) -> Vec<String> {
    let one = |text: &String| cut(&format!("remora: {text}"), longest);
    if texts.len() <= MAX_WARNINGS {
        return texts.iter().map(one).collect();
    }
    let more = texts.len() - (MAX_WARNINGS - 1);
    let first = texts.iter().take(MAX_WARNINGS - 1).map(one);
    first.chain([format!("remora: and {more} more")]).collect()
}

/// At most `max` characters of a text, on one line; an ellipsis says that there was more.
#[must_use]
pub fn cut(text: &str, max: usize) -> String {
    let line = text.replace(char::is_control, " ");
    if line.chars().count() <= max {
        return line;
    }
    line.chars().take(max - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn warnings_are_bounded_in_length_and_number_and_say_what_is_left_out() {
        let texts: Vec<String> = (0..50).map(|n| format!("{n}\n{}", "ü".repeat(500))).collect();
        let sent = warnings(&texts, 256);
        assert_eq!((sent.len(), sent[9].as_str()), (10, "remora: and 41 more"));
        assert!(sent[..9].iter().all(|w| w.chars().count() == 256 && !w.contains('\n')));
        assert!(sent.iter().map(|w| w.chars().count()).sum::<usize>() < 4096);
        assert_eq!(warnings(&texts[..10], 120).len(), 10, "ten have room for all");
        assert_eq!(warnings(&["short".to_owned()], 120), ["remora: short"]);
    }

    fn review(request: Value) -> Vec<u8> {
        let review = json!({"apiVersion": API_VERSION, "kind": KIND, "request": request});
        review.to_string().into_bytes()
    }

    #[test]
    fn an_answer_has_the_uid_of_its_request_and_nothing_that_it_need_not_have() {
        let resource = json!({"group": "", "version": "v1", "resource": "pods"});
        let body = review(json!({"uid": "u", "resource": resource, "operation": "CREATE"}));
        let request = read(&body).unwrap();
        assert!(request.is_of("", "pods") && !request.is_of("apps", "pods"));
        let answer = |verdict| -> Value {
            let bytes = reply::<Value>(&request, verdict, &[]).unwrap();
            serde_json::from_slice::<Value>(&bytes).unwrap()["response"].clone()
        };
        assert_eq!(answer(Ok(None)), json!({"uid": "u", "allowed": true}));
        let patch = json!("W10=");
        let patched =
            json!({"uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": patch});
        assert_eq!(answer(Ok(Some(&patch))), patched);
        let message = "no".to_owned();
        let status = Status { code: 422, reason: "Invalid", message, details: None };
        let refused = json!({"uid": "u", "allowed": false,
            "status": {"code": 422, "reason": "Invalid", "message": "no"}});
        assert_eq!(answer(Err(&status)), refused);
    }

    #[test]
    fn what_is_no_review_is_said() {
        let wrong = |body: &[u8]| read(body).unwrap_err().to_string();
        assert!(wrong(b"pod").starts_with("the body is no AdmissionReview"));
        assert!(wrong(br#"{"apiVersion":"v1","kind":"Pod"}"#).starts_with("the body is Pod of v1"));
        assert!(wrong(b"{}").starts_with("the body is something of something"));
        assert!(wrong(&review(Value::Null)).contains("no request"));
    }
}
