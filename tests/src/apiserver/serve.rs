//! HTTP: from a request to what is done, and from what was done to an answer.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinSet};

use super::{
    Shared, access, admission, discovery,
    faults::{self, Fault},
    forward::Forward,
    patch::Form,
    read,
    request::{self, Path, Query, Target},
    review,
    status::{self, Refusal},
    watch, write,
};
use crate::origin::{Body, full};

/// Serves until it is dropped, which cuts all connections.
pub(super) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let _ = stream.set_nodelay(true);
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { answer(&shared, request).await.ok_or("the connection is reset") }
            });
            // A connection that breaks is the client's or the test's doing.
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = connection.with_upgrades().await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// What goes back.
pub(super) enum Answer {
    Object(StatusCode, Value, Vec<String>),
    Text(StatusCode, String),
    Stream(Body),
    Forward(Forward),
}

/// The answer to a request; nothing where the connection is to be closed instead.
async fn answer(shared: &Arc<Shared>, mut request: Request<Incoming>) -> Option<Response<Body>> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    let mut verdict = Verdict::Answer;
    let result = match respond(shared, &head, &body, &mut verdict).await {
        Ok(Answer::Forward(forward)) => {
            let response = forward.response();
            // Ends with the connection, which the double's end cuts.
            tokio::spawn(forward.carry(upgrade));
            response
        }
        Ok(answer) => response(answer),
        Err(refusal) => refused(refusal),
    };
    match verdict {
        Verdict::Answer => Some(result),
        Verdict::Reset => None,
    }
}

enum Verdict {
    Answer,
    Reset,
}

async fn respond(
    shared: &Arc<Shared>,
    head: &Parts,
    body: &[u8],
    verdict: &mut Verdict,
) -> Result<Answer, Refusal> {
    let user = user(shared, &head.headers)?;
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let target = match Path::parse(head.uri.path())? {
        Path::Other => {
            return discovery::answer(&shared.state.lock(), head.uri.path());
        }
        Path::Review(plural) => {
            strike_review(shared, plural, &user, verdict).await?;
            let body = parsed(body, "TokenReview")?;
            let object = review::answer(&shared.state.lock(), plural, &body, &user)?;
            return Ok(Answer::Object(StatusCode::CREATED, object, Vec::new()));
        }
        Path::Objects(target) => target,
    };
    let asked = target.asked(&user, &head.method, &query);
    strike(shared, &target, &asked, verdict).await?;
    {
        let mut state = shared.state.lock();
        if state.rbac && !access::allowed(&state.store, &asked) {
            state.refused.insert(asked.clone());
            return Err(status::forbidden(target.kind, &asked, &user));
        }
        if !state.serves(target.kind) {
            return Err(status::unknown_path());
        }
    }
    let metadata_only = request::metadata_only(&head.headers)?;
    match target.subresource.as_deref() {
        Some("proxy") => return pod_proxy(shared, &target),
        Some("portforward") => return forward(shared, &target, &head.headers, &query),
        Some("log") => return log(shared, &target),
        _ => {}
    }
    let answer = match (&head.method, &target.name) {
        (&Method::GET, None) if query.flag("watch") => {
            return watch::open(shared, &target, &query, metadata_only).map(Answer::Stream);
        }
        (&Method::GET, None) => {
            let list = read::many(&shared.state.lock().store, &target, &query)?;
            (StatusCode::OK, list, Vec::new())
        }
        (&Method::GET, Some(_)) => {
            (StatusCode::OK, read::one(&shared.state.lock().store, &target)?, Vec::new())
        }
        _ => write(shared, head, &target, &query, body, &user).await?,
    };
    let (code, object, warnings) = answer;
    let object = if metadata_only { read::only_metadata(object) } else { object };
    Ok(Answer::Object(code, object, warnings))
}

/// Carries out what changes something.
async fn write(
    shared: &Arc<Shared>,
    head: &Parts,
    target: &Target,
    query: &Query,
    body: &[u8],
    user: &str,
) -> Result<(StatusCode, Value, Vec<String>), Refusal> {
    let manager = match query.text("fieldManager") {
        Some(manager) => manager.to_owned(),
        None => agent(&head.headers),
    };
    let kind = target.kind;
    match (&head.method, &target.name) {
        (&Method::POST, None) => {
            let body = parsed(body, kind.name)?;
            let (draft, writer) = {
                let mut state = shared.state.lock();
                let writer = state.writer(&manager);
                (write::drafted(&state.store, target, &body, &writer)?, writer)
            };
            let dry_run = query.dry_run();
            let (object, mut warnings) =
                admission::admitted(shared, kind, draft, user, dry_run).await?;
            let written = admission::Written { kind, part: None, old: None, new: &object };
            warnings.extend(admission::validated(shared, written, user, dry_run).await?);
            let object = shared
                .change(|state| write::created(&mut state.store, kind, object, &writer, dry_run))?;
            Ok((StatusCode::CREATED, object, warnings))
        }
        (&Method::PUT, Some(_)) => {
            let body = parsed(body, kind.name)?;
            let replace = |dry_run: bool| {
                shared.change(|state| {
                    let writer = state.writer(&manager);
                    write::replaced(&mut state.store, target, &body, &writer, dry_run)
                })
            };
            let draft = || replace(true);
            let warnings = validated(shared, target, query, user, draft).await?;
            Ok((StatusCode::OK, replace(query.dry_run())?, warnings))
        }
        (&Method::PATCH, Some(_)) => {
            let form = content_type(&head.headers).and_then(Form::of);
            let form = form.ok_or_else(status::unsupported_media_type)?;
            let body = patch_body(form, body)?;
            let patch = |query: &Query| {
                shared.change(|state| {
                    let writer = state.writer(&manager);
                    write::patched(&mut state.store, target, (form, &body), query, &writer)
                })
            };
            let draft = || patch(&query.for_trial()).map(|(object, _)| object);
            let warnings = validated(shared, target, query, user, draft).await?;
            let (object, is_new) = patch(query)?;
            let code = if is_new { StatusCode::CREATED } else { StatusCode::OK };
            Ok((code, object, warnings))
        }
        (&Method::DELETE, Some(_)) => {
            let options =
                if body.is_empty() { Value::Null } else { parsed(body, "DeleteOptions")? };
            let time = super::time_after(0);
            let object = shared.change(|state| {
                let times = (time.as_str(), super::time_after);
                write::deleted(&mut state.store, target, &options, query, times)
            })?;
            if kind.plural == "namespaces" {
                shared.empty_namespace(target.name.as_deref().unwrap_or_default());
            }
            Ok((StatusCode::OK, object, Vec::new()))
        }
        _ => Err(status::method_not_allowed()),
    }
}

/// What validating webhooks say of a change, where there are any for it: `draft` makes it for trial.
async fn validated(
    shared: &Arc<Shared>,
    target: &Target,
    query: &Query,
    user: &str,
    draft: impl FnOnce() -> Result<Value, Refusal>,
) -> Result<Vec<String>, Refusal> {
    let (kind, part) = (target.kind, target.subresource.as_deref());
    if !admission::is_validated(shared, kind, part) {
        return Ok(Vec::new());
    }
    let old = shared.state.lock().store.object(&write::id(target)).cloned();
    let new = draft()?;
    let written = admission::Written { kind, part, old: old.as_ref(), new: &new };
    admission::validated(shared, written, user, query.dry_run()).await
}

/// A port-forward to a pod that is there.
fn forward(
    shared: &Shared,
    target: &Target,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Answer, Refusal> {
    let mut pod = target.clone();
    pod.subresource = None;
    let state = shared.state.lock();
    read::one(&state.store, &pod)?;
    let to = |port| {
        let place = (target.namespace.clone()?, target.name.clone()?, port);
        state.pod_ports.get(&place).copied()
    };
    Forward::new(headers, query.number("ports"), to).map(Answer::Forward)
}

/// The log of a pod that is there; of all its containers the same.
fn log(shared: &Shared, target: &Target) -> Result<Answer, Refusal> {
    let mut pod = target.clone();
    pod.subresource = None;
    let state = shared.state.lock();
    read::one(&state.store, &pod)?;
    let place =
        (target.namespace.clone().unwrap_or_default(), target.name.clone().unwrap_or_default());
    let text = state.logs.get(&place).cloned().unwrap_or_default();
    Ok(Answer::Text(StatusCode::OK, text))
}

fn pod_proxy(shared: &Shared, target: &Target) -> Result<Answer, Refusal> {
    let mut pod = target.clone();
    let name = target.name.clone().unwrap_or_default();
    // `[scheme:]name[:port]`
    let (name, port) = match name.rsplit_once(':') {
        Some((name, port)) => (name.to_owned(), port.parse().unwrap_or(80)),
        None => (name, 80),
    };
    pod.name = Some(name.rsplit(':').next().unwrap_or_default().to_owned());
    let (pod, answer) = {
        let state = shared.state.lock();
        (read::one(&state.store, &pod)?, Arc::clone(&state.pod_proxy))
    };
    let (code, text) = answer(&pod, port, &format!("/{}", target.rest));
    Ok(Answer::Text(StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY), text))
}

/// Lets a request go wrong where that is wanted.
async fn strike(
    shared: &Shared,
    target: &Target,
    asked: &access::Asked,
    verdict: &mut Verdict,
) -> Result<(), Refusal> {
    let fault = {
        let mut state = shared.state.lock();
        state.log(asked.clone());
        faults::strike(&mut state.rules, asked)
    };
    shared.changed.send_modify(|count| *count += 1);
    match fault {
        Some(Fault::Forbidden) => Err(status::forbidden(target.kind, asked, &asked.user)),
        other => suffer(other, verdict).await,
    }
}

async fn strike_review(
    shared: &Shared,
    plural: &'static str,
    user: &str,
    verdict: &mut Verdict,
) -> Result<(), Refusal> {
    let (group, name) = match plural {
        "tokenreviews" => ("authentication.k8s.io", "TokenReview"),
        _ => ("authorization.k8s.io", "SelfSubjectAccessReview"),
    };
    let asked = access::Asked {
        user: user.to_owned(),
        verb: "create".to_owned(),
        group: group.to_owned(),
        resource: plural.to_owned(),
        subresource: None,
        namespace: None,
        name: None,
    };
    let (fault, allowed) = {
        let mut state = shared.state.lock();
        state.log(asked.clone());
        let open = !state.rbac || plural != "tokenreviews";
        let allowed = open || access::allowed(&state.store, &asked);
        (faults::strike(&mut state.rules, &asked), allowed)
    };
    shared.changed.send_modify(|count| *count += 1);
    if fault == Some(Fault::Forbidden) || !allowed {
        if !allowed {
            shared.state.lock().refused.insert(asked.clone());
        }
        let kind = super::kinds::Kind {
            group,
            version: "v1",
            plural,
            name,
            namespaced: false,
            generation: false,
        };
        return Err(status::forbidden(&kind, &asked, user));
    }
    suffer(fault, verdict).await
}

async fn suffer(fault: Option<Fault>, verdict: &mut Verdict) -> Result<(), Refusal> {
    match fault {
        None | Some(Fault::Forbidden) => Ok(()),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Slow(long)) => {
            tokio::time::sleep(long).await;
            Ok(())
        }
        Some(Fault::Reset) => {
            *verdict = Verdict::Reset;
            Err(status::unavailable())
        }
        Some(Fault::TooManyRequests) => Err(status::too_many_requests(1)),
        Some(Fault::Internal) => Err(status::internal("something is broken")),
        Some(Fault::Unavailable) => Err(status::unavailable()),
        Some(Fault::Unauthorized) => Err(status::unauthorized()),
    }
}

/// Whose token it is; nobody's is the administrator's.
fn user(shared: &Shared, headers: &HeaderMap) -> Result<String, Refusal> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(access::ADMIN.to_owned());
    };
    let token = value.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
    let state = shared.state.lock();
    let user = token.and_then(|token| state.users.get(token)).cloned();
    user.ok_or_else(status::unauthorized)
}

/// The User-Agent up to its version, which is the field manager of a client that names none.
fn agent(headers: &HeaderMap) -> String {
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
    agent.unwrap_or("unknown").split('/').next().unwrap_or("unknown").to_owned()
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::CONTENT_TYPE)?.to_str().ok()
}

fn parsed(body: &[u8], kind: &str) -> Result<Value, Refusal> {
    serde_json::from_slice(body).map_err(|_| {
        let start: String = String::from_utf8_lossy(body).chars().take(30).collect();
        status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: unexpected end of JSON input ({start} ...)"
        ))
    })
}

fn patch_body(form: Form, body: &[u8]) -> Result<Value, Refusal> {
    if let Ok(body) = serde_json::from_slice(body) {
        return Ok(body);
    }
    let yaml = std::str::from_utf8(body).ok().filter(|_| form == Form::Apply);
    let yaml = yaml.and_then(|yaml| serde_saphyr::from_str(yaml).ok());
    yaml.ok_or_else(|| status::bad_request("error decoding patch"))
}

fn response(answer: Answer) -> Response<Body> {
    match answer {
        Answer::Object(code, object, warnings) => {
            let mut response = headed(code, "application/json", full(object.to_string()));
            for warning in warnings {
                let value = format!("299 - \"{}\"", warning.replace('"', "\\\""));
                if let Ok(value) = HeaderValue::from_str(&value) {
                    response.headers_mut().append(header::WARNING, value);
                }
            }
            response
        }
        Answer::Text(code, text) => headed(code, "text/plain; charset=utf-8", full(text)),
        Answer::Stream(body) => headed(StatusCode::OK, "application/json", body),
        Answer::Forward(forward) => forward.response(),
    }
}

fn refused(refusal: Refusal) -> Response<Body> {
    let code = refusal.code();
    let (mut response, retry_after, sniff) = match refusal {
        Refusal::Status { body, .. } => {
            let details = &body["details"];
            // The authorizer's answer, not an admission plugin's.
            let sniff = code == StatusCode::FORBIDDEN && details["causes"].is_null();
            let retry_after = details["retryAfterSeconds"].as_u64();
            (headed(code, "application/json", full(body.to_string())), retry_after, sniff)
        }
        Refusal::Text { text, retry_after, .. } => {
            let body = full(format!("{text}\n"));
            (headed(code, "text/plain; charset=utf-8", body), retry_after, true)
        }
    };
    if sniff {
        let value = HeaderValue::from_static("nosniff");
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, value);
    }
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn headed(code: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
