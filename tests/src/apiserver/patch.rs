//! The four ways to patch, and who owns which field.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::status::{self, Refusal};

/// How a patch is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Merge,
    Json,
    Strategic,
    Apply,
}

impl Form {
    /// By the request's Content-Type.
    pub(super) fn of(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/merge-patch+json" => Some(Self::Merge),
            "application/json-patch+json" => Some(Self::Json),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            "application/apply-patch+yaml" => Some(Self::Apply),
            _ => None,
        }
    }
}

/// The object after a merge, JSON or strategic merge patch.
pub(super) fn patched(form: Form, current: &Value, patch: &Value) -> Result<Value, Refusal> {
    let mut object = current.clone();
    match form {
        Form::Json => {
            let patch: json_patch::Patch = serde_json::from_value(patch.clone())
                .map_err(|error| status::bad_request(format!("error decoding patch: {error}")))?;
            json_patch::patch(&mut object, &patch).map_err(|_| status::unprocessable_patch())?;
        }
        Form::Merge => json_patch::merge(&mut object, patch),
        Form::Strategic | Form::Apply => merge_lists(&mut object, patch),
    }
    Ok(object)
}

/// Merges as a strategic merge patch does: lists of things with a name of their own are merged by
/// it, other lists are replaced.
fn merge_lists(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (field, value) in patch {
        match (value, merge_key(field)) {
            (Value::Null, _) => {
                fields.remove(field);
            }
            (Value::Array(items), Some(key)) if items.iter().all(|item| !item[key].is_null()) => {
                let list = fields.entry(field.clone()).or_insert_with(|| json!([]));
                merge_items(list, items, key);
            }
            _ => merge_lists(fields.entry(field.clone()).or_insert(Value::Null), value),
        }
    }
}

fn merge_items(list: &mut Value, items: &[Value], key: &str) {
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    for item in items {
        let at = list.iter().position(|one| one[key] == item[key]);
        match (at, item.get("$patch").and_then(Value::as_str)) {
            (Some(at), Some("delete")) => {
                list.remove(at);
            }
            (Some(at), _) => merge_lists(&mut list[at], item),
            (None, Some("delete")) => {}
            (None, _) => list.push(item.clone()),
        }
    }
}

/// What tells the items of such a list apart.
fn merge_key(field: &str) -> Option<&'static str> {
    match field {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "webhooks"
        | "matchConditions" => Some("name"),
        "volumeMounts" => Some("mountPath"),
        "conditions" => Some("type"),
        "ownerReferences" => Some("uid"),
        _ => None,
    }
}

/// The object after a server-side apply of `body`, ownership included.
pub(super) fn applied(
    current: Option<&Value>,
    body: &Value,
    manager: &str,
    force: bool,
    time: &str,
) -> Result<Value, Refusal> {
    let mut owners = current.map(Owner::all).unwrap_or_default();
    let before = current.cloned().unwrap_or_else(|| json!({}));
    let wanted = leaves(body);
    let is_mine = |owner: &Owner| owner.manager == manager && owner.applies;
    let mut conflicts = Vec::new();
    for path in &wanted {
        for owner in owners.iter_mut().filter(|owner| !is_mine(owner)) {
            if owner.fields.contains(path) && at(&before, path) != at(body, path) {
                conflicts.push((owner.manager.clone(), display(path)));
                owner.fields.remove(path);
            }
        }
    }
    if !conflicts.is_empty() && !force {
        return Err(status::apply_conflict(&conflicts));
    }
    let mut object = before;
    let mine = owners.iter().position(is_mine);
    let former = mine.map(|at| owners.remove(at).fields).unwrap_or_default();
    for path in former.difference(&wanted) {
        if !owners.iter().any(|owner| owner.fields.contains(path)) {
            remove(&mut object, path);
        }
    }
    merge_lists(&mut object, body);
    if !wanted.is_empty() {
        owners.push(Owner { manager: manager.to_owned(), applies: true, fields: wanted });
    }
    Owner::write(&owners, &mut object, current, time);
    Ok(object)
}

/// Makes `manager` the owner of what an ordinary write changed.
pub(super) fn own_changes(current: Option<&Value>, object: &mut Value, manager: &str, time: &str) {
    let mut owners = current.map(Owner::all).unwrap_or_default();
    let (old, new) = (current.map(leaves).unwrap_or_default(), leaves(object));
    let changed = |path: &&Vec<String>| {
        !old.contains(*path) || current.is_none_or(|old| at(old, path) != at(object, path))
    };
    let changed: BTreeSet<Vec<String>> = new.iter().filter(changed).cloned().collect();
    for owner in &mut owners {
        let own = owner.manager == manager && !owner.applies;
        owner.fields.retain(|path| new.contains(path) && (own || !changed.contains(path)));
    }
    match owners.iter_mut().find(|owner| owner.manager == manager && !owner.applies) {
        Some(owner) => owner.fields.extend(changed),
        None => owners.push(Owner { manager: manager.to_owned(), applies: false, fields: changed }),
    }
    Owner::write(&owners, object, current, time);
}

/// An entry of `managedFields`.
#[derive(Debug)]
struct Owner {
    manager: String,
    applies: bool,
    fields: BTreeSet<Vec<String>>,
}

impl Owner {
    fn all(object: &Value) -> Vec<Self> {
        let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
        let owner = |entry: &Value| {
            let mut fields = BTreeSet::new();
            collect(&entry["fieldsV1"], &mut Vec::new(), &mut fields);
            let manager = entry["manager"].as_str().unwrap_or_default().to_owned();
            Self { manager, applies: entry["operation"] == "Apply", fields }
        };
        entries.map(owner).collect()
    }

    /// Writes the entries; one that says the same as before keeps its time.
    fn write(owners: &[Self], object: &mut Value, current: Option<&Value>, time: &str) {
        let version = object["apiVersion"].clone();
        let before = current.map(|current| &current["metadata"]["managedFields"]);
        let entry = |owner: &Self| {
            let mut entry = json!({
                "manager": owner.manager,
                "operation": if owner.applies { "Apply" } else { "Update" },
                "apiVersion": version, "time": time, "fieldsType": "FieldsV1",
                "fieldsV1": tree(&owner.fields),
            });
            let same = |old: &&Value| {
                old["manager"] == entry["manager"]
                    && old["operation"] == entry["operation"]
                    && old["fieldsV1"] == entry["fieldsV1"]
            };
            let old = before.and_then(Value::as_array).into_iter().flatten().find(same);
            if let Some(old) = old {
                entry["time"] = old["time"].clone();
            }
            entry
        };
        let entries: Vec<Value> =
            owners.iter().filter(|owner| !owner.fields.is_empty()).map(entry).collect();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            match entries.is_empty() {
                true => metadata.remove("managedFields"),
                false => metadata.insert("managedFields".into(), entries.into()),
            };
        }
    }
}

/// Paths of everything that can be owned.
fn leaves(object: &Value) -> BTreeSet<Vec<String>> {
    const SERVERS: [&str; 9] = [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
    ];
    let mut found = BTreeSet::new();
    for (field, value) in object.as_object().into_iter().flatten() {
        match (field.as_str(), value) {
            ("apiVersion" | "kind" | "status", _) => {}
            ("metadata", Value::Object(metadata)) => {
                for (field, value) in metadata {
                    if !SERVERS.contains(&field.as_str()) {
                        let mut path = vec!["f:metadata".to_owned(), format!("f:{field}")];
                        walk(field, value, &mut path, &mut found);
                    }
                }
            }
            _ => walk(field, value, &mut vec![format!("f:{field}")], &mut found),
        }
    }
    found
}

fn walk(field: &str, value: &Value, path: &mut Vec<String>, found: &mut BTreeSet<Vec<String>>) {
    match (value, merge_key(field)) {
        (Value::Object(fields), _) if !fields.is_empty() => {
            for (field, value) in fields {
                path.push(format!("f:{field}"));
                walk(field, value, path, found);
                path.pop();
            }
        }
        (Value::Array(items), Some(key)) if items.iter().all(|item| !item[key].is_null()) => {
            for item in items {
                path.push(format!("k:{}", json!({key: item[key]})));
                walk("", item, path, found);
                path.pop();
            }
        }
        (Value::Null, _) => {}
        _ => {
            found.insert(path.clone());
        }
    }
}

fn collect(node: &Value, path: &mut Vec<String>, found: &mut BTreeSet<Vec<String>>) {
    let children = node.as_object().into_iter().flatten().filter(|(key, _)| *key != ".");
    let mut is_leaf = true;
    for (key, child) in children {
        is_leaf = false;
        path.push(key.clone());
        collect(child, path, found);
        path.pop();
    }
    if is_leaf && !path.is_empty() {
        found.insert(path.clone());
    }
}

fn tree(fields: &BTreeSet<Vec<String>>) -> Value {
    let mut root = Map::new();
    for path in fields {
        let mut node = &mut root;
        for segment in path {
            let child = node.entry(segment.clone()).or_insert_with(|| json!({}));
            node = child.as_object_mut().expect("invariant: every node is an object");
        }
    }
    root.into()
}

fn display(path: &[String]) -> String {
    let segment = |segment: &String| match segment.strip_prefix("f:") {
        Some(field) => format!(".{field}"),
        None => format!("[{}]", segment.trim_start_matches("k:{").trim_end_matches('}')),
    };
    path.iter().map(segment).collect()
}

fn at<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |at, segment| match segment.strip_prefix("f:") {
        Some(field) => at.get(field),
        None => at.as_array()?.iter().find(|item| is_item(item, segment)),
    })
}

fn is_item(item: &Value, segment: &str) -> bool {
    let key = segment.strip_prefix("k:").and_then(|key| serde_json::from_str::<Value>(key).ok());
    let Some(Value::Object(key)) = key else { return false };
    key.iter().all(|(field, value)| item.get(field) == Some(value))
}

/// Takes a field out, and what is empty after it.
fn remove(object: &mut Value, path: &[String]) {
    let [segment, rest @ ..] = path else { return };
    if let Some(field) = segment.strip_prefix("f:") {
        let Some(fields) = object.as_object_mut() else { return };
        if !rest.is_empty()
            && let Some(child) = fields.get_mut(field)
        {
            remove(child, rest);
            if !is_empty(child) {
                return;
            }
        }
        fields.remove(field);
    } else if let Some(items) = object.as_array_mut()
        && let Some(at) = items.iter().position(|item| is_item(item, segment))
    {
        remove(&mut items[at], rest);
        // The key itself is left where nothing else is.
        if rest.is_empty() || items[at].as_object().is_some_and(|fields| fields.len() <= 1) {
            items.remove(at);
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Form, applied, own_changes, patched};

    #[test]
    fn a_strategic_patch_merges_named_items_and_replaces_other_lists() {
        let pod = json!({"spec": {"containers": [{"name": "a", "args": ["x"]}, {"name": "b"}]}});
        let patch = json!({"spec": {"containers": [{"name": "a", "args": ["y"], "image": "i"},
                                                    {"name": "b", "$patch": "delete"}]}});
        let after = patched(Form::Strategic, &pod, &patch).unwrap();
        let expected = json!([{"name": "a", "args": ["y"], "image": "i"}]);
        assert_eq!(after["spec"]["containers"], expected);
    }

    #[test]
    fn an_apply_takes_away_what_its_manager_no_longer_says() {
        let map = |data| json!({"apiVersion": "v1", "metadata": {"name": "b"}, "data": data});
        let one = applied(None, &map(json!({"k": "1", "own": "x"})), "one", false, "t").unwrap();
        assert!(applied(Some(&one), &map(json!({"k": "2"})), "two", false, "t").is_err());
        let two = applied(Some(&one), &map(json!({"k": "2"})), "two", true, "t").unwrap();
        assert_eq!(two["data"], json!({"k": "2", "own": "x"}));
        let nothing = json!({"apiVersion": "v1", "metadata": {"name": "b"}});
        let three = applied(Some(&two), &nothing, "one", false, "t").unwrap();
        assert_eq!(three["data"], json!({"k": "2"}));
    }

    #[test]
    fn an_ordinary_write_owns_what_it_changed() {
        let map = |data| json!({"apiVersion": "v1", "metadata": {"name": "b"}, "data": data});
        let one = applied(None, &map(json!({"k": "1"})), "one", false, "t").unwrap();
        let mut two = one.clone();
        two["data"]["k"] = json!("2");
        own_changes(Some(&one), &mut two, "editor", "t");
        let error = applied(Some(&two), &map(json!({"k": "1"})), "one", false, "t").unwrap_err();
        assert!(
            format!("{error:?}").contains("conflict with \\\"editor\\\": .data.k"),
            "{error:?}"
        );
    }
}
