//! What a query asks for: which metrics, by which labels.
//!
//! No parser of PromQL, but strict: a word that is no metric, function or keyword known here is an error, so
//! that nothing is overlooked. What the words mean to each other is Prometheus's to judge.

/// What can be followed by its labels in parentheses.
const GROUPING: [&str; 2] = ["by", "on"];
/// Words of the language that the queries may use.
const WORDS: [&str; 17] = [
    "absent",
    "and",
    "bottomk",
    "count",
    "histogram_quantile",
    "increase",
    "max",
    "min",
    "offset",
    "or",
    "rate",
    "sum",
    "time",
    "topk",
    "unless",
    "vector",
    "bool",
];

/// A metric, and the matchers behind it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) metric: String,
    pub(super) matchers: Vec<Matcher>,
    at: usize,
}

/// `label="value"`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Matcher {
    pub(super) label: String,
    pub(super) value: String,
}

/// Labels after `by` or `on`, and the tokens that they are about.
#[derive(Debug)]
struct Grouping {
    labels: Vec<String>,
    about: std::ops::Range<usize>,
}

/// A query.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) uses: Vec<Use>,
    groupings: Vec<Grouping>,
}

impl Query {
    /// Reads one.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        Reader { tokens: tokens(text)?, at: 0 }.query()
    }

    /// Each metric with a label that it is grouped or joined by.
    pub(super) fn grouped(&self) -> impl Iterator<Item = (&Use, &str)> {
        self.groupings.iter().flat_map(|grouping| {
            let inside = self.uses.iter().filter(|it| grouping.about.contains(&it.at));
            inside.flat_map(|it| grouping.labels.iter().map(move |label| (it, label.as_str())))
        })
    }

    /// Labels that its result may have.
    pub(super) fn labels(&self) -> impl Iterator<Item = &str> {
        self.groupings.iter().flat_map(|grouping| grouping.labels.iter().map(String::as_str))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Number,
    /// `[5m]`, whatever is in it.
    Range,
    Sign(char),
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || "_:.".contains(c);
        let (token, len) = match first {
            c if c.is_whitespace() => (None, c.len_utf8()),
            '"' => {
                let end = rest[1..].find('"').ok_or("a text without an end")?;
                (Some(Token::Text(rest[1..=end].to_owned())), end + 2)
            }
            '[' => {
                let end = rest.find(']').ok_or("a range without an end")?;
                (Some(Token::Range), end + 1)
            }
            c if is_word(c) => {
                let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                let word = rest[..end].to_owned();
                let number = c.is_ascii_digit();
                (Some(if number { Token::Number } else { Token::Word(word) }), end)
            }
            c if "(){},=!~<>+-*/".contains(c) => (Some(Token::Sign(c)), 1),
            c => return Err(format!("unexpected {c:?}")),
        };
        tokens.extend(token);
        rest = &rest[len..];
    }
    Ok(tokens)
}

struct Reader {
    tokens: Vec<Token>,
    at: usize,
}

impl Reader {
    fn query(mut self) -> Result<Query, String> {
        let mut query = Query { uses: Vec::new(), groupings: Vec::new() };
        while let Some(token) = self.tokens.get(self.at).cloned() {
            let at = self.at;
            self.at += 1;
            let Token::Word(word) = token else { continue };
            if GROUPING.contains(&word.as_str()) {
                let labels = self.labels()?;
                let about = match word.as_str() {
                    // A join looks at both of its sides; here that is the whole query.
                    "on" => 0..self.tokens.len(),
                    _ => self.at..self.closing(self.at)?,
                };
                query.groupings.push(Grouping { labels, about });
            } else if is_metric(&word) {
                let matchers = self.matchers()?;
                query.uses.push(Use { metric: word, matchers, at });
            } else if !WORDS.contains(&word.as_str()) {
                return Err(format!(
                    "{word} is neither a metric of ours nor a word that is known here"
                ));
            }
        }
        Ok(query)
    }

    fn peek(&self, sign: char) -> bool {
        self.tokens.get(self.at) == Some(&Token::Sign(sign))
    }

    fn expect(&mut self, sign: char) -> Result<(), String> {
        if !self.peek(sign) {
            return Err(format!("{sign} is missing at token {}", self.at));
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self) -> Result<String, String> {
        let Some(Token::Word(word)) = self.tokens.get(self.at).cloned() else {
            return Err(format!("a label is missing at token {}", self.at));
        };
        self.at += 1;
        Ok(word)
    }

    fn labels(&mut self) -> Result<Vec<String>, String> {
        self.expect('(')?;
        let mut labels = vec![self.word()?];
        while self.peek(',') {
            self.at += 1;
            labels.push(self.word()?);
        }
        self.expect(')')?;
        Ok(labels)
    }

    fn matchers(&mut self) -> Result<Vec<Matcher>, String> {
        let mut matchers = Vec::new();
        if !self.peek('{') {
            return Ok(matchers);
        }
        while !self.peek('}') {
            self.at += 1;
            let label = self.word()?;
            while let Some(Token::Sign('=' | '!' | '~')) = self.tokens.get(self.at) {
                self.at += 1;
            }
            let Some(Token::Text(value)) = self.tokens.get(self.at).cloned() else {
                return Err(format!("{label} is compared with no text"));
            };
            self.at += 1;
            if !self.peek(',') && !self.peek('}') {
                return Err(format!("something else than , or }} behind {label}"));
            }
            matchers.push(Matcher { label, value });
        }
        self.at += 1;
        Ok(matchers)
    }

    /// Behind the parenthesis that closes the one at `open`.
    fn closing(&self, open: usize) -> Result<usize, String> {
        let mut depth = 0;
        for (at, token) in self.tokens.iter().enumerate().skip(open) {
            match token {
                Token::Sign('(') => depth += 1,
                Token::Sign(')') => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return if at > open {
                    Ok(at + 1)
                } else {
                    Err("( is missing behind by (…)".to_owned())
                };
            }
        }
        Err("a parenthesis without an end".to_owned())
    }
}

fn is_metric(word: &str) -> bool {
    word.starts_with("remora_") || word.starts_with("process_") || word.contains(':')
}

#[test]
fn metrics_matchers_and_groups_are_found_and_strange_words_refused() {
    let text = r#"1 - (sum by (a, b) (rate(remora_x_total{c="d",e=~"f|g"}[5m])) or vector(0))
        / on (h) sum by (a) (x_y:remora_z:rate5m) > 0.5"#;
    let query = Query::read(text).unwrap();
    let uses: Vec<&str> = query.uses.iter().map(|it| it.metric.as_str()).collect();
    assert_eq!(uses, ["remora_x_total", "x_y:remora_z:rate5m"]);
    let matchers = &query.uses[0].matchers;
    assert_eq!((matchers[0].label.as_str(), matchers[0].value.as_str()), ("c", "d"));
    assert_eq!((matchers[1].label.as_str(), matchers[1].value.as_str()), ("e", "f|g"));
    let grouped: Vec<_> = query.grouped().map(|(it, label)| (it.metric.as_str(), label)).collect();
    let (x, z) = ("remora_x_total", "x_y:remora_z:rate5m");
    assert_eq!(grouped, [(x, "a"), (x, "b"), (x, "h"), (z, "h"), (z, "a")]);
    for wrong in [
        "up == 0",
        "summe(remora_x)",
        "sum by (a) remora_x",
        "sum(remora_x) without (a)",
        "remora_x{a=b}",
        "sum by (a) (remora_x",
        "remora_x{a=\"b\"",
    ] {
        assert!(Query::read(wrong).is_err(), "{wrong}");
    }
}
