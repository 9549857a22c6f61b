//! Fields of a message that are not to travel on.
//!
//! HTTP/2 has no hop-by-hop fields: the codec refuses messages that have one (RFC 9113 §8.2.2).

use http::{HeaderMap, HeaderName};
use remora_core::names::headers::PREFIX;

/// Removes fields that only Remora's proxies may set.
pub fn strip_ours(headers: &mut HeaderMap) {
    // Nearly no message has one, so look before collecting.
    if !headers.keys().any(|name| name.as_str().starts_with(PREFIX)) {
        return;
    }
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(PREFIX)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn callers_cannot_pretend_to_be_a_proxy() {
        let field =
            |name: &'static str| (HeaderName::from_static(name), HeaderValue::from_static("x"));
        let mut headers = HeaderMap::from_iter([field("remora-client-id"), field("accept")]);
        strip_ours(&mut headers);
        assert_eq!(headers, HeaderMap::from_iter([field("accept")]));
    }
}
