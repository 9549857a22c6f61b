//! HTTP/1 as RFC 9112 says it, read a second time: by itself, for the eye and not for speed, with
//! nothing of the proxy in it. What the proxy and this disagree on, two servers could.
//!
//! It is laxer than the RFC in three points, in which nobody finds another message in the bytes:
//! a target may have any visible character but `#`, and UTF-8; a chunk's extensions may be anything
//! visible; any number of empty lines may stand before a request.

use std::ops::Range;

/// Why bytes are no message.
pub type Bad = &'static str;

/// Something that begins some bytes, and how many it takes; `None`: its end is not among them.
pub type Read<T> = Result<Option<(T, usize)>, Bad>;

/// Names in lower case and values without the white space around them, in their order.
pub type Fields = Vec<(String, Vec<u8>)>;

/// A request's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its method.
    pub method: String,
    /// Its target, as written.
    pub target: String,
    /// Where in the target its path is, or all that it is.
    pub path: Range<usize>,
    /// The authority of an absolute target.
    pub authority: Option<String>,
    /// Minor version.
    pub minor: u8,
    /// Its fields.
    pub fields: Fields,
    /// How long its body is.
    pub framing: Framing,
}

/// A response's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Minor version.
    pub minor: u8,
    /// Its fields.
    pub fields: Fields,
    /// How long its body is, unless the request says that there is none.
    pub framing: Framing,
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
    /// Up to the end of the connection.
    UntilClose,
}

/// A body, as far as it goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Body {
    /// Its content.
    pub content: Vec<u8>,
    /// Its trailer fields.
    pub trailers: Fields,
    /// Bytes that it takes.
    pub used: usize,
    /// How it ends.
    pub end: End,
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum End {
    /// Bytes are missing.
    #[default]
    Missing,
    /// As it should.
    Whole,
    /// In something that does not belong there.
    Bad(Bad),
}

impl Request {
    /// The path without the query; `/` where it is empty.
    #[must_use]
    pub fn path(&self) -> &str {
        match &self.target[self.path.clone()] {
            "" => "/",
            path => path,
        }
    }
}

/// Reads a request's head.
///
/// # Errors
/// Where it is none.
pub fn request(bytes: &[u8]) -> Read<Request> {
    let start = bytes.chunks(2).take_while(|pair| pair == b"\r\n").count() * 2;
    let Some((first, mut at)) = line(bytes, start)? else { return Ok(None) };
    let words: Vec<&[u8]> = first.split(|b| *b == b' ').collect();
    let [method, target, version] = words[..] else { return Err("not three words") };
    if method.is_empty() || !method.iter().all(|b| is_token(*b)) {
        return Err("no method");
    }
    let minor = minor(version)?;
    let target = std::str::from_utf8(target).map_err(|_| "target")?;
    let (path, authority) = form(method, target)?;
    let Some(fields) = fields(bytes, &mut at)? else { return Ok(None) };
    let mut hosts = fields.iter().filter(|(name, _)| name == "host");
    match (hosts.next(), hosts.next()) {
        (None, _) if minor > 0 && authority.is_none() => return Err("no host"),
        (Some(_), Some(_)) => return Err("two hosts"),
        (Some((_, host)), None) if !host.is_empty() && !is_host(host) => return Err("host"),
        _ => {}
    }
    let framing = match framing(&fields, minor)? {
        Framing::UntilClose => Framing::None,
        framing => framing,
    };
    let chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    if !values(&fields, "transfer-encoding").all(chunked) {
        return Err("a coding that is not chunked alone");
    }
    if method == b"CONNECT"
        && (minor == 0 || !matches!(framing, Framing::None | Framing::Length(0)))
    {
        return Err("CONNECT with a body");
    }
    let (method, target) = (text(method), target.to_owned());
    Ok(Some((Request { method, target, path, authority, minor, fields, framing }, at)))
}

/// Reads a response's head.
///
/// # Errors
/// Where it is none.
pub fn response(bytes: &[u8]) -> Read<Response> {
    let Some((first, mut at)) = line(bytes, 0)? else { return Ok(None) };
    if first.len() < 13 || first[8] != b' ' || first[12] != b' ' {
        return Err("status line");
    }
    let minor = minor(&first[..8])?;
    let digits = &first[9..12];
    if !digits.iter().all(u8::is_ascii_digit) || digits[0] == b'0' {
        return Err("status");
    }
    let status = digits.iter().fold(0, |n, digit| n * 10 + u16::from(digit - b'0'));
    if !first[13..].iter().all(|b| is_value(*b)) {
        return Err("reason");
    }
    let Some(fields) = fields(bytes, &mut at)? else { return Ok(None) };
    let framing = framing(&fields, minor)?;
    let bodiless = status < 200 || status == 204;
    if bodiless && fields.iter().any(|(n, _)| n == "content-length" || n == "transfer-encoding") {
        return Err("a body where none can be");
    }
    let framing = if bodiless || status == 304 { Framing::None } else { framing };
    Ok(Some((Response { status, minor, fields, framing }, at)))
}

/// Reads a body; `ended`: nothing follows the bytes.
#[must_use]
pub fn body(framing: Framing, bytes: &[u8], ended: bool) -> Body {
    match framing {
        Framing::None => Body { end: End::Whole, ..Body::default() },
        Framing::Length(length) => {
            let used = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
            let end = if used as u64 == length { End::Whole } else { End::Missing };
            Body { content: bytes[..used].to_vec(), used, end, ..Body::default() }
        }
        Framing::UntilClose => {
            let end = if ended { End::Whole } else { End::Missing };
            Body { content: bytes.to_vec(), used: bytes.len(), end, ..Body::default() }
        }
        Framing::Chunked => {
            let mut body = Body::default();
            body.end = chunks(bytes, &mut body).unwrap_or_else(End::Bad);
            body
        }
    }
}

/// The values of all fields of a name (in lower case).
pub fn values<'a>(fields: &'a Fields, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    fields.iter().filter(move |(known, _)| known == name).map(|(_, value)| &value[..])
}

/// The elements of all fields of a name, taken as lists.
pub fn elements<'a>(fields: &'a Fields, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let elements = values(fields, name).flat_map(|value| value.split(|b| *b == b','));
    elements.map(trim).filter(|element| !element.is_empty())
}

/// Whether a list of tokens has one of them.
#[must_use]
pub fn has(fields: &Fields, name: &str, element: &str) -> bool {
    elements(fields, name).any(|known| known.eq_ignore_ascii_case(element.as_bytes()))
}

/// A line that ends in CR LF and has neither within, and where the next one begins.
fn line(bytes: &[u8], from: usize) -> Read<&[u8]> {
    let Some(end) = bytes[from..].iter().position(|b| *b == b'\n') else { return Ok(None) };
    match bytes[from..from + end].split_last() {
        Some((b'\r', line)) if !line.contains(&b'\r') => Ok(Some((line, from + end + 1))),
        _ => Err("a line that does not end in CR LF"),
    }
}

/// Field lines up to the empty one; `at` moves behind that.
fn fields(bytes: &[u8], at: &mut usize) -> Result<Option<Fields>, Bad> {
    let mut fields = Vec::new();
    loop {
        let Some((line, next)) = line(bytes, *at)? else { return Ok(None) };
        *at = next;
        if line.is_empty() {
            return Ok(Some(fields));
        }
        let colon = line.iter().position(|b| *b == b':').ok_or("no colon")?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
            return Err("a field's name");
        }
        if !value.iter().all(|b| is_value(*b)) {
            return Err("a field's value");
        }
        fields.push((text(name).to_ascii_lowercase(), trim(value).to_vec()));
    }
}

/// RFC 9112 §6.3, without what it lets a server repair.
fn framing(fields: &Fields, minor: u8) -> Result<Framing, Bad> {
    let mut lengths = values(fields, "content-length");
    let mut codings = values(fields, "transfer-encoding");
    let one_each = (lengths.next(), codings.next());
    if lengths.next().is_some() || codings.next().is_some() {
        return Err("twice the same");
    }
    match one_each {
        (None, None) => Ok(Framing::UntilClose),
        (Some(_), Some(_)) => Err("length and coding"),
        (None, Some(_)) if minor == 0 => Err("a coding in HTTP/1.0"),
        (None, Some(_)) => {
            let chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
            let written = values(fields, "transfer-encoding");
            if written.flat_map(|v| v.split(|b| *b == b',')).any(|e| e.trim_ascii().is_empty()) {
                return Err("an empty coding");
            }
            let all: Vec<_> = elements(fields, "transfer-encoding").collect();
            match (all.iter().filter(|coding| chunked(coding)).count(), all.last()) {
                (1, Some(last)) if chunked(last) => Ok(Framing::Chunked),
                (0, _) => Ok(Framing::UntilClose),
                _ => Err("a coding on top of chunked"),
            }
        }
        (Some(length), None) => decimal(length).map(Framing::Length).ok_or("length"),
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let step = |n: u64, digit: &u8| match digit {
        b'0'..=b'9' => n.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    };
    if digits.is_empty() { None } else { digits.iter().try_fold(0, step) }
}

fn minor(version: &[u8]) -> Result<u8, Bad> {
    match version {
        b"HTTP/1.0" => Ok(0),
        b"HTTP/1.1" => Ok(1),
        _ => Err("version"),
    }
}

/// The four forms of RFC 9112 §3.2: where the path is, and the authority of the absolute form.
fn form(method: &[u8], target: &str) -> Result<(Range<usize>, Option<String>), Bad> {
    if !target.bytes().all(|b| b > b' ' && b != 0x7f && b != b'#') {
        return Err("a character in the target");
    }
    if method == b"CONNECT" {
        let (host, port) = target.rsplit_once(':').ok_or("no port")?;
        let port = decimal(port.as_bytes()).filter(|port| (1..=65535).contains(port));
        let valid = !host.is_empty() && is_host(target.as_bytes()) && port.is_some();
        return if valid { Ok((0..target.len(), None)) } else { Err("authority form") };
    }
    if target == "*" {
        return if method == b"OPTIONS" { Ok((0..1, None)) } else { Err("asterisk form") };
    }
    let query = target.find('?').unwrap_or(target.len());
    if target.starts_with('/') {
        return Ok((0..query, None));
    }
    let (scheme, rest) = target.split_once("://").ok_or("no form")?;
    let letters = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.bytes().all(letters) {
        return Err("scheme");
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.is_empty() || authority.starts_with(':') || !is_host(authority.as_bytes()) {
        return Err("authority");
    }
    Ok((scheme.len() + 3 + authority.len()..query, Some(authority.to_owned())))
}

/// `uri-host [ ":" port ]` of RFC 3986 §3.2.2, where the host may be empty.
fn is_host(text: &[u8]) -> bool {
    let (host, port) = if text.starts_with(b"[") {
        let Some(end) = text.iter().position(|b| *b == b']') else { return false };
        let inner = &text[1..end];
        let known = |b: &u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:".contains(b);
        if inner.is_empty() || !inner.iter().all(known) {
            return false;
        }
        (&b""[..], &text[end + 1..])
    } else {
        text.split_at(text.iter().position(|b| *b == b':').unwrap_or(text.len()))
    };
    let port = match port {
        [] => true,
        [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    let mut rest = host;
    while let [first, more @ ..] = rest {
        rest = match (first, more) {
            (b'%', [a, b, more @ ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => more,
            (b, more) if b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(b) => more,
            _ => return false,
        };
    }
    port
}

/// RFC 9112 §7.1.
fn chunks(bytes: &[u8], body: &mut Body) -> Result<End, Bad> {
    loop {
        let Some((size_line, next)) = line(bytes, body.used)? else {
            return short_of_a_line(&bytes[body.used..]).map(|()| End::Missing);
        };
        let size = chunk_size(size_line)?;
        if size == 0 {
            let mut at = next;
            let Some(trailers) = fields(bytes, &mut at)? else { return Ok(End::Missing) };
            (body.trailers, body.used) = (trailers, at);
            return Ok(End::Whole);
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let data = &bytes[next..];
        let Some((data, rest)) = data.split_at_checked(size) else {
            body.content.extend_from_slice(data);
            return Ok(End::Missing);
        };
        body.content.extend_from_slice(data);
        match rest {
            [b'\r', b'\n', ..] => body.used = next + size + 2,
            [] | [b'\r'] => return Ok(End::Missing),
            _ => return Err("a chunk that is longer than its size"),
        }
    }
}

/// Nothing can be said of a line whose end is still to come, but that it has no bare CR.
fn short_of_a_line(rest: &[u8]) -> Result<(), Bad> {
    match rest.split_last() {
        Some((_, before)) if before.contains(&b'\r') => Err("a bare carriage return"),
        _ => Ok(()),
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, Bad> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (size, rest) = line.split_at(digits);
    if !(1..=16).contains(&digits) {
        return Err("chunk size");
    }
    let extension = trim(rest);
    let extends = extension.starts_with(b";") && rest.iter().all(|b| is_value(*b));
    if !(rest.is_empty() || extends) {
        return Err("behind a chunk's size");
    }
    // 16 digits are 64 bits.
    Ok(size
        .iter()
        .fold(0, |n, digit| n << 4 | char::from(*digit).to_digit(16).map_or(0, u64::from)))
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// `field-vchar`, and the white space between.
fn is_value(b: u8) -> bool {
    b == b'\t' || b >= b' ' && b != 0x7f
}

fn trim(value: &[u8]) -> &[u8] {
    let blank = |b: &u8| *b == b' ' || *b == b'\t';
    let from = value.iter().position(|b| !blank(b)).unwrap_or(value.len());
    let to = value.iter().rposition(|b| !blank(b)).map_or(from, |last| last + 1);
    &value[from..to]
}

/// Of what was seen to be ASCII.
fn text(ascii: &[u8]) -> String {
    String::from_utf8_lossy(ascii).into_owned()
}
