//! The double says what a real API server said, request by request.
//!
//! What no two servers have in common is learnt as the story goes on: uids and versions of the
//! recording are put for those of the double before texts are compared. Times, and which fields
//! an entry of `managedFields` lists, are not compared.

use std::collections::BTreeMap;

use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use remora_tests::{
    apiserver::{ApiServer, Fault},
    origin::{full, h1},
    wait::within,
};
use serde_json::{Value, json};

const NOBODY: &str = "system:serviceaccount:err:nobody";

#[tokio::test]
async fn config_maps_from_creation_to_deletion_and_every_refusal_between() {
    let api = ApiServer::start().await;
    replay(&api, include_str!("../../fixtures/apiserver/configmaps.http")).await;
}

#[tokio::test]
async fn leases_as_a_leader_holds_them() {
    let api = ApiServer::start().await;
    replay(&api, include_str!("../../fixtures/apiserver/leases.http")).await;
}

#[tokio::test]
async fn namespaces_as_their_labels_are_written() {
    let api = ApiServer::start().await;
    api.keep_terminating();
    replay(&api, include_str!("../../fixtures/apiserver/namespaces.http")).await;
}

#[tokio::test]
async fn who_may_not_is_told_so() {
    let api = ApiServer::start().await;
    api.enforce_rbac();
    api.fail_times(1, "list", "pods", Fault::TooManyRequests);
    replay(&api, include_str!("../../fixtures/apiserver/access.http")).await;
}

/// Request and response of an exchange.
struct Exchange<'a> {
    name: &'a str,
    request: Message<'a>,
    response: Option<Message<'a>>,
}

struct Message<'a> {
    first: &'a str,
    headers: BTreeMap<String, &'a str>,
    body: &'a str,
}

fn exchanges(text: &str) -> Vec<Exchange<'_>> {
    let parts = text.split("=== exchange: ").skip(1);
    let exchange = |part| {
        let (name, rest) = str::split_once(part, " ===\n").unwrap();
        let rest = rest.strip_prefix("=== request ===\n").unwrap();
        let (request, response) = match rest.split_once("=== response ===\n") {
            Some((request, response)) => (request, Some(message(response))),
            None => (rest, None),
        };
        Exchange { name, request: message(request), response }
    };
    parts.map(exchange).collect()
}

fn message(text: &str) -> Message<'_> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let first = lines.next().unwrap();
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value)).collect();
    Message { first, headers, body: body.trim_end() }
}

async fn replay(api: &ApiServer, story: &str) {
    let nobody = api.login(NOBODY);
    let mut learnt = Learnt::default();
    let mut wrong = Vec::new();
    for exchange in exchanges(story) {
        let sent = learnt.ours(exchange.request.body);
        let mut first = exchange.request.first.split(' ');
        let (method, uri) = (first.next().unwrap(), learnt.ours(first.next().unwrap()));
        let mut request = Request::builder().method(method).uri(&uri).header("host", "double");
        for (name, value) in &exchange.request.headers {
            request = request.header(name, value.replace("nobody", &nobody));
        }
        let is_watch = uri.contains("watch=true");
        let mut sender = h1(api.addr()).await;
        let response = sender.send_request(request.body(full(sent)).unwrap());
        let response = within(exchange.name, response).await.unwrap();
        let (head, body) = response.into_parts();
        let Some(expected) = exchange.response else { continue };
        let lines = if is_watch { expected.body.lines().count() } else { usize::MAX };
        let actual = within(exchange.name, read(body, lines)).await;
        learnt.learn(expected.body, &actual);
        let ours = Said::of(head.status.as_u16(), &head.headers, &actual);
        let theirs = Said::recorded(&expected, &learnt);
        if ours != theirs {
            wrong.push(format!("{}\n{}", exchange.name, ours.difference(&theirs)));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// Reads so many lines, or to the end.
async fn read(mut body: hyper::body::Incoming, lines: usize) -> String {
    let mut text = Vec::new();
    while text.iter().filter(|byte| **byte == b'\n').count() < lines
        && let Some(frame) = body.frame().await
    {
        text.extend(frame.unwrap().into_data().unwrap());
    }
    String::from_utf8(text).unwrap()
}

/// What is compared.
#[derive(Debug, PartialEq)]
struct Said {
    status: u16,
    headers: BTreeMap<&'static str, String>,
    body: Vec<Value>,
}

const COMPARED: [&str; 4] = ["content-type", "retry-after", "warning", "x-content-type-options"];

impl Said {
    fn of(status: u16, headers: &HeaderMap, body: &str) -> Self {
        let value =
            |name: &&'static str| Some((*name, headers.get(*name)?.to_str().ok()?.to_owned()));
        Self { status, headers: COMPARED.iter().filter_map(value).collect(), body: lines(body) }
    }

    /// What differs, in lines.
    fn difference(&self, recorded: &Self) -> String {
        let all = |said: &Self| {
            let head = format!("{} {:?}", said.status, said.headers);
            std::iter::once(head).chain(said.body.iter().map(Value::to_string)).collect::<Vec<_>>()
        };
        let (ours, theirs) = (all(self), all(recorded));
        let count = ours.len().max(theirs.len());
        let line = |lines: &[String], at: usize| lines.get(at).cloned().unwrap_or_default();
        let differs = |at: &usize| line(&ours, *at) != line(&theirs, *at);
        let show =
            |at| format!("recorded   {}\nthe double {}\n", line(&theirs, at), line(&ours, at));
        (0..count).filter(differs).map(show).collect()
    }

    fn recorded(message: &Message<'_>, learnt: &Learnt) -> Self {
        let status = message.first.split(' ').nth(1).unwrap().parse().unwrap();
        let value = |name: &&'static str| Some((*name, (*message.headers.get(*name)?).to_owned()));
        let headers = COMPARED.iter().filter_map(value).collect();
        Self { status, headers, body: lines(&learnt.ours(message.body)) }
    }
}

/// The JSON of a body, or of each of its lines; text where it is none. Bookmarks at the end of a
/// watch count once, since they follow the clock.
fn lines(body: &str) -> Vec<Value> {
    let parsed = match serde_json::from_str(body) {
        Ok(value) => vec![value],
        Err(_) => body
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| json!(line)))
            .collect(),
    };
    let mut parsed: Vec<Value> = parsed.into_iter().map(masked).collect();
    parsed.dedup_by(|a, b| a["type"] == "BOOKMARK" && b["type"] == "BOOKMARK");
    parsed
}

fn masked(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let field = |(name, value): (String, Value)| {
                let value = match name.as_str() {
                    // Of other kinds' writes, which a bookmark may or may not have seen.
                    "resourceVersion" => json!("a version"),
                    "uid" => json!("a uid"),
                    "creationTimestamp" | "deletionTimestamp" | "time" => json!("a time"),
                    "fieldsV1" => json!("fields"),
                    "message" => {
                        match value.as_str().and_then(|text| text.split_once(", current: ")) {
                            Some((start, _)) => json!(start),
                            None => value,
                        }
                    }
                    _ => masked(value),
                };
                (name, value)
            };
            let mut fields: serde_json::Map<String, Value> =
                fields.into_iter().map(field).collect();
            if let Some(Value::Array(owners)) = fields.get_mut("managedFields") {
                owners.sort_by_key(ToString::to_string);
            }
            // Reviews are stored nowhere, and their metadata is not modelled.
            if fields
                .get("kind")
                .and_then(Value::as_str)
                .is_some_and(|kind| kind.ends_with("Review"))
            {
                fields.remove("metadata");
            }
            Value::Object(fields)
        }
        Value::Array(items) => items.into_iter().map(masked).collect(),
        other => other,
    }
}

/// Recorded uids and versions, and what they are in the double.
#[derive(Default)]
struct Learnt(BTreeMap<String, String>);

impl Learnt {
    fn learn(&mut self, recorded: &str, actual: &str) {
        let bodies = recorded.lines().zip(actual.lines());
        for (recorded, actual) in bodies {
            let (Ok(recorded), Ok(actual)) =
                (serde_json::from_str::<Value>(recorded), serde_json::from_str::<Value>(actual))
            else {
                continue;
            };
            for field in ["uid", "resourceVersion"] {
                let of = |value: &Value| value["metadata"][field].as_str().map(str::to_owned);
                if let (Some(recorded), Some(actual)) = (of(&recorded), of(&actual)) {
                    self.0.insert(recorded, actual);
                }
            }
        }
    }

    fn ours(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (recorded, actual) in &self.0 {
            let quoted = (format!("\"{recorded}\""), format!("\"{actual}\""));
            let in_query =
                (format!("resourceVersion={recorded}&"), format!("resourceVersion={actual}&"));
            text = text.replace(&quoted.0, &quoted.1).replace(&in_query.0, &in_query.1);
            if recorded.contains('-') {
                text = text.replace(recorded, actual);
            }
        }
        text
    }
}
