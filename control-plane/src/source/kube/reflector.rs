//! Follows one kind: list, watch, and begin again where it broke.
//!
//! A list brings the whole state and a version. A watch brings what changed since that version, and
//! a bookmark about every minute. When a watch ends, the next continues from the last version heard.
//! Only where the API has forgotten what followed that version (410) is there another list; what is
//! known stays in force until the new list is complete.
//!
//! A kind that a cluster may do without is looked for under each of its versions. Where it is under
//! none, there is none of it, which is told as an empty list, and it is looked for again every
//! [`LOOK`]. One that was there has to be missed several times: of several API servers, one that
//! has just started may not have heard of its definition.
//!
//! This is not `kube::runtime::watcher` because of what it does with a bad server or way there: it
//! takes the lines of an error page for events, begins a watch that ends at once anew without a
//! pause, and cannot tell a quiet watch from a dead one.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use kube::{Client, core::WatchEvent};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::{
    kinds::{Reduced, Watched},
    request::{self, Failure, Lines, Page},
    status::{Status, plural},
};
use crate::{
    interned::Interned,
    source::{Event, Kind, Name, Object},
};

/// How long the API is asked to keep a watch, at least and at most: below the 5 minutes after which
/// load balancers like to cut, and spread so that watches do not end together.
const LIFETIME: (u64, u64) = (200, 290);
/// Silence after which a watch is taken for dead: bookmarks come every 60 s.
const SILENCE: Duration = Duration::from_secs(90);
/// Watches from the same version that bring nothing at all, after which there is a new list: the
/// version may be from before a restore of etcd, and still to come.
const SILENT_WATCHES: u32 = 2;
/// A watch that lives this long ends the run of failures before it.
const GOOD: Duration = Duration::from_secs(10);
/// The first pause after a failure, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(20));
/// Longest pause that the API can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// Time between two looks for a kind that is not there; up to half of it more by chance.
const LOOK: Duration = Duration::from_secs(20);

/// Looks in a row that must miss a kind that was there.
const MISSED: u32 = 3;

/// What the objects of all kinds have in common: names, nodes, zones, owners.
pub(super) type Strings = Mutex<Interned<str>>;

/// What a reflector tells.
#[derive(Debug)]
pub(super) enum Told {
    /// All that there is of a kind.
    Listed(Kind, Vec<Object>),
    /// One change.
    Changed(Event),
}

/// Tells what there is of a kind, then what changes. Never ends.
pub(super) fn reflect<K: Watched>(
    (client, status, strings, rng): (Client, Arc<Status>, Arc<Strings>, fastrand::Rng),
) -> impl Stream<Item = Told> + Send {
    let known = HashMap::new();
    let reflector = Reflector {
        client,
        status,
        strings,
        rng,
        known,
        path: K::PATHS[0],
        listed: false,
        missed: 0,
        phase: Phase::List,
        failures: 0,
        silent: 0,
    };
    stream::unfold(reflector, |mut reflector| async {
        let told = reflector.next::<K>().await;
        Some((told, reflector))
    })
}

struct Reflector {
    client: Client,
    status: Arc<Status>,
    strings: Arc<Strings>,
    rng: fastrand::Rng,
    /// What was told last. The index has the same objects: a new list thus costs the memory of
    /// what changed, and what changed in fields that nobody reads (most of it) is not told.
    known: HashMap<Name, Object>,
    /// Where the kind is: one of [`Watched::PATHS`].
    path: &'static str,
    /// Whether anything was told, be it that there is nothing.
    listed: bool,
    /// Looks in a row that found no such kind.
    missed: u32,
    phase: Phase,
    /// In a row.
    failures: u32,
    /// Watches in a row that brought nothing.
    silent: u32,
}

enum Phase {
    List,
    /// There is no such kind.
    Absent,
    Open {
        version: String,
    },
    Watch {
        version: String,
        lines: Lines,
        opened: Instant,
        heard: bool,
    },
}

/// How a watch went on.
enum Step {
    Applied(Object),
    Deleted(Object),
    Bookmark,
    Ended,
    Silent,
}

impl Reflector {
    async fn next<K: Watched>(&mut self) -> Told {
        loop {
            let (verb, result) = match &self.phase {
                Phase::List => ("list", self.list::<K>().await),
                Phase::Absent => {
                    sleep(LOOK.mul_f64(1.0 + self.rng.f64() / 2.0)).await;
                    ("list", self.list::<K>().await)
                }
                Phase::Open { .. } => ("watch", self.open::<K>().await),
                Phase::Watch { .. } => ("watch", self.step::<K>().await),
            };
            match result {
                Ok(Some(told)) => return told,
                Ok(None) => {}
                Err(failure) => self.failed::<K>(verb, &failure).await,
            }
        }
    }

    async fn list<K: Watched>(&mut self) -> Result<Option<Told>, Failure> {
        let Some(mut page) = self.first_page::<K>().await? else { return Ok(self.absent::<K>()) };
        let mut objects = Vec::new();
        let version = page.version().ok_or(Failure::Versionless)?.to_owned();
        loop {
            let more = page.more().map(str::to_owned);
            objects.extend(page.items.into_iter().map(|item| self.shared(item.object)));
            let Some(more) = more else { break };
            page = request::page::<K>(&self.client, self.path, Some(&more)).await?;
        }
        tracing::debug!(kind = plural(K::KIND), objects = objects.len(), version, "listed");
        self.status.listed(K::KIND, objects.len(), Instant::now());
        self.known = objects.iter().map(|o| (o.name().clone(), o.clone())).collect();
        (self.silent, self.missed) = (0, 0);
        self.listed = true;
        self.phase = Phase::Open { version };
        Ok(Some(Told::Listed(K::KIND, objects)))
    }

    /// From the newest version that is there; `None` where none is and the kind is optional.
    async fn first_page<K: Watched>(&mut self) -> Result<Option<Page<K>>, Failure> {
        for path in K::PATHS {
            self.path = path;
            match request::page::<K>(&self.client, path, None).await {
                Err(failure) if K::OPTIONAL && failure.is_unknown() => {}
                page => return page.map(Some),
            }
        }
        Ok(None)
    }

    /// There is none of a kind that the cluster does not have; told once.
    fn absent<K: Watched>(&mut self) -> Option<Told> {
        self.phase = Phase::Absent;
        self.failures = 0;
        self.missed += 1;
        self.status.heard(K::KIND, Instant::now());
        if self.listed && (self.known.is_empty() || self.missed < MISSED) {
            return None;
        }
        tracing::debug!(kind = plural(K::KIND), "the API server has no such kind");
        self.listed = true;
        self.known.clear();
        self.status.listed(K::KIND, 0, Instant::now());
        Some(Told::Listed(K::KIND, Vec::new()))
    }

    /// The object as it is known, where it is the same.
    fn shared(&self, mut new: Object) -> Object {
        if let Some(known) = self.known.get(new.name()).filter(|known| **known == new) {
            return known.clone();
        }
        new.intern(&mut self.strings.lock());
        new
    }

    async fn open<K: Watched>(&mut self) -> Result<Option<Told>, Failure> {
        let Phase::Open { version } = &self.phase else { return Ok(None) };
        let lifetime = Duration::from_secs(self.rng.u64(LIFETIME.0..=LIFETIME.1));
        let lines = request::open::<K>(&self.client, self.path, version, lifetime).await?;
        self.status.heard(K::KIND, Instant::now());
        let version = version.clone();
        self.phase = Phase::Watch { version, lines, opened: Instant::now(), heard: false };
        Ok(None)
    }

    async fn step<K: Watched>(&mut self) -> Result<Option<Told>, Failure> {
        let Phase::Watch { version, lines, opened, heard } = &mut self.phase else {
            return Ok(None);
        };
        let step = match timeout(SILENCE, lines.next::<K>()).await {
            Ok(event) => read(event?, version)?,
            Err(_) => Step::Silent,
        };
        match step {
            Step::Applied(mut object) => {
                *heard = true;
                self.status.heard(K::KIND, Instant::now());
                if self.known.get(object.name()) != Some(&object) {
                    object.intern(&mut self.strings.lock());
                    self.known.insert(object.name().clone(), object.clone());
                    self.status.has(K::KIND, self.known.len());
                    return Ok(Some(Told::Changed(Event::Apply(object))));
                }
            }
            Step::Deleted(object) => {
                *heard = true;
                self.status.heard(K::KIND, Instant::now());
                self.known.remove(object.name());
                self.status.has(K::KIND, self.known.len());
                return Ok(Some(Told::Changed(Event::Delete(object.key()))));
            }
            Step::Bookmark => {
                *heard = true;
                self.status.heard(K::KIND, Instant::now());
            }
            Step::Ended | Step::Silent => {
                let (lived, quiet) = (opened.elapsed(), !*heard);
                let version = std::mem::take(version);
                self.reopen::<K>(version, lived, quiet).await;
            }
        }
        Ok(None)
    }

    /// A watch has come to its end in order, or is taken for dead.
    async fn reopen<K: Watched>(&mut self, version: String, lived: Duration, quiet: bool) {
        tracing::debug!(kind = plural(K::KIND), ?lived, quiet, "watch ended");
        self.silent = if quiet && lived >= SILENCE { self.silent + 1 } else { 0 };
        self.phase = if self.silent >= SILENT_WATCHES {
            self.silent = 0;
            Phase::List
        } else {
            Phase::Open { version }
        };
        if lived >= GOOD {
            self.failures = 0;
        } else {
            self.pause(None).await;
        }
    }

    async fn failed<K: Watched>(&mut self, verb: &str, failure: &Failure) {
        let now = Instant::now();
        if K::OPTIONAL && failure.is_unknown() {
            // Its definition has gone, or this version of it.
            self.phase = Phase::List;
            return self.pause(None).await;
        }
        self.phase = match std::mem::replace(&mut self.phase, Phase::List) {
            Phase::Open { version } if !failure.is_gone() => Phase::Open { version },
            Phase::Watch { version, opened, .. } => {
                if now - opened >= GOOD {
                    self.failures = 0;
                }
                if failure.is_gone() { Phase::List } else { Phase::Open { version } }
            }
            _ => Phase::List,
        };
        if failure.is_gone() {
            tracing::debug!(kind = plural(K::KIND), %failure, "listing anew");
        } else if self.failures == 0 && matches!(failure, Failure::Broken(_)) {
            tracing::debug!(kind = plural(K::KIND), %failure, "watch broke");
            self.status.broke(K::KIND);
        } else {
            let kind = plural(K::KIND);
            let problem = format!("cannot {verb} {kind}: {failure}; {}", failure.mend(verb, kind));
            self.status.failed(K::KIND, problem, now);
        }
        self.pause(failure.retry_after()).await;
    }

    /// Pauses before the next request: longer with every failure in a row, and at random so that
    /// replicas and kinds do not come back together.
    async fn pause(&mut self, asked: Option<Duration>) {
        let doubled = PAUSE.0.saturating_mul(1 << self.failures.min(16)).min(PAUSE.1);
        self.failures += 1;
        let asked = asked.unwrap_or_default().min(MAX_RETRY_AFTER);
        sleep(doubled.mul_f64(0.5 + self.rng.f64() / 2.0).max(asked)).await;
    }
}

fn read<K: Watched>(
    event: Option<WatchEvent<Reduced<K>>>,
    version: &mut String,
) -> Result<Step, Failure> {
    let mut of = |reduced: Reduced<K>, step: fn(Object) -> Step| {
        *version = reduced.version.filter(|v| !v.is_empty()).ok_or(Failure::Versionless)?;
        Ok(step(reduced.object))
    };
    match event {
        Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => of(object, Step::Applied),
        Some(WatchEvent::Deleted(object)) => of(object, Step::Deleted),
        Some(WatchEvent::Bookmark(bookmark)) => {
            if !bookmark.metadata.resource_version.is_empty() {
                *version = bookmark.metadata.resource_version;
            }
            Ok(Step::Bookmark)
        }
        Some(WatchEvent::Error(status)) => {
            let seconds = status.details.map(|details| details.retry_after_seconds);
            Err(Failure::Refused {
                code: status.code,
                message: status.message,
                retry_after: seconds.map(|seconds| Duration::from_secs(seconds.into())),
            })
        }
        None => Ok(Step::Ended),
    }
}

/// What a line of a watch tells; `None` for a bookmark.
#[cfg(test)]
pub(super) fn decoded<K: Watched>(line: &[u8]) -> Result<Option<Told>, Failure> {
    let mut version = String::new();
    Ok(match read::<K>(Some(serde_json::from_slice(line)?), &mut version)? {
        Step::Applied(object) => Some(Told::Changed(Event::Apply(object))),
        Step::Deleted(object) => Some(Told::Changed(Event::Delete(object.key()))),
        _ => None,
    })
}
