//! Copies of requests, sent beside them: on tasks of their own, a bounded number at a time, once each,
//! and their responses are read over. Whatever happens to a copy, the request does not notice.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{Outbound, Snapshot, Upstream, snapshot::By};
use crate::{
    discovery::traffic::Mirrored,
    error::Error,
    net::connect::Reset,
    route::{Route, mirror::Mirror},
};

/// Copies under way at a time, on each worker.
const AT_ONCE: usize = 64;
/// How long one may take, to the end of its response.
const WITHIN: Duration = Duration::from_secs(30);

/// Where copies come from, to whoever keeps clients apart by that.
pub(super) const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The head of a request that is to be sent to somebody else too.
pub(super) struct Copied<M> {
    pub(super) mirror: Arc<Mirror>,
    pub(super) request: M,
}

/// Places for copies of one worker.
#[derive(Debug)]
pub(super) struct Mirrors(Arc<Semaphore>);

impl Default for Mirrors {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Mirrors {
    fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }
}

impl Outbound {
    /// Sends copies with one body, which is `None` where it is not to be had as a whole. `send` sends
    /// one and says whether it was answered.
    pub(super) fn mirror<M, B, F>(
        self: &Arc<Self>,
        route: &Arc<Route>,
        copies: Vec<Copied<M>>,
        body: Option<B>,
        send: impl Fn(Arc<Self>, Arc<Upstream>, M, B) -> F + Copy + Send + Sync + 'static,
    ) where
        M: Send + 'static,
        B: Clone + Send + 'static,
        F: Future<Output = bool> + Send,
    {
        for Copied { mirror, request } in copies {
            let Some(body) = body.clone() else {
                route.traffic.mirrored(Mirrored::TooLarge);
                continue;
            };
            let Some(place) = self.mirrors.place() else {
                route.traffic.mirrored(Mirrored::Busy);
                continue;
            };
            let (outbound, route) = (Arc::clone(self), Arc::clone(route));
            // It ends by itself, or with its worker: no drain waits for it.
            tokio::spawn(async move {
                let backend = &mirror.backend;
                let sending = async {
                    let named = outbound.named(&backend.target, &backend.id, &route.name);
                    let upstream = Arc::new(named.await?);
                    Ok::<_, Error>(send(Arc::clone(&outbound), upstream, request, body).await)
                };
                let sent = timeout(WITHIN, sending).await;
                let answered = matches!(sent, Ok(Ok(true)));
                if !answered {
                    tracing::debug!(route = %route.name, backend = %backend.id, "copy unanswered");
                }
                let what = if answered { Mirrored::Answered } else { Mirrored::Failed };
                route.traffic.mirrored(what);
                drop(place);
            });
        }
    }
}

/// A moment of an upstream that gets a copy.
pub(super) fn snapshot(upstream: &Upstream) -> Snapshot {
    Snapshot { routes: None, by: By::Mirror, ..upstream.snapshot() }
}

/// The client of a copy: it says nothing beyond what was put into its wire, and whatever it is told is
/// forgotten.
#[derive(Debug)]
pub(super) struct Nobody;

impl Reset for Nobody {
    fn reset(&self) {}
}

impl AsyncRead for Nobody {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Nobody {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
