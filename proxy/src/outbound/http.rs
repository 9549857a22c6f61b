//! What requests of one client connection have in common, whatever version they speak.
//!
//! A request's way: head hygiene → [`super::attempt`] (pick, send, classify, perhaps again) →
//! response head hygiene → body, whose end closes the books. [`super::h1`] and [`super::h2`] are the
//! two codecs' ends of it.

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Response;
use tokio::time::Instant;

use super::{
    Outbound, Upstream,
    books::{self, Books},
};
use crate::{
    discovery::{Resolution, Target},
    error::Error,
    http::answer,
};

/// Where the requests of one connection go.
#[derive(Debug)]
pub struct Requests {
    pub(super) outbound: Arc<Outbound>,
    /// Where the connection comes from.
    pub(super) client: IpAddr,
    target: Target,
    upstream: ArcSwap<Upstream>,
}

impl Requests {
    pub(super) fn new(
        outbound: Arc<Outbound>,
        client: IpAddr,
        target: Target,
        upstream: Upstream,
    ) -> Self {
        Self { outbound, client, target, upstream: ArcSwap::from_pointee(upstream) }
    }

    /// The upstream as it is now: a Service that was deleted or made anew is asked for again.
    pub(super) async fn upstream(&self) -> Result<Arc<Upstream>, Error> {
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

    /// The upstream as it was last found.
    pub(super) fn last(&self) -> Arc<Upstream> {
        self.upstream.load_full()
    }
}

impl Outbound {
    /// Counts a request that the proxy answers itself, and makes the answer.
    pub(super) fn failed(
        &self,
        books: Books<'_>,
        error: &Error,
        grpc: bool,
        started: Instant,
    ) -> Response<Bytes> {
        self.error(error.reason());
        tracing::debug!(%error, upstream = %books.upstream.name(), "request failed");
        let response = answer::error(error, grpc);
        let made = books::made(response.status(), error, grpc);
        books.close(&made, started, Instant::now());
        response
    }
}
