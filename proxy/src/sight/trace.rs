//! The trace that a request belongs to, as its caller says (W3C Trace Context, `traceparent`).

use http::HeaderName;

use crate::fields::Fields;

pub use crate::metrics::trace::TraceId;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Where in a trace a request belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The caller's span; 0 where the trace begins here.
    pub parent: u64,
    /// Whether it is recorded.
    pub sampled: bool,
}

impl TraceContext {
    /// That of a request; `None` where it has none, or a broken one, which counts as none.
    #[must_use]
    pub fn of(fields: &impl Fields) -> Option<Self> {
        Self::parse(fields.get(&TRACEPARENT)?)
    }

    /// Reads `version-trace-parent-flags`. Versions to come may append to it (Trace Context §3.2).
    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut parts = text.split('-');
        let version = hex(parts.next()?, 2)?;
        let (trace, parent) = (hex(parts.next()?, 32)?, hex(parts.next()?, 16)?);
        let flags = hex(parts.next()?, 2)?;
        let bad = version == 0xff || trace == 0 || parent == 0;
        if bad || (version == 0 && parts.next().is_some()) {
            return None;
        }
        let parent = u64::try_from(parent).ok()?;
        Some(Self { trace: TraceId(trace), parent, sampled: flags & 1 == 1 })
    }
}

pub(super) fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let well = text.len() == digits && text.bytes().all(lower);
    well.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_is_read() {
        let context = TraceContext::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(context.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((context.parent, context.sampled), (0x00f0_67aa_0ba9_02b7, true));
        let quiet = GOOD.replace("-01", "-00");
        assert!(!TraceContext::parse(quiet.as_bytes()).unwrap().sampled);
        let later = format!("{}-more", GOOD.replace("00-4b", "01-4b"));
        assert!(TraceContext::parse(later.as_bytes()).is_some());
    }

    #[test]
    fn a_broken_one_counts_as_none() {
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        ] {
            assert_eq!(TraceContext::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
