//! Names: of hosts, and of workloads.

use std::{net::Ipv4Addr, sync::LazyLock, time::Duration};

use http::{HeaderMap, HeaderValue, Uri, uri};
use rcgen::{CertificateParams, KeyPair, SanType};
use remora_control_plane::index::answer::Target;
use remora_core::{authority::Authority, spiffe::SpiffeId};
use remora_proxy::{config::OutboundService, outbound::deadline, tls::verify};

/// A host and a port: [`http`] reads the same, and it is the same after it was written anew.
///
/// # Panics
/// Where it is not.
pub fn authority(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let ours = text.parse::<Authority>().ok();
    assert_eq!(ours.is_some(), Target::authority(text).is_some());
    let theirs = text.parse::<uri::Authority>().ok();
    let Some(ours) = ours else {
        // Refused: no name of a host, no address, or no port.
        if let Some(theirs) = theirs.filter(|_| !text.contains('@')) {
            let host = theirs.host();
            let name = host.strip_suffix('.').unwrap_or(host);
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            let labels = name.split('.').all(|label| !label.is_empty());
            let a_name = labels && name.len() <= 255 && name.bytes().all(plain);
            // The library's parser of numbers takes a sign, and that of authorities brackets in the
            // middle.
            let a_port = match theirs.port() {
                None => text == host,
                Some(port) => {
                    let whole = text.len() == host.len() + 1 + port.as_str().len();
                    port.as_u16() > 0 && !port.as_str().starts_with('+') && whole
                }
            };
            assert!(!a_name || !a_port, "{text:?} was refused");
        }
        return;
    };
    let theirs = theirs.unwrap_or_else(|| panic!("{text:?} was understood as {ours:?}"));
    let host = theirs.host().to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    let port = theirs.port_u16().unwrap_or(80);
    let written = match &ours {
        Authority::Name(name, named_port) => {
            assert_eq!((&**name, *named_port), (host, port));
            assert!(name.parse::<Ipv4Addr>().is_err(), "{name} is a name");
            format!("{name}:{port}")
        }
        Authority::Address(address) => {
            let bare = host.trim_matches(['[', ']']);
            assert_eq!(Ok(address.ip()), bare.parse());
            assert_eq!((address.port(), address.is_ipv6()), (port, host.starts_with('[')));
            address.to_string()
        }
    };
    assert_eq!(written.parse::<Authority>().ok(), Some(ours), "{written}");
    let listen: OutboundService = format!("127.0.0.1:1={written}").parse().expect("a listener");
    assert_eq!(listen.authority, written);
}

/// A workload's name: what is understood is what the RFC of URIs finds in it, its parts put together
/// are the name, and a certificate that says so (or says more than one, in lines) proves it.
///
/// # Panics
/// Where it does not.
pub fn spiffe_id(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let lines: Vec<&str> = text.split('\n').take(3).collect();
    let ids: Vec<Option<SpiffeId>> = lines.iter().map(|line| line.parse().ok()).collect();
    for (line, id) in lines.iter().zip(&ids) {
        assert_eq!(id.is_some(), is_spiffe_id(line), "{line:?}");
        let Some(id) = id else { continue };
        assert_eq!((id.as_str(), &*id.to_string()), (*line, *line));
        let uri: Uri = line.parse().expect("a URI");
        assert_eq!((uri.scheme_str(), uri.host()), (Some("spiffe"), Some(id.trust_domain())));
        let path = format!("/ns/{}/sa/{}", id.namespace(), id.service_account());
        assert_eq!((uri.path(), uri.query()), (&*path, None));
        let again = SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account());
        assert_eq!(again.as_ref(), Ok(id));
    }
    if ids.iter().any(Option::is_some) {
        let proved = proved(&lines);
        match &ids[..] {
            [id] => assert_eq!(proved, Some(id.clone())),
            _ => assert!(matches!(proved, None | Some(None)), "{proved:?} of {lines:?}"),
        }
    }
}

/// SPIFFE-ID §2, and the path that ours have.
fn is_spiffe_id(text: &str) -> bool {
    let segment = |part: &str| {
        !["", ".", ".."].contains(&part)
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
    };
    let domain = |part: &str| part.len() <= 255 && !part.contains(|c: char| c.is_ascii_uppercase());
    let parts: Vec<&str> = text.split('/').collect();
    let ["spiffe:", "", name, "ns", namespace, "sa", account] = parts[..] else { return false };
    let characters =
        |part: &str| part.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    let named = !name.is_empty() && characters(name) && domain(name);
    text.len() <= 2048 && named && segment(namespace) && segment(account)
}

/// Who a certificate with these names proves; `None` where there cannot be such a one, `Some(None)`
/// where it proves nobody.
fn proved(uris: &[&str]) -> Option<Option<SpiffeId>> {
    static KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().expect("a key"));
    let mut params = CertificateParams::default();
    for uri in uris {
        params.subject_alt_names.push(SanType::URI((*uri).try_into().ok()?));
    }
    let certificate = params.self_signed(&*KEY).ok()?;
    Some(verify::spiffe_id(certificate.der()).ok())
}

/// A caller's deadline: understood where it is one digit to eight and a unit, and what is written for
/// it is never later, and hardly earlier.
///
/// # Panics
/// Where it is.
pub fn grpc_timeout(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let read = |value: HeaderValue| {
        let fields = HeaderMap::from_iter([(deadline::GRPC_TIMEOUT.clone(), value)]);
        deadline::read(&fields)
    };
    let ours = read(value);
    let Some((unit, digits)) = bytes.split_last() else { return assert_eq!(ours, None) };
    let seconds: Option<f64> = match unit {
        b'H' => Some(3600.0),
        b'M' => Some(60.0),
        b'S' => Some(1.0),
        b'm' => Some(1e-3),
        b'u' => Some(1e-6),
        b'n' => Some(1e-9),
        _ => None,
    };
    let number = (1..=8).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    let Some(seconds) = seconds.filter(|_| number) else { return assert_eq!(ours, None) };
    let count = digits.iter().fold(0.0, |n, digit| n * 10.0 + f64::from(digit - b'0'));
    let left = ours.expect("a deadline");
    assert!((left.as_secs_f64() - count * seconds).abs() <= count * seconds * 1e-9, "{left:?}");
    let written = read(deadline::value(left)).expect("what we write");
    assert!(written <= left, "{written:?} is later than {left:?}");
    // Where eight digits are too few, five are left of the next unit.
    let most = left / 99_999 + Duration::from_nanos(1);
    assert!(left - written <= most, "{left:?} became {written:?}");
}
