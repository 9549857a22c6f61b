//! Carrying bytes both ways: half-close stays half-close, a reset stays a reset, and an idle
//! connection holds no buffer.
//!
//! Each direction reads into a scratch buffer of the worker and writes from it at once. Only what
//! the other side does not take is kept, at most [`scratch::SIZE`] bytes a direction; nothing more is read
//! until that is gone, so a slow reader slows the writer.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{
    connect::{Reset, Unfinished},
    scratch,
};

/// Bytes carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// From `a` to `b`.
    pub a_to_b: u64,
    /// From `b` to `a`.
    pub b_to_a: u64,
}

/// Why carrying came to an end before both sides did.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A connection broke.
    #[error("{error}")]
    Io {
        /// Which one.
        side: Side,
        /// What it said.
        #[source]
        error: io::Error,
    },
    /// Neither direction moved for too long, and it was this side's turn.
    #[error("nothing was carried for {after:?}, waiting for {owing:?}")]
    Idle {
        /// The bound.
        after: Duration,
        /// The side that took nothing of what there was for it, or else did not speak last.
        owing: Side,
    },
}

/// One of the two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

/// Carries until both sides have ended, or nothing has moved for `idle`. `carried` counts as it goes,
/// also when the future is dropped.
///
/// # Errors
/// The first error of either side, or the pause. Both connections are then set to end in a reset, so
/// that neither peer takes a break for an orderly end; so they are where the future is dropped before
/// its end.
pub async fn bidirectional<A, B>(
    a: &mut A,
    b: &mut B,
    carried: &mut Carried,
    idle: Option<Duration>,
) -> Result<(), Broken>
where
    A: AsyncRead + AsyncWrite + Reset + Unpin,
    B: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let (mut there, mut back) = (Direction::default(), Direction::default());
    let mut patience = idle.map(Patience::new);
    let (mut a, mut b) = (Unfinished::new(a), Unfinished::new(b));
    poll_fn(|cx| {
        let first = there.poll(cx, &mut *a, &mut *b, &mut carried.a_to_b);
        let first = first.map_err(|fault| fault.between(Side::A, Side::B))?;
        let second = back.poll(cx, &mut *b, &mut *a, &mut carried.b_to_a);
        let second = second.map_err(|fault| fault.between(Side::B, Side::A))?;
        if first.is_ready() && second.is_ready() {
            return Poll::Ready(Ok(()));
        }
        match &mut patience {
            Some(patience) => patience.poll(cx, &there, &back).map(Err),
            None => Poll::Pending,
        }
    })
    .await?;
    a.finish();
    b.finish();
    Ok(())
}

/// Waits for a pause that is too long. Nothing is armed anew as bytes move: a timer that goes off too
/// early is set to what is left.
struct Patience {
    bound: Duration,
    /// Movements of both directions that were seen, when the last one was, and whose turn it is.
    seen: (u64, u64),
    since: Instant,
    owing: Side,
    sleep: Pin<Box<Sleep>>,
}

impl Patience {
    fn new(bound: Duration) -> Self {
        let since = Instant::now();
        let sleep = Box::pin(sleep_until(since + bound));
        Self { bound, seen: (0, 0), since, owing: Side::A, sleep }
    }

    fn poll(&mut self, cx: &mut Context<'_>, there: &Direction, back: &Direction) -> Poll<Broken> {
        let seen = (there.moves, back.moves);
        if seen != self.seen {
            self.owing = if seen.1 == self.seen.1 { Side::B } else { Side::A };
            (self.seen, self.since) = (seen, Instant::now());
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let due = self.since + self.bound;
            if due <= Instant::now() {
                let owing = match (there.is_stuck(), back.is_stuck()) {
                    (_, true) => Side::A,
                    (true, false) => Side::B,
                    (false, false) => self.owing,
                };
                return Poll::Ready(Broken::Idle { after: self.bound, owing });
            }
            self.sleep.as_mut().reset(due);
        }
    }
}

#[derive(Default)]
struct Direction {
    pending: Vec<u8>,
    written: usize,
    unflushed: bool,
    state: State,
    /// Grows with whatever is read or written.
    moves: u64,
}

#[derive(Default, PartialEq)]
enum State {
    #[default]
    Open,
    Ending,
    Done,
}

/// Which end of a direction broke.
enum Fault {
    From(io::Error),
    To(io::Error),
}

impl Fault {
    fn between(self, from: Side, to: Side) -> Broken {
        match self {
            Self::From(error) => Broken::Io { side: from, error },
            Self::To(error) => Broken::Io { side: to, error },
        }
    }
}

impl Direction {
    /// The other side does not take what was read for it.
    fn is_stuck(&self) -> bool {
        self.written < self.pending.len()
    }

    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &mut u64,
    ) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while self.state == State::Open {
            ready!(self.poll_pending(cx, to)).map_err(Fault::To)?;
            match self.poll_chunk(cx, from, to, count)? {
                Poll::Ready(()) => {}
                Poll::Pending => {
                    if self.unflushed {
                        let flushed = Pin::new(&mut *to).poll_flush(cx).map_err(Fault::To)?;
                        self.unflushed = flushed.is_pending();
                    }
                    return Poll::Pending;
                }
            }
        }
        if self.state == State::Ending {
            ready!(self.poll_pending(cx, to)).map_err(Fault::To)?;
            match ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                // It ended in the meantime, which is what was wanted.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                other => other.map_err(Fault::To)?,
            }
            self.state = State::Done;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what was left over before.
    fn poll_pending<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<io::Result<()>> {
        while self.written < self.pending.len() {
            let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.pending[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
            self.moves += 1;
        }
        self.pending = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Reads one chunk and writes what the other side takes of it.
    fn poll_chunk<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &mut u64,
    ) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        scratch::with(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            ready!(Pin::new(from).poll_read(cx, &mut buf)).map_err(Fault::From)?;
            let mut chunk = buf.filled();
            if chunk.is_empty() {
                self.moves += 1;
                self.state = State::Ending;
                return Poll::Ready(Ok(()));
            }
            *count += chunk.len() as u64;
            self.moves += 1;
            self.unflushed = true;
            while !chunk.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, chunk).map_err(Fault::To)? {
                    Poll::Ready(0) => {
                        let error = io::ErrorKind::WriteZero.into();
                        return Poll::Ready(Err(Fault::To(error)));
                    }
                    Poll::Ready(n) => chunk = &chunk[n..],
                    Poll::Pending => {
                        self.pending = chunk.to_vec();
                        return Poll::Ready(Ok(()));
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
        net::{TcpListener, TcpStream},
    };

    impl Reset for DuplexStream {
        fn reset(&self) {}
    }

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn half_close_leaves_the_other_direction_open() {
        let ((mut client, mut down), (mut up, mut server)) = (tcp_pair().await, tcp_pair().await);
        let copy = tokio::spawn(async move {
            let mut carried = Carried::default();
            let result = bidirectional(&mut down, &mut up, &mut carried, None).await;
            (result.is_ok(), carried)
        });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        server.write_all(b"a long answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "a long answer"));
        assert_eq!(copy.await.unwrap(), (true, Carried { a_to_b: 8, b_to_a: 13 }));
    }

    #[tokio::test]
    async fn a_reset_reaches_the_other_side_as_a_reset() {
        let ((client, mut down), (mut up, mut server)) = (tcp_pair().await, tcp_pair().await);
        client.reset();
        drop(client);
        let mut carried = Carried::default();
        assert!(bidirectional(&mut down, &mut up, &mut carried, None).await.is_err());
        drop((down, up));
        let error = server.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_copy_that_is_given_up_is_no_orderly_end() {
        let ((mut client, mut down), (mut up, mut server)) = (tcp_pair().await, tcp_pair().await);
        let mut carried = Carried::default();
        let mut copy = Box::pin(bidirectional(&mut down, &mut up, &mut carried, None));
        client.write_all(b"x").await.unwrap();
        tokio::select! {
            _ = &mut copy => unreachable!(),
            read = server.read_u8() => assert_eq!(read.unwrap(), b'x'),
        }
        drop(copy);
        drop((down, up));
        for end in [&mut client, &mut server] {
            let error = end.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn a_slow_reader_stops_the_writer_at_a_bound() {
        let (mut client, mut down) = tokio::io::duplex(1024);
        let (mut up, mut server) = tokio::io::duplex(1024);
        let copy = tokio::spawn(async move {
            let mut carried = Carried::default();
            bidirectional(&mut down, &mut up, &mut carried, None).await.map(|()| carried)
        });
        let data = vec![7u8; 1 << 20];
        let mut accepted = 0;
        // Nobody reads at the far end, so the pipe fills: two duplex buffers and one chunk.
        while let Ok(n) =
            tokio::time::timeout(std::time::Duration::from_millis(50), client.write(&data)).await
        {
            accepted += n.unwrap();
        }
        assert!(accepted <= 2 * (scratch::SIZE + 1024), "{accepted}");
        let drain = tokio::spawn(async move {
            let mut total = Vec::new();
            server.read_to_end(&mut total).await.unwrap();
            total.len()
        });
        client.write_all(&data).await.unwrap();
        drop(client);
        assert_eq!(drain.await.unwrap(), accepted + data.len());
        copy.abort();
    }

    const IDLE: Duration = Duration::from_secs(60);

    /// Two connections with the copy between them, on paused time; how it ended and when.
    fn idle_pair() -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<(Broken, Duration)>) {
        let (client, mut down) = tokio::io::duplex(1024);
        let (mut up, server) = tokio::io::duplex(1024);
        let copy = tokio::spawn(async move {
            let (mut carried, begun) = (Carried::default(), Instant::now());
            let ended = bidirectional(&mut down, &mut up, &mut carried, Some(IDLE)).await;
            (ended.unwrap_err(), begun.elapsed())
        });
        (client, server, copy)
    }

    fn owing(broken: &Broken) -> Option<Side> {
        match broken {
            Broken::Idle { after: IDLE, owing } => Some(*owing),
            _ => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_the_connection_however_long_it_lived() {
        let (mut client, mut server, copy) = idle_pair();
        let begun = Instant::now();
        // An hour of pings, now from this side, now from that.
        for n in 0..80 {
            tokio::time::sleep(Duration::from_secs(45)).await;
            let (from, to) =
                if n % 2 == 0 { (&mut client, &mut server) } else { (&mut server, &mut client) };
            from.write_u8(n).await.unwrap();
            assert_eq!(to.read_u8().await.unwrap(), n);
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(3600));
        let (broken, after) = copy.await.unwrap();
        assert_eq!(after, Duration::from_secs(3600) + IDLE);
        assert_eq!(owing(&broken), Some(Side::A), "the server spoke last: {broken}");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_nothing_is_to_blame_for_the_pause() {
        let (mut client, server, copy) = idle_pair();
        let send = async { while client.write_all(&[0; 512]).await.is_ok() {} };
        let ((broken, after), ()) = tokio::join!(async { copy.await.unwrap() }, send);
        assert_eq!((after, owing(&broken)), (IDLE, Some(Side::B)), "{broken}");
        drop(server);
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_has_ended_does_not_stop_the_clock() {
        let (mut client, mut server, copy) = idle_pair();
        client.shutdown().await.unwrap();
        assert_eq!(server.read_u8().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (broken, after) = copy.await.unwrap();
        assert_eq!((after, owing(&broken)), (IDLE, Some(Side::B)), "{broken}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_bound_a_connection_may_be_silent_for_ever() {
        let (mut client, mut down) = tokio::io::duplex(1024);
        let (mut up, mut server) = tokio::io::duplex(1024);
        let copy = tokio::spawn(async move {
            bidirectional(&mut down, &mut up, &mut Carried::default(), None).await.is_ok()
        });
        tokio::time::sleep(Duration::from_secs(365 * 24 * 3600)).await;
        client.write_u8(1).await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), 1);
        drop((client, server));
        assert!(copy.await.unwrap());
    }
}
