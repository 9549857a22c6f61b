//! Request bodies that are sent again.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body, Frame};
use parking_lot::Mutex;
use remora_proxy::http::{
    MAX_KEPT,
    h2::replay::{Attempt, BodyError, Replay},
};

/// What a client sends and what the proxy does with it, one byte each: see [`replay`].
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The client sends as many kilobytes, or half of one.
    Data(usize),
    /// The client ends its body.
    End,
    /// The client ends its body with a trailer.
    Trailers,
    /// The newest attempt reads a frame.
    Read,
    /// The oldest attempt reads one.
    ReadOld,
    /// A new attempt begins.
    Attempt,
}

impl Step {
    fn of(byte: u8) -> Self {
        match byte {
            b'e' => Self::End,
            b't' => Self::Trailers,
            b'r' | b'R' => Self::Read,
            b'o' => Self::ReadOld,
            b'a' | b'A' => Self::Attempt,
            other => Self::Data(usize::from(other) * 512),
        }
    }
}

/// A client's body.
#[derive(Debug, Default)]
struct Client {
    frames: VecDeque<Frame<Bytes>>,
    ended: bool,
}

/// The proxy's end of it.
#[derive(Debug, Clone, Default)]
struct Source(Arc<Mutex<Client>>);

impl Body for Source {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut client = self.0.lock();
        match client.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None if client.ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        let client = self.0.lock();
        client.ended && client.frames.is_empty()
    }
}

/// What was read of an attempt.
struct Reader {
    attempt: Attempt<Source>,
    data: Vec<u8>,
    trailers: bool,
    ended: bool,
}

/// A body and attempts in any order: each attempt hears the body from its first byte on and nothing
/// else, only the newest hears anything, and there is none once more was read than is kept.
///
/// # Panics
/// Where it hears something else.
pub fn replay(bytes: &[u8]) {
    /// More would only take time.
    const MOST: usize = 1 << 20;
    let source = Source::default();
    let replay = Replay::new(source.clone());
    let (mut sent, mut trailers) = (Vec::new(), false);
    let mut readers: Vec<Reader> = Vec::new();
    let mut read = 0;
    for step in bytes.iter().map(|byte| Step::of(*byte)) {
        let mut client = source.0.lock();
        match step {
            Step::Data(length) if !client.ended && sent.len() + length <= MOST => {
                let mark = u8::try_from(sent.len() / 512 % 251).unwrap_or_default();
                client.frames.push_back(Frame::data(vec![mark; length].into()));
                sent.resize(sent.len() + length, mark);
            }
            Step::End => client.ended = true,
            Step::Trailers if !client.ended => {
                let sum = (HeaderName::from_static("sum"), 1.into());
                client.frames.push_back(Frame::trailers(HeaderMap::from_iter([sum])));
                (client.ended, trailers) = (true, true);
            }
            Step::Attempt => {
                drop(client);
                let attempt = replay.attempt();
                assert_eq!(attempt.is_some(), read <= MAX_KEPT, "after {read} bytes");
                assert_eq!(attempt.is_some(), replay.is_replayable());
                readers.extend(attempt.map(|attempt| Reader {
                    attempt,
                    data: Vec::new(),
                    trailers: false,
                    ended: false,
                }));
            }
            Step::Read | Step::ReadOld => {
                drop(client);
                let newest = readers.len().saturating_sub(1);
                let which = if matches!(step, Step::Read) { newest } else { 0 };
                let Some(reader) = readers.get_mut(which) else { continue };
                reader.read(which == newest, (&sent, trailers), &source);
                read = read.max(reader.data.len());
            }
            Step::Data(_) | Step::Trailers => {}
        }
    }
}

impl Reader {
    fn read(&mut self, newest: bool, (sent, trailers): (&[u8], bool), source: &Source) {
        if self.ended {
            return;
        }
        let announced = newest && self.attempt.is_end_stream();
        let mut cx = Context::from_waker(Waker::noop());
        let frame = match Pin::new(&mut self.attempt).poll_frame(&mut cx) {
            Poll::Pending => {
                let client = source.0.lock();
                assert!(newest && !client.ended && client.frames.is_empty(), "waits for nothing");
                return;
            }
            Poll::Ready(frame) => frame,
        };
        match frame {
            Some(Err(BodyError::Superseded(_))) => assert!(!newest, "the newest is superseded"),
            Some(Err(error)) => panic!("{error}"),
            _ if !newest => panic!("an older attempt hears something"),
            Some(Ok(frame)) => {
                assert!(!self.trailers, "something comes behind the trailers");
                match frame.into_data() {
                    Ok(data) => self.data.extend_from_slice(&data),
                    Err(_) => self.trailers = true,
                }
                assert!(sent.starts_with(&self.data), "other bytes");
                assert!(!announced || self.trailers == trailers, "more comes behind the end");
            }
            None => {
                self.ended = true;
                assert_eq!((self.data.len(), self.trailers), (sent.len(), trailers));
            }
        }
    }
}
