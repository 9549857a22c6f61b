//! What never goes into an archive: tokens, passwords, keys, query strings. None of our programs
//! shows one; this is for those that others put where they do not belong.

use regex::bytes::{Regex, RegexBuilder};
use serde_json::Value;

/// What stands in its place.
pub(super) const LEFT_OUT: &str = "[left out]";
/// Names whose values are secrets, wherever they are in a key.
const SECRET: &str =
    "password|passwd|secret|token|api[_-]?key|private[_-]?key|authorization|cookie|credential";

/// Finds secrets in texts and objects.
#[derive(Debug)]
pub(super) struct Redactor {
    /// Patterns and what is put in their place.
    patterns: Vec<(Regex, String)>,
    secret_key: Regex,
}

impl Redactor {
    /// # Errors
    /// Never: the patterns are constants, and a test compiles them.
    pub(super) fn new() -> Result<Self, regex::Error> {
        let compile = |pattern: &str| {
            RegexBuilder::new(pattern).unicode(false).case_insensitive(true).build()
        };
        let patterns = [
            (
                r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)"
                    .to_owned(),
                LEFT_OUT.to_owned(),
            ),
            (r"\b(bearer|basic) +[a-z0-9._~+/=-]{8,}".to_owned(), format!("${{1}} {LEFT_OUT}")),
            // A JSON web token.
            (r"\beyJ[a-z0-9_-]{10,}(?:\.[a-z0-9_-]*){0,2}".to_owned(), LEFT_OUT.to_owned()),
            (
                format!(r#"((?:{SECRET})s?["']?[ \t]*[=:][ \t]*)("[^"]*"|'[^']*'|[^\s,;&"'}})]+)"#),
                format!("${{1}}{LEFT_OUT}"),
            ),
            // User and password of a URL.
            (r#"(://)[^/\s@"']+@"#.to_owned(), format!("${{1}}{LEFT_OUT}@")),
            (r#"([^\s?"'<>]\?)[^\s"'<>]+"#.to_owned(), format!("${{1}}{LEFT_OUT}")),
        ];
        let patterns = patterns
            .into_iter()
            .map(|(pattern, place)| Ok((compile(&pattern)?, place)))
            .collect::<Result<_, _>>()?;
        let secret_key = compile(&format!("(?:{SECRET})|^env$|^query$"))?;
        Ok(Self { patterns, secret_key })
    }

    /// A text without secrets.
    pub(super) fn text(&self, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        for (pattern, place) in &self.patterns {
            bytes = pattern.replace_all(&bytes, place.as_bytes()).into_owned();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// An object without secrets; what a secret's name stands before is left out whole.
    pub(super) fn json(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(&text)),
            Value::Array(items) => items.into_iter().map(|item| self.json(item)).collect(),
            Value::Object(fields) => {
                let clean = fields.into_iter().map(|(key, value)| {
                    let secret = self.secret_key.is_match(key.as_bytes());
                    // A number or a flag gives nothing away.
                    let secret =
                        secret && !matches!(value, Value::Number(_) | Value::Bool(_) | Value::Null);
                    let value = if secret { LEFT_OUT.into() } else { self.json(value) };
                    (key, value)
                });
                Value::Object(clean.collect())
            }
            plain => plain,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(text: &str) -> String {
        Redactor::new().unwrap().text(text)
    }

    #[test]
    fn secrets_in_a_text_are_left_out_and_what_is_around_them_stays() {
        let cases = [
            ("GET /a?user=jane&x=1 200", "GET /a?[left out] 200"),
            ("{\"path\":\"/a?k=v\",\"n\":1}", "{\"path\":\"/a?[left out]\",\"n\":1}"),
            ("authorization: Bearer abcdefgh.ijk", "authorization: [left out] [left out]"),
            ("sent Bearer abcdefgh123 to", "sent Bearer [left out] to"),
            ("DB_PASSWORD=hunter2, next=1", "DB_PASSWORD=[left out], next=1"),
            ("\"apiKey\": \"a b\", \"z\": 1", "\"apiKey\": [left out], \"z\": 1"),
            ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln end", "jwt [left out] end"),
            ("postgres://jane:hunter2@db/x", "postgres://[left out]@db/x"),
            (
                "a\n-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----\nb",
                "a\n[left out]\nb",
            ),
            ("cut -----BEGIN PRIVATE KEY-----\nMHc", "cut [left out]"),
        ];
        for (given, expected) in cases {
            assert_eq!(text(given), expected, "{given}");
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for plain in [
            "remora_control_plane_certificates_total{result=\"bad-token\"} 3",
            "remora_control_plane_token_review_seconds_bucket{le=\"0.1\"} 4",
            "why? because",
            "spiffe://cluster.local/ns/shop/sa/orders",
            "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
            "listening on 127.0.0.1:4191",
        ] {
            assert_eq!(text(plain), plain);
        }
    }

    #[test]
    fn objects_lose_the_values_of_secret_names() {
        let value = json!({ "env": [{ "name": "A", "value": "hunter2" }], "token": "x",
            "client_secret": { "deep": "x" }, "tokens": 3, "list": ["/a?b=c"], "query": "b=c" });
        let clean = Redactor::new().unwrap().json(value);
        let expected = json!({ "env": LEFT_OUT, "token": LEFT_OUT, "client_secret": LEFT_OUT,
            "tokens": 3, "list": ["/a?[left out]"], "query": LEFT_OUT });
        assert_eq!(clean, expected);
    }
}
