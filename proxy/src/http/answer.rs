//! Answers that the proxy makes itself: the one place where errors become responses.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use remora_core::names::headers::PROXY_ERROR;

use crate::{error::Error, fields::Fields};

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The response for an error; in gRPC's form (status in a trailers-only head) where the request
/// was gRPC.
#[must_use]
pub fn error(error: &Error, grpc: bool) -> Response<Bytes> {
    let reason = HeaderValue::from_static(error.reason().as_str());
    let text = if grpc { Bytes::new() } else { Bytes::from(format!("{error}\n")) };
    let mut response = Response::new(text);
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static(PROXY_ERROR), reason);
    if grpc {
        self::grpc(headers, error.grpc_status(), &error.to_string());
        return response;
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if let Some(seconds) = error.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    *response.status_mut() = error.status();
    response
}

/// Makes a head one that says how a gRPC call ended, without messages.
pub fn grpc(headers: &mut HeaderMap, code: u32, message: &str) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(code));
    if let Ok(message) = HeaderValue::try_from(grpc_message(message)) {
        headers.insert("grpc-message", message);
    }
}

/// Percent-encodes as gRPC's `Status-Message` wants it.
pub(super) fn grpc_message(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if (b' '..=b'~').contains(&b) && b != b'%' {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// Whether a request is gRPC.
#[must_use]
pub fn is_grpc(fields: &impl Fields) -> bool {
    fields.get(&header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// gRPC's status, in a head (a response of trailers only) or in trailers.
#[must_use]
pub fn grpc_status(fields: &impl Fields) -> Option<u32> {
    std::str::from_utf8(fields.get(&GRPC_STATUS)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_callers_get_a_grpc_status() {
        let e = Error::NoEndpoints { service: "a/b:1".into() };
        let response = super::error(&e, true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()[PROXY_ERROR], "no-endpoints");
        assert_eq!(grpc_message("50 % é"), "50 %25 %C3%A9");
    }

    #[test]
    fn http_callers_get_status_reason_and_when_to_come_back() {
        let e = Error::NoEndpoints { service: "a/b:1".into() };
        let response = super::error(&e, false);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
