//! Where objects come from. Every source speaks the same watch events, so the index does not know
//! whether a directory of manifests or a Kubernetes API feeds it.

use std::{fmt, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Namespace, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

pub mod manifest;

/// What a watch says.
#[derive(Debug, Clone)]
pub enum Event {
    /// The object is there, in this form.
    Apply(Object),
    /// The object is gone.
    Delete(Key),
    /// This is all that there is, of every kind; what is not in it is gone.
    Reset(Vec<Object>),
}

/// An object of one of the kinds that matter here. Cloning shares it.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A `v1` Namespace.
    Namespace(Arc<Namespace>),
    /// A `v1` Service.
    Service(Arc<Service>),
    /// A `v1` Pod.
    Pod(Arc<Pod>),
    /// An `apps/v1` Deployment.
    Deployment(Arc<Deployment>),
    /// A `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
}

/// The kinds of [`Object`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Service.
    Service,
    /// `v1` Pod.
    Pod,
    /// `apps/v1` Deployment.
    Deployment,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
}

/// What identifies an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a Namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Object {
    /// What identifies it.
    #[must_use]
    pub fn key(&self) -> Key {
        let meta = self.metadata();
        let kind = self.kind();
        let namespace = match kind {
            Kind::Namespace => String::new(),
            _ => meta.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        };
        Key { kind, namespace, name: meta.name.clone().unwrap_or_default() }
    }

    /// Whether it says the same as another; shared objects are not looked into.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let shared = match (self, other) {
            (Self::Namespace(a), Self::Namespace(b)) => Arc::ptr_eq(a, b),
            (Self::Service(a), Self::Service(b)) => Arc::ptr_eq(a, b),
            (Self::Pod(a), Self::Pod(b)) => Arc::ptr_eq(a, b),
            (Self::Deployment(a), Self::Deployment(b)) => Arc::ptr_eq(a, b),
            (Self::EndpointSlice(a), Self::EndpointSlice(b)) => Arc::ptr_eq(a, b),
            _ => return false,
        };
        shared || self == other
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Service(_) => Kind::Service,
            Self::Pod(_) => Kind::Pod,
            Self::Deployment(_) => Kind::Deployment,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
        }
    }

    /// Its metadata.
    #[must_use]
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Namespace(o) => &o.metadata,
            Self::Service(o) => &o.metadata,
            Self::Pod(o) => &o.metadata,
            Self::Deployment(o) => &o.metadata,
            Self::EndpointSlice(o) => &o.metadata,
        }
    }
}

impl Kind {
    /// As manifests write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::Deployment => "Deployment",
            Self::EndpointSlice => "EndpointSlice",
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
