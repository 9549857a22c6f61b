//! A scenario as it is written: YAML with the line of every value, nothing understood yet.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

use super::ScenarioError;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) about: Option<String>,
    pub(super) seed: Option<u64>,
    pub(super) duration: Spanned<Word>,
    pub(super) warmup: Option<Spanned<Word>>,
    pub(super) network: Option<Spanned<Word>>,
    pub(super) discovery: Option<Spanned<Word>>,
    pub(super) servers: Table<Server>,
    pub(super) clients: Table<Clients>,
    #[serde(default)]
    pub(super) events: Vec<Spanned<Event>>,
    #[serde(default)]
    pub(super) policies: Table<Table<Word>>,
    #[serde(default)]
    pub(super) expect: Vec<Spanned<String>>,
}

/// A server, or several alike.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Server {
    pub(super) count: Option<Spanned<Word>>,
    pub(super) latency: Spanned<Word>,
    pub(super) concurrency: Option<Spanned<Word>>,
    pub(super) queue: Option<Spanned<Word>>,
    pub(super) rate_limit: Option<Spanned<Word>>,
    pub(super) fail: Option<Table<Word>>,
    pub(super) fail_latency: Option<Spanned<Word>>,
    pub(super) retry_after: Option<Spanned<Word>>,
}

/// Proxies with the same application behind each.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Clients {
    pub(super) count: Option<Spanned<Word>>,
    pub(super) rate: Option<Spanned<Word>>,
    pub(super) concurrency: Option<Spanned<Word>>,
    pub(super) think: Option<Spanned<Word>>,
    pub(super) start: Option<Spanned<Word>>,
    pub(super) stop: Option<Spanned<Word>>,
    pub(super) method: Option<Spanned<Word>>,
}

/// Something that changes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Event {
    pub(super) at: Spanned<Word>,
    #[serde(rename = "for")]
    pub(super) lasts: Option<Spanned<Word>>,
    pub(super) every: Option<Spanned<Word>>,
    pub(super) server: Option<Names>,
    pub(super) client: Option<Names>,
    #[serde(rename = "do")]
    pub(super) moves: Option<Spanned<Word>>,
    pub(super) latency: Option<Spanned<Word>>,
    pub(super) concurrency: Option<Spanned<Word>>,
    pub(super) queue: Option<Spanned<Word>>,
    pub(super) rate_limit: Option<Spanned<Word>>,
    pub(super) fail: Option<Table<Word>>,
    pub(super) fail_latency: Option<Spanned<Word>>,
    pub(super) retry_after: Option<Spanned<Word>>,
    pub(super) rate: Option<Spanned<Word>>,
}

/// Reads a file.
///
/// # Errors
/// Where it is no YAML, or has a field that is unknown, missing or of another shape.
pub(super) fn parse(text: &str) -> Result<File, ScenarioError> {
    serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(1, |at| at.line());
        let text = error.without_snippet().to_string();
        let problem = text.lines().next().unwrap_or("it cannot be parsed").trim();
        // The library's own mend is for programmers.
        let problem = problem.split(", set DuplicateKeyPolicy").next().unwrap_or(problem);
        ScenarioError { line, problem: format!("{problem}; see docs/simulator.md for the fields") }
    })
}

/// A scalar as text, so that `limit: 2` and `limit: "2"` are the same, as in annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word(pub(super) String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl Visitor<'_> for Scalar {
            type Value = Word;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word or a number")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Word, E> {
                Ok(Word(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Word, E> {
                Ok(Word(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Word, E> {
                Ok(Word(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Word, E> {
                Ok(Word(value.to_string()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Word, E> {
                Ok(Word(value.trim().to_owned()))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

/// One name or a list of them.
#[derive(Debug)]
pub(super) struct Names(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name or a list of names")
            }

            fn visit_str<E>(self, value: &str) -> Result<Names, E> {
                Ok(Names(vec![value.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = seq.next_element()? {
                    names.push(name);
                }
                Ok(Names(names))
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

/// A mapping in the order in which it is written.
#[derive(Debug)]
pub(super) struct Table<T>(pub(super) Vec<Entry<T>>);

/// One line of a mapping.
#[derive(Debug)]
pub(super) struct Entry<T> {
    pub(super) name: String,
    pub(super) line: u64,
    pub(super) value: T,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Mapping<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Mapping<T> {
            type Value = Table<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Table<T>, E> {
                Ok(Table::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table<T>, A::Error> {
                let mut entries: Vec<Entry<T>> = Vec::new();
                while let Some(Spanned { value: Word(name), referenced, .. }) = map.next_key()? {
                    if entries.iter().any(|entry| entry.name == name) {
                        return Err(de::Error::custom(format!("{name:?} is there twice")));
                    }
                    entries.push(Entry { name, line: referenced.line(), value: map.next_value()? });
                }
                Ok(Table(entries))
            }
        }
        deserializer.deserialize_any(Mapping(PhantomData))
    }
}
