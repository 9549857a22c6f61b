//! Who may do what: everything, or what the stored RBAC objects say.

use serde_json::Value;

use super::{kinds, store::Store};

/// One thing that somebody asked the API for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Asked {
    /// Who; `admin` where the request had no token.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// API group; empty for the core.
    pub group: String,
    /// Plural.
    pub resource: String,
    /// `status`, `proxy`, …
    pub subresource: Option<String>,
    /// Namespace; none for what is cluster-scoped and for lists of all namespaces.
    pub namespace: Option<String>,
    /// Name, where one object is meant.
    pub name: Option<String>,
}

/// The user that may do everything: the one who sends no token.
pub const ADMIN: &str = "admin";

/// Whether the stored Roles and ClusterRoles that are bound to the user allow it.
pub(super) fn allowed(store: &Store, asked: &Asked) -> bool {
    if asked.user == ADMIN {
        return true;
    }
    let everywhere = objects(store, "clusterrolebindings", None);
    let here = asked.namespace.as_deref();
    let in_namespace = here.map(|here| objects(store, "rolebindings", Some(here)));
    everywhere
        .into_iter()
        .chain(in_namespace.unwrap_or_default())
        .filter(|binding| subjects(binding).any(|subject| is_subject(subject, &asked.user)))
        .filter_map(|binding| role(store, binding))
        .any(|role| role["rules"].as_array().into_iter().flatten().any(|rule| covers(rule, asked)))
}

fn objects<'a>(store: &'a Store, plural: &str, namespace: Option<&'a str>) -> Vec<&'a Value> {
    let Some(kind) = kinds::plural(plural) else { return Vec::new() };
    store.objects(kind, namespace).map(|(_, object)| object).collect()
}

fn subjects(binding: &Value) -> impl Iterator<Item = &Value> {
    binding["subjects"].as_array().into_iter().flatten()
}

fn is_subject(subject: &Value, user: &str) -> bool {
    let text = |field: &str| subject[field].as_str().unwrap_or_default();
    let account = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match (text("kind"), account) {
        ("ServiceAccount", Some(account)) => account == (text("namespace"), text("name")),
        ("User", _) => user == text("name"),
        ("Group", account) => match text("name") {
            "system:authenticated" => true,
            "system:serviceaccounts" => account.is_some(),
            group => account.is_some_and(|(namespace, _)| {
                group.strip_prefix("system:serviceaccounts:") == Some(namespace)
            }),
        },
        _ => false,
    }
}

fn role<'a>(store: &'a Store, binding: &Value) -> Option<&'a Value> {
    let reference = &binding["roleRef"];
    let name = reference["name"].as_str()?;
    let (plural, namespace) = match reference["kind"].as_str()? {
        "ClusterRole" => ("clusterroles", None),
        _ => ("roles", binding["metadata"]["namespace"].as_str()),
    };
    objects(store, plural, None).into_iter().find(|role| {
        role["metadata"]["name"] == name
            && namespace.is_none_or(|namespace| role["metadata"]["namespace"] == namespace)
    })
}

fn covers(rule: &Value, asked: &Asked) -> bool {
    let resource = match &asked.subresource {
        Some(sub) => format!("{}/{sub}", asked.resource),
        None => asked.resource.clone(),
    };
    let has = |field: &str, wanted: &str| {
        let mut values = rule[field].as_array().into_iter().flatten();
        values.any(|value| value == wanted || value == "*")
    };
    let names = rule["resourceNames"].as_array().filter(|names| !names.is_empty());
    has("verbs", &asked.verb)
        && has("apiGroups", &asked.group)
        && has("resources", &resource)
        && names.is_none_or(|names| names.iter().any(|name| name.as_str() == asked.name.as_deref()))
}
