//! One manifest file: found, read, parsed, checked.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    Object, Problem,
    document::{self, Node},
    validate,
};
use crate::source::route::{self, Written};

/// Largest file that is read.
const MAX_BYTES: u64 = 16 << 20;
/// How deep directories may nest; a symbolic link in a circle ends here.
const MAX_DEPTH: usize = 16;

/// What a file holds. Parsed once and shared until the file changes.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) entries: Vec<Entry>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

/// An object and where it was written.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) object: Object,
    pub(super) file: Arc<Path>,
    pub(super) line: u64,
}

/// Changes whenever a file's content may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: Option<SystemTime>,
    len: u64,
    inode: u64,
}

impl Entry {
    /// A problem with this object.
    pub(super) fn problem(&self, field: &str, problem: String, mend: &str) -> Problem {
        Problem {
            file: self.file.to_path_buf(),
            line: self.line,
            field: field.to_owned(),
            problem,
            mend: mend.to_owned(),
        }
    }
}

/// All manifest files under a path, in a stable order. Hidden ones (editors' swap files, the
/// `..data` of a ConfigMap volume) are left out.
pub(super) fn find(root: &Path, files: &mut Vec<PathBuf>, problems: &mut Vec<Problem>) {
    match fs::metadata(root) {
        Ok(meta) if meta.is_file() => files.push(root.to_owned()),
        Ok(_) => walk(root, 0, files, problems),
        Err(error) => problems.push(unreadable(root, &error)),
    }
}

fn walk(dir: &Path, depth: usize, files: &mut Vec<PathBuf>, problems: &mut Vec<Problem>) {
    if depth > MAX_DEPTH {
        let mend = "flatten the tree or remove the circle of links";
        problems.push(whole_file(dir, "directories nest too deep", mend));
        return;
    }
    let mut entries: Vec<PathBuf> = match fs::read_dir(dir) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(error) => return problems.push(unreadable(dir, &error)),
    };
    entries.sort();
    for path in entries {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        // A dangling link or a file that is just gone is no manifest.
        let Ok(meta) = fs::metadata(&path) else { continue };
        let extension = path.extension().and_then(|extension| extension.to_str());
        if meta.is_dir() {
            walk(&path, depth + 1, files, problems);
        } else if meta.is_file() && matches!(extension, Some("yaml" | "yml" | "json")) {
            files.push(path);
        }
    }
}

/// The file's stamp; `None` where it is gone.
pub(super) fn stamp(path: &Path) -> Result<Option<Stamp>, Problem> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_BYTES => {
            Err(whole_file(path, &format!("larger than {MAX_BYTES} bytes"), "split it"))
        }
        Ok(meta) => {
            Ok(Some(Stamp { modified: meta.modified().ok(), len: meta.len(), inode: meta.ino() }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, &error)),
    }
}

/// Reads and parses a file; `None` where it is gone.
pub(super) fn read(path: &Path) -> Result<Option<Parsed>, Problem> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(path, &error)),
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(parse(path, &text))),
        Err(_) => Err(whole_file(path, "not UTF-8 text", "save it as UTF-8")),
    }
}

/// Parses a file's text.
pub(super) fn parse(path: &Path, text: &str) -> Parsed {
    let mut reading = Reading { file: path.into(), parsed: Parsed::default() };
    match document::parse(text) {
        Ok(documents) => documents.iter().for_each(|node| reading.document(node)),
        Err(error) => {
            reading.problem(error.line, "document", error.problem, error.mend.to_owned());
        }
    }
    reading.parsed
}

struct Reading {
    file: Arc<Path>,
    parsed: Parsed,
}

impl Reading {
    fn document(&mut self, node: &Node) {
        if !node.is_mapping() {
            let mend = "write apiVersion, kind and metadata".to_owned();
            return self.problem(node.line, "document", "not an object".to_owned(), mend);
        }
        let (Some(version), Some(kind)) = (self.text(node, "apiVersion"), self.text(node, "kind"))
        else {
            return;
        };
        if let Some((route::GROUP, _)) = version.split_once('/') {
            return self.gateway(node, version, kind);
        }
        match (version, kind) {
            ("v1", "List") => {
                for item in node.field("items").and_then(Node::items).unwrap_or_default() {
                    self.document(item);
                }
            }
            ("v1", "Namespace") => self.object(node, Object::Namespace),
            ("v1", "Service") => self.object(node, Object::Service),
            ("v1", "Pod") => self.object(node, Object::Pod),
            ("apps/v1", "Deployment") => self.object(node, Object::Deployment),
            ("discovery.k8s.io/v1", "EndpointSlice") => self.object(node, Object::EndpointSlice),
            (_, "Namespace" | "Service" | "Pod" | "Deployment" | "EndpointSlice")
                if !version.contains('.') || version.starts_with("discovery.k8s.io/") =>
            {
                let right = match kind {
                    "Deployment" => "apps/v1",
                    "EndpointSlice" => "discovery.k8s.io/v1",
                    _ => "v1",
                };
                let problem = format!("{version:?} has no {kind}");
                let line = node.line_of("apiVersion");
                self.problem(line, "apiVersion", problem, format!("use {right}"));
            }
            _ => self.left_out(node, version, kind),
        }
    }

    /// Of Gateway API. Its versions differ in no field that is read here.
    fn gateway(&mut self, node: &Node, version: &str, kind: &str) {
        match kind {
            "HTTPRoute" => self.written(node, Object::HttpRoute),
            "GRPCRoute" => self.written(node, Object::GrpcRoute),
            "TLSRoute" => self.written(node, Object::TlsRoute),
            "TCPRoute" => self.written(node, Object::TcpRoute),
            "ReferenceGrant" => self.written(node, Object::ReferenceGrant),
            _ => self.left_out(node, version, kind),
        }
    }

    fn left_out(&mut self, node: &Node, version: &str, kind: &str) {
        let problem = format!("{version} {kind} is not used here and left out");
        let mend = "nothing to do if it is meant for a cluster".to_owned();
        let warning = self.at(node.line_of("kind"), "kind", problem, mend);
        self.parsed.warnings.push(warning);
    }

    fn object<K>(&mut self, node: &Node, wrap: impl FnOnce(Arc<K>) -> Object)
    where
        K: DeserializeOwned + Serialize + k8s_openapi::Metadata<Ty = ObjectMeta>,
    {
        self.typed(node, K::metadata_mut, wrap);
    }

    fn written<S>(&mut self, node: &Node, wrap: impl FnOnce(Arc<Written<S>>) -> Object)
    where
        S: DeserializeOwned + Serialize,
    {
        self.typed(node, |object: &mut Written<S>| &mut object.metadata, wrap);
    }

    fn typed<K: DeserializeOwned + Serialize>(
        &mut self,
        node: &Node,
        metadata: impl FnOnce(&mut K) -> &mut ObjectMeta,
        wrap: impl FnOnce(Arc<K>) -> Object,
    ) {
        let value = node.to_value();
        let mut typed: K = match serde_path_to_error::deserialize(&value) {
            Ok(typed) => typed,
            Err(error) => {
                let field = error.path().to_string();
                let problem = error.inner().to_string();
                let mend = mend_for_type(&problem);
                return self.problem(node.line_of(&field), &field, problem, mend.to_owned());
            }
        };
        let cluster_scoped = node.field("kind").and_then(Node::text) == Some("Namespace");
        let namespace = &mut metadata(&mut typed).namespace;
        match cluster_scoped {
            true => *namespace = None,
            false => _ = namespace.get_or_insert_with(|| "default".to_owned()),
        }
        if let Ok(known) = serde_json::to_value(&typed) {
            self.unknown_fields(node, &value, &known, "");
        }
        let object = wrap(Arc::new(typed));
        let findings = validate::check(&object);
        if findings.is_empty() {
            let line = node.line;
            self.parsed.entries.push(Entry { object, file: Arc::clone(&self.file), line });
        }
        for finding in findings {
            let line = node.line_of(&finding.field);
            self.problem(line, &finding.field, finding.problem, finding.mend);
        }
    }

    /// A field that did not survive the round trip through the type is a slip of the pen.
    fn unknown_fields(&mut self, node: &Node, written: &Value, known: &Value, at: &str) {
        match (written, known) {
            (Value::Object(written), Value::Object(known)) => {
                for (key, value) in written {
                    let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                    match known.get(key) {
                        Some(known) => self.unknown_fields(node, value, known, &path),
                        None if is_empty(value) => {}
                        None => {
                            let mend = "correct or remove it".to_owned();
                            let problem = "unknown field, ignored".to_owned();
                            let warning = self.at(node.line_of(&path), &path, problem, mend);
                            self.parsed.warnings.push(warning);
                        }
                    }
                }
            }
            (Value::Array(written), Value::Array(known)) => {
                for (i, (value, known)) in written.iter().zip(known).enumerate() {
                    self.unknown_fields(node, value, known, &format!("{at}[{i}]"));
                }
            }
            _ => {}
        }
    }

    fn text<'n>(&mut self, node: &'n Node, field: &str) -> Option<&'n str> {
        let text = node.field(field).and_then(Node::text);
        if text.is_none() {
            let problem = "missing or not a string".to_owned();
            self.problem(node.line_of(field), field, problem, format!("add {field}"));
        }
        text
    }

    fn problem(&mut self, line: u64, field: &str, problem: String, mend: String) {
        let problem = self.at(line, field, problem, mend);
        self.parsed.problems.push(problem);
    }

    fn at(&self, line: u64, field: &str, problem: String, mend: String) -> Problem {
        Problem { file: self.file.to_path_buf(), line, field: field.to_owned(), problem, mend }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn mend_for_type(problem: &str) -> &'static str {
    let expected = problem.rsplit("expected").next().unwrap_or_default();
    if problem.contains("missing field") {
        "add it"
    } else if expected.contains("string") {
        "write a string (numbers, true and false in quotes)"
    } else if expected.contains("i32") || expected.contains("i64") {
        "write a whole number without quotes"
    } else if expected.contains("bool") {
        "write true or false without quotes"
    } else if expected.contains("sequence") || expected.contains("array") {
        "write a list"
    } else {
        "see the field in the Kubernetes API reference"
    }
}

fn whole_file(path: &Path, problem: &str, mend: &str) -> Problem {
    Problem {
        file: path.to_owned(),
        line: 1,
        field: "file".to_owned(),
        problem: problem.to_owned(),
        mend: mend.to_owned(),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    let mend = match error.kind() {
        io::ErrorKind::NotFound => "create it or correct the path",
        io::ErrorKind::PermissionDenied => "make it readable for this user",
        _ => "make it readable",
    };
    whole_file(path, &format!("cannot be read ({error})"), mend)
}
