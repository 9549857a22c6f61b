//! B3 contexts, in one field or in several (OpenZipkin, "B3 Propagation").

use http::HeaderName;

use crate::{
    fields::Fields,
    sight::trace::{TraceId, hex},
};

static SINGLE: HeaderName = HeaderName::from_static("b3");
static TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
static SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
static SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
static FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// What a request says in B3. What is broken counts as not said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct B3 {
    /// The trace, and the caller's span.
    pub(super) context: Option<(TraceId, u64)>,
    /// Whether it is recorded; a caller may leave that to us.
    pub(super) sampled: Option<bool>,
}

impl B3 {
    pub(super) fn of(fields: &impl Fields) -> Self {
        let text = |name| fields.get(name).and_then(|value| std::str::from_utf8(value).ok());
        if let Some(single) = text(&SINGLE) {
            return Self::single(single);
        }
        let context = text(&TRACE_ID).zip(text(&SPAN_ID));
        let debug = text(&FLAGS) == Some("1");
        let sampled = match text(&SAMPLED) {
            Some("1" | "true") => Some(true),
            Some("0" | "false") => Some(false),
            _ => None,
        };
        Self {
            context: context.and_then(|(trace, span)| ids(trace, span)),
            sampled: if debug { Some(true) } else { sampled },
        }
    }

    /// `trace-span`, `trace-span-sampled`, `trace-span-sampled-parent`, or `sampled` alone.
    fn single(text: &str) -> Self {
        let state = |text| match text {
            "1" | "d" => Some(true),
            "0" => Some(false),
            _ => None,
        };
        let mut parts = text.split('-');
        let (first, span) = (parts.next().unwrap_or_default(), parts.next());
        let Some(span) = span else { return Self { context: None, sampled: state(first) } };
        match ids(first, span) {
            None => Self::default(),
            context => Self { context, sampled: parts.next().and_then(state) },
        }
    }
}

fn ids(trace: &str, span: &str) -> Option<(TraceId, u64)> {
    let trace = hex(trace, 32).or_else(|| hex(trace, 16)).filter(|trace| *trace != 0)?;
    let span = hex(span, 16).filter(|span| *span != 0)?;
    Some((TraceId(trace), u64::try_from(span).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;

    const TRACE: &str = "80f198ee56343ba864fe8b2a57d3eff7";
    const SPAN: &str = "e457b5a2e4d86bd1";

    fn read(fields: &[(&'static str, &str)]) -> B3 {
        let fields = fields.iter().map(|(name, value)| {
            (HeaderName::from_static(name), value.parse().expect("a field's value"))
        });
        B3::of(&fields.collect::<HeaderMap>())
    }

    fn known(sampled: Option<bool>) -> B3 {
        let trace = TraceId(0x80f1_98ee_5634_3ba8_64fe_8b2a_57d3_eff7);
        B3 { context: Some((trace, 0xe457_b5a2_e4d8_6bd1)), sampled }
    }

    #[test]
    fn one_field_says_all_or_only_whether() {
        let single = |text: &str| read(&[("b3", text)]);
        assert_eq!(single(&format!("{TRACE}-{SPAN}")), known(None));
        assert_eq!(single(&format!("{TRACE}-{SPAN}-1")), known(Some(true)));
        assert_eq!(single(&format!("{TRACE}-{SPAN}-d-05e3ac9a4f6e3b90")), known(Some(true)));
        assert_eq!(single(&format!("{TRACE}-{SPAN}-0")), known(Some(false)));
        assert_eq!(single("0"), B3 { context: None, sampled: Some(false) });
        assert_eq!(single("d"), B3 { context: None, sampled: Some(true) });
    }

    #[test]
    fn several_fields_say_the_same() {
        let ids = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)];
        let with = |more: &[(&'static str, &str)]| read(&[&ids, more].concat());
        assert_eq!(with(&[]), known(None));
        assert_eq!(with(&[("x-b3-sampled", "1")]), known(Some(true)));
        assert_eq!(with(&[("x-b3-sampled", "false")]), known(Some(false)));
        assert_eq!(with(&[("x-b3-flags", "1")]), known(Some(true)));
        assert_eq!(read(&[("x-b3-sampled", "0")]), B3 { context: None, sampled: Some(false) });
    }

    #[test]
    fn short_trace_ids_are_ids_too() {
        let read = read(&[("b3", "64fe8b2a57d3eff7-e457b5a2e4d86bd1-1")]);
        assert_eq!(read.context.map(|(trace, _)| trace.0), Some(0x64fe_8b2a_57d3_eff7));
    }

    #[test]
    fn what_is_broken_counts_as_not_said() {
        let zero = "0".repeat(32);
        for bad in ["", "x", "1-2", &format!("{zero}-{SPAN}-1"), &format!("{TRACE}-0-1")] {
            assert_eq!(read(&[("b3", bad)]), B3::default(), "{bad}");
        }
        assert_eq!(read(&[("x-b3-traceid", TRACE), ("x-b3-spanid", "-")]), B3::default());
    }
}
