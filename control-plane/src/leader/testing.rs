//! An API server in memory: objects by path, versions, watches, and faults on demand. It answers
//! as a recorded Kubernetes v1.36.2 did, as far as the leader's requests go.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Replica;

/// What happens to a request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fault {
    /// It waits before it is looked at.
    pub(super) before: Duration,
    /// Its answer waits.
    pub(super) after: Duration,
    /// This status instead of an answer, with nothing done.
    pub(super) refuse: Option<u16>,
}

type Answer = UnsyncBoxBody<Bytes, Infallible>;
type Faults = Box<dyn FnMut(&Method, &str) -> Fault + Send>;

pub(super) struct Fake {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// Each write that was done: `PUT /path`.
    writes: Vec<String>,
    watches: Vec<mpsc::Sender<Result<Frame<Bytes>, Infallible>>>,
    terminating: BTreeSet<String>,
    faults: Option<Faults>,
    writing: usize,
    most_writing: usize,
}

impl Fake {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default() })
    }

    pub(super) fn client(self: &Arc<Self>) -> kube::Client {
        let fake = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = Arc::clone(&fake);
            async move { Ok::<_, Infallible>(fake.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    pub(super) fn faults(&self, faults: impl FnMut(&Method, &str) -> Fault + Send + 'static) {
        self.state.lock().faults = Some(Box::new(faults));
    }

    /// Whether a namespace is being terminated.
    pub(super) fn terminate(&self, namespace: &str, going: bool) {
        let terminating = &mut self.state.lock().terminating;
        if going {
            terminating.insert(namespace.to_owned());
        } else {
            terminating.remove(namespace);
        }
    }

    pub(super) fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().objects.get(path).cloned()
    }

    /// Writes done so far, and forgets them.
    pub(super) fn writes(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().writes)
    }

    pub(super) fn most_writing(&self) -> usize {
        self.state.lock().most_writing
    }

    /// Somebody else writes; `None` deletes.
    pub(super) fn set(&self, path: &str, object: Option<Value>) {
        let mut state = self.state.lock();
        match object {
            Some(object) => drop(state.put(path, object)),
            None => state.delete(path),
        }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap_or_default();
        let fault = self.state.lock().faults.as_mut().map(|f| f(&head.method, head.uri.path()));
        let fault = fault.unwrap_or_default();
        let writes = head.method != Method::GET;
        if writes {
            let mut state = self.state.lock();
            state.writing += 1;
            state.most_writing = state.most_writing.max(state.writing);
        }
        tokio::time::sleep(fault.before).await;
        let answer = match fault.refuse {
            Some(code) => status(code, "Refused", "as asked"),
            None => self.state.lock().answer(&head.method, &head.uri, &body),
        };
        tokio::time::sleep(fault.after).await;
        if writes {
            self.state.lock().writing -= 1;
        }
        answer
    }
}

impl State {
    fn answer(&mut self, method: &Method, uri: &http::Uri, body: &[u8]) -> Response<Answer> {
        let path = uri.path().to_owned();
        let query = uri.query().unwrap_or_default();
        if *method == Method::GET {
            return match self.objects.get(&path) {
                _ if query.contains("watch=true") => self.watch(),
                Some(object) => answer(200, object),
                None if path.ends_with("s") && !path.contains("/namespaces/") => self.list(),
                None => status(404, "NotFound", "not found"),
            };
        }
        let Ok(object) = serde_json::from_slice::<Value>(body) else {
            return status(400, "BadRequest", "no JSON");
        };
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let at = if *method == Method::POST { format!("{path}/{name}") } else { path.clone() };
        // A status is a part of its object.
        let object_at = at.trim_end_matches("/status").to_owned();
        let namespace = path.split('/').skip_while(|part| *part != "namespaces").nth(1);
        if namespace.is_some_and(|namespace| self.terminating.contains(namespace)) {
            let message = "forbidden: unable to create new content in namespace because it is being terminated";
            return status(403, "Forbidden", message);
        }
        let known = self.objects.get(&object_at);
        let version = &object["metadata"]["resourceVersion"];
        let refused = match *method {
            Method::POST if known.is_some() => Some((409, "AlreadyExists")),
            Method::PUT if known.is_none() => Some((404, "NotFound")),
            Method::PUT if version.is_null() => Some((422, "Invalid")),
            Method::PATCH if object_at != at && known.is_none() => Some((404, "NotFound")),
            Method::PUT | Method::PATCH
                if !version.is_null()
                    && known.is_some_and(|k| k["metadata"]["resourceVersion"] != *version) =>
            {
                Some((409, "Conflict"))
            }
            _ => None,
        };
        if let Some((code, reason)) = refused {
            return status(code, reason, "as Kubernetes does");
        }
        self.writes.push(format!("{method} {at}"));
        let code = if *method == Method::POST { 201 } else { 200 };
        answer(code, &self.put(&object_at, object))
    }

    /// What is there already keeps what the new one does not say, as an apply does.
    fn put(&mut self, path: &str, object: Value) -> Value {
        let before = self.objects.get(path).cloned();
        let mut now = before.clone().unwrap_or_else(|| json!({}));
        merge(&mut now, object);
        let unchanged = before.as_ref() == Some(&now);
        if !unchanged {
            self.version += 1;
            now["metadata"]["resourceVersion"] = self.version.to_string().into();
            let namespace = path.split('/').skip_while(|part| *part != "namespaces").nth(1);
            now["metadata"]["namespace"] = namespace.into();
            self.objects.insert(path.to_owned(), now.clone());
            let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
            self.tell(kind, &now);
        }
        now
    }

    fn delete(&mut self, path: &str) {
        if let Some(object) = self.objects.remove(path) {
            self.version += 1;
            self.tell("DELETED", &object);
        }
    }

    fn tell(&mut self, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({ "type": kind, "object": object }));
        self.watches.retain(|watch| watch.try_send(Ok(Frame::data(line.clone().into()))).is_ok());
    }

    fn watch(&mut self) -> Response<Answer> {
        let (sender, events) = mpsc::channel(64);
        self.watches.push(sender);
        let body = StreamBody::new(ReceiverStream::new(events).boxed());
        Response::new(body.boxed_unsync())
    }

    fn list(&self) -> Response<Answer> {
        let maps = |(path, _): &(&String, &Value)| path.contains("/configmaps/");
        let items: Vec<_> = self.objects.iter().filter(maps).map(|(_, object)| object).collect();
        let version = self.version.to_string();
        let list = json!({
            "kind": "ConfigMapList", "apiVersion": "v1",
            "metadata": { "resourceVersion": version }, "items": items,
        });
        answer(200, &list)
    }
}

/// Lists of objects with names are merged by these, as those of webhooks are.
fn merge(into: &mut Value, from: Value) {
    let named = |list: &Value| {
        list.as_array()
            .is_some_and(|all| !all.is_empty() && all.iter().all(|one| one["name"].is_string()))
    };
    match (into, from) {
        (into, from) if named(into) && named(&from) => {
            let (Value::Array(into), Value::Array(from)) = (into, from) else { return };
            for new in from {
                match into.iter_mut().find(|old| old["name"] == new["name"]) {
                    Some(old) => merge(old, new),
                    None => into.push(new),
                }
            }
        }
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn answer(code: u16, object: &Value) -> Response<Answer> {
    let mut response = Response::new(Full::from(object.to_string()).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn status(code: u16, reason: &str, message: &str) -> Response<Answer> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    answer(code, &status)
}

pub(super) fn replica(identity: &str) -> Replica {
    Replica { namespace: "remora-system".to_owned(), identity: identity.to_owned() }
}

thread_local! {
    static START: std::cell::Cell<Option<tokio::time::Instant>> =
        const { std::cell::Cell::new(None) };
}

/// A wall clock that follows paused time, from `2027-01-15T08:00:00Z` on.
pub(super) fn clock() -> SystemTime {
    let passed = tokio::runtime::Handle::try_current().map_or(Duration::ZERO, |_| {
        let start = START.get().unwrap_or_else(tokio::time::Instant::now);
        START.set(Some(start));
        start.elapsed()
    });
    UNIX_EPOCH + Duration::from_secs(1_800_000_000) + passed
}
