//! Header fields of a message, whatever its codec keeps them in.

use http::{HeaderMap, HeaderName, HeaderValue};

/// What a decision may ask of a message's fields.
pub trait Fields {
    /// All values of a field in their order, without the white space around them.
    fn all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]>;

    /// The first value of a field.
    fn get<'a>(&'a self, name: &'a HeaderName) -> Option<&'a [u8]> {
        self.all(name).next()
    }
}

/// Fields that may be changed. The others keep their order.
pub trait FieldsMut: Fields {
    /// Removes all fields of a name.
    fn remove(&mut self, name: &HeaderName);

    /// Adds a field beside those of the same name that are there.
    fn append(&mut self, name: &HeaderName, value: &HeaderValue);

    /// Replaces all fields of a name by one.
    fn set(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.remove(name);
        self.append(name, value);
    }
}

impl Fields for HeaderMap {
    fn all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.get_all(name).iter().map(HeaderValue::as_bytes)
    }

    fn get<'a>(&'a self, name: &'a HeaderName) -> Option<&'a [u8]> {
        Self::get(self, name).map(HeaderValue::as_bytes)
    }
}

impl FieldsMut for HeaderMap {
    fn remove(&mut self, name: &HeaderName) {
        if !self.contains_key(name) {
            return;
        }
        // The map's own way puts the last field into the gap.
        let (mut kept, mut current) = (Self::with_capacity(self.keys_len()), None);
        for (new, value) in std::mem::take(self) {
            current = new.or(current);
            if let Some(current) = current.as_ref().filter(|current| *current != name) {
                kept.append(current, value);
            }
        }
        *self = kept;
    }

    fn append(&mut self, name: &HeaderName, value: &HeaderValue) {
        Self::append(self, name, value.clone());
    }

    fn set(&mut self, name: &HeaderName, value: &HeaderValue) {
        Self::insert(self, name, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_fields_that_stay_keep_their_order(
            names in prop::collection::vec(0u8..6, 0..20),
            gone in 0u8..6,
        ) {
            let name = |n: u8| HeaderName::try_from(format!("x-{n}")).unwrap();
            let mut map = HeaderMap::new();
            for (at, n) in names.iter().enumerate() {
                map.append(name(*n), HeaderValue::from(at));
            }
            let all = |map: &HeaderMap| -> Vec<_> {
                map.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
            };
            let wanted: Vec<_> = all(&map).into_iter().filter(|(n, _)| *n != name(gone)).collect();
            FieldsMut::remove(&mut map, &name(gone));
            prop_assert_eq!(all(&map), wanted);
        }
    }
}
