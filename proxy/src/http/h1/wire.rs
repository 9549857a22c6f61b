//! A connection, with what was read ahead from it and what is still to be written to it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    head::RawHead,
    scan::{Found, Scan},
};
use crate::net::{connect::Reset, scratch};

/// Bytes of a pipelining client that are read ahead while its request is served.
const READ_AHEAD: usize = 16 * 1024;

/// One end of an exchange.
///
/// Both buffers are empty, and hold no memory, while nothing is under way.
#[derive(Debug)]
pub struct Wire<IO> {
    io: IO,
    input: Vec<u8>,
    /// Input before this is used up.
    used: usize,
    output: Vec<u8>,
    /// Output before this is written.
    written: usize,
    unflushed: bool,
    /// The peer has ended its direction.
    ended: bool,
    /// A peer that ends its direction still listens.
    half_close: bool,
    accepted: u64,
}

/// No head.
#[derive(Debug)]
pub(super) enum NoHead {
    /// The peer ended the connection before a byte of it came.
    End,
    /// It ended in the middle.
    Cut,
    /// A line ends in a bare line feed.
    BareLineFeed,
    /// It is longer than it may be; its first line alone is.
    TooLong { first_line: bool },
    /// It takes too long.
    TooSlow,
    /// The connection broke.
    Broken(io::Error),
}

impl<IO> Wire<IO> {
    /// A connection of which `input` was read already.
    #[must_use]
    pub fn new(io: IO, input: Vec<u8>) -> Self {
        Self {
            io,
            input,
            used: 0,
            output: Vec::new(),
            written: 0,
            unflushed: false,
            ended: false,
            half_close: true,
            accepted: 0,
        }
    }

    /// A peer that ends its direction is gone: it is a proxy of ours, which has no other way to say
    /// so.
    #[must_use]
    pub fn without_half_close(mut self) -> Self {
        self.half_close = false;
        self
    }

    /// The connection itself.
    pub fn io(&self) -> &IO {
        &self.io
    }

    /// The connection itself, to be read from and written to; see [`Self::leftovers`].
    pub fn io_mut(&mut self) -> &mut IO {
        &mut self.io
    }

    /// What was read ahead, to be handed on before anything that is read from now on.
    pub fn leftovers(&mut self) -> Vec<u8> {
        let used = std::mem::take(&mut self.used);
        let mut input = std::mem::take(&mut self.input);
        input.drain(..used);
        input
    }

    /// Bytes that the connection has taken so far. Some of them may not have left this machine.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// What was read and not yet used.
    pub(super) fn input(&self) -> &[u8] {
        &self.input[self.used..]
    }

    /// Forgets what was read and not yet used.
    pub fn discard_input(&mut self) {
        self.consume(self.input().len());
    }

    /// So much of the input is used.
    pub(super) fn consume(&mut self, n: usize) {
        self.used += n;
        if self.used >= self.input.len() {
            self.input = Vec::new();
            self.used = 0;
        }
    }

    /// Puts bytes behind the input that is left.
    pub(super) fn keep_input(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Where to put what is to be written.
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Bytes that wait to be written.
    pub(super) fn unwritten(&self) -> usize {
        self.output.len() - self.written
    }

    /// Forgets what waits to be written beyond this many bytes in all ([`Self::accepted`]): the peer is
    /// to get something else.
    pub(super) fn keep_output_until(&mut self, bytes: u64) {
        let kept = bytes.saturating_sub(self.accepted);
        let kept = usize::try_from(kept).unwrap_or(usize::MAX);
        self.output.truncate(self.written.saturating_add(kept));
    }

    fn take_head(&mut self, scan: &Scan, (start, end): (usize, usize)) -> RawHead {
        let (from, to) = (self.used + start, self.used + end);
        if from == 0 && to == self.input.len() {
            // The usual case: nothing else was read.
            return scan.cut(std::mem::take(&mut self.input));
        }
        let head = self.input[from..to].to_vec();
        self.consume(end);
        scan.cut(head)
    }
}

impl<IO: Reset> Reset for Wire<IO> {
    fn reset(&self) {
        self.io.reset();
    }
}

impl<IO: AsyncRead + Unpin> Wire<IO> {
    /// Whether the connection can take a request: the peer has neither ended it nor said anything
    /// unasked. Asks nobody and waits for nothing.
    pub(super) fn is_quiet(&mut self) -> bool {
        if self.ended || !self.input().is_empty() {
            return false;
        }
        let mut cx = Context::from_waker(Waker::noop());
        let mut byte = [0; 1];
        let mut buf = ReadBuf::new(&mut byte);
        Pin::new(&mut self.io).poll_read(&mut cx, &mut buf).is_pending()
    }

    /// Reads what there is and keeps it. `Ok(0)`: the peer has ended its direction.
    pub(super) fn poll_read_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        scratch::with(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
            let read = buf.filled();
            self.ended = read.is_empty();
            self.input.extend_from_slice(read);
            Poll::Ready(Ok(read.len()))
        })
    }

    /// Reads what there is and hands it to `use_them` without keeping it; nothing, where the peer has
    /// ended its direction.
    pub(super) fn poll_read_into<R>(
        &mut self,
        cx: &mut Context<'_>,
        use_them: impl FnOnce(&mut Self, &mut Context<'_>, &[u8]) -> R,
    ) -> Poll<io::Result<R>> {
        if self.ended {
            return Poll::Ready(Ok(use_them(self, cx, &[])));
        }
        scratch::with(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
            self.ended = buf.filled().is_empty();
            Poll::Ready(Ok(use_them(self, cx, buf.filled())))
        })
    }

    /// Resolves when a peer that waits has gone away.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Whoever sends the next request already is still there.
        while !self.ended && self.input().len() < READ_AHEAD {
            match ready!(self.poll_read_more(cx)) {
                Ok(0) if !self.half_close => return Poll::Ready(()),
                Ok(_) => {}
                Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }

    /// Reads up to the end of a head of at most `most` bytes.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        scan: &mut Scan,
        strict: bool,
        most: usize,
    ) -> Poll<Result<RawHead, NoHead>> {
        loop {
            let seen = self.input().len();
            let found = scan.find(self.input(), strict);
            let too_long = NoHead::TooLong { first_line: scan.first_line_exceeds(most) };
            match found {
                Found::Head(start, end) if end - start > most => {
                    return Poll::Ready(Err(too_long));
                }
                Found::Head(start, end) => {
                    return Poll::Ready(Ok(self.take_head(scan, (start, end))));
                }
                Found::BareLineFeed => return Poll::Ready(Err(NoHead::BareLineFeed)),
                Found::More if seen >= most => return Poll::Ready(Err(too_long)),
                Found::More => {}
            }
            if ready!(self.poll_read_more(cx)).map_err(NoHead::Broken)? == 0 {
                let nothing = self.input().is_empty();
                return Poll::Ready(Err(if nothing { NoHead::End } else { NoHead::Cut }));
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> Wire<IO> {
    /// Writes and flushes all output.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(cx))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes all output.
    pub(super) fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.output.len() {
            let rest = &self.output[self.written..];
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
            self.accepted += n as u64;
            self.unflushed = true;
        }
        if self.written > 0 {
            self.output = Vec::new();
            self.written = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes as much as the connection takes now, past the output buffer, which must be empty, and
    /// keeps the rest there.
    pub(super) fn write_through(&mut self, cx: &mut Context<'_>, data: &[u8]) -> io::Result<()> {
        debug_assert!(self.output.is_empty());
        let mut rest = data;
        while !rest.is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, rest)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(n) => {
                    self.accepted += n as u64;
                    self.unflushed = true;
                    rest = &rest[n..];
                }
                Poll::Pending => {
                    self.output.extend_from_slice(rest);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Ends our direction once all is written.
    pub(super) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
