//! Request heads: strict, because what two parsers understand differently is how requests are
//! smuggled past a proxy (RFC 9112 §11.2).

use std::{mem::MaybeUninit, ops::Range};

use http::{Method, StatusCode};

use super::{
    body::{Framing, is_chunked, length},
    connection::Connection,
    head::{Field, Head, Name, RawHead, offset},
    scan::{Found, Scan},
};
use crate::{error::Reason, http::MAX_HEADERS};

/// A request's head, fit for the next hop but for what [`RequestHead::write`] is told.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// Its fields, without those that belonged to the client's connection.
    pub fields: Head,
    /// Its method.
    pub method: Method,
    /// How long its body is.
    pub framing: Framing,
    /// The client sends its body only when it is told to (`Expect: 100-continue`).
    pub expects_continue: bool,
    /// The client wants to leave HTTP for the protocol of the field `Upgrade`.
    pub upgrade: bool,
    /// The client's connection takes another request after this one.
    pub(super) keep_alive: bool,
    /// Minor version, 0 or 1.
    pub(super) minor: u8,
    pub(super) target: Range<usize>,
    pub(super) path: Range<usize>,
    pub(super) has_host: bool,
}

/// Why a request is not forwarded. The connection ends with the answer, since where the next
/// request begins is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not what RFC 9112 says.
    #[error("bad request: {0}")]
    Malformed(&'static str),
    /// A transfer coding other than chunked.
    #[error("bad request: its transfer coding is not chunked alone; send it without")]
    Coding,
    /// Not HTTP/1.0 or HTTP/1.1.
    #[error("bad request: its HTTP version is neither 1.0 nor 1.1")]
    Version,
    /// The target alone is longer than a head may be.
    #[error("the request's target is longer than {0} bytes")]
    TargetTooLong(usize),
    /// The head is too long.
    #[error(
        "the request's head is longer than {0} bytes; config.remora.io/max-header-size raises the limit"
    )]
    HeadTooLong(usize),
    /// The head has too many fields.
    #[error("the request's head has more than {MAX_HEADERS} fields")]
    TooManyFields,
    /// The head came too slowly.
    #[error("the request's head was not complete within {0:?}")]
    TooSlow(std::time::Duration),
}

impl Refusal {
    /// Status of the answer.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Coding => StatusCode::NOT_IMPLEMENTED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::TargetTooLong(_) => StatusCode::URI_TOO_LONG,
            Self::HeadTooLong(_) | Self::TooManyFields => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::TooSlow(_) => StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// Reason word of the answer.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::Malformed(_) | Self::Coding | Self::Version => Reason::BadRequest,
            Self::TargetTooLong(_) | Self::HeadTooLong(_) | Self::TooManyFields => {
                Reason::HeaderTooLarge
            }
            Self::TooSlow(_) => Reason::RequestTimeout,
        }
    }
}

/// Some parsers see a line's end in it, and some do not.
pub(super) const BARE_LINE_FEED: &str = "a line does not end in CR LF";

/// Short for the commonest refusal.
const fn bad<T>(what: &'static str) -> Result<T, Refusal> {
    Err(Refusal::Malformed(what))
}

impl RequestHead {
    /// Reads the head at the beginning of `bytes`, behind empty lines. Says how many bytes it takes;
    /// `None`: its end is not among them.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn read(bytes: &[u8]) -> Result<Option<(Self, usize)>, Refusal> {
        let mut scan = Scan::default();
        match scan.find(bytes, true) {
            Found::Head(from, to) => {
                let raw = scan.cut(bytes[from..to].to_vec());
                Self::parse(raw).map(|head| Some((head, to)))
            }
            Found::More => Ok(None),
            Found::BareLineFeed => bad(BARE_LINE_FEED),
        }
    }

    /// Reads a head.
    ///
    /// # Errors
    /// Where it breaks a rule that decides what the request is or where it ends.
    pub fn parse(raw: RawHead) -> Result<Self, Refusal> {
        let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(&raw.bytes, &mut headers);
        match parsed.map_err(|error| refusal(error, &raw.bytes))? {
            httparse::Status::Complete(end) if end == raw.bytes.len() => {}
            _ => return bad("its head does not end where it seems to"),
        }
        let (Some(method), Some(target), Some(minor)) =
            (request.method, request.path, request.version)
        else {
            return bad("its first line is not complete");
        };
        let at = offset(&raw.bytes, target.as_bytes());
        let target = at..at + target.len();
        let Ok(method) = Method::from_bytes(method.as_bytes()) else {
            return bad("its method is no word");
        };
        let fields = Field::all(&raw, request.headers);
        let (path, authority) = target_of(&method, &raw.bytes, target.clone())?;
        let mut this = Self {
            fields: Head::new(raw, fields),
            method,
            framing: Framing::None,
            expects_continue: false,
            upgrade: false,
            keep_alive: false,
            minor,
            target,
            path,
            has_host: false,
        };
        this.read_fields()?;
        this.settle_host(authority)?;
        if this.method == Method::CONNECT {
            this.check_connect()?;
        }
        Ok(this)
    }

    /// Path without the query; `*` or `host:port` where the target is that.
    #[must_use]
    pub fn path(&self) -> &str {
        // httparse lets only UTF-8 pass as a target.
        match std::str::from_utf8(&self.fields.bytes()[self.path.clone()]) {
            Ok("") | Err(_) => "/",
            Ok(path) => path,
        }
    }

    /// Whether the connection leaves HTTP if the answer grants it.
    #[must_use]
    pub fn leaves_http(&self) -> bool {
        self.upgrade || self.method == Method::CONNECT
    }

    /// Whether the client speaks HTTP/1.1, and so understands chunks and interim responses.
    #[must_use]
    pub fn is_1_1(&self) -> bool {
        self.minor > 0
    }

    /// Appends the head for the next hop, with `extra` lines at its end.
    ///
    /// The version is our own (RFC 9110 §6.2), except that HTTP/1.1 needs a Host, which a client of
    /// HTTP/1.0 may not have sent.
    pub fn write(&self, extra: &[u8], out: &mut Vec<u8>) {
        out.reserve(self.fields.len_hint() + extra.len());
        out.extend_from_slice(self.method.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(&self.fields.bytes()[self.target.clone()]);
        let version: &[u8] = if self.speaks_1_1() { b" HTTP/1.1\r\n" } else { b" HTTP/1.0\r\n" };
        out.extend_from_slice(version);
        self.fields.write_fields(out);
        if self.upgrade {
            out.extend_from_slice(b"Connection: upgrade\r\n");
        }
        out.extend_from_slice(extra);
        out.extend_from_slice(b"\r\n");
    }

    /// Whether the request is forwarded as HTTP/1.1.
    pub(super) fn speaks_1_1(&self) -> bool {
        self.minor > 0 || self.has_host
    }

    /// Body, connection and expectations.
    fn read_fields(&mut self) -> Result<(), Refusal> {
        let mut connection = Connection::default();
        let (mut content_length, mut coding) = (None, None);
        let mut upgrade_to = None;
        for (_, name, value) in self.fields.iter() {
            match name {
                Name::Connection => connection.read(value),
                Name::ContentLength => {
                    // Equal ones could be taken for one (RFC 9110 §8.6); nobody sends them.
                    if content_length.is_some() {
                        return bad("it has more than one Content-Length");
                    }
                    let Some(length) = length(value) else {
                        return bad("its Content-Length is no number");
                    };
                    content_length = Some(length);
                }
                Name::TransferEncoding if coding.replace(value).is_some() => {
                    return bad("it has more than one Transfer-Encoding");
                }
                Name::Expect => {
                    self.expects_continue |= value.eq_ignore_ascii_case(b"100-continue");
                }
                Name::Upgrade => upgrade_to = Some(is_h2c(value)),
                _ => {}
            }
        }
        self.framing = match (coding, content_length) {
            (Some(_), Some(_)) => return bad("it has Transfer-Encoding and Content-Length"),
            (Some(_), _) if self.minor == 0 => {
                return bad("HTTP/1.0 has no Transfer-Encoding");
            }
            (Some(coding), None) if is_chunked(coding) => Framing::Chunked,
            (Some(_), None) => return Err(Refusal::Coding),
            (None, Some(length)) => Framing::Length(length),
            (None, None) => Framing::None,
        };
        connection.strip(&mut self.fields);
        // An upgrade to HTTP/2 (withdrawn by RFC 9113) vanishes, and so does one that the client's
        // own connection does not ask for, or that HTTP/1.0 does not have (RFC 9110 §7.8).
        self.upgrade = self.minor > 0 && connection.upgrade && upgrade_to == Some(false);
        if !self.upgrade {
            self.fields.remove_all(|name| name == Name::Upgrade);
        }
        self.keep_alive = connection.persists(self.minor);
        Ok(())
    }

    /// One Host that names a host (RFC 9112 §3.2); an absolute target's own authority wins (§3.2.2).
    fn settle_host(&mut self, authority: Option<Range<usize>>) -> Result<(), Refusal> {
        let mut host = None;
        for (_, name, value) in self.fields.iter() {
            if name != Name::Host {
                continue;
            }
            if host.replace(value).is_some() {
                return bad("it has more than one Host");
            }
            if !is_authority(value) {
                return bad("its Host is no host");
            }
        }
        self.has_host = host.is_some() || authority.is_some();
        if !self.has_host && self.minor > 0 {
            return bad("HTTP/1.1 wants a Host");
        }
        if let Some(authority) = authority {
            let named = &self.fields.bytes()[authority];
            if host.is_none_or(|host| !host.eq_ignore_ascii_case(named)) {
                let named = named.to_vec();
                self.fields.remove_all(|name| name == Name::Host);
                self.fields.add("Host", &named);
            }
        }
        Ok(())
    }

    /// RFC 9110 §9.3.6: authority form, which [`target_of`] saw to, and no content.
    fn check_connect(&mut self) -> Result<(), Refusal> {
        if self.minor == 0 {
            return bad("CONNECT needs HTTP/1.1");
        }
        if !matches!(self.framing, Framing::None | Framing::Length(0)) {
            return bad("CONNECT has no content");
        }
        self.framing = Framing::None;
        self.upgrade = false;
        Ok(())
    }
}

/// The form of a target (RFC 9112 §3.2): where its path is, and its authority in absolute form.
fn target_of(
    method: &Method,
    bytes: &[u8],
    target: Range<usize>,
) -> Result<(Range<usize>, Option<Range<usize>>), Refusal> {
    let text = &bytes[target.clone()];
    if text.contains(&b'#') {
        return bad("its target has a fragment");
    }
    if *method == Method::CONNECT {
        let valid = text.iter().rposition(|b| *b == b':').is_some_and(|colon| {
            let (host, port) = (&text[..colon], &text[colon + 1..]);
            !host.is_empty() && is_host(host) && matches!(length(port), Some(1..=65_535))
        });
        return if valid { Ok((target, None)) } else { bad("CONNECT wants host:port") };
    }
    if text == b"*" {
        return if *method == Method::OPTIONS {
            Ok((target, None))
        } else {
            bad("only OPTIONS has the target *")
        };
    }
    let query = |from: usize| {
        let rest = &bytes[from..target.end];
        from + rest.iter().position(|b| *b == b'?').unwrap_or(rest.len())
    };
    if text.starts_with(b"/") {
        return Ok((target.start..query(target.start), None));
    }
    // Absolute form: scheme "://" authority [ path ] [ "?" query ]
    let scheme =
        text.iter().take_while(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b)).count();
    let letter = text.first().is_some_and(u8::is_ascii_alphabetic);
    if !letter || !text[scheme..].starts_with(b"://") {
        return bad("its target is neither a path nor a URI");
    }
    let authority = target.start + scheme + 3;
    let rest = &bytes[authority..target.end];
    let path = authority + rest.iter().position(|b| b"/?".contains(b)).unwrap_or(rest.len());
    let named = &bytes[authority..path];
    if named.is_empty() || named[0] == b':' || !is_authority(named) {
        return bad("its target names no host");
    }
    Ok((path..query(path), Some(authority..path)))
}

/// `uri-host [ ":" port ]` (RFC 9110 §7.2), without user information; the host may be empty.
fn is_authority(text: &[u8]) -> bool {
    let colon = text.iter().rposition(|b| *b == b':').filter(|at| !text[*at..].contains(&b']'));
    let (host, port) = colon.map_or((text, &b""[..]), |at| (&text[..at], &text[at + 1..]));
    is_host(host) && port.iter().all(u8::is_ascii_digit)
}

/// A name or an address, that of IPv6 in brackets (RFC 3986 §3.2.2).
fn is_host(text: &[u8]) -> bool {
    let name = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&b);
    let escaped = |at: usize| {
        let digits = text[at + 1..].first_chunk::<2>();
        text[at] == b'%' && digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    match text {
        [b'[', inner @ .., b']'] => {
            !inner.is_empty() && inner.iter().all(|b| name(*b) || *b == b':')
        }
        _ => text.iter().enumerate().all(|(at, b)| name(*b) || escaped(at)),
    }
}

fn is_h2c(value: &[u8]) -> bool {
    value.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"h2c"))
}

fn refusal(error: httparse::Error, head: &[u8]) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => Refusal::TooManyFields,
        httparse::Error::Version if names_a_version(head) => Refusal::Version,
        httparse::Error::HeaderName => {
            Refusal::Malformed("a field's name is no word, or is followed by a space")
        }
        httparse::Error::HeaderValue => {
            Refusal::Malformed("a field's value has a control character")
        }
        httparse::Error::NewLine => Refusal::Malformed(BARE_LINE_FEED),
        httparse::Error::Version | httparse::Error::Status | httparse::Error::Token => {
            Refusal::Malformed("its first line has a character that does not belong there")
        }
    }
}

/// Whether a first line is as it should be, but for the version.
fn names_a_version(head: &[u8]) -> bool {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ').skip(2);
    matches!((words.next(), words.next()), (Some(version), None) if version.starts_with(b"HTTP/"))
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
