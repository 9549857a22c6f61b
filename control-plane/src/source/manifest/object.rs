//! An object as a manifest holds it: whole, because `remora up` runs what it says.

use std::sync::Arc;

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Namespace, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::source::{
    self, Key, Kind,
    route::{GrpcRoute, HttpRoute, Route, TcpRoute, TlsRoute, WrittenGrant},
};

/// An object of one of the kinds that are read from manifests. Cloning shares it.
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
    /// A `gateway.networking.k8s.io` HTTPRoute.
    HttpRoute(Arc<HttpRoute>),
    /// A `gateway.networking.k8s.io` GRPCRoute.
    GrpcRoute(Arc<GrpcRoute>),
    /// A `gateway.networking.k8s.io` TLSRoute.
    TlsRoute(Arc<TlsRoute>),
    /// A `gateway.networking.k8s.io` TCPRoute.
    TcpRoute(Arc<TcpRoute>),
    /// A `gateway.networking.k8s.io` ReferenceGrant.
    ReferenceGrant(Arc<WrittenGrant>),
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

    /// What the index reads of it. A Deployment has become Pods by then.
    #[must_use]
    pub fn slim(&self) -> Option<source::Object> {
        Some(match self {
            Self::Namespace(o) => source::Object::Namespace(Arc::new((&**o).into())),
            Self::Service(o) => source::Object::Service(Arc::new((&**o).into())),
            Self::Pod(o) => source::Object::Pod(Arc::new(source::Pod::described(o))),
            Self::EndpointSlice(o) => source::Object::EndpointSlice(Arc::new((&**o).into())),
            Self::HttpRoute(o) => source::Object::Route(Arc::new(Route::http(o))),
            Self::GrpcRoute(o) => source::Object::Route(Arc::new(Route::grpc(o))),
            Self::TlsRoute(o) => source::Object::Route(Arc::new(Route::tls(o))),
            Self::TcpRoute(o) => source::Object::Route(Arc::new(Route::tcp(o))),
            Self::ReferenceGrant(o) => source::Object::ReferenceGrant(Arc::new((&**o).into())),
            Self::Deployment(_) => return None,
        })
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
            Self::HttpRoute(_) => Kind::HttpRoute,
            Self::GrpcRoute(_) => Kind::GrpcRoute,
            Self::TlsRoute(_) => Kind::TlsRoute,
            Self::TcpRoute(_) => Kind::TcpRoute,
            Self::ReferenceGrant(_) => Kind::ReferenceGrant,
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
            Self::HttpRoute(o) => &o.metadata,
            Self::GrpcRoute(o) => &o.metadata,
            Self::TlsRoute(o) | Self::TcpRoute(o) => &o.metadata,
            Self::ReferenceGrant(o) => &o.metadata,
        }
    }
}
