//! What can be asked, and what is answered. Answers are shared by reference count and never change
//! once given out.

use std::{net::SocketAddr, sync::Arc};

use remora_core::{authority::Authority, settings::DefaultPolicy, spiffe::SpiffeId};

use super::{Name, policy::Policy, protocol::Protocol, routes::rule::SharedRoutes};
use crate::source::Distribution;

/// What a proxy asks about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// An address and port as the application dialled it.
    Address(SocketAddr),
    /// A host name in lower case and a port as the application named them.
    Authority(Box<str>, u16),
    /// The caller's own pod.
    Inbound,
}

impl Target {
    /// Parses `host:port`; without a port it is 80. A literal address is an address.
    #[must_use]
    pub fn authority(authority: &str) -> Option<Self> {
        Some(match authority.parse().ok()? {
            Authority::Address(address) => Self::Address(address),
            Authority::Name(host, port) => Self::Authority(host, port),
        })
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caller {
    /// Namespace of the caller's pod; short names are looked up in it.
    pub namespace: String,
    /// The caller's pod.
    pub pod: String,
    /// Its node; empty if unknown.
    pub node: String,
    /// Its zone; empty if unknown.
    pub zone: String,
}

/// What a target is.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// A port of a Service.
    Service(Arc<Snapshot>),
    /// A port of one pod.
    Pod(Arc<PodPort>),
    /// Nothing known here.
    NotOurs,
    /// A Service's address, but none of its ports; says which there are.
    Refused(Arc<str>),
    /// What holds for the caller's own ports.
    Inbound(Arc<Inbound>),
}

/// A Service's port at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// All but the endpoints; changes seldom.
    pub head: Arc<Head>,
    /// All that can take traffic, by address. Unchanged ones are the same `Arc` from snapshot to
    /// snapshot.
    pub endpoints: Arc<[Arc<Endpoint>]>,
}

impl Snapshot {
    /// Whether all but the endpoints is the same; mostly told by the pointer, since a policy and
    /// routes can be long.
    #[must_use]
    pub fn has_head_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.head, &other.head) || self.head == other.head
    }
}

impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        self.has_head_of(other) && self.endpoints == other.endpoints
    }
}

/// What is said of a Service's port beside its endpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// The Service.
    pub service: Name,
    /// The port's number.
    pub port: u16,
    /// The port's name; empty if it has none.
    pub port_name: String,
    /// What is spoken.
    pub protocol: Protocol,
    /// What the annotations ask for.
    pub policy: Policy,
    /// Only endpoints on the caller's node count (`internalTrafficPolicy: Local`).
    pub node_local: bool,
    /// Endpoints near the caller are preferred.
    pub distribution: Distribution,
    /// What its routes say; `None`: there are none.
    pub routes: Option<SharedRoutes>,
}

/// One address that serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What is dialled.
    pub address: SocketAddr,
    /// What the peer must prove; `None`: it is not in the mesh.
    pub identity: Option<Arc<SpiffeId>>,
    /// Its pod, if known.
    pub pod: Option<Name>,
    /// `Deployment/orders`; empty if unknown.
    pub owner: Arc<str>,
    /// Its node; empty if unknown.
    pub node: Arc<str>,
    /// Its zone; empty if unknown.
    pub zone: Arc<str>,
    /// Zones it should serve; empty: all.
    pub for_zones: Box<[Box<str>]>,
}

/// A port of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPort {
    /// The pod's address.
    pub endpoint: Endpoint,
    /// What is spoken.
    pub protocol: Protocol,
}

/// What holds for a pod's own ports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inbound {
    /// Who may call.
    pub default_policy: DefaultPolicy,
    /// Ports of which something is known, by number.
    pub ports: Vec<InboundPort>,
}

/// One port of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundPort {
    /// Its number.
    pub port: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// Paths that kubelet probes.
    pub probe_paths: Vec<String>,
}
