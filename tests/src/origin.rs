//! HTTP servers and clients that count, for what is not told byte for byte.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    server::conn,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};

use crate::wait::within;

/// Why a body that a test wrote ends early.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// Body of requests and responses.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// No body.
#[must_use]
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// What both ends of HTTP/2 take for a head; the proxies' limits are what is looked at.
const HEADER_LIST: u32 = 1 << 20;

/// What a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1.
    H1,
    /// HTTP/2 with prior knowledge.
    H2,
    /// Whichever of them the client begins with. What is neither comes back as it is.
    Any,
}

/// A server that counts. Dropped, its connections are cut.
#[derive(Debug)]
pub struct Origin {
    requests: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Origin {
    /// Serves until it is dropped.
    ///
    /// # Panics
    /// Where the address is taken.
    pub async fn serve<F, Fut>(addr: SocketAddr, speaks: Speaks, handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind(addr).await;
        let listener = listener.unwrap_or_else(|error| panic!("{addr}: {error}"));
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        let accept = async move {
            // Dropping the set with the task cuts the connections.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (handler, counter) = (handler.clone(), Arc::clone(&counter));
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        counter.fetch_add(1, Ordering::Relaxed);
                        let response = handler(request);
                        async move { Ok::<_, Infallible>(response.await) }
                    });
                    let _ = stream.set_nodelay(true);
                    let speaks = match speaks {
                        Speaks::Any => first_word(&stream).await,
                        known => Some(known),
                    };
                    // A connection that breaks is the test's own doing.
                    let _ = match speaks {
                        Some(Speaks::H2) => {
                            let (exec, io) = (TokioExecutor::new(), TokioIo::new(stream));
                            let mut builder = conn::http2::Builder::new(exec);
                            builder.max_header_list_size(HEADER_LIST);
                            builder.serve_connection(io, service).await
                        }
                        Some(_) => {
                            let io = TokioIo::new(stream);
                            conn::http1::Builder::new().serve_connection(io, service).await
                        }
                        None => return echo(stream).await,
                    };
                });
            }
        };
        Self { requests, task: tokio::spawn(accept).abort_handle() }
    }

    /// Answers everything with `200` and this text.
    pub async fn saying(addr: SocketAddr, text: &'static str) -> Self {
        Self::serve(addr, Speaks::H1, move |_| async move { Response::new(full(text)) }).await
    }

    /// Requests seen so far.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a client begins with: `None` for what is not HTTP.
async fn first_word(stream: &TcpStream) -> Option<Speaks> {
    let mut first = [0; 3];
    match stream.peek(&mut first).await {
        Ok(3) if &first == b"PRI" => Some(Speaks::H2),
        Ok(1..) if first[0].is_ascii_uppercase() => Some(Speaks::H1),
        _ => None,
    }
}

async fn echo(mut stream: TcpStream) {
    let (mut from, mut to) = stream.split();
    // It breaks where the test breaks it.
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

/// An HTTP/1.1 client connection.
///
/// # Panics
/// Where it cannot be made.
pub async fn h1(addr: SocketAddr) -> http1::SendRequest<Body> {
    let stream = within("a dial", TcpStream::connect(addr)).await.expect("connected");
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    sender
}

/// An HTTP/2 client connection with prior knowledge.
///
/// # Panics
/// Where it cannot be made.
pub async fn h2(addr: SocketAddr) -> http2::SendRequest<Body> {
    let stream = within("a dial", TcpStream::connect(addr)).await.expect("connected");
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.max_header_list_size(HEADER_LIST);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

/// One GET over a connection of its own: status, the proxy's reason word and the body.
///
/// # Errors
/// Where the connection breaks.
///
/// # Panics
/// Where no answer comes.
pub async fn get(addr: SocketAddr) -> Result<Answer, hyper::Error> {
    let request = Request::get("/").header("host", "orders").body(empty()).expect("a request");
    within("an answer", async {
        let mut sender = h1(addr).await;
        Answer::read(sender.send_request(request).await?).await
    })
    .await
}

/// A response, complete.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Fields.
    pub headers: http::HeaderMap,
    /// Body.
    pub text: String,
    /// Trailers.
    pub trailers: http::HeaderMap,
}

impl Answer {
    /// Reads a response to its end.
    ///
    /// # Errors
    /// Where it breaks off.
    pub async fn read(response: Response<Incoming>) -> Result<Self, hyper::Error> {
        let (head, body) = response.into_parts();
        let body = within("a body", body.collect()).await?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        Ok(Self { status: head.status.as_u16(), headers: head.headers, text, trailers })
    }

    /// Why the proxy answered instead of the application.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.headers.get("remora-proxy-error")?.to_str().ok()
    }
}
