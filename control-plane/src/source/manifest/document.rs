//! YAML and JSON documents with the line of every value, so that a problem can be pointed at.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use serde_saphyr::Spanned;

/// Most documents in one file. The parser's other bounds (nodes, aliases, depth) stay as they are.
const MAX_DOCUMENTS: usize = 20_000;

/// One node of a document. Lines count from 1.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Line the value begins on.
    pub(super) line: u64,
    tree: Tree,
}

#[derive(Debug, Clone)]
enum Tree {
    Scalar(Value),
    Sequence(Vec<Node>),
    /// Entries with the line of their key.
    Mapping(Vec<(String, u64, Node)>),
}

/// Why a text is no document.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) line: u64,
    pub(super) problem: String,
    pub(super) mend: &'static str,
}

/// Reads all documents of a file; empty ones are left out.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let budget = serde_saphyr::budget! { max_documents: MAX_DOCUMENTS };
    let options = serde_saphyr::options! { budget: budget };
    let documents: Vec<Spanned<Tree>> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| SyntaxError {
            line: error.location().map_or(1, |at| at.line()),
            problem: first_line(&error),
            mend: match error.without_snippet() {
                serde_saphyr::Error::Budget { .. } => "split the file",
                _ => "correct the syntax (YAML indents with spaces)",
            },
        })?;
    Ok(documents
        .into_iter()
        .map(Node::from)
        .filter(|node| !matches!(node.tree, Tree::Scalar(Value::Null)))
        .collect())
}

impl Node {
    /// The value under a key of a mapping.
    pub(super) fn field(&self, key: &str) -> Option<&Self> {
        match &self.tree {
            Tree::Mapping(entries) => {
                entries.iter().find(|(name, ..)| name == key).map(|(_, _, node)| node)
            }
            _ => None,
        }
    }

    /// The elements of a sequence.
    pub(super) fn items(&self) -> Option<&[Self]> {
        match &self.tree {
            Tree::Sequence(items) => Some(items),
            _ => None,
        }
    }

    /// Its text, where it is a string.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.tree {
            Tree::Scalar(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// Whether it is a mapping.
    pub(super) fn is_mapping(&self) -> bool {
        matches!(self.tree, Tree::Mapping(_))
    }

    /// The line of a path such as `spec.ports[0].port`, or of the deepest part that is there.
    pub(super) fn line_of(&self, path: &str) -> u64 {
        let mut line = self.line;
        let mut node = self;
        for part in path.split(['.', '[']).filter(|part| !part.is_empty()) {
            let (next, at) = match &node.tree {
                Tree::Mapping(entries) => match entries.iter().find(|(name, ..)| name == part) {
                    Some((_, key_line, child)) => (child, *key_line),
                    None => break,
                },
                Tree::Sequence(items) => {
                    match part.trim_end_matches(']').parse().ok().and_then(|i: usize| items.get(i))
                    {
                        Some(child) => (child, child.line),
                        None => break,
                    }
                }
                Tree::Scalar(_) => break,
            };
            (node, line) = (next, at);
        }
        line
    }

    /// The same without lines.
    pub(super) fn to_value(&self) -> Value {
        match &self.tree {
            Tree::Scalar(value) => value.clone(),
            Tree::Sequence(items) => items.iter().map(Self::to_value).collect(),
            Tree::Mapping(entries) => Value::Object(
                entries.iter().map(|(key, _, node)| (key.clone(), node.to_value())).collect(),
            ),
        }
    }
}

impl From<Spanned<Tree>> for Node {
    fn from(spanned: Spanned<Tree>) -> Self {
        Self { line: spanned.referenced.line(), tree: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Tree>>()? {
            items.push(item.into());
        }
        Ok(Tree::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<Spanned<String>, Spanned<Tree>>()? {
            entries.push((key.value, key.referenced.line(), value.into()));
        }
        Ok(Tree::Mapping(entries))
    }
}

/// The message alone: the place is said by the caller, the snippet would break the line.
fn first_line(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    text.lines().next().unwrap_or("cannot be parsed").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_lines_across_documents() {
        let text = "kind: A\n---\n# note\nkind: B\nspec:\n  ports:\n  - port: 80\n    name: http\n  - port: x\n";
        let documents = parse(text).unwrap();
        assert_eq!(documents.len(), 2);
        let b = &documents[1];
        assert_eq!(b.field("kind").and_then(Node::text), Some("B"));
        assert_eq!(b.line_of("spec.ports[0].name"), 8);
        assert_eq!(b.line_of("spec.ports[1].port"), 9);
        assert_eq!(b.line_of("spec.ports[1].absent"), 9);
        assert_eq!(b.line_of("metadata.name"), 4);
    }

    #[test]
    fn quoted_numbers_stay_text() {
        let document = &parse("a: \"8080\"\nb: 8080\nc: true\n").unwrap()[0];
        assert_eq!(document.to_value(), serde_json::json!({"a": "8080", "b": 8080, "c": true}));
    }

    #[test]
    fn json_with_tabs_is_read() {
        let document = &parse("{\n\t\"kind\": \"Pod\",\n\t\"n\": [1, 2]\n}\n").unwrap()[0];
        assert_eq!(document.to_value(), serde_json::json!({"kind": "Pod", "n": [1, 2]}));
        assert_eq!(document.line_of("n"), 3);
    }

    #[test]
    fn a_file_may_hold_thousands_of_documents_but_not_any_number() {
        let file = |documents: usize| "a: 1\n---\n".repeat(documents);
        assert_eq!(parse(&file(5000)).unwrap().len(), 5000);
        assert_eq!(parse(&file(MAX_DOCUMENTS + 1)).unwrap_err().mend, "split the file");
    }

    #[test]
    fn syntax_errors_name_the_line() {
        let error = parse("a: 1\nb: [1\nc: 2\n").unwrap_err();
        assert!(error.line >= 2, "{error:?}");
        assert!(!error.problem.contains('\n'));
    }
}
