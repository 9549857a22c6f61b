//! A peer that says what a script tells it to say, and keeps what it hears.
//!
//! A script is the bytes that the peer sends. The control character GS and a letter in it make
//! something else happen there: see [`Step`].

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use remora_proxy::net::connect::Reset;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// What begins a step that is no data.
const MARK: u8 = 0x1d;
/// Bytes that one script sends at most.
const MOST: usize = 2 << 20;
/// Bytes that [`Step::Data`] has where a script repeats one.
const REPEATED: usize = 64 << 10;
/// Polls of one peer beyond which somebody is turning in circles, for each byte and as such.
const POLLS: (usize, usize) = (8, 20_000);

/// One thing that a peer does.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Sends this. `*`: the byte before, 65,536 times.
    Data(Bytes),
    /// `.` Sends nothing for a moment.
    Pause,
    /// `s`, `m`: nothing for a second, or a minute.
    Silence(Duration),
    /// `?` Waits until it has heard something more than at the last one.
    Asked,
    /// `1` Takes one byte at a time from here on.
    OneByOne,
    /// `!` Takes nothing more from here on.
    Deaf,
    /// `|` Says nothing more and stays.
    Mute,
    /// `e` Ends both directions in good order.
    End,
    /// `r` Resets the connection.
    Reset,
}

/// What passed between a peer and the proxy.
#[derive(Debug, Default)]
pub struct Log {
    /// Bytes that the peer has sent and the proxy has read.
    pub said: Vec<u8>,
    /// Bytes that the proxy has written.
    pub heard: Vec<u8>,
    /// The proxy has read the peer's end.
    pub ended: bool,
    /// The proxy closed with a reset.
    pub reset: bool,
    polls: usize,
    waiting: Option<Waker>,
}

/// The proxy's end of a connection to a scripted peer.
#[derive(Debug)]
pub struct Scripted {
    steps: VecDeque<Step>,
    /// Most bytes in one read.
    grain: usize,
    log: Arc<Mutex<Log>>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Bytes heard when [`Step::Asked`] was last over.
    asked: usize,
    taking: Taking,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taking {
    All,
    /// One byte at a time; whether the next one has to wait.
    One {
        wait: bool,
    },
    Nothing,
    Broken,
}

impl Scripted {
    /// A peer, and what will be known of it. Reads give at most `grain` bytes.
    #[must_use]
    pub fn new(script: &[u8], grain: usize) -> (Self, Arc<Mutex<Log>>) {
        let log = Arc::<Mutex<Log>>::default();
        let this = Self {
            steps: steps(script),
            grain: grain.max(1),
            log: Arc::clone(&log),
            sleep: None,
            asked: 0,
            taking: Taking::All,
        };
        (this, log)
    }

    /// A peer that says these bytes, whatever they are, and then ends.
    #[must_use]
    pub fn plain(bytes: &[u8], grain: usize) -> (Self, Arc<Mutex<Log>>) {
        let (mut this, log) = Self::new(b"", grain);
        this.steps.extend(flushed(&mut bytes.to_vec()));
        (this, log)
    }

    /// What passed so far.
    #[must_use]
    pub fn log(&self) -> &Arc<Mutex<Log>> {
        &self.log
    }

    /// A wrong turn is a loop that nothing ends.
    fn count_poll(&self) {
        let mut log = self.log.lock();
        log.polls += 1;
        let most = (log.said.len() + log.heard.len()) * POLLS.0 + POLLS.1;
        assert!(log.polls <= most, "a peer is polled again and again: {} times", log.polls);
    }

    /// Does the steps up to the next data.
    fn act(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.steps.front() {
                None | Some(Step::Data(_)) => return Poll::Ready(Ok(())),
                Some(Step::Pause) => {
                    self.steps.pop_front();
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Some(Step::Silence(time)) => {
                    let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(*time)));
                    ready!(sleep.as_mut().poll(cx));
                    self.sleep = None;
                }
                Some(Step::Asked) => {
                    let mut log = self.log.lock();
                    if log.heard.len() == self.asked {
                        log.waiting = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                    self.asked = log.heard.len();
                }
                Some(Step::OneByOne) => self.taking = Taking::One { wait: false },
                Some(Step::Deaf) => self.taking = Taking::Nothing,
                Some(Step::Mute) => return Poll::Pending,
                Some(Step::End) => {
                    self.steps.clear();
                    self.taking = Taking::Broken;
                    return Poll::Ready(Ok(()));
                }
                Some(Step::Reset) => {
                    self.taking = Taking::Broken;
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
            }
            self.steps.pop_front();
        }
    }
}

/// What a script says.
fn steps(script: &[u8]) -> VecDeque<Step> {
    let mut steps = VecDeque::new();
    let mut data = Vec::new();
    let mut sent = 0;
    let mut rest = script;
    while let [byte, more @ ..] = rest {
        rest = more;
        let step = match (*byte, more.first()) {
            (MARK, Some(b'*')) => Step::Data(vec![*data.last().unwrap_or(&b'x'); REPEATED].into()),
            (MARK, Some(b'.')) => Step::Pause,
            (MARK, Some(b's')) => Step::Silence(Duration::from_secs(1)),
            (MARK, Some(b'm')) => Step::Silence(Duration::from_secs(60)),
            (MARK, Some(b'?')) => Step::Asked,
            (MARK, Some(b'1')) => Step::OneByOne,
            (MARK, Some(b'!')) => Step::Deaf,
            (MARK, Some(b'|')) => Step::Mute,
            (MARK, Some(b'e')) => Step::End,
            (MARK, Some(b'r')) => Step::Reset,
            _ => {
                data.push(*byte);
                continue;
            }
        };
        rest = &more[1..];
        sent += if matches!(step, Step::Data(_)) { REPEATED } else { 0 };
        if sent <= MOST {
            steps.extend(flushed(&mut data));
            steps.push_back(step);
        }
    }
    steps.extend(flushed(&mut data));
    steps
}

fn flushed(data: &mut Vec<u8>) -> Option<Step> {
    (!data.is_empty()).then(|| Step::Data(std::mem::take(data).into()))
}

impl AsyncRead for Scripted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.count_poll();
        ready!(self.act(cx))?;
        let most = self.grain.min(buf.remaining());
        let log = Arc::clone(&self.log);
        let mut log = log.lock();
        let Some(Step::Data(data)) = self.steps.front_mut() else {
            log.ended = true;
            return Poll::Ready(Ok(()));
        };
        let piece = data.split_to(most.min(data.len()));
        buf.put_slice(&piece);
        log.said.extend_from_slice(&piece);
        if data.is_empty() {
            self.steps.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.count_poll();
        let taken = match self.taking {
            Taking::All => bytes.len(),
            Taking::One { wait: false } => {
                self.taking = Taking::One { wait: true };
                bytes.len().min(1)
            }
            Taking::One { wait: true } => {
                self.taking = Taking::One { wait: false };
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Taking::Nothing => return Poll::Pending,
            Taking::Broken => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        let mut log = self.log.lock();
        log.heard.extend_from_slice(&bytes[..taken]);
        if let Some(waiting) = log.waiting.take() {
            waiting.wake();
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Reset for Scripted {
    fn reset(&self) {
        self.log.lock().reset = true;
    }
}
