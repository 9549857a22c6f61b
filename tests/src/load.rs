//! Constant load, with every request counted: how many were sent, answered, and failed.

use std::{
    fmt,
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::Instant,
};

use crate::{
    origin::{Answer, Body, empty, full},
    wait::{eventually, within},
};

/// Between two requests of a client: leaves the machine to the others as well.
const PAUSE: Duration = Duration::from_millis(4);
/// Streams that a client of HTTP/2 has open at a time.
const STREAMS: usize = 3;
/// What a client of bytes says, behind a byte that no protocol begins with.
const QUESTION: &[u8] = b"\x01are you there?";

/// How a client calls. All of them send GET and POST in turn, where there are methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// HTTP/1.1, one connection for all, another one where that is closed in order.
    Kept,
    /// HTTP/1.1, a connection for each.
    Fresh,
    /// HTTP/2, a few streams at a time.
    Streams,
    /// Unary gRPC.
    Grpc,
    /// A connection of bytes for each, with a question and an answer.
    Bytes,
}

impl Calls {
    /// Every way there is.
    pub const ALL: [Self; 5] = [Self::Kept, Self::Fresh, Self::Streams, Self::Grpc, Self::Bytes];
}

/// What became of the requests.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Begun, in whatever way they ended.
    pub sent: usize,
    /// Answered as they should be.
    pub answered: usize,
    /// The others.
    pub failed: Vec<Failure>,
}

/// A request that was not answered as it should be.
#[derive(Debug, Clone)]
pub struct Failure {
    /// When it began: what was dialled or sent was so later.
    pub began: Instant,
    /// How it was sent.
    pub kind: Calls,
    /// What is wrong with it.
    pub problem: String,
}

/// Clients that ask without a break until they are told to stop.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    sent: AtomicUsize,
    answered: AtomicUsize,
    failed: Mutex<Vec<Failure>>,
    stop: AtomicBool,
}

impl Load {
    /// Two clients that keep their connection and two that make a new one for each request.
    #[must_use]
    pub fn start(entry: SocketAddr) -> Self {
        Self::of(&[entry], &[Calls::Kept, Calls::Kept, Calls::Fresh, Calls::Fresh])
    }

    /// One client of each kind for each entry.
    #[must_use]
    pub fn of(entries: &[SocketAddr], kinds: &[Calls]) -> Self {
        Self::begin(entries, kinds, false)
    }

    /// The same of clients that dial again where nobody listens, since their own proxy is being
    /// restarted. What fails on a connection that stands is a failure as ever.
    #[must_use]
    pub fn patient(entries: &[SocketAddr], kinds: &[Calls]) -> Self {
        Self::begin(entries, kinds, true)
    }

    fn begin(entries: &[SocketAddr], kinds: &[Calls], patient: bool) -> Self {
        let shared = Arc::<Shared>::default();
        let each = entries.iter().flat_map(|entry| kinds.iter().map(move |kind| (*entry, *kind)));
        let clients = each.map(|(entry, kind)| {
            let client = Client { entry, kind, patient, shared: Arc::clone(&shared) };
            tokio::spawn(client.run())
        });
        let clients = clients.collect();
        Self { shared, clients }
    }

    /// Waits for so many more answers, of whatever kind.
    pub async fn passes(&self, more: usize) {
        let target = self.shared.done() + more;
        eventually("requests to be answered", async || {
            (self.shared.done() >= target).then_some(())
        })
        .await;
    }

    /// Ends it and says what became of all requests.
    pub async fn report(self) -> Report {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            within("a client's end", client).await.expect("a client panicked");
        }
        let Shared { sent, answered, failed, .. } = &*self.shared;
        let report = Report {
            sent: sent.load(Ordering::Relaxed),
            answered: answered.load(Ordering::Relaxed),
            failed: std::mem::take(&mut failed.lock()),
        };
        assert_eq!(report.sent, report.answered + report.failed.len(), "one is not accounted for");
        report
    }

    /// Ends it; not one request may have failed. Says how many there were.
    ///
    /// # Panics
    /// Where one failed, or none was sent.
    pub async fn without_failures(self) -> usize {
        let report = self.report().await;
        assert!(report.failed.is_empty() && report.sent > 0, "{report}");
        report.sent
    }
}

impl Shared {
    fn done(&self) -> usize {
        self.answered.load(Ordering::Relaxed) + self.failed.lock().len()
    }

    fn count(&self, kind: Calls, began: Instant, result: Result<(), String>) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(()) => drop(self.answered.fetch_add(1, Ordering::Relaxed)),
            Err(problem) => self.failed.lock().push(Failure { began, kind, problem }),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, answered, failed } = self;
        write!(f, "{sent} sent, {answered} answered, {} failed", failed.len())?;
        failed.iter().take(5).try_for_each(|Failure { began, kind, problem }| {
            write!(f, "\n  {kind:?}, {:?} ago: {problem}", began.elapsed())
        })
    }
}

struct Client {
    entry: SocketAddr,
    kind: Calls,
    patient: bool,
    shared: Arc<Shared>,
}

impl Client {
    async fn run(self) {
        let (mut kept, mut shared) = (None, None);
        let mut methods = [Method::GET, Method::POST].into_iter().cycle();
        while !self.shared.stop.load(Ordering::Relaxed) {
            let method = methods.next().unwrap_or_default();
            let began = Instant::now();
            match self.kind {
                Calls::Kept | Calls::Fresh => {
                    let result = self.http1(&mut kept, &method).await;
                    self.count(began, result.map_err(|problem| format!("{method}: {problem}")));
                    if self.kind == Calls::Fresh {
                        kept = None;
                    }
                }
                Calls::Streams | Calls::Grpc => self.http2(&mut shared, &method).await,
                Calls::Bytes => {
                    let result = self.bytes().await.map_err(|error| error.to_string());
                    self.count(began, result);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn count(&self, began: Instant, result: Result<(), String>) {
        self.shared.count(self.kind, began, result);
    }

    async fn dial(&self) -> io::Result<TcpStream> {
        loop {
            match within("a dial", TcpStream::connect(self.entry)).await {
                Err(error) if self.patient && error.kind() == ErrorKind::ConnectionRefused => {
                    tokio::time::sleep(PAUSE).await;
                }
                dialled => {
                    let stream = dialled?;
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
            }
        }
    }

    /// One request over the connection at hand, or over a new one where that was closed in order.
    async fn http1(
        &self,
        kept: &mut Option<http1::SendRequest<Body>>,
        method: &Method,
    ) -> Result<(), String> {
        let mut known = kept.take();
        if let Some(sender) = &mut known
            && sender.ready().await.is_err()
        {
            known = None;
        }
        let mut sender = match known {
            Some(sender) => sender,
            None => {
                let io = TokioIo::new(self.dial().await.map_err(text)?);
                let (sender, connection) = http1::handshake(io).await.map_err(text)?;
                tokio::spawn(connection);
                sender
            }
        };
        let request = Request::builder().method(method).uri("/").header("host", "orders");
        let request = request.body(self.question(method)).map_err(text)?;
        let response = within("an answer", sender.send_request(request)).await.map_err(text)?;
        self.check(&Answer::read(response).await.map_err(text)?)?;
        *kept = Some(sender);
        Ok(())
    }

    /// A few requests at once over the connection at hand; those that the server says it did not look
    /// at, since it is going away, go over a new one (RFC 9113 §8.7).
    async fn http2(&self, shared: &mut Option<http2::SendRequest<Body>>, method: &Method) {
        let mut left = if self.kind == Calls::Grpc { 1 } else { STREAMS };
        while left > 0 {
            let began = Instant::now();
            let known = shared.take().filter(|sender| !sender.is_closed());
            let sender = match known {
                Some(sender) => Ok(sender),
                None => self.http2_connection().await,
            };
            let sender = match sender {
                Ok(sender) => sender,
                Err(problem) => {
                    (0..left).for_each(|_| self.count(began, Err(problem.clone())));
                    return;
                }
            };
            let calls = (0..left).map(|_| self.stream(sender.clone(), method));
            left = 0;
            for result in join_all(calls).await {
                match result {
                    Stream::NotSeen => left += 1,
                    Stream::Ended(result) => {
                        self.count(began, result.map_err(|problem| format!("{method}: {problem}")));
                    }
                }
            }
            if left == 0 {
                *shared = Some(sender);
            }
        }
    }

    async fn http2_connection(&self) -> Result<http2::SendRequest<Body>, String> {
        let io = TokioIo::new(self.dial().await.map_err(text)?);
        let handshake = http2::handshake(TokioExecutor::new(), io).await;
        let (sender, connection) = handshake.map_err(text)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn stream(&self, mut sender: http2::SendRequest<Body>, method: &Method) -> Stream {
        let grpc = self.kind == Calls::Grpc;
        let method = if grpc { &Method::POST } else { method };
        let mut request = Request::new(self.question(method));
        *request.method_mut() = method.clone();
        *request.uri_mut() = "http://orders/shop.Orders/Ask".parse().expect("a URI");
        if grpc {
            let headers = request.headers_mut();
            headers.insert("content-type", "application/grpc".parse().expect("a value"));
            headers.insert("te", "trailers".parse().expect("a value"));
        }
        let sent = within("an answer", sender.try_send_request(request)).await;
        let response = match sent {
            Ok(response) => response,
            Err(mut failed) => {
                let unsent = failed.take_message().is_some();
                let error = failed.into_error();
                if unsent || was_not_seen(&error) {
                    return Stream::NotSeen;
                }
                return Stream::Ended(Err(text(error)));
            }
        };
        Stream::Ended(match Answer::read(response).await {
            Ok(answer) => self.check(&answer),
            Err(error) => Err(text(error)),
        })
    }

    async fn bytes(&self) -> io::Result<()> {
        let mut stream = self.dial().await?;
        let exchange = async {
            stream.write_all(QUESTION).await?;
            stream.shutdown().await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            if answer == QUESTION { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
        };
        within("an echo", exchange).await
    }

    fn question(&self, method: &Method) -> Body {
        match (self.kind, method) {
            (Calls::Grpc, _) => full(&b"\0\0\0\0\x01?"[..]),
            (_, &Method::POST) => full("an order"),
            _ => empty(),
        }
    }

    fn check(&self, answer: &Answer) -> Result<(), String> {
        let trailers_needed = self.kind == Calls::Grpc;
        let ok = !trailers_needed || answer.trailers.get("grpc-status").is_some_and(|s| s == "0");
        if answer.status == 200 && ok { Ok(()) } else { Err(format!("{answer:?}")) }
    }
}

enum Stream {
    /// The server says that it did not look at it.
    NotSeen,
    Ended(Result<(), String>),
}

fn was_not_seen(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(h2) = cause.downcast_ref::<h2::Error>() {
            let graceful = h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR);
            return h2.is_remote() && (graceful || h2.reason() == Some(h2::Reason::REFUSED_STREAM));
        }
        source = cause.source();
    }
    false
}

fn text(error: impl std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// What an application answers to any of them, after `busy`, so that something is under way at any
/// moment.
pub async fn answer(request: Request<Incoming>, busy: Duration) -> Response<Body> {
    let grpc = request.headers().contains_key("te");
    let body = request.into_body().collect().await;
    tokio::time::sleep(busy).await;
    // Whoever breaks off does not read this.
    let asked = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    if !grpc {
        return Response::new(full(asked));
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().expect("a value"));
    let frames = [Ok(Frame::data(asked)), Ok(Frame::<Bytes>::trailers(trailers))];
    let mut response =
        Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync());
    let kind = "application/grpc".parse().expect("a value");
    response.headers_mut().insert("content-type", kind);
    response
}
