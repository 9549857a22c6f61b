//! Requests of one client connection.
//!
//! A request's way: head hygiene → [`super::attempt`] (pick, send, classify, perhaps again) →
//! response head hygiene → body, whose end closes the books ([`super::done`]).

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{Method, Request, Response, StatusCode, header::CONTENT_LENGTH};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use super::{Outbound, Upstream, attempt::Exchange, done::Done};
use crate::{
    discovery::{Resolution, Target},
    error::Error,
    http::{
        Version, answer,
        body::ResponseBody,
        headers::{set_upgrade, strip_hop_by_hop, strip_ours},
        server, upgrade,
    },
};

/// What the requests of one connection have in common.
#[derive(Debug)]
pub struct Requests {
    outbound: Arc<Outbound>,
    target: Target,
    upstream: ArcSwap<Upstream>,
    version: Version,
}

impl Requests {
    pub(super) fn new(
        outbound: Arc<Outbound>,
        target: Target,
        upstream: Upstream,
        version: Version,
    ) -> Self {
        Self { outbound, target, upstream: ArcSwap::from_pointee(upstream), version }
    }

    /// The upstream as it is now: a Service that was deleted or made anew is asked for again.
    async fn upstream(&self) -> Result<Arc<Upstream>, Error> {
        let known = self.upstream.load_full();
        let Upstream::Service(service) = &*known else { return Ok(known) };
        if !service.is_gone() {
            return Ok(known);
        }
        let upstream = match self.outbound.resolve(&self.target).await? {
            Resolution::Service(service) => Upstream::Service(service),
            Resolution::Pod(pod) => Upstream::Pod(pod),
            Resolution::NotOurs => {
                return Err(Error::NoRoute(format!("service {} is gone", service.id)));
            }
            Resolution::Refused(why) => return Err(Error::NoRoute(why.to_string())),
        };
        let upstream = Arc::new(upstream);
        self.upstream.store(Arc::clone(&upstream));
        Ok(upstream)
    }
}

/// Answers one request: with the upstream's response, or with the proxy's own that says why not.
pub(super) async fn handle(
    requests: Arc<Requests>,
    request: Request<Incoming>,
) -> Response<ResponseBody<Done>> {
    let grpc = answer::is_grpc(request.headers());
    match forward(&requests, request).await {
        Ok(response) => response,
        Err(error) => {
            requests.outbound.error(error.reason());
            tracing::debug!(%error, target = ?requests.target, "request failed");
            let response = answer::error(&error, grpc);
            requests.upstream.load().traffic().responded(response.status());
            response
        }
    }
}

async fn forward(
    requests: &Requests,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody<Done>>, Error> {
    let started = Instant::now();
    check(&request)?;
    let upstream = requests.upstream().await?;
    let switch_to = strip_hop_by_hop(request.headers_mut());
    strip_ours(request.headers_mut());
    let leaves_http = switch_to.is_some() || request.method() == Method::CONNECT;
    let downstream = leaves_http.then(|| hyper::upgrade::on(&mut request));
    if let Some(to) = switch_to {
        set_upgrade(request.headers_mut(), to);
    }
    let exchange = Exchange::new(&requests.outbound, &upstream, requests.version, started);
    let deadline = exchange.deadline();
    let mut response = match deadline {
        None => exchange.run(request).await?,
        Some(at) => timeout_at(at, exchange.run(request))
            .await
            .unwrap_or(Err(Error::RequestTimeout(at - started)))?,
    };
    finish_head(requests, &mut response, downstream);
    Ok(response.map(|body| body.until(deadline)))
}

/// Requests that cannot be forwarded as they are.
fn check(request: &Request<Incoming>) -> Result<(), Error> {
    if request.method() == Method::CONNECT {
        // RFC 9110 §9.3.6: authority form, nothing else, and no content.
        let authority = request.uri().authority();
        if authority.is_none_or(|a| a.port_u16().is_none()) || request.uri().path() == "*" {
            return Err(Error::BadRequest("CONNECT wants host:port"));
        }
        if request.version() < http::Version::HTTP_11 {
            return Err(Error::BadRequest("CONNECT needs HTTP/1.1"));
        }
    }
    Ok(())
}

/// Makes a response head fit for the client's connection, and leaves HTTP where both agreed to.
fn finish_head<B: http_body::Body>(
    requests: &Requests,
    response: &mut Response<B>,
    downstream: Option<hyper::upgrade::OnUpgrade>,
) {
    let switched = strip_hop_by_hop(response.headers_mut());
    let upstream_side = response.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    if let (Some(downstream), Some(upstream)) = (downstream, upstream_side) {
        if let Some(to) = switched {
            set_upgrade(response.headers_mut(), to);
        }
        upgrade::carry(downstream, upstream, &requests.outbound.drain);
    } else if response.status() == StatusCode::NO_CONTENT {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    server::mark_last(response, requests.version, &requests.outbound.drain);
    // Our own version; hyper answers an HTTP/1.0 client in its version.
    *response.version_mut() = match requests.version {
        Version::H1 => http::Version::HTTP_11,
        Version::H2 => http::Version::HTTP_2,
    };
}
