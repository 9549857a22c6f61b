//! Reading from the API server, bounded: a time limit for each call, few calls at a time, bodies and
//! lists of a limited size. What cannot be read is a fact of its own, never the end of the check.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::jiff::fmt::rfc2822;
use kube::{Client, client::Body};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{sync::Semaphore, time::Instant};

/// Patience with one call.
const CALL: Duration = Duration::from_secs(5);
/// A call that waits for an admission webhook: its time-out and ours.
const SLOW_CALL: Duration = Duration::from_secs(15);
/// Calls at a time.
const CONCURRENCY: usize = 8;
/// Largest answer.
const MAX_BODY: usize = 32 << 20;
/// Items of a page.
const PAGE: usize = 250;
/// Longest text of somebody else in one of our messages, in characters.
const MAX_CAUSE: usize = 400;

/// Something read, or why not.
pub(crate) type Read<T> = Result<T, Unread>;

/// Why something could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unread {
    /// The API server says no.
    #[error("that needs the permission to {need}")]
    Forbidden {
        /// Verb, resource and namespace.
        need: String,
    },
    /// There is no such object.
    #[error("not found")]
    Absent,
    /// No answer, or not one that can be used.
    #[error("{cause}")]
    Failed {
        /// In the words of whoever failed.
        cause: String,
    },
}

impl Unread {
    pub(crate) fn failed(cause: impl std::fmt::Display) -> Self {
        Self::Failed { cause: shortened(&cause.to_string()) }
    }
}

/// Somebody else's text on one line and not too long.
pub(crate) fn shortened(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_CAUSE) {
        None => line,
        Some((at, _)) => format!("{}…", &line[..at]),
    }
}

/// What a server's clock said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Clock {
    /// Unix time in seconds.
    pub(crate) now: i64,
    /// Seconds that it is ahead of this machine's; its Date has whole seconds, hence ± 0.5.
    pub(crate) ahead: f64,
}

/// An answer of any status.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) clock: Option<Clock>,
    pub(crate) took: Duration,
    json: bool,
    body: Bytes,
}

impl Answer {
    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as an object.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Read<T> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Unread::failed(format_args!("not the JSON expected: {error}")))
    }

    /// The message of a Status, which is what the API server itself says where it refuses.
    pub(crate) fn refusal(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Status {
            kind: String,
            message: Option<String>,
        }
        let status: Status = self.json.then(|| serde_json::from_slice(&self.body).ok())??;
        (status.kind == "Status").then(|| shortened(&status.message.unwrap_or_default()))
    }

    /// The answer if it is a success.
    fn success(self, need: &str) -> Read<Self> {
        if self.status.is_success() {
            return Ok(self);
        }
        let said = self.refusal().unwrap_or_else(|| shortened(&self.text()));
        Err(match self.status {
            StatusCode::FORBIDDEN => Unread::Forbidden { need: need.to_owned() },
            StatusCode::NOT_FOUND => Unread::Absent,
            StatusCode::UNAUTHORIZED => Unread::failed(
                "the API server does not know who asks (401): log in again, or choose another \
                 --context",
            ),
            status => Unread::failed(format_args!("{said} (HTTP {})", status.as_u16())),
        })
    }
}

/// A list, possibly cut.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Listed<T> {
    pub(crate) items: Vec<T>,
    /// There are more than were looked at.
    pub(crate) cut: bool,
}

/// The API server, as one person sees it.
pub(crate) struct Reader {
    client: Client,
    clock: fn() -> SystemTime,
    permits: Semaphore,
}

impl Reader {
    pub(crate) fn new(client: Client, clock: fn() -> SystemTime) -> Self {
        Self { client, clock, permits: Semaphore::new(CONCURRENCY) }
    }

    /// Unix time of this machine in seconds.
    pub(crate) fn local_now(&self) -> i64 {
        seconds((self.clock)()) as i64
    }

    /// One object. `need` says in words which permission that takes: `get secrets in shop`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str, need: &str) -> Read<T> {
        self.raw(Method::GET, path, None, CALL).await?.success(need)?.parse()
    }

    /// One object and the clock of who answered.
    pub(crate) async fn get_timed<T: DeserializeOwned>(
        &self,
        path: &str,
        need: &str,
    ) -> Read<(T, Option<Clock>)> {
        let answer = self.raw(Method::GET, path, None, CALL).await?.success(need)?;
        Ok((answer.parse()?, answer.clock))
    }

    /// A text, such as a container's log.
    pub(crate) async fn text(&self, path: &str, need: &str) -> Read<String> {
        Ok(self.raw(Method::GET, path, None, SLOW_CALL).await?.success(need)?.text())
    }

    /// What the API server makes of an object, such as an access review.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        object: &Value,
        need: &str,
    ) -> Read<T> {
        self.raw(Method::POST, path, Some(object), CALL).await?.success(need)?.parse()
    }

    /// The answer to a creation, whatever it is; admission may take a while.
    pub(crate) async fn create(&self, path: &str, object: &Value) -> Read<Answer> {
        self.raw(Method::POST, path, Some(object), SLOW_CALL).await
    }

    /// A list, page by page, each item reduced as soon as it is there; looks at `most` items.
    pub(crate) async fn list<T: DeserializeOwned, U>(
        &self,
        path: &str,
        need: &str,
        most: usize,
        reduce: impl Fn(T) -> Option<U>,
    ) -> Read<Listed<U>> {
        let (mut items, mut seen, mut token) = (Vec::new(), 0, String::new());
        loop {
            let join = if path.contains('?') { '&' } else { '?' };
            let next = if token.is_empty() { String::new() } else { format!("&continue={token}") };
            let path = format!("{path}{join}limit={PAGE}{next}");
            let page: Page<T> = self.get(&path, need).await?;
            let page_items = page.items.unwrap_or_default();
            seen += page_items.len();
            items.extend(page_items.into_iter().filter_map(&reduce));
            token = page.metadata.r#continue.unwrap_or_default();
            if token.is_empty() || seen >= most {
                return Ok(Listed { items, cut: !token.is_empty() });
            }
        }
    }

    /// What a pod's own port answers, through the API server; any status is an answer.
    pub(crate) async fn pod(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
        path: &str,
    ) -> Read<Answer> {
        let url = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}");
        let answer = self.raw(Method::GET, &url, None, CALL).await?;
        // A Status comes from the API server, which did not get through; all else from the pod.
        match answer.refusal() {
            None => Ok(answer),
            Some(_) => answer.success(&format!("get pods/proxy in {namespace}")),
        }
    }

    async fn raw(
        &self,
        method: Method,
        path: &str,
        object: Option<&Value>,
        patience: Duration,
    ) -> Read<Answer> {
        let _permit = self.permits.acquire().await.map_err(Unread::failed)?;
        let body =
            object.map_or_else(Body::empty, |object| Body::from(object.to_string().into_bytes()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, "application/json, text/plain;q=0.5, */*;q=0.1")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(Unread::failed)?;
        let (before, began) = (seconds((self.clock)()), Instant::now());
        let call = async {
            let answer = self.client.send(request).await.map_err(|error| causes(&error))?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, MAX_BODY)
                .collect()
                .await
                .map_err(|error| Unread::failed(format_args!("the answer broke off: {error}")))?;
            Ok((parts, body.to_bytes()))
        };
        let (parts, body) = tokio::time::timeout(patience, call).await.map_err(|_| {
            Unread::failed(format_args!("no answer within {} s", patience.as_secs()))
        })??;
        let took = began.elapsed();
        let middle = before + took.as_secs_f64() / 2.0;
        Ok(Answer {
            status: parts.status,
            clock: date(&parts.headers).map(|now| Clock { now, ahead: now as f64 + 0.5 - middle }),
            took,
            json: is_json(&parts.headers),
            body,
        })
    }
}

#[derive(Deserialize)]
struct Page<T> {
    #[serde(default)]
    metadata: PageMeta,
    items: Option<Vec<T>>,
}

#[derive(Default, Deserialize)]
struct PageMeta {
    r#continue: Option<String>,
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The whole chain, since the outermost says least.
fn causes(error: &kube::Error) -> Unread {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    Unread::failed(text.trim_start_matches("ServiceError: "))
}

fn date(headers: &HeaderMap) -> Option<i64> {
    let text = headers.get(header::DATE)?.to_str().ok()?;
    Some(rfc2822::parse(text).ok()?.timestamp().as_second())
}

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_dates_are_read() {
        let mut headers = HeaderMap::new();
        headers.insert(header::DATE, "Sat, 21 Nov 2026 00:24:29 GMT".parse().unwrap());
        assert_eq!(date(&headers), Some(1_795_220_669));
        headers.insert(header::DATE, "yesterday".parse().unwrap());
        assert_eq!(date(&headers), None);
    }

    #[test]
    fn long_foreign_text_is_cut_and_on_one_line() {
        assert_eq!(shortened("a\n  b"), "a b");
        assert_eq!(shortened(&"ä".repeat(500)).chars().count(), MAX_CAUSE + 1);
    }

    fn answer(status: StatusCode, json: bool, body: &'static str) -> Answer {
        let body = Bytes::from_static(body.as_bytes());
        Answer { status, clock: None, took: Duration::ZERO, json, body }
    }

    #[test]
    fn a_refusal_is_told_from_what_a_pod_says() {
        let status = r#"{"kind":"Status","message":"pods \"x\" not found"}"#;
        let refused = answer(StatusCode::NOT_FOUND, true, status);
        assert_eq!(refused.refusal().as_deref(), Some("pods \"x\" not found"));
        assert_eq!(refused.success("get pods").unwrap_err(), Unread::Absent);
        let not_ready = answer(StatusCode::SERVICE_UNAVAILABLE, false, "not ready: identity");
        assert_eq!(not_ready.refusal(), None);
    }

    #[test]
    fn forbidden_names_the_permission() {
        let said = answer(StatusCode::FORBIDDEN, true, r#"{"kind":"Status"}"#);
        let error = said.success("list pods in shop").unwrap_err();
        assert_eq!(error.to_string(), "that needs the permission to list pods in shop");
    }
}
