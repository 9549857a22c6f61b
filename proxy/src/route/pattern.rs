//! Regular expressions of a route, bounded in length and in what they compile to.

use regex::bytes::{Regex, RegexBuilder};

/// Longest expression, in bytes; no field of the Gateway API takes a longer one.
const MAX_LEN: usize = 4096;
/// What one may compile to, and what matching may cache of it, in bytes.
const MAX_SIZE: usize = 256 * 1024;
/// Groups within groups.
const MAX_NEST: u32 = 32;

/// An expression that must match the whole of a text. Takes time in proportion to the text, whatever
/// the expression.
///
/// The syntax is RE2's as far as both have it: classes such as `\w` are ASCII, and `.` is any byte.
#[derive(Debug)]
pub(super) struct Pattern(Regex);

impl Pattern {
    /// Compiles an expression.
    ///
    /// # Errors
    /// The sentence says what is wrong with it.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        if text.len() > MAX_LEN {
            return Err(format!("{} bytes; {MAX_LEN} are the most", text.len()));
        }
        // On its own first: `a)(b` would become good in the brackets.
        let build = |text: &str| {
            RegexBuilder::new(text)
                .unicode(false)
                .size_limit(MAX_SIZE)
                .dfa_size_limit(MAX_SIZE)
                .nest_limit(MAX_NEST)
                .build()
        };
        let bad = |error: regex::Error| format!("{text:?}: {error}");
        build(text).map_err(bad)?;
        // The line's end closes a comment of an expression that allows them.
        let whole = if text.contains("(?") && text.contains('#') { "\n" } else { "" };
        Ok(Self(build(&format!("^(?:{text}{whole})$")).map_err(bad)?))
    }

    /// The expression, as it was written.
    pub(super) fn text(&self) -> &str {
        let whole = self.0.as_str();
        let inner = whole.strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(")$"));
        inner.unwrap_or(whole).trim_end_matches('\n')
    }

    /// Whether all of a text matches.
    pub(super) fn holds(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern).unwrap().holds(text.as_bytes())
    }

    #[test]
    fn the_whole_text_must_match() {
        assert!(holds("v[0-9]+", "v12"));
        assert!(!holds("v[0-9]+", "av12"));
        assert!(!holds("v[0-9]+", "v12b"));
        assert!(!holds("v[0-9]+", "v12\n"));
        assert!(holds("a|b", "b") && !holds("a|b", "ab"), "an alternative stays one");
        assert!(holds("", "") && !holds("", "a"));
        assert!(holds(r"\w+", "abc") && !holds(r"\w+", "äbc"), "as RE2 has it");
    }

    #[test]
    fn what_is_too_long_too_large_or_wrong_is_refused() {
        for bad in [
            "a".repeat(MAX_LEN + 1),
            "(".to_owned(),
            "a)(b".to_owned(),
            r"\w{1000}{1000}".to_owned(),
            "(".repeat(100) + &")".repeat(100),
            "(?=a)".to_owned(),
            r"(a)\1".to_owned(),
        ] {
            assert!(Pattern::new(&bad).is_err(), "{bad:.40}");
        }
    }
}
