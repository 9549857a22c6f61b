//! What can keep `up` and `exec` from doing their work.

use std::{io, path::PathBuf};

/// Why `up` or `exec` stopped: what, where, and the mend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses a namespace.
    #[error("this machine does not allow {what} ({errno}); {mend}")]
    Namespaces {
        /// Which namespaces.
        what: &'static str,
        /// The kernel's answer.
        errno: nix::errno::Errno,
        /// How to allow it.
        mend: String,
    },
    /// A step inside the stage failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// The step.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Links, addresses or routes.
    #[error("cannot {what}: {problem}")]
    Network {
        /// The step.
        what: String,
        /// The kernel's answer.
        problem: String,
    },
    /// The same name is up already.
    #[error(
        "`remora up` is already running under the name {name:?}; stop it, or choose another name with --name"
    )]
    Running {
        /// Its name.
        name: String,
    },
    /// A directory that somebody else could have planted.
    #[error("{} belongs to another user; remove it, or set XDG_RUNTIME_DIR", path.display())]
    ForeignDirectory {
        /// Which.
        path: PathBuf,
    },
    /// A name that cannot be a directory's.
    #[error("{name:?} is no name for a mesh: use letters, digits, - and _, at most 32 of them")]
    Name {
        /// What was given.
        name: String,
    },
    /// The manifests cannot be used; one line for each problem.
    #[error("{}", .0.join("\nremora: "))]
    Manifests(Vec<String>),
    /// Nothing to enter.
    #[error("no mesh is running{}; start one with `remora up DIR`", .name.as_ref().map_or_else(String::new, |n| format!(" under the name {n:?}")))]
    NotRunning {
        /// The name asked for.
        name: Option<String>,
    },
    /// More than one to enter.
    #[error("several meshes are running: {}; choose one with --name", .0.join(", "))]
    Several(Vec<String>),
    /// Not there.
    #[error("no pod {pod:?} in namespace {namespace:?}; there are: {}", if .known.is_empty() { "none".to_owned() } else { .known.join(", ") })]
    NoPod {
        /// Asked for.
        namespace: String,
        /// Asked for.
        pod: String,
        /// `namespace/pod` of those that exist.
        known: Vec<String>,
    },
    /// Not there.
    #[error("pod {pod} has no container {container:?}; it has: {}", .known.join(", "))]
    NoContainer {
        /// The pod.
        pod: String,
        /// Asked for.
        container: String,
        /// Those that exist.
        known: Vec<String>,
    },
    /// Interception or Service addresses could not be set up.
    #[error("interception: {0}")]
    Mesh(String),
    /// `--publish` of what the manifests do not have.
    #[error("--publish {publish}: {problem}; there are: {}", if .known.is_empty() { "none".to_owned() } else { .known.join(", ") })]
    NoTarget {
        /// What was asked for.
        publish: String,
        /// What is not there.
        problem: String,
        /// Those that exist.
        known: Vec<String>,
    },
    /// An address of this machine that cannot be listened on.
    #[error("--publish {publish}: {problem}")]
    Listen {
        /// What was asked for.
        publish: String,
        /// Why, and the mend.
        problem: String,
    },
    /// `--publish` that cannot be read.
    #[error("--publish {text:?}: {problem}; use for example 127.0.0.1:8080=web.shop:80")]
    Publish {
        /// What was given.
        text: String,
        /// What is wrong.
        problem: String,
    },
}

/// Puts a name to a failed system call.
pub trait Doing<T> {
    /// `cannot {what}: …`
    ///
    /// # Errors
    /// The one it was called on, with its name.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Io { what: what(), source: source.into() })
    }
}
