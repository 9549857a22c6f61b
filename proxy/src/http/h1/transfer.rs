//! One body on its way from one connection to the other.

use std::{
    io,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    body::{BadBody, Decoder, Encoder, Framing, Piece},
    wire::Wire,
};
use crate::metrics::bodies::Bodies;

/// Output below this waits for more of a body that is at hand, so that a head and a small body
/// leave in one write.
const BATCH: usize = 16 * 1024;
/// Content from here on is written without a copy where it needs no frame.
const LARGE: usize = 4 * 1024;

/// Moves a body. Holds at most what is read at once ([`crate::net::scratch::SIZE`]) and its frames:
/// nothing more is read until the other side took that, so a slow reader slows the writer.
#[derive(Debug)]
pub struct Transfer {
    decoder: Decoder,
    encoder: Encoder,
    kept: Option<Vec<u8>>,
    /// The end is in the output.
    ended: bool,
    /// Bytes of content so far.
    moved: u64,
    /// Where they are counted too.
    counted: Option<(Whose, Arc<Bodies>)>,
}

/// Which message a body belongs to.
#[derive(Debug, Clone, Copy)]
enum Whose {
    Request,
    Response,
}

/// Why a body did not arrive.
#[derive(Debug)]
pub enum Broken {
    /// It is not framed as it should be.
    Bad(BadBody),
    /// The connection it comes from broke, or ended in the middle of it.
    Source(io::Error),
    /// The connection it goes to broke.
    Sink(io::Error),
}

impl Transfer {
    pub(super) fn new(framing: Framing, encoder: Encoder) -> Self {
        let decoder = Decoder::new(framing);
        // What has no body has no end that must be said.
        let ended = decoder.is_done();
        Self { decoder, encoder, kept: None, ended, moved: 0, counted: None }
    }

    /// Keeps a copy of the content, as long as it is at most `MAX_KEPT` bytes.
    pub(super) fn keeping(mut self) -> Self {
        self.kept = Some(Vec::new());
        self
    }

    /// Counts what moves of a request's body, and of that of the response to it.
    pub fn counted_in(&mut self, bodies: &Arc<Bodies>) {
        self.counted = Some((Whose::Request, Arc::clone(bodies)));
    }

    /// The body of a response is counted where that of its request is.
    pub(super) fn in_answer_to(mut self, upload: &Self) -> Self {
        let counted = upload.counted.as_ref().filter(|_| !self.ended);
        self.counted = counted.map(|(_, bodies)| (Whose::Response, Arc::clone(bodies)));
        self
    }

    /// Whether all of it was read and is in the output, or beyond it.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.ended
    }

    /// Content moved so far, in bytes.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// The part that finds its end.
    pub(super) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The content so far, if all of it was kept.
    #[must_use]
    pub fn kept(&self) -> Option<&[u8]> {
        self.kept.as_deref()
    }

    /// Puts what was kept into `out`, framed anew, for another connection that goes on from there.
    pub(super) fn replay(&self, out: &mut Vec<u8>) {
        self.encoder.data(self.kept.as_deref().unwrap_or_default(), out);
        if self.ended {
            self.encoder.end(self.decoder.trailers(), out);
        }
    }

    /// Moves what can be moved; ready when all of it was written.
    pub(super) fn poll<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Wire<A>,
        to: &mut Wire<B>,
    ) -> Poll<Result<(), Broken>>
    where
        A: AsyncRead + Unpin,
        B: AsyncWrite + Unpin,
    {
        loop {
            if to.unwritten() >= BATCH {
                ready!(to.poll_write_out(cx)).map_err(Broken::Sink)?;
            }
            if self.ended {
                return to.poll_flush(cx).map_err(Broken::Sink);
            }
            if !from.input().is_empty() {
                self.take_input(cx, from, to)?;
                continue;
            }
            let read = from.poll_read_into(cx, |from, cx, bytes| {
                if bytes.is_empty() {
                    return self
                        .source_ended(to)
                        .then_some(())
                        .ok_or(Broken::Source(io::ErrorKind::UnexpectedEof.into()));
                }
                let used = self.take(cx, bytes, to)?;
                from.keep_input(&bytes[used..]);
                Ok(())
            });
            match read {
                Poll::Ready(Ok(result)) => result?,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Source(error))),
                Poll::Pending => {
                    // Nothing is held back while the source is silent.
                    ready!(to.poll_flush(cx)).map_err(Broken::Sink)?;
                    return Poll::Pending;
                }
            }
        }
    }

    fn take_input<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Wire<A>,
        to: &mut Wire<B>,
    ) -> Result<(), Broken>
    where
        B: AsyncWrite + Unpin,
    {
        // Out of the connection for the moment, so that both can be borrowed.
        let input = from.leftovers();
        let used = self.take(cx, &input, to);
        from.keep_input(&input[used.as_ref().map_or(0, |used| *used)..]);
        used.map(drop)
    }

    /// Uses bytes up to the body's end and says how many that were.
    fn take<B>(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        to: &mut Wire<B>,
    ) -> Result<usize, Broken>
    where
        B: AsyncWrite + Unpin,
    {
        let mut at = 0;
        while !self.ended {
            let (used, piece) = self.decoder.next(&bytes[at..]).map_err(Broken::Bad)?;
            at += used;
            match piece {
                Piece::Data(data) => {
                    self.count(data.len());
                    self.keep(data);
                    let through = self.encoder == Encoder::Plain
                        && data.len() >= LARGE
                        && to.unwritten() == 0;
                    if through {
                        to.write_through(cx, data).map_err(Broken::Sink)?;
                    } else {
                        self.encoder.data(data, to.output());
                    }
                    self.ended = self.decoder.is_done();
                    if self.ended {
                        self.encoder.end(self.decoder.trailers(), to.output());
                    }
                }
                Piece::More => break,
                Piece::End => {
                    self.encoder.end(self.decoder.trailers(), to.output());
                    self.ended = true;
                }
            }
        }
        Ok(at)
    }

    fn source_ended<B>(&mut self, to: &mut Wire<B>) -> bool {
        if !self.decoder.finish() {
            return false;
        }
        self.encoder.end(self.decoder.trailers(), to.output());
        self.ended = true;
        true
    }

    fn count(&mut self, bytes: usize) {
        self.moved += bytes as u64;
        match &self.counted {
            Some((Whose::Request, bodies)) => bodies.of_request(bytes),
            Some((Whose::Response, bodies)) => bodies.of_response(bytes),
            None => {}
        }
    }

    fn keep(&mut self, data: &[u8]) {
        if let Some(kept) = &mut self.kept {
            if kept.len() + data.len() > crate::http::MAX_KEPT {
                self.kept = None;
            } else {
                kept.extend_from_slice(data);
            }
        }
    }
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
