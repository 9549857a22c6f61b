//! Ids of records.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
};

use http::{HeaderMap, HeaderValue};
use serde::{Serialize, Serializer};

use super::DECISION_ID_NAME;

/// Names a record: 16 hexadecimal digits. Not a secret, and not guaranteed to be unique among
/// processes, only very likely to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecisionId(pub u64);

impl DecisionId {
    /// Says in a response's head under which id its request is recorded.
    pub fn write(self, fields: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::try_from(self.to_string()) {
            fields.insert(&DECISION_ID_NAME, value);
        }
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for DecisionId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let id = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        id.map(Self).ok_or_else(|| format!("{text:?} is no id; an id has 16 hexadecimal digits"))
    }
}

impl Serialize for DecisionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Makes ids. Lock-free.
#[derive(Debug)]
pub(super) struct Ids(AtomicU64);

impl Ids {
    pub(super) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next of a sequence that looks like chance and does not repeat (Steele, Lea, Flood: "Fast
    /// splittable pseudorandom number generators", SplitMix64).
    pub(super) fn next(&self) -> DecisionId {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let z = self.0.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        DecisionId(z ^ (z >> 31))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_do_not_repeat_and_are_read_as_they_are_written() {
        let ids = Ids::new(7);
        let some: HashSet<_> = (0..10_000).map(|_| ids.next()).collect();
        assert_eq!(some.len(), 10_000);
        for id in some.iter().take(100) {
            assert_eq!(id.to_string().parse(), Ok(*id));
        }
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for bad in ["", "12", "xyz0000000000000", "00000000000000000", "+000000000000000"] {
            assert!(bad.parse::<DecisionId>().is_err(), "{bad}");
        }
    }
}
