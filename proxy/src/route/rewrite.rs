//! Another host or path on the way to the backend, and what redirects make of a path.

use std::borrow::Cow;

use http::HeaderValue;

use super::Message;

/// Another host or path.
#[derive(Debug)]
pub struct UrlRewrite {
    /// `None`: as it is.
    pub host: Option<HeaderValue>,
    /// `None`: as it is.
    pub path: Option<PathModifier>,
}

/// Another path.
#[derive(Debug, PartialEq, Eq)]
pub enum PathModifier {
    /// Instead of the whole.
    Full(Box<str>),
    /// Instead of the prefix that matched; without a slash at its end.
    Prefix(Box<str>),
}

impl UrlRewrite {
    /// Changes a request; its path is made of `original`, the one that the client sent, and `prefix`
    /// is as in [`super::Found`].
    pub fn apply(&self, request: &mut impl Message, original: &str, prefix: Option<usize>) {
        if let Some(path) = self.path.as_ref().and_then(|path| path.apply(original, prefix)) {
            request.set_path(&path);
        }
        if let Some(host) = &self.host {
            request.set_authority(host);
        }
    }
}

impl PathModifier {
    /// The whole path. What cannot be in one is percent-encoded.
    #[must_use]
    pub fn full(path: &str) -> Self {
        Self::Full(rooted(path).into())
    }

    /// The prefix. What cannot be in a path is percent-encoded.
    #[must_use]
    pub fn prefix(prefix: &str) -> Self {
        Self::Prefix(rooted(prefix).trim_end_matches('/').into())
    }

    /// The path that is made of another one; `None`: it stays, since no prefix of it matched.
    #[must_use]
    pub fn apply<'a>(&'a self, path: &str, prefix: Option<usize>) -> Option<Cow<'a, str>> {
        match self {
            Self::Full(path) => Some(path.as_ref().into()),
            Self::Prefix(replacement) => {
                let rest = path.get(prefix?..)?;
                let whole = format!("{replacement}{rest}");
                Some(if whole.is_empty() { "/".into() } else { whole.into() })
            }
        }
    }
}

/// A path from the root, of the characters that a path may have (RFC 3986 §3.3).
fn rooted(path: &str) -> String {
    let mut out = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        out.push('/');
    }
    for b in path.bytes() {
        if b.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::route::{matching::PathMatch, testing::parts};

    /// The table of `HTTPPathModifier.replacePrefixMatch` in Gateway API, and its edges.
    #[test]
    fn a_prefix_is_replaced_as_the_standard_s_table_says() {
        for (path, matched, replacement, wanted) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "/", "/xyz", "/xyz/foo"),
            ("/foo", "/foo", "xyz", "/xyz"),
            ("/foo/a%2Fb", "/foo", "/x y?", "/x%20y%3F/a%2Fb"),
        ] {
            let PathMatch::Prefix(prefix) = PathMatch::prefix(matched) else { unreachable!() };
            let modifier = PathModifier::prefix(replacement);
            let found = modifier.apply(path, Some(prefix.len()));
            assert_eq!(found.as_deref(), Some(wanted), "{path} {matched} {replacement}");
        }
    }

    #[test]
    fn without_a_prefix_that_matched_the_path_stays() {
        assert_eq!(PathModifier::prefix("/x").apply("/foo", None), None);
        let full = PathModifier::full("/x");
        assert_eq!(full.apply("/foo", None).as_deref(), Some("/x"));
    }

    #[test]
    fn the_query_and_what_is_not_named_stay() {
        let mut request = parts("GET", "http://orders.shop/a/b?c=d", &[]);
        let path = Some(PathModifier::prefix("/x"));
        UrlRewrite { host: None, path }.apply(&mut request, "/a/b", Some(2));
        assert_eq!(request.uri, "http://orders.shop/x/b?c=d");
        let host = Some(HeaderValue::from_static("other.example"));
        UrlRewrite { host, path: None }.apply(&mut request, "/a/b", Some(2));
        assert_eq!(request.uri, "http://other.example/x/b?c=d");
    }

    proptest! {
        #[test]
        fn whatever_is_put_in_the_result_is_a_path(
            replacement in ".{0,20}", rest in "(/[a-z%]{0,5}){0,3}", whole in any::<bool>(),
        ) {
            let path = format!("/foo{rest}");
            let modifier = if whole {
                PathModifier::full(&replacement)
            } else {
                PathModifier::prefix(&replacement)
            };
            let found = modifier.apply(&path, Some(4)).unwrap();
            prop_assert!(found.starts_with('/'));
            prop_assert!(found.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#'));
            prop_assert!(whole || found.ends_with(&rest));
        }
    }
}
