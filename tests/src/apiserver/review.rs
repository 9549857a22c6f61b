//! TokenReview and SelfSubjectAccessReview.

use serde_json::{Value, json};

use super::{
    access::{self, Asked},
    kinds,
    state::State,
    status::{self, Refusal},
    store::{Id, Store},
};

/// The API server's own audience.
const OWN_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

/// A ServiceAccount token.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) namespace: String,
    pub(super) account: String,
    pub(super) account_uid: String,
    /// The pod's name and uid, where the token is bound to one.
    pub(super) pod: Option<(String, String)>,
    pub(super) audiences: Vec<String>,
    /// Unique to the token.
    pub(super) id: String,
    /// Why it is not accepted any more.
    pub(super) refused: Option<String>,
}

/// Answers a review.
pub(super) fn answer(
    state: &State,
    plural: &str,
    body: &Value,
    user: &str,
) -> Result<Value, Refusal> {
    match plural {
        "tokenreviews" => token(state, body),
        _ => Ok(own_access(state, body, user)),
    }
}

fn token(state: &State, body: &Value) -> Result<Value, Refusal> {
    let spec = &body["spec"];
    let text = spec["token"].as_str().unwrap_or_default();
    if text.is_empty() {
        let message = "token is required for TokenReview in authentication";
        return Err(status::bad_request(message));
    }
    let strings = |values: &Value| -> Vec<String> {
        values.as_array().into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect()
    };
    let mut asked = strings(&spec["audiences"]);
    if asked.is_empty() {
        asked.push(OWN_AUDIENCE.to_owned());
    }
    let result = state
        .tokens
        .get(text)
        .ok_or_else(|| "invalid bearer token".to_owned())
        .and_then(|token| reviewed(&state.store, token, &asked));
    let status = result.unwrap_or_else(|error| json!({"user": {}, "error": error}));
    Ok(json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
              "metadata": {}, "spec": spec, "status": status}))
}

fn reviewed(store: &Store, token: &Token, asked: &[String]) -> Result<Value, String> {
    let because = |why: String| format!("[invalid bearer token, {why}]");
    if let Some(why) = &token.refused {
        return Err(because(why.clone()));
    }
    let audiences: Vec<&String> = token.audiences.iter().filter(|a| asked.contains(a)).collect();
    if audiences.is_empty() {
        let list =
            |all: &[String]| all.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>().join(" ");
        return Err(because(format!(
            "token audiences [{}] is invalid for the target audiences [{}]",
            list(&token.audiences),
            list(asked)
        )));
    }
    let mut extra =
        json!({"authentication.kubernetes.io/credential-id": [format!("JTI={}", token.id)]});
    if let Some((name, uid)) = &token.pod {
        let pod = pod(store, &token.namespace, name)
            .ok_or_else(|| because("service account token has been invalidated".to_owned()))?;
        let is = pod["metadata"]["uid"].as_str().unwrap_or_default();
        if is != uid {
            return Err(because(format!(
                "pod UID ({is}) does not match service account pod ref claim ({uid})"
            )));
        }
        extra["authentication.kubernetes.io/pod-name"] = json!([name]);
        extra["authentication.kubernetes.io/pod-uid"] = json!([uid]);
        if let Some(node) = pod["spec"]["nodeName"].as_str() {
            extra["authentication.kubernetes.io/node-name"] = json!([node]);
        }
    }
    let Token { namespace, account, account_uid, .. } = token;
    Ok(json!({
        "authenticated": true,
        "user": {
            "username": format!("system:serviceaccount:{namespace}:{account}"),
            "uid": account_uid,
            "groups": ["system:serviceaccounts",
                       format!("system:serviceaccounts:{namespace}"), "system:authenticated"],
            "extra": extra,
        },
        "audiences": audiences,
    }))
}

fn pod<'a>(store: &'a Store, namespace: &str, name: &str) -> Option<&'a Value> {
    let kind = kinds::plural("pods")?;
    store.object(&Id { kind, namespace: namespace.to_owned(), name: name.to_owned() })
}

fn own_access(state: &State, body: &Value, user: &str) -> Value {
    let wanted = &body["spec"]["resourceAttributes"];
    let text = |field: &str| wanted[field].as_str().unwrap_or_default().to_owned();
    let some = |field: &str| Some(text(field)).filter(|text| !text.is_empty());
    let asked = Asked {
        user: user.to_owned(),
        verb: text("verb"),
        group: text("group"),
        resource: text("resource"),
        subresource: some("subresource"),
        namespace: some("namespace"),
        name: some("name"),
    };
    let allowed = !state.rbac || access::allowed(&state.store, &asked);
    json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
           "metadata": {}, "spec": body["spec"], "status": {"allowed": allowed}})
}
