//! Request heads: what is asked of them beyond what the codec sees to (RFC 9113 §8).
//!
//! The codec refuses pseudo-header fields that are missing, repeated or in the wrong place, upper-case
//! names, fields of a connection, control characters, and content of another length than promised. What
//! is left are limits, and heads that the application could understand differently.

use http::{
    Method, Request, Uri, Version,
    header::{CONTENT_LENGTH, HOST},
    uri::{Authority, Scheme},
};

use remora_core::settings::HeaderSize;

use crate::http::{MAX_HEADERS, h1::request::Refusal};

/// Bytes that HTTP/1 would write beside a field's name and value, which the limit counts on both
/// codecs alike.
const AROUND: usize = ": \r\n".len();

/// Whether a request is to be forwarded, whose head may have so much.
///
/// # Errors
/// Why it is not.
pub fn check<B>(request: &Request<B>, most: HeaderSize) -> Result<(), Refusal> {
    measure(request, usize::try_from(most.bytes()).unwrap_or(usize::MAX))?;
    let (uri, headers) = (request.uri(), request.headers());
    let authority = uri.authority();
    if request.method() == Method::CONNECT {
        // RFC 9110 §9.3.6.
        if authority.is_none_or(|authority| authority.port_u16().is_none()) {
            return Err(Refusal::Malformed("CONNECT wants host:port"));
        }
    } else if uri.path().is_empty() {
        return Err(Refusal::Malformed("it has no path"));
    }
    if authority.is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(Refusal::Malformed("its authority has user information"));
    }
    let mut hosts = headers.get_all(HOST).iter();
    if let Some(host) = hosts.next() {
        if hosts.next().is_some() {
            return Err(Refusal::Malformed("it has more than one Host"));
        }
        if authority.is_some_and(|authority| !names(host.as_bytes(), authority, uri)) {
            return Err(Refusal::Malformed("its Host is not its authority"));
        }
    }
    // Equal ones could be taken for one (RFC 9110 §8.6); nobody sends them.
    if headers.get_all(CONTENT_LENGTH).iter().count() > 1 {
        return Err(Refusal::Malformed("it has more than one Content-Length"));
    }
    Ok(())
}

/// The version with which a request has to be handed to the codec: only what is taken for a forwarded
/// request of HTTP/1.1 goes without `:authority`.
#[must_use]
pub fn version(uri: &Uri) -> Version {
    if uri.authority().is_some() { Version::HTTP_2 } else { Version::HTTP_11 }
}

fn measure<B>(request: &Request<B>, most: usize) -> Result<(), Refusal> {
    let (uri, headers) = (request.uri(), request.headers());
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    if headers.len() > MAX_HEADERS {
        return Err(Refusal::TooManyFields);
    }
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + AROUND);
    if target + authority + fields.sum::<usize>() <= most {
        return Ok(());
    }
    // The codec takes no target that is too long by itself alone; here it is most of what is too much.
    let target_is_to_blame = target > most / 2;
    Err(if target_is_to_blame { Refusal::TargetTooLong(most) } else { Refusal::HeadTooLong(most) })
}

/// Whether a Host says the same as `:authority` (RFC 9113 §8.3.1): letters of either case, and the
/// scheme's own port may be left out.
fn names(host: &[u8], authority: &Authority, uri: &Uri) -> bool {
    let authority = authority.as_str().as_bytes();
    let port: &[u8] = if uri.scheme() == Some(&Scheme::HTTPS) { b":443" } else { b":80" };
    let bare = |name: &'_ [u8]| name.strip_suffix(port).unwrap_or(name).to_ascii_lowercase();
    host.eq_ignore_ascii_case(authority) || bare(host) == bare(authority)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn check(request: &Request<()>) -> Result<(), Refusal> {
        super::check(request, HeaderSize::default())
    }

    fn get(uri: &str) -> Request<()> {
        Request::get(uri).body(()).unwrap()
    }

    fn with(uri: &str, fields: &[(&'static str, &'static str)]) -> Request<()> {
        let mut request = get(uri);
        for (name, value) in fields {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        request
    }

    #[test]
    fn a_head_is_as_long_as_http_1_would_write_it() {
        let mut request = get("http://a/");
        assert_eq!(measure(&request, 2), Ok(()));
        request.headers_mut().insert("x", HeaderValue::from_static("yz"));
        assert_eq!(measure(&request, 9), Ok(()));
        assert_eq!(measure(&request, 8), Err(Refusal::HeadTooLong(8)));
        let long = get(&format!("http://a/{}", "x".repeat(1024)));
        assert_eq!(measure(&long, 1024), Err(Refusal::TargetTooLong(1024)));
    }

    #[test]
    fn fields_are_counted() {
        let fields = [("x", ""); MAX_HEADERS + 1];
        assert_eq!(check(&with("http://a/", &fields[1..])), Ok(()));
        assert_eq!(check(&with("http://a/", &fields)), Err(Refusal::TooManyFields));
    }

    #[test]
    fn a_host_says_what_the_authority_says_or_stands_alone() {
        for (uri, host, fine) in [
            ("http://a/", "a", true),
            ("http://a:80/", "A", true),
            ("https://a/", "a:443", true),
            ("https://a/", "a:80", false),
            ("http://a/", "b", false),
            ("http://a:81/", "a", false),
            ("/", "anything", true),
        ] {
            let refusal = check(&with(uri, &[("host", host)]));
            assert_eq!(refusal.is_ok(), fine, "{uri} {host}: {refusal:?}");
        }
        assert!(check(&with("/", &[("host", "a"), ("host", "a")])).is_err());
        assert!(check(&get("http://me@a/")).is_err());
        assert!(check(&get("/")).is_ok(), "no authority at all");
    }

    #[test]
    fn a_length_is_said_once() {
        let twice = [("content-length", "3"), ("content-length", "3")];
        assert!(check(&with("http://a/", &twice[1..])).is_ok());
        assert!(check(&with("http://a/", &twice)).is_err());
    }

    #[test]
    fn connect_names_a_host_and_a_port() {
        for (authority, fine) in [("db:5432", true), ("db", false), ("db:99999", false)] {
            let mut request = Request::new(());
            *request.method_mut() = Method::CONNECT;
            *request.uri_mut() = authority.parse().unwrap_or_default();
            assert_eq!(check(&request).is_ok(), fine, "{authority}");
        }
    }
}
