//! Objects from directories of plain manifests.
//!
//! All or nothing: where one file is bad, nothing of the new state is taken and the last good one
//! stays in force. Every problem is one line, `file:line: field: what; mend`.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Pod, Service},
    discovery::v1::EndpointSlice,
};

use super::{Key, Kind};
use crate::source;

mod document;
pub mod endpoints;
mod expand;
mod file;
mod object;
mod validate;
pub mod watch;

pub use expand::{MAX_REPLICAS, expand};
use file::{Entry, Parsed};
pub use object::Object;

/// One thing wrong with a file. Displays as `file:line: field: what; mend`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {field}: {problem}; {mend}", file.display())]
pub struct Problem {
    /// The file, as it was found.
    pub file: PathBuf,
    /// Line, counted from 1.
    pub line: u64,
    /// Path of the field, for example `spec.ports[0].port`.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub mend: String,
}

/// A consistent set of objects.
#[derive(Clone, Default)]
pub struct Objects {
    all: BTreeMap<Key, Object>,
    origins: BTreeMap<Key, (Arc<Path>, u64)>,
    /// What was left out or looks like a slip, though nothing is wrong enough to refuse the files.
    pub warnings: Vec<Problem>,
}

/// Loads directory trees of `.yaml`, `.yml` and `.json` files, or single files.
///
/// # Errors
/// Everything that is wrong with them, in the order of files and lines.
pub fn load(dirs: &[PathBuf]) -> Result<Objects, Vec<Problem>> {
    Loader::new(dirs.to_vec()).load()
}

/// Reads a text as the only file that there is; `file` is what problems call it.
///
/// # Errors
/// Everything that is wrong with it, in the order of lines.
pub fn parse(file: &Path, text: &str) -> Result<Objects, Vec<Problem>> {
    merge(&[Arc::new(file::parse(file, text))], Vec::new())
}

/// Loads directories and files together with a text that is no file, which problems call `name`.
///
/// # Errors
/// Everything that is wrong with them, the text last.
pub fn load_with(dirs: &[PathBuf], name: &Path, text: &str) -> Result<Objects, Vec<Problem>> {
    let (mut parsed, problems) = Loader::new(dirs.to_vec()).read_all();
    parsed.push(Arc::new(file::parse(name, text)));
    merge(&parsed, problems)
}

/// Loads the same directories again and again, reading only files that changed.
#[derive(Debug)]
pub struct Loader {
    dirs: Vec<PathBuf>,
    cache: HashMap<PathBuf, (file::Stamp, Arc<Parsed>)>,
    /// How often a file was read, appeared or went.
    changes: u64,
}

impl Loader {
    /// A loader that has read nothing yet.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        Self { dirs, cache: HashMap::new(), changes: 0 }
    }

    /// The state of the directories now.
    ///
    /// # Errors
    /// Everything that is wrong with them. A directory that is missing is a problem, not an empty
    /// one, so that a rename dance never empties the mesh.
    pub fn load(&mut self) -> Result<Objects, Vec<Problem>> {
        let (parsed, problems) = self.read_all();
        merge(&parsed, problems)
    }

    fn read_all(&mut self) -> (Vec<Arc<Parsed>>, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut files = Vec::new();
        for dir in &self.dirs {
            file::find(dir, &mut files, &mut problems);
        }
        let mut fresh = HashMap::with_capacity(files.len());
        let mut parsed = Vec::with_capacity(files.len());
        for path in files {
            match self.read(&path) {
                Ok(Some((stamp, content))) => {
                    fresh.insert(path, (stamp, Arc::clone(&content)));
                    parsed.push(content);
                }
                // Gone between the listing and the reading.
                Ok(None) => {}
                Err(problem) => problems.push(problem),
            }
        }
        self.changes += self.cache.keys().filter(|path| !fresh.contains_key(*path)).count() as u64;
        self.cache = fresh;
        (parsed, problems)
    }

    /// A number that grows whenever a file's content may have changed, appeared or gone.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    fn read(&mut self, path: &Path) -> Result<Option<(file::Stamp, Arc<Parsed>)>, Problem> {
        let Some(stamp) = file::stamp(path)? else { return Ok(None) };
        if let Some((known, parsed)) = self.cache.get(path)
            && *known == stamp
        {
            return Ok(Some((stamp, Arc::clone(parsed))));
        }
        self.changes += 1;
        Ok(file::read(path)?.map(|parsed| (stamp, Arc::new(parsed))))
    }
}

/// Puts the files together; what only shows across files is found here.
fn merge(parsed: &[Arc<Parsed>], mut problems: Vec<Problem>) -> Result<Objects, Vec<Problem>> {
    let mut all: BTreeMap<Key, &Entry> = BTreeMap::new();
    let mut cluster_ips: BTreeMap<&str, &Entry> = BTreeMap::new();
    let mut warnings = Vec::new();
    for file in parsed {
        problems.extend(file.problems.iter().cloned());
        warnings.extend(file.warnings.iter().cloned());
        for entry in &file.entries {
            let key = entry.object.key();
            if let Some(first) = all.get(&key) {
                let problem = format!("{key} is also in {}:{}", first.file.display(), first.line);
                problems.push(entry.problem("metadata.name", problem, "remove one of them"));
                continue;
            }
            if let Object::Service(service) = &entry.object
                && let Some(ip) = service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref())
                && !matches!(ip, "" | "None")
                && let Some(first) = cluster_ips.insert(ip, entry)
            {
                let problem = format!("{ip} is also the address of {}", first.object.key());
                problems.push(entry.problem("spec.clusterIP", problem, "choose another"));
            }
            all.insert(key, entry);
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let origin =
        |(key, entry): (&Key, &&Entry)| (key.clone(), (Arc::clone(&entry.file), entry.line));
    let origins = all.iter().map(origin).collect();
    let all = all.into_iter().map(|(key, entry)| (key, entry.object.clone())).collect();
    Ok(Objects { all, origins, warnings })
}

impl Objects {
    /// One that is in no file.
    #[must_use]
    pub fn one(object: Object) -> Self {
        Self { all: [(object.key(), object)].into(), ..Self::default() }
    }

    /// All of them as written, by key.
    #[must_use]
    pub fn all(&self) -> &BTreeMap<Key, Object> {
        &self.all
    }

    /// The file and line in which an object begins; `None` where it is in no file.
    #[must_use]
    pub fn origin(&self, key: &Key) -> Option<(&Path, u64)> {
        self.origins.get(key).map(|(file, line)| (&**file, *line))
    }

    /// The Namespaces, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.all.values().filter_map(|o| if let Object::Namespace(o) = o { Some(o) } else { None })
    }

    /// The Services, by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.all.values().filter_map(|o| if let Object::Service(o) = o { Some(o) } else { None })
    }

    /// The Deployments, by namespace and name.
    pub fn deployments(&self) -> impl Iterator<Item = &Arc<Deployment>> {
        self.all.values().filter_map(|o| if let Object::Deployment(o) = o { Some(o) } else { None })
    }

    /// The hand-made EndpointSlices, by namespace and name.
    pub fn endpoint_slices(&self) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.all
            .values()
            .filter_map(|o| if let Object::EndpointSlice(o) = o { Some(o) } else { None })
    }

    /// The Pods by namespace and name, those of Deployments included; a Pod object of the same
    /// name takes the place of a Deployment's.
    #[must_use]
    pub fn pods(&self) -> BTreeMap<Key, Arc<Pod>> {
        let key = |pod: &Pod| Key {
            kind: Kind::Pod,
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
        };
        let mut pods: BTreeMap<Key, Arc<Pod>> =
            self.deployments().flat_map(|d| expand(d)).map(|p| (key(&p), Arc::new(p))).collect();
        for object in self.all.values() {
            if let Object::Pod(pod) = object {
                pods.insert(key(pod), Arc::clone(pod));
            }
        }
        pods
    }

    /// What a cluster would make of them: Deployments expanded into Pods, Services with selectors
    /// given their EndpointSlices.
    #[must_use]
    pub fn resolved(&self) -> BTreeMap<Key, source::Object> {
        let pods = self.pods();
        let mut by_label: HashMap<(&str, &str, &str), Vec<&Arc<Pod>>> = HashMap::new();
        for (key, pod) in &pods {
            for (label, value) in pod.metadata.labels.iter().flatten() {
                by_label.entry((&key.namespace, label, value)).or_default().push(pod);
            }
        }
        let mut out: BTreeMap<Key, source::Object> = self
            .all
            .iter()
            .filter_map(|(key, object)| Some((key.clone(), object.slim()?)))
            .collect();
        for service in self.services() {
            let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
            let selector = service.spec.iter().flat_map(|spec| spec.selector.iter().flatten());
            // The rarest label leaves the fewest pods to look at.
            let candidates = selector
                .map(|(label, value)| {
                    by_label.get(&(namespace, label, value)).map_or(&[][..], Vec::as_slice)
                })
                .min_by_key(|pods| pods.len());
            for slice in endpoints::slices(service, candidates.into_iter().flatten().copied()) {
                let slice = source::Object::EndpointSlice(Arc::new((&slice).into()));
                out.insert(slice.key(), slice);
            }
        }
        let slim = |pod: &Arc<Pod>| source::Object::Pod(Arc::new(source::Pod::described(pod)));
        out.extend(pods.iter().map(|(key, pod)| (key.clone(), slim(pod))));
        out
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.all.keys()).finish()
    }
}

#[cfg(test)]
mod tests;
