//! Label and field selectors.

use serde_json::Value;

use super::{
    kinds::Kind,
    status::{self, Refusal},
};

/// Which objects a list or watch wants.
#[derive(Debug, Clone, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Debug, Clone)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selector {
    /// Parses `labelSelector` and `fieldSelector` of a query.
    pub(super) fn parse(
        kind: &Kind,
        labels: Option<&str>,
        fields: Option<&str>,
    ) -> Result<Self, Refusal> {
        let labels = match labels {
            Some(text) => requirements(text)?,
            None => Vec::new(),
        };
        let mut parsed = Vec::new();
        for term in fields.unwrap_or_default().split(',').filter(|term| !term.is_empty()) {
            let (path, equal, value) = match term.split_once("!=") {
                Some((path, value)) => (path, false, value),
                None => match term.split_once("==").or_else(|| term.split_once('=')) {
                    Some((path, value)) => (path, true, value),
                    None => return Err(status::bad_request(format!("invalid selector: '{term}'"))),
                },
            };
            if !selectable(kind, path) {
                let message = format!("field label not supported: {path}");
                return Err(status::bad_request(message));
            }
            parsed.push((path.to_owned(), equal, value.to_owned()));
        }
        Ok(Self { labels, fields: parsed })
    }

    pub(super) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let field = |path: &str| {
            let value = path.split('.').try_fold(object, |at, segment| at.get(segment));
            value.and_then(Value::as_str).unwrap_or_default()
        };
        self.labels.iter().all(|requirement| requirement.holds(&object["metadata"]["labels"]))
            && self.fields.iter().all(|(path, equal, value)| (field(path) == value) == *equal)
    }
}

impl Requirement {
    fn holds(&self, labels: &Value) -> bool {
        let value = |key: &String| labels.get(key).and_then(Value::as_str);
        match self {
            Self::In(key, values) => value(key).is_some_and(|v| values.iter().any(|one| one == v)),
            Self::NotIn(key, values) => {
                !value(key).is_some_and(|v| values.iter().any(|one| one == v))
            }
            Self::Exists(key) => value(key).is_some(),
            Self::Absent(key) => value(key).is_none(),
        }
    }
}

/// Whether a `LabelSelector` (`matchLabels`, `matchExpressions`) takes an object with these labels.
pub(super) fn label_selector(selector: &Value, labels: &Value) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let strings = |values: &Value| -> Vec<String> {
        values.as_array().into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect()
    };
    let expression = |expression: &Value| {
        let key = expression["key"].as_str().unwrap_or_default().to_owned();
        let values = strings(&expression["values"]);
        let requirement = match expression["operator"].as_str() {
            Some("In") => Requirement::In(key, values),
            Some("NotIn") => Requirement::NotIn(key, values),
            Some("Exists") => Requirement::Exists(key),
            _ => Requirement::Absent(key),
        };
        requirement.holds(labels)
    };
    equal.into_iter().all(|(key, value)| labels.get(key) == Some(value))
        && selector["matchExpressions"].as_array().into_iter().flatten().all(expression)
}

/// Fields that a kind can be selected by.
fn selectable(kind: &Kind, path: &str) -> bool {
    let own: &[&str] = match kind.plural {
        "pods" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
        ],
        "nodes" => &["spec.unschedulable"],
        "namespaces" => &["status.phase"],
        "services" => &["spec.clusterIP", "spec.type"],
        "secrets" => &["type"],
        "events" => &["reason", "type", "regarding.name", "involvedObject.name"],
        _ => &[],
    };
    path == "metadata.name"
        || (kind.namespaced && path == "metadata.namespace")
        || own.contains(&path)
}

fn requirements(text: &str) -> Result<Vec<Requirement>, Refusal> {
    let mut found = Vec::new();
    for term in terms(text) {
        let term = term.trim();
        let requirement = if let Some(key) = term.strip_prefix('!') {
            Requirement::Absent(word(key)?)
        } else if let Some((key, values)) = term.split_once(" notin ") {
            Requirement::NotIn(word(key)?, set(values))
        } else if let Some((key, values)) = term.split_once(" in ") {
            Requirement::In(word(key)?, set(values))
        } else if let Some((key, value)) = term.split_once("!=") {
            Requirement::NotIn(word(key)?, vec![word(value)?])
        } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
            Requirement::In(word(key)?, vec![word(value)?])
        } else {
            Requirement::Exists(word(term)?)
        };
        found.push(requirement);
    }
    Ok(found)
}

/// Splits at commas outside of parentheses.
fn terms(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0_usize, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                found.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&text[start..]);
    found.retain(|term| !term.trim().is_empty());
    found
}

fn word(text: &str) -> Result<String, Refusal> {
    let text = text.trim();
    match text.chars().find(|c| "=!(),".contains(*c)) {
        Some(c) => {
            let message = format!("unable to parse requirement: found '{c}', expected: identifier");
            Err(status::bad_request(message))
        }
        None => Ok(text.to_owned()),
    }
}

fn set(text: &str) -> Vec<String> {
    let inner = text.trim().trim_start_matches('(').trim_end_matches(')');
    inner.split(',').map(|value| value.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::kinds, Selector, label_selector};

    #[test]
    fn labels_are_selected_as_kubectl_writes_them() {
        let pod = json!({"metadata": {"name": "a", "labels": {"app": "web", "tier": "front"}}});
        let matches = |text: &str| {
            let pods = kinds::plural("pods").unwrap();
            Selector::parse(pods, Some(text), None).unwrap().matches(&pod)
        };
        for (text, expected) in [
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app=db", false),
            ("app!=db", true),
            ("app in (db, web),tier", true),
            ("app notin (db,web)", false),
            ("!zone", true),
            ("zone", false),
            ("", true),
        ] {
            assert_eq!(matches(text), expected, "{text}");
        }
    }

    #[test]
    fn a_label_selector_object_needs_all_of_its_parts() {
        let selector = json!({"matchLabels": {"a": "1"}, "matchExpressions": [
            {"key": "b", "operator": "NotIn", "values": ["x"]}, {"key": "c", "operator": "Exists"}]});
        assert!(label_selector(&selector, &json!({"a": "1", "c": ""})));
        assert!(!label_selector(&selector, &json!({"a": "1", "b": "x", "c": ""})));
        assert!(!label_selector(&selector, &json!({"a": "1"})));
    }
}
