//! The base of every program's admin HTTP server: `/live`, `/ready`, `/metrics`, `PUT /log-level`.
//!
//! A program adds its own routes to [`router`] and hands the result to [`serve`].

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::{drain, telemetry::LogHandle};

/// What the common routes need.
#[derive(Clone)]
pub struct Admin {
    /// `Ok` when the program can do its work; otherwise what is missing, one item a line.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// What `/metrics` shows, collected at scrape time.
    pub metrics: Arc<dyn Scrape>,
    /// Absent where the program did not set up logging (tests).
    pub log: Option<LogHandle>,
}

/// Writes all metrics of a program.
pub trait Scrape: Send + Sync {
    /// Appends OpenMetrics text, to its `# EOF`.
    ///
    /// # Errors
    /// Where something cannot be written as text.
    fn scrape(&self, text: &mut String) -> fmt::Result;
}

impl Scrape for Registry {
    fn scrape(&self, text: &mut String) -> fmt::Result {
        prometheus_client::encoding::text::encode(text, self)
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

/// The common routes.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/log-level", put(set_log_level).get(log_level))
        .with_state(admin)
}

/// Serves until draining begins and then until open requests are done.
pub async fn serve(listener: TcpListener, router: Router, drain: drain::Watch) {
    let stop = drain.clone();
    let router = router.layer(middleware::from_fn(keep_pages_out));
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let shutdown = async move { stop.draining().await };
    // An admin server that fails must not take the data path with it.
    if let Err(error) = axum::serve(listener, service).with_graceful_shutdown(shutdown).await {
        tracing::error!(%error, "admin server ended");
    }
}

/// Keeps pages of other sites from asking through somebody's browser, which may reach this port by a
/// port-forward: neither under a name that they had resolved to loopback (DNS rebinding), nor across
/// origins.
async fn keep_pages_out(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    match unwelcome(peer.ip(), request.headers()) {
        Some(why) => why.into_response(),
        None => next.run(request).await,
    }
}

fn unwelcome(peer: IpAddr, fields: &HeaderMap) -> Option<(StatusCode, String)> {
    let text = |name| Some(fields.get(name)?.to_str().unwrap_or_default());
    let host = text(header::HOST);
    if let Some(origin) = text(header::ORIGIN)
        && origin.split_once("://").map(|(_, origin)| origin) != host
    {
        let why = format!("a page of {origin} has no business here\n");
        return Some((StatusCode::FORBIDDEN, why));
    }
    let host = host.filter(|host| !names_this_machine(host))?;
    peer.to_canonical().is_loopback().then(|| {
        let why = format!("{host} is no name of this machine: ask localhost or an address\n");
        (StatusCode::MISDIRECTED_REQUEST, why)
    })
}

/// Whether a Host is `localhost` or an address, which no name server answers for.
fn names_this_machine(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
}

async fn ready(State(admin): State<Admin>) -> Response {
    match (admin.ready)() {
        Ok(()) => "ready\n".into_response(),
        Err(missing) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}\n")).into_response()
        }
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let mut text = String::new();
    match admin.metrics.scrape(&mut text) {
        Ok(()) => {
            let kind = HeaderValue::from_static(
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            );
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn log_level(State(admin): State<Admin>) -> Response {
    admin.log.map_or_else(
        || StatusCode::NOT_FOUND.into_response(),
        |log| format!("{}\n", log.current()).into_response(),
    )
}

/// From this machine only: a louder log is a cost that others must not impose.
async fn set_log_level(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    filter: String,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        let why = "the log level is changed from loopback only\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    match admin.log.map(|log| log.set(filter.trim())) {
        None => StatusCode::NOT_FOUND.into_response(),
        Some(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Some(Err(error)) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{body::Body, http::Request};
    use tower::ServiceExt;

    /// What a peer is answered that sends these fields.
    fn asked(peer: [u8; 4], fields: &[(&'static str, &str)]) -> StatusCode {
        let field = |(name, value): &(&'static str, &str)| {
            (header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        let why = unwelcome(peer.into(), &fields.iter().map(field).collect());
        why.map_or(StatusCode::OK, |(status, _)| status)
    }

    #[test]
    fn by_way_of_loopback_only_its_own_names_and_addresses_are_answered() {
        let (here, elsewhere) = ([127, 0, 0, 1], [10, 0, 0, 9]);
        for own in ["localhost:4191", "LOCALHOST", "remora.localhost:1", "127.0.0.1:4191", "[::1]"]
        {
            assert_eq!(asked(here, &[("host", own)]), StatusCode::OK, "{own}");
        }
        assert_eq!(asked(here, &[]), StatusCode::OK, "HTTP/1.0");
        for other in ["rebound.example:4191", "proxy", "localhost.example", "", "127.0.0.1.example"]
        {
            let asked = asked(here, &[("host", other)]);
            assert_eq!(asked, StatusCode::MISDIRECTED_REQUEST, "{other}");
        }
        let scraper = asked(elsewhere, &[("host", "remora.remora-system.svc:9990")]);
        assert_eq!(scraper, StatusCode::OK);
    }

    #[test]
    fn a_page_of_another_origin_is_turned_away() {
        let host = ("host", "localhost:9990");
        let own = [host, ("origin", "http://localhost:9990")];
        assert_eq!(asked([127, 0, 0, 1], &own), StatusCode::OK);
        for other in ["http://localhost:8080", "https://example.com", "null"] {
            for peer in [[127, 0, 0, 1], [10, 0, 0, 9]] {
                let asked = asked(peer, &[host, ("origin", other)]);
                assert_eq!(asked, StatusCode::FORBIDDEN, "{other}");
            }
        }
    }

    async fn get(admin: Admin, path: &str) -> StatusCode {
        let request = Request::get(path).body(Body::empty()).unwrap();
        router(admin).oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn ready_follows_the_program() {
        let admin = |ready: Result<(), String>| Admin {
            ready: Arc::new(move || ready.clone()),
            metrics: Arc::new(Registry::default()),
            log: None,
        };
        assert_eq!(get(admin(Ok(())), "/ready").await, StatusCode::OK);
        assert_eq!(
            get(admin(Err("identity".into())), "/ready").await,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(get(admin(Err("identity".into())), "/live").await, StatusCode::OK);
        assert_eq!(get(admin(Ok(())), "/metrics").await, StatusCode::OK);
    }
}
