//! Requests that arrive for the pod's application.

use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use remora_core::names::headers::CLIENT_ID;

use super::{Arrival, CONNECT, Inbound, authorize};
use crate::{
    balance::retry::Sent,
    decisions::Failed,
    error::Error,
    http::{
        Version, answer,
        body::{End, OnEnd, RequestBody, ResponseBody},
        headers::{set_upgrade, strip_hop_by_hop, strip_ours},
        pool::Connection,
        server, upgrade,
    },
    metrics::{Direction, Tls},
};

/// Sends of one request whose pooled connection turned out to be closed before a byte was written.
const MAX_SENDS: usize = 3;

/// What the requests of one connection have in common.
#[derive(Debug)]
pub struct Requests {
    inbound: Arc<Inbound>,
    arrival: Arrival,
    version: Version,
    /// The caller's identity as a header value, made once.
    client_id: Option<HeaderValue>,
    trust_domain: Option<Arc<str>>,
}

impl Requests {
    pub(super) fn new(inbound: Arc<Inbound>, arrival: Arrival, version: Version) -> Self {
        let client_id = arrival.identity().and_then(|id| HeaderValue::from_str(id.as_str()).ok());
        let trust_domain = inbound.trust_domain();
        Self { inbound, arrival, version, client_id, trust_domain }
    }
}

/// Answers one request: with the application's response, or with the proxy's own that says why not.
pub(super) async fn handle(
    requests: Arc<Requests>,
    request: Request<Incoming>,
) -> Response<ResponseBody<GiveBack>> {
    let grpc = answer::is_grpc(request.headers());
    let started = tokio::time::Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    match forward(&requests, request).await {
        Ok(response) => response,
        Err(error) => {
            let Requests { inbound, arrival, .. } = &*requests;
            inbound.metrics.error(Direction::Inbound, error.reason());
            tracing::debug!(%error, "request failed");
            let now = tokio::time::Instant::now();
            let failed = Failed {
                direction: Direction::Inbound,
                target: &arrival.app.to_string(),
                method: &method,
                uri: &uri,
                elapsed: now - started,
            };
            inbound.decisions.record(now, failed, &error, std::iter::empty::<&str>());
            answer::error(&error, grpc)
        }
    }
}

async fn forward(
    requests: &Arc<Requests>,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody<GiveBack>>, Error> {
    let Requests { inbound, arrival, .. } = &**requests;
    inbound.metrics.inbound_request(arrival.tls);
    let policy = inbound.discovery.inbound_policy();
    authorize::request(&policy, arrival, request.uri().path(), requests.trust_domain.as_deref())?;
    let switch_to = strip_hop_by_hop(request.headers_mut());
    if arrival.tls != Tls::Mutual {
        // What a proxy of ours set stays, what anyone else pretends does not.
        strip_ours(request.headers_mut());
    }
    request.headers_mut().remove(CLIENT_ID);
    if let Some(id) = &requests.client_id {
        request.headers_mut().insert(CLIENT_ID, id.clone());
    }
    let leaves_http = switch_to.is_some() || request.method() == Method::CONNECT;
    let downstream = leaves_http.then(|| hyper::upgrade::on(&mut request));
    if let Some(to) = switch_to {
        set_upgrade(request.headers_mut(), to);
    }
    let (mut response, connection) = send(requests, request).await?;
    let switched = strip_hop_by_hop(response.headers_mut());
    // Callers believe what our headers say, so only this proxy may set them.
    strip_ours(response.headers_mut());
    let granted =
        response.status() == StatusCode::SWITCHING_PROTOCOLS || response.status().is_success();
    if let Some(downstream) = downstream.filter(|_| granted) {
        if let Some(to) = switched {
            set_upgrade(response.headers_mut(), to);
        }
        upgrade::carry(downstream, hyper::upgrade::on(&mut response), &inbound.drain);
    }
    server::mark_last(&mut response, requests.version, &inbound.drain);
    // Our own version; hyper answers an HTTP/1.0 client in its version.
    *response.version_mut() = match requests.version {
        Version::H1 => http::Version::HTTP_11,
        Version::H2 => http::Version::HTTP_2,
    };
    let give_back = GiveBack { requests: Arc::clone(requests), connection: Some(connection) };
    Ok(response.map(|body| ResponseBody::upstream(body, give_back)))
}

/// Sends to the application, over another connection where a pooled one was closed before one byte
/// was written.
async fn send(
    requests: &Requests,
    request: Request<Incoming>,
) -> Result<(Response<Incoming>, Connection), Error> {
    let Requests { inbound, arrival, version, .. } = requests;
    let mut request = request.map(|body| {
        if body.is_end_stream() { RequestBody::Empty } else { RequestBody::Streaming(body) }
    });
    if request.version() == http::Version::HTTP_10
        && request.headers().contains_key(http::header::HOST)
    {
        *request.version_mut() = http::Version::HTTP_11;
    }
    let mut sends = 0;
    loop {
        let mut connection = match inbound.pool.get(&arrival.app, *version) {
            Some(connection) => connection,
            None => {
                let dial = || inbound.connector.connect(arrival.app, CONNECT);
                inbound.pool.open(&arrival.app, *version, dial).await?
            }
        };
        sends += 1;
        match connection.send(request).await {
            Ok(response) => return Ok((response, connection)),
            // The caller's proxy still has the request and may try again, elsewhere if it can.
            Err(failed) if failed.refused() => {
                return Err(Error::Overloaded("the application refused the request"));
            }
            Err(failed) => match failed.unsent {
                Some(unsent) if sends < MAX_SENDS => request = unsent,
                unsent => {
                    return Err(Error::UpstreamReset {
                        addr: arrival.app,
                        detail: failed.error.to_string(),
                        sent: if unsent.is_some() { Sent::No } else { Sent::Maybe },
                    });
                }
            },
        }
    }
}

/// Gives the application's connection back when the response is complete.
#[derive(Debug)]
pub struct GiveBack {
    requests: Arc<Requests>,
    connection: Option<Connection>,
}

impl OnEnd for GiveBack {
    fn on_end(mut self, end: End<'_>) {
        if let (End::Complete(_), Some(connection)) = (end, self.connection.take()) {
            let Requests { inbound, arrival, .. } = &*self.requests;
            inbound.pool.give_back(&arrival.app, connection, tokio::time::Instant::now());
        }
    }
}
