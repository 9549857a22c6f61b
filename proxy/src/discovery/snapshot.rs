//! The last known answers in a file, so that a fresh proxy can start without a control plane.
//!
//! Identity is not in it. The content is this version's own and is thrown away where it cannot be
//! read: it only saves a wait.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use prost::Message;
use remora_proto::v1 as pb;

use super::{
    cache::{Discovery, Target},
    inbound::InboundPolicy,
    wire,
};

/// Shortest time between two writes.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// Largest file that is read.
const MAX_BYTES: u64 = 64 << 20;

/// Keeps a copy of the answers as they were told and writes it now and then.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    answers: BTreeMap<Target, pb::Update>,
    inbound: Option<pb::InboundPolicy>,
    changed: bool,
}

/// A snapshot that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("snapshot {}: {problem}", path.display())]
pub struct SnapshotError {
    path: PathBuf,
    #[source]
    problem: io::Error,
}

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(message, repeated, tag = "1")]
    answers: Vec<Saved>,
    #[prost(message, optional, tag = "2")]
    inbound: Option<pb::InboundPolicy>,
}

#[derive(Clone, PartialEq, Message)]
struct Saved {
    #[prost(message, optional, tag = "1")]
    address: Option<pb::SocketAddress>,
    #[prost(string, tag = "2")]
    authority: String,
    #[prost(message, optional, tag = "3")]
    update: Option<pb::Update>,
}

impl Snapshot {
    /// Reads the file, if it is there, and puts its answers in force.
    ///
    /// # Errors
    /// Where the file is there but cannot be read; start with [`Snapshot::empty`] then.
    pub fn load(path: &Path, discovery: &Discovery, now: Instant) -> Result<Self, SnapshotError> {
        let fail = |problem| SnapshotError { path: path.to_owned(), problem };
        let mut snapshot = Self::empty(path);
        let bytes = match read_bounded(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(snapshot),
            other => other.map_err(fail)?,
        };
        let file = File::decode(&*bytes)
            .map_err(|error| fail(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        for saved in file.answers {
            let Some((target, update)) = saved.parse() else { continue };
            match discovery.restore(&target, &update, now) {
                Ok(()) => drop(snapshot.answers.insert(target, update)),
                Err(error) => tracing::warn!(%target, %error, "answer in the snapshot skipped"),
            }
        }
        if let Some(inbound) = file.inbound
            && let Ok(policy) = InboundPolicy::try_from(&inbound)
        {
            discovery.set_inbound(policy);
            snapshot.inbound = Some(inbound);
        }
        Ok(snapshot)
    }

    /// Nothing yet; will be written to `path`.
    #[must_use]
    pub fn empty(path: &Path) -> Self {
        Self { path: path.to_owned(), answers: BTreeMap::new(), inbound: None, changed: false }
    }

    pub(super) fn put(&mut self, target: &Target, update: &pb::Update) {
        self.answers.insert(target.clone(), update.clone());
        self.changed = true;
    }

    pub(super) fn put_inbound(&mut self, policy: &pb::InboundPolicy) {
        self.inbound = Some(policy.clone());
        self.changed = true;
    }

    pub(super) fn change(&mut self, target: &Target, delta: &pb::EndpointsDelta) {
        let Some(pb::Update { answer: Some(pb::update::Answer::Service(service)), .. }) =
            self.answers.get_mut(target)
        else {
            return;
        };
        let replaced = |e: &pb::Endpoint| {
            let is = |other: &pb::SocketAddress| e.address.as_ref() == Some(other);
            delta.remove.iter().any(is)
                || delta.upsert.iter().any(|new| new.address.as_ref().is_some_and(is))
        };
        service.endpoints.retain(|endpoint| !replaced(endpoint));
        service.endpoints.extend(delta.upsert.iter().cloned());
        self.changed = true;
    }

    pub(super) fn forget(&mut self, target: &Target) {
        self.changed |= self.answers.remove(target).is_some();
    }

    /// Writes the file where something changed since the last time: beside it first, then renamed,
    /// so that a reader sees the old or the new one, never a half.
    ///
    /// # Errors
    /// Where the directory is gone, full or not ours; tried again on the next change.
    pub async fn save(&mut self) -> Result<(), SnapshotError> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        let answers = self.answers.iter().map(|(target, update)| Saved::new(target, update));
        let file = File { answers: answers.collect(), inbound: self.inbound.clone() };
        let beside = self.path.with_extension("tmp");
        let written = async {
            tokio::fs::write(&beside, file.encode_to_vec()).await?;
            tokio::fs::rename(&beside, &self.path).await
        };
        written.await.map_err(|problem| SnapshotError { path: self.path.clone(), problem })
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let length = std::fs::metadata(path)?.len();
    if length > MAX_BYTES {
        let problem = format!("{length} bytes are more than {MAX_BYTES}; delete it");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    std::fs::read(path)
}

impl Saved {
    fn new(target: &Target, update: &pb::Update) -> Self {
        let update = Some(update.clone());
        match target {
            Target::Address(address) => {
                Self { address: Some(wire::to_wire(*address)), authority: String::new(), update }
            }
            Target::Authority(authority) => {
                Self { address: None, authority: authority.clone(), update }
            }
        }
    }

    fn parse(self) -> Option<(Target, pb::Update)> {
        let target = match self.address {
            Some(address) => {
                Target::Address(wire::address("snapshot.address", Some(&address)).ok()?)
            }
            None => Target::Authority(self.authority),
        };
        Some((target, self.update?))
    }
}
