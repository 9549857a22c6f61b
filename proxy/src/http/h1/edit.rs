//! Requests as routes look at them and change them.

use http::{HeaderValue, Method, header};

use super::{
    body::Framing,
    head::{Head, Name},
    request::RequestHead,
};
use crate::{fields::FieldsMut, route::Message};

impl Message for RequestHead {
    type Fields = Head;

    fn method(&self) -> &Method {
        &self.method
    }

    fn path(&self) -> &str {
        Self::path(self)
    }

    fn query(&self) -> Option<&str> {
        let after = &self.fields.bytes()[self.path.end..self.target.end];
        std::str::from_utf8(after.strip_prefix(b"?")?).ok()
    }

    fn authority(&self) -> Option<&str> {
        let host = self.fields.iter().find(|(_, name, _)| *name == Name::Host);
        host.and_then(|(_, _, value)| std::str::from_utf8(value).ok())
    }

    fn fields(&self) -> &Head {
        &self.fields
    }

    fn fields_mut(&mut self) -> &mut Head {
        &mut self.fields
    }

    fn set_authority(&mut self, authority: &HeaderValue) {
        self.fields.set(&header::HOST, authority);
        self.has_host = true;
        // A target in absolute form names the host as well.
        let path = self.path().to_owned();
        self.set_path(&path);
    }

    /// The target is in origin form then (RFC 9112 §3.2.1).
    fn set_path(&mut self, path: &str) {
        if !self.path().starts_with('/') {
            return;
        }
        let query = self.path.end..self.target.end;
        let target = [path.as_bytes(), &self.fields.bytes()[query]].concat();
        self.target = self.fields.keep(&target);
        self.path = self.target.start..self.target.start + path.len();
    }
}

impl RequestHead {
    /// Makes it the head of a copy whose whole body is known: the client is not asked for it.
    pub fn copied(&mut self, body: &[u8]) {
        self.fields.remove_all(|name| {
            matches!(name, Name::ContentLength | Name::Expect | Name::TransferEncoding)
        });
        self.expects_continue = false;
        self.framing = match (self.framing, body.len()) {
            (Framing::None, _) => Framing::None,
            (_, length) => Framing::Length(length as u64),
        };
        if let Framing::Length(length) = self.framing {
            self.fields.add("Content-Length", length.to_string().as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(target: &str) -> RequestHead {
        let text = format!("GET {target} HTTP/1.1\r\nHost: a\r\nAccept: b\r\n\r\n");
        RequestHead::read(text.as_bytes()).unwrap().unwrap().0
    }

    fn written(request: &RequestHead) -> String {
        let mut out = Vec::new();
        request.write(b"", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn another_path_keeps_the_query_and_everything_else() {
        for (target, wanted) in [
            ("/a/b?c=d", "/x?c=d"),
            ("/a", "/x"),
            ("/?", "/x?"),
            ("http://a/b?c", "/x?c"),
            ("http://a?c", "/x?c"),
        ] {
            let mut request = read(target);
            request.set_path("/x");
            let fields = "HTTP/1.1\r\nHost: a\r\nAccept: b\r\n\r\n";
            assert_eq!(written(&request), format!("GET {wanted} {fields}"), "{target}");
            assert_eq!(Message::path(&request), "/x");
        }
    }

    #[test]
    fn another_host_takes_the_place_of_the_old_one_wherever_that_was_named() {
        let host = HeaderValue::from_static("other.example");
        for target in ["/b?c", "http://a/b?c"] {
            let mut request = read(target);
            request.set_authority(&host);
            let wanted = "GET /b?c HTTP/1.1\r\nAccept: b\r\nhost: other.example\r\n\r\n";
            assert_eq!(written(&request), wanted);
            assert_eq!(request.authority(), Some("other.example"));
        }
    }

    #[test]
    fn a_copy_says_how_long_its_body_is() {
        let text = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\
                    Expect: 100-continue\r\n\r\n";
        let mut request = RequestHead::read(text.as_bytes()).unwrap().unwrap().0;
        request.copied(b"abc");
        let wanted = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(written(&request), wanted);
        let mut request = read("/");
        request.copied(b"");
        assert!(!written(&request).contains("Content-Length"));
    }

    #[test]
    fn a_target_without_a_path_stays() {
        let text = "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut request = RequestHead::read(text.as_bytes()).unwrap().unwrap().0;
        request.set_path("/x");
        assert_eq!(written(&request), text);
    }
}
