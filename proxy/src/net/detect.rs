//! What does the client speak? Decided from its first bytes, within a bounded time.

use std::{io, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{Instant, timeout},
};

use super::client_hello::{self, ClientHello, Look};
use crate::metrics::{Direction, Metrics};

/// A client that says nothing for this long may be waiting for the server to speak first.
pub const FIRST_BYTE: Duration = Duration::from_millis(50);
/// A client that began must become recognisable within this time.
const REST: Duration = Duration::from_secs(1);
/// First bytes that are looked at; a request line beyond this is left to the HTTP parser's limits.
const MAX_LEN: usize = client_hello::MAX_LEN;
/// What HTTP/2 with prior knowledge begins with (RFC 9113 §3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detected {
    /// An HTTP/1.x request line.
    Http1,
    /// The HTTP/2 connection preface.
    Http2,
    /// A TLS ClientHello.
    Tls(ClientHello),
    /// Something else, or an end before anything was recognisable.
    Opaque,
    /// Nothing came yet.
    Silent,
}

impl Detected {
    /// Label of the counter `remora_detect_total`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Http1 => "http/1",
            Self::Http2 => "http/2",
            Self::Tls(_) => "tls",
            Self::Opaque => "opaque",
            Self::Silent => "silent",
        }
    }
}

/// Reads into `seen` until it is clear what the client speaks, or `first_byte` passes in silence.
///
/// The bytes in `seen` are consumed from `io`; put them back with [`super::prefixed::Prefixed`].
///
/// # Errors
/// What reading says, for example a reset.
pub async fn detect<IO: AsyncRead + Unpin>(
    io: &mut IO,
    seen: &mut BytesMut,
    first_byte: Duration,
) -> io::Result<Detected> {
    if seen.is_empty() {
        seen.reserve(2048);
        match timeout(first_byte, io.read_buf(seen)).await {
            Err(_) => return Ok(Detected::Silent),
            Ok(read) => {
                if read? == 0 {
                    return Ok(Detected::Opaque);
                }
            }
        }
    }
    if let Some(found) = classify(seen) {
        return Ok(found);
    }
    let more = async {
        loop {
            if seen.len() >= MAX_LEN || io.read_buf(seen).await? == 0 {
                return Ok(Detected::Opaque);
            }
            if let Some(found) = classify(seen) {
                return Ok(found);
            }
        }
    };
    timeout(REST, more).await.unwrap_or(Ok(Detected::Opaque))
}

/// The same with the usual patience, and how long it took is counted.
///
/// # Errors
/// As [`detect`].
pub async fn timed<IO: AsyncRead + Unpin>(
    io: &mut IO,
    seen: &mut BytesMut,
    metrics: &Metrics,
    direction: Direction,
) -> io::Result<Detected> {
    let began = Instant::now();
    let found = detect(io, seen, FIRST_BYTE).await;
    metrics.detect_took(direction, began.elapsed());
    found
}

/// What the bytes are; `None` while it can still become more than one thing. The same whatever
/// follows, so that it does not depend on the pieces in which they come.
#[must_use]
pub fn classify(bytes: &[u8]) -> Option<Detected> {
    let bytes = &bytes[..bytes.len().min(MAX_LEN)];
    if bytes.is_empty() {
        return None;
    }
    if bytes[0] == 22 {
        return match client_hello::look(bytes) {
            Look::Incomplete => None,
            Look::No => Some(Detected::Opaque),
            Look::Hello(hello) => Some(Detected::Tls(hello)),
        };
    }
    let n = bytes.len().min(H2_PREFACE.len());
    if bytes[..n] == H2_PREFACE[..n] {
        return (n == H2_PREFACE.len()).then_some(Detected::Http2);
    }
    request_line(bytes)
}

/// `method SP target SP HTTP/1.x` (RFC 9112 §3). Words of other protocols (`PING`, `EHLO x`) differ
/// at the end of the line, so it is read to its end.
fn request_line(bytes: &[u8]) -> Option<Detected> {
    /// Longer than any registered method.
    const MAX_METHOD: usize = 32;
    /// A path that goes on beyond here is one of HTTP.
    const ENOUGH: usize = 4096;
    // Empty lines before the request line are tolerated (RFC 9112 §2.2).
    let start = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    let bytes = &bytes[start..];
    let method = bytes.iter().take_while(|b| is_token(**b)).count();
    if method > MAX_METHOD || (method == 0 && !bytes.is_empty()) {
        return Some(Detected::Opaque);
    }
    match bytes.get(method) {
        None => return None,
        Some(b' ') => {}
        Some(_) => return Some(Detected::Opaque),
    }
    let long = bytes.len() > ENOUGH && bytes[method + 1] == b'/';
    let line = match bytes.iter().position(|&b| b == b'\n') {
        Some(end) if end < ENOUGH || !long => &bytes[..end],
        _ if long => return Some(Detected::Http1),
        _ => return None,
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let version = line.len().checked_sub(9).map(|at| &line[at..]);
    let is_http = version.is_some_and(|v| v.starts_with(b" HTTP/1.") && v[8].is_ascii_digit());
    Some(if is_http { Detected::Http1 } else { Detected::Opaque })
}

/// `tchar` of RFC 9110 §5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    #[test]
    fn protocols_are_told_apart() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Detected::Http1)),
            (b"\r\nPOST /x HTTP/1.0\r\n", Some(Detected::Http1)),
            (b"GET http://a/b HTTP/1.1\nHost: a", Some(Detected::Http1)),
            (H2_PREFACE, Some(Detected::Http2)),
            (b"PRI * HTTP/2.0\r\n", None),
            (b"PRINT 1\r\n", Some(Detected::Opaque)),
            (b"PING\r\n", Some(Detected::Opaque)),
            (b"EHLO example.org\r\n", Some(Detected::Opaque)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Detected::Opaque)),
            (b"SSH-2.0-OpenSSH\r\n", Some(Detected::Opaque)),
            (b"GET /index", None),
            (b"GE", None),
            (b"\x00\x01", Some(Detected::Opaque)),
        ] {
            assert_eq!(classify(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_long_first_line_is_the_same_in_one_piece_and_in_two() {
        let line = |end: &str| format!("GET /{}{end}\r\n", "x".repeat(5000)).into_bytes();
        for bytes in [line(""), line(" HTTP/1.1"), line(" HTTP/2.0")] {
            assert_eq!(classify(&bytes[..4500]), Some(Detected::Http1));
            assert_eq!(classify(&bytes), Some(Detected::Http1));
        }
        // Beyond what is looked at.
        let late = [vec![b'\r'; MAX_LEN], b"GET / HTTP/1.1\r\n".to_vec()].concat();
        assert_eq!((classify(&late[..MAX_LEN]), classify(&late)), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_noticed_after_the_first_byte_bound() {
        let (_client, mut server) = tokio::io::duplex(64);
        let started = tokio::time::Instant::now();
        let found = detect(&mut server, &mut BytesMut::new(), FIRST_BYTE).await.unwrap();
        assert_eq!((found, started.elapsed()), (Detected::Silent, FIRST_BYTE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_line_in_pieces_is_recognised_and_kept() {
        let (mut client, mut server) = tokio::io::duplex(64);
        let writer = tokio::spawn(async move {
            for piece in [&b"GE"[..], b"T / HT", b"TP/1.1\r", b"\n"] {
                client.write_all(piece).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            client
        });
        let mut seen = BytesMut::new();
        let found = detect(&mut server, &mut seen, FIRST_BYTE).await.unwrap();
        assert_eq!((found, &seen[..]), (Detected::Http1, &b"GET / HTTP/1.1\r\n"[..]));
        writer.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_request_line_is_bytes_in_the_end() {
        let (mut client, mut server) = tokio::io::duplex(64);
        client.write_all(b"GET /").await.unwrap();
        let found = detect(&mut server, &mut BytesMut::new(), FIRST_BYTE).await.unwrap();
        assert_eq!(found, Detected::Opaque);
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_a_decision(bytes in prop::collection::vec(any::<u8>(), 1..80)) {
            let decisions: Vec<_> = (1..=bytes.len()).filter_map(|n| classify(&bytes[..n])).collect();
            prop_assert!(decisions.windows(2).all(|w| w[0] == w[1]), "{decisions:?}");
        }
    }
}
