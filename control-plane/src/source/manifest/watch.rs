//! Keeps directories watched and turns each new good state into events.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{RecursiveMode, Watcher};
use remora_core::drain;
use tokio::sync::mpsc;

use super::{Loader, Problem};
use crate::source::{Event, Key, Object};

/// Quiet time after which a change is taken as complete: editors write, rename and set times in
/// quick succession.
const QUIET: Duration = Duration::from_millis(20);
/// Longest wait for quiet, so that a steady writer cannot hold changes back.
const LONGEST: Duration = Duration::from_millis(50);
/// How often everything is looked at without a notification: for file systems that send none, and
/// for directories that come into being later.
const POLL: Duration = Duration::from_secs(5);

/// What came out of looking at the directories.
#[derive(Debug)]
pub enum Loaded {
    /// The first good state, as one `Reset`.
    First(Vec<Event>),
    /// The difference to the last good state.
    Changed(Vec<Event>),
    /// The last good state stays in force.
    Bad(Vec<Problem>),
}

/// Turns states into events. Pure but for the file reads of its [`Loader`].
#[derive(Debug)]
pub struct Differ {
    loader: Loader,
    last: Option<BTreeMap<Key, Object>>,
    /// [`Loader::changes`] when `last` was made; with no change since, nothing need be compared.
    seen: u64,
    /// Problems last reported, so that a file that stays bad is reported once.
    reported: Vec<Problem>,
    warned: HashSet<String>,
}

impl Differ {
    /// Nothing loaded yet.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        Self {
            loader: Loader::new(dirs),
            last: None,
            seen: 0,
            reported: Vec::new(),
            warned: HashSet::new(),
        }
    }

    /// Looks at the directories; `None` where nothing changed.
    pub fn load(&mut self) -> Option<Loaded> {
        let objects = match self.loader.load() {
            Ok(objects) => objects,
            Err(problems) if problems == self.reported => return None,
            Err(problems) => {
                self.reported.clone_from(&problems);
                return Some(Loaded::Bad(problems));
            }
        };
        let recovered = !std::mem::take(&mut self.reported).is_empty();
        if self.last.is_some() && !recovered && self.seen == self.loader.changes() {
            return None;
        }
        self.seen = self.loader.changes();
        for warning in &objects.warnings {
            if self.warned.len() < 10_000 && self.warned.insert(warning.to_string()) {
                tracing::warn!(%warning, "manifest");
            }
        }
        let now = objects.resolved();
        let Some(last) = self.last.replace(now.clone()) else {
            return Some(Loaded::First(vec![Event::Reset(now.into_values().collect())]));
        };
        let events = difference(&last, now);
        (!events.is_empty()).then_some(Loaded::Changed(events))
    }
}

/// Deletes first, then applies: a moved address is free before it is taken.
fn difference(last: &BTreeMap<Key, Object>, now: BTreeMap<Key, Object>) -> Vec<Event> {
    let gone = last.keys().filter(|key| !now.contains_key(key)).cloned().map(Event::Delete);
    let mut events: Vec<Event> = gone.collect();
    for (key, object) in now {
        if last.get(&key) != Some(&object) {
            events.push(Event::Apply(object));
        }
    }
    events
}

/// Watches until draining begins. `on` is called with everything that comes out, first at once.
///
/// # Errors
/// Where the machine grants no file watch (`fs.inotify.max_user_instances`); polling would hide it.
pub async fn watch(
    dirs: Vec<PathBuf>,
    mut on: impl FnMut(Loaded),
    drain: drain::Watch,
) -> Result<(), notify::Error> {
    // One pending notification says all: the directories are looked at as a whole.
    let (notify, mut changed) = mpsc::channel::<()>(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if !event.is_ok_and(|event| event.kind.is_access()) {
            let _ = notify.try_send(());
        }
    })?;
    let mut watched = Watched::default();
    let mut differ = Differ::new(dirs.clone());
    loop {
        // Watch before looking, so that no change falls between.
        watched.refresh(&mut watcher, &dirs);
        // Blocks for as long as reading the changed files takes: nothing else that this thread does
        // is more urgent than the new state.
        if let Some(loaded) = differ.load() {
            on(loaded);
        }
        tokio::select! {
            () = drain.draining() => return Ok(()),
            _ = changed.recv() => settle(&mut changed).await,
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

/// Waits until notifications pause.
async fn settle(changed: &mut mpsc::Receiver<()>) {
    let quiet = async { while tokio::time::timeout(QUIET, changed.recv()).await.is_ok() {} };
    let _ = tokio::time::timeout(LONGEST, quiet).await;
}

/// Which paths are watched. A directory's parent is watched as well, so that its own renaming and
/// re-creation are seen.
#[derive(Default)]
struct Watched {
    /// With the inode at the time, because a watch follows the inode, not the name.
    paths: BTreeMap<PathBuf, u64>,
}

impl Watched {
    fn refresh(&mut self, watcher: &mut impl Watcher, dirs: &[PathBuf]) {
        for dir in dirs {
            self.ensure(watcher, dir, RecursiveMode::Recursive);
            if let Some(parent) = dir.parent() {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                if !dirs.iter().any(|dir| dir == parent) {
                    self.ensure(watcher, parent, RecursiveMode::NonRecursive);
                }
            }
        }
    }

    fn ensure(&mut self, watcher: &mut impl Watcher, path: &Path, mode: RecursiveMode) {
        use std::os::unix::fs::MetadataExt;
        let inode = std::fs::metadata(path).ok().map(|meta| meta.ino());
        if self.paths.get(path).copied() == inode {
            return;
        }
        if self.paths.remove(path).is_some() {
            let _ = watcher.unwatch(path);
        }
        let Some(inode) = inode else { return };
        match watcher.watch(path, mode) {
            Ok(()) => _ = self.paths.insert(path.to_owned(), inode),
            Err(error) => tracing::warn!(
                path = %path.display(), %error,
                "no file watch, changes are seen by polling; raise fs.inotify.max_user_watches"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";

    /// Well under [`POLL`]: what comes in time came by notification.
    async fn next(out: &mut mpsc::Receiver<Loaded>) -> Loaded {
        tokio::time::timeout(POLL - Duration::from_secs(1), out.recv()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_directory_that_comes_later_and_is_replaced_as_a_whole_is_followed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("manifests");
        let (drain, draining) = drain::Drain::new();
        let (tell, mut out) = mpsc::channel(16);
        let on = move |loaded| tell.try_send(loaded).unwrap();
        let task = tokio::spawn(draining.track(watch(vec![dir.clone()], on, draining.clone())));
        assert!(matches!(next(&mut out).await, Loaded::Bad(_)), "missing");

        let staged = |name: &str, text: &str| {
            let staged = temp.path().join(name);
            fs::create_dir(&staged).unwrap();
            fs::write(staged.join("a.yaml"), text).unwrap();
            staged
        };
        fs::rename(staged("one", NAMESPACE), &dir).unwrap();
        assert!(matches!(next(&mut out).await, Loaded::First(_)));

        let two = staged("two", &NAMESPACE.replace("shop", "other"));
        fs::rename(&dir, temp.path().join("old")).unwrap();
        fs::rename(two, &dir).unwrap();
        let events = loop {
            match next(&mut out).await {
                // The moment in between may be seen; it changes nothing.
                Loaded::Bad(_) => {}
                Loaded::Changed(events) => break events,
                Loaded::First(_) => panic!("only once"),
            }
        };
        assert_eq!(events.len(), 2);

        // The new directory is watched, not the one that was moved away.
        let edited = dir.join(".a.yaml.swp");
        fs::write(&edited, NAMESPACE).unwrap();
        fs::rename(edited, dir.join("a.yaml")).unwrap();
        assert!(matches!(next(&mut out).await, Loaded::Changed(_)));
        assert_eq!(drain.drain(Duration::from_secs(5)).await, drain::Drained::Clean);
        task.await.unwrap().unwrap().unwrap();
    }
}
