//! Answers that are errors, in the words of a real API server.

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::kinds::Kind;

/// An answer that is not the object asked for.
#[derive(Debug, Clone)]
pub(super) enum Refusal {
    /// A `Status` object.
    Status {
        /// HTTP status.
        code: StatusCode,
        /// The body.
        body: Value,
    },
    /// Plain text, where the server has no Status to give.
    Text {
        /// HTTP status.
        code: StatusCode,
        /// The body, without its line end.
        text: &'static str,
        /// Seconds of `Retry-After`.
        retry_after: Option<u64>,
    },
}

impl Refusal {
    pub(super) fn code(&self) -> StatusCode {
        match self {
            Self::Status { code, .. } | Self::Text { code, .. } => *code,
        }
    }
}

/// A refusal without more than its words.
pub(super) fn bare(code: u16, reason: &str, message: impl Into<String>) -> Refusal {
    detailed(code, reason, message, None)
}

fn detailed(
    code: u16,
    reason: &str,
    message: impl Into<String>,
    details: Option<Value>,
) -> Refusal {
    let mut body = Map::new();
    body.insert("kind".into(), json!("Status"));
    body.insert("apiVersion".into(), json!("v1"));
    body.insert("metadata".into(), json!({}));
    body.insert("status".into(), json!("Failure"));
    body.insert("message".into(), json!(message.into()));
    if !reason.is_empty() {
        body.insert("reason".into(), json!(reason));
    }
    if let Some(details) = details {
        body.insert("details".into(), details);
    }
    body.insert("code".into(), json!(code));
    let code = StatusCode::from_u16(code).expect("invariant: codes are written here");
    Refusal::Status { code, body: Value::Object(body) }
}

/// `details` of an object.
fn about(kind: &Kind, name: &str) -> Map<String, Value> {
    let mut details = Map::new();
    if !name.is_empty() {
        details.insert("name".into(), json!(name));
    }
    if !kind.group.is_empty() {
        details.insert("group".into(), json!(kind.group));
    }
    details.insert("kind".into(), json!(kind.plural));
    details
}

/// A Status with causes.
fn caused(
    code: u16,
    reason: &str,
    message: String,
    mut details: Map<String, Value>,
    causes: Value,
) -> Refusal {
    details.insert("causes".into(), causes);
    detailed(code, reason, message, Some(Value::Object(details)))
}

pub(super) fn not_found(kind: &Kind, name: &str) -> Refusal {
    let message = format!("{} \"{name}\" not found", kind.qualified());
    detailed(404, "NotFound", message, Some(about(kind, name).into()))
}

pub(super) fn already_exists(kind: &Kind, name: &str) -> Refusal {
    let message = format!("{} \"{name}\" already exists", kind.qualified());
    detailed(409, "AlreadyExists", message, Some(about(kind, name).into()))
}

pub(super) fn conflict(kind: &Kind, name: &str, why: &str) -> Refusal {
    let message =
        format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.qualified());
    detailed(409, "Conflict", message, Some(about(kind, name).into()))
}

pub(super) fn modified(kind: &Kind, name: &str) -> Refusal {
    const WHY: &str = "the object has been modified; please apply your changes to the latest version and try again";
    conflict(kind, name, WHY)
}

/// A delete whose precondition names another uid.
pub(super) fn other_uid(kind: &Kind, name: &str, asked: &str, is: &str) -> Refusal {
    let message = format!(
        "Operation cannot be fulfilled on {} \"{name}\": the UID in the precondition ({asked}) does not match the UID in record ({is}). The object might have been deleted and then recreated",
        kind.name
    );
    detailed(409, "Conflict", message, Some(json!({"name": name, "kind": kind.name})))
}

/// An apply that would take fields from their managers: `(manager, field)`.
pub(super) fn apply_conflict(conflicts: &[(String, String)]) -> Refusal {
    let count = conflicts.len();
    let text =
        |(manager, field): &(String, String)| format!("conflict with \"{manager}\": {field}");
    let message = match conflicts {
        [one] => format!("Apply failed with 1 conflict: {}", text(one)),
        many => {
            let many: Vec<String> = many.iter().map(|one| format!("\n- {}", text(one))).collect();
            format!("Apply failed with {count} conflicts: conflicts:{}", many.concat())
        }
    };
    let cause = |(manager, field): &(String, String)| {
        json!({"reason": "FieldManagerConflict", "field": field,
               "message": format!("conflict with \"{manager}\"")})
    };
    let causes: Value = conflicts.iter().map(cause).collect();
    caused(409, "Conflict", message, Map::new(), causes)
}

pub(super) fn bad_request(message: impl Into<String>) -> Refusal {
    bare(400, "BadRequest", message)
}

/// One field of an object is wrong; `why` is `Invalid value: …` or `Required value`.
pub(super) fn invalid(kind: &Kind, name: &str, field: &str, reason: &str, why: &str) -> Refusal {
    let qualified = match kind.group {
        "" | "events.k8s.io" => kind.name.to_owned(),
        group => format!("{}.{group}", kind.name),
    };
    let message = format!("{qualified} \"{name}\" is invalid: {field}: {why}");
    let causes = json!([{"reason": reason, "message": why, "field": field}]);
    let mut details = about(kind, name);
    if qualified == kind.name {
        details.remove("group");
    }
    details.insert("kind".into(), json!(kind.name));
    caused(422, "Invalid", message, details, causes)
}

/// An update without a resourceVersion, of a kind that needs one.
pub(super) fn needs_version(kind: &Kind, name: &str) -> Refusal {
    const WHY: &str = "Invalid value: 0: must be specified for an update";
    const FIELD: &str = "metadata.resourceVersion";
    let message = format!("{} \"{name}\" is invalid: {FIELD}: {WHY}", kind.qualified());
    let causes = json!([{"reason": "FieldValueInvalid", "message": WHY, "field": FIELD}]);
    caused(422, "Invalid", message, about(kind, name), causes)
}

/// The query's options are wrong: `(field, reason, why)` each.
pub(super) fn invalid_options(kind: &str, wrong: &[(&str, &str, &str)]) -> Refusal {
    let one = |(field, _, why): &(&str, &str, &str)| format!("{field}: {why}");
    let message = match wrong {
        [only] => one(only),
        many => format!("[{}]", many.iter().map(one).collect::<Vec<_>>().join(", ")),
    };
    let causes: Value = wrong
        .iter()
        .map(|(field, reason, why)| json!({"reason": reason, "message": why, "field": field}))
        .collect();
    let mut details = Map::new();
    details.insert("group".into(), json!("meta.k8s.io"));
    details.insert("kind".into(), json!(kind));
    let message = format!("{kind}.meta.k8s.io \"\" is invalid: {message}");
    caused(422, "Invalid", message, details, causes)
}

/// A patch that cannot be carried out.
pub(super) fn unprocessable_patch() -> Refusal {
    let message = "the server rejected our request due to an error in our request";
    detailed(422, "Invalid", message, Some(json!({})))
}

pub(super) fn unsupported_media_type() -> Refusal {
    let message = "415: Unsupported Media Type";
    detailed(415, "UnsupportedMediaType", message, Some(json!({})))
}

pub(super) fn method_not_allowed() -> Refusal {
    let message = "the server does not allow this method on the requested resource";
    detailed(405, "MethodNotAllowed", message, Some(json!({})))
}

pub(super) fn not_acceptable() -> Refusal {
    let message = "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf";
    bare(406, "NotAcceptable", message)
}

/// A resource that the group does not have.
pub(super) fn unknown_resource() -> Refusal {
    let message = "the server could not find the requested resource";
    detailed(404, "NotFound", message, Some(json!({})))
}

/// A path of a group that is not served.
pub(super) fn unknown_path() -> Refusal {
    let code = StatusCode::NOT_FOUND;
    Refusal::Text { code, text: "404 page not found", retry_after: None }
}

pub(super) fn unauthorized() -> Refusal {
    bare(401, "Unauthorized", "Unauthorized")
}

/// What may not be done, by whom, where.
pub(super) fn forbidden(kind: &Kind, asked: &super::access::Asked, user: &str) -> Refusal {
    let resource = match &asked.subresource {
        Some(sub) => format!("{}/{sub}", kind.plural),
        None => kind.plural.to_owned(),
    };
    let scope = match &asked.namespace {
        Some(namespace) => format!("in the namespace \"{namespace}\""),
        None => "at the cluster scope".to_owned(),
    };
    let what = match &asked.name {
        Some(name) => format!("{} \"{name}\"", kind.qualified()),
        None => kind.qualified(),
    };
    let message = format!(
        "{what} is forbidden: User \"{user}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}",
        asked.verb, kind.group
    );
    let details = about(kind, asked.name.as_deref().unwrap_or_default());
    detailed(403, "Forbidden", message, Some(details.into()))
}

/// A namespace that is on its way out takes nothing new.
pub(super) fn terminating(kind: &Kind, name: &str, namespace: &str) -> Refusal {
    let message = format!(
        "{} \"{name}\" is forbidden: unable to create new content in namespace {namespace} because it is being terminated",
        kind.qualified()
    );
    let causes = json!([{"reason": "NamespaceTerminating", "field": "metadata.namespace",
                         "message": format!("namespace {namespace} is being terminated")}]);
    caused(403, "Forbidden", message, about(kind, name), causes)
}

pub(super) fn too_many_requests(retry_after: u64) -> Refusal {
    Refusal::Text {
        code: StatusCode::TOO_MANY_REQUESTS,
        text: "Too many requests, please try again later.",
        retry_after: Some(retry_after),
    }
}

pub(super) fn internal(message: &str) -> Refusal {
    let causes = json!([{"message": message}]);
    let message = format!("Internal error occurred: {message}");
    caused(500, "InternalError", message, Map::new(), causes)
}

pub(super) fn unavailable() -> Refusal {
    let message = "the request has been made before all known HTTP paths have been installed, please try again";
    detailed(503, "ServiceUnavailable", message, Some(json!({"retryAfterSeconds": 5})))
}

/// A list at a resourceVersion that is not reached yet.
pub(super) fn version_too_large(asked: u64, current: u64) -> Refusal {
    let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
    let details = json!({"retryAfterSeconds": 1, "causes": [
        {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]});
    detailed(504, "Timeout", message, Some(details))
}

/// A list as of a resourceVersion that is forgotten.
pub(super) fn list_too_old() -> Refusal {
    bare(410, "Expired", "The resourceVersion for the provided list is too old.")
}

/// A page of a list that is forgotten; `token` allows to go on inconsistently.
pub(super) fn continue_expired(token: &str) -> Refusal {
    const WHY: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";
    let Refusal::Status { code, mut body } = bare(410, "Expired", WHY) else {
        unreachable!("invariant: bare makes a Status")
    };
    body["metadata"] = json!({"continue": token});
    Refusal::Status { code, body }
}

/// The event of a watch whose beginning is forgotten.
pub(super) fn watch_too_old(asked: u64, oldest: u64) -> Value {
    let message = format!("too old resource version: {asked} ({oldest})");
    match bare(410, "Expired", message) {
        Refusal::Status { body, .. } => json!({"type": "ERROR", "object": body}),
        Refusal::Text { .. } => unreachable!("invariant: bare makes a Status"),
    }
}

/// An object that was deleted at once.
pub(super) fn deleted(kind: &Kind, name: &str, uid: &str) -> Value {
    let mut details = about(kind, name);
    details.insert("uid".into(), json!(uid));
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
           "details": details})
}
