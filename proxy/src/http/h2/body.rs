//! Bodies that the proxy forwards or makes.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use remora_core::names::headers::PROXY_ERROR;
use tokio::time::{Instant, Sleep};

use super::{
    headers::strip_ours,
    replay::{Attempt, BodyError, Replay},
};
use crate::{error::Reason, http::answer, metrics::bodies::Bodies};

/// Body of a request on its way upstream.
#[derive(Debug)]
pub enum RequestBody {
    /// None.
    Empty,
    /// Straight from the client, and where it is counted.
    Streaming(Incoming, Arc<Bodies>),
    /// Kept for repetition.
    Attempt(Attempt),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Streaming(body, bodies) => {
                let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
                if let Some(Ok(data)) =
                    frame.as_ref().map(|frame| frame.as_ref().map(Frame::data_ref))
                {
                    bodies.of_request(data.map_or(0, Bytes::len));
                }
                Poll::Ready(frame.map(|f| f.map(without_ours).map_err(BodyError::client)))
            }
            Self::Attempt(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streaming(body, _) => body.is_end_stream(),
            Self::Attempt(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // An exact length would become a Content-Length that the client did not send.
            Self::Empty => SizeHint::default(),
            Self::Streaming(body, _) => body.size_hint(),
            Self::Attempt(body) => body.size_hint(),
        }
    }
}

/// The frame without what only Remora's proxies may say.
fn without_ours(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        strip_ours(trailers);
    }
    frame
}

/// How a response body ended.
#[derive(Debug)]
pub enum End<'a> {
    /// All of it was given to the client; with its trailers.
    Complete(Option<&'a HeaderMap>),
    /// The upstream broke off.
    Broken(&'a BodyError),
    /// The client went away first.
    Dropped,
}

/// Is told once how a response body ended.
pub trait OnEnd: Send + Unpin + 'static {
    /// Called exactly once, also from drop.
    fn on_end(self, end: End<'_>);
}

/// Body of a response on its way to the client.
#[derive(Debug)]
pub struct ResponseBody<G: OnEnd> {
    inner: Inner,
    /// What was read ahead of an upstream's body.
    first: Option<Frame<Bytes>>,
    on_end: Option<G>,
    bounds: Option<Box<Bounds>>,
    from: Origin,
}

/// What is known of a body that is forwarded.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// gRPC callers are told with a last word of ours what others are told by a reset.
    pub grpc: bool,
    /// A proxy of ours sent it, so what its trailers say in our name is true.
    pub proxy: bool,
}

#[derive(Debug)]
enum Inner {
    Made(Option<Bytes>),
    /// With where it is counted.
    Upstream(Incoming, Arc<Bodies>),
    /// A last word was said.
    Over,
}

/// When a response has taken too long.
#[derive(Debug)]
pub struct Bounds {
    /// When all of it must be there.
    pub deadline: Option<Instant>,
    /// Longest pause in either body.
    pub idle: Option<Duration>,
    /// The request's body, which may still be moving.
    pub request: Option<Replay>,
    /// Frames seen when something last moved, and when that was.
    moved: (u64, Instant),
    frames: u64,
    sleep: Pin<Box<Sleep>>,
}

impl Bounds {
    /// `None` where nothing is bounded.
    #[must_use]
    pub fn new(
        deadline: Option<Instant>,
        idle: Option<Duration>,
        request: Option<Replay>,
    ) -> Option<Box<Self>> {
        if deadline.is_none() && idle.is_none() {
            return None;
        }
        let now = Instant::now();
        let sleep = Box::pin(tokio::time::sleep_until(now));
        Some(Box::new(Self { deadline, idle, request, moved: (0, now), frames: 0, sleep }))
    }

    /// Resolves when time is up, with what that means.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        loop {
            let moved = self.frames + self.request.as_ref().map_or(0, Replay::frames);
            if moved != self.moved.0 {
                self.moved = (moved, Instant::now());
            }
            let idle = self.idle.map(|bound| (self.moved.1 + bound, BodyError::Idle(bound)));
            let deadline = self.deadline.map(|at| (at, BodyError::TimedOut));
            let bounds = [deadline, idle].into_iter().flatten();
            let Some((due, error)) = bounds.min_by_key(|(at, _)| *at) else {
                return Poll::Pending;
            };
            if due <= Instant::now() {
                return Poll::Ready(error);
            }
            self.sleep.as_mut().reset(due);
            // The request's body may have moved meanwhile: look again.
            std::task::ready!(self.sleep.as_mut().poll(cx));
        }
    }
}

impl<G: OnEnd> ResponseBody<G> {
    /// An answer of the proxy's own.
    pub fn made(text: Bytes) -> Self {
        let inner = Inner::Made((!text.is_empty()).then_some(text));
        let from = Origin { grpc: false, proxy: true };
        Self { inner, first: None, on_end: None, bounds: None, from }
    }

    /// Forwards an upstream's body, of which a frame may have been read already; a body known to be
    /// empty ends here and now.
    pub fn upstream(
        (first, body): (Option<Frame<Bytes>>, Incoming),
        on_end: G,
        (from, bodies): (Origin, Arc<Bodies>),
    ) -> Self {
        let inner = Inner::Upstream(body, bodies);
        let mut this = Self { inner, first, on_end: Some(on_end), bounds: None, from };
        if this.is_end_stream() {
            this.end(End::Complete(None));
        }
        this
    }

    /// Breaks the body off where it takes too long.
    #[must_use]
    pub fn bounded(mut self, bounds: Option<Box<Bounds>>) -> Self {
        self.bounds = bounds.filter(|_| self.on_end.is_some());
        self
    }

    fn end(&mut self, end: End<'_>) {
        if let Some(on_end) = self.on_end.take() {
            on_end.on_end(end);
        }
    }
}

impl<G: OnEnd> Body for ResponseBody<G> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let (body, bodies) = match &mut this.inner {
            Inner::Made(text) => return Poll::Ready(text.take().map(|data| Ok(Frame::data(data)))),
            Inner::Over => return Poll::Ready(None),
            Inner::Upstream(body, bodies) => (body, bodies),
        };
        let polled = match this.first.take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => Pin::new(&mut *body).poll_frame(cx),
        };
        let frame = match polled {
            Poll::Ready(frame) if this.from.proxy => frame.map(|f| f.map_err(BodyError::Upstream)),
            Poll::Ready(frame) => frame.map(|f| f.map(without_ours).map_err(BodyError::Upstream)),
            Poll::Pending => {
                let Some(bounds) = &mut this.bounds else { return Poll::Pending };
                Some(Err(std::task::ready!(bounds.poll(cx))))
            }
        };
        let last = body.is_end_stream();
        if let Some(bounds) = &mut this.bounds {
            bounds.frames += 1;
        }
        match &frame {
            None => this.end(End::Complete(None)),
            Some(Err(error)) => {
                this.end(End::Broken(error));
                if let Some(trailers) = last_word(error).filter(|_| this.from.grpc) {
                    this.inner = Inner::Over;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            }
            Some(Ok(frame)) if frame.is_trailers() => {
                this.end(End::Complete(frame.trailers_ref()));
            }
            Some(Ok(frame)) => {
                bodies.of_response(frame.data_ref().map_or(0, Bytes::len));
                if last {
                    this.end(End::Complete(None));
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Made(text) => text.is_none(),
            Inner::Over => true,
            Inner::Upstream(body, _) => self.first.is_none() && body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Upstream(..) if self.first.is_some() => SizeHint::default(),
            Inner::Made(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Inner::Over => SizeHint::with_exact(0),
            Inner::Upstream(body, _) => body.size_hint(),
        }
    }
}

/// How a gRPC call ends that we had to end: with a status. A reset of the upstream's own says more
/// than we could and is passed on as it is.
fn last_word(error: &BodyError) -> Option<HeaderMap> {
    let (code, reason) = match error {
        BodyError::TimedOut => (4, Reason::RequestTimeout),
        BodyError::Idle(_) => (4, Reason::ResponseTimeout),
        BodyError::Upstream(error) if !is_reset(error) => (14, Reason::UpstreamReset),
        _ => return None,
    };
    let mut trailers = HeaderMap::with_capacity(3);
    trailers.insert("grpc-status", HeaderValue::from(code));
    let sentence = answer::sentence(error, reason);
    if let Ok(message) = HeaderValue::try_from(answer::grpc_message(&sentence)) {
        trailers.insert("grpc-message", message);
    }
    trailers.insert(PROXY_ERROR, HeaderValue::from_static(reason.as_str()));
    Some(trailers)
}

fn is_reset(error: &hyper::Error) -> bool {
    std::error::Error::source(error)
        .and_then(|cause| cause.downcast_ref::<h2::Error>())
        .is_some_and(h2::Error::is_reset)
}

impl<G: OnEnd> Drop for ResponseBody<G> {
    fn drop(&mut self) {
        self.end(End::Dropped);
    }
}
