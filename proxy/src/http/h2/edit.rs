//! Requests as routes look at them and change them.

use http::{
    HeaderMap, HeaderValue, Method, Uri, header,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};

use crate::route::Message;

impl Message for Parts {
    type Fields = HeaderMap;

    fn method(&self) -> &Method {
        &self.method
    }

    fn path(&self) -> &str {
        self.uri.path()
    }

    fn query(&self) -> Option<&str> {
        self.uri.query()
    }

    fn authority(&self) -> Option<&str> {
        match self.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => self.headers.get(header::HOST)?.to_str().ok(),
        }
    }

    fn fields(&self) -> &HeaderMap {
        &self.headers
    }

    fn fields_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    fn set_authority(&mut self, authority: &HeaderValue) {
        if self.headers.contains_key(header::HOST) {
            self.headers.insert(header::HOST, authority.clone());
        }
        let Ok(authority) = Authority::try_from(authority.as_bytes()) else { return };
        let mut parts = self.uri.clone().into_parts();
        if parts.path_and_query.is_none() {
            // CONNECT names where it wants to go, which is not a route's to change.
            return;
        }
        parts.authority = Some(authority);
        parts.scheme.get_or_insert(Scheme::HTTP);
        if let Ok(uri) = Uri::from_parts(parts) {
            self.uri = uri;
        }
    }

    fn set_path(&mut self, path: &str) {
        let mut parts = self.uri.clone().into_parts();
        let Some(known) = &parts.path_and_query else { return };
        if !known.path().starts_with('/') {
            return;
        }
        let whole = match known.query() {
            Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
            None => PathAndQuery::try_from(path),
        };
        let Ok(whole) = whole else { return };
        parts.path_and_query = Some(whole);
        if let Ok(uri) = Uri::from_parts(parts) {
            self.uri = uri;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: Method, uri: &str) -> Parts {
        http::Request::builder().method(method).uri(uri).body(()).unwrap().into_parts().0
    }

    #[test]
    fn another_path_or_host_leaves_the_rest() {
        let host = HeaderValue::from_static("other.example");
        for (uri, by_path, by_host) in [
            ("http://a:1/b?c", "http://a:1/x?c", "http://other.example/b?c"),
            ("http://a:1", "http://a:1/x", "http://other.example/"),
            ("/b", "/x", "http://other.example/b"),
        ] {
            let mut request = read(Method::GET, uri);
            request.set_path("/x");
            assert_eq!(request.uri, by_path);
            let mut request = read(Method::GET, uri);
            request.headers.insert(header::HOST, HeaderValue::from_static("a:1"));
            request.set_authority(&host);
            assert_eq!(request.uri, by_host);
            assert_eq!(request.headers[header::HOST], host);
        }
    }

    #[test]
    fn connect_and_the_asterisk_stay() {
        let host = HeaderValue::from_static("other.example");
        let mut connect = read(Method::CONNECT, "a:1");
        connect.set_authority(&host);
        connect.set_path("/x");
        assert_eq!(connect.uri, "a:1");
        let mut asterisk = read(Method::OPTIONS, "*");
        asterisk.set_path("/x");
        assert_eq!(asterisk.uri, "*");
    }
}
