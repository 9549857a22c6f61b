//! The rules of create, update, patch and delete.

use serde_json::{Value, json};

use super::{
    defaults,
    kinds::{self, Kind},
    patch::{self, Form},
    request::{Query, Target},
    status::{self, Refusal},
    store::{Id, Store},
};

/// Whose write it is, and when.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    /// Field manager.
    pub(super) manager: String,
    /// RFC 3339, whole seconds.
    pub(super) time: String,
    /// Five random letters: what `generateName` gets.
    pub(super) suffix: String,
    /// A new uid.
    pub(super) uid: String,
}

/// The object of a create request as it goes to admission.
pub(super) fn drafted(
    store: &Store,
    target: &Target,
    body: &Value,
    writer: &Writer,
) -> Result<Value, Refusal> {
    let kind = target.kind;
    fits(kind, body)?;
    let mut object = body.clone();
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    namespace_fits(target, &mut object)?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if name.is_empty() && object["metadata"]["generateName"].as_str().is_none_or(str::is_empty) {
        let why = "Required value: name or generateName is required";
        return Err(status::invalid(kind, "", "metadata.name", "FieldValueRequired", why));
    }
    if let Some(namespace) = &target.namespace {
        open_namespace(store, kind, name, namespace)?;
    }
    valid(kind, &object)?;
    defaults::fill(kind, &mut object, &writer.suffix);
    Ok(object)
}

/// Stores an admitted object.
pub(super) fn created(
    store: &mut Store,
    kind: &'static Kind,
    mut object: Value,
    writer: &Writer,
    dry_run: bool,
) -> Result<Value, Refusal> {
    let metadata = &mut object["metadata"];
    if metadata["name"].as_str().is_none_or(str::is_empty) {
        let prefix = metadata["generateName"].as_str().unwrap_or_default();
        metadata["name"] = json!(format!("{prefix}{}", writer.suffix));
    }
    let name = metadata["name"].as_str().unwrap_or_default().to_owned();
    let namespace = metadata["namespace"].as_str().unwrap_or_default().to_owned();
    let id = Id { kind, namespace, name };
    if store.object(&id).is_some() {
        return Err(status::already_exists(kind, &id.name));
    }
    metadata["uid"] = json!(writer.uid);
    metadata["creationTimestamp"] = json!(writer.time);
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.remove("resourceVersion");
        metadata.remove("deletionTimestamp");
    }
    if kind.generation {
        metadata["generation"] = json!(1);
    }
    if metadata["managedFields"].is_null() {
        patch::own_changes(None, &mut object, &writer.manager, &writer.time);
    }
    prune(&mut object["metadata"]);
    Ok(if dry_run { object } else { store.insert(id, object) })
}

/// Carries out a PUT.
pub(super) fn replaced(
    store: &mut Store,
    target: &Target,
    body: &Value,
    writer: &Writer,
    dry_run: bool,
) -> Result<Value, Refusal> {
    let kind = target.kind;
    fits(kind, body)?;
    let id = id(target);
    let mut object = body.clone();
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    namespace_fits(target, &mut object)?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if name != id.name {
        return Err(status::bad_request(match name {
            "" => format!(
                "the name of the object ({name} based on URL) was undeterminable: name must be provided"
            ),
            name => format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                id.name
            ),
        }));
    }
    let current = store.object(&id).ok_or_else(|| status::not_found(kind, &id.name))?.clone();
    valid(kind, &object)?;
    if kind.plural == "leases" && version_of(&object).is_none() {
        return Err(status::needs_version(kind, &id.name));
    }
    defaults::fill(kind, &mut object, &writer.suffix);
    updated(store, target, &current, object, Some(writer), dry_run)
}

/// Carries out a PATCH; whether the object was created by it is told too.
pub(super) fn patched(
    store: &mut Store,
    target: &Target,
    (form, body): (Form, &Value),
    query: &Query,
    writer: &Writer,
) -> Result<(Value, bool), Refusal> {
    let (kind, id, dry_run) = (target.kind, id(target), query.dry_run());
    let current = store.object(&id).cloned();
    if form == Form::Apply {
        return apply(store, target, current, body, query, writer);
    }
    let current = current.ok_or_else(|| status::not_found(kind, &id.name))?;
    let object = patch::patched(form, &current, body)?;
    if object["metadata"]["name"] != current["metadata"]["name"] {
        let why = "Invalid value: field is immutable";
        return Err(status::invalid(kind, &id.name, "metadata.name", "FieldValueInvalid", why));
    }
    valid(kind, &object)?;
    updated(store, target, &current, object, Some(writer), dry_run).map(|object| (object, false))
}

fn apply(
    store: &mut Store,
    target: &Target,
    current: Option<Value>,
    body: &Value,
    query: &Query,
    writer: &Writer,
) -> Result<(Value, bool), Refusal> {
    let (kind, id) = (target.kind, id(target));
    let Some(manager) = query.text("fieldManager") else {
        let why = "Required value: is required for apply patch";
        let wrong = [("fieldManager", "FieldValueRequired", why)];
        return Err(status::invalid_options("PatchOptions", &wrong));
    };
    if !body["metadata"]["managedFields"].is_null() {
        return Err(status::bad_request("metadata.managedFields must be nil"));
    }
    fits(kind, body)?;
    let force = query.flag("force");
    let mut body = body.clone();
    namespace_fits(target, &mut body)?;
    body["metadata"]["name"] = json!(id.name);
    if let Some(current) = current {
        let object = patch::applied(Some(&current), &body, manager, force, &writer.time)?;
        valid(kind, &object)?;
        let object = updated(store, target, &current, object, None, query.dry_run())?;
        return Ok((object, false));
    }
    if let Some(uid) = body["metadata"]["uid"].as_str() {
        let why = format!(
            "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
        );
        return Err(status::conflict(kind, &id.name, &why));
    }
    let draft = drafted(store, target, &body, writer)?;
    let owned = patch::applied(None, &body, manager, force, &writer.time)?;
    let mut object = draft;
    object["metadata"]["managedFields"] = match &owned["metadata"]["managedFields"] {
        Value::Null => json!([]),
        owned => owned.clone(),
    };
    created(store, kind, object, writer, query.dry_run()).map(|object| (object, true))
}

/// Stores a new state of an object, where it is one.
fn updated(
    store: &mut Store,
    target: &Target,
    current: &Value,
    mut object: Value,
    writer: Option<&Writer>,
    dry_run: bool,
) -> Result<Value, Refusal> {
    let (kind, id) = (target.kind, id(target));
    let (was, is) = (&current["metadata"], &object["metadata"]);
    if let Some(uid) = is["uid"].as_str().filter(|uid| was["uid"] != *uid) {
        let key = [&id.namespace, &id.name].map(String::as_str).join("/");
        let why = format!(
            "StorageError: invalid object, Code: 4, Key: /registry/{}/{}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            kind.plural,
            key.trim_start_matches('/'),
            was["uid"].as_str().unwrap_or_default()
        );
        return Err(status::conflict(kind, &id.name, &why));
    }
    if version_of(&object).is_some_and(|version| Some(version) != version_of(current)) {
        return Err(status::modified(kind, &id.name));
    }
    let writes_status = target.subresource.as_deref() == Some("status");
    if writes_status {
        let status = object["status"].take();
        object = current.clone();
        object["status"] = status;
    } else if !current["status"].is_null() {
        object["status"] = current["status"].clone();
    }
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
        "generation",
    ] {
        match &current["metadata"][field] {
            Value::Null => drop(object["metadata"].as_object_mut().map(|m| m.remove(field))),
            value => object["metadata"][field] = value.clone(),
        }
    }
    if let Some(writer) = writer {
        object["metadata"]["managedFields"] = current["metadata"]["managedFields"].clone();
        patch::own_changes(Some(current), &mut object, &writer.manager, &writer.time);
    }
    prune(&mut object["metadata"]);
    if object == *current {
        return Ok(object);
    }
    if kind.generation && rest_of(&object) != rest_of(current) {
        let generation = current["metadata"]["generation"].as_u64().unwrap_or(1);
        object["metadata"]["generation"] = json!(generation + 1);
    }
    if dry_run {
        return Ok(object);
    }
    let gone = !object["metadata"]["deletionTimestamp"].is_null()
        && kind.plural != "pods"
        && kind.plural != "namespaces"
        && object["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty);
    if gone {
        store.remove(&id);
        return Ok(object);
    }
    Ok(store.insert(id, object))
}

/// Carries out a DELETE; what is left of it to do is in the answer.
pub(super) fn deleted(
    store: &mut Store,
    target: &Target,
    options: &Value,
    query: &Query,
    (time, later): (&str, impl Fn(i64) -> String),
) -> Result<Value, Refusal> {
    let (kind, id) = (target.kind, id(target));
    let mut object = store.object(&id).ok_or_else(|| status::not_found(kind, &id.name))?.clone();
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let wanted = &options["preconditions"];
    if let Some(asked) = wanted["uid"].as_str().filter(|asked| *asked != uid) {
        return Err(status::other_uid(kind, &id.name, asked, &uid));
    }
    if wanted["resourceVersion"]
        .as_str()
        .is_some_and(|v| Some(v) != object["metadata"]["resourceVersion"].as_str())
    {
        return Err(status::modified(kind, &id.name));
    }
    if query.dry_run() || options["dryRun"].as_array().is_some_and(|all| !all.is_empty()) {
        return Ok(status::deleted(kind, &id.name, &uid));
    }
    let grace = options["gracePeriodSeconds"]
        .as_i64()
        .or_else(|| query.text("gracePeriodSeconds")?.parse().ok())
        .or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(30);
    let finalizers = object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
    let runs = kind.plural == "pods" && !object["spec"]["nodeName"].is_null() && grace > 0;
    if kind.plural == "namespaces" {
        object["metadata"]["deletionTimestamp"] = json!(time);
        object["status"]["phase"] = json!("Terminating");
    } else if runs {
        object["metadata"]["deletionTimestamp"] = json!(later(grace));
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        let generation = object["metadata"]["generation"].as_u64().unwrap_or(1);
        object["metadata"]["generation"] = json!(generation + 1);
    } else if finalizers {
        object["metadata"]["deletionTimestamp"] = json!(time);
        object["metadata"]["deletionGracePeriodSeconds"] = json!(0);
    } else {
        let last = store.remove(&id).unwrap_or(object);
        return Ok(if kind.plural == "pods" {
            last
        } else {
            status::deleted(kind, &id.name, &uid)
        });
    }
    if store.object(&id).is_some_and(|old| !old["metadata"]["deletionTimestamp"].is_null()) {
        return Ok(object);
    }
    Ok(store.insert(id, object))
}

/// What identifies the object of a request.
pub(super) fn id(target: &Target) -> Id {
    Id {
        kind: target.kind,
        namespace: target.namespace.clone().unwrap_or_default(),
        name: target.name.clone().unwrap_or_default(),
    }
}

fn version_of(object: &Value) -> Option<&str> {
    object["metadata"]["resourceVersion"].as_str().filter(|version| !version.is_empty())
}

/// What counts for the generation.
fn rest_of(object: &Value) -> Value {
    let mut rest = object.clone();
    if let Some(fields) = rest.as_object_mut() {
        fields.remove("metadata");
        fields.remove("status");
    }
    rest
}

/// Empty and null metadata is not there.
fn prune(metadata: &mut Value) {
    if let Some(fields) = metadata.as_object_mut() {
        fields.retain(|_, value| match value {
            Value::Null => false,
            Value::Object(inner) => !inner.is_empty(),
            Value::Array(inner) => !inner.is_empty(),
            _ => true,
        });
    }
}

fn fits(kind: &Kind, body: &Value) -> Result<(), Refusal> {
    let text = |field: &str| body[field].as_str().unwrap_or_default();
    let (name, version) = (text("kind"), text("apiVersion"));
    if name == kind.name && version == kind.api_version() {
        return Ok(());
    }
    if name.is_empty() || version.is_empty() {
        let message = format!("Object 'Kind' is missing in '{body}'");
        return Err(status::bad_request(message));
    }
    let short = version.rsplit('/').next().unwrap_or_default();
    let group = if kind.group.is_empty() { "core" } else { kind.group };
    Err(status::bad_request(format!(
        "{name} in version \"{short}\" cannot be handled as a {}: converting ({short}.{name}) to ({group}.{}): unknown conversion",
        kind.name, kind.name
    )))
}

fn namespace_fits(target: &Target, object: &mut Value) -> Result<(), Refusal> {
    let Some(namespace) = &target.namespace else { return Ok(()) };
    match object["metadata"]["namespace"].as_str() {
        None | Some("") => {
            object["metadata"]["namespace"] = json!(namespace);
            Ok(())
        }
        Some(own) if own == namespace => Ok(()),
        Some(_) => Err(status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
    }
}

fn open_namespace(store: &Store, kind: &Kind, name: &str, namespace: &str) -> Result<(), Refusal> {
    let namespaces = kinds::plural("namespaces").expect("invariant: in the table");
    let id = Id { kind: namespaces, namespace: String::new(), name: namespace.to_owned() };
    let found = store.object(&id).ok_or_else(|| status::not_found(namespaces, namespace))?;
    match found["metadata"]["deletionTimestamp"].is_null() {
        true => Ok(()),
        false => Err(status::terminating(kind, name, namespace)),
    }
}

/// The few checks that tests rely on.
fn valid(kind: &Kind, object: &Value) -> Result<(), Refusal> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    match (kind.group, kind.plural) {
        ("", "pods") if object["spec"]["containers"].as_array().is_none_or(Vec::is_empty) => {
            let (field, reason) = ("spec.containers", "FieldValueRequired");
            Err(status::invalid(kind, name, field, reason, "Required value"))
        }
        ("coordination.k8s.io", "leases") => {
            for field in ["acquireTime", "renewTime"] {
                let time = object["spec"][field].as_str();
                if let Some(time) = time.filter(|time| !time.contains('.')) {
                    return Err(status::bad_request(format!(
                        "Lease in version \"v1\" cannot be handled as a Lease: parsing time \"{time}\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"Z\" as \".000000\""
                    )));
                }
            }
            Ok(())
        }
        ("events.k8s.io", "events") if object["eventTime"].is_null() => {
            Err(status::invalid(kind, name, "eventTime", "FieldValueRequired", "Required value"))
        }
        _ => Ok(()),
    }
}
