//! Fields that are removed, set or added.

use http::{HeaderName, HeaderValue, header};
use remora_core::names::headers::PREFIX;

use crate::fields::FieldsMut;

/// What is done to the fields of a message: removed first, then set, then added.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HeaderModifier {
    /// All fields of these names go.
    pub remove: Box<[HeaderName]>,
    /// In the place of all fields of the name.
    pub set: Box<[(HeaderName, HeaderValue)]>,
    /// Beside those that are there.
    pub add: Box<[(HeaderName, HeaderValue)]>,
}

impl HeaderModifier {
    /// Changes fields.
    pub fn apply(&self, fields: &mut impl FieldsMut) {
        for name in &self.remove {
            fields.remove(name);
        }
        for (name, value) in &self.set {
            fields.set(name, value);
        }
        for (name, value) in &self.add {
            fields.append(name, value);
        }
    }
}

/// Whether a field is not a route's to change: it says where a message ends or belongs to one hop,
/// or only proxies of ours may set it.
#[must_use]
pub fn is_protected(name: &HeaderName) -> bool {
    const FRAMING: [HeaderName; 6] = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    let name = || name.as_str();
    FRAMING.iter().any(|known| *known == name())
        || matches!(name(), "keep-alive" | "proxy-connection" | "http2-settings")
        || name().starts_with(PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{
        Message,
        testing::{fields, h1, lines, named, parts},
    };

    fn modifier() -> HeaderModifier {
        HeaderModifier {
            remove: [HeaderName::from_static("x-gone")].into(),
            set: [named("x-set", "new"), named("x-fresh", "1")].into(),
            add: [named("x-more", "2"), named("x-first", "3")].into(),
        }
    }

    const SENT: &[(&str, &str)] = &[
        ("accept", "a"),
        ("x-gone", "1"),
        ("x-set", "old"),
        ("x-more", "1"),
        ("x-set", "older"),
        ("user-agent", "b"),
        ("X-Gone", "2"),
        ("te", "trailers"),
    ];

    #[test]
    fn what_is_named_changes_and_the_rest_keeps_its_order() {
        let mut request = parts("GET", "/", SENT);
        modifier().apply(request.fields_mut());
        let all = fields(&request.headers);
        let others: Vec<_> = all.iter().filter(|(name, _)| !name.starts_with("x-")).collect();
        assert_eq!(
            others.iter().map(|(n, _)| &**n).collect::<Vec<_>>(),
            ["accept", "user-agent", "te"]
        );
        for (name, values) in [
            ("x-gone", &[][..]),
            ("x-set", &["new"]),
            ("x-fresh", &["1"]),
            ("x-more", &["1", "2"]),
            ("x-first", &["3"]),
        ] {
            let found: Vec<_> = all.iter().filter(|(n, _)| n == name).map(|(_, v)| &**v).collect();
            assert_eq!(found, values, "{name}");
        }
    }

    #[test]
    fn the_lines_of_http_1_stay_as_they_were() {
        let mut request =
            h1("GET / HTTP/1.1\r\nHost: a\r\nAccept:  a\r\nX-Set: 1\r\nX-GONE: 2\r\nB: c\r\n\r\n");
        modifier().apply(request.fields_mut());
        assert_eq!(
            lines(&request),
            [
                "GET / HTTP/1.1",
                "Host: a",
                "Accept:  a",
                "B: c",
                "x-set: new",
                "x-fresh: 1",
                "x-more: 2",
                "x-first: 3",
            ]
        );
    }

    #[test]
    fn framing_and_what_is_ours_are_not_a_route_s_to_change() {
        for name in ["content-length", "connection", "keep-alive", "remora-client-id", "te"] {
            assert!(is_protected(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["host", "x-remora-client-id", "cookie"] {
            assert!(!is_protected(&HeaderName::from_static(name)), "{name}");
        }
    }
}
