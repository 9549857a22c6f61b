//! Gateway API's routes and grants, as they are written and reduced to what the index reads.
//!
//! Types of our own and not those of the crate `gateway-api`, for two reasons. Words of enumerations
//! stay as they are written: the standard wants a value that is not known reported in the route's
//! status, and a closed enumeration would refuse the whole list that it is in. And parents, backends
//! and filters are one type for all kinds of routes, as they are in the standard.

use remora_core::names::ROUTE_CONTROLLER;

use super::{Kind, Meta};

mod grant;
mod written;

pub use grant::*;
pub use written::*;

/// The API group of all of them.
pub const GROUP: &str = "gateway.networking.k8s.io";

/// A route of any kind, reduced to what the index reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Its name and annotations.
    pub meta: Meta,
    /// Which version of the specification it has.
    pub generation: i64,
    /// When it was created, in Unix seconds; 0 if unknown. The older of two wins.
    pub created: i64,
    /// What it wants to be attached to.
    pub parents: Box<[ParentRef]>,
    /// Server names; of a TLSRoute alone, since a Service takes no other host names (GEP-1294).
    pub hostnames: Box<[String]>,
    /// What it says, and so of which kind it is.
    pub rules: Rules,
    /// What our controller wrote into its status; entries of others are not kept.
    pub ours: Box<[ParentStatus]>,
}

/// The rules of a route.
#[derive(Debug, Clone, PartialEq)]
pub enum Rules {
    /// Of an HTTPRoute.
    Http(Box<[HttpRule]>),
    /// Of a GRPCRoute.
    Grpc(Box<[GrpcRule]>),
    /// Of a TLSRoute.
    Tls(Box<[StreamRule]>),
    /// Of a TCPRoute.
    Tcp(Box<[StreamRule]>),
}

/// A ReferenceGrant, reduced to what the index reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferenceGrant {
    /// Its name; it has no annotations of ours.
    pub meta: Meta,
    /// Who may refer,
    pub from: Box<[GrantFrom]>,
    /// and to what in its namespace.
    pub to: Box<[GrantTo]>,
}

impl Route {
    /// An HTTPRoute.
    #[must_use]
    pub fn http(written: &HttpRoute) -> Self {
        Self::reduced(written, |rules| Rules::Http(rules.into()))
    }

    /// A GRPCRoute.
    #[must_use]
    pub fn grpc(written: &GrpcRoute) -> Self {
        Self::reduced(written, |rules| Rules::Grpc(rules.into()))
    }

    /// A TLSRoute.
    #[must_use]
    pub fn tls(written: &TlsRoute) -> Self {
        let hostnames = written.spec.hostnames.clone().into();
        Self { hostnames, ..Self::reduced(written, |rules| Rules::Tls(rules.into())) }
    }

    /// A TCPRoute.
    #[must_use]
    pub fn tcp(written: &TcpRoute) -> Self {
        Self::reduced(written, |rules| Rules::Tcp(rules.into()))
    }

    /// Which kind of route it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.rules {
            Rules::Http(_) => Kind::HttpRoute,
            Rules::Grpc(_) => Kind::GrpcRoute,
            Rules::Tls(_) => Kind::TlsRoute,
            Rules::Tcp(_) => Kind::TcpRoute,
        }
    }

    fn reduced<R: Clone + Default>(
        written: &Written<RouteSpec<R>>,
        rules: impl FnOnce(Vec<R>) -> Rules,
    ) -> Self {
        let meta = &written.metadata;
        let ours = written.status.iter().flat_map(|status| &status.parents);
        Self {
            meta: Meta::of(meta, |_| true),
            generation: meta.generation.unwrap_or(0),
            created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            parents: written.spec.parent_refs.clone().into(),
            hostnames: [].into(),
            rules: rules(written.spec.rules.clone().unwrap_or_else(|| vec![R::default()])),
            ours: ours.filter(|entry| entry.controller_name == ROUTE_CONTROLLER).cloned().collect(),
        }
    }
}

impl From<&WrittenGrant> for ReferenceGrant {
    fn from(written: &WrittenGrant) -> Self {
        Self {
            meta: Meta::of(&written.metadata, |_| false),
            from: written.spec.from.clone().into(),
            to: written.spec.to.clone().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(controller: &str) -> Value {
        json!({"parentRef": {"name": "cart"}, "controllerName": controller, "conditions": []})
    }

    #[test]
    fn a_route_keeps_what_we_said_of_it_and_nothing_that_others_did() {
        let written: HttpRoute = serde_json::from_value(json!({
            "metadata": {"name": "r", "namespace": "shop", "generation": 3},
            "spec": {"hostnames": ["cart.example"]},
            "status": {"parents": [status("other.example/x"), status(ROUTE_CONTROLLER)]},
        }))
        .unwrap();
        let route = Route::http(&written);
        assert_eq!((route.generation, route.ours.len(), route.hostnames.len()), (3, 1, 0));
        assert_eq!(route.rules, Rules::Http([HttpRule::default()].into()), "the API's default");
    }

    #[test]
    fn words_that_nobody_knows_yet_are_read() {
        let rule = json!({"matches": [{"path": {"type": "Glob", "value": "/*"}}],
            "filters": [{"type": "Teapot", "teapot": {}}]});
        let written = json!({"metadata": {"name": "r"}, "spec": {"rules": [rule]}});
        let written: HttpRoute = serde_json::from_value(written).unwrap();
        let rules = written.spec.rules.unwrap();
        assert_eq!(rules[0].filters[0].kind, "Teapot");
    }
}
