//! Redirects.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::{Message, rewrite::PathModifier};

/// Answers with a Location made of the request's URI with some parts changed.
#[derive(Debug)]
pub struct Redirect {
    /// `None`: as the request came, which is without TLS, or it would not be seen here.
    pub scheme: Option<Scheme>,
    /// `None`: the one that the request names.
    pub host: Option<Box<str>>,
    /// `None`: the scheme's own where that is named, else the one that the request names.
    pub port: Option<u16>,
    /// `None`: as it is.
    pub path: Option<PathModifier>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// Schemes that can be redirected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scheme {
    /// Port 80.
    #[default]
    Http,
    /// Port 443.
    Https,
}

impl Scheme {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    pub(super) fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl Redirect {
    /// The answer to a request; `prefix` as in [`super::Found`].
    #[must_use]
    pub fn answer(&self, request: &impl Message, prefix: Option<usize>) -> Response<Bytes> {
        let location = self.location(request, prefix);
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = self.status;
        // A request has no byte that a response cannot have.
        if let Ok(location) = HeaderValue::from_maybe_shared(Bytes::from(location)) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }

    /// `scheme://host[:port]path[?query]`, without the port where it is the scheme's own.
    fn location(&self, request: &impl Message, prefix: Option<usize>) -> String {
        let (named, asked) = request.authority().map_or((None, None), |authority| {
            let (host, port) = host_and_port(authority);
            (Some(host), port)
        });
        let original = request.path();
        let changed = self.path.as_ref().and_then(|path| path.apply(original, prefix));
        let path = changed.as_deref().unwrap_or(original);
        let path = if path.starts_with('/') { path } else { "/" };
        let (mark, query) = request.query().map_or(("", ""), |query| ("?", query));
        let Some(host) = self.host.as_deref().or(named) else {
            // HTTP/1.0 need not name a host. Two slashes would begin one.
            return format!("/{}{mark}{query}", path.trim_start_matches('/'));
        };
        let scheme = self.scheme.unwrap_or_default();
        let port = self.port.or(asked.filter(|_| self.scheme.is_none()));
        let port = port.filter(|port| *port != scheme.port());
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}://{host}{port}{path}{mark}{query}", scheme.as_str())
    }
}

/// Parts of `host[:port]` (RFC 3986 §3.2); an address of IPv6 is in brackets.
pub(super) fn host_and_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().ok())
        }
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::route::testing::{h1, parts};

    fn redirect() -> Redirect {
        let status = StatusCode::FOUND;
        Redirect { scheme: None, host: None, port: None, path: None, status }
    }

    fn location(redirect: &Redirect, uri: &str, prefix: Option<usize>) -> String {
        let response = redirect.answer(&parts("GET", uri, &[]), prefix);
        assert_eq!(response.status(), redirect.status);
        response.headers()[header::LOCATION].to_str().unwrap().to_owned()
    }

    /// Scheme and port as `HTTPRequestRedirectFilter` in Gateway API has them.
    #[test]
    fn scheme_host_and_port_come_from_the_filter_or_else_from_the_request() {
        let (http, https) = (Some(Scheme::Http), Some(Scheme::Https));
        for (scheme, host, port, uri, wanted) in [
            (None, None, None, "http://echo/a", "http://echo/a"),
            (None, None, None, "http://echo:80/a", "http://echo/a"),
            (None, None, None, "http://echo:8080/a", "http://echo:8080/a"),
            (None, None, Some(8083), "http://echo/a", "http://echo:8083/a"),
            (None, None, Some(80), "http://echo:8080/a", "http://echo/a"),
            (None, None, Some(443), "http://echo/a", "http://echo:443/a"),
            (None, Some("example.org"), None, "http://echo/a", "http://example.org/a"),
            (None, Some("example.org"), None, "http://echo:81/a", "http://example.org:81/a"),
            (None, Some("b.example"), Some(82), "http://echo:81/a", "http://b.example:82/a"),
            (https, None, None, "http://echo:8080/a", "https://echo/a"),
            (https, None, Some(443), "http://echo/a", "https://echo/a"),
            (https, None, Some(80), "http://echo/a", "https://echo:80/a"),
            (https, None, Some(8443), "http://echo/a", "https://echo:8443/a"),
            (http, None, None, "http://echo:8080/a", "http://echo/a"),
            (http, None, Some(8080), "http://echo/a", "http://echo:8080/a"),
            (None, None, None, "http://[::1]:8080/a", "http://[::1]:8080/a"),
            (https, None, None, "http://[::1]/a", "https://[::1]/a"),
        ] {
            let host = host.map(Into::into);
            let redirect = Redirect { scheme, host, port, ..redirect() };
            assert_eq!(location(&redirect, uri, None), wanted, "{redirect:?} {uri}");
        }
    }

    #[test]
    fn the_path_is_changed_and_the_query_stays() {
        let full = Redirect { path: Some(PathModifier::full("/x")), ..redirect() };
        assert_eq!(location(&full, "http://echo/a/b?c=d", None), "http://echo/x?c=d");
        let prefix = Redirect { path: Some(PathModifier::prefix("/x")), ..redirect() };
        assert_eq!(location(&prefix, "http://echo/a/b?c=d", Some(2)), "http://echo/x/b?c=d");
        assert_eq!(location(&prefix, "http://echo/a/b?", None), "http://echo/a/b?");
    }

    proptest! {
        /// Whatever is asked for, the answer is a URI whose parts are those that were wanted.
        #[test]
        fn a_location_is_a_uri_of_the_parts(
            named in "[a-z]{1,5}(\\.[a-z]{1,5})?",
            asked in prop::option::of(1u16..),
            path in "(/[a-z%+=]{0,4}){1,3}",
            query in prop::option::of("[a-z&=]{0,6}"),
            scheme in prop::option::of(prop_oneof![Just(Scheme::Http), Just(Scheme::Https)]),
            host in prop::option::of("[a-z]{1,5}"),
            port in prop::option::of(1u16..),
        ) {
            let asked_port = asked.map(|port| format!(":{port}")).unwrap_or_default();
            let mark = query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
            let uri = format!("http://{named}{asked_port}{path}{mark}");
            let redirect = Redirect { scheme, host: host.as_deref().map(Into::into), port, ..redirect() };
            let found: http::Uri = location(&redirect, &uri, None).parse().unwrap();
            let to = scheme.unwrap_or_default();
            prop_assert_eq!(found.scheme_str(), Some(to.as_str()));
            prop_assert_eq!(found.host(), host.as_deref().or(Some(&named)));
            prop_assert_eq!((found.path(), found.query()), (&*path, query.as_deref()));
            let wanted = match (port, scheme) {
                (Some(port), _) => port,
                (None, Some(scheme)) => scheme.port(),
                (None, None) => asked.unwrap_or(80),
            };
            prop_assert_eq!(found.port_u16().unwrap_or(to.port()), wanted);
            prop_assert_ne!(found.port_u16(), Some(to.port()), "one's own port is left out");
        }
    }

    #[test]
    fn a_client_that_names_no_host_is_not_sent_to_another_one() {
        let request = h1("GET //evil.example/a?b HTTP/1.0\r\n\r\n");
        let response = redirect().answer(&request, None);
        assert_eq!(response.headers()[header::LOCATION], "/evil.example/a?b");
    }
}
