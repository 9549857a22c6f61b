//! Header fields of a message, whatever its codec keeps them in.

use http::{HeaderMap, HeaderName};

/// What a decision may ask of a message's fields.
pub trait Fields {
    /// The first value of a field, without the white space around it.
    fn get(&self, name: &HeaderName) -> Option<&[u8]>;
}

impl Fields for HeaderMap {
    fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        Self::get(self, name).map(http::HeaderValue::as_bytes)
    }
}
