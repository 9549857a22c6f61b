//! How a program says why it ends.

use std::error::Error;

/// An error and its causes as one sentence, in which nothing is said twice: many errors say their causes
/// themselves.
#[must_use]
pub fn sentence<'a>(chain: impl IntoIterator<Item = &'a (dyn Error + 'static)>) -> String {
    let mut sentence = String::new();
    for cause in chain {
        let cause = cause.to_string();
        if sentence.is_empty() {
            sentence = cause;
        } else if !sentence.contains(&cause) {
            sentence.push_str(": ");
            sentence.push_str(&cause);
        }
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{says}")]
    struct Says {
        says: &'static str,
        source: Option<Box<Says>>,
    }

    fn cause<'a>(error: &&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
        (**error).source()
    }

    fn said(texts: &[&'static str]) -> String {
        let chain: Option<Box<Says>> =
            texts.iter().rev().fold(None, |source, says| Some(Box::new(Says { says, source })));
        let first: Box<dyn Error> = chain.unwrap();
        sentence(std::iter::successors(Some(&*first), cause))
    }

    #[test]
    fn a_cause_is_said_once() {
        assert_eq!(said(&["no way", "no such file"]), "no way: no such file");
        let whole = "no way: a.yaml: no such file; give another";
        assert_eq!(said(&[whole, "a.yaml: no such file", "no such file"]), whole);
        assert_eq!(said(&["bad name", "a.yaml", "bad name"]), "bad name: a.yaml");
    }
}
