//! The CA's files: `ca.crt` (roots), `tls.crt` (the issuer's chain), `tls.key`. The same names as
//! in a Secret of type kubernetes.io/tls, so that either can be mounted here.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use remora_core::drain;
use tokio::sync::mpsc;

use super::{
    bundle::pem,
    ca::{Authority, NewRoot},
    judge::{Material, Part, Refused},
    keeper::Seen,
};

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(1);

/// Why the CA cannot be used. One line: what, where, the mend.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be read or written.
    #[error("{}: {error}; make the CA directory accessible to this user", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Some of the files are there, others not.
    #[error("{}: missing while {} is there; restore it, or remove all three to make a new CA", path.display(), other.display())]
    Incomplete {
        /// The missing file.
        path: PathBuf,
        /// A file that is there.
        other: PathBuf,
    },
    /// Others can read the key.
    #[error("{}: key is readable by others (mode {mode:04o}); run chmod 600 on it, and make a new CA if it may have been read", path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The files' content is not what it should be.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The library cannot make a CA.
    #[error("cannot make a CA: {0}")]
    Generate(#[from] rcgen::Error),
}

/// Opens the CA in a directory, making one if the directory has none; without a directory it lives
/// in memory and ends with the process.
///
/// # Errors
/// See [`StoreError`].
pub fn open(
    dir: Option<&Path>,
    trust_domain: &str,
    leaf_lifetime: Duration,
    now: SystemTime,
) -> Result<Authority, StoreError> {
    let Some(dir) = dir else {
        let root = NewRoot::generate(trust_domain, now)?;
        let roots = vec![root.certificate];
        return Ok(Authority::new(&roots.clone(), root.key, roots, leaf_lifetime)?);
    };
    let [ca, crt, key] = files(dir);
    let present: Vec<&PathBuf> = [&ca, &crt, &key].into_iter().filter(|p| p.exists()).collect();
    match present[..] {
        [] => create(dir, trust_domain, now)?,
        [_, _, _] => {}
        [other, ..] => {
            let missing = [&ca, &crt, &key].into_iter().find(|path| !path.exists());
            let path = missing.unwrap_or(&ca).clone();
            return Err(StoreError::Incomplete { path, other: other.clone() });
        }
    }
    load(dir, leaf_lifetime, now)
}

/// Reads the CA in a directory.
///
/// # Errors
/// See [`StoreError`].
pub fn load(dir: &Path, leaf_lifetime: Duration, now: SystemTime) -> Result<Authority, StoreError> {
    let [ca, crt, key] = files(dir);
    let mode = fs::metadata(&key).map_err(|e| io_error(&key, e))?.permissions().mode() & 0o7777;
    // Group access is how a mounted Secret with fsGroup looks; "others" never is.
    if mode & 0o007 != 0 {
        return Err(StoreError::Exposed { path: key, mode });
    }
    let [ca_pem, crt_pem, key_pem] = [read(&ca)?, read(&crt)?, read(&key)?];
    let [ca, crt, key] = [ca, crt, key].map(|path| path.display().to_string());
    let material = Material {
        roots: Part { place: &ca, pem: &ca_pem },
        chain: Part { place: &crt, pem: &crt_pem },
        key: Part { place: &key, pem: &key_pem },
        mend: "restore it from a backup, or remove ca.crt, tls.crt and tls.key to make a new CA",
    };
    Ok(material.authority(leaf_lifetime, now)?)
}

fn files(dir: &Path) -> [PathBuf; 3] {
    ["ca.crt", "tls.crt", "tls.key"].map(|name| dir.join(name))
}

fn create(dir: &Path, trust_domain: &str, now: SystemTime) -> Result<(), StoreError> {
    let root = NewRoot::generate(trust_domain, now)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| io_error(dir, error))?;
    let certificate = pem(&root.certificate);
    // The key first: a crash in between leaves a state that is told as incomplete.
    write(&dir.join("tls.key"), 0o600, &root.key.serialize_pem())?;
    write(&dir.join("tls.crt"), 0o644, &certificate)?;
    write(&dir.join("ca.crt"), 0o644, &certificate)
}

/// Writes a new file whole or not at all.
fn write(path: &Path, mode: u32, content: &str) -> Result<(), StoreError> {
    let part = path.with_extension("part");
    let attempt = || {
        let _ = fs::remove_file(&part);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    attempt().map_err(|error| io_error(path, error))
}

/// Writes the trust anchors where proxies find them at their start.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_bundle(path: &Path, pem: &str) -> Result<(), StoreError> {
    write(path, 0o644, pem)
}

fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    fs::read(path).map_err(|error| io_error(path, error))
}

/// Looks at the files now and then, and sends what they say whenever they have changed and then stood
/// still between two looks, so that files replaced one after the other are judged together. What
/// cannot be read leaves what is in force.
pub async fn follow(
    dir: PathBuf,
    leaf_lifetime: Duration,
    clock: fn() -> SystemTime,
    seen: mpsc::Sender<Seen>,
    drain: drain::Watch,
) {
    let mut judged = stamp(&dir);
    let mut before = judged.clone();
    loop {
        tokio::select! {
            () = drain.draining() => return,
            () = tokio::time::sleep(POLL) => {}
        }
        let now = stamp(&dir);
        if now != judged && now == before {
            let says = match load(&dir, leaf_lifetime, clock()) {
                Ok(authority) => Seen::Issuer(Arc::new(authority)),
                Err(error) => Seen::Refused { version: String::new(), problem: error.to_string() },
            };
            if seen.send(says).await.is_err() {
                return;
            }
            judged.clone_from(&now);
        }
        before = now;
    }
}

/// What changes when a file is replaced or written to.
fn stamp(dir: &Path) -> Vec<Option<(SystemTime, u64, u64)>> {
    let stamp = |path: PathBuf| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len(), meta.ino()))
    };
    files(dir).map(stamp).into()
}

fn io_error(path: &Path, error: io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), error }
}
