//! An API server of a few lines: objects, resourceVersions and watches, for the four kinds that the
//! webhook writes. It says 409 and 404 where a real one does, and keeps a list of what was asked.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Longest wait for an object to become right.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// The server; clones are the same.
#[derive(Clone)]
pub(super) struct Api {
    state: Arc<Mutex<State>>,
    changes: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct State {
    version: u64,
    /// By `collection/name`.
    objects: BTreeMap<String, Value>,
    log: Vec<(String, &'static str, Value)>,
    asked: Vec<String>,
    broken: Option<u16>,
    /// Writes to this key fail with this status.
    refused: Option<(String, u16)>,
}

impl Api {
    pub(super) fn new() -> Self {
        let (changes, _) = watch::channel(0);
        Self { state: Arc::default(), changes: Arc::new(changes) }
    }

    pub(super) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        Client::new(service, "default")
    }

    /// Makes or replaces an object, as somebody else would.
    pub(super) fn put(&self, key: &str, object: Value) {
        self.store(key, Some(object));
    }

    pub(super) fn delete(&self, key: &str) {
        self.store(key, None);
    }

    pub(super) fn get(&self, key: &str) -> Option<Value> {
        self.state.lock().objects.get(key).cloned()
    }

    /// Waits until an object is as it should be.
    pub(super) async fn until(
        &self,
        key: &str,
        is_right: impl Fn(Option<&Value>) -> bool,
    ) -> Value {
        let mut changes = self.changes.subscribe();
        loop {
            if is_right(self.state.lock().objects.get(key)) {
                return self.get(key).unwrap_or_default();
            }
            let change = tokio::time::timeout(PATIENCE, changes.changed()).await;
            change.unwrap_or_else(|_| panic!("{key} never became right")).unwrap();
        }
    }

    /// `METHOD key` of each request so far that was no read.
    pub(super) fn writes(&self) -> Vec<String> {
        self.state.lock().asked.iter().filter(|line| !line.starts_with("GET")).cloned().collect()
    }

    /// Number of objects whose key begins so.
    pub(super) fn keys(&self, prefix: &str) -> Vec<String> {
        self.state.lock().objects.keys().filter(|k| k.starts_with(prefix)).cloned().collect()
    }

    /// Every request fails with this status from now on; `None` mends it.
    pub(super) fn break_with(&self, status: Option<u16>) {
        self.state.lock().broken = status;
    }

    /// Writes to one object fail with this status from now on; 200 mends it.
    pub(super) fn refuse(&self, key: &str, status: u16) {
        self.state.lock().refused = (status >= 400).then(|| (key.to_owned(), status));
    }

    fn store(&self, key: &str, object: Option<Value>) -> Value {
        let (collection, name) = key.rsplit_once('/').unwrap();
        let mut state = self.state.lock();
        state.version += 1;
        let version = state.version;
        let before = state.objects.remove(key);
        let (kind, mut object) = match (object, before) {
            (Some(object), None) => ("ADDED", object),
            (Some(object), Some(_)) => ("MODIFIED", object),
            (None, Some(before)) => ("DELETED", before),
            (None, None) => return Value::Null,
        };
        object["metadata"]["name"] = json!(name);
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if kind != "DELETED" {
            state.objects.insert(key.to_owned(), object.clone());
        }
        state.log.push((collection.to_owned(), kind, object.clone()));
        drop(state);
        self.changes.send_replace(version);
        object
    }

    async fn serve(&self, request: Request<Body>) -> Answer {
        let (head, body) = request.into_parts();
        let path = head.uri.path().trim_start_matches('/').to_owned();
        let query = head.uri.query().unwrap_or_default().to_owned();
        let body: Value =
            serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap_or_default();
        {
            let mut state = self.state.lock();
            state.asked.push(format!("{} {path}", head.method));
            if let Some(code) = state.broken {
                return status(code, "Broken");
            }
            if let Some((key, code)) = &state.refused
                && *key == path
                && head.method != Method::GET
            {
                return status(*code, "Refused");
            }
        }
        match head.method {
            Method::GET if query.contains("watch=true") => self.watch(path, &query),
            Method::GET => self.read(&path, &query),
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                let key = format!("{path}/{name}");
                if self.get(&key).is_some() {
                    return status(409, "AlreadyExists");
                }
                answer(StatusCode::CREATED, &self.store(&key, Some(body)))
            }
            Method::PUT => self.write(&path, &body.clone(), |object| *object = body),
            Method::PATCH => self.write(&path, &body, |object| merge(object, &body)),
            _ => status(405, "MethodNotAllowed"),
        }
    }

    /// Refuses what was decided on another version, and leaves alone what stays the same.
    fn write(&self, key: &str, body: &Value, change: impl FnOnce(&mut Value)) -> Answer {
        let Some(before) = self.get(key) else { return status(404, "NotFound") };
        let wanted = &body["metadata"]["resourceVersion"];
        if !wanted.is_null() && *wanted != before["metadata"]["resourceVersion"] {
            return status(409, "Conflict");
        }
        let mut after = before.clone();
        change(&mut after);
        let after = if after == before { after } else { self.store(key, Some(after)) };
        answer(StatusCode::OK, &after)
    }

    fn read(&self, path: &str, query: &str) -> Answer {
        if let Some(object) = self.get(path) {
            return answer(StatusCode::OK, &object);
        }
        let is_collection = ["namespaces", "secrets", "events", "mutatingwebhookconfigurations"]
            .iter()
            .any(|kind| path.ends_with(kind));
        if !is_collection {
            return status(404, "NotFound");
        }
        let state = self.state.lock();
        let prefix = format!("{path}/");
        let items: Vec<&Value> = state
            .objects
            .iter()
            .filter(|(key, object)| key.starts_with(&prefix) && selected(object, query))
            .map(|(_, object)| object)
            .collect();
        let version = state.version.to_string();
        answer(
            StatusCode::OK,
            &json!({
                "kind": "List", "apiVersion": "v1",
                "metadata": { "resourceVersion": version }, "items": items
            }),
        )
    }

    fn watch(&self, collection: String, query: &str) -> Answer {
        let from = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("resourceVersion="))
            .and_then(|version| version.parse::<u64>().ok())
            .unwrap_or_default();
        let (state, query) = (Arc::clone(&self.state), query.to_owned());
        let start = (usize::try_from(from).unwrap(), self.changes.subscribe());
        let frames = stream::unfold(start, move |(mut at, mut changes)| {
            let (state, collection, query) =
                (Arc::clone(&state), collection.clone(), query.clone());
            async move {
                loop {
                    changes.borrow_and_update();
                    // Each change has a version of its own, so a version is a place in the log.
                    let next = state.lock().log.get(at).cloned();
                    let Some((of, kind, object)) = next else {
                        changes.changed().await.ok()?;
                        continue;
                    };
                    at += 1;
                    if of == collection && selected(&object, &query) {
                        let line = format!("{}\n", json!({ "type": kind, "object": object }));
                        let frame = Ok::<_, Infallible>(Frame::data(Bytes::from(line)));
                        return Some((frame, (at, changes)));
                    }
                }
            }
        });
        Response::new(BoxBody::new(StreamBody::new(Box::pin(frames) as FrameStream)))
    }
}

type FrameStream = std::pin::Pin<
    Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync>,
>;

fn selected(object: &Value, query: &str) -> bool {
    let selector = query.split('&').find_map(|pair| pair.strip_prefix("fieldSelector="));
    selector
        .is_none_or(|selector| selector.rsplit("%3D").next() == object["metadata"]["name"].as_str())
}

/// RFC 7386, but lists of named things are merged by name as in a strategic merge.
fn merge(object: &mut Value, patch: &Value) {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    object.remove(key);
                } else {
                    merge(object.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (Value::Array(list), Value::Array(changes)) => {
            for change in changes {
                if let Some(item) = list.iter_mut().find(|item| item["name"] == change["name"]) {
                    merge(item, change);
                }
            }
        }
        (object, patch) => {
            if object.is_null() && patch.is_object() {
                *object = json!({});
                merge(object, patch);
            } else {
                *object = patch.clone();
            }
        }
    }
}

fn answer(code: StatusCode, object: &Value) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(object.to_string())).boxed());
    *response.status_mut() = code;
    response
}

fn status(code: u16, reason: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code
    });
    answer(StatusCode::from_u16(code).unwrap(), &status)
}
