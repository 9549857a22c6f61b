//! Answers that the proxy makes itself: the one place where errors become responses.

use std::fmt::Display;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use remora_core::names::{docs::REASONS, headers::PROXY_ERROR};

use crate::{
    error::{Error, Reason},
    fields::Fields,
};

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The response for an error, with where to read on; in gRPC's form (status in a trailers-only head)
/// where the request was gRPC.
///
/// Where to read on is a path in the text. A field `Link` (RFC 8288) would be resolved against the
/// request's own URL, and lead to a page that the application does not have.
#[must_use]
pub fn error(error: &Error, grpc: bool) -> Response<Bytes> {
    let reason = error.reason();
    let text = match grpc {
        true => Bytes::new(),
        false => Bytes::from(format!("{error}\nsee {REASONS}#{}\n", reason.as_str())),
    };
    let mut response = Response::new(text);
    let headers = response.headers_mut();
    let word = HeaderValue::from_static(reason.as_str());
    headers.insert(HeaderName::from_static(PROXY_ERROR), word);
    if grpc {
        self::grpc(headers, error.grpc_status(), &sentence(error, reason));
        return response;
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if let Some(seconds) = error.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    *response.status_mut() = error.status();
    response
}

/// What goes into `grpc-message`: most of gRPC's libraries show it, and the field with the reason they
/// do not.
pub(super) fn sentence(problem: impl Display, reason: Reason) -> String {
    format!("{problem} (see {REASONS}#{})", reason.as_str())
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
        let message = response.headers()["grpc-message"].to_str().unwrap();
        assert!(message.starts_with("a/b:1 has no endpoints;"), "{message}");
        assert!(message.ends_with(" (see docs/reasons.md#no-endpoints)"), "{message}");
        assert!(response.body().is_empty());
        assert_eq!(grpc_message("50 % é"), "50 %25 %C3%A9");
    }

    #[test]
    fn http_callers_get_status_reason_and_when_to_come_back() {
        let e = Error::NoEndpoints { service: "a/b:1".into() };
        let response = super::error(&e, false);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn the_text_is_one_line_of_what_is_wrong_and_one_of_where_to_read_on() {
        let response = super::error(&Error::BadRequest("its chunk size is no number"), false);
        let text = std::str::from_utf8(response.body()).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        assert_eq!(
            lines,
            ["bad request: its chunk size is no number\n", "see docs/reasons.md#bad-request\n"]
        );
    }
}
