//! The CA's files: `ca.crt` (roots), `tls.crt` (the issuer's chain), `tls.key`. The same names as
//! in a Secret of type kubernetes.io/tls, so that either can be mounted here.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::ca::{Authority, NewRoot, expiry};

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
    /// A file's content is not what it should be.
    #[error("{}: {problem}; restore it from a backup, or remove ca.crt, tls.crt and tls.key to make a new CA", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The issuer has run out.
    #[error("{}: expired {ago} s ago; put a new CA in its place, or remove ca.crt, tls.crt and tls.key to make one", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// Seconds since it ran out.
        ago: u64,
    },
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
    let [ca, crt, key] = ["ca.crt", "tls.crt", "tls.key"].map(|name| dir.join(name));
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
    load(&ca, &crt, &key, leaf_lifetime, now)
}

fn load(
    ca: &Path,
    crt: &Path,
    key: &Path,
    leaf_lifetime: Duration,
    now: SystemTime,
) -> Result<Authority, StoreError> {
    let roots = certificates(ca)?;
    let issuers = certificates(crt)?;
    let mode = fs::metadata(key).map_err(|e| io_error(key, e))?.permissions().mode() & 0o7777;
    // Group access is how a mounted Secret with fsGroup looks; "others" never is.
    if mode & 0o007 != 0 {
        return Err(StoreError::Exposed { path: key.to_owned(), mode });
    }
    let pem = fs::read_to_string(key).map_err(|e| io_error(key, e))?;
    let pair = KeyPair::from_pem(&pem)
        .map_err(|_| corrupt(key, "no private key in PKCS #8 PEM".to_owned()))?;
    let (_, own) = x509_parser::parse_x509_certificate(&issuers[0])
        .map_err(|_| corrupt(crt, "no certificate".to_owned()))?;
    if own.public_key().raw != pair.subject_public_key_info() {
        return Err(corrupt(key, format!("is not the key of {}", crt.display())));
    }
    if !own.is_ca() {
        return Err(corrupt(crt, "is no CA certificate".to_owned()));
    }
    for (path, certificate) in issuers.iter().map(|c| (crt, c)).chain(roots.iter().map(|c| (ca, c)))
    {
        let expires = expiry(certificate).ok_or_else(|| corrupt(path, "no expiry".to_owned()))?;
        if let Ok(ago) = now.duration_since(expires) {
            return Err(StoreError::Expired { path: path.to_owned(), ago: ago.as_secs() });
        }
    }
    if !leads_to(&issuers, &roots) {
        return Err(corrupt(crt, format!("was not issued by a root in {}", ca.display())));
    }
    Authority::new(&issuers, pair, roots, leaf_lifetime).map_err(|e| corrupt(crt, e.to_string()))
}

/// Whether each certificate is signed by the next, and the last is a root or signed by one.
fn leads_to(issuers: &[CertificateDer<'static>], roots: &[CertificateDer<'static>]) -> bool {
    let signed = |child: &CertificateDer<'_>, parent: &CertificateDer<'_>| {
        let (Ok((_, child)), Ok((_, parent))) = (
            x509_parser::parse_x509_certificate(child),
            x509_parser::parse_x509_certificate(parent),
        ) else {
            return false;
        };
        child.verify_signature(Some(parent.public_key())).is_ok()
    };
    issuers.windows(2).all(|pair| signed(&pair[0], &pair[1]))
        && issuers
            .last()
            .is_some_and(|last| roots.iter().any(|root| root == last || signed(last, root)))
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
pub fn write_bundle(path: &Path, authority: &Authority) -> Result<(), StoreError> {
    let text: String = authority.roots().iter().map(pem).collect();
    write(path, 0o644, &text)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let bytes = fs::read(path).map_err(|error| io_error(path, error))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let all = all.map_err(|_| corrupt(path, "not PEM".to_owned()))?;
    if all.is_empty() {
        return Err(corrupt(path, "no certificate in it".to_owned()));
    }
    if all.iter().any(|certificate| x509_parser::parse_x509_certificate(certificate).is_err()) {
        return Err(corrupt(path, "not an X.509 certificate".to_owned()));
    }
    Ok(all)
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", certificate.as_ref()))
}

fn io_error(path: &Path, error: io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), error }
}

fn corrupt(path: &Path, problem: String) -> StoreError {
    StoreError::Corrupt { path: path.to_owned(), problem }
}
