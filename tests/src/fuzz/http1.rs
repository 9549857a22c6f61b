//! Heads and bodies of HTTP/1, each by itself, against the reading of [`strict`].

use remora_proxy::http::{
    MAX_HEADERS,
    h1::{
        body::{Decoder, Encoder, Framing, Piece},
        request::{Refusal, RequestHead},
        response::{ResponseHead, Towards},
    },
};

use super::{
    exchange,
    relay::IDENTITY,
    strict::{self, End},
};

/// A request's head: both readings refuse it, or both find the same in it, and what goes on is what
/// came without what belongs to the hop.
///
/// # Panics
/// Where they do not agree.
pub fn request(bytes: &[u8]) {
    let (ours, theirs) = (RequestHead::read(bytes), strict::request(bytes));
    let (mut head, used, meant) = match (ours, theirs) {
        (Ok(Some((head, used))), Ok(Some((meant, end)))) => {
            assert_eq!(used, end);
            (head, used, meant)
        }
        (Ok(Some(_)), other) => panic!("understood what is no request: {other:?}"),
        (Err(Refusal::TooManyFields), Ok(Some((meant, _)))) => {
            return assert!(meant.fields.len() >= MAX_HEADERS);
        }
        (ours, Ok(Some(_))) => panic!("refused what is a request: {ours:?}"),
        _ => return,
    };
    assert_eq!((head.method.as_str(), head.path()), (&*meant.method, meant.path()));
    assert_eq!(same(head.framing), meant.framing);
    assert_eq!(head.is_1_1(), meant.minor == 1);
    let expects = strict::values(&meant.fields, "expect");
    let expects = expects.into_iter().any(|value| value.eq_ignore_ascii_case(b"100-continue"));
    assert_eq!(head.expects_continue, expects);
    head.fields.strip_ours();
    head.fields.add(remora_core::names::headers::CLIENT_ID, IDENTITY.as_bytes());
    let mut out = Vec::new();
    head.write(b"", &mut out);
    let forwarded = exchange::forwarded(&meant);
    assert_eq!(strict::request(&out), Ok(Some((forwarded, out.len()))));
    // Any shorter piece is the beginning of it.
    assert!(matches!(RequestHead::read(&bytes[..used - 1]), Ok(None)));
}

fn same(framing: Framing) -> strict::Framing {
    match framing {
        Framing::None => strict::Framing::None,
        Framing::Length(length) => strict::Framing::Length(length),
        Framing::Chunked => strict::Framing::Chunked,
        Framing::UntilClose => strict::Framing::UntilClose,
    }
}

/// Requests that a response may answer; the first byte of an input chooses.
const ASKED: [&str; 5] = [
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
    "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n",
];

/// A response's head: what goes on can be read in one way only, and where what came can, it says
/// the same.
///
/// # Panics
/// Where it does not.
pub fn response(bytes: &[u8]) {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let asked = ASKED[usize::from(*choice) % ASKED.len()];
    let Ok(Some((asked, _))) = RequestHead::read(asked.as_bytes()) else {
        panic!("a good request was refused")
    };
    let theirs = strict::response(bytes);
    let (mut head, used) = match ResponseHead::read(bytes, &asked) {
        Ok(Some(read)) => read,
        Ok(None) => return assert!(!matches!(theirs, Ok(Some(_))), "a head without an end"),
        Err(bad) => {
            let Ok(Some((meant, _))) = theirs else { return };
            // A switch can be understood, and must not be; a coding must not go on to HTTP/1.0.
            let unasked = meant.status == 101;
            let coded = strict::values(&meant.fields, "transfer-encoding").next().is_some();
            let unknown = coded && !asked.is_1_1();
            let many = meant.fields.len() >= MAX_HEADERS;
            return assert!(unasked || unknown || many, "{bad}: {meant:?}");
        }
    };
    if let Ok(Some((meant, end))) = &theirs {
        assert_eq!((used, head.status.as_u16()), (*end, meant.status));
        let bodiless = asked.method == "HEAD" || head.leaves_http;
        let framing = if bodiless { strict::Framing::None } else { meant.framing };
        assert_eq!(same(head.framing), framing);
    }
    let leaves = head.leaves_http;
    let (encoder, persists) = head.adapt(Towards { request: &asked, last: *choice >= 0x80 });
    let mut out = Vec::new();
    head.write(&asked, &mut out);
    let (given, end) = match strict::response(&out) {
        Ok(Some(read)) => read,
        other => panic!("not to be read: {other:?}: {:?}", String::from_utf8_lossy(&out)),
    };
    assert_eq!((end, given.status), (out.len(), head.status.as_u16()));
    assert!(asked.is_1_1() || given.minor == 0);
    if leaves {
        return;
    }
    let close = strict::has(&given.fields, "connection", "close");
    let keeps = strict::has(&given.fields, "connection", "keep-alive");
    assert_eq!(persists, !close && (given.minor == 1 || keeps));
    let bodiless = asked.method == "HEAD" || given.framing == strict::Framing::None;
    if !bodiless {
        let chunked = given.framing == strict::Framing::Chunked;
        assert_eq!(chunked, encoder == Encoder::Chunked);
        assert!(!persists || given.framing != strict::Framing::UntilClose);
    }
}

/// A chunked body in pieces: it ends where the strict reading says, with the same content, and is
/// the same after it was framed anew. The first byte is the size of the pieces.
///
/// # Panics
/// Where it is not.
pub fn body(bytes: &[u8]) {
    let Some((grain, bytes)) = bytes.split_first() else { return };
    let mut decoder = Decoder::new(Framing::Chunked);
    let (mut content, mut anew) = (Vec::new(), Vec::new());
    let (mut at, mut bad) = (0, None);
    'pieces: for piece in bytes.chunks(usize::from(*grain).max(1)) {
        let mut used = 0;
        loop {
            match decoder.next(&piece[used..]) {
                Ok((n, Piece::Data(data))) => {
                    assert!(n >= data.len() && !data.is_empty());
                    content.extend_from_slice(data);
                    Encoder::Chunked.data(data, &mut anew);
                    used += n;
                }
                Ok((n, Piece::More)) => {
                    assert_eq!(used + n, piece.len(), "bytes are left over in the middle");
                    break;
                }
                Ok((n, Piece::End)) => {
                    at += used + n;
                    break 'pieces;
                }
                Err(error) => {
                    bad = Some(error);
                    break 'pieces;
                }
            }
        }
        at += piece.len();
    }
    let meant = strict::body(strict::Framing::Chunked, bytes, false);
    let whole = meant.end == End::Whole && meant.trailers.len() <= MAX_HEADERS;
    assert_eq!(decoder.is_done(), whole, "{bad:?} {:?}", meant.end);
    if !decoder.is_done() {
        assert!(!decoder.finish(), "the end of the connection is no end of chunks");
        return assert!(content.starts_with(&meant.content) || meant.content.starts_with(&content));
    }
    assert_eq!((at, &content), (meant.used, &meant.content));
    Encoder::Chunked.end(decoder.trailers(), &mut anew);
    let again = strict::body(strict::Framing::Chunked, &anew, false);
    assert_eq!((again.end, again.used), (End::Whole, anew.len()));
    assert_eq!(again.content, content);
    assert_eq!(again.trailers, exchange::permitted(&meant.trailers));
}
