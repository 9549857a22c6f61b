//! Objects from a Kubernetes API: a watch for each kind, one stream of batches.

use std::{
    collections::{BTreeMap, btree_map},
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use k8s_openapi::api::{core::v1 as core, discovery::v1::EndpointSlice};
use kube::Client;
use parking_lot::Mutex;
use remora_core::drain;
use tokio::time::{Instant, timeout_at};

use super::{
    Event, Kind, Name, Object,
    route::{GrpcRoute, HttpRoute, WrittenGrant},
};

mod kinds;
mod reflector;
mod request;
mod status;

use kinds::{NamespaceMeta, NodeMeta, WatchedTcp, WatchedTls};
use reflector::{Told, reflect};
use status::KINDS;
pub use status::{KindStatus, Status};

/// Most changes of one batch; more wait for the next, so that nobody else waits long.
const BATCH: usize = 1000;

/// How long a batch is kept open for more: what belongs together (a slice that takes another's
/// place) comes within milliseconds, but each in a message of its own.
const SETTLE: Duration = Duration::from_millis(10);

/// Follows what the API has until draining begins.
///
/// The first call of `apply` has the whole first list of every kind in one batch, so that nothing
/// is answered before; later ones have what changed since, at most 1000 changes at a time. A new
/// list of a kind comes as one [`Event::Replace`]: the state is never emptied. `status` tells others
/// how it goes; the client should not repeat requests by itself (`default_retry`), since these do,
/// and say why.
pub async fn watch(
    client: Client,
    status: Arc<Status>,
    mut apply: impl FnMut(Vec<Event>),
    drain: drain::Watch,
) {
    let mut rng = fastrand::Rng::new();
    let strings = Arc::new(Mutex::default());
    let mut shared = || (client.clone(), Arc::clone(&status), Arc::clone(&strings), rng.fork());
    let streams = [
        reflect::<NamespaceMeta>(shared()).boxed(),
        reflect::<NodeMeta>(shared()).boxed(),
        reflect::<core::Service>(shared()).boxed(),
        reflect::<EndpointSlice>(shared()).boxed(),
        reflect::<core::Pod>(shared()).boxed(),
        reflect::<HttpRoute>(shared()).boxed(),
        reflect::<GrpcRoute>(shared()).boxed(),
        reflect::<WatchedTls>(shared()).boxed(),
        reflect::<WatchedTcp>(shared()).boxed(),
        reflect::<WrittenGrant>(shared()).boxed(),
    ];
    let mut told = stream::select_all(streams);
    let mut first = Some(First::default());
    loop {
        let batch = tokio::select! {
            biased;
            () = drain.draining() => return,
            batch = together(&mut told) => batch,
        };
        let events: Vec<Event> = match &mut first {
            None => batch.into_iter().map(Told::into_event).collect(),
            Some(gathered) => {
                batch.into_iter().for_each(|told| gathered.take(told));
                if !gathered.is_complete() {
                    continue;
                }
                first.take().map(First::into_events).unwrap_or_default()
            }
        };
        apply(events);
    }
}

/// What comes next, and what comes right after it.
async fn together(told: &mut (impl Stream<Item = Told> + Unpin)) -> Vec<Told> {
    let mut batch: Vec<Told> = told.next().await.into_iter().collect();
    let settled = Instant::now() + SETTLE;
    while batch.len() < BATCH
        && let Ok(Some(more)) = timeout_at(settled, told.next()).await
    {
        batch.push(more);
    }
    batch
}

/// What is known before every kind has been listed. Kinds whose list came early go on changing
/// meanwhile; what they say is folded in, so that a kind that may not be listed for hours costs no
/// more memory than the objects there are.
#[derive(Default)]
struct First(BTreeMap<Kind, BTreeMap<Name, Object>>);

impl First {
    fn take(&mut self, told: Told) {
        match told {
            Told::Listed(kind, objects) => {
                let by_name = objects.into_iter().map(|object| (object.name().clone(), object));
                self.0.insert(kind, by_name.collect());
            }
            Told::Changed(Event::Apply(object)) => {
                let of_kind = self.0.entry(object.kind()).or_default();
                of_kind.insert(object.name().clone(), object);
            }
            Told::Changed(Event::Delete(key)) => {
                if let btree_map::Entry::Occupied(mut known) = self.0.entry(key.kind) {
                    known.get_mut().remove(&Name::new(&key.namespace, &key.name));
                }
            }
            // Reflectors say no more than the above.
            Told::Changed(Event::Replace(..) | Event::Reset(_)) => {}
        }
    }

    fn is_complete(&self) -> bool {
        KINDS.iter().all(|kind| self.0.contains_key(kind))
    }

    fn into_events(self) -> Vec<Event> {
        let all = |(kind, objects): (Kind, BTreeMap<Name, Object>)| {
            Event::Replace(kind, objects.into_values().collect())
        };
        self.0.into_iter().map(all).collect()
    }
}

impl Told {
    fn into_event(self) -> Event {
        match self {
            Self::Listed(kind, objects) => Event::Replace(kind, objects),
            Self::Changed(event) => event,
        }
    }
}

#[cfg(test)]
mod story;
#[cfg(test)]
mod tests;
