//! How long a body is, where it ends, and how it is framed for the next hop.

use super::super::{MAX_HEAD, MAX_HEADERS};

/// How the end of a body is known (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// The chunk of size zero.
    Chunked,
    /// The connection's end; only a response's.
    UntilClose,
}

impl Framing {
    /// Whether nothing follows the head.
    #[must_use]
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}

/// A `Content-Length` (RFC 9110 §8.6): digits, and nothing else.
pub(super) fn length(value: &[u8]) -> Option<u64> {
    // `parse` alone would take a sign.
    let digits = value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

/// Whether a `Transfer-Encoding` is chunked and nothing else.
pub(super) fn is_chunked(coding: &[u8]) -> bool {
    coding.eq_ignore_ascii_case(b"chunked")
}

/// Bytes of one chunk's extensions that are read over. Nobody forwards them (RFC 9112 §7.1.1).
const MAX_EXTENSION: usize = 4096;

/// Finds data, trailers and end of a body in the bytes of a connection.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Lines of the trailer section that may travel on, without its empty line.
    trailers: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    /// The chunk's size, and how many digits of it were seen.
    Size(u64, u32),
    /// White space behind the size, which only an extension may follow.
    Gap(u64),
    /// In the extensions, with their length so far.
    Extension(u64, usize),
    SizeLineFeed(u64),
    Data(u64),
    DataCarriageReturn,
    DataLineFeed,
    /// In the trailer section; where its line at hand begins.
    Trailer(usize),
    Done,
}

/// What comes next in a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Content.
    Data(&'a [u8]),
    /// More bytes are needed.
    More,
    /// It is over.
    End,
}

/// A body that is not framed as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadBody(pub &'static str);

impl Decoder {
    /// Before a body of this framing.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size(0, 0),
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, trailers: Vec::new() }
    }

    /// Whether all of it was seen.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes still to come, where that is known.
    #[must_use]
    pub fn left(&self) -> Option<u64> {
        match self.state {
            State::Done => Some(0),
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// The lines of the trailer section that may travel on, once it is over.
    #[must_use]
    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// The connection has ended: whether that is the body's end too.
    pub fn finish(&mut self) -> bool {
        if self.state == State::UntilClose {
            self.state = State::Done;
        }
        self.is_done()
    }

    /// The next piece, and how many bytes it was taken from.
    ///
    /// # Errors
    /// Where the chunks are not framed as RFC 9112 §7.1 says.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Piece<'a>), BadBody> {
        let mut at = 0;
        loop {
            match self.state {
                State::Done => return Ok((at, Piece::End)),
                State::UntilClose | State::Length(_) | State::Data(_) if at == input.len() => {
                    return Ok((at, Piece::More));
                }
                State::UntilClose => return Ok((input.len(), Piece::Data(&input[at..]))),
                State::Length(left) => {
                    let data = upto(&input[at..], left);
                    let left = left - data.len() as u64;
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    return Ok((at + data.len(), Piece::Data(data)));
                }
                State::Data(left) => {
                    let data = upto(&input[at..], left);
                    let left = left - data.len() as u64;
                    self.state =
                        if left == 0 { State::DataCarriageReturn } else { State::Data(left) };
                    return Ok((at + data.len(), Piece::Data(data)));
                }
                _ => {}
            }
            let Some(&byte) = input.get(at) else { return Ok((at, Piece::More)) };
            at += 1;
            self.state = self.step(byte)?;
        }
    }

    /// One byte of a chunk's framing.
    fn step(&mut self, byte: u8) -> Result<State, BadBody> {
        let bad = |what| Err(BadBody(what));
        Ok(match (self.state, byte) {
            (State::Size(_, 16), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                return bad("its chunk size has more than 16 digits");
            }
            (State::Size(size, digits), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                State::Size(size << 4 | digit, digits + 1)
            }
            (State::Size(size, 1..), b'\r') => State::SizeLineFeed(size),
            (State::Size(size, 1..), b' ' | b'\t') => State::Gap(size),
            (State::Size(size, 1..) | State::Gap(size), b';') => State::Extension(size, 0),
            (State::Size(..), _) => return bad("its chunk size is no number"),
            (State::Gap(size), b' ' | b'\t') => State::Gap(size),
            (State::Gap(_), _) => return bad("its chunk size has a space behind it"),
            (State::Extension(size, _), b'\r') => State::SizeLineFeed(size),
            (State::Extension(size, seen), b'\t' | b' '..=b'~' | 0x80..)
                if seen < MAX_EXTENSION =>
            {
                State::Extension(size, seen + 1)
            }
            (State::Extension(..), b'\t' | b' '..=b'~' | 0x80..) => {
                return bad("its chunk extension is too long");
            }
            (State::Extension(..), _) => {
                return bad("its chunk extension has a control character");
            }
            (State::SizeLineFeed(0), b'\n') => State::Trailer(0),
            (State::SizeLineFeed(size), b'\n') => State::Data(size),
            (State::SizeLineFeed(_), _) => return bad("its chunk size does not end in CR LF"),
            (State::DataCarriageReturn, b'\r') => State::DataLineFeed,
            (State::DataLineFeed, b'\n') => State::Size(0, 0),
            (State::DataCarriageReturn | State::DataLineFeed, _) => {
                return bad("its chunk is longer than its size");
            }
            (State::Trailer(line), _) => return self.step_trailer(line, byte),
            (done, _) => done,
        })
    }

    fn step_trailer(&mut self, line: usize, byte: u8) -> Result<State, BadBody> {
        if self.trailers.len() >= MAX_HEAD {
            return Err(BadBody("its trailer section is too long"));
        }
        self.trailers.push(byte);
        if byte != b'\n' {
            return Ok(State::Trailer(line));
        }
        if !self.trailers[line..].ends_with(b"\r\n") {
            return Err(BadBody("its trailer section has a line that does not end in CR LF"));
        }
        if self.trailers.len() - line > 2 {
            return Ok(State::Trailer(self.trailers.len()));
        }
        self.trailers = permitted(&self.trailers)?;
        Ok(State::Done)
    }
}

fn upto(bytes: &[u8], most: u64) -> &[u8] {
    &bytes[..usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len())]
}

/// The trailer fields that may travel on: none that frame, route or control a message (RFC 9110
/// §6.5.1), none of the connection and none that only a proxy of ours may set.
fn permitted(section: &[u8]) -> Result<Vec<u8>, BadBody> {
    const FORBIDDEN: [&str; 14] = [
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "host",
        "keep-alive",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    if section == b"\r\n" {
        return Ok(Vec::new());
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let (_, fields) = match httparse::parse_headers(section, &mut fields) {
        Ok(httparse::Status::Complete(complete)) => complete,
        Err(httparse::Error::TooManyHeaders) => {
            return Err(BadBody("its trailer section has more than 256 fields"));
        }
        Ok(httparse::Status::Partial) | Err(_) => {
            return Err(BadBody("its trailer section is no list of fields"));
        }
    };
    let mut out = Vec::with_capacity(section.len());
    for field in fields {
        let forbidden = FORBIDDEN.iter().any(|name| field.name.eq_ignore_ascii_case(name));
        let prefix = remora_core::names::headers::PREFIX;
        let ours = field.name.get(..prefix.len()).is_some_and(|p| p.eq_ignore_ascii_case(prefix));
        if !forbidden && !ours {
            out.extend_from_slice(field.name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(field.value);
            out.extend_from_slice(b"\r\n");
        }
    }
    Ok(out)
}

/// Frames a body for the next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoder {
    /// As it is: its length was said, or the connection ends with it.
    Plain,
    /// In chunks.
    Chunked,
}

impl Encoder {
    /// Appends a piece of content.
    pub fn data(self, data: &[u8], out: &mut Vec<u8>) {
        if self == Self::Plain {
            return out.extend_from_slice(data);
        }
        if data.is_empty() {
            return; // A chunk of size zero would be the end.
        }
        let (line, from) = size_line(data.len());
        out.reserve(data.len() + line.len() - from + 2);
        out.extend_from_slice(&line[from..]);
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }

    /// Appends the end, with its trailer lines.
    pub fn end(self, trailers: &[u8], out: &mut Vec<u8>) {
        if self == Self::Chunked {
            out.extend_from_slice(b"0\r\n");
            out.extend_from_slice(trailers);
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// A chunk's size line, and where in the array it begins.
fn size_line(mut size: usize) -> ([u8; 18], usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut line = *b"0000000000000000\r\n";
    let mut from = 16;
    loop {
        from -= 1;
        line[from] = DIGITS[size & 15];
        size >>= 4;
        if size == 0 {
            return (line, from);
        }
    }
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
