//! Response heads: what can be understood in one way only is understood, and written anew where it
//! is odd, so that the client cannot understand it differently.

use std::{mem::MaybeUninit, time::Duration};

use http::{Method, StatusCode};

use super::{
    body::{Encoder, Framing, is_chunked, length},
    connection::Connection,
    head::{Field, Head, Name, RawHead, offset},
    request::RequestHead,
    scan::{Found, Scan},
    wire::Wire,
};
use crate::http::MAX_HEADERS;

/// A response's head, as it came from upstream less what belonged to that connection.
#[derive(Debug)]
pub struct ResponseHead {
    /// Its fields.
    pub fields: Head,
    /// Its status.
    pub status: StatusCode,
    /// How long its body is.
    pub framing: Framing,
    /// Both sides leave HTTP after it.
    pub leaves_http: bool,
    /// How long the upstream says that it keeps its connection (`Keep-Alive: timeout=5`).
    pub kept_for: Option<Duration>,
    /// The upstream's connection takes another request after it.
    pub(super) keep_alive: bool,
    /// Status code and reason phrase, as they were written.
    reason: std::ops::Range<usize>,
}

/// A response that cannot be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its response {0}")]
pub struct BadResponse(pub &'static str);

/// What the client's connection asks of a response.
#[derive(Debug, Clone, Copy)]
pub struct Towards<'a> {
    /// The request that it answers.
    pub request: &'a RequestHead,
    /// The connection ends after it, whatever the client asked for.
    pub last: bool,
}

impl ResponseHead {
    /// Reads the head at the beginning of `bytes`, behind empty lines, as an answer to `request`. Says
    /// how many bytes it takes; `None`: its end is not among them.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn read(bytes: &[u8], request: &RequestHead) -> Result<Option<(Self, usize)>, BadResponse> {
        let mut scan = Scan::default();
        let Found::Head(from, to) = scan.find(bytes, false) else { return Ok(None) };
        let raw = scan.cut(bytes[from..to].to_vec());
        Self::parse(raw, request).map(|head| Some((head, to)))
    }

    /// Reads a head that answers `request`.
    ///
    /// # Errors
    /// Where its end, or that of its body, cannot be told for certain.
    pub fn parse(raw: RawHead, request: &RequestHead) -> Result<Self, BadResponse> {
        let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut []);
        let mut config = httparse::ParserConfig::default();
        config
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true);
        let parsed =
            config.parse_response_with_uninit_headers(&mut response, &raw.bytes, &mut headers);
        match parsed {
            Ok(httparse::Status::Complete(end)) if end == raw.bytes.len() => {}
            Err(httparse::Error::TooManyHeaders) => return Err(BadResponse("has too many fields")),
            Ok(_) | Err(_) => return Err(BadResponse("is not HTTP/1")),
        }
        let (Some(code), Some(minor)) = (response.code, response.version) else {
            return Err(BadResponse("is not HTTP/1"));
        };
        let Ok(status) = StatusCode::from_u16(code) else {
            return Err(BadResponse("has no status that there is"));
        };
        // `HTTP/1.x ` comes before the status.
        let reason = response.reason.unwrap_or_default();
        let end = if reason.is_empty() {
            12
        } else {
            offset(&raw.bytes, reason.as_bytes()) + reason.len()
        };
        let fields = Field::all(&raw, response.headers);
        let mut this = Self {
            fields: Head::new(raw, fields),
            status,
            framing: Framing::None,
            leaves_http: false,
            kept_for: None,
            keep_alive: false,
            reason: 9..end,
        };
        this.read_fields(minor, request)?;
        Ok(this)
    }

    /// Whether the final response is still to come.
    pub(super) fn is_interim(&self) -> bool {
        self.status.is_informational() && !self.leaves_http
    }

    fn names_upgrade(&self) -> bool {
        matches!(self.status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED)
    }

    /// Whether it has no body, whatever its fields say (RFC 9112 §6.3).
    fn is_bodiless(&self, method: &Method) -> bool {
        *method == Method::HEAD
            || self.status.is_informational()
            || matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    }

    fn read_fields(&mut self, minor: u8, request: &RequestHead) -> Result<(), BadResponse> {
        let mut connection = Connection::default();
        let mut content_length: Option<u64> = None;
        let mut coding: Option<&[u8]> = None;
        let mut again = Vec::new();
        let mut kept_for = None;
        for (at, name, value) in self.fields.iter() {
            match name {
                Name::Connection => connection.read(value),
                Name::ContentLength => {
                    let length = length(value)
                        .ok_or(BadResponse("has a Content-Length that is no number"))?;
                    match content_length.replace(length) {
                        None => {}
                        // Equal ones are one (RFC 9110 §8.6).
                        Some(before) if before == length => again.push(at),
                        Some(_) => return Err(BadResponse("has two lengths")),
                    }
                }
                Name::KeepAlive => kept_for = timeout_of(value),
                Name::TransferEncoding if value.contains(&b'\n') => {
                    return Err(BadResponse("has a Transfer-Encoding on two lines"));
                }
                Name::TransferEncoding if coding.replace(value).is_some() => {
                    return Err(BadResponse("has more than one Transfer-Encoding"));
                }
                _ => {}
            }
        }
        if coding.is_some_and(|coding| !is_chunked(coding)) && !request.is_1_1() {
            return Err(BadResponse("has a transfer coding that an HTTP/1.0 client does not know"));
        }
        let coded = coding.map(ends_chunked).transpose()?;
        for at in again {
            self.fields.remove_at(at);
        }
        self.kept_for = kept_for;
        // A coding in HTTP/1.0 is a sign of faulty framing (RFC 9112 §6.1).
        self.keep_alive = connection.persists(minor) && (minor > 0 || coded.is_none());
        connection.strip(&mut self.fields);
        let tunnel = request.method == Method::CONNECT && self.status.is_success();
        let switch = self.status == StatusCode::SWITCHING_PROTOCOLS;
        if switch && !(request.upgrade && connection.upgrade) {
            return Err(BadResponse("switches to a protocol that nobody asked for"));
        }
        self.leaves_http = tunnel || switch;
        // An offer to upgrade (to h2c, say) is the connection's own; only 426 is about nothing else.
        if !self.names_upgrade() {
            self.fields.remove_all(|name| name == Name::Upgrade);
        }
        // The coding wins, the length must go, and the connection is not used again (RFC 9112 §6.3);
        // without a body too, since the client reads both.
        if coded.is_some() && content_length.is_some() {
            self.keep_alive = false;
            self.fields.remove_all(|name| name == Name::ContentLength);
        }
        self.framing = match (coded, content_length) {
            _ if tunnel || self.is_bodiless(&request.method) => Framing::None,
            (Some(true), _) => Framing::Chunked,
            (Some(false), _) => Framing::UntilClose,
            (None, Some(length)) => Framing::Length(length),
            (None, None) => Framing::UntilClose,
        };
        self.keep_alive &= self.framing != Framing::UntilClose;
        // RFC 9110 §8.6, §9.3.6; RFC 9112 §6.1
        if tunnel || self.status.is_informational() || self.status == StatusCode::NO_CONTENT {
            self.fields
                .remove_all(|name| matches!(name, Name::ContentLength | Name::TransferEncoding));
        }
        Ok(())
    }

    /// Whether all of the body is at hand, so that the connection is good for another request once it
    /// is thrown away.
    #[must_use]
    pub fn is_at_hand<IO>(&self, wire: &Wire<IO>) -> bool {
        let length = match self.framing {
            Framing::None => 0,
            Framing::Length(length) => length,
            Framing::Chunked | Framing::UntilClose => return false,
        };
        self.keep_alive && wire.input().len() as u64 == length
    }

    /// Makes the head fit for the client's connection. Returns how the body is framed there, and
    /// whether the connection lives on.
    pub fn adapt(&mut self, towards: Towards<'_>) -> (Encoder, bool) {
        let Towards { request, last } = towards;
        let sized = matches!(self.framing, Framing::None | Framing::Length(_));
        let chunks = !sized && request.is_1_1();
        if !request.is_1_1() {
            self.fields.remove_all(|name| name == Name::TransferEncoding);
        } else if self.framing == Framing::UntilClose {
            // A coding that is not chunked is kept, under chunks of ours.
            let coding = self.fields.iter().find(|(_, name, _)| *name == Name::TransferEncoding);
            let coding = coding.map_or_else(
                || b"chunked".to_vec(),
                |(_, _, value)| [value, b", chunked"].concat(),
            );
            self.fields.remove_all(|name| name == Name::TransferEncoding);
            self.fields.add("Transfer-Encoding", &coding);
        }
        let persists = request.keep_alive && !last && (sized || chunks);
        if self.names_upgrade() {
            self.fields.add("Connection", b"upgrade");
        }
        if self.leaves_http {
            return (Encoder::Plain, false);
        }
        if !persists {
            self.fields.add("Connection", b"close");
        } else if !request.is_1_1() {
            self.fields.add("Connection", b"keep-alive");
        }
        (if chunks { Encoder::Chunked } else { Encoder::Plain }, persists)
    }

    /// Appends the head. An HTTP/1.0 client is answered in its version.
    pub fn write(&self, request: &RequestHead, out: &mut Vec<u8>) {
        out.reserve(self.fields.len_hint());
        out.extend_from_slice(if request.is_1_1() { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
        out.extend_from_slice(&self.fields.bytes()[self.reason.clone()]);
        // The space stays where there is no reason phrase (RFC 9112 §4).
        if self.reason.len() == 3 {
            out.push(b' ');
        }
        out.extend_from_slice(b"\r\n");
        self.fields.write_fields(out);
        out.extend_from_slice(b"\r\n");
    }
}

/// Whether the last of some transfer codings is chunked; what is applied below it is not ours to undo.
fn ends_chunked(codings: &[u8]) -> Result<bool, BadResponse> {
    let mut codings = codings.rsplit(|b| *b == b',').map(<[u8]>::trim_ascii);
    // To be ignored (RFC 9110 §5.6.1), but some take the one behind a last comma for a coding.
    if codings.clone().any(<[u8]>::is_empty) {
        return Err(BadResponse("has an empty transfer coding"));
    }
    let last = codings.next().is_some_and(is_chunked);
    // RFC 9112 §6.1: once, and nothing on top of it.
    if codings.any(is_chunked) {
        return Err(BadResponse("has a transfer coding on top of chunked"));
    }
    Ok(last)
}

/// The parameter `timeout` of a `Keep-Alive` field, in seconds (RFC 2068 §19.7.1.1).
fn timeout_of(value: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?;
    let timeout = text.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    timeout.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
