//! What may and may not travel from one connection to the next (RFC 9110 §7.6.1).

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, TE, TRANSFER_ENCODING, UPGRADE},
};
use remora_core::names::headers::PREFIX;

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
static HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Removes hop-by-hop fields: those that RFC 9110 names and those that `Connection` nominates.
///
/// Returns the protocol to switch to, where the head asks for (or grants) an upgrade that can be
/// carried; an upgrade to HTTP/2 (`h2c`, withdrawn by RFC 9113) is not and simply vanishes.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let mut upgrade = None;
    if headers.contains_key(CONNECTION) {
        let mut nominated: [Option<HeaderName>; 16] = Default::default();
        let mut count = 0;
        let mut wants_upgrade = false;
        for value in headers.get_all(CONNECTION) {
            for token in value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                if token.eq_ignore_ascii_case(b"upgrade") {
                    wants_upgrade = true;
                } else if let Ok(name) = HeaderName::from_bytes(token)
                    && !is_end_to_end(&name)
                    && count < nominated.len()
                {
                    nominated[count] = Some(name);
                    count += 1;
                }
            }
        }
        for name in nominated.iter().flatten() {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
        if wants_upgrade {
            upgrade = headers.remove(UPGRADE).filter(|to| !to.as_bytes().starts_with(b"h2c"));
        }
    }
    headers.remove(UPGRADE);
    headers.remove(&KEEP_ALIVE);
    headers.remove(&PROXY_CONNECTION);
    headers.remove(&HTTP2_SETTINGS);
    headers.remove(TRANSFER_ENCODING);
    // The only value that means something beyond the next hop is the wish for trailers.
    if let Some(te) = headers.get(TE)
        && te != "trailers"
    {
        let trailers = te.as_bytes().split(|b| *b == b',').any(|t| t.trim_ascii() == b"trailers");
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
    upgrade
}

/// Fields that a sender cannot make hop-by-hop by nominating them, because routing or framing
/// depends on them.
fn is_end_to_end(name: &HeaderName) -> bool {
    use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST};
    [HOST, CONTENT_LENGTH, CONTENT_TYPE, AUTHORIZATION, COOKIE, TE].contains(name)
}

/// Puts the upgrade back for the next hop.
pub fn set_upgrade(headers: &mut HeaderMap, to: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, to);
}

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

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(n, v)| (n.parse::<HeaderName>().unwrap(), v.parse::<HeaderValue>().unwrap()))
            .collect()
    }

    #[test]
    fn nominated_fields_go_and_the_rest_stays() {
        let mut headers = map(&[
            ("connection", "close, x-internal"),
            ("x-internal", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("cookie", "a=b"),
            ("trailer", "x-sum"),
        ]);
        assert_eq!(strip_hop_by_hop(&mut headers), None);
        assert_eq!(headers, map(&[("te", "trailers"), ("cookie", "a=b"), ("trailer", "x-sum")]));
    }

    #[test]
    fn host_cannot_be_nominated_away() {
        let mut headers = map(&[("connection", "host, content-length"), ("host", "a")]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("host", "a")]));
    }

    #[test]
    fn websocket_is_carried_and_h2c_is_not() {
        let mut headers = map(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(strip_hop_by_hop(&mut headers).unwrap(), "websocket");
        let mut headers = map(&[
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
        ]);
        assert_eq!(strip_hop_by_hop(&mut headers), None);
        assert!(headers.is_empty());
    }

    #[test]
    fn callers_cannot_pretend_to_be_a_proxy() {
        let mut headers = map(&[("remora-client-id", "spiffe://x"), ("accept", "*/*")]);
        strip_ours(&mut headers);
        assert_eq!(headers, map(&[("accept", "*/*")]));
    }
}
