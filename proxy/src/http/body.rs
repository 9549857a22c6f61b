//! Bodies that the proxy forwards or makes.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::replay::{Attempt, BodyError};

/// Ends a response whose request took too long.
type Deadline = Pin<Box<tokio::time::Sleep>>;

/// Body of a request on its way upstream.
#[derive(Debug)]
pub enum RequestBody {
    /// None.
    Empty,
    /// Straight from the client.
    Streaming(Incoming),
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
            Self::Streaming(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|f| f.map_err(|error| BodyError::Client(error.into())))),
            Self::Attempt(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streaming(body) => body.is_end_stream(),
            Self::Attempt(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streaming(body) => body.size_hint(),
            Self::Attempt(body) => body.size_hint(),
        }
    }
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

impl OnEnd for () {
    fn on_end(self, _: End<'_>) {}
}

/// Body of a response on its way to the client.
#[derive(Debug)]
pub struct ResponseBody<G: OnEnd> {
    inner: Inner,
    on_end: Option<G>,
    deadline: Option<Deadline>,
}

#[derive(Debug)]
enum Inner {
    Made(Option<Bytes>),
    Upstream(Incoming),
}

impl<G: OnEnd> ResponseBody<G> {
    /// An answer of the proxy's own.
    pub fn made(text: Bytes) -> Self {
        Self {
            inner: Inner::Made((!text.is_empty()).then_some(text)),
            on_end: None,
            deadline: None,
        }
    }

    /// Forwards an upstream's body; a body known to be empty ends here and now.
    pub fn upstream(body: Incoming, on_end: G) -> Self {
        let mut this = Self { inner: Inner::Upstream(body), on_end: Some(on_end), deadline: None };
        if this.is_end_stream() {
            this.end(End::Complete(None));
        }
        this
    }

    /// Breaks the body off at `deadline`, where it has not ended by then.
    #[must_use]
    pub fn until(mut self, deadline: Option<tokio::time::Instant>) -> Self {
        if self.on_end.is_some() {
            self.deadline = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
        }
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
        let body = match &mut this.inner {
            Inner::Made(text) => return Poll::Ready(text.take().map(|data| Ok(Frame::data(data)))),
            Inner::Upstream(body) => body,
        };
        let frame = match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(frame) => frame.map(|f| f.map_err(BodyError::Upstream)),
            Poll::Pending => {
                let Some(deadline) = &mut this.deadline else { return Poll::Pending };
                std::task::ready!(deadline.as_mut().poll(cx));
                Some(Err(BodyError::TimedOut))
            }
        };
        let last = body.is_end_stream();
        match &frame {
            None => this.end(End::Complete(None)),
            Some(Err(error)) => this.end(End::Broken(error)),
            Some(Ok(frame)) if frame.is_trailers() => {
                this.end(End::Complete(frame.trailers_ref()));
            }
            Some(Ok(_)) if last => this.end(End::Complete(None)),
            Some(Ok(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Made(text) => text.is_none(),
            Inner::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Made(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Inner::Upstream(body) => body.size_hint(),
        }
    }
}

impl<G: OnEnd> Drop for ResponseBody<G> {
    fn drop(&mut self) {
        self.end(End::Dropped);
    }
}
