//! What a request is about: its path, query and headers.

use std::collections::BTreeMap;

use http::{HeaderMap, Method, header};

use super::{
    access::Asked,
    kinds::{self, KINDS, Kind},
    status::{self, Refusal},
};

/// A request for one object or many of a kind.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) kind: &'static Kind,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) subresource: Option<String>,
    /// What follows the subresource: the path of a proxied request.
    pub(super) rest: String,
}

/// The path of a request.
#[derive(Debug)]
pub(super) enum Path {
    /// Objects.
    Objects(Target),
    /// A review, which is created and stored nowhere: its plural.
    Review(&'static str),
    /// Anything else: discovery, health, version.
    Other,
}

const REVIEWS: [(&str, &str); 2] = [
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
];

impl Path {
    pub(super) fn parse(path: &str) -> Result<Self, Refusal> {
        let segments: Vec<String> =
            path.split('/').filter(|segment| !segment.is_empty()).map(decoded).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (group, version, rest) = match segments.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Ok(Self::Other),
        };
        if rest.is_empty() {
            return Ok(Self::Other);
        }
        if let Some((_, plural)) = REVIEWS.iter().find(|(g, p)| *g == group && rest == [*p]) {
            return Ok(Self::Review(plural));
        }
        let served = |kind: &Kind| (kind.group, kind.version) == (group, version);
        if !KINDS.iter().any(served) {
            return Err(status::unknown_path());
        }
        let (namespace, rest) = match rest {
            ["namespaces", name] | ["namespaces", name, "status" | "finalize"] => {
                (None, &["namespaces", name][..rest.len().min(2)])
            }
            ["namespaces", namespace, rest @ ..] => (Some((*namespace).to_owned()), rest),
            rest => (None, rest),
        };
        let [plural, rest @ ..] = rest else { return Err(status::unknown_path()) };
        let kind = kinds::find(group, version, plural).ok_or_else(status::unknown_resource)?;
        let (name, subresource, rest) = match rest {
            [] => (None, None, String::new()),
            [name] => (Some(name), None, String::new()),
            [name, subresource, rest @ ..] => (Some(name), Some(subresource), rest.join("/")),
        };
        Ok(Self::Objects(Target {
            kind,
            namespace,
            name: name.map(|name| (*name).to_owned()),
            subresource: subresource.map(|sub| (*sub).to_owned()),
            rest,
        }))
    }
}

/// The parameters of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key), decoded(value))
        };
        Self(query.split('&').filter(|part| !part.is_empty()).map(pair).collect())
    }

    /// A parameter that is there and not empty.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        matches!(self.text(key), Some("true" | "1" | "True"))
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.text(key)?.parse().ok()
    }

    pub(super) fn dry_run(&self) -> bool {
        self.text("dryRun").is_some()
    }

    /// The same, with nothing stored.
    pub(super) fn for_trial(&self) -> Self {
        let mut parameters = self.0.clone();
        parameters.insert("dryRun".to_owned(), "All".to_owned());
        Self(parameters)
    }
}

impl Target {
    /// What is asked for in the words of an authorizer.
    pub(super) fn asked(&self, user: &str, method: &Method, query: &Query) -> Asked {
        let watch = query.flag("watch");
        let verb = match (method, &self.name) {
            (&Method::GET, Some(_)) => "get",
            (&Method::GET, None) if watch => "watch",
            (&Method::GET, None) => "list",
            (&Method::POST, _) => "create",
            (&Method::PUT, _) => "update",
            (&Method::PATCH, _) => "patch",
            (&Method::DELETE, Some(_)) => "delete",
            (&Method::DELETE, None) => "deletecollection",
            _ => "",
        };
        // One object picked by a field selector is asked for by its name.
        let picked = query.text("fieldSelector").and_then(|fields| {
            fields.split(',').find_map(|field| field.strip_prefix("metadata.name="))
        });
        let name = self.name.clone().or_else(|| picked.map(str::to_owned));
        Asked {
            user: user.to_owned(),
            verb: verb.to_owned(),
            group: self.kind.group.to_owned(),
            resource: self.kind.plural.to_owned(),
            subresource: self.subresource.clone(),
            namespace: self.namespace.clone(),
            name,
        }
    }
}

/// Whether the client wants metadata only; an `as=` that is not known is refused.
pub(super) fn metadata_only(headers: &HeaderMap) -> Result<bool, Refusal> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let Some(accept) = accept else { return Ok(false) };
    for choice in accept.split(',') {
        let mut parts = choice.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameters: BTreeMap<&str, &str> =
            parts.filter_map(|part| part.split_once('=')).collect();
        let (wanted, version) = (parameters.get("as"), parameters.get("v"));
        match (media, wanted.copied()) {
            ("application/json" | "*/*" | "application/*", None) => return Ok(false),
            ("application/json", Some("PartialObjectMetadata" | "PartialObjectMetadataList"))
                if version == Some(&"v1") =>
            {
                return Ok(true);
            }
            _ => {}
        }
    }
    Err(status::not_acceptable())
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, hex) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}
