//! What can keep these commands from saying anything.

use std::{io, path::PathBuf};

use super::mesh::Silent;
use crate::{
    check::{api::Unread, connect},
    up,
};

/// Why a command has nothing to say: what, and the mend. Exit status 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The mesh of this machine cannot be entered.
    #[error("{0}")]
    Local(#[from] up::error::Error),
    /// No way to a cluster.
    #[error("{}{source}", if *.asked { "no way to a cluster: " } else {
        "no mesh runs on this machine (start one with `remora up DIR`), and there is no way to a \
         cluster: "
    })]
    NoCluster {
        /// Why.
        source: connect::Error,
        /// Whether a cluster was asked for.
        asked: bool,
    },
    /// The cluster does not say which pods there are.
    #[error("the pods of the cluster cannot be listed: {0}")]
    Unlisted(#[from] Unread),
    /// Nobody to ask.
    #[error(
        "no proxy runs{wanted}, in {mesh}; see that the namespace has the annotation \
         remora.io/inject=enabled and that its pods were started since"
    )]
    NoProxies {
        /// Where was looked.
        mesh: String,
        /// What for, in words.
        wanted: String,
    },
    /// Nobody answered.
    #[error("no proxy answers; {}", .silent.first().map_or_else(String::new, |first| {
        format!("{}: {}", first.member, first.why)
    }))]
    Silence {
        /// All of them.
        silent: Vec<Silent>,
    },
    /// Not known to anybody who answered.
    #[error("{0}")]
    Unknown(String),
    /// Nobody to print to.
    #[error("cannot print: {0}")]
    Print(#[source] io::Error),
    /// A file that cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No runtime.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
}
