//! Request bodies that can be sent again.
//!
//! What the client sent is kept while it is at most [`MAX_KEPT`] bytes; beyond that the body goes
//! on streaming and the request can no longer be repeated. Attempts take turns: a newer one takes
//! the source over, and what is left of an older one ends with an error, which resets its stream.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::headers::strip_ours;
use crate::{http::MAX_KEPT, metrics::bodies::Bodies};

/// A request body that attempts are made from.
#[derive(Debug)]
pub struct Replay<B = Incoming>(Arc<Inner<B>>);

impl<B> Clone for Replay<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<B> {
    shared: Mutex<Shared<B>>,
    /// Told when all of the body was handed on.
    ended: Notify,
}

#[derive(Debug)]
struct Shared<B> {
    /// `None` in a copy.
    source: Option<B>,
    hint: SizeHint,
    kept: Vec<Bytes>,
    kept_len: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    too_long: bool,
    attempt: u32,
    /// Frames that came from the client.
    frames: u64,
    /// Where its bytes are counted.
    counted: Option<Arc<Bodies>>,
}

/// The body of one attempt.
#[derive(Debug)]
pub struct Attempt<B = Incoming> {
    inner: Arc<Inner<B>>,
    attempt: u32,
    /// Kept chunks already given, and whether the trailers are.
    next: usize,
    trailers_given: bool,
}

/// Why a body ended early. Where its stream is reset for it, that is with the code of the HTTP/2 error
/// among its sources, or else INTERNAL_ERROR.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client broke off; with the code that it gave, or else CANCEL.
    #[error("request body: {0}")]
    Client(#[source] h2::Error),
    /// A newer attempt has taken over; CANCEL.
    #[error("request body was taken over by another attempt")]
    Superseded(#[source] h2::Error),
    /// The upstream broke off.
    #[error("response body: {0}")]
    Upstream(#[source] hyper::Error),
    /// The request's time-out passed.
    #[error("response body: the request's time-out passed")]
    TimedOut,
    /// Nothing moved for too long.
    #[error("response body: nothing came for {0:?} (timeout.remora.io/idle)")]
    Idle(std::time::Duration),
}

impl BodyError {
    /// The client broke off.
    pub(super) fn client(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let error = error.into();
        let first: &(dyn std::error::Error + 'static) = &*error;
        let code = std::iter::successors(Some(first), |cause| cause.source())
            .find_map(|cause| cause.downcast_ref::<h2::Error>()?.reason());
        Self::Client(code.unwrap_or(h2::Reason::CANCEL).into())
    }

    fn superseded() -> Self {
        Self::Superseded(h2::Reason::CANCEL.into())
    }
}

impl<B: Body<Data = Bytes>> Replay<B> {
    /// Keeps `source` for repetition.
    pub fn new(source: B) -> Self {
        let shared = Shared {
            hint: source.size_hint(),
            source: Some(source),
            kept: Vec::new(),
            kept_len: 0,
            trailers: None,
            ended: false,
            too_long: false,
            attempt: 0,
            frames: 0,
            counted: None,
        };
        Self(Arc::new(Inner { shared: Mutex::new(shared), ended: Notify::new() }))
    }

    /// The body for the next attempt, from the first byte on; `None` where it is too long.
    #[must_use]
    pub fn attempt(&self) -> Option<Attempt<B>> {
        let mut shared = self.0.shared.lock();
        if shared.too_long {
            return None;
        }
        shared.attempt += 1;
        let attempt = shared.attempt;
        drop(shared);
        Some(Attempt { inner: Arc::clone(&self.0), attempt, next: 0, trailers_given: false })
    }

    /// The same body for somebody else, who takes nothing from this one; `None` where not all of it
    /// came, or it is too long.
    #[must_use]
    pub fn copied(&self) -> Option<Self> {
        let shared = self.0.shared.lock();
        if !shared.ended || shared.too_long {
            return None;
        }
        let copy = Shared {
            source: None,
            hint: shared.hint,
            kept: shared.kept.clone(),
            kept_len: shared.kept_len,
            trailers: shared.trailers.clone(),
            ended: true,
            too_long: false,
            attempt: 0,
            frames: 0,
            counted: None,
        };
        drop(shared);
        Some(Self(Arc::new(Inner { shared: Mutex::new(copy), ended: Notify::new() })))
    }

    /// Counts what comes of it from now on; of a copy, all.
    pub fn counted_in(&self, bodies: &Arc<Bodies>) {
        let mut shared = self.0.shared.lock();
        if shared.source.is_none() {
            bodies.of_request(shared.kept_len);
        }
        shared.counted = Some(Arc::clone(bodies));
    }

    /// Whether another attempt can be made.
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        !self.0.shared.lock().too_long
    }

    /// Frames that came from the client so far; grows as long as the body moves.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.0.shared.lock().frames
    }

    /// Waits until all of it came from the client.
    pub async fn ended(&self) {
        let notified = self.0.ended.notified();
        if !self.0.shared.lock().ended {
            notified.await;
        }
    }
}

impl<B> Body for Attempt<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let mut shared = this.inner.shared.lock();
        if shared.attempt != this.attempt {
            return Poll::Ready(Some(Err(BodyError::superseded())));
        }
        if let Some(chunk) = shared.kept.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if !shared.ended
            && let Some(source) = &mut shared.source
        {
            let frame = std::task::ready!(Pin::new(source).poll_frame(cx));
            shared.frames += 1;
            match frame {
                None => shared.ended = true,
                Some(Err(error)) => {
                    return Poll::Ready(Some(Err(BodyError::client(error))));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        if let Some(bodies) = &shared.counted {
                            bodies.of_request(data.len());
                        }
                        shared.keep(&data);
                        this.next = shared.kept.len();
                        if shared.source.as_ref().is_none_or(B::is_end_stream) {
                            shared.ended = true;
                            this.inner.ended.notify_waiters();
                        }
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Err(frame) => {
                        shared.trailers = frame.into_trailers().ok().map(|mut trailers| {
                            strip_ours(&mut trailers);
                            trailers
                        });
                        shared.ended = true;
                    }
                },
            }
            this.inner.ended.notify_waiters();
        }
        if !this.trailers_given {
            this.trailers_given = true;
            if let Some(trailers) = shared.trailers.clone() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.inner.shared.lock();
        let all_given = self.next == shared.kept.len();
        let ended = shared.ended || shared.source.as_ref().is_none_or(B::is_end_stream);
        all_given && ended && (self.trailers_given || shared.trailers.is_none())
    }

    fn size_hint(&self) -> SizeHint {
        // Asked before the first frame, to choose the framing.
        if self.next == 0 { self.inner.shared.lock().hint } else { SizeHint::default() }
    }
}

impl<B> Shared<B> {
    fn keep(&mut self, data: &Bytes) {
        if self.too_long {
            return;
        }
        self.kept_len += data.len();
        if self.kept_len > MAX_KEPT {
            self.too_long = true;
            self.kept = Vec::new();
        } else {
            self.kept.push(data.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, StreamBody};
    use std::convert::Infallible;

    type Source = StreamBody<
        futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>,
    >;

    fn source(chunks: &[usize], trailers: bool) -> Source {
        let mut frames: Vec<_> =
            chunks.iter().map(|n| Ok(Frame::data(Bytes::from(vec![b'x'; *n])))).collect();
        if trailers {
            let map = HeaderMap::from_iter([(http::HeaderName::from_static("sum"), 1.into())]);
            frames.push(Ok(Frame::trailers(map)));
        }
        StreamBody::new(futures_util::stream::iter(frames))
    }

    #[tokio::test]
    async fn the_second_attempt_gets_chunks_and_trailers_again() {
        let replay = Replay::new(source(&[3, 4], true));
        for _ in 0..2 {
            let all = replay.attempt().unwrap().collect().await.unwrap();
            assert_eq!(all.trailers().map(HeaderMap::len), Some(1));
            assert_eq!(all.to_bytes().len(), 7);
        }
    }

    #[tokio::test]
    async fn an_attempt_given_up_in_the_middle_is_taken_over() {
        let replay = Replay::new(source(&[3, 4, 5], false));
        let mut first = replay.attempt().unwrap();
        first.frame().await.unwrap().unwrap();
        let second = replay.attempt().unwrap().collect().await.unwrap();
        assert_eq!(second.to_bytes().len(), 12);
        assert!(matches!(first.frame().await, Some(Err(BodyError::Superseded(_)))));
    }

    #[tokio::test]
    async fn a_copy_is_made_once_all_of_it_came() {
        let replay = Replay::new(source(&[3, 4], true));
        assert!(replay.copied().is_none());
        let mut first = replay.attempt().unwrap();
        while first.frame().await.is_some() {}
        let copy = replay.copied().unwrap().attempt().unwrap();
        let all = copy.collect().await.unwrap();
        assert_eq!(all.trailers().map(HeaderMap::len), Some(1));
        assert_eq!(all.to_bytes().len(), 7);
        let long = Replay::new(source(&[MAX_KEPT, 1], false));
        long.attempt().unwrap().collect().await.unwrap();
        assert!(long.copied().is_none());
    }

    #[tokio::test]
    async fn a_body_over_the_cap_streams_on_but_is_not_repeated() {
        let replay = Replay::new(source(&[MAX_KEPT, 1, 10], false));
        let all = replay.attempt().unwrap().collect().await.unwrap();
        assert_eq!(all.to_bytes().len(), MAX_KEPT + 11);
        assert!(replay.attempt().is_none() && !replay.is_replayable());
    }
}
