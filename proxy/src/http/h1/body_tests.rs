use super::*;
use proptest::prelude::*;

/// Reads a whole body: its content, the bytes it took, its trailers.
fn decode(framing: Framing, bytes: &[u8]) -> Result<(Vec<u8>, usize, Vec<u8>), &'static str> {
    decode_in(framing, &[bytes])
}

fn decode_in(
    framing: Framing,
    pieces: &[&[u8]],
) -> Result<(Vec<u8>, usize, Vec<u8>), &'static str> {
    let mut decoder = Decoder::new(framing);
    let (mut content, mut used) = (Vec::new(), 0);
    for piece in pieces {
        let mut at = 0;
        loop {
            let (n, found) = decoder.next(&piece[at..]).map_err(|bad| bad.0)?;
            at += n;
            used += n;
            match found {
                Piece::Data(data) => content.extend_from_slice(data),
                Piece::More => break,
                Piece::End => return Ok((content, used, decoder.trailers().to_vec())),
            }
        }
        assert_eq!(at, piece.len(), "more is wanted only when all is used");
    }
    if decoder.finish() { Ok((content, used, Vec::new())) } else { Err("not over") }
}

#[test]
fn a_body_ends_where_its_framing_says() {
    for (framing, bytes, content, used) in [
        (Framing::None, &b"next"[..], &b""[..], 0),
        (Framing::Length(0), b"next", b"", 0),
        (Framing::Length(3), b"abcnext", b"abc", 3),
        (Framing::UntilClose, b"abc", b"abc", 3),
        (Framing::Chunked, b"0\r\n\r\nnext", b"", 5),
        (Framing::Chunked, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\nnext", b"abcde", 20),
        (Framing::Chunked, b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789", 20),
        (Framing::Chunked, b"003;a=b;c=\"d\"\r\nabc\r\n0 ;x\r\n\r\n", b"abc", 28),
    ] {
        let (got, took, _) = decode(framing, bytes).unwrap();
        assert_eq!((&got[..], took), (content, used), "{framing:?}");
    }
    assert_eq!(decode(Framing::Length(3), b"ab"), Err("not over"));
    assert_eq!(decode(Framing::Chunked, b"3\r\nabc\r\n"), Err("not over"));
}

#[test]
fn chunks_that_parsers_read_differently_are_refused() {
    for bytes in [
        &b"g\r\n"[..],
        b"\r\n",
        b"-1\r\n",
        b"+1\r\na\r\n",
        b"0x1\r\na\r\n",
        b" 1\r\na\r\n",
        b"1 \r\na\r\n0\r\n\r\n",
        b"1\na\n0\n\n",
        b"1\r\na\n0\r\n\r\n",
        b"1\r\nab\r\n0\r\n\r\n",
        b"1\r\na0\r\n\r\n",
        b"10000000000000000\r\n",
        b"1;x\n\r\na\r\n",
        b"1;x\0\r\na\r\n",
        b"1;x\ra\r\na\r\n",
        b"1,2\r\n",
        b"0\r\nA: b\n\r\n",
        b"0\r\nA b: c\r\n\r\n",
        b"0\r\n A: b\r\n\r\n",
        b"0\r\nA: \x01\r\n\r\n",
    ] {
        let text = String::from_utf8_lossy(bytes);
        let refused = decode(Framing::Chunked, bytes).expect_err(&text);
        assert_ne!(refused, "not over", "{text:?}");
    }
}

#[test]
fn extensions_and_trailers_have_bounds() {
    let long = format!("1;{}\r\n", "x".repeat(MAX_EXTENSION + 1));
    assert!(decode(Framing::Chunked, long.as_bytes()).is_err());
    let long = format!("0\r\nx: {}\r\n\r\n", "x".repeat(MAX_HEAD));
    assert!(decode(Framing::Chunked, long.as_bytes()).is_err());
    let section = |fields: usize| format!("0\r\n{}\r\n", "x: 1\r\n".repeat(fields));
    let (_, _, trailers) = decode(Framing::Chunked, section(MAX_HEADERS).as_bytes()).unwrap();
    assert_eq!(trailers.len(), MAX_HEADERS * "x: 1\r\n".len());
    let many = decode(Framing::Chunked, section(MAX_HEADERS + 1).as_bytes()).unwrap_err();
    assert!(many.contains("more than 256 fields"), "{many}");
}

#[test]
fn trailers_travel_unless_they_would_frame_route_or_lie() {
    let section =
        b"0\r\nX-Sum: 7\r\nContent-Length: 3\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\
        Remora-Client-Id: x\r\ngrpc-status: 0\r\n\r\nnext";
    let (_, used, trailers) = decode(Framing::Chunked, section).unwrap();
    assert_eq!(used, section.len() - 4);
    assert_eq!(trailers, b"X-Sum: 7\r\ngrpc-status: 0\r\n");
}

#[test]
fn content_is_framed_anew() {
    let mut out = Vec::new();
    Encoder::Chunked.data(b"abc", &mut out);
    Encoder::Chunked.data(b"", &mut out);
    Encoder::Chunked.data(&[b'x'; 300], &mut out);
    Encoder::Chunked.end(b"A: b\r\n", &mut out);
    let expected = format!("3\r\nabc\r\n12c\r\n{}\r\n0\r\nA: b\r\n\r\n", "x".repeat(300));
    assert_eq!(out, expected.as_bytes());
    out.clear();
    Encoder::Plain.data(b"abc", &mut out);
    Encoder::Plain.end(b"A: b\r\n", &mut out);
    assert_eq!(out, b"abc");
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded_in_any_pieces(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
        cuts in prop::collection::vec(0usize..500, 0..8),
    ) {
        let mut bytes = Vec::new();
        for chunk in &chunks {
            Encoder::Chunked.data(chunk, &mut bytes);
        }
        Encoder::Chunked.end(b"X: 1\r\n", &mut bytes);
        let whole = bytes.len();
        bytes.extend_from_slice(b"GET /next");
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        let ends = cuts.iter().copied().chain([bytes.len()]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let pieces: Vec<&[u8]> = starts.zip(ends).map(|(from, to)| &bytes[from..to]).collect();
        let (content, used, trailers) = decode_in(Framing::Chunked, &pieces).unwrap();
        prop_assert_eq!(content, chunks.concat());
        prop_assert_eq!(used, whole);
        prop_assert_eq!(trailers, b"X: 1\r\n");
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_or_read_on_after_an_error(
        bytes in prop::collection::vec(prop::sample::select(&b"0123aF;= \t\r\n\x00xX:"[..]), 0..200),
    ) {
        let _ = decode(Framing::Chunked, &bytes);
    }
}
