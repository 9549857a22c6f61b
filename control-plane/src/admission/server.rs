//! HTTPS for reviews, with a certificate of the mesh's own issuer.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse, Response},
    routing::post,
};
use http::{HeaderValue, Request, StatusCode, header::CONTENT_TYPE};
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use remora_core::{
    drain,
    names::{CONTROL_PLANE_SERVICE_ACCOUNT, LINT_PATH},
};
use remora_proto::v1::TrustBundle;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_rustls::server::TlsStream;
use tower::Service;

use super::Reviewer;
use crate::{
    identity::rotation::Signer,
    server::{self, tls},
};

/// Largest body. The API server keeps objects of about 1.5 MiB at most, and a review of an update has two.
const MAX_BODY: usize = 4 << 20;
/// Requests that are read and judged at a time, of all connections: anybody in the cluster may send some,
/// and none of them may cost proxies their control plane. The others wait.
const AT_ONCE: usize = 16;
/// Longest wait for a request's head; the API server keeps idle connections for 90 s.
const IDLE: Duration = Duration::from_secs(120);
/// Longest request, body and answer included; the API server waits less.
const EXCHANGE: Duration = Duration::from_secs(10);
/// Time that requests have for ending once the program goes.
const LEAVE: Duration = Duration::from_secs(5);
/// Connections at a time; API servers hold a few each.
const MAX_CONNECTIONS: usize = 64;
/// Requests of one HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 100;

/// The name by which the API server knows the control plane of a namespace.
#[must_use]
pub fn host(namespace: &str) -> String {
    format!("{CONTROL_PLANE_SERVICE_ACCOUNT}.{namespace}.svc")
}

/// Serves until draining begins and the last request has ended. `host` is what the certificate is for; it
/// is renewed at two thirds of its life, and whenever the issuer or the roots change.
///
/// # Errors
/// Where there is no certificate to begin with.
pub async fn run(
    listener: TcpListener,
    (signer, bundle): (watch::Receiver<Arc<Signer>>, watch::Receiver<Arc<TrustBundle>>),
    host: &str,
    reviewer: Arc<Reviewer>,
    clock: fn() -> SystemTime,
    drain: drain::Watch,
) -> Result<(), tls::TlsError> {
    let authority = Arc::clone(&signer.borrow().authority);
    let (config, renew_in) = tls::issue_for_host(&authority, host, clock())?;
    let config = Arc::new(ArcSwap::from_pointee(config));
    let renewal = tls::renew(
        (signer, bundle),
        |authority, _| tls::issue_for_host(authority, host, clock()),
        Arc::clone(&config),
        renew_in,
        drain.clone(),
    );
    let (router, draining) = (router(reviewer), drain.clone());
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let begin = move || {
        let (router, places, draining) = (router.clone(), Arc::clone(&places), draining.clone());
        move |stream| connection(stream, router, places, draining)
    };
    let accept = server::accept(listener, config, MAX_CONNECTIONS, begin, drain);
    tokio::join!(accept, renewal);
    Ok(())
}

fn router(reviewer: Arc<Reviewer>) -> Router {
    let limit = DefaultBodyLimit::max(MAX_BODY);
    Router::new().route(LINT_PATH, post(review)).layer(limit).with_state(reviewer)
}

async fn review(State(reviewer): State<Arc<Reviewer>>, body: Bytes) -> Response {
    match reviewer.answer(&body).await {
        Ok(answer) => {
            let json = HeaderValue::from_static("application/json");
            ([(CONTENT_TYPE, json)], answer).into_response()
        }
        Err(bad) => {
            tracing::warn!(error = %bad, "not a review");
            (StatusCode::BAD_REQUEST, format!("{bad}\n")).into_response()
        }
    }
}

/// One connection from its handshake to its end.
async fn connection(
    stream: Box<TlsStream<TcpStream>>,
    router: Router,
    places: Arc<Semaphore>,
    drain: drain::Watch,
) {
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(move |request: Request<Incoming>| {
        let (mut router, places) = (router.clone(), Arc::clone(&places));
        let answer = async move {
            let _place = places.acquire_owned().await;
            router.call(request).await
        };
        async {
            match tokio::time::timeout(EXCHANGE, answer).await {
                Ok(Ok(response)) => Ok::<Response<Body>, Infallible>(response),
                Ok(Err(never)) => match never {},
                Err(_) => Ok(StatusCode::REQUEST_TIMEOUT.into_response()),
            }
        }
    });
    let io = TokioIo::new(stream);
    let ended = if h2 {
        let serving = conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(IDLE)
            .serve_connection(io, service);
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            ended = &mut serving => Ok(ended),
            () = drain.draining() => {
                serving.as_mut().graceful_shutdown();
                tokio::time::timeout(LEAVE, serving).await
            }
        }
    } else {
        let serving = conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .serve_connection(io, service);
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            ended = &mut serving => Ok(ended),
            () = drain.draining() => {
                serving.as_mut().graceful_shutdown();
                tokio::time::timeout(LEAVE, serving).await
            }
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "connection ended"),
        Err(_) => tracing::debug!("connection did not go; it was cut"),
    }
}
