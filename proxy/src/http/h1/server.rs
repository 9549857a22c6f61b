//! Serving the requests of one client connection, one after the other.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode, header};
use remora_core::{drain, settings::HeaderSize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout},
};

use super::{
    head::RawHead,
    request::{BARE_LINE_FEED, Refusal, RequestHead},
    scan::Scan,
    timer::Timer,
    wire::{NoHead, Wire},
};
use crate::{
    error::Error,
    http::{MAX_KEPT, answer},
    net::connect::{Reset, Unfinished},
};

/// Time from a head's first byte to its end.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// Idle connections stay this long after draining has begun.
const LINGER: Duration = Duration::from_secs(1);
/// A client that still sends what nobody wants gets this long to find our answer, and so many bytes
/// of it are read over.
const READ_OVER: Duration = Duration::from_secs(2);
const MAX_READ_OVER: usize = 1024 * 1024;

/// What a connection's requests are answered with.
pub trait Handler<IO> {
    /// Answers one request on `client`, its body included.
    fn handle(
        &self,
        client: &mut Wire<IO>,
        request: RequestHead,
    ) -> impl Future<Output = After> + Send;

    /// A request was refused before it came to [`Self::handle`]; the answer is on its way.
    fn refused(&self, error: &Error);
}

/// What becomes of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It takes the next request.
    Next,
    /// It ends, once all is written.
    Close,
    /// The same, though the client may still be sending.
    Refuse,
    /// It breaks: the client is gone, or must see that what it has is not all.
    Break,
}

/// Serves until either side has enough. When draining begins, the request under way finishes first.
pub async fn serve<IO, H>(
    mut client: Wire<IO>,
    handler: &H,
    max_head: HeaderSize,
    drain: &drain::Watch,
) where
    IO: AsyncRead + AsyncWrite + Reset + Unpin + Send,
    H: Handler<IO> + Sync,
{
    let most = usize::try_from(max_head.bytes()).unwrap_or(usize::MAX);
    let mut lingering = pin!(linger(drain));
    loop {
        let mut reading = Reading::new(most);
        let head = poll_fn(|cx| match reading.poll(cx, &mut client) {
            Poll::Ready(head) => Poll::Ready(Some(head)),
            // In the middle of a head there is something to wait for.
            Poll::Pending if client.input().is_empty() => {
                lingering.as_mut().poll(cx).map(|()| None)
            }
            Poll::Pending => Poll::Pending,
        });
        let after = match head.await {
            None => After::Close,
            Some(Ok(raw)) => match RequestHead::parse(raw) {
                Ok(request) => {
                    // At the drain's deadline all of this is dropped.
                    let mut client = Unfinished::new(&mut client);
                    let after = handler.handle(&mut client, request).await;
                    client.finish();
                    after
                }
                Err(refusal) => refuse(&mut client, handler, refusal),
            },
            Some(Err(NoHead::BareLineFeed)) => {
                refuse(&mut client, handler, Refusal::Malformed(BARE_LINE_FEED))
            }
            Some(Err(NoHead::TooLong { first_line: true })) => {
                refuse(&mut client, handler, Refusal::TargetTooLong(most))
            }
            Some(Err(NoHead::TooLong { first_line: false })) => {
                refuse(&mut client, handler, Refusal::HeadTooLong(most))
            }
            Some(Err(NoHead::TooSlow)) => {
                refuse(&mut client, handler, Refusal::TooSlow(HEAD_WITHIN))
            }
            Some(Err(NoHead::End)) => After::Close,
            Some(Err(NoHead::Cut | NoHead::Broken(_))) => After::Break,
        };
        match after {
            After::Next => {}
            After::Close => {
                let _ = timeout(READ_OVER, poll_fn(|cx| client.poll_finish(cx))).await;
                return;
            }
            After::Refuse => return close(client).await,
            After::Break => return,
        }
    }
}

/// HTTP/1.1 cannot say in advance that an idle connection will close, and a request may be on its
/// way. So when draining begins the answers say `Connection: close`, and idle connections close only
/// once those who use them had time to learn it.
async fn linger(drain: &drain::Watch) {
    drain.draining().await;
    tokio::time::sleep(LINGER).await;
}

/// A head that is being read, with its bounds.
struct Reading {
    scan: Scan,
    most: usize,
    by: Option<Instant>,
    timer: Timer,
}

impl Reading {
    fn new(most: usize) -> Self {
        Self { scan: Scan::default(), most, by: None, timer: Timer::default() }
    }

    fn poll<IO: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Wire<IO>,
    ) -> Poll<Result<RawHead, NoHead>> {
        if let Poll::Ready(head) = client.poll_head(cx, &mut self.scan, true, self.most) {
            return Poll::Ready(head);
        }
        if client.input().is_empty() {
            return Poll::Pending;
        }
        let by = *self.by.get_or_insert_with(|| Instant::now() + HEAD_WITHIN);
        self.timer.poll(cx, Some(by)).map(|()| Err(NoHead::TooSlow))
    }
}

fn refuse<IO, H: Handler<IO>>(client: &mut Wire<IO>, handler: &H, refusal: Refusal) -> After {
    let error = Error::Refused(refusal);
    handler.refused(&error);
    write(&answer::error(&error, false), Reply::refusal(), client.output());
    After::Refuse
}

/// How an answer of the proxy's own is to be written.
#[derive(Debug, Clone, Copy)]
pub struct Reply {
    minor: u8,
    /// Only its head is wanted.
    head_only: bool,
    close: bool,
}

impl Reply {
    /// To a request that was not understood.
    fn refusal() -> Self {
        Self { minor: 1, head_only: false, close: true }
    }

    /// To a request; `last` where the connection ends after it.
    #[must_use]
    pub fn to(request: &RequestHead, last: bool) -> Self {
        let close = last || !request.keep_alive;
        Self { minor: request.minor, head_only: request.method == http::Method::HEAD, close }
    }
}

/// Answers a request with an error, and says what becomes of the connection. The body of the request
/// is read over where it is short; where it is not, the connection ends.
pub async fn answer<IO>(
    client: &mut Wire<IO>,
    request: &RequestHead,
    upload: &super::transfer::Transfer,
    response: &Response<Bytes>,
    last: bool,
) -> After
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let left = upload
        .decoder()
        .left()
        .filter(|left| *left == 0 || (*left <= MAX_KEPT as u64 && !request.expects_continue));
    let reply = Reply::to(request, last || left.is_none());
    write(response, reply, client.output());
    let written = poll_fn(|cx| client.poll_flush(cx)).await;
    match left {
        _ if written.is_err() => After::Break,
        Some(0) if reply.close => After::Close,
        Some(left) if !reply.close => match timeout(READ_OVER, read_over(client, left)).await {
            Ok(true) => After::Next,
            _ => After::Refuse,
        },
        _ => After::Refuse,
    }
}

/// Reads and forgets; `false` where the client ends before.
async fn read_over<IO: AsyncRead + Unpin>(client: &mut Wire<IO>, mut left: u64) -> bool {
    while left > 0 {
        let known = client.input().len().min(usize::try_from(left).unwrap_or(usize::MAX));
        client.consume(known);
        left -= known as u64;
        if left > 0 && !matches!(poll_fn(|cx| client.poll_read_more(cx)).await, Ok(1..)) {
            return false;
        }
    }
    true
}

fn write(response: &Response<Bytes>, reply: Reply, out: &mut Vec<u8>) {
    let status = response.status();
    let line = format!(
        "HTTP/1.{} {} {}\r\n",
        reply.minor,
        status.as_u16(),
        status.canonical_reason().unwrap_or_default()
    );
    out.extend_from_slice(line.as_bytes());
    let mut field = |name: &str, value: &[u8]| {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    };
    for (name, value) in response.headers() {
        field(name.as_str(), value.as_bytes());
    }
    // RFC 9110 §8.6
    if status != StatusCode::NO_CONTENT {
        field(header::CONTENT_LENGTH.as_str(), response.body().len().to_string().as_bytes());
    }
    if reply.close {
        field(header::CONNECTION.as_str(), b"close");
    } else if reply.minor == 0 {
        field(header::CONNECTION.as_str(), b"keep-alive");
    }
    out.extend_from_slice(b"\r\n");
    if !reply.head_only {
        out.extend_from_slice(response.body());
    }
}

/// Ends our direction, and reads over what a client still sends that has not seen it yet: closing
/// with bytes unread would be a reset, which can destroy the answer on its way (RFC 9112 §9.6).
async fn close<IO>(mut client: Wire<IO>)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let ending = async {
        poll_fn(|cx| client.poll_finish(cx)).await?;
        let mut read = 0;
        while read < MAX_READ_OVER {
            let n = client.input().len();
            client.consume(n);
            match poll_fn(|cx| client.poll_read_more(cx)).await? {
                0 => return std::io::Result::Ok(()),
                n => read += n,
            }
        }
        std::future::pending().await
    };
    // Either way it is over.
    let _ = timeout(READ_OVER, ending).await;
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
