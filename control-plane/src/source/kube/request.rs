//! One list request, one watch request, and what can go wrong with them.

use std::{error::Error, fmt::Write, time::Duration};

use http::{StatusCode, header::RETRY_AFTER};
use http_body_util::BodyExt;
use kube::{
    Client,
    client::Body,
    core::{
        Request, Status, WatchEvent,
        params::{ListParams, WatchParams},
    },
};
use serde::{Deserialize, Deserializer};
use tokio::time::timeout;

use super::kinds::{Reduced, Watched};

/// Objects in one page of a list.
const PAGE: u32 = 250;
/// Largest page that is read. An object has at most 1.5 MiB by etcd's default.
const MAX_PAGE: usize = 512 << 20;
/// Longest line of a watch: one object.
const MAX_LINE: usize = 16 << 20;
/// Largest error message that is read.
const MAX_MESSAGE: usize = 64 << 10;
/// Time for one page, and for the head of a watch. The API server gives up after 60 s itself.
const ANSWER: Duration = Duration::from_secs(70);

/// Why a request brought nothing, or a watch broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{code} {message}")]
    Refused { code: u16, message: String, retry_after: Option<Duration> },
    #[error("no connection to the API server ({0})")]
    Unreachable(String),
    #[error("the connection broke ({0})")]
    Broken(String),
    #[error("no answer within {} s", ANSWER.as_secs())]
    Slow,
    #[error("an answer that is no JSON of the expected kind ({0})")]
    Nonsense(#[from] serde_json::Error),
    #[error("an answer longer than {0} bytes")]
    Long(usize),
    #[error("an answer without a resourceVersion")]
    Versionless,
}

impl Failure {
    /// Whether there is no such kind.
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }

    /// Whether what was asked for is forgotten, so that only a new list helps.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Refused { code: 410, .. })
    }

    /// How long the API asks to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// What to do about it, where `verb` was asked of the kind with this path.
    pub(super) fn mend(&self, verb: &str, plural: &str) -> String {
        match self {
            Self::Refused { code: 403, .. } => format!(
                "grant the verb {verb} on {plural}: kubectl apply the ClusterRole remora-control-plane and its binding"
            ),
            Self::Refused { code: 401, .. } => {
                "check the credentials: the token or certificate is not of this cluster, or has expired"
                    .to_owned()
            }
            Self::Refused { code: 404, .. } => {
                format!("check that this is an API server of Kubernetes 1.29 or newer: it has no {plural}")
            }
            Self::Refused { code: 429, .. } => {
                "wait; if it stays, see the API server's priority and fairness".to_owned()
            }
            Self::Refused { .. } | Self::Slow | Self::Broken(_) => {
                "wait; if it stays, see the API server's health (kubectl get --raw /readyz?verbose)"
                    .to_owned()
            }
            Self::Unreachable(why) if why.contains("certificate") => {
                "check the CA certificate in the kubeconfig or the ServiceAccount's volume".to_owned()
            }
            Self::Unreachable(_) => {
                "check that the API server runs and that no NetworkPolicy keeps this pod from it"
                    .to_owned()
            }
            Self::Nonsense(_) | Self::Long(_) | Self::Versionless => {
                "check what answers under the API server's address".to_owned()
            }
        }
    }
}

/// A page of a list.
#[derive(Deserialize)]
#[serde(bound = "K: Watched")]
pub(super) struct Page<K: Watched> {
    metadata: PageMeta,
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) items: Vec<Reduced<K>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    more: Option<String>,
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl<K: Watched> Page<K> {
    /// Where the next page begins; `None` on the last.
    pub(super) fn more(&self) -> Option<&str> {
        self.metadata.more.as_deref().filter(|token| !token.is_empty())
    }

    /// What a watch continues from.
    pub(super) fn version(&self) -> Option<&str> {
        self.metadata.resource_version.as_deref().filter(|version| !version.is_empty())
    }
}

/// Asks for a page; the first, or the one that a token names.
pub(super) async fn page<K: Watched>(
    client: &Client,
    path: &str,
    more: Option<&str>,
) -> Result<Page<K>, Failure> {
    let params = ListParams {
        limit: Some(PAGE),
        continue_token: more.map(str::to_owned),
        ..ListParams::default()
    };
    let request = Request::new(path);
    let request =
        if K::METADATA_ONLY { request.list_metadata(&params) } else { request.list(&params) };
    let answer = async {
        let body = send(client, request).await?;
        let text = collect(body, MAX_PAGE).await?;
        Ok(serde_json::from_slice(&text)?)
    };
    timeout(ANSWER, answer).await.unwrap_or(Err(Failure::Slow))
}

/// Opens a watch that continues from a version and that the API ends after `lifetime`.
pub(super) async fn open<K: Watched>(
    client: &Client,
    path: &str,
    version: &str,
    lifetime: Duration,
) -> Result<Lines, Failure> {
    let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
    let params = WatchParams { bookmarks: true, timeout: Some(seconds), ..WatchParams::default() };
    let request = Request::new(path);
    let request = if K::METADATA_ONLY {
        request.watch_metadata(&params, version)
    } else {
        request.watch(&params, version)
    };
    let body = timeout(ANSWER, send(client, request)).await.unwrap_or(Err(Failure::Slow))?;
    Ok(Lines { body, text: Vec::new(), start: 0 })
}

/// The body of a watch, line by line.
pub(super) struct Lines {
    body: Body,
    text: Vec<u8>,
    /// Where what has not been given out begins.
    start: usize,
}

impl Lines {
    /// The next event; `None` at the end. What follows the last line feed is a line that broke
    /// off: it will come again.
    pub(super) async fn next<K: Watched>(
        &mut self,
    ) -> Result<Option<WatchEvent<Reduced<K>>>, Failure> {
        let mut searched = self.start;
        loop {
            let found = self.text[searched..].iter().position(|byte| *byte == b'\n');
            if let Some(found) = found {
                let line = &self.text[self.start..searched + found];
                self.start = searched + found + 1;
                searched = self.start;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(serde_json::from_slice(line)?));
            }
            self.text.drain(..self.start);
            self.start = 0;
            // One large object must not leave a large buffer behind.
            if self.text.is_empty() {
                self.text.shrink_to(MAX_MESSAGE);
            }
            searched = self.text.len();
            if searched > MAX_LINE {
                return Err(Failure::Long(MAX_LINE));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| Failure::Broken(said(&error)))?;
            self.text.extend_from_slice(frame.data_ref().map_or(&[], AsRef::as_ref));
        }
    }
}

async fn send(
    client: &Client,
    request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
) -> Result<Body, Failure> {
    let request = request.map_err(|error| Failure::Unreachable(chain(&error)))?;
    let response = client.send(request.map(Body::from)).await;
    let response = response.map_err(|error| Failure::Unreachable(said(&error)))?;
    let (head, body) = response.into_parts();
    if head.status == StatusCode::OK {
        return Ok(body);
    }
    let retry_after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = retry_after.and_then(|seconds| seconds.parse().ok());
    let text = timeout(ANSWER, collect(body, MAX_MESSAGE)).await.map_or(Ok(Vec::new()), |t| t);
    Err(Failure::Refused {
        code: head.status.as_u16(),
        message: message(head.status, &text.unwrap_or_default()),
        retry_after: retry_after.map(Duration::from_secs),
    })
}

/// A Status says it in a sentence; anything else (a gateway's page, plain text) by its first line.
fn message(status: StatusCode, text: &[u8]) -> String {
    if let Ok(Status { message, .. }) = serde_json::from_slice(text)
        && !message.is_empty()
    {
        return message;
    }
    let text = String::from_utf8_lossy(text);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    let line = line.or(status.canonical_reason()).unwrap_or("without a reason");
    line.chars().take(200).collect()
}

async fn collect(mut body: Body, most: usize) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::Broken(said(&error)))?;
        text.extend_from_slice(frame.data_ref().map_or(&[], AsRef::as_ref));
        if text.len() > most {
            return Err(Failure::Long(most));
        }
    }
    Ok(text)
}

/// What the client says; the causes say more than its wrapper.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Service(cause) => chain(&**cause),
        other => chain(other),
    }
}

/// An error and its causes in one line: the outer ones seldom say what happened.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {said}");
        }
        cause = error.source();
    }
    text
}
