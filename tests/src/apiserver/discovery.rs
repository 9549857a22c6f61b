//! What the server says of itself: version, health, groups and their resources.

use std::collections::BTreeSet;

use http::StatusCode;
use serde_json::{Value, json};

use super::{
    kinds::{KINDS, Kind},
    serve::Answer,
    state::State,
    status::{self, Refusal},
};

/// The answer to a path that names no objects.
pub(super) fn answer(state: &State, path: &str) -> Result<Answer, Refusal> {
    let served = || KINDS.iter().filter(|kind| state.serves(kind));
    let object = match path.trim_end_matches('/') {
        "/version" => version(&state.version),
        "/livez" | "/readyz" | "/healthz" => {
            return Ok(Answer::Text(StatusCode::OK, "ok".to_owned()));
        }
        "/api" => json!({"kind": "APIVersions", "versions": ["v1"],
                         "serverAddressByClientCIDRs": []}),
        "/apis" => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups(served())}),
        path => {
            let group = match path.split('/').collect::<Vec<_>>().as_slice() {
                ["", "api", "v1"] => "".to_owned(),
                ["", "apis", group, "v1"] => (*group).to_owned(),
                _ => return Err(status::unknown_path()),
            };
            resources(&group, served()).ok_or_else(status::unknown_path)?
        }
    };
    Ok(Answer::Object(StatusCode::OK, object, Vec::new()))
}

fn version(git_version: &str) -> Value {
    let mut numbers = git_version.trim_start_matches('v').split('.');
    json!({
        "major": numbers.next().unwrap_or("1"), "minor": numbers.next().unwrap_or("0"),
        "gitVersion": git_version, "gitCommit": "98b35193b2ac7a23a673325f5e9b830ecd5ba406",
        "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "go1.26.4",
        "compiler": "gc", "platform": "linux/amd64",
    })
}

fn groups(served: impl Iterator<Item = &'static Kind>) -> Vec<Value> {
    let names: BTreeSet<&str> = served.map(|kind| kind.group).collect();
    let group = |name: &str| {
        let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
        json!({"name": name, "versions": [version], "preferredVersion": version})
    };
    names.into_iter().filter(|name| !name.is_empty()).map(group).collect()
}

fn resources(group: &str, served: impl Iterator<Item = &'static Kind>) -> Option<Value> {
    let kinds: Vec<&Kind> = served.filter(|kind| kind.group == group).collect();
    let version = kinds.first()?.api_version();
    let resource = |kind: &&Kind| {
        json!({"name": kind.plural, "singularName": kind.name.to_lowercase(),
               "namespaced": kind.namespaced, "kind": kind.name,
               "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"]})
    };
    let resources: Vec<Value> = kinds.iter().map(resource).collect();
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version,
                "resources": resources}))
}
