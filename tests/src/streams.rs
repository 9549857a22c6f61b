//! HTTP/2 stream by stream, for what hyper hides: codes of resets, windows, trailers.

use std::{future::poll_fn, net::SocketAddr};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client, server};
use http::{HeaderMap, Request, Response};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};

use crate::wait::within;

/// A client connection with settings of the test's choice.
///
/// # Panics
/// Where it cannot be made.
pub async fn dial(addr: SocketAddr, settings: &client::Builder) -> client::SendRequest<Bytes> {
    let stream = within("a dial", TcpStream::connect(addr)).await.expect("connected");
    let _ = stream.set_nodelay(true);
    let (sender, connection) = settings.handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    within("room for a stream", sender.ready()).await.expect("ready")
}

/// The same with the settings of the library.
pub async fn connect(addr: SocketAddr) -> client::SendRequest<Bytes> {
    dial(addr, &client::Builder::new()).await
}

/// A request whose body goes on.
///
/// # Panics
/// Where the connection does not take it.
pub fn open(sender: &mut client::SendRequest<Bytes>, request: Request<()>) -> Sent {
    let (answer, body) = sender.send_request(request, false).expect("a stream");
    Sent { answer, body }
}

/// A request without a body.
///
/// # Panics
/// Where the connection does not take it.
pub fn ask(
    sender: &mut client::SendRequest<Bytes>,
    request: Request<()>,
) -> client::ResponseFuture {
    sender.send_request(request, true).expect("a stream").0
}

/// A request that was sent.
#[derive(Debug)]
pub struct Sent {
    /// Its answer.
    pub answer: client::ResponseFuture,
    /// The rest of it.
    pub body: SendStream<Bytes>,
}

/// An application that speaks HTTP/2. A test takes its calls one by one; dropped, it cuts all of its
/// connections.
#[derive(Debug)]
pub struct App {
    calls: mpsc::Receiver<Call>,
    _serving: JoinSet<()>,
}

/// A call that arrived.
#[derive(Debug)]
pub struct Call {
    /// What was asked, and the body.
    pub request: Request<RecvStream>,
    /// To answer with.
    pub respond: server::SendResponse<Bytes>,
}

impl App {
    /// Listens, with the settings of the library.
    pub async fn listen(addr: SocketAddr) -> Self {
        Self::listen_with(addr, server::Builder::new()).await
    }

    /// Listens, with settings of the test's choice.
    ///
    /// # Panics
    /// Where the address is taken.
    pub async fn listen_with(addr: SocketAddr, settings: server::Builder) -> Self {
        let listener = TcpListener::bind(addr).await;
        let listener = listener.unwrap_or_else(|error| panic!("{addr}: {error}"));
        let (calls, received) = mpsc::channel(64);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let (settings, calls) = (settings.clone(), calls.clone());
                connections.spawn(async move {
                    let Ok(mut connection) = settings.handshake(stream).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        let _ = calls.send(Call { request, respond }).await;
                    }
                });
            }
        });
        Self { calls: received, _serving: serving }
    }

    /// The next call, on whatever connection.
    ///
    /// # Panics
    /// Where none comes.
    pub async fn call(&mut self) -> Call {
        within("a call", self.calls.recv()).await.expect("the application goes on")
    }

    /// Whether a call is waiting, now.
    #[must_use]
    pub fn has_call(&self) -> bool {
        !self.calls.is_empty()
    }
}

impl Call {
    /// Answers with a head alone.
    ///
    /// # Panics
    /// Where the stream is gone.
    pub fn answer(&mut self, response: Response<()>) {
        self.respond.send_response(response, true).expect("a stream");
    }

    /// Answers with a head that a body follows.
    ///
    /// # Panics
    /// Where the stream is gone.
    pub fn begin(&mut self, response: Response<()>) -> SendStream<Bytes> {
        self.respond.send_response(response, false).expect("a stream")
    }

    /// Waits until the caller resets a stream that was not answered yet, and says with which code.
    ///
    /// # Panics
    /// Where that does not happen.
    pub async fn reset(&mut self) -> Reason {
        let reset = poll_fn(|cx| self.respond.poll_reset(cx));
        within("a reset", reset).await.expect("a code")
    }
}

/// Waits until the other side resets a stream whose head was sent, and says with which code.
///
/// # Panics
/// Where that does not happen.
pub async fn reset(body: &mut SendStream<Bytes>) -> Reason {
    within("a reset", poll_fn(|cx| body.poll_reset(cx))).await.expect("a code")
}

/// Bytes and trailers of a body, read to its end; flow control is given back as it comes.
///
/// # Errors
/// How it ended, where that was not in order. NO_ERROR is what a server says that needs no more of the
/// request (RFC 9113 §8.1).
pub async fn read(body: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(chunk) = within("data", body.data()).await {
        let chunk = match chunk {
            Err(error) if error.reason() == Some(Reason::NO_ERROR) => return Ok((all, None)),
            chunk => chunk?,
        };
        let _ = body.flow_control().release_capacity(chunk.len());
        all.extend_from_slice(&chunk);
    }
    Ok((all, within("trailers", body.trailers()).await?))
}

/// One chunk of a body.
///
/// # Panics
/// Where the body ends or breaks instead.
pub async fn chunk(body: &mut RecvStream) -> Bytes {
    let chunk = within("data", body.data()).await.expect("more").expect("data");
    let _ = body.flow_control().release_capacity(chunk.len());
    chunk
}

/// Sends as the other side makes room.
///
/// # Errors
/// Where the stream ends.
pub async fn send(
    body: &mut SendStream<Bytes>,
    mut data: Bytes,
    last: bool,
) -> Result<(), h2::Error> {
    while !data.is_empty() {
        body.reserve_capacity(data.len());
        let room = within("room", poll_fn(|cx| body.poll_capacity(cx))).await;
        let room = room.unwrap_or(Err(Reason::STREAM_CLOSED.into()))?;
        let chunk = data.split_to(room.min(data.len()));
        body.send_data(chunk, last && data.is_empty())?;
    }
    Ok(())
}
