//! A watch: what is there, the history since, what happens, bookmarks, and its end.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use super::{
    Shared,
    faults::Cut,
    read,
    request::{Query, Target},
    selectors::Selector,
    state::State,
    status::{self, Refusal},
    store::Change,
};
use crate::origin::{Body, BodyError};

/// How long a watch lives where the client does not say.
const LONGEST: Duration = Duration::from_secs(1800);
/// A bookmark comes so long before the end, for clients that resume from it.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// Opens a watch.
pub(super) fn open(
    shared: &Arc<Shared>,
    target: &Target,
    query: &Query,
    metadata_only: bool,
) -> Result<Body, Refusal> {
    let kind = target.kind;
    let selector = Selector::parse(kind, query.text("labelSelector"), query.text("fieldSelector"))?;
    let streaming = streaming_list(query)?;
    let version = query.text("resourceVersion").map(read::version_number).transpose();
    let version = version.map_err(|why| status::bare(500, "", why))?.unwrap_or(0);
    let life = query.number("timeoutSeconds").map_or(LONGEST, Duration::from_secs);
    let changed = shared.changed.subscribe();
    let mut state = shared.state.lock();
    let now = Instant::now();
    let bookmarks = query.flag("allowWatchBookmarks");
    let mut watch = Watch {
        shared: Arc::clone(shared),
        changed,
        target: target.clone(),
        selector,
        metadata_only,
        cursor: version,
        cuts: state.cuts,
        next_bookmark: bookmarks.then(|| now + state.bookmark_every),
        last_bookmark: bookmarks.then(|| now + life.saturating_sub(LAST_BOOKMARK)),
        bookmark_every: state.bookmark_every,
        end: now + life,
        ready: Vec::new(),
        over: None,
    };
    if version == 0 || streaming {
        watch.begin(&state, streaming && bookmarks);
    } else if version < state.store.oldest() {
        let event = status::watch_too_old(version, state.store.oldest());
        watch.ready.extend(line(&event));
        watch.over = Some(End::Clean);
    }
    state.open_watches.push(kind);
    drop(state);
    let stream = stream::unfold(watch, async |mut watch| {
        let chunk = watch.next().await?;
        Some((chunk.map(Frame::data), watch))
    });
    Ok(StreamBody::new(stream).boxed_unsync())
}

/// Whether the watch begins with all that there is.
fn streaming_list(query: &Query) -> Result<bool, Refusal> {
    let asked = query.text("sendInitialEvents").is_some();
    let matching = query.text("resourceVersionMatch");
    let mut wrong = Vec::new();
    if asked && matching != Some("NotOlderThan") {
        let why =
            "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        wrong.push(("resourceVersionMatch", "FieldValueForbidden", why));
    }
    if matching == Some("Exact") {
        let why = "Unsupported value: \"Exact\": supported values: \"NotOlderThan\"";
        wrong.push(("resourceVersionMatch", "FieldValueNotSupported", why));
    }
    match wrong.is_empty() {
        true => Ok(asked && query.flag("sendInitialEvents")),
        false => Err(status::invalid_options("ListOptions", &wrong)),
    }
}

/// How a watch is over once what is ready is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Clean,
    Broken,
}

struct Watch {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    target: Target,
    selector: Selector,
    metadata_only: bool,
    /// The version up to which everything was sent.
    cursor: u64,
    /// Count of cuts when it began.
    cuts: u64,
    next_bookmark: Option<Instant>,
    last_bookmark: Option<Instant>,
    bookmark_every: Duration,
    end: Instant,
    ready: Vec<u8>,
    over: Option<End>,
}

impl Watch {
    /// Everything that is there, as `ADDED`.
    fn begin(&mut self, state: &State, marked: bool) {
        let objects = state.store.objects(self.target.kind, self.target.namespace.as_deref());
        for (_, object) in objects.filter(|(_, object)| self.selector.matches(object)) {
            let event = self.event("ADDED", object.clone());
            self.ready.extend(line(&event));
        }
        self.cursor = state.store.version();
        if marked {
            let mut event = self.bookmark();
            event["object"]["metadata"]["annotations"] =
                json!({"k8s.io/initial-events-end": "true"});
            self.ready.extend(line(&event));
        }
    }

    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            if !self.ready.is_empty() {
                return Some(Ok(self.chunk()));
            }
            match self.over {
                Some(End::Clean) => return None,
                Some(End::Broken) => {
                    self.over = Some(End::Clean);
                    return Some(Err("the watch is cut".into()));
                }
                None => {}
            }
            self.changed.borrow_and_update();
            self.catch_up();
            if !self.ready.is_empty() || self.over.is_some() {
                continue;
            }
            let now = Instant::now();
            if now >= self.end {
                return None;
            }
            let due = |at: Option<Instant>| at.is_some_and(|at| now >= at);
            if due(self.next_bookmark) || due(self.last_bookmark) {
                if due(self.last_bookmark) {
                    self.last_bookmark = None;
                }
                self.next_bookmark = self.next_bookmark.map(|_| now + self.bookmark_every);
                if self.may_bookmark() {
                    let event = self.bookmark();
                    self.ready.extend(line(&event));
                    continue;
                }
            }
            let times = [self.next_bookmark, self.last_bookmark, Some(self.end)];
            let wake = times.into_iter().flatten().min().unwrap_or(self.end);
            tokio::select! {
                _ = self.changed.changed() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Takes what happened since.
    fn catch_up(&mut self) {
        let shared = Arc::clone(&self.shared);
        let state = shared.state.lock();
        if state.cuts != self.cuts {
            self.over = Some(End::Clean);
            match state.cut {
                Cut::Clean => {}
                Cut::Broken => self.over = Some(End::Broken),
                Cut::Expired => {
                    let event = status::watch_too_old(self.cursor, state.store.version());
                    self.ready.extend(line(&event));
                }
            }
            return;
        }
        if state.held {
            return;
        }
        let Some(changes) = state.store.changes_after(self.target.kind, self.cursor) else {
            // A watcher that is too slow is dropped.
            self.over = Some(End::Clean);
            return;
        };
        let events: Vec<Value> = changes.filter_map(|change| self.told(change)).collect();
        for event in events {
            self.ready.extend(line(&event));
        }
        self.cursor = self.cursor.max(state.store.version());
    }

    /// What this watch is told of a change.
    fn told(&self, change: &Change) -> Option<Value> {
        if self.target.namespace.as_ref().is_some_and(|namespace| *namespace != change.id.namespace)
        {
            return None;
        }
        let was = change.previous.as_ref().is_some_and(|object| self.selector.matches(object));
        let is = !change.deleted && self.selector.matches(&change.object);
        let (name, object) = match (was, is) {
            (false, false) => return None,
            (false, true) => ("ADDED", change.object.clone()),
            (true, true) => ("MODIFIED", change.object.clone()),
            (true, false) if change.deleted => ("DELETED", change.object.clone()),
            (true, false) => {
                // It leaves the selection as what it was, with the version of its leaving.
                let mut object = change.previous.clone()?;
                object["metadata"]["resourceVersion"] = json!(change.version.to_string());
                ("DELETED", object)
            }
        };
        Some(self.event(name, object))
    }

    fn event(&self, name: &str, object: Value) -> Value {
        let object = if self.metadata_only { read::only_metadata(object) } else { object };
        json!({"type": name, "object": object})
    }

    /// Not while events are held back, nor from the future.
    fn may_bookmark(&self) -> bool {
        let state = self.shared.state.lock();
        !state.held && self.cursor <= state.store.version()
    }

    fn bookmark(&self) -> Value {
        self.event("BOOKMARK", self.target.kind.bookmark(self.cursor))
    }

    /// What is ready, or the half of it where chunks are to be torn.
    fn chunk(&mut self) -> Bytes {
        let torn = self.shared.torn.load(std::sync::atomic::Ordering::Relaxed);
        if torn && self.ready.len() > 1 {
            let rest = self.ready.split_off(self.ready.len() / 2);
            return std::mem::replace(&mut self.ready, rest).into();
        }
        std::mem::take(&mut self.ready).into()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let own = state.open_watches.iter().position(|kind| *kind == self.target.kind);
        if let Some(at) = own {
            state.open_watches.swap_remove(at);
        }
        drop(state);
        self.shared.changed.send_modify(|count| *count += 1);
    }
}

fn line(event: &Value) -> Vec<u8> {
    let mut line = event.to_string().into_bytes();
    line.push(b'\n');
    line
}
