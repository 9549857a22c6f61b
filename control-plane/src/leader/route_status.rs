//! Says in the status of Gateway API routes what became of them on Services.
//!
//! What it should say is the index's to know; here it is written. Each write is a read of the
//! route, our entries put in among those of other controllers, which stay as they are, and a patch of
//! the status that holds only for the version that was read. A route whose entries say it already is
//! not touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, StreamExt, future, stream::FuturesUnordered};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use remora_core::{drain, names};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use super::{CallError, Seldom, call, trust_bundles::FIELD_MANAGER};
use crate::{
    discovery::State,
    index::routes::{RouteId, RouteStatus},
    source::{
        Kind,
        route::{self, ParentStatus},
    },
};

/// Writes at a time.
const AT_ONCE: usize = 4;
/// Pause before a route is read again that another has written meanwhile.
const CONFLICT: Duration = Duration::from_millis(200);

/// While this replica leads, keeps the statuses right, until draining begins.
pub async fn publish(
    client: Client,
    mut leading: watch::Receiver<bool>,
    state: Arc<State>,
    clock: fn() -> SystemTime,
    mut rng: fastrand::Rng,
    drain: drain::Watch,
) {
    loop {
        tokio::select! {
            () = drain.draining() => return,
            elected = leading.wait_for(|leading| *leading) => if elected.is_err() { return },
        }
        let term = Term {
            client: client.clone(),
            state: Arc::clone(&state),
            clock,
            plan: Plan::default(),
            reported: Seldom::default(),
            rng: rng.fork(),
        };
        tokio::select! {
            () = drain.draining() => return,
            ended = leading.wait_for(|leading| !*leading) => if ended.is_err() { return },
            () = term.run() => return,
        }
    }
}

/// One time of leading.
struct Term {
    client: Client,
    state: Arc<State>,
    clock: fn() -> SystemTime,
    plan: Plan,
    reported: Seldom,
    rng: fastrand::Rng,
}

/// How a write ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It says what it should, or is not there, or is not ours to judge yet.
    Done,
    /// Another was faster.
    Conflict,
    Failed,
}

impl Term {
    /// Ends where nobody feeds it any more.
    async fn run(mut self) {
        let mut changes = self.state.route_changes();
        let mut writing = FuturesUnordered::new();
        let all: Vec<RouteId> = self.state.read(|index| index.route_ids().cloned().collect());
        self.want(all);
        loop {
            let now = Instant::now();
            while writing.len() < AT_ONCE {
                let Some(id) = self.plan.start(now) else { break };
                // Told meanwhile, or gone.
                let Some(status) = self.wanted(&id) else {
                    self.plan.finish(&id, &Outcome::Done, now, &mut self.rng);
                    continue;
                };
                writing.push(write(self.client.clone(), id, status, self.clock));
            }
            let due = match self.plan.next() {
                Some(at) if writing.len() < AT_ONCE => tokio::time::sleep_until(at).left_future(),
                _ => future::pending().right_future(),
            };
            tokio::select! {
                () = due => {}
                changed = changes.changed() => {
                    if changed.is_err() { return }
                    changes.mark_unchanged();
                    let due = self.state.take_routes_due();
                    self.want(due);
                }
                Some((id, result)) = writing.next(), if !writing.is_empty() => {
                    let outcome = self.judge(&id, result);
                    self.plan.finish(&id, &outcome, Instant::now(), &mut self.rng);
                }
            }
        }
    }

    /// What a route should say and, as far as is known, does not.
    fn wanted(&self, id: &RouteId) -> Option<RouteStatus> {
        self.state.read(|index| index.route_status(id)).filter(|status| !status.is_told())
    }

    fn want(&mut self, ids: Vec<RouteId>) {
        let now = Instant::now();
        for id in ids {
            if self.wanted(&id).is_some() {
                self.plan.want(id, now);
            }
        }
    }

    fn judge(&mut self, id: &RouteId, result: Result<(), CallError>) -> Outcome {
        let Err(error) = result else { return Outcome::Done };
        match error.code() {
            409 => return Outcome::Conflict,
            404 => return Outcome::Done,
            _ => {}
        }
        if self.reported.due(Instant::now()) {
            let (kind, mend) = (id.kind.as_str(), error.mend());
            let (namespace, name) = (&id.name.namespace, &id.name.name);
            tracing::warn!(kind, %namespace, %name, "status of a route not written: {error}{mend}");
        }
        Outcome::Failed
    }
}

async fn write(
    client: Client,
    id: RouteId,
    status: RouteStatus,
    clock: fn() -> SystemTime,
) -> (RouteId, Result<(), CallError>) {
    let mut result = Ok(());
    for version in versions(id.kind) {
        result = write_as(&client, version, &id, &status, clock).await;
        // Not there is the route, or else this version of its kind.
        if result.as_ref().err().is_none_or(|error| error.code() != 404) {
            break;
        }
    }
    (id, result)
}

/// The versions that a kind may be served in, as it is watched.
fn versions(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::HttpRoute => &["v1", "v1beta1"],
        Kind::TlsRoute => &["v1", "v1alpha3", "v1alpha2"],
        Kind::TcpRoute => &["v1", "v1alpha2"],
        _ => &["v1"],
    }
}

async fn write_as(
    client: &Client,
    version: &str,
    id: &RouteId,
    status: &RouteStatus,
    clock: fn() -> SystemTime,
) -> Result<(), CallError> {
    let kind = id.kind.as_str();
    let resource = ApiResource {
        group: route::GROUP.to_owned(),
        version: version.to_owned(),
        api_version: format!("{}/{version}", route::GROUP),
        kind: kind.to_owned(),
        plural: format!("{}s", kind.to_ascii_lowercase()),
    };
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), &id.name.namespace, &resource);
    let found = call(api.get(&id.name.name)).await?;
    let Some(patch) = patch(&found, status, now(clock)) else { return Ok(()) };
    let params =
        PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
    call(api.patch_status(&id.name.name, &params, &Patch::Merge(patch))).await.map(drop)
}

/// Conditions have whole seconds.
fn now(clock: fn() -> SystemTime) -> Timestamp {
    let now = Timestamp::try_from(clock()).unwrap_or(Timestamp::UNIX_EPOCH);
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// What makes the status of a route say what it should; `None` where it does, or where what should
/// be said is about another version of the route.
fn patch(found: &DynamicObject, status: &RouteStatus, now: Timestamp) -> Option<Value> {
    let meta = &found.metadata;
    if meta.generation.unwrap_or(0) != status.generation || meta.deletion_timestamp.is_some() {
        return None;
    }
    let parents = found.data["status"]["parents"].as_array().cloned().unwrap_or_default();
    let is_ours = |entry: &Value| entry["controllerName"] == names::ROUTE_CONTROLLER;
    let (ours, mut parents): (Vec<Value>, Vec<Value>) = parents.into_iter().partition(is_ours);
    let read = ours.into_iter().map(serde_json::from_value::<ParentStatus>);
    let ours: Vec<ParentStatus> = read.filter_map(Result::ok).collect();
    if status.is_stale(&ours) {
        return None;
    }
    let entries = status.entries(&ours, now);
    if entries == ours {
        return None;
    }
    for entry in entries {
        parents.push(serde_json::to_value(entry).ok()?);
    }
    Some(json!({
        "metadata": {"resourceVersion": meta.resource_version},
        "status": {"parents": parents},
    }))
}

/// Which route is written when. Each is in it once.
#[derive(Debug, Default)]
struct Plan {
    waiting: BTreeMap<RouteId, (Instant, u32)>,
    queue: BTreeSet<(Instant, RouteId)>,
    /// Being written: failures before, and whether something changed meanwhile.
    writing: BTreeMap<RouteId, (u32, bool)>,
}

impl Plan {
    /// It is due, at once where it does not wait after a failure.
    fn want(&mut self, id: RouteId, now: Instant) {
        if let Some((_, again)) = self.writing.get_mut(&id) {
            *again = true;
        } else if !self.waiting.contains_key(&id) {
            self.wait(id, now, 0);
        }
    }

    fn wait(&mut self, id: RouteId, at: Instant, failures: u32) {
        self.queue.insert((at, id.clone()));
        self.waiting.insert(id, (at, failures));
    }

    /// The next one that is due, which is then being written.
    fn start(&mut self, now: Instant) -> Option<RouteId> {
        if self.next()? > now {
            return None;
        }
        let (_, id) = self.queue.pop_first()?;
        let (_, failures) = self.waiting.remove(&id)?;
        self.writing.insert(id.clone(), (failures, false));
        Some(id)
    }

    fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    fn finish(&mut self, id: &RouteId, outcome: &Outcome, now: Instant, rng: &mut fastrand::Rng) {
        let Some((failures, again)) = self.writing.remove(id) else { return };
        match outcome {
            Outcome::Done if again => self.wait(id.clone(), now, 0),
            Outcome::Done => {}
            Outcome::Conflict => {
                let pause = CONFLICT.mul_f64(0.5 + rng.f64());
                self.wait(id.clone(), now + pause, failures);
            }
            Outcome::Failed => {
                let failures = failures + 1;
                self.wait(id.clone(), now + super::pause(failures, rng), failures);
            }
        }
    }
}

#[cfg(test)]
mod tests;
