//! What a connection is, told by its first bytes.

use bytes::BytesMut;
use remora_core::names::alpn;
use remora_proxy::{
    http::h2::guard::{Budget, Guarded},
    net::{
        client_hello::{self, ClientHello, Look},
        detect::{self, Detected},
    },
};
use rustls::server::Acceptor;
use tokio::io::AsyncReadExt;

use super::{script::Scripted, strict};

/// Beginnings that are tried of one input, at most.
const CUTS: usize = 600;

/// Lengths of an input's beginnings: all, where there are not too many, and else the first ones and
/// some of the rest.
fn cuts(length: usize) -> impl Iterator<Item = usize> {
    let step = (length / CUTS).max(1);
    (1..length).filter(move |n| *n < CUTS / 2 || n % step == 0)
}

/// A ClientHello: what rustls finds in it is found here too, and a decision holds whatever follows.
///
/// # Panics
/// Where it does not.
pub fn client_hello(bytes: &[u8]) {
    let ours = client_hello::look(bytes);
    for cut in cuts(bytes.len()) {
        match client_hello::look(&bytes[..cut]) {
            Look::Incomplete => {}
            early => assert_eq!(early, ours, "decided otherwise after {cut} bytes"),
        }
    }
    if let Look::Hello(hello) = &ours {
        let name = hello.sni.as_deref().unwrap_or("a");
        let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_');
        assert!((1..=253).contains(&name.len()) && name.bytes().all(plain), "{name:?}");
    }
    if let Some((theirs, used)) = rustls_reads(bytes)
        && used <= client_hello::MAX_LEN
    {
        let Look::Hello(hello) = ours else { panic!("rustls reads {theirs:?}, not {ours:?}") };
        assert_eq!(hello.mesh, theirs.mesh);
        // Where there is no name, rustls may have left out an address, or what it knows to be no name.
        assert!(theirs.sni.is_none() || hello.sni == theirs.sni, "{theirs:?}, not {hello:?}");
    }
}

/// What rustls makes of them, and how many bytes it took for that; `None` where it is not content,
/// or not yet.
fn rustls_reads(bytes: &[u8]) -> Option<(ClientHello, usize)> {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    loop {
        if acceptor.read_tls(&mut rest).ok()? == 0 {
            return None;
        }
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            let sni = hello.server_name().map(str::to_ascii_lowercase);
            let mut tokens = hello.alpn().into_iter().flatten();
            let mesh = tokens.any(|token| token.starts_with(alpn::PREFIX));
            return Some((ClientHello { sni, mesh }, bytes.len() - rest.len()));
        }
    }
}

/// What is spoken: the same in one piece and in many (the first byte says how long they are), and
/// HTTP for every request that the codec would understand.
///
/// # Panics
/// Where it is not.
pub fn detect(bytes: &[u8]) {
    /// What a client says first in HTTP/2 (RFC 9113 §3.4).
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let Some((grain, bytes)) = bytes.split_first() else { return };
    let whole = detect::classify(bytes);
    for cut in cuts(bytes.len()) {
        if let Some(early) = detect::classify(&bytes[..cut]) {
            assert_eq!(Some(early), whole, "decided otherwise after {cut} bytes");
        }
    }
    assert_eq!(whole == Some(Detected::Http2), bytes.starts_with(PREFACE));
    if let Some(Detected::Tls(hello)) = &whole {
        assert_eq!(client_hello::look(bytes), Look::Hello(hello.clone()));
    }
    if let Ok(Some((request, used))) = strict::request(bytes)
        && request.method.len() <= 32
        && used <= client_hello::MAX_LEN
    {
        assert_eq!(whole, Some(Detected::Http1), "{request:?}");
    }
    let (mut client, log) = Scripted::plain(bytes, usize::from(*grain));
    let mut seen = BytesMut::new();
    let found = paused(detect::detect(&mut client, &mut seen, detect::FIRST_BYTE));
    assert_eq!(found.ok(), Some(whole.unwrap_or(Detected::Opaque)));
    assert_eq!(seen, log.lock().said, "bytes were lost");
}

/// The guard of HTTP/2 connections: bytes go through as they are, and whether they are too much does
/// not depend on their pieces. The first byte says how long these are, the second what may be spent.
///
/// # Panics
/// Where something else comes out.
pub fn h2_guard(bytes: &[u8]) {
    let [grain, burst, bytes @ ..] = bytes else { return };
    let burst = u32::from(*burst);
    let budget = Budget { burst, per_second: 0 };
    let (peer, log) = Scripted::plain(bytes, usize::from(*grain));
    let mut guarded = Guarded::new(peer, false, budget);
    let mut through = Vec::new();
    let read = paused(guarded.read_to_end(&mut through));
    assert!(log.lock().said.starts_with(&through));
    let cost = cost(bytes);
    match read {
        Ok(_) => assert!(through == bytes && cost <= burst, "{cost} were spent of {burst}"),
        Err(error) => assert!(cost > burst, "{cost} of {burst}: {error}"),
    }
}

/// What frames cost whose headers are whole (RFC 9113 §4.1, §6).
fn cost(mut bytes: &[u8]) -> u32 {
    let mut cost = 0;
    while let [a, b, c, kind, flags, _, _, _, _, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]);
        let (first, padded) = (flags & 1 > 0, flags & 8 > 0);
        cost += match kind {
            0 if first || length > 256 => 0,
            0 if length > 0 && !padded => 0,
            1 | 5 | 7 => 0,
            3 => 5,
            4 | 6 if first => 0,
            4 => 10,
            _ => 1,
        };
        bytes = rest.get(usize::try_from(length).unwrap_or(usize::MAX)..).unwrap_or_default();
    }
    cost
}

/// Runs something on a clock that goes on when nothing else does.
fn paused<T>(work: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().expect("a runtime").block_on(work)
}
