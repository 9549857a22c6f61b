//! Header fields of a message, whatever its codec keeps them in.

use http::{HeaderMap, HeaderName};

/// What a decision may ask of a message's fields.
pub trait Fields {
    /// All values of a field in their order, without the white space around them.
    fn all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]>;

    /// The first value of a field.
    fn get<'a>(&'a self, name: &'a HeaderName) -> Option<&'a [u8]> {
        self.all(name).next()
    }
}

impl Fields for HeaderMap {
    fn all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.get_all(name).iter().map(http::HeaderValue::as_bytes)
    }

    fn get<'a>(&'a self, name: &'a HeaderName) -> Option<&'a [u8]> {
        Self::get(self, name).map(http::HeaderValue::as_bytes)
    }
}
