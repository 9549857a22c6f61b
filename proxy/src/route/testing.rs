//! Requests and parts of routes for tests.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Request, request::Parts};

use super::backend::Backend;
use crate::{
    discovery::{ServiceId, Target},
    http::h1::request::RequestHead,
};

pub(super) fn parts(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

pub(super) fn h1(head: &str) -> RequestHead {
    RequestHead::read(head.as_bytes()).unwrap().unwrap().0
}

/// The lines that are forwarded.
pub(super) fn lines(request: &RequestHead) -> Vec<String> {
    let mut out = Vec::new();
    request.write(b"", &mut out);
    let text = String::from_utf8(out).unwrap();
    text.trim_end().split("\r\n").map(str::to_owned).collect()
}

pub(super) fn fields(map: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
    map.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

pub(super) fn named(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
    (HeaderName::from_static(name), HeaderValue::from_static(value))
}

/// `shop/<name>:80`.
pub(super) fn backend(name: &str, weight: u32) -> Backend {
    Backend {
        id: ServiceId { namespace: "shop".into(), name: name.into(), port: 80 },
        target: Target::Authority(format!("{name}.shop.svc:80")),
        weight,
        filters: [].into(),
        invalid: None,
        traffic: Arc::default(),
    }
}
