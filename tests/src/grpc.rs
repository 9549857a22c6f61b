//! gRPC over HTTP/2 as it is on the wire: messages with their lengths, and a status at the end.

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;

use crate::{
    origin::{Body, BodyError},
    wait::within,
};

/// One length-prefixed message.
///
/// # Panics
/// Where it is longer than a message can be.
#[must_use]
pub fn message(text: &str) -> Bytes {
    let mut out = vec![0];
    out.extend(u32::try_from(text.len()).expect("a message").to_be_bytes());
    out.extend(text.as_bytes());
    out.into()
}

/// The texts of complete messages.
///
/// # Panics
/// Where they are anything else.
#[must_use]
pub fn texts(mut bytes: &[u8]) -> Vec<String> {
    let mut out = Vec::new();
    while let [0, a, b, c, d, rest @ ..] = bytes {
        let len = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        out.push(String::from_utf8(rest[..len].to_vec()).expect("text"));
        bytes = &rest[len..];
    }
    assert!(bytes.is_empty());
    out
}

/// `grpc-status` alone.
#[must_use]
pub fn status(code: &'static str) -> HeaderMap {
    let field = (HeaderName::from_static("grpc-status"), HeaderValue::from_static(code));
    HeaderMap::from_iter([field])
}

/// A body of messages and trailers.
#[must_use]
pub fn body(messages: Vec<Bytes>, trailers: HeaderMap) -> Body {
    let frames = messages.into_iter().map(Frame::data).chain([Frame::trailers(trailers)]);
    StreamBody::new(stream::iter(frames.map(Ok::<_, BodyError>))).boxed_unsync()
}

/// A call.
///
/// # Panics
/// Never: its parts are fine.
pub fn call<B>(body: B) -> Request<B> {
    let request = Request::post("http://orders/shop.Orders/Call")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    request.body(body).expect("a request")
}

/// An answer's head.
///
/// # Panics
/// Never: its parts are fine.
pub fn answer<B>(body: B) -> Response<B> {
    let response = Response::builder().header("content-type", "application/grpc");
    response.body(body).expect("a response")
}

/// A body that the test feeds; dropping the feed ends it.
#[must_use]
pub fn fed() -> (mpsc::Sender<Bytes>, Body) {
    let (feed, fed) = mpsc::channel::<Bytes>(1);
    let frames = stream::unfold(fed, |mut fed| async move {
        fed.recv().await.map(|data| (Ok::<_, BodyError>(Frame::data(data)), fed))
    });
    (feed, StreamBody::new(frames).boxed_unsync())
}

/// How a call ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its messages.
    pub texts: Vec<String>,
    /// Its status and what came with it, from the trailers or, without messages, from the head.
    pub fields: HeaderMap,
    /// Whether there was nothing but a head.
    pub trailers_only: bool,
}

impl Ended {
    /// Reads an answer to its end.
    ///
    /// # Errors
    /// Where it breaks off.
    pub async fn read(response: Response<Incoming>) -> Result<Self, hyper::Error> {
        let (head, body) = response.into_parts();
        let trailers_only = hyper::body::Body::is_end_stream(&body);
        let body = within("the answer's end", body.collect()).await?;
        let fields = body.trailers().cloned().unwrap_or(head.headers);
        Ok(Self { fields, trailers_only, texts: texts(&body.to_bytes()) })
    }

    /// `grpc-status`; empty where there is none.
    #[must_use]
    pub fn status(&self) -> &str {
        self.field("grpc-status")
    }

    /// Why the proxy ended it instead of the application; empty where it did not.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.field("remora-proxy-error")
    }

    /// A field that came with the status; empty where there is none.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}
