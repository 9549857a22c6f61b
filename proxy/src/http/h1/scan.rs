//! Where a head ends.

use memchr::memchr;

use super::head::RawHead;

/// Looks for the empty line, and goes on where it stopped when more bytes have come, so that a head
/// in many pieces costs no more than one in a single piece.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Bytes looked at.
    at: usize,
    /// Where the line at hand begins.
    line: usize,
    /// Where the head begins: empty lines before it are no part of it (RFC 9112 §2.2).
    start: usize,
    /// Behind the first line, once its end is there.
    first: usize,
    lines: usize,
    bare_line_feeds: bool,
}

/// What [`Scan::find`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The head is from the first to the second, its empty line included.
    Head(usize, usize),
    /// Its end is still to come.
    More,
    /// A line ends without a carriage return. Some parsers see a line's end there and some do not.
    BareLineFeed,
}

impl Scan {
    /// Looks at all that was read so far: the same bytes as before, and more.
    ///
    /// `strict` is for requests; a response's lines may end in a bare line feed, since its head is
    /// written anew.
    pub(super) fn find(&mut self, bytes: &[u8], strict: bool) -> Found {
        while let Some(n) = memchr(b'\n', &bytes[self.at..]) {
            let end = self.at + n;
            let line = &bytes[self.line..end];
            if !line.ends_with(b"\r") {
                if strict {
                    return Found::BareLineFeed;
                }
                self.bare_line_feeds = true;
            }
            self.at = end + 1;
            self.line = end + 1;
            let empty = matches!(line, b"" | b"\r");
            if empty && self.lines == 0 {
                self.start = end + 1;
                continue;
            }
            self.lines += 1;
            if self.lines == 1 {
                self.first = end + 1;
            }
            if empty {
                return Found::Head(self.start, end + 1);
            }
        }
        self.at = bytes.len();
        Found::More
    }

    /// Whether the first line is longer than this, or has not come to its end.
    pub(super) fn first_line_exceeds(&self, most: usize) -> bool {
        self.lines == 0 || self.first - self.start > most
    }

    /// Cuts out the head that was found.
    pub(super) fn cut(&self, bytes: Vec<u8>) -> RawHead {
        RawHead { bytes, lines: self.lines, bare_line_feeds: self.bare_line_feeds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn find(bytes: &[u8], strict: bool) -> Found {
        Scan::default().find(bytes, strict)
    }

    #[test]
    fn a_head_ends_with_its_empty_line() {
        assert_eq!(find(b"GET / HTTP/1.1\r\nA: b\r\n\r\nbody", true), Found::Head(0, 24));
        assert_eq!(find(b"GET / HTTP/1.1\r\nA: b\r\n", true), Found::More);
        assert_eq!(find(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", true), Found::Head(4, 22));
        assert_eq!(find(b"\r\n\r\n", true), Found::More);
    }

    #[test]
    fn a_bare_line_feed_is_an_end_only_where_it_is_harmless() {
        let bytes = b"HTTP/1.1 200 OK\nA: b\n\n";
        assert_eq!(find(bytes, true), Found::BareLineFeed);
        assert_eq!(find(bytes, false), Found::Head(0, 22));
        assert_eq!(find(b"\n", true), Found::BareLineFeed);
    }

    #[test]
    fn a_long_first_line_is_told_from_a_long_head() {
        let mut scan = Scan::default();
        assert!(scan.first_line_exceeds(100), "nobody knows");
        assert_eq!(scan.find(b"\r\nGET / HTTP/1.1\r\nA: b\r\n\r\n", true), Found::Head(2, 26));
        assert!(scan.first_line_exceeds(15) && !scan.first_line_exceeds(16));
    }

    proptest! {
        #[test]
        fn pieces_find_what_the_whole_finds(
            bytes in prop::collection::vec(prop::sample::select(&b"a\r\n:"[..]), 0..40),
            cuts in prop::collection::vec(0usize..40, 0..6),
            strict: bool,
        ) {
            let whole = find(&bytes, strict);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut scan = Scan::default();
            let mut last = Found::More;
            for cut in cuts {
                last = scan.find(&bytes[..cut], strict);
                if last != Found::More {
                    break;
                }
            }
            prop_assert_eq!(last, whole);
        }
    }
}
