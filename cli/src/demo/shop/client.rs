//! The shop's HTTP clients: kept connections to one authority, dialled by name as any program does.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::grpc::{self, StockReply, StockRequest};

/// Idle connections kept per authority.
const MAX_IDLE: usize = 64;
/// Largest answer taken.
const MAX_BODY: usize = 1024 * 1024;

/// Why a call brought no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No connection.
    #[error("cannot connect to {authority}: {source}")]
    Connect { authority: String, source: std::io::Error },
    /// The connection broke.
    #[error("{authority}: {source}")]
    Http { authority: String, source: hyper::Error },
    /// The answer's body broke off or was too large.
    #[error("{authority}: answer cut short: {problem}")]
    Body { authority: String, problem: String },
    /// No answer in time.
    #[error("{authority}: no answer within {0:?}", limit)]
    Timeout { authority: String, limit: Duration },
    /// gRPC: a status other than OK, or none.
    #[error("{authority}: gRPC status {0:?}", status)]
    Grpc { authority: String, status: Option<u32> },
    /// gRPC: a message that cannot be read.
    #[error("{authority}: {source}")]
    Frame { authority: String, source: grpc::FrameError },
    /// An HTTP status that says failure.
    #[error("{authority}: status {status}")]
    Status { authority: String, status: StatusCode },
}

/// HTTP/1.1 to one authority.
#[derive(Debug)]
pub(crate) struct HttpClient {
    authority: String,
    limit: Duration,
    idle: Mutex<Vec<http1::SendRequest<Empty<Bytes>>>>,
}

impl HttpClient {
    /// A client that gives each call `limit`.
    pub(crate) fn new(authority: String, limit: Duration) -> Self {
        Self { authority, limit, idle: Mutex::new(Vec::new()) }
    }

    /// GET over a kept connection where one is idle.
    pub(crate) async fn get(&self, path: &str) -> Result<Response<Bytes>, CallError> {
        self.limited(self.get_kept(path)).await
    }

    /// GET over a connection of its own.
    pub(crate) async fn get_fresh(&self, path: &str) -> Result<Response<Bytes>, CallError> {
        self.limited(async {
            let mut connection = self.connect().await?;
            let sent = connection.send_request(self.request(path, true)).await;
            self.collect(sent.map_err(|source| self.http(source))?).await
        })
        .await
    }

    async fn limited<T>(
        &self,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        tokio::time::timeout(self.limit, call).await.unwrap_or_else(|_| {
            Err(CallError::Timeout { authority: self.authority.clone(), limit: self.limit })
        })
    }

    async fn get_kept(&self, path: &str) -> Result<Response<Bytes>, CallError> {
        let mut request = self.request(path, false);
        loop {
            let kept = self.take_idle();
            let was_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            let response = match connection.try_send_request(request).await {
                Ok(response) => response,
                Err(mut error) => match error.take_message() {
                    // The server closed the idle connection before anything was written.
                    Some(unsent) if was_kept => {
                        request = unsent;
                        continue;
                    }
                    _ => return Err(self.http(error.into_error())),
                },
            };
            let response = self.collect(response).await?;
            let mut idle = self.idle.lock();
            if !connection.is_closed() && idle.len() < MAX_IDLE {
                idle.push(connection);
            }
            return Ok(response);
        }
    }

    fn take_idle(&self) -> Option<http1::SendRequest<Empty<Bytes>>> {
        let mut idle = self.idle.lock();
        while let Some(connection) = idle.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    async fn connect(&self) -> Result<http1::SendRequest<Empty<Bytes>>, CallError> {
        let stream = dial(&self.authority).await?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|source| self.http(source))?;
        // Ends with the sender or the peer.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn collect(
        &self,
        response: Response<hyper::body::Incoming>,
    ) -> Result<Response<Bytes>, CallError> {
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(|e| CallError::Body {
            authority: self.authority.clone(),
            problem: e.to_string(),
        })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }

    fn request(&self, path: &str, last: bool) -> Request<Empty<Bytes>> {
        let host = self.authority.strip_suffix(":80").unwrap_or(&self.authority);
        let mut request = Request::get(path).header(header::HOST, host);
        if last {
            request = request.header(header::CONNECTION, "close");
        }
        request.body(Empty::new()).expect("invariant: path and authority are the demo's own")
    }

    fn http(&self, source: hyper::Error) -> CallError {
        CallError::Http { authority: self.authority.clone(), source }
    }
}

/// Unary gRPC over one shared HTTP/2 connection (h2c) to one authority.
#[derive(Debug)]
pub(crate) struct GrpcClient {
    authority: String,
    limit: Duration,
    // Async, because whoever finds the connection gone holds it while dialling, so that callers
    // do not dial one each.
    connection: tokio::sync::Mutex<Option<http2::SendRequest<Full<Bytes>>>>,
}

impl GrpcClient {
    /// A client that gives each call `limit`.
    pub(crate) fn new(authority: String, limit: Duration) -> Self {
        Self { authority, limit, connection: tokio::sync::Mutex::new(None) }
    }

    /// `shop.v1.Inventory/Stock`.
    pub(crate) async fn stock(&self, article: &str) -> Result<StockReply, CallError> {
        let call = self.call(article);
        tokio::time::timeout(self.limit, call).await.unwrap_or_else(|_| {
            Err(CallError::Timeout { authority: self.authority.clone(), limit: self.limit })
        })
    }

    async fn call(&self, article: &str) -> Result<StockReply, CallError> {
        let message = grpc::frame(&StockRequest { article: article.to_owned() });
        let mut request = Request::post(format!("http://{}{}", self.authority, grpc::STOCK))
            .header(header::CONTENT_TYPE, grpc::CONTENT_TYPE)
            .header(header::TE, "trailers")
            .body(Full::new(message))
            .expect("invariant: path and authority are the demo's own");
        let response = loop {
            let (mut connection, was_kept) = self.connection().await?;
            match connection.try_send_request(request).await {
                Ok(response) => break response,
                Err(mut error) => match error.take_message() {
                    Some(unsent) if was_kept => request = unsent,
                    _ => return Err(self.http(error.into_error())),
                },
            }
        };
        self.reply(response).await
    }

    async fn reply(
        &self,
        response: Response<hyper::body::Incoming>,
    ) -> Result<StockReply, CallError> {
        let (head, body) = response.into_parts();
        let body = Limited::new(body, grpc::MAX_MESSAGE).collect().await.map_err(|e| {
            CallError::Body { authority: self.authority.clone(), problem: e.to_string() }
        })?;
        let status = body.trailers().map_or(&head.headers, |trailers| trailers);
        let status = grpc::status(status);
        if !head.status.is_success() {
            return Err(CallError::Status {
                authority: self.authority.clone(),
                status: head.status,
            });
        }
        if status != Some(grpc::Code::Ok as u32) {
            return Err(CallError::Grpc { authority: self.authority.clone(), status });
        }
        grpc::unframe(body.to_bytes())
            .map_err(|source| CallError::Frame { authority: self.authority.clone(), source })
    }

    async fn connection(&self) -> Result<(http2::SendRequest<Full<Bytes>>, bool), CallError> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = kept.as_ref().filter(|c| !c.is_closed()) {
            return Ok((connection.clone(), true));
        }
        let stream = dial(&self.authority).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|source| self.http(source))?;
        tokio::spawn(connection);
        *kept = Some(sender.clone());
        Ok((sender, false))
    }

    fn http(&self, source: hyper::Error) -> CallError {
        CallError::Http { authority: self.authority.clone(), source }
    }
}

async fn dial(authority: &str) -> Result<TcpStream, CallError> {
    let stream = TcpStream::connect(authority)
        .await
        .map_err(|source| CallError::Connect { authority: authority.to_owned(), source })?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}
