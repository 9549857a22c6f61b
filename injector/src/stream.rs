//! Sidecars for every object of a multi-document YAML text (`remora inject -f FILE`).

use std::{collections::BTreeMap, fmt};

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::{
    decide::{Decision, NamespaceInfo, Scope, Settings, decide},
    inject::inject_value,
};

/// The text with sidecars, and what became of each object that makes pods.
#[derive(Debug, Clone, PartialEq)]
pub struct InjectedStream {
    /// The documents. Those without a new sidecar are as they were, byte for byte; the others keep
    /// the comments before their first line only, and have their fields in alphabetical order.
    pub text: String,
    /// One entry for each object that makes pods, in the order of the text.
    pub report: Vec<ObjectReport>,
}

/// What became of one object.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectReport {
    /// For example `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What was decided.
    pub decision: Decision,
}

impl fmt::Display for ObjectReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.kind, self.name)?;
        match &self.decision {
            Decision::Inject(plan) => {
                f.write_str(match plan.scope {
                    Scope::Sidecar => "injected",
                    Scope::Probes => "had a sidecar, probes that came later pointed at it",
                })?;
                plan.warnings.iter().try_for_each(|warning| write!(f, "; warning: {warning}"))
            }
            Decision::Skip(reason) => write!(f, "{reason}"),
            Decision::Refuse(refusal) => write!(f, "refused: {refusal}"),
        }
    }
}

/// A document that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// It is no YAML.
    #[error("line {line}: not valid YAML: {problem}")]
    Yaml {
        /// Line, counted from 1.
        line: usize,
        /// The parser's words.
        problem: String,
    },
    /// It claims to make pods, but what should be a pod is none.
    #[error("line {line}: {kind} {name}: {field} is no pod: {problem}")]
    NotAPod {
        /// First line of the document, counted from 1.
        line: usize,
        /// Kind of the object.
        kind: String,
        /// Name of the object.
        name: String,
        /// Path to the pod in it.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The result cannot be written.
    #[error("line {line}: cannot write the document as YAML: {problem}")]
    Write {
        /// First line of the document, counted from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

/// Puts sidecars into Pods, workloads and Lists of them.
///
/// `namespace` holds for objects that name none. Annotations of a namespace come from the text,
/// where a Namespace document is in it, and else from `annotations`.
///
/// # Errors
/// Where a document cannot be read; nothing is then returned.
pub fn inject_stream(
    text: &str,
    namespace: &str,
    annotations: &BTreeMap<String, String>,
    settings: &Settings,
) -> Result<InjectedStream, StreamError> {
    let mut documents = Vec::new();
    let mut line = 1;
    for chunk in split(text) {
        let value = parse(chunk, line)?;
        documents.push((line, chunk, value));
        line += chunk.matches('\n').count();
    }
    let mut namespaces = BTreeMap::new();
    for (_, _, value) in &documents {
        collect_namespaces(value, annotations, &mut namespaces);
    }
    let mut work = Work { namespace, annotations, namespaces, settings, report: Vec::new() };
    let mut out = String::with_capacity(text.len());
    for (line, chunk, mut value) in documents {
        if work.object(&mut value, line)? {
            let body = serde_saphyr::to_string(&value)
                .map_err(|e| StreamError::Write { line, problem: e.to_string() })?;
            out.push_str(preamble(chunk));
            out.push_str(body.trim_end());
            out.push('\n');
        } else {
            out.push_str(chunk);
        }
    }
    Ok(InjectedStream { text: out, report: work.report })
}

/// Reads a document as kubectl does: with the octal numbers of YAML 1.1, as in `0644`.
fn parse(document: &str, first_line: usize) -> Result<Value, StreamError> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let value = serde_saphyr::from_str_with_options::<Option<Value>>(document, options);
    value.map(Option::unwrap_or_default).map_err(|error| {
        let error = error.without_snippet();
        let within = error.location().map_or(1, |at| usize::try_from(at.line()).unwrap_or(1));
        let line = first_line + within.saturating_sub(1);
        let problem = error.to_string();
        StreamError::Yaml { line, problem: problem.lines().next().unwrap_or_default().to_owned() }
    })
}

struct Work<'a> {
    namespace: &'a str,
    annotations: &'a BTreeMap<String, String>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    settings: &'a Settings,
    report: Vec<ObjectReport>,
}

impl Work<'_> {
    /// Whether the object was changed.
    fn object(&mut self, object: &mut Value, line: usize) -> Result<bool, StreamError> {
        let kind = text_at(object, &["kind"]).unwrap_or_default().to_owned();
        if kind.ends_with("List")
            && let Some(items) = object.get_mut("items").and_then(Value::as_array_mut)
        {
            let mut changed = false;
            for item in items {
                changed |= self.object(item, line)?;
            }
            return Ok(changed);
        }
        let version = text_at(object, &["apiVersion"]).unwrap_or_default();
        let Some((field, path)) = template_path(version, &kind) else { return Ok(false) };
        let name =
            ["name", "generateName"].iter().find_map(|key| text_at(object, &["metadata", key]));
        let name = name.unwrap_or_default().to_owned();
        let namespace = text_at(object, &["metadata", "namespace"]).unwrap_or(self.namespace);
        let namespace = NamespaceInfo {
            name: namespace.to_owned(),
            annotations: self.namespaces.get(namespace).unwrap_or(self.annotations).clone(),
        };
        let fail = |problem: String| StreamError::NotAPod {
            line,
            kind: kind.clone(),
            name: name.clone(),
            field,
            problem,
        };
        let template = path
            .iter()
            .try_fold(object, |at, key| at.get_mut(key))
            .ok_or_else(|| fail("there is none".to_owned()))?;
        let pod = parse_pod(template).map_err(fail)?;
        let decision = decide(&pod, &namespace, self.settings);
        let changed = if let Decision::Inject(plan) = &decision {
            inject_value(template, plan, self.settings);
            true
        } else {
            false
        };
        self.report.push(ObjectReport { kind, name, decision });
        Ok(changed)
    }
}

/// A template has no kind of its own, and what says Pod in it would be an error.
fn parse_pod(template: &Value) -> Result<Pod, String> {
    let pick = |key: &str| template.get(key).filter(|v| !v.is_null()).cloned();
    let mut pod = serde_json::Map::new();
    for key in ["metadata", "spec"] {
        if let Some(value) = pick(key) {
            pod.insert(key.to_owned(), value);
        }
    }
    if !pod.contains_key("spec") {
        return Err("field spec is missing".to_owned());
    }
    serde_json::from_value(Value::Object(pod)).map_err(|e| e.to_string())
}

/// Where a Kubernetes object keeps its pod; others' kinds may have the same names.
fn template_path(version: &str, kind: &str) -> Option<(&'static str, &'static [&'static str])> {
    match (version.split('/').next().unwrap_or_default(), kind) {
        ("v1", "Pod") => Some(("the object", &[])),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("v1", "ReplicationController")
        | ("batch", "Job") => Some(("spec.template", &["spec", "template"])),
        ("batch", "CronJob") => {
            Some(("spec.jobTemplate.spec.template", &["spec", "jobTemplate", "spec", "template"]))
        }
        _ => None,
    }
}

/// Annotations of the Namespaces in the text; what they leave unsaid is as on the command line.
fn collect_namespaces(
    object: &Value,
    defaults: &BTreeMap<String, String>,
    into: &mut BTreeMap<String, BTreeMap<String, String>>,
) {
    if let Some(items) = object.get("items").and_then(Value::as_array) {
        items.iter().for_each(|item| collect_namespaces(item, defaults, into));
    }
    let (Some("Namespace"), Some(name)) =
        (text_at(object, &["kind"]), text_at(object, &["metadata", "name"]))
    else {
        return;
    };
    let mut annotations = defaults.clone();
    let own = object.get("metadata").and_then(|m| m.get("annotations")).and_then(Value::as_object);
    for (key, value) in own.into_iter().flatten() {
        if let Some(value) = value.as_str() {
            annotations.insert(key.clone(), value.to_owned());
        }
    }
    into.insert(name.to_owned(), annotations);
}

fn text_at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a str> {
    path.iter().try_fold(object, |at, key| at.get(key)).and_then(Value::as_str)
}

/// The documents with their markers: each but the first begins with its `---` line. A line of YAML
/// that begins so is always a marker, in block scalars too (YAML 1.2 §9.1.2).
fn split(text: &str) -> Vec<&str> {
    let mut starts = vec![0];
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if at > 0 && is_marker(line) {
            starts.push(at);
        }
        at += line.len();
    }
    starts.push(text.len());
    starts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Marker, comments and empty lines before the document's first line.
fn preamble(chunk: &str) -> &str {
    let mut end = 0;
    for line in chunk.split_inclusive('\n') {
        let rest = if is_marker(line) { &line[3..] } else { line }.trim();
        if !(rest.is_empty() || rest.starts_with('#')) {
            break;
        }
        end += line.len();
    }
    &chunk[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use remora_core::names::annotations::INJECT;

    fn run(text: &str) -> InjectedStream {
        let asked = BTreeMap::from([(INJECT.to_owned(), "enabled".to_owned())]);
        inject_stream(text, "default", &asked, &Settings::default()).unwrap()
    }

    const SERVICE: &str = "# a Service\nkind: Service\nmetadata: {name: web} # odd   spacing\n";
    const POD: &str = "---\n# a Pod\napiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: app}]}\n";

    #[test]
    fn documents_without_pods_stay_byte_for_byte() {
        let out = run(&format!("{SERVICE}{POD}---\n{SERVICE}"));
        assert!(out.text.starts_with(SERVICE) && out.text.ends_with(&format!("---\n{SERVICE}")));
        assert!(out.text.contains("---\n# a Pod\n") && out.text.contains("remora-proxy"));
        assert_eq!(out.report.len(), 1);
        assert_eq!(out.report[0].to_string(), "Pod web: injected");
    }

    #[test]
    fn a_second_run_changes_nothing() {
        let once = run(&format!("{SERVICE}{POD}"));
        let twice = run(&once.text);
        assert_eq!(twice.text, once.text);
    }

    #[test]
    fn a_namespace_in_the_text_says_for_its_pods() {
        let namespace = format!(
            "kind: Namespace\nmetadata: {{name: default, annotations: {{{INJECT}: disabled}}}}\n"
        );
        let text = format!("{POD}---\n{namespace}");
        let out = run(&text);
        assert_eq!(out.text, text);
        assert_eq!(
            out.report[0].to_string(),
            "Pod web: no sidecar: namespace default has the annotation remora.io/inject: disabled"
        );
    }

    #[test]
    fn numbers_mean_what_kubectl_reads() {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: app}]\n  \
                   volumes: [{name: keys, secret: {secretName: keys, defaultMode: 0640}}]\n";
        assert!(run(pod).text.contains("defaultMode: 416\n"), "{}", run(pod).text);
    }

    #[test]
    fn kinds_of_other_groups_are_not_workloads() {
        let job = "apiVersion: batch.volcano.sh/v1alpha1\nkind: Job\nmetadata: {name: train}\n";
        assert_eq!(run(job), InjectedStream { text: job.to_owned(), report: Vec::new() });
    }

    #[test]
    fn errors_name_line_and_field() {
        let error = |text: &str| {
            let none = BTreeMap::new();
            inject_stream(text, "default", &none, &Settings::default()).unwrap_err().to_string()
        };
        let bad = error(&format!("{SERVICE}---\nkind: Pod: x\n"));
        assert!(bad.starts_with("line 5: not valid YAML: "), "{bad}");
        let bad = error(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 1}\n",
        );
        assert_eq!(bad, "line 1: Deployment web: spec.template is no pod: there is none");
        let bad =
            error("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: 3}\n");
        assert!(bad.starts_with("line 1: Pod web: the object is no pod:"), "{bad}");
    }
}
