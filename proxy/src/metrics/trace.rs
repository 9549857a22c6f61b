//! Trace ids that requests carry, for exemplars.

use std::{
    fmt,
    time::{Duration, Instant},
};

use http::HeaderName;

use crate::fields::Fields;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Bytes of version 00: `00-TRACE-SPAN-FLAGS`.
const LENGTH: usize = 2 + 1 + 32 + 1 + 16 + 1 + 2;

/// The id of a trace that is sampled (W3C Trace Context, `traceparent`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(u128);

impl TraceId {
    /// The trace that a request belongs to; `None`: it says of none, or that it is not sampled.
    #[must_use]
    pub fn sampled(fields: &impl Fields) -> Option<Self> {
        Self::parse(fields.get(&TRACEPARENT)?)
    }

    /// What a value says, of this version of the standard or of a later one (§3.2.2).
    fn parse(value: &[u8]) -> Option<Self> {
        let (head, rest) = value.split_at_checked(LENGTH)?;
        let (version, trace, flags) = (hex(&head[..2])?, hex(&head[3..35])?, hex(&head[53..])?);
        let dashes = [head[2], head[35], head[52]] == [b'-'; 3];
        let ends = rest.is_empty() || (version > 0 && rest[0] == b'-');
        let span = hex(&head[36..52])?;
        let valid = dashes && ends && version != 0xff && trace != 0 && span != 0;
        (valid && flags & 1 == 1).then_some(Self(trace))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Digits of the standard's: no upper case.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value: u128, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

/// One request of a trace, to look at beside the figures that it is part of.
#[derive(Debug, Clone, Copy)]
pub struct Exemplar {
    /// Which trace.
    pub trace: TraceId,
    /// How long it took.
    pub took: Duration,
    /// When it ended.
    pub at: Instant,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn parsed(value: &str) -> Option<String> {
        TraceId::parse(value.as_bytes()).map(|id| id.to_string())
    }

    #[test]
    fn sampled_traces_are_known_by_their_id() {
        let span = "00f067aa0ba902b7";
        assert_eq!(parsed(&format!("00-{TRACE}-{span}-01")).as_deref(), Some(TRACE));
        assert_eq!(parsed(&format!("00-{TRACE}-{span}-03")).as_deref(), Some(TRACE));
        assert_eq!(parsed(&format!("01-{TRACE}-{span}-01-more")).as_deref(), Some(TRACE));
    }

    #[test]
    fn what_is_not_sampled_or_not_to_the_letter_is_none() {
        let span = "00f067aa0ba902b7";
        for bad in [
            format!("00-{TRACE}-{span}-00"),
            format!("00-{TRACE}-{span}-01-more"),
            format!("ff-{TRACE}-{span}-01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", TRACE.to_uppercase()),
            format!("00_{TRACE}-{span}-01"),
            "00-short-01".to_owned(),
            String::new(),
        ] {
            assert_eq!(parsed(&bad), None, "{bad}");
        }
    }
}
