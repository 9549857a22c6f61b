//! One request and its response, between the client's connection and one upstream connection.
//!
//! Everything is driven by one task: the request's body, the response's head and body, and the
//! watch for a client that goes away.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout},
};

use super::{
    body::{BadBody, Encoder, Framing},
    request::RequestHead,
    response::{BadResponse, ResponseHead, Towards},
    scan::Scan,
    timer::Timer,
    transfer::{Broken, Transfer},
    wire::{NoHead, Wire},
};
use crate::{
    http::MAX_HEAD,
    net::{connect::Reset, copy},
};

/// Interim responses (1xx) to one request.
const MAX_INTERIM: usize = 64;
/// Time to give a client what came of a response that broke off.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long to wait for what; `None` is no bound.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience {
    /// When the response's head must be there, counted from the attempt's beginning.
    pub attempt: Option<Instant>,
    /// From the end of the request to the response's head.
    pub response: Option<Duration>,
    /// Longest pause in either body.
    pub idle: Option<Duration>,
    /// When the whole response must be there.
    pub request: Option<Instant>,
}

/// Which bound of [`Patience`] passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// The attempt's.
    Attempt,
    /// The response's.
    Response,
    /// The pause in a body, while the client sent or took nothing.
    ClientIdle,
    /// The pause in a body, while the upstream sent or took nothing.
    UpstreamIdle,
    /// The whole request's.
    Request,
}

/// No response.
#[derive(Debug)]
pub enum NoAnswer {
    /// The client went away.
    ClientGone,
    /// The client's body is not framed as it should be.
    BadBody(BadBody),
    /// The upstream broke the connection, or ended it.
    Broken {
        /// What the connection said.
        error: io::Error,
        /// Whether a byte of the request may have left.
        sent: bool,
    },
    /// The upstream said something that is no response.
    Bad(BadResponse),
    /// Time is up.
    Late(Late),
}

/// How a response ended that was begun.
#[derive(Debug)]
pub enum Ending {
    /// It is complete.
    Complete {
        /// The client's connection takes the next request.
        client: bool,
        /// The upstream's connection takes another request.
        upstream: bool,
    },
    /// The client went away.
    ClientGone,
    /// The upstream broke off.
    Broken {
        /// What its connection said.
        error: io::Error,
        /// The client has a part of the response, so its connection must break as well.
        begun: bool,
    },
    /// Time is up.
    Late {
        /// Which bound passed.
        late: Late,
        /// As above.
        begun: bool,
    },
}

/// The request's body on its way to an upstream, kept for a repetition.
#[must_use]
pub fn upload(request: &RequestHead) -> Transfer {
    let encoder =
        if request.framing == Framing::Chunked { Encoder::Chunked } else { Encoder::Plain };
    Transfer::new(request.framing, encoder).keeping()
}

/// Sends a request, with `extra` field lines, and waits for the final response's head. Interim
/// responses go to the client.
///
/// # Errors
/// See [`NoAnswer`].
pub async fn ask<C, U>(
    (client, upstream): (&mut Wire<C>, &mut Wire<U>),
    (request, extra): (&RequestHead, &[u8]),
    upload: &mut Transfer,
    patience: Patience,
) -> Result<ResponseHead, NoAnswer>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    request.write(extra, upstream.output());
    upload.replay(upstream.output());
    let mut ask = Ask {
        request,
        patience,
        accepted_before: upstream.accepted(),
        uploading: true,
        switch: None,
        respond_by: None,
        idle: Idle::default(),
        scan: Scan::default(),
        interim: 0,
        timer: Timer::default(),
    };
    poll_fn(|cx| ask.poll(cx, client, upstream, upload)).await
}

struct Ask<'a> {
    request: &'a RequestHead,
    patience: Patience,
    accepted_before: u64,
    /// The request is on its way and the upstream takes it.
    uploading: bool,
    /// The response with which both sides leave HTTP, once the request has come to its end
    /// (RFC 9110 §7.8).
    switch: Option<ResponseHead>,
    respond_by: Option<Instant>,
    idle: Idle,
    scan: Scan,
    interim: usize,
    timer: Timer,
}

impl Ask<'_> {
    fn poll<C, U>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Wire<C>,
        upstream: &mut Wire<U>,
        upload: &mut Transfer,
    ) -> Poll<Result<ResponseHead, NoAnswer>>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        if self.uploading
            && let Poll::Ready(result) = upload.poll(cx, client, upstream)
        {
            match result {
                Ok(()) => {
                    self.uploading = false;
                    self.respond_by = self.patience.response.map(|bound| Instant::now() + bound);
                }
                Err(Broken::Source(_)) => return Poll::Ready(Err(NoAnswer::ClientGone)),
                Err(Broken::Bad(bad)) => return Poll::Ready(Err(NoAnswer::BadBody(bad))),
                Err(Broken::Sink(error)) if self.switch.is_some() => {
                    return Poll::Ready(Err(NoAnswer::Broken { error, sent: true }));
                }
                // It may have answered before it closed.
                Err(Broken::Sink(error)) => {
                    tracing::debug!(%error, "upstream takes no more of the request");
                    self.uploading = false;
                }
            }
        }
        if upload.is_done()
            && let Some(switch) = self.switch.take()
        {
            return Poll::Ready(Ok(switch));
        }
        while self.switch.is_none()
            && has_room(cx, client)?
            && let Poll::Ready(head) = self.poll_head(cx, upstream)
        {
            let head = head?;
            if head.leaves_http && !upload.is_done() {
                if !self.uploading {
                    let bad = BadResponse("leaves HTTP in the middle of the request");
                    return Poll::Ready(Err(NoAnswer::Bad(bad)));
                }
                self.switch = Some(head);
                break;
            }
            if !head.is_interim() {
                return Poll::Ready(Ok(head));
            }
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Poll::Ready(Err(NoAnswer::Bad(BadResponse("does not come to an end"))));
            }
            if self.request.is_1_1() {
                head.write(self.request, client.output());
            }
        }
        if client.unwritten() > 0
            && let Poll::Ready(Err(_)) = client.poll_flush(cx)
        {
            return Poll::Ready(Err(NoAnswer::ClientGone));
        }
        if !self.uploading && client.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(NoAnswer::ClientGone));
        }
        let stuck = upstream.unwritten() > 0;
        self.poll_time(cx, upload, if stuck { Late::UpstreamIdle } else { Late::ClientIdle })
    }

    fn poll_head<U>(
        &mut self,
        cx: &mut Context<'_>,
        upstream: &mut Wire<U>,
    ) -> Poll<Result<ResponseHead, NoAnswer>>
    where
        U: AsyncRead + AsyncWrite + Unpin,
    {
        let head = std::task::ready!(upstream.poll_head(cx, &mut self.scan, false, MAX_HEAD));
        self.scan = Scan::default();
        Poll::Ready(match head {
            Ok(raw) => ResponseHead::parse(raw, self.request).map_err(NoAnswer::Bad),
            Err(NoHead::TooLong { .. }) => {
                Err(NoAnswer::Bad(BadResponse("has a head that is longer than 64 KiB")))
            }
            Err(other) => {
                let error = match other {
                    NoHead::Broken(error) => error,
                    _ => io::ErrorKind::UnexpectedEof.into(),
                };
                let sent = upstream.accepted() > self.accepted_before;
                Err(NoAnswer::Broken { error, sent })
            }
        })
    }

    fn poll_time<T>(
        &mut self,
        cx: &mut Context<'_>,
        upload: &Transfer,
        idle: Late,
    ) -> Poll<Result<T, NoAnswer>> {
        let bound = self.patience.idle.filter(|_| self.uploading);
        let idle_by = self.idle.due(bound, upload.moved());
        let (due, late) = first([
            (self.patience.request, Late::Request),
            (self.patience.attempt, Late::Attempt),
            (self.respond_by, Late::Response),
            (idle_by, idle),
        ]);
        self.timer.poll(cx, due).map(|()| Err(NoAnswer::Late(late)))
    }
}

/// Whether another interim response can be put into the client's output. An upstream that says more
/// than the client takes has to wait.
fn has_room<C>(cx: &mut Context<'_>, client: &mut Wire<C>) -> Result<bool, NoAnswer>
where
    C: AsyncWrite + Unpin,
{
    if client.unwritten() < MAX_HEAD {
        return Ok(true);
    }
    match client.poll_flush(cx) {
        Poll::Ready(Ok(())) => Ok(true),
        Poll::Ready(Err(_)) => Err(NoAnswer::ClientGone),
        Poll::Pending => Ok(false),
    }
}

/// The earliest of some bounds; of equal ones the first.
fn first<const N: usize>(bounds: [(Option<Instant>, Late); N]) -> (Option<Instant>, Late) {
    let set = bounds.into_iter().filter_map(|(at, late)| Some((at?, late)));
    set.min_by_key(|(at, _)| *at).map_or((None, Late::Request), |(at, late)| (Some(at), late))
}

/// When a body last moved.
#[derive(Debug, Default)]
struct Idle {
    moved: u64,
    since: Option<Instant>,
}

impl Idle {
    fn due(&mut self, bound: Option<Duration>, moved: u64) -> Option<Instant> {
        let bound = bound?;
        let since = match self.since {
            Some(since) if moved == self.moved => since,
            _ => Instant::now(),
        };
        (self.moved, self.since) = (moved, Some(since));
        Some(since + bound)
    }
}

/// Sends a response to the client, while what is left of the request goes on upstream.
///
/// `last`: the client's connection ends after it.
pub async fn answer<C, U>(
    (client, upstream): (&mut Wire<C>, &mut Wire<U>),
    request: &RequestHead,
    mut head: ResponseHead,
    upload: &mut Transfer,
    patience: Patience,
    last: bool,
) -> Ending
where
    C: AsyncRead + AsyncWrite + Reset + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    // A refusal that came before the request's end: what the client still sends is of no use, and
    // one that waits for 100 (Continue) will not send it at all.
    let unasked = !upload.is_done()
        && (request.expects_continue || !(head.status.is_success() || head.leaves_http));
    let (encoder, persists) = head.adapt(Towards { request, last: last || unasked });
    // Interim responses may still be on their way to the client.
    let begins_at = client.accepted() + client.unwritten() as u64;
    head.write(request, client.output());
    let delimited = encoder == Encoder::Chunked || head.framing != Framing::UntilClose;
    let mut answer = Answer {
        download: Transfer::new(head.framing, encoder).in_answer_to(upload),
        patience,
        uploading: true,
        upload_broken: false,
        idle: Idle::default(),
        timer: Timer::default(),
    };
    let stop = match poll_fn(|cx| answer.poll(cx, client, upstream, upload)).await {
        Ok(()) => {
            let whole = upload.is_done() && !answer.upload_broken;
            let written = upstream.unwritten() == 0;
            return Ending::Complete {
                client: persists && whole,
                upstream: head.keep_alive && whole && written,
            };
        }
        Err(stop) => stop,
    };
    let begun = client.accepted() > begins_at;
    if begun && !matches!(stop, Stop::ClientGone) {
        // What came is given; where its end is not marked, an orderly one would pass it off as whole.
        let _ = timeout(LAST_WORDS, poll_fn(|cx| client.poll_flush(cx))).await;
        if !delimited {
            client.reset();
        }
    } else {
        client.keep_output_until(begins_at);
    }
    match stop {
        Stop::ClientGone => Ending::ClientGone,
        Stop::Broken(error) => Ending::Broken { error, begun },
        Stop::Late(late) => Ending::Late { late, begun },
    }
}

enum Stop {
    ClientGone,
    Broken(io::Error),
    Late(Late),
}

struct Answer {
    download: Transfer,
    patience: Patience,
    /// The request is on its way, be its end read already: it may not be written.
    uploading: bool,
    upload_broken: bool,
    idle: Idle,
    timer: Timer,
}

impl Answer {
    fn poll<C, U>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Wire<C>,
        upstream: &mut Wire<U>,
        upload: &mut Transfer,
    ) -> Poll<Result<(), Stop>>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        if self.uploading
            && let Poll::Ready(result) = upload.poll(cx, client, upstream)
        {
            self.uploading = false;
            if let Err(error) = result {
                tracing::debug!(?error, "the rest of the request did not arrive");
                self.upload_broken = true;
            }
        }
        if let Poll::Ready(result) = self.download.poll(cx, upstream, client) {
            return Poll::Ready(result.map_err(|broken| match broken {
                Broken::Sink(_) => Stop::ClientGone,
                Broken::Source(error) => Stop::Broken(error),
                Broken::Bad(bad) => Stop::Broken(io::Error::new(io::ErrorKind::InvalidData, bad)),
            }));
        }
        if upload.is_done() && client.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Stop::ClientGone));
        }
        let moved = self.download.moved() + upload.moved();
        let idle_by = self.idle.due(self.patience.idle, moved);
        let idle = if client.unwritten() > 0 { Late::ClientIdle } else { Late::UpstreamIdle };
        let (due, late) = first([(self.patience.request, Late::Request), (idle_by, idle)]);
        self.timer.poll(cx, due).map(|()| Err(Stop::Late(late)))
    }
}

/// Carries bytes both ways after both sides have left HTTP, beginning with the head that says so, until
/// nothing has moved for `idle`.
///
/// # Errors
/// The first error of either side, or the pause; both connections then end in a reset.
pub async fn tunnel<C, U>(
    (client, upstream): (&mut Wire<C>, &mut Wire<U>),
    (request, mut head): (&RequestHead, ResponseHead),
    carried: &mut copy::Carried,
    idle: Option<Duration>,
) -> Result<(), copy::Broken>
where
    C: AsyncRead + AsyncWrite + Reset + Unpin,
    U: AsyncRead + AsyncWrite + Reset + Unpin,
{
    head.adapt(Towards { request, last: false });
    head.write(request, client.output());
    // What was read ahead on either side is the first that goes through.
    let (asked, answered) = (client.leftovers(), upstream.leftovers());
    carried.a_to_b += asked.len() as u64;
    carried.b_to_a += answered.len() as u64;
    upstream.output().extend_from_slice(&asked);
    client.output().extend_from_slice(&answered);
    drop((asked, answered));
    let (mut there, mut back) = (false, false);
    let beginning = poll_fn(|cx| {
        let broke = |side| move |error| copy::Broken::Io { side, error };
        there = there || upstream.poll_flush(cx).map_err(broke(copy::Side::B))?.is_ready();
        back = back || client.poll_flush(cx).map_err(broke(copy::Side::A))?.is_ready();
        if there && back { Poll::Ready(Ok(())) } else { Poll::Pending }
    });
    match idle {
        None => beginning.await?,
        Some(after) => match timeout(after, beginning).await {
            Ok(written) => written?,
            Err(_) => {
                client.reset();
                upstream.reset();
                let owing = if there { copy::Side::A } else { copy::Side::B };
                return Err(copy::Broken::Idle { after, owing });
            }
        },
    }
    copy::bidirectional(client.io_mut(), upstream.io_mut(), carried, idle).await
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
