//! Conditions on a request.

use std::borrow::Cow;

use http::{HeaderName, Method, header};

use super::{Message, pattern::Pattern};
use crate::fields::Fields;

/// Conditions that must all hold.
#[derive(Debug, Default)]
pub struct RouteMatch {
    /// On the path; `None`: any.
    pub path: Option<PathMatch>,
    /// `None`: any.
    pub method: Option<Method>,
    /// On fields; of several of the same name the first counts.
    pub headers: Box<[HeaderMatch]>,
    /// On parameters of the query; of several of the same name the first counts.
    pub query: Box<[QueryMatch]>,
}

/// Condition on the path, as it was sent and without the query.
#[derive(Debug)]
pub enum PathMatch {
    /// The whole path.
    Exact(Box<str>),
    /// Whole path elements, without a slash at the end: `/api` matches `/api` and `/api/v1`.
    Prefix(Box<str>),
    /// An expression.
    Pattern(TextMatch),
}

/// Condition on a field.
#[derive(Debug)]
pub struct HeaderMatch {
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    pub value: TextMatch,
}

/// Condition on a parameter.
#[derive(Debug)]
pub struct QueryMatch {
    /// Its name, decoded.
    pub name: Box<str>,
    /// Its value, decoded.
    pub value: TextMatch,
}

/// Condition on a text.
#[derive(Debug)]
pub struct TextMatch(Text);

#[derive(Debug)]
enum Text {
    Exact(Box<[u8]>),
    Pattern(Pattern),
}

impl TextMatch {
    /// Exactly this.
    #[must_use]
    pub fn exact(text: &str) -> Self {
        Self(Text::Exact(text.as_bytes().into()))
    }

    /// All of it matches an expression.
    ///
    /// # Errors
    /// Where it is none, too long, or too large; the sentence says which.
    pub fn pattern(text: &str) -> Result<Self, String> {
        Ok(Self(Text::Pattern(Pattern::new(text)?)))
    }

    /// Whether it is an expression, and its text.
    pub(super) fn text(&self) -> (bool, &[u8]) {
        match &self.0 {
            Text::Exact(exact) => (false, exact),
            Text::Pattern(pattern) => (true, pattern.text().as_bytes()),
        }
    }

    fn holds(&self, text: &[u8]) -> bool {
        match &self.0 {
            Text::Exact(exact) => **exact == *text,
            Text::Pattern(pattern) => pattern.holds(text),
        }
    }
}

impl RouteMatch {
    /// Whether they hold, and the prefix as in [`super::Found`]. `asked`: the method that a preflight
    /// asks for.
    pub(super) fn holds(
        &self,
        request: &impl Message,
        asked: Option<&[u8]>,
    ) -> Option<Option<usize>> {
        let prefix = match &self.path {
            None => Some(0),
            Some(wanted) => wanted.holds(request.path())?,
        };
        let method = self.method.as_ref().is_none_or(|wanted| {
            wanted == request.method() || asked == Some(wanted.as_str().as_bytes())
        });
        let holds = method
            && self.headers.iter().all(|wanted| wanted.holds_for(request))
            && self.query.iter().all(|wanted| wanted.holds(request.query().unwrap_or_default()));
        holds.then_some(prefix)
    }
}

impl PathMatch {
    /// Whole elements; a slash at the end does not matter.
    #[must_use]
    pub fn prefix(prefix: &str) -> Self {
        Self::Prefix(prefix.trim_end_matches('/').into())
    }

    fn holds(&self, path: &str) -> Option<Option<usize>> {
        match self {
            Self::Exact(exact) => (path == &**exact).then_some(None),
            // Requests without a path (`*`, CONNECT) too.
            Self::Prefix(prefix) if prefix.is_empty() => Some(Some(0)),
            Self::Prefix(prefix) => {
                let rest = path.strip_prefix(&**prefix)?;
                let whole = rest.is_empty() || rest.starts_with('/');
                whole.then_some(Some(prefix.len()))
            }
            Self::Pattern(pattern) => pattern.holds(path.as_bytes()).then_some(None),
        }
    }
}

impl HeaderMatch {
    /// Whether some fields have it.
    #[must_use]
    pub fn holds(&self, fields: &impl Fields) -> bool {
        fields.get(&self.name).is_some_and(|value| self.value.holds(value))
    }

    fn holds_for(&self, request: &impl Message) -> bool {
        // HTTP/2 has it beside its fields.
        let host = self.name == header::HOST;
        match request.authority().filter(|_| host) {
            Some(authority) => self.value.holds(authority.as_bytes()),
            None => self.holds(request.fields()),
        }
    }
}

impl QueryMatch {
    fn holds(&self, query: &str) -> bool {
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let mut named = pairs.filter(|(name, _)| decoded(name).eq(self.name.bytes()));
        let Some((_, value)) = named.next() else { return false };
        match &self.value.0 {
            Text::Exact(exact) => decoded(value).eq(exact.iter().copied()),
            Text::Pattern(pattern) => {
                let plain = !value.bytes().any(|b| b == b'%' || b == b'+');
                let text: Cow<'_, [u8]> =
                    if plain { value.as_bytes().into() } else { decoded(value).collect() };
                pattern.holds(&text)
            }
        }
    }
}

/// Undoes percent-encoding, and `+` for a space, as forms write it. A `%` without two digits behind
/// it stays.
fn decoded(text: &str) -> impl Iterator<Item = u8> + '_ {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (&first, after) = rest.split_first()?;
        rest = after;
        if first == b'+' {
            return Some(b' ');
        }
        if let (b'%', [high, low, after @ ..]) = (first, rest)
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            rest = after;
            return Some(high << 4 | low);
        }
        Some(first)
    })
}

fn digit(b: u8) -> Option<u8> {
    char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
#[path = "matching_tests.rs"]
mod tests;
