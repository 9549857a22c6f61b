//! What proxies can do of what a route says. They refuse routes of which they cannot do a part, since the
//! rest would send requests elsewhere; so what they cannot do is found here, and told in the status.

use super::parse::Problem;

/// Longest regular expression, in bytes.
const MAX_PATTERN: usize = 4096;
/// What one may compile to, in bytes: half of what proxies allow, since they match from end to end and
/// need a little more for that.
const MAX_COMPILED: usize = 128 * 1024;
/// Groups within groups, of which proxies add one.
const MAX_NEST: u32 = 31;

/// A regular expression of RE2's syntax.
///
/// # Errors
/// The sentence says what is wrong with it.
pub(in crate::index) fn pattern(text: &str) -> Result<(), String> {
    if text.len() > MAX_PATTERN {
        let len = text.len();
        return Err(format!("expression of {len} bytes; use at most {MAX_PATTERN}"));
    }
    let mut builder = regex::bytes::RegexBuilder::new(text);
    let built = builder.unicode(false).size_limit(MAX_COMPILED).nest_limit(MAX_NEST).build();
    built.map(drop).map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => format!("expression {text:?} is too large; shorten it"),
        _ => format!("{text:?} is no regular expression of RE2's syntax"),
    })
}

/// Name of a field or a method: RFC 9110 §5.6.2, which cookies' names (RFC 6265 §4.1.1) are too.
pub(super) fn is_token(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(allowed)
}

/// Name of a field.
pub(super) fn field_name(name: &str) -> Result<(), Problem> {
    match is_token(name) {
        true => Ok(()),
        false => Err(Problem::unsupported(format!("{name:?} is no field's name"))),
    }
}

/// Value of a field: what can be seen, spaces and tabs.
pub(super) fn field_value(value: &str) -> Result<(), Problem> {
    match value.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b)) {
        true => Ok(()),
        false => Err(Problem::unsupported(format!("{value:?} is no field's value"))),
    }
}

/// Name of a host, as DNS has them.
pub(super) fn host(name: &str) -> Result<(), Problem> {
    match name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        true => Ok(()),
        false => Err(Problem::unsupported(format!("{name:?} is no host's name"))),
    }
}

/// `http[s]://host[:port]`, where the host may be `*` or begin with `*.`; or `*`.
pub(super) fn origin(text: &str) -> Result<(), Problem> {
    let bad = || Problem::unsupported(format!("{text:?} is no origin: http[s]://host[:port]"));
    if text == "*" {
        return Ok(());
    }
    let (scheme, authority) = text.split_once("://").ok_or_else(bad)?;
    let http = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        _ => authority,
    };
    let rest = match host.strip_prefix('*') {
        Some("") => "any",
        Some(below) if !below.starts_with('.') => return Err(bad()),
        Some(below) => below,
        None => host,
    };
    let plain = |b: u8| b.is_ascii_graphic() && !b"*/?#@".contains(&b);
    match http && !rest.is_empty() && rest.bytes().all(plain) {
        true => Ok(()),
        false => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proxies_cannot_compile_is_found_here() {
        for good in ["/item/[0-9]+", "(?i)a|b", "", r"\w+"] {
            assert_eq!(pattern(good), Ok(()), "{good}");
        }
        let long = "a".repeat(MAX_PATTERN + 1);
        for bad in ["(", "a)(b", "(?=a)", r"(a)\1", r"\w{1000}{1000}", &long] {
            assert!(pattern(bad).is_err(), "{bad:.40}");
        }
    }

    #[test]
    fn origins_are_those_of_http_with_one_wildcard_in_front() {
        for good in
            ["*", "https://a.example", "http://*.a.example:8080", "https://*", "HTTPS://[::1]:1"]
        {
            assert!(origin(good).is_ok(), "{good}");
        }
        for bad in
            ["a.example", "ftp://a", "https://", "https://*a", "https://a.*", "https://a/b", ""]
        {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn fields_and_hosts_are_what_can_be_sent() {
        assert!(field_name("x-a").is_ok() && field_name("x a").is_err() && field_name("").is_err());
        assert!(field_value("a b\t~").is_ok() && field_value("a\r\nb").is_err());
        assert!(field_value("ä").is_err());
        assert!(host("a-b.example").is_ok() && host("a/b").is_err() && host("*.a").is_err());
    }
}
