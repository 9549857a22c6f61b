//! The review's HTTP: which requests are let in, and what is wrong with the others.

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONNECTION, CONTENT_TYPE},
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body;
use remora_core::{admission::BadReview, names::WEBHOOK_PATH};

use super::Reviewer;

/// Largest body. The API server takes objects up to about 1.5 MiB from etcd and 3 MiB of request.
const MAX_BODY: usize = 3 << 20;

/// Answers one request.
///
/// `closing` asks the caller to make a new connection for the next one.
pub(crate) async fn answer<B>(
    reviewer: &Reviewer,
    request: Request<B>,
    closing: bool,
) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let http1 = request.version() < http::Version::HTTP_2;
    let mut response = match body_of(request).await {
        Ok(body) => match reviewer.answer(&body).await {
            Ok(reply) => json(reply),
            Err(bad) => refusal(StatusCode::BAD_REQUEST, bad_review(&bad)),
        },
        Err((status, why)) => refusal(status, why),
    };
    if closing && http1 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn body_of<B>(request: Request<B>) -> Result<Bytes, (StatusCode, String)>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if request.uri().path() != WEBHOOK_PATH {
        return Err((StatusCode::NOT_FOUND, format!("nothing here; reviews go to {WEBHOOK_PATH}")));
    }
    if request.method() != Method::POST {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "reviews come by POST".to_owned()));
    }
    let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let why = "a review is application/json".to_owned();
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err((StatusCode::PAYLOAD_TOO_LARGE, format!("a review has at most {MAX_BODY} bytes")))
        }
        Err(error) => Err((StatusCode::BAD_REQUEST, format!("the body broke off: {error}"))),
    }
}

fn bad_review(bad: &BadReview) -> String {
    tracing::warn!(error = %bad, "not a review");
    bad.to_string()
}

fn json(body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refusal(status: StatusCode, why: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(why + "\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("POST"));
    }
    response
}
