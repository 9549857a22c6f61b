//! Where the proxies are, and how they are asked: on this machine or in a cluster, by the same
//! questions.
//!
//! - `local` pods that are network namespaces, `kubernetes` pods of a cluster;
//! - `forward` and `websocket` a connection to a pod's loopback by way of the API server;
//! - `ask` questions to one program.

mod ask;
mod forward;
mod kubernetes;
mod local;
mod websocket;

use std::{fmt, net::SocketAddr, path::PathBuf};

use futures_util::{StreamExt, stream};
use serde::{Serialize, Serializer, ser::SerializeStruct};

pub(crate) use self::{
    ask::{Asker, Streamed, Unanswered},
    kubernetes::Kubernetes,
    local::Local,
};
use super::{error::Error, place::Place};

/// Programs that are asked at a time.
pub(crate) const AT_A_TIME: usize = 16;
/// Proxies that are asked in all.
pub(crate) const MOST: usize = 1000;

/// A mesh whose programs can be asked.
pub(crate) enum Mesh {
    /// Of `remora up`.
    Local(Local),
    /// In a cluster.
    Kubernetes(Box<Kubernetes>),
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// A program that can be asked: a pod's proxy, or a replica of the control plane.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Member {
    /// Namespace of its pod.
    pub(crate) namespace: String,
    /// Its pod.
    pub(crate) pod: String,
    /// How its admin port is reached.
    pub(crate) way: Way,
}

/// How an admin port is reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// An address inside the network namespace of that file.
    Network {
        /// Stands for the namespace.
        file: PathBuf,
        /// The admin port there.
        address: SocketAddr,
    },
    /// By port-forward.
    Forward {
        /// The admin port.
        port: u16,
    },
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)
    }
}

/// What several programs answered.
#[derive(Debug)]
pub(crate) struct Answers<T> {
    /// Of each that did, in the order of their names.
    pub(crate) given: Vec<(Member, T)>,
    /// Those that did not.
    pub(crate) silent: Vec<Silent>,
}

/// A program that could not be asked; in JSON `{namespace, pod, why}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Silent {
    pub(crate) member: Member,
    pub(crate) why: Unanswered,
}

impl Serialize for Silent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Silent", 3)?;
        fields.serialize_field("namespace", &self.member.namespace)?;
        fields.serialize_field("pod", &self.member.pod)?;
        fields.serialize_field("why", &self.why.to_string())?;
        fields.end()
    }
}

/// The proxies that are meant, and how many more there are.
#[derive(Debug, Default)]
pub(crate) struct Proxies {
    /// At most [`MOST`].
    pub(crate) members: Vec<Member>,
    /// Not asked, since they are too many.
    pub(crate) left_out: usize,
}

impl Mesh {
    /// The cluster that the command line names.
    ///
    /// # Errors
    /// Where there is no way to one.
    pub(super) async fn in_kubernetes(place: &Place) -> Result<Self, Error> {
        let cluster = Kubernetes::open(place.kubeconfig.as_deref(), place.context.as_deref()).await;
        Ok(Self::Kubernetes(Box::new(cluster.map_err(|error| place.no_cluster(error))?)))
    }

    /// What people call it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Local(local) => format!("the mesh {} on this machine", local.name),
            Self::Kubernetes(cluster) => {
                format!("the cluster of context {} ({})", cluster.context, cluster.url)
            }
        }
    }

    /// The proxies that the command line means.
    ///
    /// # Errors
    /// Where there are none, or they cannot be listed.
    pub(crate) async fn proxies(&self, place: &Place) -> Result<Proxies, Error> {
        let (namespace, pod) = place.wanted();
        let mut members = match self {
            Self::Local(local) => local.proxies(),
            Self::Kubernetes(cluster) => cluster.proxies(namespace).await?.items,
        };
        members.retain(|member| {
            namespace.is_none_or(|wanted| member.namespace == wanted)
                && pod.is_none_or(|wanted| member.pod == wanted)
        });
        members.sort();
        if members.is_empty() {
            return Err(Error::NoProxies { mesh: self.name(), wanted: place.described() });
        }
        let left_out = members.len().saturating_sub(MOST);
        members.truncate(MOST);
        Ok(Proxies { members, left_out })
    }

    /// Replicas of the control plane.
    ///
    /// # Errors
    /// Where they cannot be listed.
    pub(crate) async fn control_planes(&self) -> Result<Vec<Member>, Error> {
        Ok(match self {
            Self::Local(local) => vec![local.control_plane()],
            Self::Kubernetes(cluster) => cluster.control_planes().await?,
        })
    }

    /// Connections to all of these, each made when it is needed.
    pub(crate) fn askers(&self, members: &[Member]) -> Vec<Asker<'_>> {
        members.iter().map(|member| Asker::new(self, member.clone())).collect()
    }
}

/// Asks all of them, [`AT_A_TIME`]; whoever does not answer does not fail the rest.
pub(crate) async fn each<'m, T>(
    askers: &mut [Asker<'m>],
    question: impl AsyncFn(&mut Asker<'m>) -> Result<T, Unanswered>,
) -> Answers<T> {
    let question = &question;
    let asked = stream::iter(askers.iter_mut()).map(|asker| async move {
        let answer = question(asker).await;
        (asker.member.clone(), answer)
    });
    let mut all: Vec<_> = asked.buffer_unordered(AT_A_TIME).collect().await;
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let (mut given, mut silent) = (Vec::new(), Vec::new());
    for (member, answer) in all {
        match answer {
            Ok(answer) => given.push((member, answer)),
            Err(why) => silent.push(Silent { member, why }),
        }
    }
    Answers { given, silent }
}
