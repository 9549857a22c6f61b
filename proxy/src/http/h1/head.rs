//! The fields of one message, as they are on the wire.

use std::ops::Range;

use crate::fields::{Fields, FieldsMut};

/// A head that was read and not yet looked into.
#[derive(Debug)]
pub struct RawHead {
    /// From the start line to the empty line.
    pub(super) bytes: Vec<u8>,
    /// Lines, the empty one included.
    pub(super) lines: usize,
    /// Whether a line ends without a carriage return.
    pub(super) bare_line_feeds: bool,
}

/// A head's bytes, and where its fields are in them.
///
/// Removing a field marks it, adding one appends its line: nothing is moved, and what is kept is
/// copied in runs.
#[derive(Debug, Clone, Default)]
pub struct Head {
    bytes: Vec<u8>,
    fields: Vec<Field>,
}

/// One field's line, as positions in the head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    /// Where the line begins, which is where the name begins.
    line: usize,
    name_end: usize,
    value: usize,
    value_end: usize,
    /// Behind the line's end.
    end: usize,
    name: Name,
    /// Whether the line can be forwarded as it is.
    regular: bool,
    removed: bool,
}

/// Fields that a relay must look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Connection,
    ContentLength,
    Expect,
    Host,
    Http2Settings,
    KeepAlive,
    /// Begins with `remora-`.
    Ours,
    ProxyConnection,
    Te,
    TransferEncoding,
    Upgrade,
    Other,
}

impl Name {
    fn of(name: &[u8]) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            2 if is("te") => Self::Te,
            4 if is("host") => Self::Host,
            6 if is("expect") => Self::Expect,
            7 if is("upgrade") => Self::Upgrade,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::KeepAlive,
            14 if is("content-length") => Self::ContentLength,
            14 if is("http2-settings") => Self::Http2Settings,
            16 if is("proxy-connection") => Self::ProxyConnection,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            _ if is_ours(name) => Self::Ours,
            _ => Self::Other,
        }
    }
}

fn is_ours(name: &[u8]) -> bool {
    let prefix = remora_core::names::headers::PREFIX.as_bytes();
    name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

impl Head {
    /// `fields` are those of [`Field::all`] in the same head.
    pub(super) fn new(raw: RawHead, fields: Vec<Field>) -> Self {
        Self { bytes: raw.bytes, fields }
    }

    /// All of it, as it was on the wire, and what was added.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All fields that are there, as (index, name, value).
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, Name, &[u8])> {
        let there = self.fields.iter().enumerate().filter(|(_, field)| !field.removed);
        there.map(|(at, field)| (at, field.name, &self.bytes[field.value..field.value_end]))
    }

    /// The name at an index of [`Self::iter`].
    pub(super) fn name_at(&self, index: usize) -> &[u8] {
        let field = self.fields[index];
        &self.bytes[field.line..field.name_end]
    }

    /// Removes the field at an index of [`Self::iter`].
    pub(super) fn remove_at(&mut self, index: usize) {
        self.fields[index].removed = true;
    }

    /// Removes all fields of which this holds.
    pub(super) fn remove_all(&mut self, gone: impl Fn(Name) -> bool) {
        for field in &mut self.fields {
            field.removed |= gone(field.name);
        }
    }

    /// Keeps some bytes that belong to no field.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> Range<usize> {
        let from = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        from..self.bytes.len()
    }

    /// Appends a field. Neither part may have a line's end in it.
    pub fn add(&mut self, name: &str, value: &[u8]) {
        debug_assert!(!name.contains(['\r', '\n']) && !value.iter().any(|b| b"\r\n".contains(b)));
        let line = self.bytes.len();
        self.bytes.extend_from_slice(name.as_bytes());
        let name_end = self.bytes.len();
        self.bytes.extend_from_slice(b": ");
        let start = self.bytes.len();
        self.bytes.extend_from_slice(value);
        let value_end = self.bytes.len();
        self.bytes.extend_from_slice(b"\r\n");
        self.fields.push(Field {
            line,
            name_end,
            value: start,
            value_end,
            end: self.bytes.len(),
            name: Name::of(name.as_bytes()),
            regular: true,
            removed: false,
        });
    }

    /// Removes what only proxies of ours may say.
    pub fn strip_ours(&mut self) {
        self.remove_all(|name| name == Name::Ours);
    }

    /// Appends all lines that are there, without the empty one.
    pub(super) fn write_fields(&self, out: &mut Vec<u8>) {
        let mut run = 0..0;
        for field in self.fields.iter().filter(|field| !field.removed) {
            if field.regular {
                if run.end == field.line && !run.is_empty() {
                    run.end = field.end;
                    continue;
                }
                out.extend_from_slice(&self.bytes[run]);
                run = field.line..field.end;
            } else {
                out.extend_from_slice(&self.bytes[std::mem::take(&mut run)]);
                field.write_anew(&self.bytes, out);
            }
        }
        out.extend_from_slice(&self.bytes[run]);
    }

    /// Bytes that [`Self::write_fields`] writes, or a little more.
    pub(super) fn len_hint(&self) -> usize {
        self.bytes.len() + 64
    }
}

impl Field {
    /// The fields that httparse found in a head.
    pub(super) fn all(raw: &RawHead, headers: &[httparse::Header<'_>]) -> Vec<Self> {
        // Folded or oddly ended lines make for more lines than fields, or for bare line feeds.
        let regular = !raw.bare_line_feeds && raw.lines == headers.len() + 2;
        let bytes = &raw.bytes[..];
        let last = bytes.len() - if bytes.ends_with(b"\r\n") { 2 } else { 1 };
        let field = |(index, header): (usize, &httparse::Header<'_>)| {
            let line = offset(bytes, header.name.as_bytes());
            let name_end = line + header.name.len();
            // An empty value need not point into the line.
            let value =
                if header.value.is_empty() { name_end } else { offset(bytes, header.value) };
            let next = headers.get(index + 1);
            Self {
                line,
                name_end,
                value,
                value_end: value + header.value.len(),
                end: next.map_or(last, |next| offset(bytes, next.name.as_bytes())),
                name: Name::of(header.name.as_bytes()),
                regular: regular && bytes[name_end] == b':',
                removed: false,
            }
        };
        headers.iter().enumerate().map(field).collect()
    }

    /// Writes the line of a response that cannot be forwarded as it is: unfolds it (RFC 9112 §5.2)
    /// and closes the gap before the colon (§5.1).
    fn write_anew(&self, bytes: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&bytes[self.line..self.name_end]);
        out.extend_from_slice(b": ");
        let value = &bytes[self.value..self.value_end];
        out.extend(value.iter().map(|b| if b"\r\n".contains(b) { b' ' } else { *b }));
        out.extend_from_slice(b"\r\n");
    }
}

impl Fields for Head {
    fn all<'a>(&'a self, name: &'a http::HeaderName) -> impl Iterator<Item = &'a [u8]> {
        let wanted = name.as_str().as_bytes();
        let there = self.fields.iter().filter(|field| !field.removed);
        let found = there.filter(move |field| {
            let name = &self.bytes[field.line..field.name_end];
            name.len() == wanted.len() && name.eq_ignore_ascii_case(wanted)
        });
        found.map(|field| &self.bytes[field.value..field.value_end])
    }
}

impl FieldsMut for Head {
    fn remove(&mut self, name: &http::HeaderName) {
        let wanted = name.as_str().as_bytes();
        for field in &mut self.fields {
            let name = &self.bytes[field.line..field.name_end];
            field.removed |= name.len() == wanted.len() && name.eq_ignore_ascii_case(wanted);
        }
    }

    fn append(&mut self, name: &http::HeaderName, value: &http::HeaderValue) {
        self.add(name.as_str(), value.as_bytes());
    }
}

/// Where a part of `bytes` begins in it.
pub(super) fn offset(bytes: &[u8], part: &[u8]) -> usize {
    part.as_ptr() as usize - bytes.as_ptr() as usize
}
