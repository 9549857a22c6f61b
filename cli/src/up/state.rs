//! The state directory of a running mesh: logs, resolved manifests, tokens, and what
//! `remora exec` needs to find its way in. A free lock tells that the owner is gone.
//!
//! ```text
//! lock            held as long as the outer process lives
//! stage.pid       process id of the stage as the host sees it
//! pods.json       pods, their anchors and containers, for `remora exec`
//! publish.sock    carries published connections into the stage
//! logs/           <namespace>_<pod>_<container>.log, <namespace>_<pod>.proxy.log, control-plane.log
//! resolved/       what the control plane reads
//! tokens/ ca/     registry of workload tokens, keys of the CA
//! proxies/        token file and last answers of each proxy, and the trust bundle
//! pods/           files mounted into the pods
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};

use super::error::{Doing, Error};

/// Paths below the state directory.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
}

/// The state directory while this process owns it; dropped, it is removed.
#[derive(Debug)]
pub struct Owned {
    dir: StateDir,
    _lock: Flock<File>,
}

impl StateDir {
    /// The paths below `root`, which exists already.
    #[must_use]
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file or directory below it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Takes the name's directory, removing what a killed predecessor left.
    ///
    /// # Errors
    /// Where the name is in use or the directory cannot be made.
    pub fn create(name: &str) -> Result<Owned, Error> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 32 || !name.chars().all(fits) {
            return Err(Error::Name { name: name.to_owned() });
        }
        let base = base();
        make(&base).doing(|| format!("create {}", base.display()))?;
        let meta = fs::symlink_metadata(&base).doing(|| format!("read {}", base.display()))?;
        if meta.uid() != geteuid().as_raw() || !meta.is_dir() {
            return Err(Error::ForeignDirectory { path: base });
        }
        sweep(&base);
        let dir = Self::at(base.join(name));
        make(dir.root()).doing(|| format!("create {}", dir.root.display()))?;
        let lock = dir.lock().doing(|| format!("open {}", dir.path("lock").display()))?;
        let Some(lock) = lock else { return Err(Error::Running { name: name.to_owned() }) };
        dir.clear().doing(|| format!("clear {}", dir.root.display()))?;
        for sub in ["logs", "resolved", "tokens", "ca", "proxies", "pods"] {
            make(&dir.path(sub)).doing(|| format!("create {}", dir.path(sub).display()))?;
        }
        Ok(Owned { dir, _lock: lock })
    }

    /// Names of this user's running meshes.
    #[must_use]
    pub fn running() -> Vec<(String, Self)> {
        let mut found: Vec<_> = fs::read_dir(base())
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let dir = Self::at(entry.path());
                let held = dir.path("lock").exists() && matches!(dir.lock(), Ok(None));
                held.then(|| (entry.file_name().to_string_lossy().into_owned(), dir))
            })
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    /// `None` where somebody holds it.
    fn lock(&self) -> io::Result<Option<Flock<File>>> {
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(self.path("lock"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    /// Removes everything but the lock, which names the owner to others that race for it.
    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            if entry.file_name() == "lock" {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl std::ops::Deref for Owned {
    type Target = StateDir;

    fn deref(&self) -> &StateDir {
        &self.dir
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Best effort: what cannot be removed now is removed by the next `up` of the name.
        let _ = fs::remove_dir_all(&self.dir.root);
    }
}

/// Writes a file so that readers see the old or the new text, never a part.
///
/// # Errors
/// Where it cannot be written.
pub fn write_atomic(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    fs::write(&part, text)?;
    fs::rename(&part, path)
}

/// Removes what killed predecessors of other names left: nobody holds its lock.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let dir = StateDir::at(entry.path());
        // One that is being made has no such file yet.
        if dir.path("stage.pid").exists()
            && let Ok(Some(_lock)) = dir.lock()
        {
            let _ = fs::remove_dir_all(dir.root());
        }
    }
}

fn base() -> PathBuf {
    let uid = geteuid();
    if uid.is_root() {
        return PathBuf::from("/run/remora");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(runtime) if runtime.is_dir() => runtime.join("remora"),
        _ => PathBuf::from(format!("/tmp/remora-{uid}")),
    }
}

/// For root the way down is open, because the proxies, which run as a user of their own, read
/// their token files there; every secret file is 0600 and directories of secrets 0700.
fn make(path: &Path) -> io::Result<()> {
    let secret = path.ends_with("tokens") || path.ends_with("ca");
    let mode = if geteuid().is_root() && !secret { 0o711 } else { 0o700 };
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}
