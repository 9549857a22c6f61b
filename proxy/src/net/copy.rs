//! Carrying bytes both ways: half-close stays half-close, a reset stays a reset, and an idle
//! connection holds no buffer.
//!
//! Each direction reads into a scratch buffer of the worker and writes from it at once. Only what
//! the other side does not take is kept, at most [`scratch::SIZE`] bytes a direction; nothing more is read
//! until that is gone, so a slow reader slows the writer.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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

/// Carries until both sides have ended. `carried` counts as it goes, also when the future is
/// dropped.
///
/// # Errors
/// The first error of either side. Both connections are then set to end in a reset, so that neither
/// peer takes a break for an orderly end; so they are where the future is dropped before its end.
pub async fn bidirectional<A, B>(a: &mut A, b: &mut B, carried: &mut Carried) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Reset + Unpin,
    B: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let (mut there, mut back) = (Direction::default(), Direction::default());
    let (mut a, mut b) = (Unfinished::new(a), Unfinished::new(b));
    poll_fn(|cx| {
        let first = there.poll(cx, &mut *a, &mut *b, &mut carried.a_to_b)?;
        let second = back.poll(cx, &mut *b, &mut *a, &mut carried.b_to_a)?;
        let both = first.is_ready() && second.is_ready();
        if both { Poll::Ready(io::Result::Ok(())) } else { Poll::Pending }
    })
    .await?;
    a.finish();
    b.finish();
    Ok(())
}

#[derive(Default)]
struct Direction {
    pending: Vec<u8>,
    written: usize,
    unflushed: bool,
    state: State,
}

#[derive(Default, PartialEq)]
enum State {
    #[default]
    Open,
    Ending,
    Done,
}

impl Direction {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &mut u64,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while self.state == State::Open {
            ready!(self.poll_pending(cx, to))?;
            match self.poll_chunk(cx, from, to, count)? {
                Poll::Ready(()) => {}
                Poll::Pending => {
                    if self.unflushed && Pin::new(&mut *to).poll_flush(cx)?.is_ready() {
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        if self.state == State::Ending {
            ready!(self.poll_pending(cx, to))?;
            match ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                // It ended in the meantime, which is what was wanted.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                other => other?,
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
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        scratch::with(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            ready!(Pin::new(from).poll_read(cx, &mut buf))?;
            let mut chunk = buf.filled();
            if chunk.is_empty() {
                self.state = State::Ending;
                return Poll::Ready(Ok(()));
            }
            *count += chunk.len() as u64;
            self.unflushed = true;
            while !chunk.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, chunk)? {
                    Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
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
            let result = bidirectional(&mut down, &mut up, &mut carried).await;
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
        assert!(bidirectional(&mut down, &mut up, &mut carried).await.is_err());
        drop((down, up));
        let error = server.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_copy_that_is_given_up_is_no_orderly_end() {
        let ((mut client, mut down), (mut up, mut server)) = (tcp_pair().await, tcp_pair().await);
        let mut carried = Carried::default();
        let mut copy = Box::pin(bidirectional(&mut down, &mut up, &mut carried));
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
            bidirectional(&mut down, &mut up, &mut carried).await.map(|()| carried)
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
}
