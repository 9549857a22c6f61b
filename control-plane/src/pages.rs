//! The admin server's own pages: `/services`, `/proxies`, `/why-endpoint` and the dashboard.

use std::sync::Arc;

use axum::{Json, Router, extract::State as Extract, middleware, routing::get};
use remora_core::admin::{self, Admin};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    dashboard::{self, Dashboard},
    discovery::{Proxy, State},
    index::answer::Snapshot,
    why_endpoint,
};

/// A Service's port.
#[derive(Debug, Serialize)]
struct Service {
    namespace: String,
    name: String,
    port: u16,
    protocol: String,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Serialize)]
struct Endpoint {
    address: String,
    namespace: Option<String>,
    pod: Option<String>,
    identity: Option<String>,
}

/// The common routes and ours.
pub(crate) fn router(admin: Admin, dashboard: Arc<Dashboard>) -> Router {
    let (state, clock) = (Arc::clone(&dashboard.state), dashboard.clock);
    let why = why_endpoint::View { state: Arc::clone(&state), clock };
    let pages = Router::new()
        .route("/services", get(services))
        .route("/proxies", get(proxies))
        .with_state(Arc::clone(&state))
        .merge(Router::new().route("/why-endpoint", get(why_endpoint::page)).with_state(why))
        .merge(dashboard::router(dashboard));
    let refresh = middleware::from_fn(move |request, next: middleware::Next| {
        let oldest =
            state.proxies(Instant::now()).iter().map(|p| p.behind_seconds).fold(0., f64::max);
        state.metrics.oldest_unacked.set(oldest);
        next.run(request)
    });
    admin::router(admin).layer(refresh).merge(pages)
}

async fn services(Extract(state): Extract<Arc<State>>) -> Json<Vec<Service>> {
    let mut all: Vec<Service> = state.read(|index| index.snapshots().map(|s| service(s)).collect());
    all.sort_by(|a, b| (&a.namespace, &a.name, a.port).cmp(&(&b.namespace, &b.name, b.port)));
    Json(all)
}

async fn proxies(Extract(state): Extract<Arc<State>>) -> Json<Vec<Proxy>> {
    Json(state.proxies(Instant::now()))
}

fn service(snapshot: &Snapshot) -> Service {
    let head = &snapshot.head;
    Service {
        namespace: head.service.namespace.to_string(),
        name: head.service.name.to_string(),
        port: head.port,
        protocol: format!("{:?}", head.protocol).to_ascii_lowercase(),
        endpoints: snapshot
            .endpoints
            .iter()
            .map(|endpoint| Endpoint {
                address: endpoint.address.to_string(),
                namespace: endpoint.pod.as_ref().map(|pod| pod.namespace.to_string()),
                pod: endpoint.pod.as_ref().map(|pod| pod.name.to_string()),
                identity: endpoint.identity.as_ref().map(ToString::to_string),
            })
            .collect(),
    }
}
