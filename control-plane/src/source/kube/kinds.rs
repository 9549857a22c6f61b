//! What is asked of each kind, and how little of the answer is kept.

use std::{marker::PhantomData, sync::Arc};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};

use crate::source::{
    Kind, Namespace, Node, Object, Pod,
    route::{GrpcRoute, HttpRoute, Route, TcpRoute, TlsRoute, WrittenGrant},
};

/// A kind as the API speaks of it.
pub(super) trait Watched: DeserializeOwned + Send + 'static {
    /// Which it is.
    const KIND: Kind;
    /// Where it is listed and watched in all namespaces. Of several, one for each version of the
    /// API, the newest first: the first that is there is used.
    const PATHS: &'static [&'static str];
    /// Whether a cluster may do without it (it comes with a CustomResourceDefinition): then there
    /// is none of it, and it is looked for again.
    const OPTIONAL: bool = false;
    /// Whether its metadata is all that is asked for.
    const METADATA_ONLY: bool = false;

    /// The version that the API gives it, and what the index reads of it.
    fn reduce(self) -> (Option<String>, Object);
}

/// An object as it comes out of the decoder: reduced before the next one is read, so that a page
/// never holds more than one object whole.
pub(super) struct Reduced<K> {
    pub(super) version: Option<String>,
    pub(super) object: Object,
    kind: PhantomData<K>,
}

impl<'de, K: Watched> Deserialize<'de> for Reduced<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (version, object) = K::deserialize(deserializer)?.reduce();
        Ok(Self { version, object, kind: PhantomData })
    }
}

/// A Namespace, of which annotations are all that matters.
#[derive(Deserialize)]
pub(super) struct NamespaceMeta {
    metadata: ObjectMeta,
}

/// A Node, of which labels are all that matters. Whole ones are large and change often.
#[derive(Deserialize)]
pub(super) struct NodeMeta {
    metadata: ObjectMeta,
}

impl Watched for NamespaceMeta {
    const KIND: Kind = Kind::Namespace;
    const PATHS: &'static [&'static str] = &["/api/v1/namespaces"];
    const METADATA_ONLY: bool = true;

    fn reduce(self) -> (Option<String>, Object) {
        let object = Object::Namespace(Arc::new(Namespace::from(&self.metadata)));
        (self.metadata.resource_version, object)
    }
}

impl Watched for NodeMeta {
    const KIND: Kind = Kind::Node;
    const PATHS: &'static [&'static str] = &["/api/v1/nodes"];
    const METADATA_ONLY: bool = true;

    fn reduce(self) -> (Option<String>, Object) {
        let object = Object::Node(Arc::new(Node::from(&self.metadata)));
        (self.metadata.resource_version, object)
    }
}

impl Watched for core::Service {
    const KIND: Kind = Kind::Service;
    const PATHS: &'static [&'static str] = &["/api/v1/services"];

    fn reduce(self) -> (Option<String>, Object) {
        let object = Object::Service(Arc::new((&self).into()));
        (self.metadata.resource_version, object)
    }
}

impl Watched for core::Pod {
    const KIND: Kind = Kind::Pod;
    const PATHS: &'static [&'static str] = &["/api/v1/pods"];

    fn reduce(self) -> (Option<String>, Object) {
        let object = Object::Pod(Arc::new(Pod::running(&self)));
        (self.metadata.resource_version, object)
    }
}

impl Watched for discovery::EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;
    const PATHS: &'static [&'static str] = &["/apis/discovery.k8s.io/v1/endpointslices"];

    fn reduce(self) -> (Option<String>, Object) {
        let object = Object::EndpointSlice(Arc::new((&self).into()));
        (self.metadata.resource_version, object)
    }
}

/// A TLSRoute: of the same form as a TCPRoute, but another kind.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct WatchedTls(TlsRoute);

/// A TCPRoute.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct WatchedTcp(TcpRoute);

impl Watched for HttpRoute {
    const KIND: Kind = Kind::HttpRoute;
    const PATHS: &'static [&'static str] = &[
        "/apis/gateway.networking.k8s.io/v1/httproutes",
        "/apis/gateway.networking.k8s.io/v1beta1/httproutes",
    ];
    const OPTIONAL: bool = true;

    fn reduce(self) -> (Option<String>, Object) {
        let object = Object::Route(Arc::new(Route::http(&self)));
        (self.metadata.resource_version, object)
    }
}

impl Watched for GrpcRoute {
    const KIND: Kind = Kind::GrpcRoute;
    const PATHS: &'static [&'static str] = &["/apis/gateway.networking.k8s.io/v1/grpcroutes"];
    const OPTIONAL: bool = true;

    fn reduce(self) -> (Option<String>, Object) {
        let object = Object::Route(Arc::new(Route::grpc(&self)));
        (self.metadata.resource_version, object)
    }
}

impl Watched for WatchedTls {
    const KIND: Kind = Kind::TlsRoute;
    const PATHS: &'static [&'static str] = &[
        "/apis/gateway.networking.k8s.io/v1/tlsroutes",
        "/apis/gateway.networking.k8s.io/v1alpha3/tlsroutes",
        "/apis/gateway.networking.k8s.io/v1alpha2/tlsroutes",
    ];
    const OPTIONAL: bool = true;

    fn reduce(self) -> (Option<String>, Object) {
        let object = Object::Route(Arc::new(Route::tls(&self.0)));
        (self.0.metadata.resource_version, object)
    }
}

impl Watched for WatchedTcp {
    const KIND: Kind = Kind::TcpRoute;
    const PATHS: &'static [&'static str] = &[
        "/apis/gateway.networking.k8s.io/v1/tcproutes",
        "/apis/gateway.networking.k8s.io/v1alpha2/tcproutes",
    ];
    const OPTIONAL: bool = true;

    fn reduce(self) -> (Option<String>, Object) {
        let object = Object::Route(Arc::new(Route::tcp(&self.0)));
        (self.0.metadata.resource_version, object)
    }
}

impl Watched for WrittenGrant {
    const KIND: Kind = Kind::ReferenceGrant;
    const PATHS: &'static [&'static str] = &[
        "/apis/gateway.networking.k8s.io/v1/referencegrants",
        "/apis/gateway.networking.k8s.io/v1beta1/referencegrants",
    ];
    const OPTIONAL: bool = true;

    fn reduce(self) -> (Option<String>, Object) {
        let object = Object::ReferenceGrant(Arc::new((&self).into()));
        (self.metadata.resource_version, object)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_service_keeps_its_session_affinity() {
        let wire = serde_json::json!({"metadata": {"name": "cart", "resourceVersion": "7"},
            "spec": {"sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}});
        let reduced: Reduced<core::Service> = serde_json::from_value(wire).unwrap();
        let Object::Service(service) = reduced.object else { panic!() };
        assert_eq!(service.client_ip, Some(Duration::from_secs(60)));
        assert_eq!(reduced.version.as_deref(), Some("7"));
    }
}
