//! Get and list.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::{
    kinds::Kind,
    request::{Query, Target},
    selectors::Selector,
    status::{self, Refusal},
    store::{Id, Store},
    write,
};

/// Carries out a GET of one object.
pub(super) fn one(store: &Store, target: &Target) -> Result<Value, Refusal> {
    let id = write::id(target);
    let object = store.object(&id).ok_or_else(|| status::not_found(target.kind, &id.name))?;
    Ok(object.clone())
}

/// Carries out a LIST.
pub(super) fn many(store: &Store, target: &Target, query: &Query) -> Result<Value, Refusal> {
    let kind = target.kind;
    let selector = Selector::parse(kind, query.text("labelSelector"), query.text("fieldSelector"))?;
    let wanted = Wanted::parse(store, query)?;
    let namespace = target.namespace.as_deref();
    let all = match wanted.version {
        Some(version) => {
            store.objects_at(kind, namespace, version).ok_or_else(|| match &wanted.start {
                Some(start) => status::continue_expired(&Token::encode(-1, start)),
                None => status::list_too_old(),
            })?
        }
        None => store.objects(kind, namespace).collect(),
    };
    let version = wanted.version.unwrap_or_else(|| store.version());
    Ok(page(kind, namespace, &all, &selector, &wanted, version))
}

fn page(
    kind: &Kind,
    namespace: Option<&str>,
    all: &BTreeMap<&Id, &Value>,
    selector: &Selector,
    wanted: &Wanted,
    version: u64,
) -> Value {
    let key = |id: &Id| match (namespace, kind.namespaced) {
        (None, true) => format!("{}/{}", id.namespace, id.name),
        _ => format!("/{}", id.name),
    };
    let begins = |id: &Id| {
        wanted.start.as_ref().is_none_or(|start| key(id).as_str() > start.trim_end_matches('\0'))
    };
    let mut rest = all.iter().filter(|(id, o)| begins(id) && selector.matches(o)).peekable();
    let mut items: Vec<Value> = Vec::new();
    let mut last = String::new();
    while wanted.limit.is_none_or(|limit| items.len() < limit)
        && let Some((id, object)) = rest.next()
    {
        let mut item = Value::clone(object);
        if let Some(fields) = item.as_object_mut() {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        items.push(item);
        last = key(id);
    }
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if rest.peek().is_some() {
        let version = i64::try_from(version).unwrap_or(i64::MAX);
        metadata["continue"] = json!(Token::encode(version, &format!("{last}\0")));
        if selector.is_everything() {
            metadata["remainingItemCount"] = json!(rest.count());
        }
    }
    json!({"kind": format!("{}List", kind.name), "apiVersion": kind.api_version(),
           "metadata": metadata, "items": items})
}

/// Which state of the world, and which part of it.
struct Wanted {
    /// None for the newest.
    version: Option<u64>,
    start: Option<String>,
    limit: Option<usize>,
}

impl Wanted {
    fn parse(store: &Store, query: &Query) -> Result<Self, Refusal> {
        let matching = query.text("resourceVersionMatch");
        let version = query.text("resourceVersion");
        let mut wrong = Vec::new();
        if matching.is_some() && version.is_none() {
            let why =
                "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided";
            wrong.push(("resourceVersionMatch", "FieldValueForbidden", why));
        }
        if query.text("sendInitialEvents").is_some() {
            let why = "Forbidden: sendInitialEvents is forbidden for list";
            wrong.push(("sendInitialEvents", "FieldValueForbidden", why));
        }
        if !wrong.is_empty() {
            return Err(status::invalid_options("ListOptions", &wrong));
        }
        let version = version.map(|text| {
            version_number(text)
                .map_err(|why| status::bad_request(format!("invalid resource version: {why}")))
        });
        let version = version.transpose()?;
        if let Some(asked) = version.filter(|asked| *asked > store.version()) {
            return Err(status::version_too_large(asked, store.version()));
        }
        let mut limit = query.number("limit").filter(|limit| *limit > 0);
        if let Some(token) = query.text("continue") {
            let token = Token::decode(token).ok_or_else(|| {
                status::bad_request("continue key is not valid: illegal base64 data")
            })?;
            let limit = limit.and_then(|limit| usize::try_from(limit).ok());
            let version = u64::try_from(token.version).ok();
            return Ok(Self { version, start: Some(token.start), limit });
        }
        // The cache answers with everything it has.
        if version == Some(0) {
            limit = None;
        }
        let exact = matching == Some("Exact");
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        Ok(Self { version: version.filter(|_| exact), start: None, limit })
    }
}

/// Parses a resourceVersion in the words of the server's own parser.
pub(super) fn version_number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| {
        format!("resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax")
    })
}

/// Where the next page begins.
struct Token {
    /// −1: whatever there is now.
    version: i64,
    start: String,
}

impl Token {
    fn encode(version: i64, start: &str) -> String {
        let text = json!({"v": "meta.k8s.io/v1", "rv": version, "start": start}).to_string();
        let coded = serde_json::to_value(ByteString(text.into_bytes())).unwrap_or_default();
        let coded = coded.as_str().unwrap_or_default();
        coded.trim_end_matches('=').replace('+', "-").replace('/', "_")
    }

    fn decode(token: &str) -> Option<Self> {
        let mut coded = token.replace('-', "+").replace('_', "/");
        while !coded.len().is_multiple_of(4) {
            coded.push('=');
        }
        let bytes: ByteString = serde_json::from_value(json!(coded)).ok()?;
        let token: Value = serde_json::from_slice(&bytes.0).ok()?;
        Some(Self { version: token["rv"].as_i64()?, start: token["start"].as_str()?.to_owned() })
    }
}

/// The metadata of an object or of every item of a list, and nothing else.
pub(super) fn only_metadata(object: Value) -> Value {
    let partial = |kind: &str, metadata: &Value| json!({"kind": kind, "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
    match object.get("items").and_then(Value::as_array) {
        Some(items) => {
            let item = |item: &Value| partial("PartialObjectMetadata", &item["metadata"]);
            let mut list = partial("PartialObjectMetadataList", &object["metadata"]);
            list["items"] = items.iter().map(item).collect();
            list
        }
        None if object["kind"] == "Status" => object,
        None => partial("PartialObjectMetadata", &object["metadata"]),
    }
}
