//! Ends HTTP/2 connections that cost more than they carry.
//!
//! A frame without content (PING, SETTINGS, PRIORITY, RST_STREAM, WINDOW_UPDATE, an empty DATA, an
//! unknown one) is cheap to send and not to receive: it is answered, begins and cancels work, or is
//! queued where no window counts it. RFC 9113 §10.5
//! leaves it to the receiver to say how much of that is too much. Here every such frame takes from
//! a budget that time refills; a connection that has used it up breaks.
//!
//! Frames are told by their headers as the bytes go by; the codec reads them again.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// How much a peer may ask for without content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Frames at once.
    pub burst: u32,
    /// Frames per second.
    pub per_second: u32,
}

impl Budget {
    /// Of a caller that nobody knows.
    pub const STRANGER: Self = Self { burst: 20_000, per_second: 2_000 };
    /// Of a proxy, which carries many callers' streams on one connection, and of the pod's own
    /// application.
    pub const KNOWN: Self = Self { burst: 200_000, per_second: 20_000 };
}

/// Cost of a frame that cancels work that was just begun.
const RESET: u32 = 5;
/// Cost of a frame that must be acknowledged.
const SETTINGS: u32 = 10;

/// A connection whose incoming frames are counted.
#[derive(Debug)]
pub struct Guarded<IO> {
    io: IO,
    frames: Frames,
    budget: Budget,
    left: u32,
    refilled: Instant,
}

impl<IO> Guarded<IO> {
    /// Counts from now on. `preface`: the peer begins with the client's connection preface.
    #[must_use]
    pub fn new(io: IO, preface: bool, budget: Budget) -> Self {
        let frames = Frames::new(preface);
        Self { io, frames, budget, left: budget.burst, refilled: Instant::now() }
    }

    /// Pays for what just arrived.
    fn charge(&mut self, bytes: &[u8]) -> io::Result<()> {
        let cost = self.frames.cost(bytes);
        if cost <= self.left {
            self.left -= cost;
            return Ok(());
        }
        // Only now is the time of interest.
        let now = Instant::now();
        let millis = now.duration_since(self.refilled).as_millis();
        let earned = u128::from(self.budget.per_second) * millis / 1000;
        let sum = u128::from(self.left) + earned;
        self.refilled = now;
        self.left = u32::try_from(sum).unwrap_or(u32::MAX).min(self.budget.burst);
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                let problem = "too many HTTP/2 frames without content";
                tracing::warn!(per_second = self.budget.per_second, "{problem}; connection closed");
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, problem))
            }
        }
    }
}

/// Follows the frames of one direction (RFC 9113 §4.1).
#[derive(Debug)]
struct Frames {
    /// Bytes to go by before the next frame's header.
    skip: usize,
    header: [u8; 9],
    have: usize,
}

/// Length of the client's connection preface (RFC 9113 §3.4).
const PREFACE: usize = 24;

impl Frames {
    fn new(preface: bool) -> Self {
        Self { skip: if preface { PREFACE } else { 0 }, header: [0; 9], have: 0 }
    }

    /// Cost of the frames whose headers end in these bytes.
    fn cost(&mut self, mut bytes: &[u8]) -> u32 {
        let mut cost: u32 = 0;
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return cost;
            }
            let taken = (9 - self.have).min(bytes.len());
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == 9 {
                self.have = 0;
                let [a, b, c, kind, flags, ..] = self.header;
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                cost = cost.saturating_add(cost_of(kind, flags, self.skip));
            }
        }
    }
}

/// Frame types and flags are those of RFC 9113 §6.
fn cost_of(kind: u8, flags: u8, length: usize) -> u32 {
    const END_STREAM_OR_ACK: u8 = 0x1;
    const PADDED: u8 = 0x8;
    let first_flag = flags & END_STREAM_OR_ACK != 0;
    match kind {
        // DATA: one that could be all padding counts as empty.
        0 if first_flag || (length > 256 || (length > 0 && flags & PADDED == 0)) => 0,
        // HEADERS are a request, PUSH_PROMISE and GOAWAY end the connection or are refused.
        1 | 5 | 7 => 0,
        3 => RESET,
        // An acknowledgement of ours.
        4 | 6 if first_flag => 0,
        4 => SETTINGS,
        // PRIORITY, PING, WINDOW_UPDATE, CONTINUATION, what nobody knows, and empty DATA.
        _ => 1,
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let charged = self.charge(&buf.filled()[before..]);
        if charged.is_err() {
            // A read that fails has read nothing; callers rely on it.
            buf.set_filled(before);
        }
        Poll::Ready(charged)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut out = length[1..].to_vec();
        out.extend([kind, flags, 0, 0, 0, 1]);
        out.extend(payload);
        out
    }

    #[test]
    fn frames_with_content_are_free_and_others_are_not() {
        for (kind, flags, length, cost) in [
            (0, 0, 0, 1),
            (0, 1, 0, 0),
            (0, 0, 5, 0),
            (0, 8, 5, 1),
            (0, 8, 16_384, 0),
            (1, 4, 20, 0),
            (2, 0, 5, 1),
            (3, 0, 4, RESET),
            (4, 0, 6, SETTINGS),
            (4, 1, 0, 0),
            (6, 0, 8, 1),
            (6, 1, 8, 0),
            (8, 0, 4, 1),
            (9, 4, 20, 1),
            (77, 0, 0, 1),
        ] {
            assert_eq!(cost_of(kind, flags, length), cost, "{kind} {flags} {length}");
        }
    }

    proptest! {
        #[test]
        fn frames_are_followed_in_any_pieces(
            frames in prop::collection::vec((0u8..12, 0u8..16, 0usize..300), 0..20),
            pieces in prop::collection::vec(1usize..50, 1..200),
        ) {
            let mut bytes = vec![0xff; PREFACE];
            let mut expected = 0;
            for (kind, flags, length) in frames {
                bytes.extend(frame(kind, flags, &vec![3; length]));
                expected += cost_of(kind, flags, length);
            }
            let mut follow = Frames::new(true);
            let (mut rest, mut cost) = (&bytes[..], 0);
            for piece in pieces.into_iter().chain([usize::MAX]) {
                let (now, later) = rest.split_at(piece.min(rest.len()));
                cost += follow.cost(now);
                rest = later;
            }
            prop_assert_eq!(cost, expected);
        }
    }

    async fn read_all(guarded: &mut Guarded<DuplexStream>, n: usize) -> io::Result<()> {
        let mut bytes = vec![0; n];
        guarded.read_exact(&mut bytes).await.map(drop)
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_that_is_used_up_ends_the_connection_and_time_refills_it() {
        let (mut peer, io) = duplex(1 << 20);
        let budget = Budget { burst: 100, per_second: 10 };
        let mut guarded = Guarded::new(io, false, budget);
        let ping = frame(6, 0, &[0; 8]);
        peer.write_all(&ping.repeat(100)).await.unwrap();
        read_all(&mut guarded, ping.len() * 100).await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        peer.write_all(&ping.repeat(10)).await.unwrap();
        read_all(&mut guarded, ping.len() * 10).await.unwrap();
        peer.write_all(&ping).await.unwrap();
        let error = read_all(&mut guarded, ping.len()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn a_read_that_fails_has_read_nothing() {
        let (mut peer, io) = duplex(1024);
        let mut guarded = Guarded::new(io, false, Budget { burst: 0, per_second: 0 });
        peer.write_all(&frame(6, 0, &[0; 8])).await.unwrap();
        let mut bytes = Vec::with_capacity(64);
        guarded.read_buf(&mut bytes).await.unwrap_err();
        assert!(bytes.is_empty(), "{bytes:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn content_without_end_costs_nothing() {
        let (mut peer, io) = duplex(1 << 20);
        let mut guarded = Guarded::new(io, false, Budget { burst: 1, per_second: 0 });
        let data = frame(0, 0, &[7; 1000]).repeat(500);
        peer.write_all(&data).await.unwrap();
        read_all(&mut guarded, data.len()).await.unwrap();
    }
}
