//! The proxy's admin HTTP, beside what every program has ([`remora_core::admin`]).

mod decisions;
mod figures;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::{ConnectInfo, State},
    http::{HeaderMap, StatusCode, Uri, header},
    routing::{get, post},
};
use remora_core::admin::Admin;
use serde_json::{Value, json};

use crate::{
    config::Args,
    discovery::{Discovery, Resolution},
    metrics::Metrics,
    probe::{Failure, Prober},
    sight::Sight,
    tls::identity::Identity,
};

/// What the routes show and do.
#[derive(Debug, Clone)]
pub struct View {
    /// Answers of the control plane.
    pub discovery: Discovery,
    /// Certificate and roots.
    pub identity: Identity,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What the proxy was started with.
    pub args: Arc<Args>,
    /// What happened to requests.
    pub sight: Arc<Sight>,
    /// Begins the drain; the process goes on.
    pub drain: remora_core::drain::Watch,
    /// Ends the process, after a drain.
    pub shutdown: tokio_util::sync::CancellationToken,
    /// Probes in the application's stead.
    pub prober: Prober,
}

/// All routes.
pub fn router(admin: Admin, view: View) -> Router {
    let own = Router::new()
        .route("/config", get(config))
        .route("/services", get(services))
        .route("/endpoints", get(figures::endpoints))
        .route("/inbound", get(figures::inbound))
        .route("/events", get(figures::events))
        .route("/certs", get(certs))
        .route("/decisions", get(decisions::last))
        .route("/tap", get(decisions::tap))
        .route("/drain", post(drain))
        .route("/shutdown", post(shutdown))
        .route("/probe/{container}/{kind}", get(probe))
        .with_state(view);
    remora_core::admin::router(admin).merge(own)
}

async fn config(State(view): State<View>) -> Json<Value> {
    let args = &view.args;
    let status = view.discovery.status();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pod": { "namespace": args.pod_namespace, "name": args.pod_name, "ips": args.pod_ips,
                 "node": args.node, "zone": args.zone },
        "listeners": { "outbound": args.outbound_listen, "inbound": args.inbound_listen,
                       "admin": args.admin_listen },
        "control_plane": { "address": args.control_plane, "connected": status.connected,
                           "error": status.error.as_deref() },
        "shutdown_grace_period_s": args.shutdown_grace_period.as_secs(),
    }))
}

async fn certs(State(view): State<View>) -> Json<Value> {
    let Some(material) = view.identity.current() else {
        return Json(json!({ "identity": null, "refreshes": view.identity.refreshes() }));
    };
    let certificate = material.certificate();
    Json(json!({
        "identity": material.id().as_str(),
        "not_before": certificate.not_before.as_secs(),
        "not_after": certificate.not_after.as_secs(),
        "serial": certificate.serial,
        "refreshes": view.identity.refreshes(),
        "roots": material.bundle().roots().len(),
    }))
}

async fn services(State(view): State<View>) -> Json<Value> {
    let all = view.discovery.all();
    let rows = all.iter().map(|(target, resolution)| match resolution {
        None => json!({ "target": target.to_string(), "kind": "unknown" }),
        Some(Resolution::Service(service)) => {
            let state = service.state_full();
            let routes: Vec<&str> = state.routes.iter().map(|route| &*route.name).collect();
            let streams: Vec<&str> = state.stream_routes.iter().map(|route| &*route.name).collect();
            json!({ "target": target.to_string(), "kind": "service", "service": service.id.to_string(),
                    "protocol": state.protocol.as_str(), "endpoints": state.endpoints.len(),
                    "version": state.version, "policy": format!("{:?}", state.policy),
                    "routes": routes, "stream_routes": streams })
        }
        Some(Resolution::Pod(pod)) => {
            json!({ "target": target.to_string(), "kind": "pod", "pod": pod.endpoint.pod,
                    "protocol": pod.protocol.as_str() })
        }
        Some(Resolution::NotOurs) => json!({ "target": target.to_string(), "kind": "not-ours" }),
        Some(Resolution::Refused(why)) => {
            json!({ "target": target.to_string(), "kind": "refused", "why": &**why })
        }
    });
    Json(json!({ "services": rows.collect::<Vec<_>>() }))
}

async fn probe(State(view): State<View>, uri: Uri, headers: HeaderMap) -> (StatusCode, String) {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    match view.prober.run(uri.path(), agent).await {
        Ok(()) => (StatusCode::OK, "passed\n".to_owned()),
        Err(failure) => {
            let status = match failure {
                Failure::Unknown => StatusCode::NOT_FOUND,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            };
            (status, format!("{failure}\n"))
        }
    }
}

// What changes the proxy is accepted from its own pod only: who can reach the pod must not be able
// to stop it.

async fn drain(
    State(view): State<View>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
) -> (StatusCode, &'static str) {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "drain is accepted from loopback only\n");
    }
    view.drain.start();
    (StatusCode::ACCEPTED, "draining\n")
}

async fn shutdown(
    State(view): State<View>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
) -> (StatusCode, &'static str) {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "shutdown is accepted from loopback only\n");
    }
    view.shutdown.cancel();
    (StatusCode::ACCEPTED, "shutting down\n")
}
