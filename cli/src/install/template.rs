//! The templates of an installation and their two renderings: with values put in, and as templates
//! of a Helm chart.
//!
//! A template is YAML as it stands, with three additions:
//! - `${name}` in a scalar is a value, `${a.b}` one inside another. A scalar that is nothing else
//!   takes the value's type, and lists and maps as JSON; any other becomes a string;
//! - a line `#if name` or `#if !name` begins lines that are there only with a value that is (not)
//!   false, 0 or empty; `#end` ends them;
//! - `${version}` is the version of the installation.

use std::fmt::Write;

use serde_json::Value;

/// Name of the value that is no choice: the version of the installation.
pub(super) const VERSION: &str = "version";

/// A line of a template.
enum Line<'a> {
    If { name: &'a str, negated: bool },
    End,
    Text(&'a str),
    Scalar { before: &'a str, parts: Vec<Part<'a>> },
}

enum Part<'a> {
    Literal(&'a str),
    Name(&'a str),
}

/// The template with values, which must have every name in it.
pub(super) fn render(template: &str, values: &Value) -> String {
    let mut text = String::new();
    let mut shown = vec![true];
    for line in template.lines().map(parse) {
        let inside = shown.last().copied().unwrap_or(true);
        match line {
            Line::If { name, negated } => shown.push(inside && is_set(at(values, name)) != negated),
            Line::End => _ = shown.pop(),
            Line::Text(line) if inside => put(&mut text, line),
            Line::Scalar { before, parts } if inside => {
                put(&mut text, &format!("{before}{}", scalar(&parts, values)));
            }
            Line::Text(_) | Line::Scalar { .. } => {}
        }
    }
    text
}

/// The template as Helm reads it.
pub(super) fn helm(template: &str) -> String {
    let mut text = String::new();
    for line in template.lines().map(parse) {
        match line {
            Line::If { name, negated: false } => {
                put(&mut text, &format!("{{{{- if {} }}}}", helm_name(name)));
            }
            Line::If { name, negated: true } => {
                put(&mut text, &format!("{{{{- if not {} }}}}", helm_name(name)));
            }
            Line::End => put(&mut text, "{{- end }}"),
            Line::Text(line) => put(&mut text, line),
            Line::Scalar { before, parts } => {
                put(&mut text, &format!("{before}{{{{ {} | toJson }}}}", helm_scalar(&parts)));
            }
        }
    }
    text
}

fn parse(line: &str) -> Line<'_> {
    if let Some(condition) = line.strip_prefix("#if ") {
        return condition.strip_prefix('!').map_or(
            Line::If { name: condition, negated: false },
            |name| Line::If { name, negated: true },
        );
    }
    if line == "#end" {
        return Line::End;
    }
    let Some(first) = line.find("${") else { return Line::Text(line) };
    let start = [": ", "- "]
        .iter()
        .filter_map(|mark| line[..first].rfind(mark).map(|at| at + mark.len()))
        .max()
        .unwrap_or(0);
    let (before, mut rest) = line.split_at(start);
    let mut parts = Vec::new();
    while let Some((literal, tail)) = rest.split_once("${") {
        let (name, tail) = tail
            .split_once('}')
            .expect("invariant: templates are part of the program, and tests render them");
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        parts.push(Part::Name(name));
        rest = tail;
    }
    if !rest.is_empty() {
        parts.push(Part::Literal(rest));
    }
    Line::Scalar { before, parts }
}

/// JSON, which is YAML whatever is in the value.
fn scalar(parts: &[Part<'_>], values: &Value) -> String {
    if let [Part::Name(name)] = parts {
        return at(values, name).to_string();
    }
    let text = parts
        .iter()
        .map(|part| match part {
            Part::Literal(literal) => (*literal).to_owned(),
            Part::Name(name) => {
                let value = at(values, name);
                value.as_str().map_or_else(|| value.to_string(), str::to_owned)
            }
        })
        .collect();
    Value::String(text).to_string()
}

fn helm_scalar(parts: &[Part<'_>]) -> String {
    if let [Part::Name(name)] = parts {
        return helm_name(name);
    }
    let (mut format, mut names) = (String::new(), String::new());
    for part in parts {
        match part {
            Part::Literal(literal) => format.push_str(&literal.replace('%', "%%")),
            Part::Name(name) => {
                format.push_str("%v");
                _ = write!(names, " {}", helm_name(name));
            }
        }
    }
    format!("printf {}{names}", Value::String(format))
}

fn helm_name(name: &str) -> String {
    if name == VERSION { ".Chart.AppVersion".to_owned() } else { format!(".Values.{name}") }
}

fn at<'a>(values: &'a Value, name: &str) -> &'a Value {
    name.split('.')
        .try_fold(values, |value, key| value.get(key))
        .expect("invariant: templates name only values that the type has, and tests render them")
}

/// As Helm's `if` sees it.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

fn put(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_lone_value_keeps_its_type_and_one_in_a_text_becomes_a_string() {
        let values = json!({ "a": { "n": 2 }, "s": "x: \"y\"", "map": { "k": [1] } });
        for (template, rendered) in [
            ("n: ${a.n}", "n: 2\n"),
            ("- ${s}", "- \"x: \\\"y\\\"\"\n"),
            ("map: ${map}", "map: {\"k\":[1]}\n"),
            ("  - --n=${a.n} of ${s}", "  - \"--n=2 of x: \\\"y\\\"\"\n"),
        ] {
            assert_eq!(render(template, &values), rendered);
        }
    }

    #[test]
    fn conditions_nest_and_follow_emptiness() {
        let template = "#if on\na\n#if !list\nb\n#end\n#if off\nc\n#end\nd\n#end\ne";
        let values = json!({ "on": true, "off": "", "list": [] });
        assert_eq!(render(template, &values), "a\nb\nd\ne\n");
        let values = json!({ "on": false, "off": "x", "list": [] });
        assert_eq!(render(template, &values), "e\n");
    }

    #[test]
    fn helm_gets_the_same_template_in_its_own_words() {
        let template = "#if !a.b\nn: ${n}\n- 5%=${version}-${n}\n#end";
        assert_eq!(
            helm(template),
            "{{- if not .Values.a.b }}\nn: {{ .Values.n | toJson }}\n\
             - {{ printf \"5%%=%v-%v\" .Chart.AppVersion .Values.n | toJson }}\n{{- end }}\n"
        );
    }
}
