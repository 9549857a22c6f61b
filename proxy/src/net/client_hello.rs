//! A look at a TLS ClientHello (RFC 8446 §4.1.2) without taking part: the server name (RFC 6066
//! §3) and the ALPN tokens (RFC 7301 §3.1).
//!
//! The bytes come from strangers, so everything is bounded: at most [`MAX_LEN`] bytes, and a
//! message that contradicts itself is simply not a ClientHello.

/// Longest ClientHello that is looked at; longer ones are carried as bytes.
pub const MAX_LEN: usize = 16 * 1024;

/// What a ClientHello says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// Server name, lower case.
    pub sni: Option<String>,
    /// Whether one of the ALPN tokens begins with `remora/`.
    pub mesh: bool,
}

/// Outcome of a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// It may become a ClientHello: read on.
    Incomplete,
    /// It is none.
    No,
    /// It is one.
    Hello(ClientHello),
}

/// Looks at the first bytes of a connection.
#[must_use]
pub fn look(bytes: &[u8]) -> Look {
    // What lies beyond is not looked at even where it is there already: what a connection is must not
    // depend on the pieces that it comes in.
    let bytes = &bytes[..bytes.len().min(MAX_LEN)];
    // A fragmented message is put together; nearly always there is one record and no copy.
    let mut whole = Vec::new();
    let mut rest = bytes;
    loop {
        let Some((record, after)) = record(rest) else { return undecided(bytes) };
        let record = match record {
            Ok(record) => record,
            Err(()) => return Look::No,
        };
        let message = if whole.is_empty() {
            record
        } else {
            whole.extend_from_slice(record);
            &whole
        };
        let Some(header) = message.first_chunk::<4>() else {
            whole = message.to_vec();
            rest = after;
            continue;
        };
        let len =
            usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
        if header[0] != 1 || len > MAX_LEN {
            return Look::No;
        }
        if let Some(body) = message.get(4..4 + len) {
            return hello(body).map_or(Look::No, Look::Hello);
        }
        whole = message.to_vec();
        rest = after;
    }
}

/// The next handshake record's content and what follows it; `None` where bytes are missing.
#[expect(clippy::type_complexity, reason = "read in one place, right above")]
fn record(bytes: &[u8]) -> Option<(Result<&[u8], ()>, &[u8])> {
    let &kind = bytes.first()?;
    if kind != 22 || bytes.get(1).is_some_and(|&major| major != 3) {
        return Some((Err(()), &[]));
    }
    let header = bytes.first_chunk::<5>()?;
    let len = usize::from(header[3]) << 8 | usize::from(header[4]);
    if len == 0 || len > MAX_LEN {
        return Some((Err(()), &[]));
    }
    let content = bytes.get(5..5 + len)?;
    Some((Ok(content), &bytes[5 + len..]))
}

fn undecided(bytes: &[u8]) -> Look {
    if bytes.len() < MAX_LEN { Look::Incomplete } else { Look::No }
}

fn hello(body: &[u8]) -> Option<ClientHello> {
    let mut r = Reader(body);
    r.take(2 + 32)?; // legacy_version, random
    r.vec8()?; // legacy_session_id
    r.vec16()?; // cipher_suites
    r.vec8()?; // legacy_compression_methods
    let mut found = ClientHello::default();
    if r.0.is_empty() {
        return Some(found);
    }
    let mut extensions = Reader(r.vec16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut data = Reader(extensions.vec16()?);
        match kind {
            0 => {
                let mut names = Reader(data.vec16()?);
                while !names.0.is_empty() {
                    // How long a name of another type is, only its type would say (RFC 6066 §3).
                    if names.take(1)? != [0] {
                        break;
                    }
                    let name = names.vec16()?;
                    if found.sni.is_none() {
                        found.sni = host_name(name);
                    }
                }
            }
            16 => {
                let mut tokens = Reader(data.vec16()?);
                while !tokens.0.is_empty() {
                    found.mesh |= tokens.vec8()?.starts_with(remora_core::names::alpn::PREFIX);
                }
            }
            _ => {}
        }
    }
    Some(found)
}

fn host_name(name: &[u8]) -> Option<String> {
    let ok = |b: &u8| b.is_ascii_alphanumeric() || b"-._".contains(b);
    (!name.is_empty() && name.len() <= 253 && name.iter().all(ok))
        .then(|| String::from_utf8_lossy(name).to_ascii_lowercase())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from(b[0]) << 8 | u16::from(b[1]))
    }

    fn vec8(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(*self.take(1)?.first()?);
        self.take(len)
    }

    fn vec16(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.u16()?);
        self.take(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A ClientHello as rustls writes it.
    fn real(sni: &str, alpn: &[&[u8]]) -> Vec<u8> {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|token| token.to_vec()).collect();
        let name = sni.to_owned().try_into().unwrap();
        let mut connection = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn name_and_tokens_are_found() {
        let expected = ClientHello { sni: Some("orders.shop".into()), mesh: true };
        assert_eq!(look(&real("Orders.shop", &[b"h2", b"remora/h1"])), Look::Hello(expected));
        let expected = ClientHello { sni: Some("example.org".into()), mesh: false };
        assert_eq!(look(&real("example.org", &[b"h2"])), Look::Hello(expected));
    }

    #[test]
    fn every_shorter_beginning_is_incomplete() {
        let bytes = real("orders.shop", &[b"remora/tcp"]);
        for n in 1..bytes.len() {
            assert_eq!(look(&bytes[..n]), Look::Incomplete, "{n} of {}", bytes.len());
        }
    }

    #[test]
    fn a_fragmented_hello_is_put_together() {
        let bytes = real("orders.shop", &[b"remora/tcp"]);
        let mut fragmented = Vec::new();
        for part in bytes[5..].chunks(100) {
            fragmented.extend_from_slice(&[22, 3, 1, 0, u8::try_from(part.len()).unwrap()]);
            fragmented.extend_from_slice(part);
        }
        assert!(matches!(look(&fragmented), Look::Hello(hello) if hello.mesh));
    }

    #[test]
    fn a_hello_that_ends_beyond_the_bound_is_none_in_one_piece_either() {
        let bytes = real("orders.shop", &[b"remora/tcp"]);
        let mut fragmented = Vec::new();
        for part in bytes[5..].chunks(1) {
            fragmented.extend_from_slice(&[22, 3, 1, 0, 1, part[0]]);
        }
        assert!(matches!(look(&fragmented), Look::Hello(_)), "{} bytes", fragmented.len());
        // As many padding extensions as it takes (RFC 7685).
        let mut long = bytes.clone();
        let padding = MAX_LEN - bytes.len() + 1 - 4;
        long.extend_from_slice(&[0, 21]);
        long.extend_from_slice(&u16::try_from(padding).unwrap().to_be_bytes());
        long.resize(MAX_LEN + 1, 0);
        let extensions = extensions_at(&bytes);
        for (at, width) in [(3, 2), (6, 3), (extensions, 2)] {
            let old = long[at..at + width].iter().fold(0, |n, b| n << 8 | usize::from(*b));
            let new = (old + padding + 4).to_be_bytes();
            long[at..at + width].copy_from_slice(&new[new.len() - width..]);
        }
        assert_eq!(look(&long[..MAX_LEN]), Look::No);
        assert_eq!(look(&long), Look::No);
    }

    /// Where the length of a ClientHello's extensions stands.
    fn extensions_at(bytes: &[u8]) -> usize {
        let mut r = Reader(&bytes[9..]);
        r.take(34).unwrap();
        r.vec8().unwrap();
        r.vec16().unwrap();
        r.vec8().unwrap();
        bytes.len() - r.0.len()
    }

    #[test]
    fn other_protocols_are_not_tls() {
        for other in [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0", b"\x16\x02", b"SSH-2.0-x"] {
            assert_eq!(look(other), Look::No);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..600), tls in any::<bool>()) {
            if tls && bytes.len() > 9 {
                bytes[..6].copy_from_slice(&[22, 3, 1, 0, 200, 1]);
            }
            let _ = look(&bytes);
        }

        #[test]
        fn a_damaged_hello_never_panics(at in 0usize..200, value in any::<u8>()) {
            let mut bytes = real("orders.shop", &[b"remora/h2"]);
            bytes[at] = value;
            let _ = look(&bytes);
        }
    }
}
