//! Where objects come from. Every source speaks the same watch events, so the index does not know
//! whether a directory of manifests or a Kubernetes API feeds it.

use std::{fmt, sync::Arc};

use crate::interned::Interned;

pub mod kube;
pub mod manifest;
mod object;
mod pod;
pub mod route;

pub use object::{
    Annotations, Distribution, EndpointSlice, Meta, Name, Namespace, Node, SERVICE_NAME_LABEL,
    Service, ServiceKind, ServicePort, SliceEndpoint, ZONE_LABEL,
};
pub use pod::{Pod, PodPort};
use route::{ReferenceGrant, Route};

/// What a watch says.
#[derive(Debug, Clone)]
pub enum Event {
    /// The object is there, in this form.
    Apply(Object),
    /// The object is gone.
    Delete(Key),
    /// This is all that there is of one kind; what of that kind is not in it is gone.
    Replace(Kind, Vec<Object>),
    /// This is all that there is, of every kind; what is not in it is gone.
    Reset(Vec<Object>),
}

/// An object of one of the kinds that matter here, reduced to what the index reads. Cloning shares
/// it.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A `v1` Namespace.
    Namespace(Arc<Namespace>),
    /// A `v1` Node.
    Node(Arc<Node>),
    /// A `v1` Service.
    Service(Arc<Service>),
    /// A `v1` Pod.
    Pod(Arc<Pod>),
    /// A `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// A `gateway.networking.k8s.io` route of any kind.
    Route(Arc<Route>),
    /// A `gateway.networking.k8s.io` ReferenceGrant.
    ReferenceGrant(Arc<ReferenceGrant>),
}

/// The kinds of objects. A [`Kind::Deployment`] is in manifests alone: sources turn it into Pods,
/// as the cluster does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `v1` Service.
    Service,
    /// `v1` Pod.
    Pod,
    /// `apps/v1` Deployment.
    Deployment,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `gateway.networking.k8s.io` HTTPRoute.
    HttpRoute,
    /// `gateway.networking.k8s.io` GRPCRoute.
    GrpcRoute,
    /// `gateway.networking.k8s.io` TLSRoute.
    TlsRoute,
    /// `gateway.networking.k8s.io` TCPRoute.
    TcpRoute,
    /// `gateway.networking.k8s.io` ReferenceGrant.
    ReferenceGrant,
}

/// What identifies an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a Namespace and a Node.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Object {
    /// What identifies it.
    #[must_use]
    pub fn key(&self) -> Key {
        let Name { namespace, name } = self.name();
        Key { kind: self.kind(), namespace: namespace.to_string(), name: name.to_string() }
    }

    /// Shares the strings that it has in common with others. Only before anybody else has the object.
    fn intern(&mut self, strings: &mut Interned<str>) {
        match self {
            Self::Pod(pod) => Arc::get_mut(pod).into_iter().for_each(|pod| pod.intern(strings)),
            Self::Service(service) => {
                Arc::get_mut(service).into_iter().for_each(|one| one.meta.name.intern(strings));
            }
            Self::EndpointSlice(slice) => {
                Arc::get_mut(slice).into_iter().for_each(|slice| slice.intern(strings));
            }
            // There are few of the others.
            _ => {}
        }
    }

    /// What identifies it among those of its kind.
    #[must_use]
    pub fn name(&self) -> &Name {
        match self {
            Self::Namespace(o) => &o.meta.name,
            Self::Node(o) => &o.name,
            Self::Service(o) => &o.meta.name,
            Self::Pod(o) => &o.meta.name,
            Self::EndpointSlice(o) => &o.meta.name,
            Self::Route(o) => &o.meta.name,
            Self::ReferenceGrant(o) => &o.meta.name,
        }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::Service(_) => Kind::Service,
            Self::Pod(_) => Kind::Pod,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Route(o) => o.kind(),
            Self::ReferenceGrant(_) => Kind::ReferenceGrant,
        }
    }
}

impl Kind {
    /// As manifests write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::Deployment => "Deployment",
            Self::EndpointSlice => "EndpointSlice",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())?;
        if self.namespace.is_empty() {
            write!(f, " {}", self.name)
        } else {
            write!(f, " {}/{}", self.namespace, self.name)
        }
    }
}
